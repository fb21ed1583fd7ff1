"""Fits in worlds of several sizes, one world after the other: ranks are forked from one process.

python tests/helpers/ranks_worlds.py plan.json

The plan is that of ranks.py, with `worlds` in place of `fits`: a number of ranks, and its fits.
Imports take longer than these fits; so a world costs seconds, not its number of imports.
"""

import json
import os
import socket
import sys
from pathlib import Path

import ranks
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from processes import exit_status, forked


def run_world(plan, world):
    """Fork the ranks of one world, and wait until all have ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def run(rank):
        os.environ |= {"WORLD_SIZE": str(world["ranks"]), "LOCAL_WORLD_SIZE": str(world["ranks"])}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": "0"}
        os.environ |= {"TORCHELASTIC_RUN_ID": "test", "RANK": str(rank), "LOCAL_RANK": str(rank)}
        rank_zero_only.rank = rank  # Lightning reads it when it is imported
        for each in world["fits"]:
            ranks.fit(Path(plan["shapes"]), Path(plan["out"]), weights=plan["weights"], **each)

    started = [forked(lambda rank=rank: run(rank)) for rank in range(world["ranks"])]
    assert [exit_status(each, 300) for each in started] == [0] * world["ranks"], world["ranks"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    plan = json.loads(Path(sys.argv[1]).read_text())
    for world in plan["worlds"]:
        run_world(plan, world)
