"""All figures that need a GPU: tests, training steps, images, kernels, NCCL; at most nine minutes.

Each part is a process of its own with its own limit of time: one that fails, or takes too long,
stops no other. The result is written after every part; parts for which no time is left are recorded
as not reached. The last line is JSON; the exit status is 1 if a part failed.

    make gpu-check
    make gpu-check ARGS=--dry-run      # every part on fake CUDA tensors, without a GPU: no figures
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from parts import run_part
from reporting import machine, versions

ROOT = Path(__file__).parents[2]
DEADLINE = 540.0
LEAST = 15.0  # seconds below which no part is begun
# Limits in seconds, in the order in which the parts run: what is quoted most comes first.
LIMITS = {
    "stage2 8b plain": 75,
    "stage2 4b plain": 60,
    "images": 120,
    "stage2 8b fsdp2": 60,
    "stage2 8b compiled": 120,
    "low memory 4-bit": 75,
    "parity": 45,
    "attention": 45,
    "tests": 90,
    "nccl": 30,
    "low memory offload": 75,
    "stage2 4b fsdp2": 50,
    "stage2 4b compiled": 100,
}
PACKAGES = ("torch", "lightning", "transformers", "diffusers", "bitsandbytes", "xformers")
# without the project's imports, which take longer
LOOK = "import json, torch; print(json.dumps({'found': torch.cuda.is_available()}))"
Run = Callable[[str, float], dict[str, Any]]


def check(
    run: Run,
    limits: Mapping[str, float],
    *,
    seconds: float,
    write: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Run the parts of `limits` in turn within `seconds`; `write` gets the results after each."""
    deadline = time.monotonic() + seconds
    found: dict[str, Any] = {name: {"not_reached": True} for name in limits}
    write(found)
    for name, limit in limits.items():
        left = deadline - time.monotonic()
        if left < min(LEAST, limit):
            break
        found[name] = run(name, min(limit, left))
        print(row(name, found[name]), flush=True)
        write(found)
    return found


def row(name: str, result: Mapping[str, Any]) -> str:
    """A line of the table."""
    state = "FAILED" if "error" in result else "skipped" if "skipped" in result else "ok"
    more = result.get("error") or result.get("skipped") or ""
    return f"{name:20} {state:8} {result.get('seconds', 0):6.1f} s  {more}"


def main() -> None:
    """Check that there is a device, run the parts, and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="on fake tensors, without a GPU")
    parser.add_argument("--only", nargs="+", choices=list(LIMITS), help="these parts alone")
    parser.add_argument("--seconds", type=float, help="of all parts together (540; dry: none)")
    parser.add_argument("--out", type=Path, help="JSON file; a dry run writes none by default")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        env = fake_device(folder) if parsed.dry_run else dict(os.environ)
        command = [sys.executable, "-m", "gpu_check.part"]
        command += ["--dry-run"] if parsed.dry_run else []

        def run(name: str, seconds: float) -> dict[str, Any]:
            return run_part([*command, name], seconds, env)

        patience = 20 if parsed.dry_run else 1  # the processor of a dry run may be busy
        if run_part([sys.executable, "-c", LOOK], 300, env).get("found") is False:
            sys.exit("there is no CUDA device here; make gpu-check ARGS=--dry-run needs none.")
        card = run("card", 60 * patience)
        if "error" in card:
            sys.exit(f"the CUDA device cannot be used: {card['error']}")
        limits = {name: LIMITS[name] * patience for name in parsed.only or LIMITS}
        facts = {
            "command": " ".join(["make gpu-check", *(["ARGS=" + " ".join(sys.argv[1:])])]),
            "date": date.today().isoformat(),
            "dry_run": parsed.dry_run,
            "card": {key: card[key] for key in card if key not in ("seconds", "peak_gb")},
            "machine": machine(),
            "versions": versions(*PACKAGES),
        }
        out = parsed.out or (None if parsed.dry_run else ROOT / "benchmarks/results/gpu.json")
        found = check(
            run,
            limits,
            seconds=parsed.seconds or DEADLINE * patience,
            write=lambda parts: write_atomically(out, facts | {"parts": parts}),
        )
    result = {
        "dry_run": parsed.dry_run,
        "card": card.get("name"),
        "failed": [name for name, each in found.items() if "error" in each],
        "skipped": [name for name, each in found.items() if "skipped" in each],
        "not_reached": [name for name, each in found.items() if "not_reached" in each],
        "parts": found,
    }
    print(json.dumps(result))
    sys.exit(bool(result["failed"]))


def fake_device(folder: str) -> dict[str, str]:
    """Environment of a process with a fake GPU, whose stub is compiled into `folder`."""
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    from fake_cuda import runtime

    if (why := runtime.missing()) is not None:
        sys.exit(f"a dry run is not possible here: {why}.")
    runtime.build(folder)
    return runtime.environment(folder)


def write_atomically(out: Path | None, content: Mapping[str, Any]) -> None:
    """Replace the JSON file `out`: it is whole whenever the check is ended."""
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, out)


if __name__ == "__main__":
    main()
