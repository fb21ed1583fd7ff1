"""Selection of the parameters that train; all others are frozen."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from triptych.utils.errors import UserError


def match_parameters(
    names: Iterable[str], patterns: Iterable[str], option: str = "trainable"
) -> set[str]:
    """The names under one of the patterns: a module path ("generation") or a glob ("*.dit.*").

    Args:
        option: name of the setting that holds the patterns, for the message.

    Raises:
        UserError: a pattern matches nothing, so that a misspelling never freezes in silence.
    """
    names = list(names)
    chosen: set[str] = set()
    for pattern in patterns:
        matched = {
            name for name in names if name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)
        }
        if not matched:
            tops = sorted({name.split(".")[0] for name in names})
            raise UserError(
                f"{option}: {pattern!r} matches no parameter; the model's parts are {tops}."
            )
        chosen |= matched
    return chosen


def may_match(path: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern of `match_parameters` could match a parameter under the module path.

    False only if no parameter there can match, whatever it is named.
    """
    for pattern in patterns:
        literal = re.split(r"[*?\[]", pattern)[0]
        beginning = pattern + "." if literal == pattern else literal
        if beginning.startswith(path + ".") or (path + ".").startswith(beginning):
            return True
    return False


def is_unused_parameter(name: str) -> bool:
    """Whether nothing uses a parameter: diffusers' pad_token stays frozen and is in no file."""
    return name.endswith("dit.pad_token")


def freeze_all_but(module: nn.Module, patterns: Iterable[str]) -> set[str]:
    """Set requires_grad by `patterns`; returns the names of the parameters that train."""
    parameters = dict(module.named_parameters())
    trained = {
        name for name in match_parameters(parameters, patterns) if not is_unused_parameter(name)
    }
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)
    return trained


def frozen_modules(module: nn.Module) -> list[nn.Module]:
    """Largest submodules none of whose parameters train: they belong in evaluation mode."""
    modules = []
    for child in module.children():
        parameters = list(child.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            modules.append(child)
        else:
            modules.extend(frozen_modules(child))
    return modules
