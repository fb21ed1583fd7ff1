"""Measures one model: alignment, diversity, understanding; and a sheet of samples.

    python -m study.scores MODEL FOLDER IMAGES PROMPTS EACH

writes FOLDER/measures.json, last of all, and FOLDER/sheet.png.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch.nn.functional import normalize

from triptych.evaluation.image_metrics.diversity import mean_distance
from triptych.evaluation.image_metrics.feature_space import EncoderSpace
from triptych.evaluation.shapes.shape_eval import ShapeEval, examples, question_answering_score
from triptych.evaluation.statistics import mean
from triptych.inference.model_inference import inference_of
from triptych.inference.pipeline import UnifiedPipeline
from triptych.modules import UnifiedModule
from triptych.shapes_world.checker import read
from triptych.utils.atomic_write import write_text

SHEET = 6  # captions on a sheet, one of each task
APART = 1 << 30  # noises of other images than those that are scored for alignment


def score(model: UnifiedModule, num_images: int, prompts: int, each: int, sheet: Path) -> dict:
    """All scores of a model.

    Args:
        num_images: images of as many held-out captions for alignment, and images asked about.
        prompts, each: captions, and images of each, for all other measures of images.
        sheet: where the first images of them are saved.
    """
    images = paint(model, prompts, each)
    draw_sheet(images[:SHEET], sheet)
    return {
        "alignment": ShapeEval("eval", num_images)(model),
        "understanding": question_answering_score(model, num_images),
        "clear": clear(images),
        "retrieval": retrieval(images, [each.image for each in examples("eval", prompts)]),
        "diversity_pixels": pixel_diversity(images),
        "diversity_features": feature_diversity(images),
    }


def paint(model: UnifiedModule, prompts: int, each: int) -> numpy.ndarray:
    """Several images of each caption, uint8 [prompts,each,48,48,3]."""
    samples = examples("eval", prompts)
    return numpy.stack(
        [
            inference_of(model)
            .generate(
                [sample.caption] * each, seeds=[APART + number * each + n for n in range(each)]
            )
            .permute(0, 2, 3, 1)
            .numpy()
            for number, sample in enumerate(samples)
        ]
    )


def clear(images: numpy.ndarray) -> float:
    """The share of images uint8 [P,K,48,48,3] that show shapes, and nothing that is none: sharp
    and whole, whatever was asked for."""
    scenes = [read(image) for of_caption in images for image in of_caption]
    return mean(scene is not None and len(scene.shapes) > 0 for scene in scenes)


def retrieval(images: numpy.ndarray, true: Sequence[numpy.ndarray]) -> float:
    """The share of images whose nearest one among the captions' true images is that of their
    own caption: alignment without all or nothing.

    Nearest by the cosine between the shipped image encoder's features, averaged over the image,
    less the mean of the true ones. Chance is 1/P.

    Args:
        images: uint8 [P,K,H,W,3].
        true: P images uint8 [H,W,3].
    """
    space = EncoderSpace(UnifiedPipeline.from_pretrained("tiny", device="cpu"))
    known = space([Image.fromarray(image) for image in true])
    centre = known.mean(0)
    right = []
    for number, of_caption in enumerate(images):
        made = space([Image.fromarray(image) for image in of_caption])
        near = normalize(made - centre, dim=1) @ normalize(known - centre, dim=1).T
        right += (near.argmax(1) == number).tolist()
    return mean(right)


def pixel_diversity(images: numpy.ndarray) -> float:
    """Mean absolute difference of pixels, from 0 to 1, over all pairs of images of a caption and
    over captions: knows nothing of any representation.

    Args:
        images: uint8 [P,K,H,W,3].
    """
    as_real = images.astype(numpy.float64) / 255
    return mean(
        float(numpy.abs(first - second).mean())
        for of_caption in as_real
        for first, second in combinations(of_caption, 2)
    )


def feature_diversity(images: numpy.ndarray) -> float:
    """Mean cosine distance in the shipped image encoder's grid of features, as `diversity.score`
    has it: the features that two of the objectives generate."""
    space = EncoderSpace(UnifiedPipeline.from_pretrained("tiny", device="cpu"), pool="grid")
    return mean(
        mean_distance(space([Image.fromarray(image) for image in of_caption]))
        for of_caption in images
    )


def draw_sheet(images: numpy.ndarray, path: Path) -> None:
    """A row for each caption: uint8 [P,K,H,W,3]."""
    rows = [numpy.concatenate(list(of_caption), axis=1) for of_caption in images]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numpy.concatenate(rows)).save(path)


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    source, folder, numbers = words[0], Path(words[1]), [int(word) for word in words[2:]]
    model = UnifiedPipeline.from_pretrained(source, device="cpu").model
    found = score(model, *numbers, folder / "sheet.png")
    write_text(folder / "measures.json", json.dumps(found, indent=1, allow_nan=False))


if __name__ == "__main__":
    main(sys.argv[1:])
