"""Votes of viewers on pairs of images, in a file of JSON lines, and their tally."""

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
"""Criteria of a vote; the last two are those of the human study of arXiv 2505.09568."""


@dataclass
class Vote:
    """Vote of one viewer on one pair of images."""

    trial: str
    """Id of the pair as shown to the viewer; votes on it count once."""
    prompt: str
    seed: int
    criterion: str
    a: dict[str, Any]
    """Settings of the first side, such as model, steps and guidance."""
    b: dict[str, Any]
    left: Literal["a", "b"]
    """Side that was shown on the left."""
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
        """Fraction for side a of the votes for either side; None if there are none."""
        decided = self.a + self.b
        return self.a / decided if decided else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% interval of `share` (Wilson 1927)."""
        return None if self.share is None else wilson(self.share, self.a + self.b)


class Votes:
    """Append-only file of votes, created by the first vote.

    Raises:
        UserError: the file cannot be read or written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self._lock = Path(path), threading.Lock()
        try:
            if self.path.exists():
                with self.path.open("ab"):
                    pass
            else:
                with created(self.path.parent), TemporaryFile(dir=self.path.parent):
                    pass
        except OSError as error:
            raise UserError(
                f"votes cannot be saved in {path} ({error.strerror}); choose another file with "
                "--votes."
            ) from error

    def record(self, vote: Vote) -> bool:
        """Append a vote durably; return False if its trial has a vote already.

        Raises:
            UserError: the vote could not be written; the call may be repeated.
        """
        line = json.dumps({"time": _now(), **asdict(vote)}, ensure_ascii=False).encode()
        with self._lock:
            if any(each["trial"] == vote.trial for each in self.read()):
                return False
            try:
                with created(self.path.parent), self.path.open("ab+") as file:
                    if file.tell() and not _ends_a_line(file):
                        line = b"\n" + line  # separates it from a line torn by a crash
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
        """Read the votes, one for each trial, oldest first; incomplete lines are skipped."""
        votes: dict[str, dict[str, Any]] = {}
        if not self.path.exists():  # moved while the page runs; the next vote creates a new one
            return []
        for line in read_bytes(self.path, TEXT_BYTES).split(b"\n"):
            try:
                vote = parse_json(line, self.path)
                votes.setdefault(vote["trial"], vote)
            except (ValueError, TypeError, KeyError):
                continue
        return list(votes.values())

    def tally(self, a: dict[str, Any], b: dict[str, Any], criterion: str) -> Tally:
        """Count the votes on two sides, in either order."""
        count: Counter[str] = Counter()
        for each in self.read():
            if each["criterion"] == criterion and (each["a"], each["b"]) == (a, b):
                count[each["vote"]] += 1
            elif each["criterion"] == criterion and (each["a"], each["b"]) == (b, a):
                count[{"a": "b", "b": "a"}.get(each["vote"], each["vote"])] += 1
        return Tally(count["a"], count["b"], count["tie"], count["both bad"])

    def prompts_of(self, viewer: str, criterion: str) -> set[str]:
        """Return the prompts that a viewer has voted on."""
        return {
            each["prompt"]
            for each in self.read()
            if (each["viewer"], each["criterion"]) == (viewer, criterion)
        }


def next_prompt(prompts: Sequence[str], seen: set[str]) -> str:
    """Return the first prompt that is not in `seen`.

    Raises:
        UserError: no prompt is left.
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
