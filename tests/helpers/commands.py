"""Commands in processes of their own."""

import os
import subprocess
import sys

from builders import ROOT


def run(folder, *arguments, program=(sys.executable, "-m", "triptych"), **environment):
    """A command in `folder`; returns the finished process."""
    return subprocess.run(
        [*map(str, program), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def own_shards(shapes, part="train"):
    """The flags that `make DATA=FOLDER` gives."""
    return [
        "--config",
        ROOT / "conf" / "data" / "folder.yaml",
        f"--data.shards={shapes / part}",
        f"--data.val_shards={shapes / 'eval'}",
    ]
