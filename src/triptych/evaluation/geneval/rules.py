"""Published rules of GenEval: correctness of an image from its detected objects.

All clauses of "include" must hold and none of "exclude" may. Of each class only the most confident
objects count, up to the required number. Source: evaluate_images.py of djghosh13/geneval (MIT),
rewritten; its options are the fields of `Rules`, with their defaults.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.evaluation.geneval.detection import Box, DetectedObject

Colours = Callable[[Sequence[DetectedObject]], list[str]]
"""Function that returns the colours of objects of one class."""


@dataclass(frozen=True)
class Rules:
    """Thresholds of the rules."""

    confidence: float = 0.3
    """Confidence above which an object counts."""
    counting_confidence: float = 0.9
    """Confidence above which an object counts in the task "counting"."""
    max_objects: int = 16
    """Maximum number of objects of a class."""
    overlap: float = 1.0
    """IoU threshold of non-maximum suppression within a class; 1 disables it."""
    margin: float = 0.1
    """Tolerance of positions, as a fraction of the summed sides of two objects."""


OFFICIAL = Rules()


def objects_in(
    detected: Sequence[DetectedObject], tag: str, rules: Rules = OFFICIAL
) -> dict[str, list[DetectedObject]]:
    """Objects above the threshold by name, the most confident first."""
    threshold = rules.counting_confidence if tag == "counting" else rules.confidence
    by_name = defaultdict(list)
    for one in sorted(detected, key=lambda one: -one.confidence):
        if one.confidence > threshold and len(by_name[one.name]) < rules.max_objects:
            by_name[one.name].append(one)
    return {name: _suppress(some, rules.overlap) for name, some in by_name.items() if some}


def check(
    objects: Mapping[str, Sequence[DetectedObject]],
    requirements: Mapping[str, Any],
    colours: Colours,
    rules: Rules = OFFICIAL,
) -> tuple[bool, str]:
    """Check objects against the requirements of a prompt; returns whether all hold, and the faults.

    Args:
        objects: detected objects by name, see `objects_in`.
        requirements: entry of the prompt file.
        colours: colour classifier, called only if the number of objects is correct.
        rules: thresholds.
    """
    faults = []
    # objects of each clause, None if it does not hold: positions refer to them
    groups: list[Sequence[DetectedObject] | None] = []
    for clause in requirements["include"]:
        seen = list(objects.get(clause["class"], []))[: clause["count"]]
        fault = _fault(clause, seen, groups, colours, rules)
        groups.append(None if fault else seen)
        faults += [fault] if fault else []
    for clause in requirements.get("exclude", []):
        number = len(objects.get(clause["class"], []))
        if number >= clause["count"]:
            faults.append(f"fewer than {clause['count']} {clause['class']} wanted, {number} found")
    return not faults, "; ".join(faults)


def _fault(
    clause: Mapping[str, Any],
    seen: Sequence[DetectedObject],
    groups: Sequence[Sequence[DetectedObject] | None],
    colours: Colours,
    rules: Rules,
) -> str:
    name, count = clause["class"], clause["count"]
    if len(seen) < count:
        return f"{count} {name} wanted, {len(seen)} found"
    if "color" in clause:
        names = colours(seen)
        if names.count(clause["color"]) < count:
            return f"{count} {clause['color']} {name} wanted, found {', '.join(names)}"
    if "position" in clause:
        wanted, target = clause["position"]
        if groups[target] is None:
            return f"{name} {wanted} what is not there"
        for one in seen:
            for other in groups[target]:
                relations = relations_of(one.box, other.box, rules.margin)
                if wanted not in relations:
                    return f"{name} wanted {wanted} {other.name}, found {_phrase(relations)} it"
    return ""


def relations_of(a: Box, b: Box, margin: float = 0.1) -> set[str]:
    """Relations of box `a` to box `b`: none, one or two of left of, right of, above, below.

    The distance of the centres is shortened, along each axis, by `margin` of the summed sides; a
    relation holds if the rest is more than half of the whole distance.
    """
    relations = set()
    offsets, rests = [], []
    for low, high in ((0, 2), (1, 3)):
        offset = (a[low] + a[high]) / 2 - (b[low] + b[high]) / 2
        reach = margin * (abs(a[high] - a[low]) + abs(b[high] - b[low]))
        offsets.append(offset)
        rests.append(max(abs(offset) - reach, 0) * (1 if offset > 0 else -1))
    distance = (offsets[0] ** 2 + offsets[1] ** 2) ** 0.5
    if max(map(abs, rests)) < 1e-3:
        return relations
    for rest, before, after in zip(rests, ("left of", "above"), ("right of", "below"), strict=True):
        if rest / distance < -0.5:
            relations.add(before)
        if rest / distance > 0.5:
            relations.add(after)
    return relations


def intersection_over_union(a: Box, b: Box) -> float:
    """IoU of boxes with inclusive right and bottom sides, as in the official code."""
    inner = (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    both = _area(inner)
    return both / (_area(a) + _area(b) - both)


def _area(box: Box) -> float:
    return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)


def _suppress(objects: Sequence[DetectedObject], overlap: float) -> list[DetectedObject]:
    """Non-maximum suppression."""
    if overlap == 1:
        return list(objects)
    remaining: list[DetectedObject] = []
    for one in objects:
        if all(intersection_over_union(each.box, one.box) < overlap for each in remaining):
            remaining.append(one)
    return remaining


def _phrase(relations: set[str]) -> str:
    return " and ".join(sorted(relations)) or "beside neither side of"
