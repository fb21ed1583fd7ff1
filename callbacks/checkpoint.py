"""Where a run's checkpoints go."""

from __future__ import annotations

from lightning.pytorch.callbacks import ModelCheckpoint


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint with this project's habits.

    A checkpoint every `every` steps, the newest also as last.ckpt, and one more when the run is
    interrupted (Ctrl-C) or fails, so that `--ckpt_path=last` goes on from there.

    Args:
        every: steps between checkpoints.
        keep: how many of them stay; -1 keeps all.
    """

    def __init__(self, every: int = 500, keep: int = 1) -> None:
        super().__init__(
            filename="{step:08d}",
            every_n_train_steps=every,
            monitor="step",
            mode="max",
            save_top_k=keep,
            save_last=True,
            save_on_exception=True,
            auto_insert_metric_name=False,
        )
