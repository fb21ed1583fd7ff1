"""Removal of the prefixes that training wrappers add to names of weights.

    module.                     DistributedDataParallel, EMA by AveragedModel
    _orig_mod.                  torch.compile, of the model or a submodule
    _fsdp_wrapped_module.       FSDP, of the model or a submodule
    _checkpoint_wrapped_module. activation checkpointing, of a submodule
    _forward_module.            Lightning Fabric
    model., net., ema., ...     attribute of the model in the saved object

Names that the model expects (Qwen's `model.layers...`) are unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from triptych.utils.errors import UserError

T = TypeVar("T")

# never an attribute of a model
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
# may be an attribute: removed if all names begin with it, and more of them are then expected
HOLDERS = {"module", "model", "net", "network", "ema", "ema_model", "model_ema", "state_dict"}
# keys of a state dict in a training checkpoint
NESTED = ("state_dict", "model_state_dict", *sorted(HOLDERS - {"state_dict"}))


def plain_names(
    names: Collection[str], known: Callable[[str], bool], where: object
) -> dict[str, str]:
    """Map stored names to names without wrappers' prefixes.

    Args:
        names: stored names.
        known: function that returns whether the model expects a name.
        where: the file, for the message.

    Raises:
        UserError: two names are equal without their prefixes.
    """
    plain = {name: _without(name, WRAPPERS) for name in names}
    best, most = plain, sum(map(known, plain.values()))
    while (holder := _shared_holder(plain.values())) is not None:
        plain = {name: short.removeprefix(f"{holder}.") for name, short in plain.items()}
        if (count := sum(map(known, plain.values()))) > most:
            best, most = plain, count
    best = {name: _known_inside(short, known) for name, short in best.items()}
    _refuse_doubles(best, where)
    return best


def with_plain_names(
    tensors: Mapping[str, T], known: Callable[[str], bool], where: object
) -> dict[str, T]:
    """Tensors by names without wrappers' prefixes; see `plain_names`."""
    names = plain_names(tensors, known, where)
    return {names[name]: tensor for name, tensor in tensors.items()}


def state_dict_in(content: Any, where: object) -> Any:
    """State dict inside a training checkpoint (`{"state_dict": ..., "epoch": ...}`).

    Raises:
        UserError: there are several state dicts, such as weights and their average.
    """
    if not isinstance(content, dict):
        return content
    nested = [key for key in NESTED if isinstance(content.get(key), dict)]
    if len(nested) > 1:
        raise UserError(
            f"{where} holds several sets of weights ({', '.join(nested)}); save only the one "
            "that you mean."
        )
    return state_dict_in(content[nested[0]], where) if nested else content


def unknown_prefix(name: str) -> str:
    """Clause of an error about an unexpected name: its prefix, and the remedy."""
    first = name.split(".")[0]
    return (
        f"its names begin with {first!r} ({name}), which is no part of this model; if that is a "
        "wrapper's, save the weights without it"
    )


def _without(name: str, wrappers: Collection[str]) -> str:
    return ".".join(part for part in name.split(".") if part not in wrappers)


def _shared_holder(names: Collection[str]) -> str | None:
    """Common first segment of all dotted names, if it may be the attribute of the model."""
    first = {name.split(".")[0] for name in names if "." in name}
    return first.pop() if len(first) == 1 and first <= HOLDERS else None


def _known_inside(name: str, known: Callable[[str], bool]) -> str:
    """`name` without DistributedDataParallel's `module` around a submodule, if then expected."""
    inside = _without(name, {"module"})
    return inside if not known(name) and known(inside) else name


def _refuse_doubles(names: Mapping[str, str], where: object) -> None:
    before: dict[str, str] = {}
    for stored, plain in names.items():
        if plain in before:
            raise UserError(
                f"{where} holds {plain} twice, as {before[plain]} and as {stored}; remove one."
            )
        before[plain] = stored
