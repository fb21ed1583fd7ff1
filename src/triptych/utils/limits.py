"""Ranges of all user-supplied numbers, for flags, JSON lines and calls."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from triptych.utils.errors import UserError


@dataclass(frozen=True)
class Range:
    """A range of numbers; also the `type` of a flag, which parses and checks a text.

    Args:
        whole: whether the numbers are integers.
        least: lower end, inclusive unless `above`.
        most: upper end, inclusive.
        above: whether the lower end is exclusive.
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
        """Parse a number.

        Raises:
            argparse.ArgumentTypeError: the text is not a number, or out of range.
        """
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:  # also a whole number of more than 4,300 digits
            value = math.nan
        if value not in self:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {self}")
        return value

    def require(self, value: Any, name: str) -> None:
        """Check a value; `name` is its name in the error.

        Raises:
            UserError: the value is out of range.
        """
        if value not in self:
            raise UserError(f"{name} is {str(value)[:40]}; give {self}.")


@dataclass(frozen=True)
class OneOf:
    """A set of names; also the `type` of a flag, which checks a text.

    Args:
        kind: noun for one of the names, for errors.
        names: permitted names.
    """

    kind: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"one of {', '.join(self.names)}"

    def __call__(self, text: str) -> str:
        """Check a name.

        Raises:
            argparse.ArgumentTypeError: the name is unknown.
        """
        if text not in self.names:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {self}")
        return text

    def require(self, value: Any, name: str) -> None:
        """Check a value; `name` is unused.

        Raises:
            UserError: the value is not one of the names.
        """
        if value not in self.names:
            raise UserError(
                f"there is no {self.kind} {str(value)[:40]!r}; choose from {', '.join(self.names)}."
            )


@dataclass(frozen=True)
class Interval:
    """Two numbers from 0 to 1, the lower first; also the `type` of a flag, parses LOW,HIGH."""

    def __str__(self) -> str:
        return "two numbers from 0 to 1, the lower first"

    def __call__(self, text: str) -> tuple[float, float]:
        """Parse a text such as 0.1,0.8.

        Raises:
            argparse.ArgumentTypeError: the text is not such a pair.
        """
        try:
            low, high = (float(each) for each in text.split(","))
            self.require((low, high), "the interval")
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {self}, as 0.1,0.8") from None
        return low, high

    def require(self, value: Any, name: str) -> None:
        """Check a value; `name` is its name in the error.

        Raises:
            UserError: the value is not such a pair.
        """
        pair = isinstance(value, list | tuple) and len(value) == 2
        if not pair or not all(each in PORTION for each in value) or value[0] > value[1]:
            shown = " to ".join(str(each)[:20] for each in value) if pair else str(value)[:40]
            raise UserError(f"{name} is {shown}; give {self}.")


@dataclass(frozen=True)
class Text:
    """Any text."""

    def __str__(self) -> str:
        return "a text"

    def __call__(self, text: str) -> str:
        """Return the text unchanged; models clean it."""
        return text

    def require(self, value: Any, name: str) -> None:
        """Check a value; `name` is its name in the error.

        Raises:
            UserError: the value is not a text.
        """
        if not isinstance(value, str):
            raise UserError(f"{name} is {str(value)[:40]}; give {self}.")


STEPS = Range(True, 1, 1000)
"""Number of steps of a sampler."""
SCALE = Range(False, 0, 100)
"""Guidance scale."""
PORTION = Range(False, 0, 1)
INTERVAL = Interval()
SAMPLERS = ("euler", "heun", "dpm++", "unipc")
"""Names of the schedulers in `sampler`."""
SAMPLER = OneOf("sampler", SAMPLERS)
TEXT = Text()
IMAGES = Range(True, 1, 10_000)
"""Number of images of one prompt."""
CANDIDATES = Range(True, 1, 1000)
"""Number of candidates of one image."""
ALL_IMAGES = Range(True, 1, 1_000_000)
"""Number of images of one call or command."""
BATCH = Range(True, 1, 4096)
SEED = Range(True, 0, 2**63 - 1)
RUN_SEED = Range(True, 0, 2**32 - 1)
"""Seed of a training run; the maximum is NumPy's."""
TOKENS = Range(True, 1, 100_000)
"""Number of tokens of an answer."""
ANSWER_IMAGES = Range(True, 0, 64)
"""Number of images in an answer."""
TEMPERATURE = Range(False, 0, 100)
PROBABILITY = Range(False, 0, 1, above=True)
COUNT = Range(True, 1, 1_000_000_000)
POSITIVE = Range(False, 0, 1_000_000_000, above=True)
"""Any positive number."""
EXTRAPOLATION = Range(False, 0, 4)
"""Way from the weights before a run, 0, to those after, 1, and beyond."""
PROCESSES = Range(True, 1, 1024)
"""Number of processes, devices, or fractions of a command."""
PORT = Range(True, 0, 65_535)
TILES = Range(True, 1, 16)
"""Number of images per side of a grid."""
TRAINING_STEPS = Range(True, 1, 1_000_000_000)


def require_steps(steps: int) -> None:
    """Check the number of steps of a sampler.

    Raises:
        UserError: it is out of range.
    """
    if steps not in STEPS:
        raise UserError(
            f"sampling takes at least 1 step, not {str(steps)[:40]}, and at most {STEPS.most:,}; "
            "set num_inference_steps of the call, of the generation panel or of the decoder."
        )


def require_sampler(name: str) -> None:
    """Check the name of a sampler.

    Raises:
        UserError: there is none of this name.
    """
    SAMPLER.require(name, "sampler")
