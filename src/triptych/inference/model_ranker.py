"""The model as its own ranker: the probability that an image shows its caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from triptych.interfaces import Ranker
from triptych.prompts import PAD, conversation_ids, pad, token_id
from triptych.utils.errors import UserError
from triptych.utils.images import scaled_pixels
from triptych.utils.text import clean_text
from triptych.utils.tokens import encode_text

YES, NO = ("yes", "Yes"), ("no", "No")
"""Beginnings of an answer that count for the image, and against it."""


class ModelRanker(Ranker):
    """Probability of "yes", against "no", as the answer to whether an image shows its caption.

    The understanding panel is shown the pixels of the image and asked
    `PromptConfig.ranking_question`; the score is

        p = sum of P(token) over YES / sum of P(token) over YES and NO

    for the first token of the answer, so that one pass ranks an image.

    Args:
        model: UnifiedModule in evaluation mode.

    Raises:
        UserError: the model does not read images or does not answer.
    """

    name = "self"

    def __init__(self, model: Any) -> None:
        remedy = "give a ranker that scores them"
        parts = ("language_model", "vision_tower", "lm_head")
        reason = model.lacks(*parts)
        if reason is None and model.understanding.vlm.left_out.keys() & set(parts):
            reason = "it was built without its vision tower or lm_head"
        if reason is not None:
            raise UserError(f"this model cannot rank its images by itself: {reason}; {remedy}.")
        self.model, self.question = model, model.generation.prompt.ranking_question
        tokenizer = model.understanding.vlm.tokenizer
        self.yes = sorted({encode_text(tokenizer, word)[0] for word in YES})
        self.no = sorted({encode_text(tokenizer, word)[0] for word in NO})
        if set(self.yes) & set(self.no):
            raise UserError(
                "this model cannot rank its images by itself: yes and no begin with the same token "
                f"of its tokenizer; {remedy}."
            )

    def check(self, prompts: Sequence[str]) -> None:
        self._rows(prompts)

    def _rows(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of the question about each caption; white space and a final stop are cut."""
        facts = self.model.preprocessing()
        captions = [clean_text(prompt, "the prompt").strip().rstrip(".") for prompt in prompts]
        return [
            conversation_ids(
                facts.tokenizer,
                [(self.question.format(caption=caption), None)],
                facts.max_tokens,
                facts.image_tokens,
            )[0]
            for caption in captions
        ]

    @torch.no_grad()
    def scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        facts, device = self.model.preprocessing(), self.model.device
        ids, mask = pad(self._rows(prompts), token_id(facts.tokenizer, PAD))
        shown = facts.image_inputs(scaled_pixels(images, facts.understanding_size))
        logits = self.model.understanding.vlm.next_token_logits(
            ids.to(device), mask.to(device), *(each.to(device) for each in shown)
        )
        yes, no = logits[:, self.yes].logsumexp(1), logits[:, self.no].logsumexp(1)
        return torch.sigmoid(yes - no).cpu()
