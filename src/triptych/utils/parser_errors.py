"""Readable parser errors: every cause, the most informative one first."""

from __future__ import annotations

import re
from dataclasses import dataclass

LONGEST = 300
"""Maximum number of characters of one cause."""

_KEY = re.compile(r'Parser key "([^"]*)":')
_CLASS = re.compile(r"Problem with given class_path '([^']*)':")
_BUILT = re.compile(r"Given value: Namespace\(class_path='([^']*)'")
_EXPECTED = re.compile(r"Expected an? <class '(?:[\w.]*\.)?(\w+)'>")
_NULL = re.compile(
    "'NoneType' object has no attribute '.*?'|argument of type 'NoneType' is not iterable"
)
_LISTING = ("Subtypes:", "Errors:", "Given value", "Does not validate against any")


@dataclass
class _Line:
    indent: int
    text: str
    starts: bool
    """Whether the line begins one of several causes."""


def plain(message: str) -> str:
    """Format the most informative cause in one line, then "or: ..." for each other one.

    The parser checks a value against every type of an option, and lists nested causes of failure,
    each with a part of the option's name.
    """
    places: dict[str, tuple[int, int]] = {}
    for number, (names, text) in enumerate(_causes(_lines(message))):
        cause = _shortened(": ".join(filter(None, [".".join(names), text])))
        places.setdefault(cause, (_tells(text) - 2 * len(names), number))
    if not places:
        return _shortened(message)
    first, *others = sorted(places, key=lambda cause: places[cause])
    shared = first.partition(": ")[0] + ": "
    if shared not in (each[: len(shared)] for each in others) and (built := _BUILT.search(message)):
        first = f"{built[1]}: {first}"  # a value whose option has no name
    return "\n".join([first, *(f"  or: {each.removeprefix(shared)}" for each in others)])


def raised_in(error: BaseException, packages: tuple[str, ...]) -> bool:
    """Whether an error was raised directly in one of the packages, not in their callees."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    name = at.tb_frame.f_globals.get("__name__", "") if at is not None else ""
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def _lines(message: str) -> list[_Line]:
    lines = []
    for raw in message.split("\n"):
        text = raw.strip()
        starts = text.startswith("- ")
        if text:
            indent = len(raw) - len(raw.lstrip()) + 2 * starts
            lines.append(_Line(indent, text[2 * starts :], starts))
    return lines


def _causes(lines: list[_Line]) -> list[tuple[list[str], str]]:
    """(segments of the option's name, outermost first; cause) of each innermost cause."""
    causes: list[tuple[list[str], str]] = []
    outer: list[tuple[int, str, bool]] = []  # (indent, name, whether it is a class) around a line
    continues, hidden = False, None  # hidden: indent of a value that is shown on several lines
    for line in lines:
        if hidden is not None and line.indent > hidden and not line.starts:
            continue
        hidden = line.indent if line.text.startswith("Given value:") else None
        outer = [each for each in outer if each[0] < line.indent]
        rest = line.text
        if key := _KEY.match(rest):
            outer.append((line.indent, key[1], False))
            rest = rest[key.end() :].strip()
        elif of_class := _CLASS.fullmatch(rest):
            outer.append((line.indent, of_class[1], True))
            rest = ""
        elif rest.startswith(_LISTING):
            rest = ""
        if rest and continues and not line.starts:
            causes[-1] = (causes[-1][0], f"{causes[-1][1]} {rest}")
        elif rest:
            inside = f"{outer[-1][1]}: " if outer and outer[-1][2] else ""
            causes.append(([name for _, name, is_class in outer if not is_class], inside + rest))
        continues = bool(rest)
    return causes


def _tells(text: str) -> int:
    """Sort key of causes, the most informative first: the other types of an option come last."""
    for place, beginning in enumerate(("Expected a path but", "Expected a <class 'NoneType'>")):
        if text.startswith(beginning):
            return 100 - place
    return 10 if _EXPECTED.match(text) else 0


def _shortened(text: str) -> str:
    text = _EXPECTED.sub(r"expected \1", " ".join(text.split()))
    text = text.replace("expected NoneType", "expected null")
    text = _NULL.sub("its name or its settings are null", text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
