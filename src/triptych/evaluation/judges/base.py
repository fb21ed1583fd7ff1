"""Judges: models that answer questions about images, and a cache of their answers."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from triptych.evaluation.expected_images import read_text
from triptych.utils.atomic_write import write_text
from triptych.utils.documents import parse_json
from triptych.utils.errors import UserError
from triptych.utils.text import numbered_lines


class JudgeFailed(Exception):
    """A request to a judge failed; the message gives the reason."""


Question = tuple[Image.Image, str]
Answer = str | JudgeFailed


class Judge(ABC):
    """Answers questions about images."""

    name: str
    """Name in reports and cached answers: other judges give other answers."""
    batch: int = 1
    """Number of questions that are asked at once."""

    def settings(self) -> dict[str, Any]:
        """Settings that determine the answers, beside the name; for reports and cached answers."""
        return {}

    @abstractmethod
    def answer(self, image: Image.Image, question: str) -> str:
        """Answer a question about an image, unprocessed.

        Raises:
            JudgeFailed: the question could not be asked.
        """

    def ask(self, questions: Sequence[Question], told: Callable[[int, Answer], None]) -> None:
        """Ask all questions; `told` receives each number and answer, in any order, as they come."""
        for number, question in enumerate(questions):
            told(number, self.attempt(question))

    def attempt(self, question: Question) -> Answer:
        """Its answer, or its failure in place of one."""
        try:
            return self.answer(*question)
        except JudgeFailed as failure:
            return failure


class BatchJudge(Judge):
    """A judge that writes several answers at once."""

    @abstractmethod
    def answers(self, questions: Sequence[Question]) -> list[str]:
        """Its answers to at most `batch` questions."""

    def answer(self, image: Image.Image, question: str) -> str:
        (answer,) = self.answers([(image, question)])
        return answer

    def ask(self, questions: Sequence[Question], told: Callable[[int, Answer], None]) -> None:
        for at in range(0, len(questions), self.batch):
            for number, answer in enumerate(self.answers(questions[at : at + self.batch]), at):
                told(number, answer)


class Answers:
    """Cache of judges' answers, in a file: nothing is asked, nor paid, twice.

    One JSON object a line, added as soon as it is known. A line that was cut off, by a full disk or
    a killed process, is asked again.

    Args:
        path: cache file; None holds the answers only in memory.

    Raises:
        UserError: the file is not such a cache.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.known: dict[str, str] = {}
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def ask(self, judge: Judge, questions: Sequence[Question]) -> list[Answer]:
        """The answers to questions, from the cache where it has them; failures are not stored."""
        keys = [self._key(judge, *question) for question in questions]
        asked = {key: q for key, q in zip(keys, questions, strict=True) if key not in self.known}
        given: dict[str, Answer] = {}
        new = list(asked)

        def told(number: int, answer: Answer) -> None:
            given[new[number]] = answer
            if isinstance(answer, str):
                self._keep(new[number], answer)

        judge.ask(list(asked.values()), told)
        return [self.known[key] if key in self.known else given[key] for key in keys]

    def _keep(self, key: str, answer: str) -> None:
        self.known[key] = answer
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "answer": answer}) + "\n")

    def _read(self, path: Path) -> None:
        text = read_text(path, "the answers that judges gave")
        whole = text[: text.rfind("\n") + 1]
        for number, line in numbered_lines(whole):
            try:
                entry = parse_json(line, path)
                self.known[entry["key"]] = str(entry["answer"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"line {number} of {path} is no answer of a judge; name another file."
                ) from error
        if whole != text:  # the last line was cut off
            write_text(path, whole)

    def _key(self, judge: Judge, image: Image.Image, question: str) -> str:
        asked = json.dumps([judge.name, judge.settings(), question, image.size])
        digest = hashlib.sha256(asked.encode())
        digest.update(image.tobytes())
        return digest.hexdigest()
