"""Checkpoint I/O: atomic writes, in the foreground or in a background thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection

from triptych.checkpoints import atomic_checkpoint
from triptych.checkpoints.training_checkpoint import read_checkpoint


class DurableCheckpointIO(CheckpointIO):
    """Writes a checkpoint under a temporary name, then renames it and writes its manifest.

    Lightning's own buffers the whole file in memory and moves it from the system's temporary
    folder, a copy that is slow and not atomic if that is on another disk.

    Args:
        agree: broadcast of the first rank's path, as each rank looks for the latest by itself.
    """

    def __init__(self, agree: Callable[[str], str] = str) -> None:
        self.agree = agree

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        step = checkpoint.get("global_step")
        atomic_checkpoint.write(Path(path), lambda file: torch.save(checkpoint, file), step)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint on the CPU, as data only, for any value of `weights_only`."""
        return read_checkpoint(Path(self.agree(str(path))))

    def remove_checkpoint(self, path: str | Path) -> None:
        atomic_checkpoint.remove(Path(path))

    def link(self, path: str | Path, name: str | Path) -> None:
        """Make `name` a link to the checkpoint `path`."""
        atomic_checkpoint.link(Path(path), Path(name))


class BackgroundCheckpointIO(DurableCheckpointIO):
    """Background checkpoint writer: training waits only for a copy in memory, not for the disk.

    Work after a save (the link to it, the removal of an older one) is queued in the same thread,
    and is skipped if the save failed. A failure is raised by the next call, at the latest when the
    run ends.
    """

    def __init__(self, agree: Callable[[str], str] = str) -> None:
        super().__init__(agree)
        self._pool: ThreadPoolExecutor | None = None
        self._last: Future | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        self.wait()  # at most one copy in memory
        copy = apply_to_collection(checkpoint, torch.Tensor, _copied)
        self._after(lambda: super(BackgroundCheckpointIO, self).save_checkpoint(copy, path))

    def remove_checkpoint(self, path: str | Path) -> None:
        self._after(lambda: atomic_checkpoint.remove(Path(path)))

    def link(self, path: str | Path, name: str | Path) -> None:
        self._after(lambda: atomic_checkpoint.link(Path(path), Path(name)))

    def wait(self) -> None:
        """Wait for running saves; raise their first error, once."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def teardown(self) -> None:
        pool, self._pool = self._pool, None
        try:
            self.wait()
        finally:
            if pool is not None:
                pool.shutdown()

    def _after(self, job: Callable[[], None]) -> None:
        before = self._last

        def run() -> None:
            if before is not None:
                before.result()  # raises here too: nothing may follow a failure
            job()

        self._pool = self._pool or ThreadPoolExecutor(1, "checkpoint")
        self._last = self._pool.submit(run)


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)
