"""Use every part once, with the oldest packages that setup.cfg allows: `make test-lowest`.

Needs no pytest, so that none of its dependencies decides which versions are installed. Prints the
versions, a line for each check, and what failed. The status is 1 if anything did.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path

TRIPTYCH = [sys.executable, "-P", "-m", "triptych"]
SECONDS = 600
SHORT = [
    "--data.images=64",
    "--data.init_args.batch_size=4",
    "--trainer.limit_val_batches=1",
    "--trainer.enable_progress_bar=false",
]
VERSIONS = ("torch", "torchvision", "lightning", "transformers", "diffusers", "timm", "numpy")
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def _end(text: str) -> str:
    """Last lines of an output."""
    return "\n".join(text.splitlines()[-12:])


def triptych(*arguments: str | Path) -> str:
    """Standard output of a command, which has to succeed."""
    command = [*TRIPTYCH, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=ENVIRONMENT)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command[3:])}: {_end(done.stderr)}")
    return done.stdout


def check_imports() -> None:
    """Import every module but those of lmms-eval, which no extra installs."""
    import triptych

    for module in pkgutil.walk_packages(triptych.__path__, "triptych."):
        name = module.name
        if name != "triptych.__main__" and not name.startswith("triptych.evaluation.lmms_eval."):
            importlib.import_module(name)


def check_help() -> None:
    """Print the commands, and the flags of `fit`, which every constructor takes part in."""
    assert "generate" in triptych("--help")
    assert "--model.generation" in triptych("fit", "--help")


def check_generate_and_chat() -> None:
    """Make an image with the shipped weights, and ask what it shows."""
    triptych("generate", "a red circle", "-o", "images")
    image = Path("images/000000-000.png")
    assert triptych("chat", image, "what is in this image?").strip()


def check_samplers() -> None:
    """Make an image with each sampler."""
    from triptych import UnifiedPipeline

    pipe = UnifiedPipeline.from_pretrained("tiny", device="cpu")
    for sampler in ("euler", "heun", "dpm++", "unipc"):
        few = {"num_inference_steps": 3, "decoder_num_inference_steps": 3}
        made = pipe("a red circle", sampler=sampler, decoder_sampler=sampler, **few)
        assert made.images[0].mode == "RGB"


def check_quantized() -> None:
    """Make an image with a language model of 4 bits a weight."""
    triptych("generate", "a red circle", "--quantize", "4bit", "-o", "images-4bit")


def check_training() -> None:
    """Train three steps of stage 2 with a checkpoint, and resume them for two more."""
    import torch

    fit = ["fit", "--preset", "tiny", "--stage", "stage2", *SHORT]
    fit.append("--trainer.callbacks+=ExportWeights")
    triptych(*fit, "--trainer.max_steps=3")
    triptych(*fit, "--trainer.max_steps=5", "--ckpt_path=last")
    steps = [
        torch.load(path, weights_only=True)["global_step"]
        for path in Path("runs/tiny/stage2").rglob("last.ckpt")
    ]
    assert max(steps) == 5, steps
    assert list(Path("runs/tiny/stage2").rglob("weights.safetensors"))


def check_data() -> None:
    """Pack a folder of images, and a Parquet file, into shards, and inspect them."""
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    folder = Path("photos")
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (40, 30), (40 * number, 0, 0)).save(folder / f"{number}.jpg")
        (folder / f"{number}.txt").write_text(f"image number {number}")
    rows = [
        {"image": {"bytes": path.read_bytes(), "path": path.name}, "caption": path.stem}
        for path in sorted(folder.glob("*.jpg"))
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "table.parquet")
    for source, shards in (("photos", "shards"), ("table.parquet", "shards-of-table")):
        triptych("data", "pack", source, "--out", shards, "--workers", "1")
        assert "6" in triptych("data", "inspect", shards, "--workers", "1")


def check_saved_dataset() -> None:
    """Pack a data set that Hugging Face `datasets` saved."""
    import datasets
    from PIL import Image

    images = [Image.new("RGB", (40, 30), (40 * number, 0, 0)) for number in range(6)]
    columns = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    table = {"image": images, "text": [f"image {number}" for number in range(6)]}
    datasets.Dataset.from_dict(table, columns).save_to_disk("saved")
    triptych("data", "pack", "saved", "--out", "shards-of-saved", "--workers", "1")


def check_evaluation() -> None:
    """Score a few images, and draw the report."""
    triptych("eval", "shapes", "--num-captions", "4")


def _served(command: str, path: str, body: dict | None = None) -> bytes:
    """Answer of a server that `triptych command` starts on a free port; it ends afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [*TRIPTYCH, command, "--port", str(port)], stdout=log, stderr=log, env=ENVIRONMENT
        )
        try:
            end = time.monotonic() + SECONDS
            while True:
                try:
                    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                        return answer.read()
                except urllib.error.HTTPError:  # the server's own answer
                    raise
                except urllib.error.URLError:
                    if server.poll() is not None or time.monotonic() > end:
                        log.seek(0)
                        raise RuntimeError(f"triptych {command}: {_end(log.read())}") from None
                time.sleep(0.2)
        finally:
            server.terminate()
            server.wait(60)


def check_server() -> None:
    """Ask the HTTP server for an image."""
    answer = _served("serve", "/v1/images/generations", {"prompt": "a red circle"})
    assert json.loads(answer)["data"][0]["b64_json"]


def check_web_page() -> None:
    """Ask for the web page."""
    assert b"gradio" in _served("app", "/")


CHECKS = [
    check_imports,
    check_help,
    check_generate_and_chat,
    check_samplers,
    check_quantized,
    check_training,
    check_data,
    check_saved_dataset,
    check_evaluation,
    check_server,
    check_web_page,
]


def main() -> int:
    """Run the checks, or those that are named, in an empty folder."""
    print(", ".join(f"{name} {version(name)}" for name in VERSIONS), flush=True)
    failed = 0
    chosen = [check for check in CHECKS if check.__name__[6:] in sys.argv[1:]] or CHECKS
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for check in chosen:
            begun, result, why = time.monotonic(), "passed", ""
            try:
                check()
            except Exception as error:
                failed, result, why = failed + 1, "FAILED", f"\n{type(error).__name__}: {error}"
            name = check.__name__[6:].replace("_", " ")
            print(f"{name}: {result}, {time.monotonic() - begun:.0f} s{why}", flush=True)
    print(f"{len(chosen) - failed} passed, {failed} failed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
