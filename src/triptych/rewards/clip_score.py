"""Alignment of images with their captions by CLIP-like models."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from triptych.evaluation.image_metrics.clip_score import ClipJudge
from triptych.evaluation.judges.hub import load
from triptych.interfaces import Reward, RewardSample
from triptych.utils.images import to_images
from triptych.utils.tokens import break_control_tokens


class ClipScore(Reward):
    """CLIP score of image and caption, from 0 to 1; see `evaluation.image_metrics.clip_score`.

    Args:
        folder: folder of a CLIP model with its processor, read when it is first used.
        device: device to compute on.
    """

    name = "clip_score"

    def __init__(self, folder: str, device: str = "cpu") -> None:
        self.folder, self.device = folder, device

    @cached_property
    def judge(self) -> ClipJudge:
        return ClipJudge(self.folder, self.device)

    def __call__(self, images: Tensor, samples: Sequence[RewardSample]) -> Tensor:
        return self.judge(to_images(images), [each.prompt for each in samples]) / 100


class PreferenceScore(Reward):
    """A CLIP model that was tuned on people's choices, such as PickScore (arXiv 2305.01569).

    The score is its logit, exp(logit scale) times the cosine of image and caption: differences of
    two images are log-odds of a choice.

    Args:
        source: folder or hub id of the model, such as yuvalkirstain/PickScore_v1, read when it is
            first used.
        processor: folder or hub id of its processor, such as laion/CLIP-ViT-H-14-laion2B-s32B-b79K;
            None is that of the model.
        device: device to compute on.
    """

    name = "preference_score"

    def __init__(self, source: str, processor: str | None = None, device: str = "cpu") -> None:
        self.source, self.processor, self.device = source, processor or source, device

    @cached_property
    def model_parts(self) -> tuple[Any, Any, Any]:
        """Model, image processor and tokenizer."""
        model = load("CLIPModel", self.source).eval().to(self.device)
        processors = (
            load(part, self.processor) for part in ("AutoImageProcessor", "AutoTokenizer")
        )
        return model, *processors

    @torch.inference_mode()
    def __call__(self, images: Tensor, samples: Sequence[RewardSample]) -> Tensor:
        model, image_processor, tokenizer = self.model_parts
        pixels = image_processor(images=to_images(images), return_tensors="pt")
        words = tokenizer(
            [break_control_tokens(tokenizer, each.prompt) for each in samples],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=model.config.text_config.max_position_embeddings,
        )
        shown = model.get_image_features(**pixels.to(self.device)).pooler_output
        said = model.get_text_features(**words.to(self.device)).pooler_output
        return model.logit_scale.exp() * cosine_similarity(shown, said)
