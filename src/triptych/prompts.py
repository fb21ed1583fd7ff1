"""Chat templates and control tokens, the same for training and inference.

Qwen2.5-VL's ChatML. Ids are read from the tokenizer, never written down, and text never becomes a
control token (`tokens.encode`). A generation prompt is

    <|im_start|>system ... <|im_end|> <|im_start|>user ... <|im_end|> <|im_start|>assistant [IMG]

and the latent queries follow `[IMG]`. A `Template` sets the details.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triptych.interfaces import IGNORED as IGNORED
from triptych.utils.errors import TextError, UserError
from triptych.utils.text import clean_text, is_blank
from triptych.utils.tokens import Control, encode, token_id

IM_START, IM_END = Control("<|im_start|>"), Control("<|im_end|>")
VISION_START, VISION_END = Control("<|vision_start|>"), Control("<|vision_end|>")
IMAGE_PAD = Control("<|image_pad|>")
START_OF_IMAGE = Control("[IMG]")
PAD = Control("<|endoftext|>")
# In the order in which the published tokenizers hold them.
SPECIAL_TOKENS = (PAD, IM_START, IM_END, VISION_START, VISION_END, IMAGE_PAD, START_OF_IMAGE)

Pieces = tuple[str, ...]  # texts and `Control`s
ANSWER: Pieces = (IM_START, "assistant\n")
"""Header of the assistant's answer."""
SYSTEM: Pieces = (IM_START, "system\nYou are a helpful assistant.", IM_END, "\n")
GENERATION_INSTRUCTION = "Please generate image based on the following caption: {caption}"
RECONSTRUCTION_INSTRUCTION = "Please reconstruct the given image."
RANKING_QUESTION = "Does this image show the following: {caption}? Answer yes or no."


class PromptError(TextError):
    """A caption or conversation that makes no prompt.

    Args:
        message: one sentence for the author of the text.
        reason: a short phrase, the same for all texts with this fault, to count them by.
    """

    conversation = 0
    """The number of the conversation among those of a call, from 0."""

    def __init__(self, message: str, reason: str = "prompt is unusable") -> None:
        super().__init__(message, reason)


@dataclass(frozen=True)
class Template:
    """Details of a generation prompt in which the published code differs from ours."""

    ends_answer: bool = False
    """Put `<|im_end|>` and a newline between the header of the answer and `[IMG]`."""
    strip: bool = True
    """Strip the white space around the caption."""
    cut: bool = False
    """Cut a prompt that is too long, its end and so the header of the answer, not refuse it."""


TemplateName = Literal["inference", "published_inference", "published_training"]
TEMPLATES: dict[TemplateName, Template] = {
    # For training and inference alike.
    "inference": Template(),
    # The exact prompt that released weights were scored with.
    "published_inference": Template(strip=False),
    # The training template of the published code; two tokens longer than at inference. Only to
    # resume a published training run, or to compare with one.
    "published_training": Template(ends_answer=True, strip=False, cut=True),
}


@dataclass(frozen=True)
class PromptConfig:
    """Prompts of captions for image generation.

    One template for both, unless a training run of the published code is resumed: there, training
    had two tokens more than sampling.
    """

    template: TemplateName = "inference"
    """Template at inference, one of `TEMPLATES`."""
    training_template: TemplateName = "inference"
    """Template in training and validation."""
    max_tokens: int = 512
    """Length limit of a prompt, `[IMG]` included, where the generation panel is the root."""
    ranking_question: str = RANKING_QUESTION
    """Question about a generated image and its {caption}, answered by yes or no: by its answer the
    model ranks candidates."""

    def __post_init__(self) -> None:
        if "{caption}" not in self.ranking_question:
            raise UserError(
                "generation.prompt.ranking_question does not name {caption}; put it where the "
                "caption stands."
            )


def image(image_tokens: int) -> Pieces:
    """The placeholder of one image inside a user turn."""
    return (VISION_START, *[IMAGE_PAD] * image_tokens, VISION_END)


def user_turn(*message: str) -> Pieces:
    """A user's message and the header of the answer."""
    return (IM_START, "user\n", *message, IM_END, "\n", IM_START, "assistant\n")


def generation_ids(
    tokenizer,
    caption: str,
    max_tokens: int,
    *,
    key: str | None = None,
    template: TemplateName = "inference",
) -> list[int]:
    """Ids of the prompt that asks for an image, `[IMG]` included.

    Raises:
        PromptError: the caption is empty, or the prompt has more than `max_tokens` tokens.
    """
    where = f" of sample {key!r}" if key else ""
    remedy = "say what the image should show"
    caption = _request(caption, "caption", f"the prompt{where}", remedy, TEMPLATES[template])
    turn = user_turn(GENERATION_INSTRUCTION.format(caption=caption))
    return _image_request(
        tokenizer, turn, max_tokens, where=where, shown=caption, template=TEMPLATES[template]
    )


def reconstruction_ids(
    tokenizer,
    image_tokens: int,
    max_tokens: int,
    *,
    instruction: str = RECONSTRUCTION_INSTRUCTION,
    template: TemplateName = "inference",
    key: str | None = None,
) -> list[int]:
    """Ids of the prompt that shows an image and asks for one, `[IMG]` included.

    Raises:
        PromptError: the instruction is empty, or the prompt has more than `max_tokens` tokens.
    """
    where = f" of sample {key!r}" if key else ""
    what, remedy = f"the instruction{where}", "say what to do with the image"
    instruction = _request(instruction, "instruction", what, remedy, TEMPLATES[template])
    turn = user_turn(*image(image_tokens), f"\n{instruction}")
    return _image_request(
        tokenizer, turn, max_tokens, where=where, shown=instruction, template=TEMPLATES[template]
    )


def clean(text: str, what: str) -> str:
    """The text of a user by `text.clean_text`, for training and inference alike.

    Raises:
        PromptError: it is none that a model can be given; `what` names it.
    """
    try:
        return clean_text(text, what)
    except TextError as error:
        raise PromptError(str(error), f"text {error.reason}") from error


def negative_ids(tokenizer) -> list[int]:
    """Ids of the published decoder's negative prompt: one space, outside of any chat."""
    return encode(tokenizer, (" ", START_OF_IMAGE))


def _request(text: str, kind: str, what: str, remedy: str, template: Template) -> str:
    """The text of a user, cleaned, and stripped if the template says so; it may not be blank."""
    text = clean(text, what)
    if is_blank(text):
        raise PromptError(f"{what} is empty; {remedy}.", f"{kind} is empty")
    return text.strip() if template.strip else text


def _image_request(
    tokenizer, turn: Pieces, max_tokens: int, *, where: str, shown: str, template: Template
) -> list[int]:
    ids = encode(tokenizer, (*SYSTEM, *turn, *((IM_END, "\n") if template.ends_answer else ())))
    if len(ids) >= max_tokens and template.cut:
        ids = ids[: max_tokens - 1]
    ids = [*ids, token_id(tokenizer, START_OF_IMAGE)]
    if len(ids) > max_tokens:
        raise PromptError(
            f"the prompt{where} has {len(ids)} tokens, the model takes {max_tokens}; "
            f"shorten it: {shown[:60]!r}; or raise max_tokens of the understanding panel.",
            "prompt is too long for the model",
        )
    return ids


def conversation_ids(
    tokenizer,
    turns: Sequence[tuple[str, str | None]],
    max_tokens: int,
    image_tokens: int = 0,
    key: str | None = None,
) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation of (question, answer) turns about at most one image.

    The image (`image_tokens` > 0) opens the first question. An answer of None, allowed in the
    last turn only, leaves the header open for the model to continue. Only answers carry labels.

    Raises:
        PromptError: a question is empty, or there are more than `max_tokens` tokens.
    """
    where = f" of sample {key!r}" if key else ""
    ids: list[int] = []
    labels: list[int] = []

    def add(pieces: Pieces, learned: bool) -> None:
        new = encode(tokenizer, pieces)
        ids.extend(new)
        labels.extend(new if learned else [IGNORED] * len(new))

    prefix = SYSTEM
    for number, (question, answer) in enumerate(turns):
        question = clean(question, f"question {number + 1}{where}")
        if answer is not None:
            answer = clean(answer, f"answer {number + 1}{where}")
        if is_blank(question):
            raise PromptError(
                f"question {number + 1}{where} is empty; ask something.", "question is empty"
            )
        shown = image(image_tokens) if image_tokens and number == 0 else ()
        add((*prefix, *user_turn(*shown, question.strip())), learned=False)
        if answer is not None:
            add((answer.strip(), IM_END), learned=True)
        prefix = ("\n",)
    if len(ids) > max_tokens:
        raise PromptError(
            f"the conversation{where} has {len(ids)} tokens, the model takes {max_tokens}; "
            "shorten it.",
            "conversation is too long for the model",
        )
    return ids, labels


def shared_tokens(rows: Sequence[Sequence[int]], image: int | None) -> int:
    """Length of the common prefix of all rows, up to the first `image` placeholder.

    At least one id of each row is left over. A single row shares nothing.
    """
    if len(rows) < 2:
        return 0
    longest = min(len(row) for row in rows) - 1
    for number, ids in enumerate(zip(*rows, strict=False)):
        if number == longest or len(set(ids)) > 1 or ids[0] == image:
            return number
    return 0


def pad(rows: Sequence[Sequence[int]], value: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """Pad rows of ids to int64 [B,T] with `value`; return them and the mask [B,T] of the ids."""
    longest = max(len(row) for row in rows)
    padded = torch.full((len(rows), longest), value, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(longest - len(row), None) if left else slice(0, len(row))
        padded[number, place] = torch.tensor(row, dtype=torch.long)
        mask[number, place] = 1
    return padded, mask
