"""GenEval's checks as a reward: objects, counts, colours and positions, by a detector."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from triptych.evaluation.geneval.colours import ClipColours, ColourClassifier
from triptych.evaluation.geneval.detection import Detector, Mask2Former
from triptych.evaluation.geneval.rules import OFFICIAL
from triptych.evaluation.geneval.scoring import judge
from triptych.interfaces import Reward, RewardSample
from triptych.utils.errors import UserError
from triptych.utils.images import to_images


class GenEvalReward(Reward):
    """1 for an image that meets all requirements of a prompt in GenEval's format, else 0.

    Prompts are JSON lines with "prompt", "tag" and "include", as of
    evaluation/geneval/evaluation_metadata.jsonl; train on prompts of your own, not on these.

    Args:
        detector: folder or hub id of a Mask2Former trained on COCO's instances.
        colours: folder or hub id of a CLIP model, which names colours.
        device: device to compute on.
    """

    name = "geneval"

    def __init__(self, detector: str, colours: str, device: str = "cpu") -> None:
        self.sources, self.device = (detector, colours), device

    @cached_property
    def judges(self) -> tuple[Detector, ColourClassifier]:
        """Detector and colour classifier, loaded when they are first used."""
        detector, colours = self.sources
        return Mask2Former(detector, self.device), ClipColours(colours, self.device)

    def __call__(self, images: Tensor, samples: Sequence[RewardSample]) -> Tensor:
        for each in samples:
            if not {"tag", "include"} <= each.facts.keys():
                raise UserError(
                    f"the prompt {each.prompt[:60]!r} does not say what GenEval checks; give a "
                    'file of JSON lines with "prompt", "tag" and "include".'
                )
        pairs = zip(to_images(images), samples, strict=True)
        right = [judge(image, dict(one.facts), *self.judges, OFFICIAL)[0] for image, one in pairs]
        return torch.tensor(right, dtype=torch.float32)
