"""Results of a benchmark: the machine, the versions, a JSON file and the last line."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def versions(*names: str) -> dict[str, str]:
    """Versions of Python and of these packages."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, object]:
    """The processor, and how busy it was before."""
    model = [line for line in Path("/proc/cpuinfo").read_text().split("\n") if "model name" in line]
    return {
        "processor": model[0].partition(":")[2].strip() if model else platform.processor(),
        "cores": os.cpu_count(),
        "load_before": [round(load, 1) for load in os.getloadavg()],
    }


def write_result(out: Path | None, figures: Mapping[str, object], **facts: object) -> None:
    """Write the figures to `out`, with the command and `facts`, and print them as the last line."""
    if out:
        command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
        record = {"command": command, **facts, "figures": figures}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(figures))
