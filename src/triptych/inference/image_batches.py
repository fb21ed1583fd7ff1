"""Images of a call in batches: first all features, then all pixels, with progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from triptych.inference.edit_source import source_of_images
from triptych.inference.generation_config import GenerationConfig
from triptych.inference.image_generation import condition, negative_condition, reconstruct
from triptych.inference.image_requests import ImageRequest, chunks, ranges
from triptych.interfaces import Condition, Source
from triptych.sampler import model_calls
from triptych.utils.images import to_images

PREVIEW_STEPS = 4  # maximum number of decoder steps of a preview


@dataclass
class Progress:
    """State of a call, passed to `callback_on_step_end` after every step of either sampler."""

    stage: Literal["features", "pixels"]
    """Generation of image features, then decoding to pixels."""
    step: int
    """Number of the step in this stage of these images, from 1; a step is one network call."""
    steps: int
    """Number of steps of this stage."""
    images: range
    """Indices of these images in the call."""
    preview: Callable[[], list[Image.Image]]
    """Function that decodes the images at this step."""


OnStepEnd = Callable[[Progress], Any]


@dataclass
class ImageBatches:
    """A call of a model with its settings, computed in batches."""

    model: Any
    config: GenerationConfig
    batch_size: int
    callback: OnStepEnd | None = None

    def encode_prompts(self, prompts: list[str], images: Tensor | None) -> Tensor:
        """Conditions [P,N,D], one per prompt.

        Repeated prompts without images, as in requests to a server, are encoded once.
        """
        places, size = list(range(len(prompts))), self.batch_size
        if images is None:
            numbers = {text: number for number, text in enumerate(dict.fromkeys(prompts))}
            places, prompts = [numbers[text] for text in prompts], list(numbers)
        conditions = [
            condition(
                self.model,
                prompts[at : at + size],
                None if images is None else images[at : at + size],
            ).hidden_states
            for at in range(0, len(prompts), size)
        ]
        return torch.cat(conditions)[places]

    def encode_sources(self, images: Tensor) -> Source | None:
        """Source of images to edit, one per prompt; None where the generator sees none."""
        sources = [source_of_images(self.model, some) for some in images.split(self.batch_size)]
        return None if sources[0] is None else Source.cat(sources)

    def generate(
        self, conditions: Tensor, requests: list[ImageRequest], source: Source | None = None
    ) -> Tensor:
        """Images uint8 [B,3,H,W]; each network is on the device once per call."""
        batches = list(chunks(requests, self.batch_size))
        return torch.cat(self._pixels(self._features(conditions, batches, source), batches))

    def reconstruct(self, images: Tensor, requests: list[ImageRequest]) -> Tensor:
        """Images uint8 [B,3,H,W] through encoder and decoder."""
        pairs = zip(images.split(self.batch_size), chunks(requests, self.batch_size), strict=True)
        pixels = [
            reconstruct(self.model, some, seeds=[each.seed for each in batch], config=self.config)
            for some, batch in pairs
        ]
        return torch.cat(pixels)

    def _features(
        self, conditions: Tensor, batches: list[list[ImageRequest]], source: Source | None
    ) -> list[Tensor]:
        """Features [B,C,h,w] of each batch."""
        generation, features, config = self.model.generation, [], self.config
        negative = negative_condition(self.model, config)
        calls = generation.model_calls(config.num_inference_steps, config.sampler)
        for batch, numbers in zip(batches, ranges(batches), strict=True):
            seeds = [each.seed for each in batch]
            preview = partial(self._preview, seeds=seeds)

            def on_step(step: int, _: Tensor, estimate: Tensor, images=numbers, preview=preview):
                shown = partial(preview, estimate)
                self.callback(Progress("features", step + 1, calls, images, shown))

            rows = [each.number for each in batch]
            states = Condition(conditions[rows])
            features.append(
                generation.sample(
                    states,
                    seeds,
                    negative_condition=negative,
                    source=None if source is None else source.rows(rows),
                    on_step=on_step if self.callback else None,
                    **config.of_features,
                )
            )
        return features

    def _pixels(self, features: list[Tensor], batches: list[list[ImageRequest]]) -> list[Tensor]:
        """Images uint8 [B,3,H,W] of each batch."""
        decoded, own = [], self.config.resolved(self.model)
        calls = model_calls(own["decoder_sampler"], own["decoder_num_inference_steps"])
        for some, batch, numbers in zip(features, batches, ranges(batches), strict=True):

            def on_image(step: int, pixels: Callable[[], Tensor], images=numbers) -> None:
                shown = partial(_shown, pixels)
                self.callback(Progress("pixels", step + 1, calls, images, shown))

            decoded.append(
                self.model.decode(
                    some,
                    [each.seed for each in batch],
                    on_image=on_image if self.callback else None,
                    **self.config.of_decoder,
                )
            )
        return decoded

    def _preview(self, features: Tensor, seeds: list[int]) -> list[Image.Image]:
        """Decode unfinished features in few steps."""
        steps = self.config.resolved(self.model)["decoder_num_inference_steps"]
        few = replace(self.config, decoder_num_inference_steps=min(PREVIEW_STEPS, steps))
        return to_images(self.model.decode(features, seeds, **few.of_decoder))


def _shown(pixels: Callable[[], Tensor]) -> list[Image.Image]:
    return to_images(pixels())
