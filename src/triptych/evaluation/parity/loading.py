"""Loading of published tensors into our modules, by the names of `key_mapping`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from triptych.checkpoints.key_prefixes import with_plain_names
from triptych.checkpoints.published import key_mapping
from triptych.utils.errors import UserError


def map_keys(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map published tensors to our full names and shapes; split EVA biases are fused.

    Raises:
        UserError: a key has no counterpart in the model.
    """
    is_known = lambda key: key_mapping.place_of(key) is not None  # noqa: E731
    published = with_plain_names(published, is_known, "the published checkpoint")
    whole: dict[str, Tensor] = {}
    qkv_slices: dict[str, dict[int, Tensor]] = {}
    for key, tensor in published.items():
        place = key_mapping.place_of(key)
        if place is None:
            raise UserError(f"the published tensor {key} has no place in the model.")
        if place.qkv_slice is None:
            whole[place.name] = key_mapping.from_published(place.name, tensor)
        else:
            qkv_slices.setdefault(place.name, {})[place.qkv_slice] = tensor
    return whole | {name: key_mapping.fuse_bias(parts) for name, parts in qkv_slices.items()}


@torch.no_grad()
def fill(module: nn.Module, prefix: str, tensors: Mapping[str, Tensor]) -> None:
    """Fill every parameter of `module`, whose full names begin with `prefix`.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape.
    """
    own = {prefix + name: parameter for name, parameter in module.named_parameters()}
    expected = own.keys() - key_mapping.UNPUBLISHED
    different = sorted(expected ^ tensors.keys())
    if different:
        raise UserError(f"the weights of the case and the model disagree on {different[0]}.")
    for name in expected:
        if own[name].shape != tensors[name].shape:
            raise UserError(
                f"{name} has shape {list(tensors[name].shape)} in the case, the model wants "
                f"{list(own[name].shape)}."
            )
        own[name].copy_(tensors[name])
