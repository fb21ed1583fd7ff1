"""Votes of viewers on pairs of images: a file of one JSON object a line, and its tally."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

from triptych.evaluation.statistics import wilson
from triptych.utils.atomic_write import created
from triptych.utils.documents import TEXT_BYTES, parse_json, read_bytes
from triptych.utils.errors import UserError

Choice = Literal["a", "b", "tie", "both bad"]
CRITERIA = ("overall", "visual quality", "prompt alignment")
"""Criteria of a vote; the last two are the questions of the human study of arXiv 2505.09568."""


@dataclass
class Vote:
    """Vote of one viewer on one pair of images."""

    trial: str
    """Id of this pair as shown to this viewer; counted once, however often it comes."""
    prompt: str
    seed: int
    criterion: str
    a: dict[str, Any]
    """Settings of the first side: model, steps, guidance and so on."""
    b: dict[str, Any]
    left: Literal["a", "b"]
    """The side that was shown on the left."""
    vote: Choice
    viewer: str


@dataclass
class Tally:
    """Votes for side a, for side b, and for neither."""

    a: int
    b: int
    tie: int
    both_bad: int

    @property
    def share(self) -> float | None:
        """Share of side a among the votes that prefer a side; None if there are none."""
        decided = self.a + self.b
        return self.a / decided if decided else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% interval of `share` (Wilson 1927)."""
        return None if self.share is None else wilson(self.share, self.a + self.b)


class Votes:
    """A file of votes, which only grows. The first vote makes it where it is missing.

    Raises:
        UserError: the file cannot be read or written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self._writing = Path(path), threading.Lock()
        try:
            if self.path.exists():
                with self.path.open("ab"):
                    pass
            else:
                with created(self.path.parent), TemporaryFile(dir=self.path.parent):
                    pass
        except OSError as error:
            raise UserError(
                f"votes cannot be kept in {path} ({error.strerror}); choose another file with "
                "--votes."
            ) from error

    def record(self, vote: Vote) -> bool:
        """Append a vote; it is on the disk when this returns. False: it was there already.

        Raises:
            UserError: it could not be written; it may be given again.
        """
        line = json.dumps({"time": _now(), **asdict(vote)}, ensure_ascii=False).encode()
        with self._writing:
            if any(each["trial"] == vote.trial for each in self.read()):
                return False
            try:
                with created(self.path.parent), self.path.open("ab+") as file:
                    if file.tell() and not _ends_a_line(file):
                        line = b"\n" + line  # a machine died while writing; that line stays apart
                    file.write(line + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise UserError(
                    f"the vote could not be written to {self.path} ({error.strerror}); make room "
                    "and vote again."
                ) from error
        return True

    def read(self) -> list[dict[str, Any]]:
        """All votes, one a trial, oldest first; lines that were never written whole are passed."""
        found: dict[str, dict[str, Any]] = {}
        if not self.path.exists():  # moved away while the page runs: the next vote begins another
            return []
        for line in read_bytes(self.path, TEXT_BYTES).split(b"\n"):
            try:
                vote = parse_json(line, self.path)
                found.setdefault(vote["trial"], vote)
            except (ValueError, TypeError, KeyError):
                continue
        return list(found.values())

    def tally(self, a: dict[str, Any], b: dict[str, Any], criterion: str) -> Tally:
        """Tally of votes on two sides, whichever of them was called the first."""
        count: Counter[str] = Counter()
        for each in self.read():
            if each["criterion"] == criterion and (each["a"], each["b"]) == (a, b):
                count[each["vote"]] += 1
            elif each["criterion"] == criterion and (each["a"], each["b"]) == (b, a):
                count[{"a": "b", "b": "a"}.get(each["vote"], each["vote"])] += 1
        return Tally(count["a"], count["b"], count["tie"], count["both bad"])

    def prompts_of(self, viewer: str, criterion: str) -> set[str]:
        """Prompts that this viewer has voted on."""
        return {
            each["prompt"]
            for each in self.read()
            if (each["viewer"], each["criterion"]) == (viewer, criterion)
        }


def next_prompt(prompts: Sequence[str], seen: set[str]) -> str:
    """The first that this viewer has not voted on.

    Raises:
        UserError: there is none left.
    """
    for prompt in prompts:
        if prompt not in seen:
            return prompt
    raise UserError(f"you have voted on all {len(prompts)} prompts of the list; thank you.")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _ends_a_line(file) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
