"""Ranges of the numbers that people give: each range once, for flags, JSON lines and calls."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from triptych.utils.errors import UserError


@dataclass(frozen=True)
class Range:
    """The values that a number may have; as the `type` of a flag it reads and checks a text.

    Args:
        whole: whether it counts something.
        least, most: the ends, which belong to the range.
        above: the lower end does not belong to it.
    """

    whole: bool
    least: float
    most: float
    above: bool = False

    def __contains__(self, value: Any) -> bool:
        kind = Integral if self.whole else Real
        if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value):
            return False
        return self.least <= value <= self.most and not (self.above and value == self.least)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if self.above:
            return f"{kind} above {self.least:,}, at most {self.most:,}"
        return f"{kind} from {self.least:,} to {self.most:,}"

    def __call__(self, text: str) -> Any:
        """The number that a text is.

        Raises:
            argparse.ArgumentTypeError: it is none, or out of range.
        """
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:  # also a whole number of more than 4,300 digits
            value = math.nan
        if value not in self:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {self}")
        return value

    def require(self, value: Any, name: str) -> None:
        """Refuse a value that is out of range.

        Raises:
            UserError: it is; `name` is how its giver calls it.
        """
        if value not in self:
            raise UserError(f"{name} is {str(value)[:40]}; give {self}.")


STEPS = Range(True, 1, 1000)
"""Of a sampler."""
SCALE = Range(False, 0, 100)
"""Of guidance."""
IMAGES = Range(True, 1, 10_000)
"""Images of one prompt."""
ALL_IMAGES = Range(True, 1, 1_000_000)
"""Images of one call or command."""
BATCH = Range(True, 1, 4096)
SEED = Range(True, 0, 2**63 - 1)
RUN_SEED = Range(True, 0, 2**32 - 1)
"""Of a training run: NumPy takes no larger one."""
TOKENS = Range(True, 1, 100_000)
"""Of an answer."""
TEMPERATURE = Range(False, 0, 100)
PROBABILITY = Range(False, 0, 1, above=True)
COUNT = Range(True, 1, 1_000_000_000)
"""Of what there is: the first N samples, N samples a shard; fewer are fewer."""
PROCESSES = Range(True, 1, 1024)
"""Processes, devices, or parts of a whole."""
PORT = Range(True, 0, 65_535)
TILES = Range(True, 1, 16)
"""Images a side of one sheet."""
TRAINING_STEPS = Range(True, 1, 1_000_000_000)
