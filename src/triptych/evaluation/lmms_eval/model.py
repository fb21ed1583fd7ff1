"""Model adapter for lmms-eval, whose tasks are the understanding benchmarks (MME, MMMU, ...).

lmms_eval --model triptych --model_args source=tiny --tasks mme

lmms-eval prepares questions and scores answers; this adapter passes its conversations to
`UnifiedPipeline`. Imported only by lmms-eval, through `entry_point`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm

from triptych.inference.pipeline import UnifiedPipeline
from triptych.modules.text_generation import ChatOutput
from triptych.utils.errors import UserError

MAX_NEW_TOKENS = 128  # for tasks without a limit; that of the published evaluation
# Default stop text of lmms-eval for tasks without one, between its few-shot examples. Answers of
# chat models contain empty lines, and its own adapters do not stop there either.
DEFAULT_END = "\n\n"

Messages = Sequence[Mapping[str, Any]]


class Triptych(lmms):
    """A model that answers conversations with images.

    Args (of `--model_args`):
        source: preset, folder or checkpoint, as for `UnifiedPipeline.from_pretrained`; several
            model files are separated by +.
        device, dtype, ema, quantize: arguments of `UnifiedPipeline.from_pretrained`.
        low_memory: value of its argument enable_model_cpu_offload.
        batch_size: number of conversations at a time.
        system_prompt: replacement of the model's own system prompt.
        seed: random seed of token sampling, for tasks with a temperature.
        trust_class: package, or class of it, that the files of `source` may name in addition to
            triptych's own; several are separated by +.
    """

    is_simple = False  # chat messages, not one text with separate images

    def __init__(
        self,
        source: str = "tiny",
        *,
        device: str | None = None,
        dtype: str | None = None,
        ema: bool = False,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        system_prompt: str | None = None,
        seed: int = 0,
        trust_class: str = "",
        low_memory: bool = False,
        quantize: str | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or max_batch_size is not None:
            raise UserError(f"batch_size is {batch_size!r}; give a number, and no max_batch_size.")
        self.batch_size, self.seed, self.system_prompt = int(batch_size), int(seed), system_prompt
        # set by torchrun and accelerate; lmms-eval distributes the questions
        self._rank = int(os.environ.get("RANK", 0))
        self._world_size = int(os.environ.get("WORLD_SIZE", 1))
        if self._world_size > 1 and device in (None, "cuda"):
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        self.pipeline = UnifiedPipeline.from_pretrained(
            source.split("+") if "+" in source and source.endswith((".yaml", ".yml")) else source,
            device=device,
            dtype=dtype,
            ema=ema,
            enable_model_cpu_offload=low_memory,
            quantize=quantize,
            trust_class=[name for name in trust_class.split("+") if name],
        )
        self.device = self.pipeline.device  # read by lmms-eval, for communication of processes

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests."""
        answers: dict[int, GenerationResult] = {}
        with tqdm(total=len(requests), disable=self.rank != 0, desc="triptych") as bar:
            for numbers in _alike(requests, self.batch_size):
                batch = [requests[n] for n in numbers]
                conversations = [
                    self._messages(each, each.args[1](self._document(each))) for each in batch
                ]
                results = self._answer(batch, conversations, numbers)
                answers |= dict(zip(numbers, results, strict=True))
                bar.update(len(numbers))
        return [answers[n] for n in range(len(requests))]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """All answers to each request; a task builds each round from the answers before it."""
        return [
            self._all_rounds(request, number)
            for number, request in enumerate(tqdm(requests, disable=self.rank != 0))
        ]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise UserError(
            f"the task {requests[0].task_name} compares likelihoods of given answers, which is not "
            "offered; choose a task, or its variant, that reads what a model answers."
        )

    def _all_rounds(self, request: Instance, number: int) -> list[str]:
        """All answers to one request.

        In lmms-eval's protocol the task returns messages for the first round, and for later ones
        (messages, whether the conversation has ended, answers, state of the task).
        """
        make, document = request.args[1], self._document(request)
        answers: list[str] = []
        messages, state = make(document), None
        while True:
            conversation = self._messages(request, messages)
            answers.append(self._answer([request], [conversation], [number])[0].text)
            turn = make(
                document,
                round_idx=len(answers),
                previous_output=list(answers),
                previous_round_info=state,
            )
            if not isinstance(turn, tuple):  # a task of one round
                return answers
            messages, ended, _, state = turn
            if ended:
                return answers

    def _document(self, request: Instance) -> Any:
        *_, number, task, split = request.args
        return self.task_dict[task][split][number]

    def _messages(self, request: Instance, messages: Messages) -> list[dict[str, Any]]:
        """Convert lmms-eval's messages for `chat_messages.read_messages`."""
        conversation = [
            {"role": each["role"], "content": [_part(p, request) for p in each["content"]]}
            for each in messages
        ]
        if self.system_prompt is not None:
            conversation = [m for m in conversation if m["role"] != "system"]
            conversation.insert(0, {"role": "system", "content": [self.system_prompt]})
        return conversation

    def _answer(
        self,
        requests: Sequence[Instance],
        conversations: Sequence[Messages],
        numbers: Sequence[int],
    ) -> list[GenerationResult]:
        """Answers to conversations with the same generation arguments."""
        arguments = _chat_arguments(requests[0])
        seeds = [self.seed + n for n in numbers]
        try:
            answers = self.pipeline.chat_batch(conversations, **arguments, seed=seeds, max_images=0)
        except UserError as error:
            if len(conversations) == 1:
                raise UserError(f"{_where(requests[0])}: {error}") from error
            each = zip(requests, conversations, numbers, strict=True)  # one by one, to name it
            return [self._answer([one], [chat], [n])[0] for one, chat, n in each]
        ends = _stop_texts(requests[0])
        return [_result(answer, ends) for answer in answers]


def _alike(requests: Sequence[Instance], size: int) -> Iterator[list[int]]:
    """Numbers of requests, in batches with the same generation arguments."""
    groups: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
        groups.setdefault(repr(request.args[2]), []).append(number)
    for numbers in groups.values():
        yield from (numbers[at : at + size] for at in range(0, len(numbers), size))


def _chat_arguments(request: Instance) -> dict[str, Any]:
    """Arguments of `UnifiedPipeline.chat_batch` from those of lmms-eval."""
    given = request.args[2]
    if (given.get("num_beams") or 1) != 1:
        raise UserError(
            f"{_where(request)}: the task wants {given['num_beams']} beams, which is not offered; "
            "add --gen_kwargs num_beams=1."
        )
    temperature = float(given.get("temperature") or 0) if given.get("do_sample", True) else 0.0
    return {
        "max_new_tokens": int(given.get("max_new_tokens") or MAX_NEW_TOKENS),
        "temperature": temperature,
        "top_p": float(given.get("top_p") or 1) if temperature else 1.0,
    }


def _stop_texts(request: Instance) -> list[str]:
    """Texts at which the task truncates an answer."""
    until = request.args[2].get("until") or []
    until = [until] if isinstance(until, str) else until
    return [end for end in until if end and end != DEFAULT_END]


def _result(answer: ChatOutput, ends: Sequence[str]) -> GenerationResult:
    text = answer.text
    for end in ends:
        text = text.partition(end)[0]
    counts = TokenCounts(input_tokens=answer.prompt_tokens, output_tokens=answer.completion_tokens)
    return GenerationResult(text, counts)


def _part(part: Mapping[str, Any], request: Instance) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] == "image":
        return {"type": "image", "image": part["url"]}
    raise UserError(
        f"{_where(request)}: it shows a {part['type']}, but the model reads only texts and "
        "images; choose another task."
    )


def _where(request: Instance) -> str:
    *_, number, task, split = request.args
    return f"task {task}, {split} document {number}"
