"""GenEval (arXiv 2310.11513): presence of the requested objects, in number, colour and place.

The rules are the published ones; the detector and the colour classifier are whatever the user
names, so a score here is never the official number, and says who judged.

    layout     folder layout, prompts and metadata
    detection  object detection
    colours    color classification
    rules      the published rules
    scoring    scores of a folder
"""

from triptych.evaluation.geneval.colours import ClipColours, ColourClassifier
from triptych.evaluation.geneval.detection import Detector, Found, Mask2Former
from triptych.evaluation.geneval.layout import read_prompts, sample_path, write_metadata
from triptych.evaluation.geneval.rules import Rules
from triptych.evaluation.geneval.scoring import score

__all__ = [
    "ClipColours",
    "ColourClassifier",
    "Detector",
    "Found",
    "Mask2Former",
    "Rules",
    "read_prompts",
    "sample_path",
    "score",
    "write_metadata",
]
