"""Judges: models that answer questions about images; and a cache of their answers."""

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
    """A model that answers questions about images."""

    name: str
    """Name in reports, and part of the key of cached answers."""
    batch: int = 1
    """Number of questions per batch."""

    def settings(self) -> dict[str, Any]:
        """Further settings that determine the answers; in reports and in keys of cached answers."""
        return {}

    @abstractmethod
    def answer(self, image: Image.Image, question: str) -> str:
        """Return the raw answer to a question about an image.

        Raises:
            JudgeFailed: the request failed.
        """

    def ask(self, questions: Sequence[Question], on_answer: Callable[[int, Answer], None]) -> None:
        """Ask all questions; `on_answer` gets the number and answer of each as soon as it is known.

        The order of the answers is not defined.
        """
        for number, question in enumerate(questions):
            on_answer(number, self.attempt(question))

    def attempt(self, question: Question) -> Answer:
        """Return the answer, or the failure in its place."""
        try:
            return self.answer(*question)
        except JudgeFailed as failure:
            return failure


class BatchJudge(Judge):
    """A judge that answers a batch of questions at once."""

    @abstractmethod
    def answers(self, questions: Sequence[Question]) -> list[str]:
        """Answer at most `batch` questions."""

    def answer(self, image: Image.Image, question: str) -> str:
        (answer,) = self.answers([(image, question)])
        return answer

    def ask(self, questions: Sequence[Question], on_answer: Callable[[int, Answer], None]) -> None:
        for at in range(0, len(questions), self.batch):
            for number, answer in enumerate(self.answers(questions[at : at + self.batch]), at):
                on_answer(number, answer)


class AnswerCache:
    """Cache of judges' answers in a file, so that no question is asked or paid twice.

    One JSON object per line, appended as soon as an answer is known. A truncated last line, from a
    full disk or a killed process, is discarded.

    Args:
        path: cache file; None caches in memory only.

    Raises:
        UserError: the file is not a cache of answers.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.cached: dict[str, str] = {}
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def ask(self, judge: Judge, questions: Sequence[Question]) -> list[Answer]:
        """Answers to questions, cached or from the judge; failures are not cached."""
        keys = [self._key(judge, *question) for question in questions]
        missing = {key: q for key, q in zip(keys, questions, strict=True) if key not in self.cached}
        answers: dict[str, Answer] = {}
        missing_keys = list(missing)

        def on_answer(number: int, answer: Answer) -> None:
            answers[missing_keys[number]] = answer
            if isinstance(answer, str):
                self._store(missing_keys[number], answer)

        judge.ask(list(missing.values()), on_answer)
        return [self.cached[key] if key in self.cached else answers[key] for key in keys]

    def _store(self, key: str, answer: str) -> None:
        self.cached[key] = answer
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "answer": answer}) + "\n")

    def _read(self, path: Path) -> None:
        text = read_text(path, "the cache of judges' answers")
        whole = text[: text.rfind("\n") + 1]
        for number, line in numbered_lines(whole):
            try:
                entry = parse_json(line, path)
                self.cached[entry["key"]] = str(entry["answer"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"line {number} of {path} is no answer of a judge; name another file."
                ) from error
        if whole != text:  # the last line is truncated
            write_text(path, whole)

    def _key(self, judge: Judge, image: Image.Image, question: str) -> str:
        request = json.dumps([judge.name, judge.settings(), question, image.size])
        state = hashlib.sha256(request.encode())
        state.update(image.tobytes())
        return state.hexdigest()
