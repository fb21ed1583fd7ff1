"""WISE (arXiv 2503.07265): images of prompts whose meaning requires world knowledge.

Two protocols with incomparable scores: the legacy one of the paper, and the verified one. The
prompts and the published instructions to the judge have no licence; the user downloads them.

    layout     folder layout and prompts
    protocols  both published protocols: judge prompt, parsing, weights
    scoring    scores of a folder
"""

from triptych.evaluation.wise.layout import image_path, read_prompts
from triptych.evaluation.wise.protocols import LEGACY, PROTOCOLS, VERIFIED, ScoringProtocol
from triptych.evaluation.wise.scoring import score

__all__ = [
    "LEGACY",
    "PROTOCOLS",
    "VERIFIED",
    "ScoringProtocol",
    "image_path",
    "read_prompts",
    "score",
]
