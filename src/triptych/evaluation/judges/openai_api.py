"""A judge behind an HTTP endpoint that speaks OpenAI's chat completions: OpenAI, vLLM, `triptych
serve`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

from PIL import Image

from triptych.evaluation.judges.base import Answer, Judge, JudgeFailed, Question
from triptych.utils.errors import UserError
from triptych.utils.images import data_url

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionUserMessageParam

MAX_FAILURES = 20
"""Failures in a row, each after all its attempts, that mean that the endpoint is down."""
REFUSALS = {401, 403, 404}
"""HTTP statuses that every question would get."""


class EndpointJudge(Judge):
    """Judge at an OpenAI-compatible endpoint, asked several questions at a time.

    The `openai` client repeats requests that time out, lose their connection, or get 408, 409, 429
    or 5xx; it waits longer each time, or as long as the server asks for.

    Args:
        base_url: address, such as "https://api.openai.com/v1" or "http://127.0.0.1:8000/v1".
        model: name of the model there.
        key_variable: environment variable with the key; may be unset where none is needed.
        batch: number of questions at a time.
        timeout: seconds for one attempt.
        attempts: number of attempts until a question counts as failed.
        temperature: softmax temperature of the answers.
        max_tokens: limit of an answer.

    Raises:
        UserError: the package `openai` is not installed; the endpoint refuses the key, the model
            or the address; or it no longer responds.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        key_variable: str = "OPENAI_API_KEY",
        batch: int = 8,
        timeout: float = 120.0,
        attempts: int = 6,
        temperature: float = 0.0,
        max_tokens: int = 2000,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise UserError(
                "a judge at an endpoint needs the package openai, which is not installed; "
                "pip install 'triptych[eval]' brings it."
            ) from error
        self.base_url, self.model, self.batch = base_url.rstrip("/"), model, batch
        self.temperature, self.max_tokens = temperature, max_tokens
        self.name = f"{model} (at an endpoint)"
        key = os.environ.get(key_variable)
        self._headers = {} if key else {"Authorization": openai.Omit()}
        self._client = openai.OpenAI(
            base_url=self.base_url,
            api_key=key or "none",
            timeout=timeout,
            max_retries=attempts - 1,
            http_client=openai.DefaultHttpxClient(event_hooks={"request": [self._check_running]}),
        )
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

    def answer(self, image: Image.Image, question: str) -> str:
        message: ChatCompletionUserMessageParam = {
            "role": "user",
            "content": [
                {"type": "text", "text": question},
                {"type": "image_url", "image_url": {"url": data_url(image)}},
            ],
        }
        answer, reason = self._request(message)
        if answer is not None:
            self._failures = 0
            return answer
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            raise UserError(
                f"{self.base_url} has answered none of the last {MAX_FAILURES} questions "
                f"({reason}); run again when it does: what it answered before is kept."
            )
        raise JudgeFailed(f"{self.model} gave no answer ({reason})")

    def _request(self, message: ChatCompletionUserMessageParam) -> tuple[str | None, str]:
        """The answer, None if there is none, and the reason for that."""
        from openai import APIConnectionError, APIStatusError

        try:
            response = self._client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=[message],
                temperature=self.temperature,
                max_tokens=self.max_tokens,
                extra_headers=self._headers,
            ).http_response
        except APIConnectionError as error:
            return None, str(error.__cause__ or error) or type(error.__cause__).__name__
        except APIStatusError as error:
            response = error.response
        reason = f"HTTP {response.status_code}: {' '.join(response.text.split())[:200]}"
        if response.status_code in REFUSALS:
            raise UserError(
                f"{self.base_url} does not let {self.model} be asked ({reason}); check the "
                "address, the model's name and the key."
            )
        if response.status_code != 200:
            return None, reason
        # read here: the client's own parsing passes on bodies that lack what its types promise
        try:
            answer = response.json()["choices"][0]["message"]["content"]
        except (ValueError, KeyError, TypeError, IndexError):
            answer = None
        return (answer if isinstance(answer, str) else None), reason

    def _check_running(self, request: Any) -> None:
        """Called before each attempt: no question is repeated once the run is ending."""
        if self._stopping.is_set():
            raise JudgeFailed(f"{self.model} was not asked again: the run is ending")
