"""Images and answers of a model by itself, for scores and for the previews of a training run."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from triptych.inference import chat, image_generation
from triptych.inference.generation_config import GenerationConfig


class ModelInference:
    """The inference functions of one UnifiedModule in evaluation mode; images uint8 [B,3,H,W]."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def generate(
        self, prompts: list[str], *, seeds: list[int], config: GenerationConfig | None = None
    ) -> Tensor:
        """Images of prompts, each with its seed."""
        return image_generation.generate(self.model, prompts, seeds=seeds, config=config)

    def edit(
        self,
        images: Tensor,
        prompts: list[str],
        *,
        seeds: list[int],
        config: GenerationConfig | None = None,
    ) -> Tensor:
        """Images changed as prompts say."""
        return image_generation.edit(self.model, images, prompts, seeds=seeds, config=config)

    def reconstruct(
        self, images: Tensor, *, seeds: list[int], config: GenerationConfig | None = None
    ) -> Tensor:
        """Images through encoder and decoder."""
        return image_generation.reconstruct(self.model, images, seeds=seeds, config=config)

    def answer(
        self, images: Tensor | None, questions: list[str], *, max_new_tokens: int = 64
    ) -> list[str]:
        """Answers to one question each; no images is about none."""
        return chat.answer(self.model, images, questions, max_new_tokens=max_new_tokens)


def inference_of(model: Any) -> Any:
    """`ModelInference` of a UnifiedModule; an object that has these methods itself as it is."""
    return model if hasattr(model, "generate") else ModelInference(model)
