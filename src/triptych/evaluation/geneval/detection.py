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
class DetectedObject:
    """An object in an image."""

    name: str
    confidence: float
    box: Box
    """Left, top, right, bottom in pixels; right and bottom are exclusive."""
    mask: numpy.ndarray | None = None
    """Pixels of the object, bool [H,W]."""


class Detector(ABC):
    """Object detector."""

    name: str
    """Name in reports."""
    classes: frozenset[str]
    """Names of all object classes; prompts with other classes cannot be scored."""

    @abstractmethod
    def detect(self, image: Image.Image) -> list[DetectedObject]:
        """Detect objects in an RGB image, without a threshold: the rules have thresholds."""


class Mask2Former(Detector):
    """Mask2Former of transformers, trained on the instances of COCO.

    The official scorer uses mmdetection's, of the same architecture with other weights
    (mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco).

    Args:
        source: folder or hub id of the model, such as
            facebook/mask2former-swin-small-coco-instance.
        device: device to compute on.
        floor: lowest confidence of returned objects; each one takes a mask of the image's size.

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
    def detect(self, image: Image.Image) -> list[DetectedObject]:
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
            DetectedObject(OBJECT_NAMES[each["label_id"]], each["score"], box_of(mask), mask)
            for each, mask in zip(segments, masks, strict=True)
        ]


def box_of(mask: numpy.ndarray) -> Box:
    """Bounding box of a non-empty mask."""
    rows, columns = (numpy.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def _check_order(labels: dict[int, str], source: str | Path) -> None:
    """Check for COCO's class order; checkpoints name some classes differently (motorbike, sofa)."""
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
