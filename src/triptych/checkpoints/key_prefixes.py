"""Names of weights without what wrappers of training put before them.

    module.                     DistributedDataParallel, EMA by AveragedModel
    _orig_mod.                  torch.compile, of the whole or of any part
    _fsdp_wrapped_module.       FSDP, of the whole or of any part
    _checkpoint_wrapped_module. activation checkpointing, of any part
    _forward_module.            Lightning Fabric
    model., net., ema., ...     the attribute that held the model where it was saved

Names that the model has as they are (Qwen's `model.layers...`) stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from triptych.utils.errors import UserError

T = TypeVar("T")

# No attribute of a model is called so.
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
# An attribute may be: stripped where all names begin so and more of them are then known.
HOLDERS = {"module", "model", "net", "network", "ema", "ema_model", "model_ema", "state_dict"}
# Keys of a dictionary that holds a state dict beside other things.
NESTED = ("state_dict", "model_state_dict", *sorted(HOLDERS - {"state_dict"}))


def plain_names(
    names: Collection[str], known: Callable[[str], bool], where: object
) -> dict[str, str]:
    """Each name as it is stored -> without wrappers' prefixes.

    Args:
        known: whether the model expects a name.
        where: the file, for the message.

    Raises:
        UserError: two names are one without their prefixes.
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
    """Tensors by their names without wrappers' prefixes; see `plain_names`."""
    names = plain_names(tensors, known, where)
    return {names[name]: tensor for name, tensor in tensors.items()}


def state_dict_in(content: Any, where: object) -> Any:
    """The state dict inside a training checkpoint (`{"state_dict": ..., "epoch": ...}`).

    Raises:
        UserError: there are several, such as weights and their average.
    """
    if not isinstance(content, dict):
        return content
    nested = [key for key in NESTED if isinstance(content.get(key), dict)]
    if len(nested) > 1:
        raise UserError(
            f"{where} holds several sets of weights ({', '.join(nested)}); save the one you mean "
            "alone."
        )
    return state_dict_in(content[nested[0]], where) if nested else content


def unknown_prefix(name: str) -> str:
    """The end of a sentence that refuses `name`: what stands before, and what to do."""
    first = name.split(".")[0]
    return (
        f"its names begin with {first!r} ({name}), which is no part of this model; if that is a "
        "wrapper's, save the weights without it"
    )


def _without(name: str, wrappers: Collection[str]) -> str:
    return ".".join(part for part in name.split(".") if part not in wrappers)


def _shared_holder(names: Collection[str]) -> str | None:
    """The first component of all names with several, if it may be a holder's."""
    first = {name.split(".")[0] for name in names if "." in name}
    return first.pop() if len(first) == 1 and first <= HOLDERS else None


def _known_inside(name: str, known: Callable[[str], bool]) -> str:
    """`name` without DistributedDataParallel's `module` around a part, if it is then known."""
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
