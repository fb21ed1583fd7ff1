"""Object detectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from PIL import Image

from triptych.evaluation.judges.hub import load
from triptych.utils.errors import UserError
from triptych.utils.png_metadata import shown_name

OBJECT_NAMES = (Path(__file__).parent / "object_names.txt").read_text().split("\n")[:80]
"""GenEval's names of the 80 COCO classes, in COCO's order."""

Box = tuple[float, float, float, float]


@dataclass
class Found:
    """An object in an image."""

    name: str
    confidence: float
    box: Box
    """Left, top, right, bottom in pixels; right and bottom are the first that are outside."""
    mask: numpy.ndarray | None = None
    """bool [H,W], its pixels."""


class Detector(ABC):
    """Finds objects in images."""

    name: str
    """For reports."""
    classes: frozenset[str]
    """The names of all objects that it knows: what it does not know cannot be judged."""

    @abstractmethod
    def detect(self, image: Image.Image) -> list[Found]:
        """The objects in an RGB image, the doubtful ones too; the rules have thresholds."""


class Mask2Former(Detector):
    """A Mask2Former of transformers, trained on the instances of COCO.

    The official scorer takes mmdetection's, of the same architecture and other weights
    (mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco).

    Args:
        source: a folder; or a name on the hub, which is downloaded if it is not there, such as
            facebook/mask2former-swin-small-coco-instance.
        device: device to compute on.
        floor: lowest confidence of returned objects: each costs a mask of the
            image's size.

    Raises:
        UserError: the model does not exist, or does not know COCO's 80 classes.
    """

    def __init__(self, source: str | Path, device: str = "cpu", floor: float = 0.1) -> None:
        self.processor = load("AutoImageProcessor", source)
        self.model = load("Mask2FormerForUniversalSegmentation", source).eval().to(device)
        self.name, self.floor = f"Mask2Former {shown_name(source)} (transformers)", floor
        self.classes = frozenset(OBJECT_NAMES)
        _check_order(self.model.config.id2label, source)

    @torch.no_grad()
    def detect(self, image: Image.Image) -> list[Found]:
        inputs = self.processor(images=image, return_tensors="pt").to(self.model.device)
        result = self.processor.post_process_instance_segmentation(
            self.model(**inputs),
            threshold=self.floor,
            target_sizes=[image.size[::-1]],
            return_binary_maps=True,
        )[0]
        segments = result["segments_info"]
        masks = result["segmentation"].bool().cpu().numpy() if segments else []
        return [
            Found(OBJECT_NAMES[each["label_id"]], each["score"], box_of(mask), mask)
            for each, mask in zip(segments, masks, strict=True)
        ]


def box_of(mask: numpy.ndarray) -> Box:
    """The smallest box around the pixels of a mask that is not empty."""
    rows, columns = (numpy.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def _check_order(labels: dict[int, str], source: str | Path) -> None:
    """Checkpoints name some classes differently (motorbike, sofa), but keep COCO's order."""
    displaced = [
        name
        for index, name in labels.items()
        if name in OBJECT_NAMES and OBJECT_NAMES.index(name) != index
    ]
    if len(labels) != len(OBJECT_NAMES) or displaced:
        raise UserError(
            f"the detector {source} does not know COCO's 80 classes in their order; give one that "
            "was trained on COCO instances."
        )
