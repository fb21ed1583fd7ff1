"""Which samples make which batch of a run: mixture, order of epochs and length buckets together."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from triptych.randomness import mix

from .buckets import Buckets
from .mixture import Mixture
from .order import EpochOrder
from .source import Source


class Schedule:
    """From the step of a run to its samples, and nothing to remember on the way.

    A sample of the run has a *position*, its global sample number, which is the source of every
    draw about it. Batch k holds `global_batch` positions, without buckets those from
    k * global_batch on. So a run that goes on elsewhere, on more ranks or fewer workers, goes on
    with what the other would have seen next.

    Args:
        sources: the data sets, open.
        mixture: their shares, in the same order.
        global_batch: samples of a step on all ranks together.
        seed: of the order.
        bucket_batches: global batches among which samples are sorted by length; 1 is none.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        mixture: Mixture,
        global_batch: int,
        seed: int = 0,
        bucket_batches: int = 1,
    ) -> None:
        self.sources, self.mixture, self.global_batch = sources, mixture, global_batch
        self.orders = [
            EpochOrder(source.shard_sizes, mix(seed, place)) for place, source in enumerate(sources)
        ]
        known = all(source.caption_sizes(np.zeros(1, np.int64)) is not None for source in sources)
        bucketed = known and bucket_batches > 1
        self.buckets = Buckets(self.sizes, global_batch, seed, bucket_batches) if bucketed else None
        self._made_of = (seed, global_batch, bucket_batches if bucketed else 1)

    def batch(self, step: int) -> np.ndarray:
        """Positions of the samples of global batch `step`, int64 [global_batch]."""
        if self.buckets is not None:
            return self.buckets(step)
        return np.arange(step * self.global_batch, (step + 1) * self.global_batch)

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The data set of each sample at `positions` [n], and its number there; int64 [n] each."""
        chosen, before = self.mixture.locate(positions)
        numbers = np.empty(len(chosen), np.int64)
        for place in np.unique(chosen).tolist():
            order, here = self.orders[place], np.flatnonzero(chosen == place)
            epochs, places = np.divmod(before[here], len(order))
            for epoch in np.unique(epochs).tolist():
                now = epochs == epoch
                numbers[here[now]] = order.numbers(epoch, places[now])
        return chosen, numbers

    def sizes(self, positions: np.ndarray) -> np.ndarray:
        """How long the captions of the samples at `positions` [n] are, int64 [n]."""
        chosen, numbers = self.locate(positions)
        sizes = np.empty(len(chosen), np.int64)
        for place in np.unique(chosen).tolist():
            here = chosen == place
            sizes[here] = self.sources[place].caption_sizes(numbers[here])
        return sizes

    def epochs(self, step: int) -> dict[str, float]:
        """How often each data set, by name, has been gone through before `step`."""
        given = self.mixture.given(step * self.global_batch).tolist()
        return {
            name: number / len(order)
            for name, number, order in zip(self.mixture.names, given, self.orders, strict=True)
        }

    def digest(self) -> int:
        """A number that changes when samples would come in another order."""
        found = zlib.crc32(repr(self._made_of).encode() + self.mixture.parts.tobytes())
        for source in self.sources:
            found = zlib.crc32(np.asarray(source.shard_sizes, np.int64).tobytes(), found)
        return found
