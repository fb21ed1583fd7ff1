"""Request of a plan: model, batch, precision, strategy and card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.cli.recipes import recipe_of
from triptych.inference.loading import describe_stage
from triptych.interfaces import BatchContents
from triptych.interfaces.batch import IMAGE_TO_IMAGE
from triptych.modules import UnifiedModule
from triptych.training.gpu_specs import GPU
from triptych.training.memory.replay import Strategy
from triptych.utils.documents import read_yaml
from triptych.utils.errors import ConfigurationError
from triptych.utils.paths import conf_files, presets

STRATEGIES: dict[str, Strategy] = {
    "single": "single",
    "ddp": "ddp",
    "fsdp2": "shard",
    "fsdp1": "shard",
}
"""Strategy of a file of conf/trainer; FSDP1 is counted as FSDP2."""


@dataclass
class PlanRequest:
    """A training run to plan.

    Attributes:
        model: the stage's model, not built.
        hardware: name of a file of conf/trainer.
        devices: number of GPUs of the run.
        batch_size: samples of one GPU and micro-batch.
        precision: Lightning's `trainer.precision`.
        ema: whether a float32 average of the weights is kept.
        contents: contents of the run's batches; the table has both kinds of features.
        edits: whether prompts of images to generate show images.
        needed: parts that callbacks compute with, see `unused_parts`.
        stories: share of the samples that are stories.
    """

    model: UnifiedModule
    preset: str
    stage: str
    hardware: str
    devices: int
    gpu: GPU
    batch_size: int
    steps: int
    precision: str
    ema: bool
    contents: BatchContents
    edits: bool
    needed: frozenset[str] = frozenset()
    stories: float = 0.0

    def __post_init__(self) -> None:
        if self.stories and self.model.loss_weights.keys() <= {"decoding", "encoding"}:
            raise ConfigurationError(
                f"the stage {self.stage!r} reads no conversations; leave out --stories-ratio."
            )

    @property
    def command(self) -> str:
        """The flags of `triptych fit` for this run."""
        return f"--preset {self.preset} --stage {self.stage} --hardware {self.hardware}"


def read_request(
    preset: str,
    stage: str,
    hardware: str,
    *,
    devices: int,
    gpu: GPU,
    batch_size: int | None = None,
    stories: float | None = None,
    overrides: Sequence[str] = (),
) -> PlanRequest:
    """Read the files that `triptych fit` would read; features are cached where they can be.

    Args:
        batch_size: samples of one GPU in a step; None is that of the recipe.
        stories: share of the samples that are stories; None is that of the stage's own data.
        overrides: flags of the model.

    Raises:
        ConfigurationError: the preset, stage or hardware is unknown, or there is no recipe.
    """
    stages, trainers = conf_files("stages/*.yaml"), conf_files("trainer/*.yaml")
    known = {"preset": presets(), "stage": stages, "hardware": trainers}
    for kind, name in (("preset", preset), ("stage", stage), ("hardware", hardware)):
        if name not in known[kind]:
            choices = ", ".join(sorted(known[kind]))
            raise ConfigurationError(f"the {kind} {name!r} is unknown; choose one of {choices}.")
    if hardware == "single" and devices > 1:
        raise ConfigurationError("--hardware single is for --devices 1; choose ddp or fsdp2.")
    recipe = recipe_of(preset, stage)
    files = [presets()[preset], stages[stage], recipe, trainers[hardware]]
    trainer = _trainer(conf_files("base.yaml")["base"], *files)
    model = describe_stage(files, overrides)
    if "encoding" in model.loss_weights and STRATEGIES.get(hardware) == "shard":
        raise ConfigurationError(
            f"the stage {stage!r} trains the encoder and the VAE, which cannot be sharded; choose "
            "--hardware ddp."
        )
    if not model.steps_are_alike:
        raise ConfigurationError(
            f"the stage {stage!r} computes with other weights too than those that learn, which "
            "plan does not count; plan stage2, whose steps learn alike, and time a short run."
        )
    tasks = ((read_yaml(stages[stage]).get("data") or {}).get("init_args") or {}).get("tasks", [])
    edits = IMAGE_TO_IMAGE in tasks
    data = read_yaml(recipe).get("data") or {}
    if stories is None:
        own = conf_files(f"data/{preset}/{stage}.yaml").get(stage)
        settings = (read_yaml(own).get("data") or {}) if own else {}
        stories = (settings.get("init_args") or {}).get("stories_ratio", 0.0)
    callbacks = [*(trainer.get("callbacks") or []), *(trainer.get("callbacks+") or [])]
    return PlanRequest(
        model,
        preset,
        stage,
        hardware,
        devices,
        gpu,
        batch_size or (data.get("init_args") or {}).get("batch_size", 1),
        trainer["max_steps"],
        str(trainer.get("precision", "32-true")),
        any(str(each.get("class_path", "")).endswith(".EMA") for each in callbacks),
        BatchContents(
            True,
            "understanding" in model.loss_weights or edits or bool(stories),
            has_sources=edits or bool(stories),
        ),
        edits,
        stories=stories,
    )


def _trainer(*files: Path) -> dict[str, Any]:
    """Merge the `trainer` sections of some files; later ones win."""
    merged: dict[str, Any] = {}
    for file in files:
        merged |= read_yaml(file).get("trainer") or {}
    return merged
