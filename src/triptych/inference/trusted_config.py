"""Checks of untrusted model files: plain values, and trusted class paths.

The parser imports class paths, and importing runs code. All values that could be imported are
checked first: triptych's own classes are trusted, others only if the user names them
(`--trust-class`).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import yaml

from triptych.utils.documents import measure_yaml
from triptych.utils.errors import UserError

OWN = "triptych"
NAMES_A_CLASS = ("class_path", "_target_")
LONGEST = 200
"""Maximum number of characters of an interpolated value."""

_PLAIN = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+)*)\}")


def add_trust(parser: argparse._ActionsContainer) -> None:
    """Add --trust-class, of every command that reads a model's file."""
    parser.add_argument(
        "--trust-class",
        action="append",
        default=[],
        metavar="NAME",
        help="package, or one class of it, that the model's files may name beside triptych's "
        "own; its code runs; repeatable; default none",
    )


def plain_model(
    documents: Sequence[Mapping[str, Any]], names: Sequence[object], trusted: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Resolve interpolations in the `model` sections of files, and check all class paths.

    `${model.preset}` and the like are replaced by a plain value of any of the files, the last that
    has it. Resolvers such as `${oc.env:HOME}`, which read this machine, are refused.

    Args:
        documents: contents of the files.
        names: names of the files, for errors.
        trusted: dotted names of further trusted packages and classes.

    Raises:
        UserError: a section is not a mapping, or has an unsupported or untrusted value.
    """
    allowed = [OWN, *trusted]
    sections = []
    for document, name in zip(documents, names, strict=True):
        section = document.get("model", {})
        if not isinstance(section, dict):
            raise UserError(f"{name}: model is {section!r:.60}, not a mapping of names to values.")
        section = _filled(section, documents, name)
        for where, path in _class_paths(section, f"{name}: model"):
            if not any(path == each or path.startswith(f"{each}.") for each in allowed):
                package = path.partition(".")[0]
                raise UserError(
                    f"{where} names {path}, which is not triptych's own, and importing it "
                    f"runs its code; if you know it and trust it, add --trust-class={package}."
                )
        sections.append(section)
    return sections


def _filled(value: Any, documents: Sequence[Mapping[str, Any]], name: object) -> Any:
    """The value with every interpolation replaced."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or "${" in key:
                raise UserError(f"{name}: the key {key!r} is no name; put it in quotes.")
        return {key: _filled(each, documents, name) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, documents, name) for each in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    if whole := _PLAIN.fullmatch(value):
        return _looked_up(whole[1], documents, name)
    filled = _PLAIN.sub(lambda found: str(_looked_up(found[1], documents, name)), value)
    if "${" in filled:
        raise UserError(
            f"{name}: {value!r:.80} is not read here; write a plain value, or the name of one such "
            "as ${model.preset}."
        )
    return filled


def _looked_up(path: str, documents: Sequence[Mapping[str, Any]], name: object) -> Any:
    for document in reversed(documents):
        found: Any = document
        for step in path.split("."):
            found = found.get(step) if isinstance(found, Mapping) else None
        if found is not None:
            break
    if not isinstance(found, str | int | float) or "${" in str(found) or len(str(found)) > LONGEST:
        raise UserError(f"{name}: ${{{path}}} names no plain value; write the value itself.")
    return found


def _class_paths(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield (place, dotted name) of values that the parser might import, also in nested YAML."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key in NAMES_A_CLASS and isinstance(each, str):
                if "." in each:  # a name without a dot is looked up among known classes
                    yield f"{where}.{key}", each
            else:
                yield from _class_paths(each, f"{where}.{key}")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _class_paths(each, f"{where}[{number}]")
    elif isinstance(value, str):
        if _importable(value):
            yield where, value
        elif not isinstance(inner := _inner(value, where), str):
            yield from _class_paths(inner, where)


def _inner(text: str, where: str) -> Any:
    """Value of a text as YAML with text values, or the text itself."""
    try:
        measure_yaml(text, where, yaml.BaseLoader)
        inner = yaml.load(text, Loader=yaml.BaseLoader)  # makes only texts, lists and mappings
    except yaml.YAMLError:
        return text
    return inner if isinstance(inner, dict | list) else text


def _importable(text: str) -> bool:
    """Whether the parser would import an existing module for this text."""
    package, dot, _ = text.partition(".")
    if not dot or not all(part.isidentifier() for part in text.split(".")):
        return False  # for example a path with a /
    try:
        return find_spec(package) is not None  # a name without a dot is found without importing
    except ValueError:  # a module without a spec, such as __main__
        return True
