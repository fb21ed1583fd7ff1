"""FID and KID of a model in training, in the features of its own image encoder."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

from triptych.evaluation.image_evaluator import ImageEvaluator
from triptych.evaluation.image_metrics.feature_space import EncoderSpace, extract
from triptych.evaluation.image_metrics.fid import (
    KidSettings,
    frechet_distance,
    kernel_distance,
    kernel_interval,
)
from triptych.evaluation.image_sources import Entry, read_images
from triptych.inference.generation_config import GenerationConfig
from triptych.inference.pipeline import UnifiedPipeline
from triptych.utils.errors import UserError


class FeatureDistance(ImageEvaluator):
    """Distance of generated images to real ones with the same captions: "FID", "KID" and its 95%
    interval from "KID_low" to "KID_high".

    The features are those of the current encoder: scores are comparable while it is frozen. With
    fewer images than features FID is mostly bias, constant from score to score; KID has none.

    Args:
        reference: folder of images or of shards, with captions; see `image_sources`.
        num_images: maximum number of images; the first ones are taken.
        seed: random seed of the first image's noise; each next one has one more.
        batch_size, generation_config: arguments of `ImageEvaluator`.
    """

    parts = (*ImageEvaluator.parts, "encoder")

    def __init__(
        self,
        reference: str,
        num_images: int = 240,
        *,
        seed: int = 0,
        batch_size: int = 64,
        generation_config: GenerationConfig | None = None,
    ) -> None:
        if num_images < 2:
            raise UserError(f"FID needs two images on either side; num_images is {num_images}.")
        super().__init__(
            num_images, seed=seed, batch_size=batch_size, generation_config=generation_config
        )
        self.reference = reference

    def __call__(self, model: Any) -> dict[str, float]:
        pipeline = UnifiedPipeline(model)
        space = EncoderSpace(pipeline)
        # read first: the reference may be unusable
        entries = list(islice(filter(_usable, read_images(self.reference)), self.num_images))
        if len(entries) < 2:
            raise UserError(
                f"{self.reference} has {len(entries)} images with captions that can be read; FID "
                "needs two at least."
            )
        captions = [entry.caption for entry in entries]
        images = pipeline(
            captions,
            generation_config=replace(self.generation_config, seed=self.seed),
            batch_size=self.batch_size,
        ).images
        true = extract(space, entries, self.batch_size).features
        generated = extract(space, read_images(images), self.batch_size).features
        settings = KidSettings()
        low, high = kernel_interval(generated, true, settings)
        return {
            "FID": frechet_distance(generated, true),
            "KID": kernel_distance(generated, true, settings),
            "KID_low": low,
            "KID_high": high,
        }


def _usable(entry: Entry) -> bool:
    return entry.image is not None and bool(entry.caption)
