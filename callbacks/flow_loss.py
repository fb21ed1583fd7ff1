"""Validation flow-matching loss at fixed noise levels."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer

from triptych.callbacks._evaluation_mode import evaluation_mode
from triptych.callbacks._optional import OptionalCallback
from triptych.interfaces import IMAGE_GENERATION, batches_in
from triptych.utils.errors import UserError


class FlowLossByNoise(OptionalCallback):
    """Logs the flow-matching loss at fixed noise levels in validation: val/flow/t=0.1 and so on.

    t = 1 is pure noise. The noise depends only on the sample number, so that all validations are
    comparable. A level costs about as much as the DiT in a validation step. Disabled in a stage
    without a generation loss.

    Args:
        times: noise levels in (0,1].
        batches: maximum number of batches of a validation; the first ones are taken, null takes
            all.
    """

    serves = ("fit", "validate")

    def __init__(
        self, times: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9), batches: int | None = None
    ) -> None:
        if not times or not all(0 < t <= 1 for t in times):
            raise UserError(f"FlowLossByNoise: times are numbers in (0,1], not {list(times)}.")
        if batches is not None and batches < 1:
            raise UserError(f"FlowLossByNoise: batches must be 1 or more, or null, not {batches}.")
        self.times, self.batches = list(times), batches

    def lacks(self, trainer: Trainer, module: LightningModule) -> str | None:
        learnt = getattr(module, "loss_weights", {"generation": 1.0})  # default: one panel
        if not hasattr(module, "loss_at_timesteps") or "generation" not in learnt:
            return "the stage has no generation loss"
        return None

    def on_validation_batch_end(  # noqa: PLR0917 Lightning's hook
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.batches is not None and batch_idx >= self.batches:
            return
        for each in batches_in(batch):
            if each.objective != IMAGE_GENERATION:
                continue
            with evaluation_mode(trainer, module):
                losses = module.loss_at_timesteps(each, self.times)
            module.log_dict(
                {f"val/flow/t={t:g}": loss for t, loss in zip(self.times, losses, strict=True)},
                on_step=False,
                on_epoch=True,
                sync_dist=True,
                batch_size=len(each),
            )
