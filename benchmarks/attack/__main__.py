"""Attacks on the server, the page and the commands: python -m attack, in benchmarks.

Server and page are started as people start them, with 1,024 files. While they are attacked, a good
client asks once a second. The last line is JSON; the exit status is 1 if anything did not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from attack import files, page, server
from attack.target import MOST_MB, PATIENCE, Target, good_request, started, watched


@dataclass
class AttackReport:
    """Attacks that were tried, and those that did not hold."""

    only: str
    """A word that the names of attacks must have."""
    tried: int = 0
    failed: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    """Longest wait of a good request, in seconds, of each attack on a server."""
    peak_mb: float = 0

    def run(self, name: str, attack: Callable[[], str | None]) -> None:
        """Try an attack, and print what came of it."""
        if self.only not in name:
            return
        began = time.monotonic()
        wrong = attack()
        self.tried += 1
        self.failed += [name] if wrong else []
        print(f"{name:44} {time.monotonic() - began:5.1f} s  {wrong or 'held'}", flush=True)

    def run_all(self, target: Target, kind: str, attacks: tuple[server.Attack, ...]) -> None:
        """Try attacks on a server."""
        for attack in attacks:
            name = f"{kind}: {attack.__name__.replace('_', ' ')}"
            self.run(name, lambda attack=attack: asyncio.run(self._attacked(target, attack)))
        self.peak_mb = max(self.peak_mb, target.peak_mb)

    async def _attacked(self, target: Target, attack: server.Attack) -> str | None:
        """Faults seen during an attack and after it."""
        async with watched(target):
            wrong = await attack(target)
        longest = max([*target.waits, await good_request(target)])
        self.waits.append(longest)
        if longest == math.inf:
            wrong = wrong or f"a good request was not answered within {PATIENCE:g} s"
        if target.peak_mb > MOST_MB:
            wrong = wrong or f"it took {target.peak_mb:.0f} MB"
        if target.log.stat().st_size > 2**20:
            wrong = wrong or "it wrote a megabyte of log"
        return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", metavar="WORD", default="", help="attacks whose names have it: server, page, file"
    )
    report = AttackReport(parser.parse_args().only)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # for more clients than the server
    with started("serve", "--port", "0") as target:
        report.run_all(target, "server", server.ATTACKS)
    with page.page() as target:
        report.run_all(target, "page", page.ATTACKS)
    with tempfile.TemporaryDirectory() as folder:
        for name, attack in files.attacks(Path(folder)):
            report.run(f"file: {name}", attack)
    answered = max(report.waits, default=0) <= PATIENCE
    result = {
        "tried": report.tried,
        "held": report.tried - len(report.failed),
        "peak_mb": round(report.peak_mb),
        "answered_after": answered,
        "longest_wait_s": round(max(report.waits, default=0), 2) if answered else None,
        "failed": report.failed,
    }
    print(json.dumps(result))
    sys.exit(bool(report.failed))


if __name__ == "__main__":
    main()
