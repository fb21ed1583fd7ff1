"""The understanding panel: a language model that reads text and images."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from triptych.interfaces import LANGUAGE_MODELING, Batch, Preprocessing, VisionLanguageModel
from triptych.modules.base import BaseModule, Metrics
from triptych.utils.images import square


class UnderstandingModule(BaseModule):
    """Next-token cross entropy on the answers of conversations, with and without images.

    Args:
        vlm: the language model with its vision tower.
        max_tokens: length limit of a prompt or conversation.
        chat_tokens: length limit of a conversation with the answer at inference; None is
            max_tokens. Images that keep their shape take more tokens than in training.
        images_first: in chat, the images of a message come before its text, wherever it has
            them: all that a small model was trained on are images that open a question.
        answer_images: in chat, maximum number of images in an answer, where there is a generation
            panel; 0 for a language model that did not learn to say when an image comes.
        training: arguments of `BaseModule`, for a panel that is the root.
    """

    batch_objective = LANGUAGE_MODELING

    def __init__(
        self,
        vlm: VisionLanguageModel,
        max_tokens: int = 512,
        *,
        chat_tokens: int | None = None,
        images_first: bool = False,
        answer_images: int = 0,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.vlm, self.max_tokens = vlm, max_tokens
        self.chat_tokens, self.images_first = chat_tokens or max_tokens, images_first
        self.answer_images = answer_images

    def step(self, batch: Batch) -> tuple[Tensor, Metrics]:
        loss = self.vlm.lm_loss(batch)
        return loss, {"understanding": loss.detach()}

    def show(self, images: list[Image.Image]) -> tuple[tuple[Tensor, Tensor], list[int]]:
        """Images of a conversation as the VLM takes them, and the tokens of each.

        Squares, as in training, unless the VLM takes them in their own shapes.

        Raises:
            UserError: an image has a shape that cannot be shown.
        """
        vlm = self.vlm
        shown = vlm.chat_inputs([pil_to_tensor(each) for each in images])
        if shown is not None:
            patches, grids, tokens = shown
            return (patches, grids), tokens
        squares = torch.stack([square(each, vlm.image_size) for each in images])
        return vlm.image_inputs(squares), [vlm.image_tokens()] * len(images)

    def preprocessing(self) -> Preprocessing:
        vlm = self.vlm
        return Preprocessing(
            tokenizer=vlm.tokenizer,
            max_tokens=self.max_tokens,
            image_size=vlm.image_size,
            understanding_size=vlm.image_size,
            image_tokens=vlm.image_tokens(),
            image_inputs=vlm.image_inputs,
            position_ids=vlm.position_ids,
        )
