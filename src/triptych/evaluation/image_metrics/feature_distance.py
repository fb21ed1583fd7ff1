"""FID and KID of a model in training, in the features of its own image encoder."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

from triptych.evaluation.image_metrics.feature_space import EncoderSpace, extract
from triptych.evaluation.image_metrics.fid import (
    KidSettings,
    frechet_distance,
    kernel_distance,
    kernel_interval,
)
from triptych.evaluation.image_sources import Entry, read_images
from triptych.inference.generation_config import GenerationConfig, settings_alone
from triptych.inference.pipeline import UnifiedPipeline
from triptych.interfaces import Evaluator
from triptych.utils.errors import UserError


class FeatureDistance(Evaluator):
    """Distance of generated images to real ones with the same captions: "FID", "KID" and its 95%
    interval from "KID_low" to "KID_high".

    The features are the encoder's as it is: figures compare while it is frozen. With fewer images
    than features FID is mostly bias, which stays the same from score to score; KID has none.

    Args:
        reference: folder of images or of shards, with captions; see `image_sources`.
        num_images: maximum number of images on either side, the first ones.
        seed: random seed of the first image's noise; then one more each.
        batch_size: images at a time.
        generation_config: settings of the images, see `GenerationConfig`; its seed stays null.
    """

    parts = ("understanding", "generation", "decoding")

    def __init__(
        self,
        reference: str,
        num_images: int = 240,
        seed: int = 0,
        batch_size: int = 64,
        generation_config: GenerationConfig | None = None,
    ) -> None:
        if num_images < 2:
            raise UserError(f"FID needs two images on either side; num_images is {num_images}.")
        self.reference, self.num_images, self.seed = reference, num_images, seed
        self.batch_size = batch_size
        self.generation_config = settings_alone(generation_config)

    def __call__(self, model: Any) -> dict[str, float]:
        pipeline = UnifiedPipeline(model)
        space = EncoderSpace(pipeline)
        # before any image is made: the folder may be of no use
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
        made = extract(space, read_images(images), self.batch_size).features
        settings = KidSettings()
        low, high = kernel_interval(made, true, settings)
        return {
            "FID": frechet_distance(made, true),
            "KID": kernel_distance(made, true, settings),
            "KID_low": low,
            "KID_high": high,
        }


def _usable(entry: Entry) -> bool:
    return entry.image is not None and bool(entry.caption)
