"""Loss weighting: each element weighs the same, however an optimizer step or a data set is cut.

A loss is a mean over elements (`Batch.elements`): a token to learn in text, a sample in
images. The loss of an optimizer step is, for each objective of batches,

    sum of (elements * mean loss) over its micro-batches and ranks / sum of elements over the same

and the sum of these over the objectives. Two denominators are why gradients cannot be divided after
the backward pass, where those of both losses are one sum: each micro-batch is weighted before it.
So the number of elements must be counted ahead. The loader counts those of this rank
(`data_modules.accumulation`), and one all-reduce for each step and objective adds up, on the
device, the ranks. Nothing is kept from one step to the next, and whatever looks at gradients
before the optimizer does (clipping, norms, guards, a scaler) sees those of the whole step.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from triptych.interfaces import Batch
from triptych.utils.errors import UserError


class Means:
    """Means of a loss and of metrics over the elements of many batches."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, Tensor]] = {}  # objective -> name -> sum, float64 []
        self._elements: dict[str, Tensor] = {}  # objective -> number, float64 []

    def add(self, batch: Batch, loss: Tensor, metrics: dict[str, Tensor]) -> None:
        """Take in the means, scalars, over one batch. Nothing waits for the device."""
        number = _count(batch.elements, loss.device).double()
        sums = self._sums.setdefault(batch.objective, {})
        for name, value in {"loss": loss, **metrics}.items():
            sums[name] = sums.get(name, 0.0) + value.detach() * number
        self._elements[batch.objective] = self._elements.get(batch.objective, 0.0) + number

    def over_all_ranks(self) -> dict[str, Tensor]:
        """The means, float32 scalars by name; "loss" is the sum of those of the objectives.

        All ranks must call, with the same objectives and names.
        """
        means: dict[str, Tensor] = {}
        for objective, sums in self._sums.items():
            total = torch.stack([self._elements[objective], *sums.values()])
            _add_ranks(total)
            # without an element the sums are 0, and so are the means
            loss, *rest = (total[1:] / total[0].clamp(min=1)).float().unbind()
            means["loss"] = means["loss"] + loss if "loss" in means else loss
            means |= dict(zip(list(sums)[1:], rest, strict=True))
        return means


class OptimizerStep:
    """The micro-batches of one optimizer step.

    Args:
        micro_batches: `Trainer.accumulate_grad_batches`.
    """

    def __init__(self, micro_batches: int) -> None:
        self.micro_batches = micro_batches
        self.means = Means()
        """Running means over all micro-batches so far, on this rank."""
        self._elements: dict[
            str, Tensor
        ] = {}  # objective -> of the whole step on all ranks, int64 []

    def weighted(self, batch: Batch, loss: Tensor, metrics: dict[str, Tensor]) -> Tensor:
        """The loss of which to take the gradient of a micro-batch, scalar.

        Lightning divides it by the number of micro-batches (in the last step of an epoch, too,
        which may have fewer), and DDP and FSDP divide gradients by the number of ranks; both are
        multiplied into it. All ranks must call.

        Args:
            loss, metrics: means over `batch.elements`.

        Raises:
            UserError: gradients accumulate, and the loader has not counted ahead.
        """
        self.means.add(batch, loss, metrics)
        if batch.objective not in self._elements:
            number = _count(self._on_this_rank(batch), loss.device)
            _add_ranks(number)
            self._elements[batch.objective] = number
        share = batch.elements / self._elements[batch.objective].clamp(min=1)
        return loss * (share * self.micro_batches * _ranks())

    def _on_this_rank(self, batch: Batch) -> Tensor | int:
        if self.micro_batches == 1:
            return batch.elements
        if batch.step_elements is None:
            raise UserError(
                f"trainer.accumulate_grad_batches is {self.micro_batches}, and the data does not "
                "say how many tokens or samples its batches hold together, so their losses cannot "
                "be weighted; wrap its training loader in "
                "triptych.data_modules.AccumulationLoader, or set it to 1."
            )
        return batch.step_elements


def _count(number: Tensor | int, device: torch.device) -> Tensor:
    """int64 [], a new one; a plain number is filled in there: copying it would be waited for."""
    if isinstance(number, Tensor):
        return number.clone()
    return torch.full((), number, dtype=torch.long, device=device)


def _ranks() -> int:
    started = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if started else 1


def _add_ranks(tensor: Tensor) -> None:
    """Sum over all ranks, in place, on the device; nothing waits on the host of a GPU."""
    if _ranks() > 1:
        distributed.all_reduce(tensor)
