"""Check triptych with real parts that packages hold: make verify-real.

The last line is JSON. The exit status is 1 if a check failed, 2 if none could run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from reporting import write_result

from triptych.utils.errors import UserError
from verify_real.checks import CHECKS, UNCHECKED
from verify_real.fetch import fetch
from verify_real.parts import FETCH, PARTS, missing
from verify_real.results import facts, save
from verify_real.running import run

PARTS_FOLDER = Path(".cache/real_parts")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make verify-real", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=Path, default=PARTS_FOLDER, help="folder of the parts")
    parser.add_argument("--fetch", action="store_true", help="download the parts and stop")
    parser.add_argument("--only", metavar="WORD", default="", help="checks whose names have it")
    parser.add_argument("--out", type=Path, help="JSON file of results")
    parsed = parser.parse_args(arguments)
    folder = parsed.parts.expanduser()
    if parsed.fetch:
        failed = fetch(folder)
        print("\n".join(failed) or f"{folder} holds all parts; `make verify-real` checks them")
        return int(bool(failed))
    before = facts()
    outcome = run([check for check in CHECKS if parsed.only in check.name], folder)
    outcome.skipped += UNCHECKED
    for line in UNCHECKED:
        print("skipped " + ": ".join(f"{word:36}" for word in line.split(": ")).rstrip())
    if lacking := missing(folder, tuple(PARTS)):
        print(
            f"verify-real: {len(lacking)} of {len(PARTS)} parts are not in {folder}; "
            f"`{FETCH}` downloads them (1.5 GB), REAL_PARTS=FOLDER names another folder.",
            file=sys.stderr,
        )
    if parsed.out and outcome.rows:
        save(parsed.out, outcome, before)
    write_result(None, outcome.figures())
    return 1 if outcome.failed else 0 if outcome.rows else 2


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"verify-real: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("verify-real: stopped; the same command begins again.", file=sys.stderr)
        sys.exit(130)
