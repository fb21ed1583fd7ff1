"""Attacks on the server, the page and the commands: python -m attack, in benchmarks.

The server is started as people start it, with 1,024 files. While it is attacked, a good client asks
once a second. The last line is JSON; the exit status is 1 if anything did not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import resource
import sys
import time

from attack import server
from attack.target import MOST_MB, PATIENCE, Target, good_request, started, watched


async def attacked(target: Target, attack: server.Attack) -> tuple[str | None, float]:
    """What did not hold during an attack and after it, and the longest wait of a good request."""
    async with watched(target):
        wrong = await attack(target)
    after = await good_request(target)
    longest = max([*target.waits, after])
    if longest == math.inf:
        wrong = wrong or f"a good request was not answered within {PATIENCE:g} s"
    if target.peak_mb > MOST_MB:
        wrong = wrong or f"it took {target.peak_mb:.0f} MB"
    if target.log.stat().st_size > 2**20:
        wrong = wrong or "it wrote a megabyte of log"
    return wrong, longest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="WORD", default="", help="attacks whose names have it")
    parsed = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # for more clients than the server
    failed, tried, waits = [], 0, []
    with started("serve", "--port", "0") as target:
        for attack in server.ATTACKS:
            name = attack.__name__.replace("_", " ")
            if parsed.only not in name:
                continue
            began = time.monotonic()
            wrong, wait = asyncio.run(attacked(target, attack))
            tried += 1
            waits.append(wait)
            failed += [name] if wrong else []
            print(
                f"{name:24} {wrong or 'held':8} {time.monotonic() - began:5.1f} s, good request "
                f"{wait:.1f} s, {target.memory():.0f} MB, peak {target.peak_mb:.0f} MB",
                flush=True,
            )
    result = {
        "tried": tried,
        "held": tried - len(failed),
        "peak_mb": round(target.peak_mb),
        "answered_after": max(waits) <= PATIENCE,
        "longest_wait_s": round(max(waits), 2),
        "failed": failed,
    }
    print(json.dumps(result))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
