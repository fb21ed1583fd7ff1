"""The base class of all networks: built late, split over ranks and compiled by blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NoReturn

from torch import nn

from triptych.utils.errors import UserError
from triptych.utils.precision import ExactBuffers


class LazyModule(ExactBuffers, ABC):
    """A network that is built late: the constructor takes configuration, `build` makes weights.

    Building is not loading: `build` gives random weights; `triptych.checkpoints` fills them.
    Constants of the forward pass are buffers, float32 whatever the parameters are; those in no
    weight file are registered with `persistent=False`.
    """

    fsdp_forward_methods: tuple[str, ...] = ()
    """Methods beside `forward` that are called from outside and use parameters: FSDP gathers the
    parameters for these calls too. Such a method returns tensors, or a dataclass
    that `torch.utils._pytree` knows."""
    absence: str | None = None
    """Reason why this run does not build the network, a sentence; None if it does."""

    @abstractmethod
    def build(self) -> None:
        """Create the parameters on torch's current default device.

        Parts inside of this one that are built already stay as they are.
        """

    def leave_out(self, absence: str) -> None:
        """Leave this network without parameters; a call raises `absence` as a UserError."""
        self.absence = absence
        self.register_forward_pre_hook(_refuse)

    def blocks(self) -> list[nn.Module]:
        """Submodules that are called one after the other and hold most of the parameters.

        Each is split over ranks, recomputed and compiled on its own. Only of a built part.
        """
        return []

    def called_modules(self) -> list[nn.Module]:
        """Modules whose calls, together, compute with all parameters: this one, or its children.

        The children where this one is never called itself (it has neither a `forward` nor
        `fsdp_forward_methods`), or where parts inside of it are also called on their own.
        """
        children = list(self.children())
        own = [child for child in children if not isinstance(child, LazyModule)]
        called = type(self).forward is not nn.Module.forward or self.fsdp_forward_methods
        return [self] if called and len(own) == len(children) else own

    @property
    def is_built(self) -> bool:
        """Whether `build` has run; parts inside of this one are not considered."""
        own = (child for child in self.children() if not isinstance(child, LazyModule))
        own_parameters = (parameter for child in own for parameter in child.parameters())
        return bool(self._parameters) or next(own_parameters, None) is not None


def _refuse(network: LazyModule, inputs: tuple) -> NoReturn:
    raise UserError(network.absence)
