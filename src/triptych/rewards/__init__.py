"""Rewards: images and what they were made for to scores that a generator learns from.

shapes      the exact checker of the shapes world
clip_score  CLIP score, and CLIP models tuned on people's choices
geneval     GenEval's checks by a detector
judge       a vision-language model that is asked about each image
text        text in images, by optical character recognition
ensemble    several rewards as one
"""

from triptych.rewards.clip_score import ClipScore, PreferenceScore
from triptych.rewards.ensemble import RewardEnsemble
from triptych.rewards.geneval import GenEvalReward
from triptych.rewards.judge import JudgeReward
from triptych.rewards.shapes import ShapesChecker
from triptych.rewards.text import TextReward

__all__ = [
    "ClipScore",
    "GenEvalReward",
    "JudgeReward",
    "PreferenceScore",
    "RewardEnsemble",
    "ShapesChecker",
    "TextReward",
]
