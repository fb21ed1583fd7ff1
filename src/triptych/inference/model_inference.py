"""Images and answers of a bare model, for scores and for previews of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from triptych.inference import chat, image_generation
from triptych.inference.best_of import best_of, ranker_for, refuse_unranked_edits
from triptych.inference.chat_messages import Conversation
from triptych.inference.generation_config import GenerationConfig
from triptych.modules.text_generation import ChatOutput


class ModelInference:
    """Inference functions of a UnifiedModule in evaluation mode; images are uint8 [B,3,H,W]."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def generate(
        self, prompts: list[str], *, seeds: list[int], config: GenerationConfig | None = None
    ) -> Tensor:
        """Generate one image per prompt and seed, the best of its candidates if it has several."""
        if config is not None and config.candidates > 1:
            return self._best(prompts, seeds, config)
        return image_generation.generate(self.model, prompts, seeds=seeds, config=config)

    def _best(self, prompts: list[str], seeds: list[int], config: GenerationConfig) -> Tensor:
        def one_each(owners: list[int], drawn: list[int]) -> Tensor:
            own = [prompts[image] for image in owners]
            return image_generation.generate(self.model, own, seeds=drawn, config=config)

        return best_of(
            one_each,
            prompts,
            seeds,
            num_candidates=config.candidates,
            ranker=ranker_for(self.model, None, prompts),
            batch_size=len(seeds),
        ).images

    def edit(
        self,
        images: Tensor,
        prompts: list[str],
        *,
        seeds: list[int],
        config: GenerationConfig | None = None,
    ) -> Tensor:
        """Edit images by prompts."""
        refuse_unranked_edits(config.candidates if config else 1, None)
        return image_generation.edit(self.model, images, prompts, seeds=seeds, config=config)

    def reconstruct(
        self, images: Tensor, *, seeds: list[int], config: GenerationConfig | None = None
    ) -> Tensor:
        """Reconstruct images with encoder and decoder."""
        return image_generation.reconstruct(self.model, images, seeds=seeds, config=config)

    def answer(
        self, images: Tensor | None, questions: list[str], *, max_new_tokens: int = 64
    ) -> list[str]:
        """Answer one question about each image, or without images."""
        return chat.answer(self.model, images, questions, max_new_tokens=max_new_tokens)

    def converse(
        self,
        conversations: Sequence[Conversation],
        *,
        seeds: list[int],
        max_new_tokens: int = 64,
        config: GenerationConfig | None = None,
    ) -> list[ChatOutput]:
        """Answer each conversation, with texts and images."""
        answer = chat.prepare_answers(
            self.model,
            self.model.device,
            conversations,
            max_new_tokens=max_new_tokens,
            temperature=0.0,
            top_p=1.0,
            seed=seeds,
            config=config,
        )
        return answer(None)


def inference_of(model: Any) -> Any:
    """`ModelInference` of a UnifiedModule; an object with these methods is returned unchanged."""
    return model if hasattr(model, "generate") else ModelInference(model)
