"""Questions with short exact answers, about an image (from its scene) or about a caption.

Every question has exactly one correct answer: "the circle" occurs only where there is one circle.
What has to be looked up is named before it is answered ("top left: nothing", "circle left, square
right: yes"), as reading the grid does: a small model looks for what it has just said.
"""

from typing import Literal

import numpy

from triptych.shapes_world.captions import (
    INVERSE,
    NUMBERS,
    Request,
    Wanted,
    noun_phrase,
    pick,
    plural,
)
from triptych.shapes_world.world import COLOURS, HELD_OUT_PAIRS, KINDS, PLACES, Scene, Shape

ORDINALS = ("first", "second", "third", "fourth")
MAX_QUESTIONS = 12  # every scene has more different questions

Turn = tuple[str, str, str]  # question, answer, type
Mix = Literal["even", "practice"]


def questions(
    scene: Scene, rng: numpy.random.Generator, number: int, mix: Mix = "even"
) -> list[Turn]:
    """Draw `number` different questions about an image: (question, answer, type).

    Of the mixes, "even" has all types alike; in "practice" those are more frequent that are hard to
    learn: places and what is there, existence and relations.
    """
    if not 0 <= number <= MAX_QUESTIONS:
        raise ValueError(f"Ask for 0 to {MAX_QUESTIONS} questions about an image, not {number}.")
    turns: dict[str, Turn] = {}
    while len(turns) < number:
        turn = pick(rng, _MIXES[mix])(scene, rng)
        if turn:
            turns.setdefault(turn[0], turn)
    return list(turns.values())


def grid_reading(scene: Scene) -> tuple[str, str]:
    """Question about all nine cells, and its answer: place and content of each."""
    contents = {shape.place: f"{shape.size} {shape.colour} {shape.kind}" for shape in scene.shapes}
    return "read the grid", ", ".join(f"{p}: {contents.get(p, 'nothing')}" for p in PLACES)


def attribute_questions(scene: Scene) -> list[tuple[str, str]]:
    """Questions about one attribute of one of several shapes; about other scenes, the reading.

    None can be answered by a guess from all shapes at once. Among all types of questions a model
    learns to say what is in an image, not what belongs together, and stays there.
    """
    kinds, colours = _alone(scene, "kind"), _alone(scene, "colour")
    if len(kinds) < 2:
        return [grid_reading(scene)]
    turns = [(f"what colour is the {shape.kind}?", shape.colour) for shape in kinds]
    turns += [(f"where is the {shape.kind}?", shape.place) for shape in kinds]
    return turns + [(f"what shape is {shape.colour}?", shape.kind) for shape in colours]


def _alone(scene: Scene, attribute: str) -> list[Shape]:
    """Shapes whose attribute value is unique in the scene."""
    values = [getattr(shape, attribute) for shape in scene.shapes]
    return [s for s, value in zip(scene.shapes, values, strict=True) if values.count(value) == 1]


def _what_colour(scene, rng):
    alone = _alone(scene, "kind")
    if alone:
        shape = pick(rng, alone)
        return f"what colour is the {shape.kind}?", shape.colour, "colour"


def _what_shape(scene, rng):
    alone = _alone(scene, "colour")
    if alone:
        shape = pick(rng, alone)
        return f"what shape is {shape.colour}?", shape.kind, "shape"


def _what_size(scene, rng):
    alone = _alone(scene, "kind")
    if alone:
        shape = pick(rng, alone)
        return f"what size is the {shape.kind}?", shape.size, "size"


def _where(scene, rng):
    alone = _alone(scene, "kind")
    if alone:
        shape = pick(rng, alone)
        return f"where is the {shape.kind}?", shape.place, "place"


def _how_many(scene, rng):
    return "how many shapes are there?", NUMBERS[len(scene.shapes)], "count"


def _how_many_kind(scene, rng):
    # half of the time a kind in the scene: else the answer would mostly be "zero"
    kind = pick(rng, scene.shapes).kind if rng.random() < 0.5 else pick(rng, KINDS)
    count = sum(shape.kind == kind for shape in scene.shapes)
    return f"how many {plural(kind)} are there?", NUMBERS[count], "count"


def _how_many_colour(scene, rng):
    colour = pick(rng, scene.shapes).colour if rng.random() < 0.5 else pick(rng, tuple(COLOURS))
    count = sum(shape.colour == colour for shape in scene.shapes)
    return f"how many {colour} shapes are there?", NUMBERS[count], "count"


def _background(scene, rng):
    return "what is the background?", scene.background, "background"


def _is_there(scene, rng):
    """Half yes and half no; for a no, a shape of the scene has the same colour or kind."""
    shape = pick(rng, scene.shapes)
    colour, kind, there = shape.colour, shape.kind, rng.random() < 0.5
    if not there:
        pairs = {(s.colour, s.kind) for s in scene.shapes} | set(HELD_OUT_PAIRS)
        near = [(c, kind) for c in COLOURS] + [(colour, k) for k in KINDS]
        colour, kind = pick(rng, [pair for pair in near if pair not in pairs])
    return f"is there {noun_phrase(Wanted(kind, colour))}?", "yes" if there else "no", "existence"


def _what_is_at(scene, rng):
    """Half of the time about a cell with a shape."""
    place = pick(rng, scene.shapes).place if rng.random() < 0.5 else pick(rng, PLACES)
    found = [s for s in scene.shapes if s.place == place]
    answer = f"{found[0].size} {found[0].colour} {found[0].kind}" if found else "nothing"
    return f"what is at the {place}?", f"{place}: {answer}", "content"


def _is_related(scene, rng):
    """Half yes and half no, never about an axis along which the two shapes are aligned."""
    return _relation_question(scene, rng, inverted=0.0)


def _is_related_begun(scene, rng):
    """`_is_related` with four in five beginning with the left or upper shape.

    The answer depends on relation and order together: while all relations are equally frequent,
    neither alone says anything, and a small model learns none.
    """
    return _relation_question(scene, rng, inverted=0.6)


def _relation_question(scene, rng, inverted: float):
    """Question about a relation; "right of" and "below" are put the other way round, `inverted` of
    them."""
    alone = _alone(scene, "kind")
    if len(alone) < 2:
        return None
    first, second = (alone[i] for i in rng.permutation(len(alone))[:2])
    true = []
    if first.column != second.column:
        true.append("left of" if first.column < second.column else "right of")
    if first.row != second.row:
        true.append("above" if first.row < second.row else "below")
    relation, holds = pick(rng, true), rng.random() < 0.5
    stated = relation if holds else INVERSE[relation]
    if inverted and stated in ("right of", "below") and rng.random() < inverted:
        first, second, stated = second, first, INVERSE[stated]
    places = f"{first.kind} {first.place}, {second.kind} {second.place}"
    answer = f"{places}: {'yes' if holds else 'no'}"
    return f"is the {first.kind} {stated} the {second.kind}?", answer, "relation"


_OTHERS = (
    *(_what_colour, _what_shape, _what_size, _where, _how_many, _how_many_kind, _how_many_colour),
    *(_background, _is_there, _what_is_at),
)
_MIXES: dict[Mix, tuple] = {
    "even": (*_OTHERS, _is_related),
    "practice": (
        *_OTHERS,
        *5 * (_is_related_begun,),
        *3 * (_where,),
        *2 * (_is_there,),
        *4 * (_what_is_at,),
    ),
}


def parse_reading(request: Request) -> tuple[str, str]:
    """Question about the full meaning of a caption, and its answer with fixed slots.

    Each shape is "number size colour kind place", with "any" and "anywhere" for unspecified
    attributes, followed by the relation and the background. In a relation, the slot of the place
    has the side of each shape, "anywhere left": a generator that has learned places can then use
    them for relations.
    """
    places = [wanted.place or "anywhere" for wanted in request.wanted]
    if request.relation:
        sides = (request.relation, INVERSE[request.relation])
        places = [f"anywhere {side.removesuffix(' of')}" for side in sides]
    listed = ", ".join(
        f"{NUMBERS[w.count]} {w.size or 'any'} {w.colour or 'any'} {w.kind} {place}"
        for w, place in zip(request.wanted, places, strict=True)
    )
    relation = "any relation"
    if request.relation:
        relation = f"{request.wanted[0].kind} {request.relation} {request.wanted[1].kind}"
    background = request.background or "any"
    noun = "shape" if request.total == 1 else "shapes"
    answer = f"{NUMBERS[request.total]} {noun}: {listed}. {relation}. {background} background."
    return "list the shapes", answer


def caption_questions(
    request: Request, rng: numpy.random.Generator, number: int
) -> list[tuple[str, str]]:
    """At most `number` different questions about a caption ("any" is unspecified)."""
    turns = _caption_turns(request)
    return [turns[i] for i in rng.permutation(len(turns))[:number]]


def _caption_turns(request: Request) -> list[tuple[str, str]]:
    """All questions about a caption."""
    turns = [
        ("how many shapes are there?", NUMBERS[request.total]),
        ("what is the background?", request.background or "any"),
    ]
    kinds = [wanted.kind for wanted in request.wanted]
    for ordinal, wanted in zip(ORDINALS, request.wanted, strict=False):
        turns += [
            (f"what shape is {ordinal}?", wanted.kind),
            (f"what colour is {ordinal}?", wanted.colour or "any"),
            (f"what size is {ordinal}?", wanted.size or "any"),
        ]
        if wanted.place:
            turns += [
                (f"where is {ordinal}?", wanted.place),
                (f"what is at the {wanted.place}?", noun_phrase(wanted)),
            ]
        if kinds.count(wanted.kind) == 1 and wanted.count == 1:
            turns.append((f"what colour is the {wanted.kind}?", wanted.colour or "any"))
    for kind in KINDS:
        count = sum(w.count for w in request.wanted if w.kind == kind)
        turns.append((f"how many {plural(kind)} are there?", NUMBERS[count]))
    if request.relation:
        first, second = request.wanted[:2]
        turns += [
            (f"what is {request.relation} the {second.kind}?", noun_phrase(first)),
            (f"what is {INVERSE[request.relation]} the {first.kind}?", noun_phrase(second)),
        ]
    return turns
