"""Local judges: a vision-language model of transformers, or a triptych model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from triptych.evaluation.judges.base import BatchJudge, Question
from triptych.evaluation.judges.hub import load
from triptych.utils.png_metadata import shown_name
from triptych.utils.tokens import break_control_tokens


class QwenJudge(BatchJudge):
    """A vision-language model of transformers; Qwen2.5-VL is the default judge of DPG-Bench.

    Args:
        source: folder or hub id, such as Qwen/Qwen2.5-VL-7B-Instruct.
        device: device to compute on.
        dtype: number format of the computation.
        max_new_tokens: maximum number of tokens of an answer.
        batch: number of questions per batch; memory grows with it.

    Raises:
        UserError: the model does not exist.
    """

    def __init__(
        self,
        source: str | Path,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_new_tokens: int = 16,
        batch: int = 8,
    ) -> None:
        self.processor = load("AutoProcessor", source, padding_side="left")
        self.model = load("AutoModelForImageTextToText", source, dtype=dtype).eval().to(device)
        self.name, self.batch = f"{shown_name(source)} (transformers)", batch
        self.max_new_tokens = max_new_tokens

    def settings(self) -> dict[str, Any]:
        return {"max_new_tokens": self.max_new_tokens}

    @torch.no_grad()
    def answers(self, questions: Sequence[Question]) -> list[str]:
        tokenizer = self.processor.tokenizer
        turns = [[_turn(p, break_control_tokens(tokenizer, text))] for p, text in questions]
        texts = self.processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=False
        )
        inputs = self.processor(
            text=texts,
            images=[image for image, _ in questions],
            padding=True,
            return_tensors="pt",
        ).to(self.model.device)
        output = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(new, skip_special_tokens=True)


class PipelineJudge(BatchJudge):
    """A triptych model as a judge.

    Args:
        pipeline: a `triptych.inference.pipeline.UnifiedPipeline`.
        max_new_tokens: maximum number of tokens of an answer.
        batch: number of questions per batch.
    """

    def __init__(self, pipeline: Any, max_new_tokens: int = 16, batch: int = 8) -> None:
        self.pipeline, self.max_new_tokens, self.batch = pipeline, max_new_tokens, batch
        self.name = f"{pipeline.name} (triptych)"

    def settings(self) -> dict[str, Any]:
        return {"max_new_tokens": self.max_new_tokens}

    def answers(self, questions: Sequence[Question]) -> list[str]:
        conversations = [[_turn(*question)] for question in questions]
        answers = self.pipeline.chat_batch(
            conversations, max_new_tokens=self.max_new_tokens, max_images=0
        )
        return [each.text for each in answers]


def _turn(image: Image.Image, question: str) -> dict[str, Any]:
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    return {"role": "user", "content": content}
