"""One part of the check: python -m gpu_check.part [--dry-run] NAME."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402

from gpu_check import images, kernels, training  # noqa: E402
from gpu_check.device import CUDA, Device  # noqa: E402

ROOT = Path(__file__).parents[2]
MARK = "mark.gpu"


def card(device: Device) -> dict[str, Any]:
    """The GPU, its memory and its software."""
    found = {"name": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    if not device.dry:
        properties = torch.cuda.get_device_properties(CUDA)
        found |= {"memory_gb": round(properties.total_memory / 1e9, 1)}
        found |= {"cudnn": torch.backends.cudnn.version()}
    return found


def tests(device: Device) -> dict[str, Any]:
    """The tests that are marked gpu; a dry run collects them."""
    files = [each for each in (ROOT / "tests").rglob("test_*.py") if MARK in each.read_text()]
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:xdist", *map(str, files)]
    words += ["--collect-only"] if device.dry else []
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    found: dict[str, Any] = {"summary": re.sub(r"^=+ | =+$", "", last)}
    if done.returncode:
        found["error"] = f"pytest ended with {done.returncode}: {last[:300]}"
    return found


PARTS: dict[str, Callable[[Device], dict[str, Any]]] = {
    "card": card,
    **{
        f"stage2 {size} {how}": partial(training.stage2, size=size, how=how)
        for size in ("4b", "8b")
        for how in ("plain", "compiled", "fsdp2")
    },
    "images": images.images,
    "parity": images.parity,
    "attention": kernels.attention,
    "low memory 4-bit": images.four_bit,
    "low memory offload": images.offload,
    "nccl": kernels.nccl,
    "tests": tests,
}


def main() -> None:
    """Run the part and print its figures as the last line."""
    dry = "--dry-run" in sys.argv
    result = PARTS[sys.argv[-1]](Device(dry))
    print(json.dumps(result))
    sys.exit("error" in result)


if __name__ == "__main__":
    main()
