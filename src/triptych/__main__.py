"""`python -m triptych` is the `triptych` command."""

import os
import sys

# Python puts the current folder first for `-m`: a file there would be taken for any module that is
# not yet imported. Processes started by this one run with the same protection.
if not sys.flags.safe_path:
    del sys.path[0]
    os.environ["PYTHONSAFEPATH"] = "1"

from triptych.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main()
