"""A judge behind an HTTP endpoint that speaks OpenAI's chat completions: OpenAI, vLLM, `triptych
serve`."""

from __future__ import annotations

import base64
import io
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from PIL import Image

from triptych.evaluation.judges.base import Answer, Judge, JudgeFailed, Question
from triptych.utils.errors import UserError

LONGEST_PAUSE = 60.0  # seconds
# Failures one after the other, each after all its attempts, that mean that the endpoint is down.
MOST_FAILURES = 20


REFUSALS = {401, 403, 404}
"""HTTP statuses that every question would get."""
PASSING = {408, 429, *range(500, 600)}
"""HTTP statuses that may be over at the next attempt."""


@dataclass
class Trouble:
    """What came in place of an answer."""

    what: str
    again: bool = True
    """Whether another attempt may help."""
    pause: float | None = None
    """Seconds to wait before it, if the server says so."""


class EndpointJudge(Judge):
    """Asks a model of an endpoint, several questions at a time.

    Time-outs, broken connections, busy (429) and broken (5xx) servers are tried again after pauses
    that double, or as long as the server asks for.

    Args:
        base_url: such as "https://api.openai.com/v1" or "http://127.0.0.1:8000/v1".
        model: its name there.
        key_variable: the environment variable with the key; it may be unset where none is needed.
        batch: questions at a time.
        timeout: seconds for one attempt.
        attempts: how often a question is asked until it counts as failed.
        pause: seconds before the second attempt.
        temperature, max_tokens: of the answer.

    Raises:
        UserError: the endpoint refuses the key, the model or the address; or nothing comes back
            from it any more.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        key_variable: str = "OPENAI_API_KEY",
        batch: int = 8,
        timeout: float = 120.0,
        attempts: int = 6,
        pause: float = 1.0,
        temperature: float = 0.0,
        max_tokens: int = 2000,
    ) -> None:
        import httpx

        self.base_url, self.model, self.batch = base_url.rstrip("/"), model, batch
        self.attempts, self.pause = attempts, pause
        self.temperature, self.max_tokens = temperature, max_tokens
        self.name = f"{model} (at an endpoint)"
        key = os.environ.get(key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=timeout, headers=headers)
        self._failures = 0
        self._stopping = threading.Event()

    def settings(self) -> dict[str, Any]:
        names = ("base_url", "temperature", "max_tokens")
        return {name: getattr(self, name) for name in names}

    def ask(self, questions: Sequence[Question], told: Callable[[int, Answer], None]) -> None:
        with ThreadPoolExecutor(self.batch) as pool:
            untold = {pool.submit(self.attempt, q): number for number, q in enumerate(questions)}
            try:
                for done in as_completed(list(untold)):
                    told(untold.pop(done), done.result())
            finally:  # where it ends early, what is under way is paid, so it is waited for
                self._stopping.set()
                pool.shutdown(cancel_futures=True)
                self._stopping.clear()
                for done, number in untold.items():
                    if not done.cancelled() and done.exception() is None:
                        told(number, done.result())

    def answer(self, picture: Image.Image, question: str) -> str:
        request = self._request(picture, question)
        for attempt in range(self.attempts):
            said = self._post(request)
            if isinstance(said, str):
                self._failures = 0
                return said
            if not said.again or attempt + 1 == self.attempts:
                break
            pause = said.pause or self.pause * 2**attempt
            if self._stopping.wait(min(LONGEST_PAUSE, pause)):
                break
        self._failures += 1
        if self._failures >= MOST_FAILURES:
            raise UserError(
                f"{self.base_url} has answered none of the last {MOST_FAILURES} questions "
                f"({said.what}); run again when it does: what it answered before is kept."
            )
        raise JudgeFailed(f"{self.model} gave no answer ({said.what})")

    def _post(self, request: dict[str, Any]) -> str | Trouble:
        """The answer, or what came in its place."""
        import httpx

        try:
            response = self._client.post(f"{self.base_url}/chat/completions", json=request)
        except httpx.TransportError as error:
            return Trouble(str(error) or type(error).__name__)
        what = f"HTTP {response.status_code}: {' '.join(response.text.split())[:200]}"
        if response.status_code in REFUSALS:
            raise UserError(
                f"{self.base_url} does not let {self.model} be asked ({what}); check the address, "
                "the model's name and the key."
            )
        if response.status_code != 200:
            asked_for = response.headers.get("retry-after", "")
            pause = float(asked_for) if asked_for.isdigit() else None
            return Trouble(what, again=response.status_code in PASSING, pause=pause)
        try:
            answer = response.json()["choices"][0]["message"]["content"]
        except (ValueError, KeyError, TypeError, IndexError):
            answer = None
        return answer if isinstance(answer, str) else Trouble(what)

    def _request(self, picture: Image.Image, question: str) -> dict[str, Any]:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        content = [
            {"type": "text", "text": question},
            {"type": "image_url", "image_url": {"url": url}},
        ]
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
