"""Our models inside lmms-eval, whose tasks are the understanding benchmarks (MME, MMMU, ...).

lmms_eval --model triptych --model_args source=tiny --tasks mme

lmms-eval prepares questions and scores answers; here conversations go into `UnifiedPipeline` and
answers come out. Imported only by lmms-eval, through `lmms_entry`.
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

LONGEST_ANSWER = 128  # tokens, where a task does not say; that of the published evaluation
# Default stop text of lmms-eval for tasks without one, between its few-shot examples. Answers
# of chat models hold empty lines, and its own adapters do not end them there either.
DEFAULT_END = "\n\n"

Messages = Sequence[Mapping[str, Any]]


class Triptych(lmms):
    """A model that answers conversations with images.

    Args (of `--model_args`):
        source: preset, folder or checkpoint, as for `UnifiedPipeline.from_pretrained`; several
            model files with a + between them.
        device, dtype, ema, quantize: as there.
        low_memory: its enable_model_cpu_offload.
        batch_size: conversations at a time.
        system_prompt: in place of the model's own.
        seed: of the draws, where a task asks for a temperature.
        trust_class: a package, or a class of it, that the files of `source` may name beside
            triptych's own; several with a + between them.
    """

    is_simple = False  # conversations, not a text and images beside it

    def __init__(
        self,
        source: str = "tiny",
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
        # torchrun and accelerate start processes with these; lmms-eval deals the questions out.
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
        self.device = self.pipeline.device  # lmms-eval's, for communication between processes

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests."""
        answers: dict[int, GenerationResult] = {}
        with tqdm(total=len(requests), disable=self.rank != 0, desc="triptych") as bar:
            for numbers in _alike(requests, self.batch_size):
                asked = [requests[n] for n in numbers]
                talks = [self._messages(each, each.args[1](self._document(each))) for each in asked]
                written = self._answer(asked, talks, numbers)
                answers |= dict(zip(numbers, written, strict=True))
                bar.update(len(numbers))
        return [answers[n] for n in range(len(requests))]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """All answers to each request; a task makes each round's conversation of those before."""
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
        """lmms-eval's protocol: the first round is asked for plainly, the others by number, as
        (messages, whether the end is reached, answers, what the task wants to remember)."""
        make, document = request.args[1], self._document(request)
        said: list[str] = []
        messages, remembered = make(document), None
        while True:
            talk = self._messages(request, messages)
            said.append(self._answer([request], [talk], [number])[0].text)
            turn = make(
                document,
                round_idx=len(said),
                previous_output=list(said),
                previous_round_info=remembered,
            )
            if not isinstance(turn, tuple):  # a task of one round
                return said
            messages, ended, _, remembered = turn
            if ended:
                return said

    def _document(self, request: Instance) -> Any:
        *_, number, task, split = request.args
        return self.task_dict[task][split][number]

    def _messages(self, request: Instance, messages: Messages) -> list[dict[str, Any]]:
        """lmms-eval's messages in the shape of `chat_messages.read_messages`."""
        talk = [
            {"role": each["role"], "content": [_part(p, request) for p in each["content"]]}
            for each in messages
        ]
        if self.system_prompt is not None:
            talk = [m for m in talk if m["role"] != "system"]
            talk.insert(0, {"role": "system", "content": [self.system_prompt]})
        return talk

    def _answer(
        self, requests: Sequence[Instance], talks: Sequence[Messages], numbers: Sequence[int]
    ) -> list[GenerationResult]:
        """Answers to conversations whose tasks want them written in the same way."""
        wanted = _wanted(requests[0])
        seeds = [self.seed + n for n in numbers]
        try:
            answers = self.pipeline.chat_batch(talks, **wanted, seed=seeds)
        except UserError as error:
            if len(talks) == 1:
                raise UserError(f"{_where(requests[0])}: {error}") from error
            each = zip(requests, talks, numbers, strict=True)  # which one was it?
            return [self._answer([one], [talk], [n])[0] for one, talk, n in each]
        ends = _ends(requests[0])
        return [_result(answer, ends) for answer in answers]


def _alike(requests: Sequence[Instance], size: int) -> Iterator[list[int]]:
    """Numbers of requests in batches whose answers are to be written in the same way."""
    groups: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
        groups.setdefault(repr(request.args[2]), []).append(number)
    for numbers in groups.values():
        yield from (numbers[at : at + size] for at in range(0, len(numbers), size))


def _wanted(request: Instance) -> dict[str, Any]:
    """The options of `UnifiedPipeline.chat_batch`."""
    asked = request.args[2]
    if (asked.get("num_beams") or 1) != 1:
        raise UserError(
            f"{_where(request)}: the task wants {asked['num_beams']} beams, which is not offered; "
            "add --gen_kwargs num_beams=1."
        )
    temperature = float(asked.get("temperature") or 0) if asked.get("do_sample", True) else 0.0
    return {
        "max_new_tokens": int(asked.get("max_new_tokens") or LONGEST_ANSWER),
        "temperature": temperature,
        "top_p": float(asked.get("top_p") or 1) if temperature else 1.0,
    }


def _ends(request: Instance) -> list[str]:
    """The texts that the task ends an answer at."""
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
        f"{_where(request)}: it shows a {part['type']}, but the model reads texts and images "
        "alone; choose another task."
    )


def _where(request: Instance) -> str:
    *_, number, task, split = request.args
    return f"task {task}, {split} document {number}"
