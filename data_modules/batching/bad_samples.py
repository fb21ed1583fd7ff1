"""Counter of unusable samples, with a limit on their fraction."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from triptych.data_modules.batching.tasks import TaskDataset
from triptych.data_modules.sources.base import BadSample
from triptych.interfaces import Batch, Preprocessing
from triptych.utils.errors import UserError

log = logging.getLogger(__name__)


class BadSampleCounter:
    """Counts skipped samples by reason in the main process; ends a run with too many.

    Under DDP every rank counts its own samples, and its error ends the run of all ranks.

    Args:
        max_fraction: largest fraction of samples that may be skipped.
        max_logged: number of bad samples that are logged by key; the others are only counted.
        min_seen: number of samples before the fraction is checked.
    """

    def __init__(
        self, max_fraction: float = 0.01, *, max_logged: int = 5, min_seen: int = 200
    ) -> None:
        self.max_fraction, self.max_logged, self.min_seen = max_fraction, max_logged, min_seen
        self.seen = 0
        self.first = ""
        self.reasons: Counter[str] = Counter()

    def count(self, batch: Batch) -> None:
        """Count the samples of a batch.

        Raises:
            UserError: more than `max_fraction` of the samples so far were skipped.
        """
        self.seen += len(batch.input_ids)
        for key, reason in batch.dropped_samples:
            self.record(key, reason)
        self.check("so far")

    def record(self, key: str, reason: str, detail: str = "") -> None:
        """Count one skipped sample."""
        message = f"sample {key!r}: {reason}" + (f" ({detail})" if detail else "")
        self.first = self.first or message
        if self.skipped < self.max_logged:
            log.warning("left out: %s", message)
        self.reasons[reason] += 1

    def check(self, which: str) -> None:
        """Stop the run if too many samples are unusable.

        Raises:
            UserError: they are more than `max_fraction` of at least `min_seen` samples.
        """
        if self.seen >= self.min_seen and self.skipped > self.max_fraction * self.seen:
            raise UserError(
                f"{self.skipped} of {self.seen} samples {which} cannot be used, more than "
                f"max_bad_fraction {self.max_fraction:g} allows: {self.summary()}; "
                f"the first is {self.first}."
            )

    @property
    def skipped(self) -> int:
        return self.reasons.total()

    def summary(self) -> str:
        """Counts by reason, the most frequent first: "3 image is damaged, 1 caption is empty"."""
        return ", ".join(f"{number} {reason}" for reason, number in self.reasons.most_common())

    def report(self) -> None:
        """Log the totals, if any sample was skipped."""
        if self.skipped:
            log.warning("%d of %d samples left out: %s", self.skipped, self.seen, self.summary())


def check_texts(
    datasets: Sequence[TaskDataset],
    processor: Preprocessing,
    max_fraction: float,
    *,
    seed: int = 0,
    max_samples: int = 2000,
) -> None:
    """Check before a run whether the model can take the texts of the data; log a few bad ones.

    Makes the prompts of the first `max_samples` samples of each data set; reads no images.

    Raises:
        UserError: more than `max_fraction` of the texts of a data set are unusable.
    """
    if processor.tokenizer is None:
        return
    for dataset in datasets:
        counter = BadSampleCounter(max_fraction, min_seen=0)
        for number in range(min(max_samples, len(dataset.source))):
            counter.seen += 1
            try:
                dataset.prompt(number, number, processor, seed)
            except BadSample as bad:
                counter.record(bad.key, bad.reason, bad.detail)
        counter.check(f"at the beginning of {dataset.name or dataset.source.name}")
        counter.report()
