"""Server of `triptych serve --replicas`, also of one: python benchmarks/replicas_ray.py N PORT"""

from __future__ import annotations

import sys

from triptych.serving.asgi.server import open_port
from triptych.serving.http.replicas import serve_replicas


def build():
    from triptych.inference.pipeline import UnifiedPipeline
    from triptych.serving.http.app import create_app
    from triptych.serving.images.sizes import ImageSizes

    pipe = UnifiedPipeline.from_pretrained("tiny", device="cpu")
    return create_app(pipe, "tiny", ImageSizes.of(pipe))


if __name__ == "__main__":
    replicas, port = map(int, sys.argv[1:])
    bound = open_port("127.0.0.1", port)
    serve_replicas(
        build, bound, name="tiny", replicas=replicas, gpus=0, max_requests=80, timeout=120
    )
