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
    """Counts skipped samples by reason in the main process, and ends a run that has too many.

    Under DDP every rank counts its own samples, and ends the run for all by its error.

    Args:
        max_fraction: the largest share of samples that may be skipped.
        logged: number of bad samples that are logged by name; the others are only counted.
        fewest: samples that must have been seen before a share of them means anything.
    """

    def __init__(self, max_fraction: float = 0.01, logged: int = 5, fewest: int = 200) -> None:
        self.max_fraction, self.logged, self.fewest = max_fraction, logged, fewest
        self.seen = 0
        self.first = ""
        self.reasons: Counter[str] = Counter()

    def count(self, batch: Batch) -> None:
        """Take note of a batch.

        Raises:
            UserError: more than `max_fraction` of the samples so far were skipped.
        """
        self.seen += len(batch)
        for key, reason in batch.skipped:
            self.note(key, reason)
        self.judge("so far")

    def note(self, key: str, reason: str, detail: str = "") -> None:
        """One sample that was skipped."""
        what = f"sample {key!r}: {reason}" + (f" ({detail})" if detail else "")
        self.first = self.first or what
        if self.skipped < self.logged:
            log.warning("left out: %s", what)
        self.reasons[reason] += 1

    def judge(self, which: str) -> None:
        """Stop the run if too many samples are unusable.

        Raises:
            UserError: they are more than `max_fraction`, and enough were seen to judge.
        """
        if self.seen >= self.fewest and self.skipped > self.max_fraction * self.seen:
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
    seed: int = 0,
    most: int = 2000,
) -> None:
    """Refuse texts that the model cannot take before a run starts; log it where they are few.

    Makes the prompts of the first `most` samples of each dataset; reads no images.

    Raises:
        UserError: more than `max_fraction` of them cannot be used.
    """
    if processor.tokenizer is None:
        return
    for dataset in datasets:
        found = BadSampleCounter(max_fraction, fewest=0)
        for number in range(min(most, len(dataset.source))):
            found.seen += 1
            try:
                dataset.prompt(number, number, processor, seed)
            except BadSample as bad:
                found.note(bad.key, bad.reason, bad.detail)
        found.judge(f"at the beginning of {dataset.name or dataset.source.name}")
        found.report()
