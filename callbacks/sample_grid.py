"""Shows during a fit what the model makes: the same prompts and seeds again and again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor

from triptych.callbacks.ema import EMA
from triptych.callbacks.pictures import inspecting, to_arrays
from triptych.contracts import UserError, unit_to_pixels
from triptych.errors import NotFiniteError
from triptych.pictures import square
from triptych.sheets import above, grid

log = logging.getLogger(__name__)

COLUMNS = 6
DESCRIBE = "describe the picture"  # what the DataModules ask where there is no conversation

Sheet = tuple[np.ndarray, list[str]]  # pictures uint8 [N,H,W,3] and a label for each


class SampleGrid(Callback):
    """Saves samples/step-00000100.png in the run's folder, and shows it in TensorBoard.

    What is on it follows from the stage's losses: pictures for captions (generation), originals
    above reconstructions (decoding), answers about validation pictures (understanding; also as
    step-00000100.txt), or originals above the VAE's round trip above what a linear map reads from
    the encoder's features (encoding). One sheet is made before the first step and one after the
    last. Beside `EMA` each sheet is made twice: with the weights and, as step-00000100-ema.png,
    with their average.

    Args:
        every: steps between sheets.
        number: of pictures.
        prompts: captions to draw; null takes the first validation captions.
        seed: picture i starts from the noise of seed + i.
        scale: how many times pictures are enlarged.
    """

    def __init__(
        self,
        every: int = 100,
        number: int = 12,
        prompts: list[str] | None = None,
        seed: int = 0,
        scale: int = 3,
    ) -> None:
        if every < 1 or number < 1 or scale < 1:
            raise UserError("SampleGrid: every, number and scale must be 1 or more.")
        self.every, self.number, self.prompts = every, number, prompts
        self.seed, self.scale = seed, scale
        self._shown = -1  # the last step that has a sheet

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._show(trainer, module)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every == 0 and trainer.global_step != self._shown:
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
        make = sheet_maker(module)
        try:
            with inspecting(trainer, module):
                pictures, labels = make(self, trainer, module)
        except NotFiniteError as error:  # training may recover; the guard of it is NonFiniteGuard
            log.warning("no sheet at step %d: %s", trainer.global_step, error)
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "samples"  # asks all ranks
        if trainer.is_global_zero:
            sheet = grid(pictures, labels, COLUMNS, self.scale)
            folder.mkdir(parents=True, exist_ok=True)
            name = f"step-{trainer.global_step:08d}{suffix}"
            sheet.save(folder / f"{name}.png")
            if make is answered:
                (folder / f"{name}.txt").write_text("\n\n".join(labels) + "\n")
            to_tensorboard(trainer, sheet, f"samples{suffix}")


def sheet_maker(module: LightningModule) -> Callable[[SampleGrid, Trainer, Any], Sheet]:
    """The kind of sheet that shows what this stage learns."""
    if "generation" in module.losses and not module.preview:
        raise UserError("SampleGrid shows pictures: set --model.preview=true to build the decoder.")
    for name, make in SHEETS.items():
        if name in module.losses:
            return make
    raise UserError(f"SampleGrid has nothing to show for the losses {sorted(module.losses)}.")


def to_tensorboard(trainer: Trainer, sheet: Image.Image, tag: str) -> None:
    """Show the sheet in every TensorBoard log of the run."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(
                tag, np.asarray(sheet), trainer.global_step, dataformats="HWC"
            )


# --- the sheets -----------------------------------------------------------------------------------


def generated(options: SampleGrid, trainer: Trainer, model: Any) -> Sheet:
    """One picture for each prompt."""
    prompts = options.prompts
    if prompts is None:
        validation_folder(trainer)
        prompts = trainer.datamodule.preview_captions(options.number)
    prompts = prompts[: options.number]
    return to_arrays(model.generate(prompts, seeds=seeds(options, len(prompts)))), prompts


def reconstructed(options: SampleGrid, trainer: Trainer, model: Any) -> Sheet:
    """Originals above reconstructions."""
    originals, captions = validation_pictures(trainer, options.number, model.encoder.image_size)
    shown = model.reconstruct(originals, seeds=seeds(options, len(originals)))
    return above(to_arrays(originals), to_arrays(shown)), captions


def answered(options: SampleGrid, trainer: Trainer, model: Any) -> Sheet:
    """Validation pictures with the first question about each, the given and the right answer."""
    size = model.preprocessing().understanding_size
    pictures, captions = validation_pictures(trainer, options.number, size)
    folder = validation_folder(trainer)
    turns = [
        (folder.facts(n).get("conversation") or [(DESCRIBE, caption)])[0]
        for n, caption in enumerate(captions)
    ]
    answers = model.answer(pictures, [question for question, _ in turns])
    labels = [
        f"Q: {question}\nA: {given}\nright: {expected}"
        for (question, expected), given in zip(turns, answers, strict=True)
    ]
    return to_arrays(pictures), labels


def encoded(options: SampleGrid, trainer: Trainer, model: Any) -> Sheet:
    """Originals above the VAE's round trip above pixels by a linear map of the features."""
    originals, captions = validation_pictures(trainer, options.number, model.encoder.image_size)
    pixels = originals.to(model.device)
    features = model.encoder(pixels)
    cell = model.encoder.image_size // features.shape[-1]
    linear = torch.nn.functional.pixel_shuffle(model.encoding.heads.pixels(features), cell)
    round_trip = model.vae.decode(model.vae(pixels))
    rows = originals, round_trip, unit_to_pixels(linear)
    return above(*(to_arrays(row) for row in rows)), captions


# A stage with several losses shows the first of these.
SHEETS = {
    "generation": generated,
    "decoding": reconstructed,
    "understanding": answered,
    "encoding": encoded,
}


def seeds(options: SampleGrid, number: int) -> list[int]:
    """One seed for each picture, the same at every step."""
    return [options.seed + n for n in range(number)]


def validation_folder(trainer: Trainer) -> Any:
    """The DataModule's validation samples."""
    folder = getattr(trainer.datamodule, "val_folder", None)
    if folder is None:
        raise UserError(
            "SampleGrid shows validation samples, but the data is no ShardDataModule; "
            "name captions with `prompts`, or leave the callback out."
        )
    return folder


def validation_pictures(trainer: Trainer, number: int, size: int) -> tuple[Tensor, list[str]]:
    """The first validation pictures, cropped square: uint8 [B,3,size,size], and their captions."""
    folder = validation_folder(trainer)
    samples = [folder[n] for n in range(min(number, len(folder)))]
    pictures = torch.stack([square(sample.picture, size) for sample in samples])
    return pictures, [sample.caption for sample in samples]
