"""FID and KID of a model in training, in the features of its own image encoder."""

from __future__ import annotations

from itertools import islice
from typing import Any

from triptych.evaluation.image_metrics.feature_space import EncoderSpace, extract
from triptych.evaluation.image_metrics.fid import (
    KidSettings,
    frechet_distance,
    kernel_distance,
    kernel_interval,
)
from triptych.evaluation.image_sources import Entry, read_pictures
from triptych.inference.pipeline import UnifiedPipeline
from triptych.interfaces import Evaluator
from triptych.utils.errors import UserError


class FeatureDistance(Evaluator):
    """How far pictures for the captions of true ones are from these: "FID", "KID" and its 95%
    interval from "KID_low" to "KID_high".

    The features are the encoder's as it is: figures compare while it is frozen. With fewer pictures
    than features FID is mostly bias, which stays the same from score to score; KID has none.

    Args:
        reference: folder of pictures or of shards, with captions; see `picture_sources`.
        images: the first so many of them.
        seed: of the first picture's noise; then one more each.
        batch_size: pictures at a time.
        steps, guidance: of the sampler; null takes the model's own.
    """

    parts = ("understanding", "generation", "decoding")

    def __init__(
        self,
        reference: str,
        images: int = 240,
        seed: int = 0,
        batch_size: int = 64,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> None:
        if images < 2:
            raise UserError(f"FID needs two pictures on either side; images is {images}.")
        self.reference, self.images, self.seed = reference, images, seed
        self.batch_size, self.steps, self.guidance = batch_size, steps, guidance

    def __call__(self, model: Any) -> dict[str, float]:
        pipeline = UnifiedPipeline(model)
        space = EncoderSpace(pipeline)
        # before any picture is made: the folder may be of no use
        entries = list(islice(filter(_usable, read_pictures(self.reference)), self.images))
        if len(entries) < 2:
            raise UserError(
                f"{self.reference} has {len(entries)} pictures with captions that can be read; FID "
                "needs two at least."
            )
        captions = [entry.caption for entry in entries]
        pictures = pipeline.generate(
            captions,
            seeds=self.seed,
            steps=self.steps,
            guidance=self.guidance,
            batch_size=self.batch_size,
        )
        true = extract(space, entries, self.batch_size).features
        made = extract(space, read_pictures(pictures), self.batch_size).features
        settings = KidSettings()
        low, high = kernel_interval(made, true, settings)
        return {
            "FID": frechet_distance(made, true),
            "KID": kernel_distance(made, true, settings),
            "KID_low": low,
            "KID_high": high,
        }


def _usable(entry: Entry) -> bool:
    return entry.picture is not None and bool(entry.caption)
