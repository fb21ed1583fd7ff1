"""Peak memory of `triptych convert` on a checkpoint of the published 4B's layout.

Names, shapes, number format (bf16) and shards are those of the real thing, the tower inside and
the decoder beside it; the numbers are zeros, in sparse files that take no room on the disk. What
the conversion writes does take room, 24 GB, and is deleted at the end.

    python benchmarks/convert_memory.py --folder out

The bound is 1.5 times the largest input file plus 1 GiB. The last line is one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from triptych.checkpoints.published import key_mapping
from triptych.checkpoints.published.export import config_of, decoder_configs, split_files
from triptych.inference.loading import describe_model

ROOT = Path(__file__).parent.parent
SHARD = 5 * 10**9  # bytes, as transformers cuts them
GIB = 2**30


def sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    """A safetensors file of bf16 zeros that are nowhere on the disk; returns its size."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path.stat().st_size


def write_checkpoint(folder: Path) -> list[int]:
    """The published 4B in sparse files; returns the sizes of its weight files."""
    model = describe_model([ROOT / "conf" / "presets" / "blip3o_4b.yaml"])
    with torch.device("meta"):
        model.build()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    main: dict[str, tuple[int, ...]] = {}
    decoder: dict[str, dict[str, tuple[int, ...]]] = {"unet": {}, "vae": {}}
    for name, shape in shapes.items():
        key = key_mapping.published_key(name)
        if name.startswith(key_mapping.UNET):
            decoder["unet"][name.removeprefix(key_mapping.UNET)] = shape
        elif name.startswith(key_mapping.VAE):
            decoder["vae"][name.removeprefix(key_mapping.VAE)] = shape
        elif key is not None:
            main[key] = (1, *shape) if name == key_mapping.QUERIES else shape
    sizes = {key: 2 * torch.Size(shape).numel() for key, shape in main.items()}
    files = split_files(sizes, "model", SHARD)
    found = [
        sparse(folder / file, {key: main[key] for key in main if files[key] == file})
        for file in sorted(set(files.values()))
    ]
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config_of(model)))
    place = folder / "diffusion-decoder"
    for part, own in decoder.items():
        found.append(sparse(place / part / "diffusion_pytorch_model.bf16.safetensors", own))
    for name, text in decoder_configs(model.decoding.decoder).items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    return found


def main() -> None:
    """Measure, print, clean up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "out", help="where there is room")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        sizes = write_checkpoint(Path(work, "blip3o_4b"))
        command = [sys.executable, "-m", "triptych", "convert"]
        command += [str(Path(work, "blip3o_4b")), str(Path(work, "ours"))]
        started = time.time()
        child = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        _, status, usage = os.wait4(child.pid, 0)  # of this child alone
        seconds = time.time() - started
        if status:
            sys.exit(f"the conversion failed with status {os.waitstatus_to_exitcode(status)}")
        written = sum(path.stat().st_size for path in Path(work, "ours").rglob("*.safetensors"))
    peak, bound = usage.ru_maxrss * 1024, 1.5 * max(sizes) + GIB
    figures = {
        "peak_gib": round(peak / GIB, 3),
        "bound_gib": round(bound / GIB, 3),
        "largest_file_gib": round(max(sizes) / GIB, 3),
        "read_gb": round(sum(sizes) / 1e9, 2),
        "written_gb": round(written / 1e9, 2),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "within": peak <= bound,
    }
    print(f"peak {figures['peak_gib']} GiB of {figures['bound_gib']} GiB allowed")
    print(json.dumps(figures))
    sys.exit(not figures["within"])


if __name__ == "__main__":
    main()
