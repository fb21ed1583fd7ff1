"""Protocols of WISE: instructions to the judge, parsing of its answers, and weights of scores.

The instructions are our own wording: the published texts have no licence. For scores on the
published scale, pass the published text as a file, which the report names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from triptych.evaluation.expected_images import read_text
from triptych.utils.errors import UserError

ASPECTS = {"consistency": 0.7, "realism": 0.2, "aesthetic quality": 0.1}
"""Aspects that the legacy judge rates from 0 to 2, and their weights in the WiScore."""

LEGACY_INSTRUCTIONS = """You grade a picture that was generated from a prompt. Be strict: in \
doubt, give the lower grade, and a 2 only to what leaves nothing to be desired.

Prompt: {prompt}
What the prompt means: {explanation}

Grade three aspects with 0, 1 or 2 each.
Consistency: 0 the picture misses or contradicts what the prompt means, 1 it shows a part of it, \
2 it shows all of it without a mistake.
Realism: 0 it looks artificial or physically impossible, 1 believable with visible flaws, \
2 like a photograph.
Aesthetic quality: 0 unpleasant to look at, 1 acceptable, 2 outstanding.

Answer with these three lines alone, each with its grade:
Consistency: <grade>
Realism: <grade>
Aesthetic quality: <grade>"""

VERIFIED_INSTRUCTIONS = """You check a picture that was generated from a prompt.

Prompt: {prompt}
What the prompt means: {explanation}

Does the picture show what the prompt means? How beautiful or realistic it is does not matter.
Answer with one line alone: "Score: 1" if it does, "Score: 0" if it does not or if you doubt it."""


@dataclass(frozen=True)
class ScoringProtocol:
    """A scoring protocol: LEGACY or VERIFIED."""

    name: str
    instructions: str
    """Template with the fields {prompt} and {explanation}."""
    read: Callable[[str], float | None]
    """Parser of an answer: a score from 0 to 1, None if it is not understood."""
    ends: Mapping[str, int]
    """Number of the last prompt of each category; categories are consecutive, from 1 on."""
    weights: Mapping[str, float]
    """Weights of the categories in the overall score."""

    def category(self, number: int) -> str:
        """Category of a prompt, by its number."""
        return next(name for name, end in self.ends.items() if number <= end)


def read_legacy(answer: str) -> float | None:
    """Parse (0.7 consistency + 0.2 realism + 0.1 aesthetic quality) / 2, each from 0 to 2."""
    total = 0.0
    for aspect, weight in ASPECTS.items():
        line = rf"^\W*{aspect.replace(' ', '[ _]')}[\s:*=]+([0-2])\W*$"
        grades = re.findall(line, _without_reasoning(answer), re.IGNORECASE | re.MULTILINE)
        if len(grades) != 1:
            return None
        total += weight * int(grades[0])
    return total / 2


def read_verified(answer: str) -> float | None:
    """Parse 0 or 1: the only word of the answer, or the number after the word "score"."""
    text = _without_reasoning(answer).strip()
    numbers = re.findall(r"(?i)\bscore[\s:*=\"']+(-?[\d.]*\d)", text)
    grade = text if not numbers else numbers[0] if len(numbers) == 1 else None
    return float(grade) if grade in ("0", "1") else None


def read_instructions(path: str | Path) -> str:
    """Read a template of instructions with the fields {prompt} and {explanation}.

    Raises:
        UserError: the file does not exist, or has no field {prompt}.
    """
    text = read_text(Path(path), "the instructions to the judge")
    if "{prompt}" not in text:
        raise UserError(
            f"{path} has no {{prompt}}; write {{prompt}} and {{explanation}} where they belong."
        )
    return text


def _without_reasoning(answer: str) -> str:
    """The answer after the model's reasoning."""
    return answer.rpartition("</think>")[2]


LEGACY = ScoringProtocol(
    "legacy",
    LEGACY_INSTRUCTIONS,
    read_legacy,
    {
        "culture": 400,
        "time": 567,
        "space": 700,
        "biology": 800,
        "physics": 900,
        "chemistry": 1000,
    },
    {
        "culture": 0.4,
        "time": 0.167,
        "space": 0.133,
        "biology": 0.1,
        "physics": 0.1,
        "chemistry": 0.1,
    },
)
VERIFIED = ScoringProtocol(
    "verified",
    VERIFIED_INSTRUCTIONS,
    read_verified,
    {
        "culture": 400,
        "time": 520,
        "space": 640,
        "biology": 760,
        "physics": 880,
        "chemistry": 1000,
    },
    {
        "culture": 0.4,
        "time": 0.12,
        "space": 0.12,
        "biology": 0.12,
        "physics": 0.12,
        "chemistry": 0.12,
    },
)
PROTOCOLS = {protocol.name: protocol for protocol in (LEGACY, VERIFIED)}
