"""Commands in processes of their own, and flags that several tests give them.

Use it where the interpreter's start or end matters; else the fixture `forks` is faster.
"""

import os
import sys

import processes
from builders import ROOT


def run(folder, *arguments, program=(sys.executable, "-m", "triptych"), **environment):
    """Run `triptych` in `folder`, or another program; returns the finished process."""
    return processes.run(
        [*program, *arguments],
        seconds=600,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def own_shards(shapes, part="train"):
    """The flags that `make DATA=FOLDER` gives."""
    return [
        "--config",
        ROOT / "conf" / "data" / "folder.yaml",
        f"--data.shards={shapes / part}",
        f"--data.val_shards={shapes / 'eval'}",
    ]
