"""Questions whether an image shows a caption, half of them about a near miss.

A near miss differs from a caption of the image in one thing, and the image does not satisfy it. By
these questions a model learns to rank its own images, see `PromptConfig.ranking_question`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy

from triptych.shapes_world.captions import (
    RELATIONS,
    Request,
    Wanted,
    describe,
    is_evaluation,
    pick,
    request_of,
    write,
)
from triptych.shapes_world.checker import satisfies
from triptych.shapes_world.questions import Turn
from triptych.shapes_world.world import (
    BACKGROUNDS,
    COLOURS,
    GRID,
    HELD_OUT_PAIRS,
    KINDS,
    MOST_SHAPES,
    SIZES,
    Scene,
    scene_of,
)

QUESTION = "does the image show {caption}?"
"""Question about an image and a {caption}; `ranking_question` of the tiny preset."""
LONG_CAPTIONS = 0.2
"""Share of the questions about a long caption, with everything in the image."""
VALUES = {"colour": tuple(COLOURS), "kind": KINDS, "size": tuple(SIZES)}


def shows_caption(
    scene: Scene, request: Request, rng: numpy.random.Generator, number: int
) -> list[Turn]:
    """Draw `number` different questions whether an image shows a caption, at most 6.

    Half are answered yes: a wording of `request`, which the scene satisfies, or of the scene.
    """
    turns: dict[str, Turn] = {}
    for shown in rng.random(number) < 0.5:
        while True:
            question = QUESTION.format(caption=_caption(scene, request, rng, bool(shown)))
            if question not in turns:
                break
        turns[question] = question, "yes" if shown else "no", "caption"
    return list(turns.values())


def _caption(scene: Scene, request: Request, rng: numpy.random.Generator, shown: bool) -> str:
    """Draw a caption of the image, or of a near miss; without a final stop."""
    if rng.random() < LONG_CAPTIONS:
        return describe(scene if shown else _missed_scene(scene, rng), rng).rstrip(".")
    return write(request if shown else near_miss(scene, request, rng), rng)


def near_miss(scene: Scene, request: Request, rng: numpy.random.Generator) -> Request:
    """Draw a request without places that differs from `request` in one attribute, count or
    relation, and that the scene does not satisfy.

    It has no held-out pair that `request` has not, and none is reserved for evaluation unless
    `request` is. The kind of difference is drawn first, so that those with few values are not rare.
    """
    differences = [
        [each for each in misses if _allowed(each, request) and not satisfies(scene, each)]
        for misses in _differences(request)
    ]
    return pick(rng, pick(rng, [each for each in differences if each]))


def _differences(request: Request) -> Iterator[list[Request]]:
    """Lists of requests, one list for each thing that differs."""
    wanted = request.wanted
    for name, values in VALUES.items():
        yield [
            _with(request, number, replace(each, **{name: value}))
            for number, each in enumerate(wanted)
            for value in values
            if getattr(each, name) not in (None, value)
        ]
    if len(wanted) == 1:
        yield [
            _with(request, 0, replace(wanted[0], count=count))
            for count in range(1, MOST_SHAPES + 1)
            if count != wanted[0].count
        ]
    if request.relation:
        yield [replace(request, relation=each) for each in RELATIONS if each != request.relation]
    if len(wanted) == 2 and wanted[0].colour and wanted[1].colour:
        first, second = wanted
        swapped = replace(first, colour=second.colour), replace(second, colour=first.colour)
        yield [replace(request, wanted=swapped)]
    if request.background:
        others = [each for each in BACKGROUNDS if each != request.background]
        yield [replace(request, background=each) for each in others]


def _with(request: Request, number: int, wanted: Wanted) -> Request:
    """The request with another requirement `number`."""
    return replace(
        request, wanted=(*request.wanted[:number], wanted, *request.wanted[number + 1 :])
    )


def _allowed(miss: Request, request: Request) -> bool:
    kinds = [wanted.kind for wanted in miss.wanted]
    if miss.relation and len(set(kinds)) < len(kinds):  # "a circle left of a circle"
        return False
    if is_evaluation(miss) and not is_evaluation(request):
        return False
    return not _held_out(miss) - _held_out(request)


def _held_out(request: Request) -> set[tuple[str | None, str]]:
    return {(wanted.colour, wanted.kind) for wanted in request.wanted} & set(HELD_OUT_PAIRS)


def _missed_scene(scene: Scene, rng: numpy.random.Generator) -> Scene:
    """Draw a scene in which one shape has another look or place, or the background differs."""
    while True:
        number = int(rng.integers(len(scene.shapes)))
        shape = scene.shapes[number]
        others = [each for each in scene.shapes if each != shape]
        what = pick(rng, (*VALUES, "place", "background"))
        if what == "background":
            missed = replace(scene, background=pick(rng, tuple(BACKGROUNDS)))
        elif what == "place":
            row, column = divmod(int(rng.integers(GRID**2)), GRID)
            if any((each.row, each.column) == (row, column) for each in scene.shapes):
                continue
            missed = scene_of([*others, replace(shape, row=row, column=column)], scene.background)
        else:
            changed = replace(shape, **{what: pick(rng, VALUES[what])})
            missed = scene_of([*others, changed], scene.background)
        if missed != scene and _allowed(request_of(missed), request_of(scene)):
            return missed
