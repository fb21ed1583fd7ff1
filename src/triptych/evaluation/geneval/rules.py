"""GenEval's published rules: correctness of an image, from the objects that a detector found.

Everything in "include" must hold and nothing in "exclude" may; only the most confident objects of
a class are looked at, up to the wanted number. Source: evaluate_images.py of djghosh13/geneval
(MIT), rewritten; its options are the fields of `Rules`, with their defaults.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.evaluation.geneval.detection import Box, Found

Colours = Callable[[Sequence[Found]], list[str]]
"""The colour of each of several objects of one class."""


@dataclass(frozen=True)
class Rules:
    """The numbers in the rules."""

    confidence: float = 0.3
    """An object counts from above here."""
    counting_confidence: float = 0.9
    """The same where objects are counted."""
    most: int = 16
    """Objects of a class that are looked at."""
    overlap: float = 1.0
    """An object that overlaps a more confident one of its class by this much (IoU) is the same;
    at 1 none is."""
    margin: float = 0.1
    """Fraction of the objects' summed sides within which centres are not beside each other."""


OFFICIAL = Rules()


def objects_in(found: Sequence[Found], tag: str, rules: Rules = OFFICIAL) -> dict[str, list[Found]]:
    """Objects that count as seen, by name, the most confident first."""
    threshold = rules.counting_confidence if tag == "counting" else rules.confidence
    by_name = defaultdict(list)
    for one in sorted(found, key=lambda one: -one.confidence):
        if one.confidence > threshold and len(by_name[one.name]) < rules.most:
            by_name[one.name].append(one)
    return {name: _apart(some, rules.overlap) for name, some in by_name.items() if some}


def verdict(
    objects: Mapping[str, Sequence[Found]],
    wanted: Mapping[str, Any],
    colours: Colours,
    rules: Rules = OFFICIAL,
) -> tuple[bool, str]:
    """Whether the objects are as wanted, and the faults, a sentence each.

    Args:
        wanted: entry of the prompt file with the requirements.
        colours: colour classifier, used only if the number of objects is right.
    """
    faults = []
    groups: list[Sequence[Found] | None] = []  # those of each clause that holds: positions refer
    for clause in wanted["include"]:
        seen = list(objects.get(clause["class"], []))[: clause["count"]]
        fault = _fault(clause, seen, groups, colours, rules)
        groups.append(None if fault else seen)
        faults += [fault] if fault else []
    for clause in wanted.get("exclude", []):
        number = len(objects.get(clause["class"], []))
        if number >= clause["count"]:
            faults.append(f"fewer than {clause['count']} {clause['class']} wanted, {number} found")
    return not faults, "; ".join(faults)


def _fault(
    clause: Mapping[str, Any],
    seen: Sequence[Found],
    groups: Sequence[Sequence[Found] | None],
    colours: Colours,
    rules: Rules,
) -> str:
    name, count = clause["class"], clause["count"]
    if len(seen) < count:
        return f"{count} {name} wanted, {len(seen)} found"
    if "color" in clause:
        given = colours(seen)
        if given.count(clause["color"]) < count:
            return f"{count} {clause['color']} {name} wanted, found {', '.join(given)}"
    if "position" in clause:
        wanted, target = clause["position"]
        if groups[target] is None:
            return f"{name} {wanted} what is not there"
        for one in seen:
            for other in groups[target]:
                relations = relations_of(one.box, other.box, rules.margin)
                if wanted not in relations:
                    return f"{name} wanted {wanted} {other.name}, found {_said(relations)} it"
    return ""


def relations_of(a: Box, b: Box, margin: float = 0.1) -> set[str]:
    """Relations of box `a` to box `b`: none, one or two of left of, right of, above, below.

    The distance of the centres is shortened, along each axis, by `margin` of the summed sides; a
    relation holds if the rest is more than half of the whole distance.
    """
    found = set()
    offsets, rests = [], []
    for low, high in ((0, 2), (1, 3)):
        offset = (a[low] + a[high]) / 2 - (b[low] + b[high]) / 2
        reach = margin * (abs(a[high] - a[low]) + abs(b[high] - b[low]))
        offsets.append(offset)
        rests.append(max(abs(offset) - reach, 0) * (1 if offset > 0 else -1))
    distance = (offsets[0] ** 2 + offsets[1] ** 2) ** 0.5
    if max(map(abs, rests)) < 1e-3:
        return found
    for rest, before, after in zip(rests, ("left of", "above"), ("right of", "below"), strict=True):
        if rest / distance < -0.5:
            found.add(before)
        if rest / distance > 0.5:
            found.add(after)
    return found


def intersection_over_union(a: Box, b: Box) -> float:
    """IoU of boxes whose last row and column belong to them, as the official code counts them."""
    inner = (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    both = _area(inner)
    return both / (_area(a) + _area(b) - both)


def _area(box: Box) -> float:
    return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)


def _apart(objects: Sequence[Found], overlap: float) -> list[Found]:
    """Non-maximum suppression: objects that overlap no more confident remaining one."""
    if overlap == 1:
        return list(objects)
    kept: list[Found] = []
    for one in objects:
        if all(intersection_over_union(each.box, one.box) < overlap for each in kept):
            kept.append(one)
    return kept


def _said(relations: set[str]) -> str:
    return " and ".join(sorted(relations)) or "beside neither side of"
