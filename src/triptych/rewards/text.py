"""Text that an image is to show, read by optical character recognition, as a reward."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy
import torch
from torch import Tensor
from torchmetrics.functional.text import edit_distance

from triptych.interfaces import Reward, RewardSample
from triptych.utils.errors import UserError
from triptych.utils.images import to_arrays

QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')


class TextReward(Reward):
    """1 - edits / letters of the wanted text, at least 0, without case and spaces.

    That is the OCR reward of Flow-GRPO (arXiv 2505.05470). The wanted text is the field "text" of
    the sample, or what its prompt quotes.

    Args:
        read: function from an image uint8 [H,W,3] to its text; None is `rapidocr`, whose models
            come with its package.

    Raises:
        UserError: rapidocr is not installed.
    """

    name = "text"

    def __init__(self, read: Callable[[numpy.ndarray], str] | None = None) -> None:
        self.read = read or _rapidocr()

    def __call__(self, images: Tensor, samples: Sequence[RewardSample]) -> Tensor:
        wanted = [_letters(wanted_text(sample)) for sample in samples]
        found = [_letters(self.read(image)) for image in to_arrays(images)]
        edits = edit_distance(found, wanted, reduction="none")
        lengths = torch.tensor([len(text) for text in wanted])
        return (1 - edits / lengths).clamp(min=0)


def wanted_text(sample: RewardSample) -> str:
    """Text that an image of a sample is to show.

    Raises:
        UserError: the sample names none.
    """
    text = sample.facts.get("text")
    if text is None:
        text = " ".join(first or second for first, second in QUOTED.findall(sample.prompt))
    if not isinstance(text, str) or not _letters(text):
        raise UserError(
            f'the prompt {sample.prompt[:60]!r} names no text to show; quote it, or add "text" to '
            "its line."
        )
    return text


def _letters(text: str) -> str:
    return "".join(text.lower().split())


def _rapidocr() -> Callable[[numpy.ndarray], str]:
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise UserError(
            "the reward 'text' reads images by rapidocr, which is not installed: "
            "pip install 'triptych[ocr]'."
        ) from error
    engine = RapidOCR(params={"Global.log_level": "critical"})

    def read(image: numpy.ndarray) -> str:
        return " ".join(engine(image[:, :, ::-1]).txts or ())  # it reads BGR

    return read
