"""The tiny preset behind LitServe: python benchmarks/replicas_litserve.py N PORT

The least that generates images in batches: a request is only parsed, not checked, and there are no
chats, edits, streams of previews, limits or metrics.
"""

from __future__ import annotations

import base64
import sys
from io import BytesIO

import litserve


class Images(litserve.LitAPI):
    """POST /v1/images/generations of a prompt and a seed."""

    def setup(self, device):
        from triptych.inference.pipeline import UnifiedPipeline

        self.pipe = UnifiedPipeline.from_pretrained("tiny", device=device)

    def decode_request(self, request):
        return request["prompt"], request["seed"]

    def batch(self, inputs):
        return inputs

    def predict(self, inputs):
        prompts, seeds = map(list, zip(*inputs, strict=True))
        return self.pipe(prompts, seed=seeds, batch_size=len(seeds)).images

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        file = BytesIO()
        output.save(file, "PNG")
        return {"data": [{"b64_json": base64.b64encode(file.getvalue()).decode()}]}


if __name__ == "__main__":
    replicas, port = map(int, sys.argv[1:])
    api = Images(max_batch_size=16, batch_timeout=0.01, api_path="/v1/images/generations")
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=replicas, restart_workers=True, timeout=120
    )
    server.run(
        host="127.0.0.1",
        port=port,
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )
