"""Run each check in a process of its own: none stops another, and memory is given back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verify_real.parts import FETCH, missing, wrong_file
from verify_real.rows import Row

BENCHMARKS = Path(__file__).parents[1]
LIMIT = 3600  # seconds of one check


@dataclass(frozen=True)
class Check:
    """A check of real parts.

    Args:
        name: what it is about.
        function: `module:name` of a function from the folder of parts to an iterable of rows.
        parts: names of the parts that it needs.
        packages: whether it needs the Python packages of requirements.txt.
        memory: free memory that it needs, in GB.
    """

    name: str
    function: str
    parts: tuple[str, ...]
    packages: bool = False
    memory: float = 2.0


@dataclass
class Outcome:
    """Rows of all checks, and what failed or was skipped, each as "name: reason"."""

    by_check: dict[str, list[Row]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """Rows of all checks."""
        return [row for rows in self.by_check.values() for row in rows]

    def figures(self) -> dict[str, Any]:
        """The last line of the output."""
        return {"checks": len(self.rows), "failed": self.failed, "skipped": self.skipped}


def run(
    checks: Sequence[Check],
    folder: Path,
    report: Callable[[str], None] = print,
    limit: float = LIMIT,
) -> Outcome:
    """Run checks with the parts in `folder`, those that lack a part are skipped.

    Args:
        checks: the checks, in order.
        folder: folder of parts.
        report: called with each line of the table.
        limit: seconds after which a check is ended.
    """
    outcome = Outcome()
    for check in checks:
        began = time.monotonic()
        if reason := _unable(check, folder):
            outcome.skipped.append(f"{check.name}: {reason}")
            report(f"skipped {check.name:36} {reason}")
            continue
        reason = wrong_file(folder, check.parts)
        if reason is None:
            rows, reason = _in_process(check, folder, report, limit)
            outcome.by_check[check.name] = rows
            outcome.failed += [f"{row.name}: {row.value:.6g}" for row in rows if not row.ok]
        if reason is not None:
            outcome.failed.append(f"{check.name}: {reason}")
            report(f"FAILED  {check.name:36} {reason}")
        outcome.seconds[check.name] = round(time.monotonic() - began, 1)
    return outcome


def _unable(check: Check, folder: Path) -> str | None:
    """Why a check cannot run here."""
    if lacking := missing(folder, check.parts):
        return f"{folder} lacks {', '.join(lacking)}; `{FETCH}` downloads it"
    if check.packages and not (folder / "python").is_dir():
        return f"{folder} lacks the Python packages; `{FETCH}` installs them"
    free = _free_memory()
    if free is not None and free < check.memory:
        return f"it needs {check.memory:g} GB of free memory, {free:.1f} GB are free"
    return None


def _free_memory() -> float | None:
    """Available memory in GB, where the system says it."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    lines = dict(line.split(":") for line in path.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024 / 1e9


def _in_process(
    check: Check, folder: Path, report: Callable[[str], None], limit: float
) -> tuple[list[Row], str | None]:
    """Rows of a check, and why it did not end well."""
    paths = (str(BENCHMARKS), str(folder / "python"), os.environ.get("PYTHONPATH", ""))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    env["TQDM_DISABLE"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "rows.jsonl")
        out.touch()
        command = [sys.executable, "-m", "verify_real.child", check.function, folder, out]
        reason = None
        try:
            status = subprocess.run(command, env=env, timeout=limit).returncode
            if status < 0:
                reason = f"its process was killed by signal {-status}; is there enough memory?"
            elif status:
                reason = f"its process ended with status {status}"
        except subprocess.TimeoutExpired:
            reason = f"it ran longer than {limit:g} s"
        rows = []
        for line in out.read_text().splitlines():
            record = json.loads(line)
            if "error" in record:
                reason = record["error"]
            else:
                rows.append(Row(**record))
    for row in rows:
        report(row.line())
    if not rows and reason is None:
        reason = "it compared nothing"
    return rows, reason
