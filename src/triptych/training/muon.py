"""Muon for the matrices of repeated blocks, AdamW for everything else, as one optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from triptych.utils.errors import UserError


def block_matrices(module: nn.Module) -> set[str]:
    """Names of the matrices of repeated blocks: 2D parameters inside of an nn.ModuleList.

    Embeddings, heads, norms, biases and convolutions are none: Muon's update is for linear maps
    between hidden states (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).
    """
    lists = (m for m in module.modules() if isinstance(m, nn.ModuleList))
    inside = {id(p) for each in lists for p in each.parameters() if p.ndim == 2}
    return {name for name, p in module.named_parameters() if id(p) in inside}


class Muon(getattr(torch.optim, "Muon", torch.optim.Optimizer)):
    """torch.optim.Muon, in float32 on a CPU, and shared by ranks that have the same gradients.

    torch's own orthogonalizes in bfloat16 on any device. A processor without such arithmetic
    emulates it: with AVX2 alone it takes 25 times as long as in float32, and a step of the tiny
    preset nine seconds in place of one.
    """

    ranks: ProcessGroup | None = None
    """Ranks with the same parameters and gradients, each of which then orthogonalizes its share of
    the matrices."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            lr = float(group["lr"])
            for parameter, update in self._updates(group):
                parameter.mul_(1 - lr * group["weight_decay"])
                # as large as an update of AdamW (Liu et al. 2025, arXiv 2502.16982, section 2.2)
                parameter.add_(update, alpha=-lr * 0.2 * math.sqrt(max(parameter.shape)))

    def _updates(self, group: dict[str, Any]) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Parameters with their orthogonalized updates, which are a function of the gradients."""
        moved = [parameter for parameter in group["params"] if parameter.grad is not None]
        if self.ranks is None:
            for parameter in moved:
                yield parameter, orthogonalized(self._with_momentum(parameter, group), group)
            return
        own = self.ranks.rank()
        for some in batches_of_one_shape(moved, self.ranks.size()):
            updates = [self._with_momentum(parameter, group) for parameter in some]
            # a rank without a matrix takes part with one that is not used
            update = orthogonalized(updates[min(own, len(some) - 1)], group)
            gathered = [torch.empty_like(update) for _ in range(self.ranks.size())]
            torch.distributed.all_gather(gathered, update.contiguous(), group=self.ranks)
            yield from zip(some, gathered[: len(some)], strict=True)

    def _with_momentum(self, parameter: nn.Parameter, group: dict[str, Any]) -> Tensor:
        """Nesterov's update; adds the gradient to the average of gradients."""
        state, momentum = self.state[parameter], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        average = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(average, momentum)


def batches_of_one_shape(matrices: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Lists of at most `size` matrices of one shape and dtype."""
    by_shape: dict[Any, list[Tensor]] = {}
    for matrix in matrices:
        by_shape.setdefault((matrix.shape, matrix.dtype), []).append(matrix)
    for alike in by_shape.values():
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def orthogonalized(update: Tensor, group: Mapping[str, Any]) -> Tensor:
    """`update` [M,N] with its singular values brought near 1 by Newton-Schulz iterations.

    They are of odd polynomials of fifth degree, with the coefficients (a, b, c) and the number of
    steps of a parameter group (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).
    """
    a, b, c = group["ns_coefficients"]
    x = update.to(torch.float32 if update.device.type == "cpu" else torch.bfloat16)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon and AdamW over disjoint parameter groups.

    torch's Muon takes matrices only, and Lightning steps one optimizer: the two share this one's
    groups and state, so that schedules, checkpoints and gradient clipping see an ordinary
    optimizer. Muon's updates are scaled to the size of AdamW's: one learning rate serves both.

    A bad step is skipped as in torch's fused optimizers: where `found_inf` is 1, on the device,
    weights and state stay bit-identical. Muon's kernels have no such switch: its matrices are kept
    for the length of a step.

    Args:
        groups: parameter groups, with "muon" True in those of Muon.
        lr: default learning rate.
        betas, eps: settings of AdamW.

    Raises:
        UserError: this torch has no Muon.
    """

    _step_supports_amp_scaling = True
    """Read by torch's GradScaler and by `NonFiniteGuard`, which then set `found_inf`."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise UserError(
                f"optimizer is muon, and torch {torch.__version__} has none; install torch 2.9 or "
                "newer, or set --model.optimization.optimizer=null for AdamW."
            )
        matrices, others = [], []
        for group in groups:
            (matrices if group["muon"] else others).append(group)
        inner: list[torch.optim.Optimizer] = []
        if matrices:
            inner.append(Muon(matrices, lr))
        if others:
            inner.append(torch.optim.AdamW(others, lr, betas=betas, eps=eps, fused=True))
        self._inner = inner
        super().__init__([group for each in inner for group in each.param_groups], {})
        self._share()

    def share(self, ranks: ProcessGroup) -> None:
        """Split the work of Muon over ranks that have the same gradients, such as those of DDP."""
        for each in self._inner:
            if isinstance(each, Muon):
                each.ranks = ranks

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Give the two optimizers the groups and the state, which loading replaces."""
        for each in self._inner:
            muon = isinstance(each, Muon)
            each.param_groups = [group for group in self.param_groups if group["muon"] == muon]
            each.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        skipped, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        for each in self._inner:
            if not isinstance(each, Muon):
                each.found_inf, each.grad_scale = skipped, scale
                each.step()
            elif skipped is None and scale is None:
                each.step()
            else:
                self._step_unless(each, skipped, scale)
        return loss

    def _step_unless(self, muon: Muon, skipped: Tensor | None, scale: Tensor | None) -> None:
        """Step with gradients divided by `scale`; where `skipped` is 1, nothing changes."""
        every = [p for group in muon.param_groups for p in group["params"] if p.grad is not None]
        if scale is not None:
            for parameter in every:
                _local(parameter.grad).div_(scale)
        if skipped is None:
            muon.step()
            return
        skip = skipped.bool()
        kept = [_local(parameter).clone() for parameter in every]
        for parameter in every:  # the average of gradients meets itself, and does not move
            gradient = _local(parameter.grad)
            average = muon.state[parameter].get("momentum_buffer")
            still = torch.zeros_like(gradient) if average is None else _local(average)
            gradient.copy_(torch.where(skip, still, gradient))
        muon.step()
        for parameter, old in zip(every, kept, strict=True):
            own = _local(parameter)
            own.copy_(torch.where(skip, old, own))


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
