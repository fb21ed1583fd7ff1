"""Rewards: images and what they were made for to scores that a generator learns from.

shapes      the exact checker of the shapes world
clip_score  CLIP score, and CLIP models tuned on people's choices
geneval     GenEval's checks by a detector
judge       a vision-language model that is asked about each image
ensemble    several rewards as one
"""

from triptych.rewards.clip_score import ClipScore, PreferenceScore
from triptych.rewards.ensemble import RewardEnsemble
from triptych.rewards.geneval import GenEvalReward
from triptych.rewards.judge import JudgeReward
from triptych.rewards.shapes import ShapesChecker

__all__ = [
    "ClipScore",
    "GenEvalReward",
    "JudgeReward",
    "PreferenceScore",
    "RewardEnsemble",
    "ShapesChecker",
]
