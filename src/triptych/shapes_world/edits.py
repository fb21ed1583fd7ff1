"""Edits of scenes: an instruction, the scene before it, and the requirements on the result.

The meaning of an edit is exact, like that of a caption: a `Request` that the edited image must
satisfy, with everything else unchanged. Instructions refer to shapes unambiguously.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy

from triptych.shapes_world.captions import (
    TASKS,
    Request,
    Wanted,
    is_evaluation_scene,
    noun_phrase,
    pick,
    request_of,
    sample,
)
from triptych.shapes_world.world import (
    COLOURS,
    GRID,
    HELD_OUT_PAIRS,
    KINDS,
    MOST_SHAPES,
    PLACES,
    SIZES,
    Scene,
    Shape,
    scene_of,
)

SPLITS = ("train", "eval")
STEPS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}  # row, column


@dataclass(frozen=True)
class Edit:
    """An edit of `source` by `instruction`; `target` is one of possibly several correct results."""

    kind: str
    instruction: str
    source: Scene
    target: Scene
    request: Request
    """Requirements on a correct result."""

    @property
    def untouched(self) -> tuple[Shape, ...]:
        """Shapes that are the same before and after."""
        return tuple(shape for shape in self.source.shapes if shape in self.target.shapes)


def sample_edit(rng: numpy.random.Generator, kind: str, split: str = "train") -> Edit:
    """Draw an edit of one of `EDITS`.

    In "train" neither of its scenes is reserved for evaluation, in "eval" both are, and neither has
    a held-out pair.
    """
    if kind not in EDITS or split not in SPLITS:
        raise ValueError(f"There is nothing to draw for the edit {kind!r} in split {split!r}.")
    while True:
        _, _, source = sample(rng, pick(rng, TASKS), split)
        edit = EDITS[kind](source, rng)
        if _fits(edit.target) and is_evaluation_scene(edit.target) == (split == "eval"):
            return edit


def _fits(scene: Scene) -> bool:
    pairs = {(shape.colour, shape.kind) for shape in scene.shapes}
    return 1 <= len(scene.shapes) <= MOST_SHAPES and pairs.isdisjoint(HELD_OUT_PAIRS)


def refer(scene: Scene, shape: Shape, rng: numpy.random.Generator) -> str:
    """Unambiguous reference to a shape of a scene, such as "the red circle".

    Includes the place if another shape looks the same.
    """
    forms = [
        (attributes, " ".join(["the", *(getattr(shape, name) for name in attributes)]))
        for attributes in (("kind",), ("colour", "kind"), ("size", "kind"))
    ]
    named = [name for attributes, name in forms if _is_alone(scene, shape, attributes)]
    whole = ("size", "colour", "kind")
    if not named:
        look = " ".join(getattr(shape, name) for name in whole)
        named = [
            f"the {look}" + ("" if _is_alone(scene, shape, whole) else f" at the {shape.place}")
        ]
    return pick(rng, named)


def _is_alone(scene: Scene, shape: Shape, attributes: tuple[str, ...]) -> bool:
    """Whether no other shape has all these attributes."""
    looks = [tuple(getattr(each, name) for name in attributes) for each in scene.shapes]
    return looks.count(tuple(getattr(shape, name) for name in attributes)) == 1


# --- the edits ------------------------------------------------------------------------------------


def _changed(kind: str, instruction: str, source: Scene, old: Shape, new: Shape | None) -> Edit:
    """Edit that replaces `old` by `new`, or removes it."""
    others = [shape for shape in source.shapes if shape != old]
    target = scene_of([*others, new] if new else others, source.background)
    return Edit(kind, instruction, source, target, replace(request_of(target), task=kind))


def _recolour(source: Scene, rng: numpy.random.Generator) -> Edit:
    old = pick(rng, source.shapes)
    colour = pick(rng, [colour for colour in COLOURS if colour != old.colour])
    instruction = f"make {refer(source, old, rng)} {colour}"
    return _changed("recolour", instruction, source, old, replace(old, colour=colour))


def _reshape(source: Scene, rng: numpy.random.Generator) -> Edit:
    old = pick(rng, source.shapes)
    kind = pick(rng, [kind for kind in KINDS if kind != old.kind])
    instruction = f"turn {refer(source, old, rng)} into a {kind}"
    return _changed("reshape", instruction, source, old, replace(old, kind=kind))


def _resize(source: Scene, rng: numpy.random.Generator) -> Edit:
    old = pick(rng, source.shapes)
    (size,) = (size for size in SIZES if size != old.size)
    instruction = f"make {refer(source, old, rng)} {size}"
    return _changed("resize", instruction, source, old, replace(old, size=size))


def _remove(source: Scene, rng: numpy.random.Generator) -> Edit:
    old = pick(rng, source.shapes)
    return _changed("remove", f"remove {refer(source, old, rng)}", source, old, None)


def _move(source: Scene, rng: numpy.random.Generator) -> Edit:
    old = pick(rng, source.shapes)
    row, column = pick(rng, _free_cells(source))
    instruction = f"move {refer(source, old, rng)} to the {PLACES[GRID * row + column]}"
    return _changed("move", instruction, source, old, replace(old, row=row, column=column))


def _add(source: Scene, rng: numpy.random.Generator) -> Edit:
    """Add a shape at a place, or next to a shape: then any place in the relation is correct."""
    kind, colour, size = (pick(rng, tuple(options)) for options in (KINDS, COLOURS, SIZES))
    row, column = pick(rng, _free_cells(source))
    phrase = noun_phrase(Wanted(kind, colour, size))
    new = Shape(kind, colour, size, row, column)
    target = scene_of([*source.shapes, new], source.background)
    beside = [
        (relation, shape)
        for relation, (down, right) in STEPS.items()
        for shape in source.shapes
        if (shape.row + down, shape.column + right) == (row, column)
    ]
    if not beside or rng.random() < 0.5:
        instruction = f"add {phrase} at the {new.place}"
        return Edit("add", instruction, source, target, replace(request_of(target), task="add"))
    relation, shape = pick(rng, beside)
    instruction = f"add {phrase} {relation} {refer(source, shape, rng)}"
    first, second, *others = sorted(
        request_of(target).wanted, key=lambda w: (w.place != new.place, w.place != shape.place)
    )
    wanted = (replace(first, place=None), second, *others)
    return Edit(
        "add", instruction, source, target, Request("add", wanted, relation, source.background)
    )


def _free_cells(scene: Scene) -> list[tuple[int, int]]:
    taken = {(shape.row, shape.column) for shape in scene.shapes}
    cells = [divmod(cell, GRID) for cell in range(GRID**2)]
    return [cell for cell in cells if cell not in taken]


EDITS: dict[str, Callable[[Scene, numpy.random.Generator], Edit]] = {
    "recolour": _recolour,
    "reshape": _reshape,
    "resize": _resize,
    "remove": _remove,
    "add": _add,
    "move": _move,
}
