"""Judge behind an OpenAI-compatible chat completions endpoint: OpenAI, vLLM, `triptych serve`."""

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
"""Consecutive failures, each after all its attempts, after which the endpoint counts as down."""
REFUSALS = {401, 403, 404}
"""HTTP statuses that every further request would get."""


class EndpointJudge(Judge):
    """Judge at an OpenAI-compatible endpoint, with several requests at a time.

    The `openai` client retries requests that time out, lose their connection, or get 408, 409, 429
    or 5xx, with exponential back-off or the delay that the server requests.

    Args:
        base_url: address, such as "https://api.openai.com/v1" or "http://127.0.0.1:8000/v1".
        model: name of the model at the endpoint.
        key_variable: environment variable with the API key; may be unset if none is needed.
        batch: number of concurrent requests.
        timeout: timeout of one attempt in seconds.
        attempts: maximum number of attempts per question.
        temperature: softmax temperature of the answers.
        max_tokens: maximum number of tokens of an answer.

    Raises:
        UserError: the package `openai` is not installed; the endpoint refuses the key, the model
            or the address; or it no longer responds.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
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

    def ask(self, questions: Sequence[Question], on_answer: Callable[[int, Answer], None]) -> None:
        with ThreadPoolExecutor(self.batch) as pool:
            pending = {pool.submit(self.attempt, q): number for number, q in enumerate(questions)}
            try:
                for done in as_completed(list(pending)):
                    on_answer(pending.pop(done), done.result())
            finally:  # on an early end, wait for running requests: they are paid
                self._stopping.set()
                pool.shutdown(cancel_futures=True)
                self._stopping.clear()
                for done, number in pending.items():
                    if not done.cancelled() and done.exception() is None:
                        on_answer(number, done.result())

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
        """The answer, None if there is none, and the reason for a missing one."""
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
        # not parsed by the client, which accepts bodies without the fields that its types declare
        try:
            answer = response.json()["choices"][0]["message"]["content"]
        except (ValueError, KeyError, TypeError, IndexError):
            answer = None
        return (answer if isinstance(answer, str) else None), reason

    def _check_running(self, request: Any) -> None:
        """Hook before each attempt: refuse retries once the run is ending."""
        if self._stopping.is_set():
            raise JudgeFailed(f"{self.model} was not asked again: the run is ending")
