"""Lookahead over the micro-batches of an optimizer step, to count the elements of its losses."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from lightning import Trainer
from lightning.pytorch.utilities import CombinedLoader

from triptych.interfaces import batches_in


class AccumulationLoader(CombinedLoader):
    """Training loaders of `Batch`, one batch of each at a time, that set `Batch.step_elements`.

    All micro-batches of an optimizer step are buffered on the host before its first one is
    returned. For each one returned another is fetched, so that workers load evenly.

    Args:
        loaders: loader, or loaders by objective for joint training; the shortest ends the epoch.
        trainer: trainer, which sets the number of micro-batches of a step
            (`accumulate_grad_batches`) and the maximum of an epoch.
    """

    def __init__(self, loaders: Any, trainer: Trainer) -> None:
        super().__init__(loaders, "min_size")
        self.trainer = trainer
        self._buffer: deque[Any] = deque()
        self._number: int | None = (
            None  # number of the next batch in the epoch, as Lightning counts
        )

    def __iter__(self) -> AccumulationLoader:
        super().__iter__()
        self._buffer.clear()
        self._number = None
        return self

    def __next__(self) -> Any:
        if self._number is None:  # a resumed run may begin inside of an epoch
            self._number = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        micro_batches = self.trainer.accumulate_grad_batches
        while len(self._buffer) < micro_batches:
            try:
                self._buffer.append(super().__next__())
            except StopIteration:
                break
        if not self._buffer:
            raise StopIteration
        if self._number % micro_batches == 0:
            remaining = self.trainer.num_training_batches - self._number
            self._count([batch for batch, *_ in self._buffer][: int(min(micro_batches, remaining))])
        self._number += 1
        return self._buffer.popleft()

    def reset(self) -> None:
        super().reset()
        self._buffer.clear()

    @staticmethod
    def _count(step: list[Any]) -> None:
        """Set `step_elements` of the micro-batches of one step."""
        batches = [each for batch in step for each in batches_in(batch)]
        elements: Counter[str] = Counter()
        for each in batches:
            elements[each.objective] += int(each.elements)
        for each in batches:
            each.step_elements = elements[each.objective]
