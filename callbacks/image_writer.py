"""Image files of `triptych predict`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from triptych.checkpoints.run_folder import of_trainer
from triptych.utils.images import to_images


class WriteImages(BasePredictionWriter):
    """Writes KEY.png to a folder for every sample.

    Args:
        folder: output folder; null is predictions/ in the run's folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        super().__init__("batch")
        self.folder = folder

    def write_on_batch_end(  # noqa: PLR0917 Lightning's hook
        self,
        trainer: Trainer,
        module: LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        run = of_trainer(trainer)
        if self.folder is None and run is None:
            return
        folder = Path(self.folder) if self.folder is not None else run / "predictions"
        folder.mkdir(parents=True, exist_ok=True)
        for key, image in zip(prediction["keys"], to_images(prediction["images"]), strict=True):
            # keys come from untrusted shards: the path must stay inside the folder
            name = re.sub(r"[^\w.-]", "_", key).lstrip(".") or "_"
            image.save(folder / f"{name}.png")
