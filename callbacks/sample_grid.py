"""Sample grids during a fit: the same prompts and seeds again and again."""

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
from triptych.interfaces import IMAGE_GENERATION, LANGUAGE_MODELING
from triptych.utils.errors import NotFiniteError, UserError
from triptych.utils.image_grid import labelled_image_grid, stack_rows
from triptych.utils.images import square, to_arrays, unit_to_pixels

log = logging.getLogger(__name__)

COLUMNS = 6

Labelled = tuple[np.ndarray, list[str]]  # images uint8 [N,H,W,3] and a label for each


@dataclass(frozen=True)
class Sheet:
    """One kind of sheet: its contents and its requirements.

    Args:
        loss: the stage's loss that it shows.
        make: (options, model, samples) -> images and labels.
        parts: of the model, see `UnifiedModule.lacks`.
        objective: of the validation samples on it.
        needs: what each of these has, see `data_modules.previews`.
        wanted: `needs` in words.
    """

    loss: str
    make: Callable[[SampleGrid, Any, list[Any]], Labelled]
    parts: tuple[str, ...]
    objective: str
    needs: tuple[str, ...]
    wanted: str


class SampleGrid(OptionalCallback):
    """Saves samples/step-00000100.png in the run's folder, and shows it in TensorBoard.

    The contents follow from the stage's losses: images for captions, or originals above edits
    (generation), originals above reconstructions (decoding), answers about validation images
    (understanding; also as step-00000100.txt), or originals above the VAE's round trip above what a
    linear map reads from the encoder's features (encoding). Disabled if the stage, the model
    or the validation samples have none of these. One sheet is made before the first step and one
    after the last. Beside `EMA` each sheet is made twice: with the weights and, as
    step-00000100-ema.png, with their average.

    Args:
        every_n_steps: steps between sheets.
        num_samples: number of images.
        prompts: captions to draw; null takes the first validation captions.
        seed: image i starts from the noise of seed + i.
        upscale: how many times images are enlarged.
        previews: gives the object that makes a model's images; the command line names
            `triptych.inference.model_inference.inference_of` where the configuration does not.
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        num_samples: int = 12,
        prompts: list[str] | None = None,
        seed: int = 0,
        upscale: int = 3,
        previews: Callable[[Any], Any] | None = None,
    ) -> None:
        if every_n_steps < 1 or num_samples < 1 or upscale < 1:
            raise UserError("SampleGrid: every_n_steps, num_samples and upscale must be 1 or more.")
        self.every_n_steps, self.num_samples, self.prompts = every_n_steps, num_samples, prompts
        self.seed, self.upscale, self.previews = seed, upscale, previews
        self._shown = -1  # the last step that has a sheet
        self._sheet: Sheet | None = None
        self._samples: list[Any] = []  # previews of the data

    def lacks(self, trainer: Trainer, module: LightningModule) -> str | None:
        """Choose the sheet of this stage, and its samples."""
        if self.previews is None:
            raise UserError(
                "SampleGrid has nothing that makes images; give it "
                "previews=triptych.inference.model_inference.inference_of."
            )
        losses = getattr(module, "loss_weights", {})
        sheets = [sheet for sheet in SHEETS if sheet.loss in losses]
        sheets = [sheet for sheet in sheets if sheet.loss == sheets[0].loss]
        if not sheets:
            return f"it has nothing to show for the losses {sorted(losses)}"
        if (missing := missing_parts(module, sheets[0].parts)) is not None:
            return missing
        preview = getattr(trainer.datamodule, "preview", None)
        for self._sheet in sheets:
            if "caption" in self._sheet.needs and self.prompts is not None:
                return None
            if preview is not None:
                self._samples = preview(self._sheet.objective, self.num_samples, *self._sheet.needs)
            if self._samples:
                return None
        wanted = " or ".join(sheet.wanted for sheet in sheets)
        return f"no validation sample has {wanted}"

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
        """Make a sheet with the weights as they are now, and save it under a name with `suffix`."""
        make = self._sheet.make
        try:
            with evaluation_mode(trainer, module):
                images, labels = make(self, module, self._samples)
        except NotFiniteError as error:  # training may recover; the guard of it is NonFiniteGuard
            log.warning("no sheet at step %d: %s", trainer.global_step, error)
            return
        run = of_trainer(trainer)  # asks all ranks
        if trainer.is_global_zero and run is not None:
            folder, sheet = (
                run / "samples",
                labelled_image_grid(images, labels, COLUMNS, self.upscale),
            )
            folder.mkdir(parents=True, exist_ok=True)
            name = f"step-{trainer.global_step:08d}{suffix}"
            sheet.save(folder / f"{name}.png")
            if make is answered:
                (folder / f"{name}.txt").write_text("\n\n".join(labels) + "\n")
            to_tensorboard(trainer, sheet, f"samples{suffix}")


def to_tensorboard(trainer: Trainer, sheet: Image.Image, tag: str) -> None:
    """Show the sheet in every TensorBoard log of the run."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(
                tag, np.asarray(sheet), trainer.global_step, dataformats="HWC"
            )


# --- the sheets -----------------------------------------------------------------------------------


def generated(options: SampleGrid, model: Any, samples: list[Any]) -> Labelled:
    """One image for each prompt."""
    prompts = options.prompts
    if prompts is None:
        prompts = [sample.text for sample in samples]
    prompts = prompts[: options.num_samples]
    return to_arrays(
        options.previews(model).generate(prompts, seeds=seeds(options, len(prompts)))
    ), prompts


def edited(options: SampleGrid, model: Any, samples: list[Any]) -> Labelled:
    """Originals above what instructions make of them."""
    instructions = [sample.text for sample in samples]
    originals = squares(samples, model.image_size)
    shown = options.previews(model).edit(
        originals, instructions, seeds=seeds(options, len(samples))
    )
    return stack_rows(to_arrays(originals), to_arrays(shown)), instructions


def reconstructed(options: SampleGrid, model: Any, samples: list[Any]) -> Labelled:
    """Originals above reconstructions."""
    originals = squares(samples, model.encoder.image_size)
    shown = options.previews(model).reconstruct(originals, seeds=seeds(options, len(originals)))
    return stack_rows(to_arrays(originals), to_arrays(shown)), labels_of(samples)


def answered(options: SampleGrid, model: Any, samples: list[Any]) -> Labelled:
    """Validation images with a question about each, the given and the right answer."""
    images = squares(samples, model.preprocessing().understanding_size)
    answers = options.previews(model).answer(images, [sample.turn[0] for sample in samples])
    labels = [
        f"Q: {sample.turn[0]}\nA: {given}\nright: {sample.turn[1]}"
        for sample, given in zip(samples, answers, strict=True)
    ]
    return to_arrays(images), labels


def encoded(options: SampleGrid, model: Any, samples: list[Any]) -> Labelled:
    """Originals above the VAE's round trip above pixels by a linear map of the features."""
    originals = squares(samples, model.encoder.image_size)
    pixels = originals.to(model.device)
    features = model.encoder(pixels)
    cell = model.encoder.image_size // features.shape[-1]
    linear = torch.nn.functional.pixel_shuffle(model.encoding.heads.pixels(features), cell)
    round_trip = model.vae.decode(model.vae(pixels))
    rows = originals, round_trip, unit_to_pixels(linear)
    return stack_rows(*(to_arrays(row) for row in rows)), labels_of(samples)


_DRAWS = ("understanding", "generation", "decoding")
# A stage with several losses shows the first of these; of one loss the first that the data allows.
SHEETS = (
    Sheet("generation", generated, _DRAWS, IMAGE_GENERATION, ("caption",), "a caption"),
    Sheet("generation", edited, _DRAWS, IMAGE_GENERATION, ("edit",), "an edit"),
    Sheet(
        *("decoding", reconstructed, ("encoder", "decoding"), IMAGE_GENERATION),
        *(("image",), "an image"),
    ),
    Sheet(
        *("understanding", answered, ("understanding",), LANGUAGE_MODELING),
        *(("image", "turn"), "an image with a question or a caption"),
    ),
    Sheet(
        *("encoding", encoded, ("encoder", "vae", "encoding"), IMAGE_GENERATION),
        *(("image",), "an image"),
    ),
)


def seeds(options: SampleGrid, number: int) -> list[int]:
    """One seed for each image, the same at every step."""
    return [options.seed + n for n in range(number)]


def squares(samples: list[Any], size: int) -> Tensor:
    """The samples' images, cropped square: uint8 [B,3,size,size]."""
    return torch.stack([square(sample.image, size) for sample in samples])


def labels_of(samples: list[Any]) -> list[str]:
    """Captions; keys, where there are none."""
    return [sample.text or sample.key for sample in samples]
