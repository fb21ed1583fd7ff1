"""SSD MobileNet v2 of TensorFlow's model zoo, trained on COCO, by OpenCV."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy
from PIL import Image

from triptych.evaluation.geneval.detection import OBJECT_NAMES, DetectedObject, Detector

SIZE = 300  # side of its input in pixels
# COCO's ids go from 1 to 90; these have no class among the 80.
UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
USED_IDS = [number for number in range(1, 91) if number not in UNUSED_IDS]


class SsdMobileNet(Detector):
    """Boxes without masks.

    Args:
        parts: folder of parts.
    """

    name = "SSD MobileNet v2 COCO (OpenCV)"
    classes = frozenset(OBJECT_NAMES)

    def __init__(self, parts: Path) -> None:
        folder = parts / "ssd_mobilenet_v2"
        files = (folder / "frozen_inference_graph.pb", folder / "graph.pbtxt")
        self.network = cv2.dnn.readNetFromTensorflow(*map(str, files))

    def detect(self, image: Image.Image) -> list[DetectedObject]:
        pixels = numpy.asarray(image)
        self.network.setInput(cv2.dnn.blobFromImage(pixels, size=(SIZE, SIZE)))
        detected = []
        for _, number, confidence, *box in self.network.forward()[0, 0].tolist():
            if int(number) in USED_IDS:
                sides = (image.width, image.height) * 2
                box = tuple(edge * side for edge, side in zip(box, sides, strict=True))
                name = OBJECT_NAMES[USED_IDS.index(int(number))]
                detected.append(DetectedObject(name, confidence, box))
        return detected
