"""The process of one check: python -m verify_real.child MODULE:FUNCTION PARTS OUT.

Writes a line of JSON for each row, and one with "error" if the check raised.
"""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import asdict
from importlib import import_module
from pathlib import Path


def main() -> None:
    function, folder, out = sys.argv[1:]
    module, _, name = function.partition(":")
    with open(out, "a", buffering=1) as file:
        try:
            for row in getattr(import_module(module), name)(Path(folder)):
                file.write(json.dumps(asdict(row)) + "\n")
        except Exception as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            file.write(json.dumps({"error": reason}) + "\n")


if __name__ == "__main__":
    main()
