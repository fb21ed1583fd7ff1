"""Small models that learn from pairs of images, and their data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
from builders import needed, unified
from PIL import Image

from triptych.checkpoints import WeightFiles
from triptych.data_modules import ShardDataModule
from triptych.interfaces import TEXT_TO_PREFERENCE
from triptych.modules import PreferenceTuningModule, UnifiedModule
from triptych.serving.webui.pairs import pairs_of, write_pairs
from triptych.shapes_world.captions import TASKS, Request, sample
from triptych.shapes_world.world import Scene, draw
from triptych.training.optimizer import Optimization


class Drawer:
    """In a pipeline's place: draws the shapes of a caption, "right" on black, "wrong" on white."""

    def __init__(self, name: str, captions: list[str]) -> None:
        self.name, self.captions, self.calls = name, captions, 0

    def __call__(self, prompt: str, *, seed: int, **settings: Any) -> Any:
        self.calls += 1
        scene = _drawn(self.captions.index(prompt))[2]
        scene = replace(scene, background={"right": "black", "wrong": "white"}[self.name])
        self.images = [Image.fromarray(draw(scene))]
        return self


def _drawn(number: int) -> tuple[str, Request, Scene]:
    return sample(numpy.random.default_rng([9, number]), TASKS[number % len(TASKS)])


def captions(number: int) -> list[str]:
    """Captions that a `Drawer` draws."""
    return [_drawn(n)[0] for n in range(number)]


def votes(prompts: list[str], chosen: str = "right", rejected: str = "wrong") -> list[dict]:
    """A vote on each prompt, as the page records it, for either side in turn."""
    found = []
    for number, prompt in enumerate(prompts):
        sides = ("a", "b") if number % 2 else ("b", "a")
        vote = {"trial": f"t{number}", "prompt": prompt, "seed": number, "criterion": "overall"}
        vote |= {"vote": sides[0], "left": "a", "viewer": "v"}
        made = (
            {"model": name, "num_inference_steps": 2, "version": "1"} for name in (chosen, rejected)
        )
        found.append(vote | dict(zip(sides, made, strict=True)))
    return found


def write_preferences(folder: Path, number: int = 12) -> Path:
    """Shards of pairs whose preferred image has a black background, and the other a white one."""
    prompts = captions(number)
    pairs = pairs_of(votes(prompts), "overall")
    return write_pairs(pairs, folder, lambda name: Drawer(name, prompts))


def preference_model(weights: WeightFiles, lr: float = 2e-4, **settings: Any) -> UnifiedModule:
    """`unified` in the stage preferences."""
    return unified(
        "preferences",
        weights=needed(weights, "stage2"),
        loss_weights={"preference_tuning": 1.0},
        trainable=["generation"],
        preference_tuning=PreferenceTuningModule(**settings),
        optimization=Optimization(lr=lr, warmup_ratio=0.0, lr_scheduler="constant"),
    )


def preferences(folder: Path, **settings: Any) -> ShardDataModule:
    """The pairs of a folder, four a batch."""
    options = {"tasks": [TEXT_TO_PREFERENCE], "batch_size": 4, "length_bucket_batches": 1}
    return ShardDataModule(str(folder), num_val_samples=4, **{**options, **settings})
