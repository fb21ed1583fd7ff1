"""A callback that kills a rank, once: for runs that a test starts by torchrun."""

import os
import signal
from pathlib import Path

from lightning import Callback


class DyingRank(Callback):
    """SIGKILL to the second rank in the backward pass of the sixth step.

    Not if the file that the environment variable DYING_RANK names exists; it is made then.
    """

    def on_before_backward(self, trainer, module, loss):
        mark = Path(os.environ["DYING_RANK"])
        if trainer.global_rank == 1 and trainer.global_step == 5 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
