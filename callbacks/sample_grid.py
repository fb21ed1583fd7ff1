"""Image grids during a fit, with fixed prompts and seeds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor

from triptych.callbacks._evaluation_mode import evaluation_mode
from triptych.callbacks._optional import OptionalCallback, missing_parts
from triptych.callbacks.ema import EMA
from triptych.checkpoints.run_folder import of_trainer
from triptych.interfaces import (
    IMAGE_GENERATION,
    LANGUAGE_MODELING,
    PREFERRED_GENERATION,
    REWARDED_GENERATION,
)
from triptych.utils.errors import NotFiniteError, UserError
from triptych.utils.image_grid import labelled_image_grid, stack_rows
from triptych.utils.images import square, to_arrays, unit_to_pixels

log = logging.getLogger(__name__)

COLUMNS = 6

LabelledImages = tuple[np.ndarray, list[str]]  # images uint8 [N,H,W,3], and a label for each


@dataclass(frozen=True)
class GridKind:
    """A kind of image grid: its contents and its requirements.

    Args:
        loss: loss of the stage that the grid illustrates.
        make: function (options, model, samples) -> images and labels.
        parts: required parts of the model, see `UnifiedModule.lacks`.
        objective: objective of the validation samples.
        needs: required fields of these samples, see `data_modules.previews`.
        requirement: description of `needs`, for messages.
    """

    loss: str
    make: Callable[[SampleGrid, Any, list[Any]], LabelledImages]
    parts: tuple[str, ...]
    objective: str
    needs: tuple[str, ...]
    requirement: str


class SampleGrid(OptionalCallback):
    """Saves samples/step-00000100.png in the run's folder, and shows it in TensorBoard.

    The contents depend on the stage's losses: images of captions, or originals above edits
    (generation), originals above reconstructions (decoding), answers about validation images
    (understanding; also as step-00000100.txt), or originals above VAE reconstructions above a
    linear readout of the encoder's features (encoding). Disabled if the stage, the model or the
    validation samples have none of these. Also saved before the first step and after the last one.
    With the callback `EMA`, each grid is made twice, with the weights and, as
    step-00000100-ema.png, with their average.

    Args:
        every_n_steps: number of steps between grids.
        num_samples: number of images.
        prompts: captions to generate; null takes the first validation captions.
        seed: seed of the first image, each next one has one more.
        upscale: integer factor by which images are enlarged.
        previews: function from a model to an object that generates images; by default, the command
            line sets `triptych.inference.model_inference.inference_of`.
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        num_samples: int = 12,
        *,
        prompts: list[str] | None = None,
        seed: int = 0,
        upscale: int = 3,
        previews: Callable[[Any], Any] | None = None,
    ) -> None:
        if every_n_steps < 1 or num_samples < 1 or upscale < 1:
            raise UserError("SampleGrid: every_n_steps, num_samples and upscale must be 1 or more.")
        self.every_n_steps, self.num_samples, self.prompts = every_n_steps, num_samples, prompts
        self.seed, self.upscale, self.previews = seed, upscale, previews
        self._shown = -1  # last step with a grid
        self._kind: GridKind | None = None
        self._samples: list[Any] = []  # previews of the data

    @property
    def needed_parts(self) -> tuple[str, ...]:
        """Parts of the kind of grid that `lacks` chose."""
        return () if self._kind is None else self._kind.parts

    def lacks(self, trainer: Trainer, module: LightningModule) -> str | None:
        """Choose the kind of grid of this stage, and its samples."""
        if self.previews is None:
            raise UserError(
                "SampleGrid has nothing that makes images; give it "
                "previews=triptych.inference.model_inference.inference_of."
            )
        losses = getattr(module, "loss_weights", {})
        kinds = [kind for kind in GRID_KINDS if kind.loss in losses]
        kinds = [kind for kind in kinds if kind.loss == kinds[0].loss]
        if not kinds:
            return f"it has nothing to show for the losses {sorted(losses)}"
        if (missing := missing_parts(module, kinds[0].parts)) is not None:
            return missing
        preview = getattr(trainer.datamodule, "preview", None)
        for self._kind in kinds:
            if "caption" in self._kind.needs and self.prompts is not None:
                return None
            if preview is not None:
                self._samples = preview(self._kind.objective, self.num_samples, *self._kind.needs)
            if self._samples:
                return None
        requirements = " or ".join(kind.requirement for kind in kinds)
        return f"no validation sample has {requirements}"

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._show(trainer, module)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step != self._shown:
            self._show(trainer, module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step != self._shown:
            self._show(trainer, module)

    def _show(self, trainer: Trainer, module: LightningModule) -> None:
        self._shown = trainer.global_step
        self._save(trainer, module, "")
        for callback in trainer.callbacks:
            if isinstance(callback, EMA):
                with callback.swapped(module):
                    self._save(trainer, module, "-ema")

    def _save(self, trainer: Trainer, module: LightningModule, suffix: str) -> None:
        """Save a grid made with the current weights; `suffix` is part of its name."""
        make = self._kind.make
        try:
            with evaluation_mode(trainer, module):
                images, labels = make(self, module, self._samples)
        except NotFiniteError as error:  # training may recover; NonFiniteGuard checks it
            log.warning("no grid at step %d: %s", trainer.global_step, error)
            return
        run = of_trainer(trainer)  # collective
        if trainer.is_global_zero and run is not None:
            folder, image = (
                run / "samples",
                labelled_image_grid(images, labels, COLUMNS, self.upscale),
            )
            folder.mkdir(parents=True, exist_ok=True)
            name = f"step-{trainer.global_step:08d}{suffix}"
            image.save(folder / f"{name}.png")
            if make is answered:
                (folder / f"{name}.txt").write_text("\n\n".join(labels) + "\n")
            to_tensorboard(trainer, image, f"samples{suffix}")


def to_tensorboard(trainer: Trainer, image: Image.Image, tag: str) -> None:
    """Add the grid to every TensorBoard log of the run."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(
                tag, np.asarray(image), trainer.global_step, dataformats="HWC"
            )


# --- kinds of grids -------------------------------------------------------------------------------


def generated(options: SampleGrid, model: Any, samples: list[Any]) -> LabelledImages:
    """One image for each prompt."""
    prompts = options.prompts
    if prompts is None:
        prompts = [sample.text for sample in samples]
    prompts = prompts[: options.num_samples]
    return to_arrays(
        options.previews(model).generate(prompts, seeds=seeds(options, len(prompts)))
    ), prompts


def edited(options: SampleGrid, model: Any, samples: list[Any]) -> LabelledImages:
    """Originals above their edits."""
    instructions = [sample.text for sample in samples]
    originals = squares(samples, model.image_size)
    shown = options.previews(model).edit(
        originals, instructions, seeds=seeds(options, len(samples))
    )
    return stack_rows(to_arrays(originals), to_arrays(shown)), instructions


def reconstructed(options: SampleGrid, model: Any, samples: list[Any]) -> LabelledImages:
    """Originals above reconstructions."""
    originals = squares(samples, model.encoder.image_size)
    shown = options.previews(model).reconstruct(originals, seeds=seeds(options, len(originals)))
    return stack_rows(to_arrays(originals), to_arrays(shown)), labels_of(samples)


def answered(options: SampleGrid, model: Any, samples: list[Any]) -> LabelledImages:
    """Validation images with a question about each, and the model's and the correct answer."""
    images = squares(samples, model.preprocessing().understanding_size)
    answers = options.previews(model).answer(images, [sample.turn[0] for sample in samples])
    labels = [
        f"Q: {sample.turn[0]}\nA: {given}\nright: {sample.turn[1]}"
        for sample, given in zip(samples, answers, strict=True)
    ]
    return to_arrays(images), labels


def encoded(options: SampleGrid, model: Any, samples: list[Any]) -> LabelledImages:
    """Originals above VAE reconstructions above a linear map of the features to pixels."""
    originals = squares(samples, model.encoder.image_size)
    pixels = originals.to(model.device)
    features = model.encoder(pixels)
    cell = model.encoder.image_size // features.shape[-1]
    linear = torch.nn.functional.pixel_shuffle(model.encoding.heads.pixels(features), cell)
    round_trip = model.vae.decode(model.vae(pixels))
    rows = originals, round_trip, unit_to_pixels(linear)
    return stack_rows(*(to_arrays(row) for row in rows)), labels_of(samples)


_GENERATES = ("language_model", "generation", "decoding")
_EDITS = (*_GENERATES, "vision_tower")
# the first loss of a stage is illustrated, by its first kind of grid that the data allows
GRID_KINDS = (
    GridKind("generation", generated, _GENERATES, IMAGE_GENERATION, ("caption",), "a caption"),
    GridKind(
        *("reward_tuning", generated, _GENERATES, REWARDED_GENERATION),
        *(("caption",), "a caption"),
    ),
    GridKind(
        *("preference_tuning", generated, _GENERATES, PREFERRED_GENERATION),
        *(("caption",), "a caption"),
    ),
    GridKind("generation", edited, _EDITS, IMAGE_GENERATION, ("edit",), "an edit"),
    GridKind(
        *("decoding", reconstructed, ("encoder", "decoding"), IMAGE_GENERATION),
        *(("image",), "an image"),
    ),
    GridKind(
        *("understanding", answered, ("understanding",), LANGUAGE_MODELING),
        *(("image", "turn"), "an image with a question or a caption"),
    ),
    GridKind(
        *("encoding", encoded, ("encoder", "vae", "encoding"), IMAGE_GENERATION),
        *(("image",), "an image"),
    ),
)


def seeds(options: SampleGrid, number: int) -> list[int]:
    """One seed per image, equal at every step."""
    return [options.seed + n for n in range(number)]


def squares(samples: list[Any], size: int) -> Tensor:
    """Square crops of the samples' images, uint8 [B,3,size,size]."""
    return torch.stack([square(sample.image, size) for sample in samples])


def labels_of(samples: list[Any]) -> list[str]:
    """Captions, or keys if there are none."""
    return [sample.text or sample.key for sample in samples]
