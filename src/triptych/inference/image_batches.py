"""The images of a call in batches: all features first, then all pixels, with progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from triptych.inference.generation_config import GenerationConfig
from triptych.inference.image_generation import condition, negative_condition, reconstruct
from triptych.inference.image_requests import ImageRequest, chunks, ranges
from triptych.interfaces import Condition
from triptych.sampler import model_calls
from triptych.utils.images import to_images

PREVIEW_STEPS = 4  # of the decoder, where it has more


@dataclass
class Progress:
    """The state of a call, which `callback_on_step_end` gets after every step of either sampler."""

    stage: Literal["features", "pixels"]
    """Image features are generated first, pixels decoded from them second."""
    step: int
    """Step of this stage and these images, counted from 1; one is one call of the network."""
    steps: int
    """Number of steps of this stage."""
    images: range
    """Numbers of these images in the call."""
    preview: Callable[[], list[Image.Image]]
    """Makes the images as they look at this step; costs a decoding."""


OnStepEnd = Callable[[Progress], Any]


@dataclass
class ImageBatches:
    """One call: its model, its settings, and the batches that its images are made in."""

    model: Any
    config: GenerationConfig
    batch_size: int
    callback: OnStepEnd | None = None

    def conditions(self, prompts: list[str], images: Tensor | None) -> Tensor:
        """Conditions [P,N,D], one a prompt however many images it gets.

        A prompt that comes several times without an image is read once, as in requests to a server.
        """
        places, size = list(range(len(prompts))), self.batch_size
        if images is None:
            numbers = {text: number for number, text in enumerate(dict.fromkeys(prompts))}
            places, prompts = [numbers[text] for text in prompts], list(numbers)
        made = [
            condition(
                self.model,
                prompts[at : at + size],
                None if images is None else images[at : at + size],
            ).hidden_states
            for at in range(0, len(prompts), size)
        ]
        return torch.cat(made)[places]

    def generate(self, conditions: Tensor, requests: list[ImageRequest]) -> Tensor:
        """Images uint8 [B,3,H,W]; each network of the model has one turn on the device a call."""
        parts = list(chunks(requests, self.batch_size))
        return torch.cat(self._pixels(self._features(conditions, parts), parts))

    def reconstruct(self, images: Tensor, requests: list[ImageRequest]) -> Tensor:
        """Images uint8 [B,3,H,W] through encoder and decoder."""
        parts = zip(images.split(self.batch_size), chunks(requests, self.batch_size), strict=True)
        made = [
            reconstruct(self.model, some, seeds=[each.seed for each in part], config=self.config)
            for some, part in parts
        ]
        return torch.cat(made)

    def _features(self, conditions: Tensor, parts: list[list[ImageRequest]]) -> list[Tensor]:
        """Features [B,C,h,w] of each batch."""
        generation, made, config = self.model.generation, [], self.config
        negative = negative_condition(self.model, config)
        calls = generation.model_calls(config.num_inference_steps, config.sampler)
        for part, numbers in zip(parts, ranges(parts), strict=True):
            seeds = [each.seed for each in part]
            preview = partial(self._preview, seeds=seeds)

            def on_step(step: int, _: Tensor, estimate: Tensor, images=numbers, preview=preview):
                shown = partial(preview, estimate)
                self.callback(Progress("features", step + 1, calls, images, shown))

            states = Condition(conditions[[each.number for each in part]])
            made.append(
                generation.sample(
                    states,
                    seeds,
                    negative_condition=negative,
                    on_step=on_step if self.callback else None,
                    **config.of_features,
                )
            )
        return made

    def _pixels(self, features: list[Tensor], parts: list[list[ImageRequest]]) -> list[Tensor]:
        """Images uint8 [B,3,H,W] of each batch."""
        made, own = [], self.config.resolved(self.model)
        calls = model_calls(own["decoder_sampler"], own["decoder_num_inference_steps"])
        for some, part, numbers in zip(features, parts, ranges(parts), strict=True):

            def on_image(step: int, pixels: Callable[[], Tensor], images=numbers) -> None:
                shown = partial(_shown, pixels)
                self.callback(Progress("pixels", step + 1, calls, images, shown))

            made.append(
                self.model.decode(
                    some,
                    [each.seed for each in part],
                    on_image=on_image if self.callback else None,
                    **self.config.of_decoder,
                )
            )
        return made

    def _preview(self, features: Tensor, seeds: list[int]) -> list[Image.Image]:
        """Images of unfinished features, decoded in few steps."""
        steps = self.config.resolved(self.model)["decoder_num_inference_steps"]
        few = replace(self.config, decoder_num_inference_steps=min(PREVIEW_STEPS, steps))
        return to_images(self.model.decode(features, seeds, **few.of_decoder))


def _shown(pixels: Callable[[], Tensor]) -> list[Image.Image]:
    return to_images(pixels())
