"""Refusal of nulls where a configuration needs a value; the parser accepts them in classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from jsonargparse import Namespace

from triptych.utils.errors import ConfigurationError


def require_values(settings: Any, kind: Any, name: str) -> None:
    """Refuse null for an argument whose annotation does not allow it, anywhere in `settings`.

    Checks the classes and dataclasses of triptych, and ignores others.

    Args:
        settings: parsed value: a Namespace, list, mapping or plain value.
        kind: annotation of the argument.
        name: name of the option, such as "model".

    Raises:
        ConfigurationError: the first null that is not allowed.
    """
    if settings is None and not _allows_null(kind):
        raise ConfigurationError(f"{name} is null, but needs a value; name one or leave it out.")
    if isinstance(settings, Namespace):
        if "class_path" in settings:
            kind, settings = resolve_name(settings.class_path), settings.get("init_args")
        hints = _hints(kind)
        for key, value in vars(settings or Namespace()).items():
            require_values(value, hints.get(key, Any), f"{name}.{key}")
    elif isinstance(settings, list):
        for number, value in enumerate(settings):
            require_values(value, _inner(kind), f"{name}.{number}")
    elif isinstance(settings, Mapping):
        for key, value in settings.items():
            require_values(value, _inner(kind), f"{name}.{key}")


def _members(kind: Any) -> tuple[Any, ...]:
    """Types of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _allows_null(kind: Any) -> bool:
    return any(each in (Any, None, NoneType) for each in _members(kind))


def _inner(kind: Any) -> Any:
    """Annotation of the elements of a list or mapping."""
    elements = [get_args(each)[-1] for each in _members(kind) if get_args(each)]
    return elements[0] if len(elements) == 1 else Any


def _hints(kind: Any) -> dict[str, Any]:
    """Annotations of the arguments of a triptych class by name, with those of its bases, which it
    may take by keyword."""
    classes = [each for each in _members(kind) if isinstance(each, type)]
    ours = [each for each in classes if each.__module__.partition(".")[0] == "triptych"]
    if len(ours) != 1:
        return {}
    if is_dataclass(ours[0]):
        return get_type_hints(ours[0])
    hints: dict[str, Any] = {}
    for base in reversed(ours[0].__mro__):
        if base.__module__.partition(".")[0] == "triptych" and "__init__" in vars(base):
            hints |= get_type_hints(base.__init__)
    return hints
