"""GenEval (arXiv 2310.11513): presence of the requested objects, with number, colour and position.

The rules are the published ones. The user chooses the detector and the colour classifier, so a
score is never the official number, and its report names both models.

    layout     folder layout, prompts and metadata
    detection  object detection
    colours    colour classification
    rules      the published rules
    scoring    scores of a folder
"""

from triptych.evaluation.geneval.colours import ClipColours, ColourClassifier
from triptych.evaluation.geneval.detection import DetectedObject, Detector, Mask2Former
from triptych.evaluation.geneval.layout import read_prompts, sample_path, write_metadata
from triptych.evaluation.geneval.rules import Rules
from triptych.evaluation.geneval.scoring import score

__all__ = [
    "ClipColours",
    "ColourClassifier",
    "DetectedObject",
    "Detector",
    "Mask2Former",
    "Rules",
    "read_prompts",
    "sample_path",
    "score",
    "write_metadata",
]
