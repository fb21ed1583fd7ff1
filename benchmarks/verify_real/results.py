"""The file of results: an entry for each check, of the last run in which it ran."""

from __future__ import annotations

import json
from pathlib import Path

from reporting import machine, versions

from triptych.utils.atomic_write import write_text
from verify_real.running import Outcome


def save(out: Path, outcome: Outcome, before: dict[str, object]) -> None:
    """Write the checks that ran into `out`; entries of others stay.

    Args:
        out: JSON file.
        outcome: of this run.
        before: machine and versions, see `facts`.
    """
    checks = json.loads(out.read_text())["checks"] if out.exists() else {}
    for name, rows in outcome.by_check.items():
        checks[name] = {
            "command": f'make verify-real ARGS="--only {name}"',  # without the folder's place
            **before,
            "seconds": outcome.seconds[name],
            "rows": [row.record() for row in rows],
        }
    write_text(out, json.dumps({"checks": checks}, indent=1) + "\n")


def facts() -> dict[str, object]:
    """Machine and versions, before the checks run."""
    return {"machine": machine(), "versions": versions("torch", "transformers", "lightning")}
