"""Captions: their meaning, their texts, and the split into training and evaluation.

The six tasks are those of GenEval. A `Request` is the exact meaning of a caption: the image must
contain the wanted shapes and no others. `parse` is the inverse of writing captions.
"""

import re
import zlib
from dataclasses import asdict, dataclass
from functools import cache

import numpy

from triptych.shapes_world.world import (
    BACKGROUNDS,
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

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attribution")
UNSEEN_TASKS = ("counting", "colors", "position", "color_attribution")  # a caption names a colour
# "instruct" is the curated training data of stage 3: only short captions, with more of the tasks
# that stage 2 learns last, like the published set of 60k.
INSTRUCT_TASKS = (
    *("position",) * 3,
    *("two_object",) * 2,
    *("color_attribution",) * 2,
    *("counting",) * 2,
    "single_object",
)
SPLITS = ("train", "eval", "unseen", "instruct")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(INVERSE)
OPENINGS = ("a photo of ", "", "a picture of ", "an image of ")
SCENES_PER_REQUEST = 32


@dataclass(frozen=True)
class Wanted:
    """Requirement of `count` shapes of a kind. None means any."""

    kind: str
    colour: str | None = None
    size: str | None = None
    count: int = 1
    place: str | None = None


@dataclass(frozen=True)
class Request:
    """Requirements on an image. A relation is between wanted[0] and wanted[1], in that order."""

    task: str
    wanted: tuple[Wanted, ...]
    relation: str | None = None
    background: str | None = None

    @property
    def total(self) -> int:
        """Number of shapes in the image."""
        return sum(wanted.count for wanted in self.wanted)

    def to_dict(self) -> dict:
        """Dictionary of JSON values."""
        return asdict(self) | {"wanted": [asdict(wanted) for wanted in self.wanted]}

    @classmethod
    def from_dict(cls, values: dict) -> "Request":
        """Inverse of `to_dict`."""
        return cls(**values | {"wanted": tuple(Wanted(**wanted) for wanted in values["wanted"])})


# --- splits ---------------------------------------------------------------------------------------


def is_evaluation(request: Request) -> bool:
    """Whether this meaning is reserved for evaluation: one in eight, for any wording.

    Requests with only kinds and counts ("a circle") are always for training.
    """
    plain = all(w.colour is w.size is w.place is None for w in request.wanted)
    if plain and request.background is request.relation is None:
        return False
    parts = [(w.kind, w.colour, w.size, w.count, w.place) for w in request.wanted]
    relation = request.relation
    if relation is None:
        parts.sort(key=repr)
    elif relation in (
        "right of",
        "below",
    ):  # equivalent to the inverse relation with swapped shapes
        parts[:2], relation = parts[1::-1], INVERSE[relation]
    return zlib.crc32(repr((parts, relation, request.background)).encode()) % 8 == 0


def is_evaluation_scene(scene: Scene) -> bool:
    """Whether this image is reserved for evaluation: one in eight."""
    return is_evaluation(request_of(scene))


def asks_held_out(request: Request) -> bool:
    """Whether the request has a (colour, kind) pair that is not in the training images."""
    return any((wanted.colour, wanted.kind) in HELD_OUT_PAIRS for wanted in request.wanted)


# --- requests and captions ------------------------------------------------------------------------


def noun_phrase(wanted: Wanted) -> str:
    """Noun phrase such as "an orange circle" or "three small crosses"."""
    words = [word for word in (wanted.size, wanted.colour, wanted.kind) if word]
    if wanted.count > 1:
        return " ".join([NUMBERS[wanted.count], *words[:-1], plural(wanted.kind)])
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def placed_phrase(wanted: Wanted) -> str:
    """Noun phrase with the place, if one is wanted: "a circle at the top left"."""
    return noun_phrase(wanted) + (f" at the {wanted.place}" if wanted.place else "")


def plural(kind: str) -> str:
    """Plural such as "crosses"."""
    return kind + ("es" if kind.endswith("s") else "s")


def write(request: Request, rng: numpy.random.Generator) -> str:
    """Write a short caption of a request, in one of several wordings."""
    joint = f" {request.relation} " if request.relation else " and "
    ending = f" on a {request.background} background" if request.background else ""
    return pick(rng, OPENINGS) + joint.join(map(placed_phrase, request.wanted)) + ending


def request_of(scene: Scene) -> Request:
    """Request with everything in a scene, of the task "description"."""
    wanted = tuple(Wanted(s.kind, s.colour, s.size, 1, s.place) for s in scene.shapes)
    return Request("description", wanted, None, scene.background)


def describe(scene: Scene, rng: numpy.random.Generator) -> str:
    """Write a long caption with everything in a scene, in one of three wordings."""
    wanted = request_of(scene).wanted
    phrases = list(map(placed_phrase, wanted))
    listed = " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))
    form = rng.integers(3)
    if form == 0:
        return f"on a {scene.background} background there is {listed}"
    if form == 1:
        return f"{pick(rng, OPENINGS)}{listed} on a {scene.background} background"
    sentences = [f"{noun_phrase(w)} is at the {w.place}." for w in wanted]
    return " ".join([f"the background is {scene.background}.", *sentences])


def parse(caption: str) -> Request | None:
    """Parse a caption to its request; None if it is not in the language of this world."""
    text = " ".join(caption.lower().split()).rstrip(".! ").replace("to the ", "")
    text = re.sub(r"^(a|an) (photo|picture|image) of ", "", text)
    text = re.sub(r"^the background is (\w+)\. (.*)$", r"\2 on a \1 background", text)
    text = re.sub(r"^(on a \w+ background),? there (?:is|are) (.*)$", r"\2 \1", text)
    text = re.sub(r" is (at|in|on) the ", r" \1 the ", text)
    found = re.fullmatch(rf"(.*?)(?: on a ({'|'.join(BACKGROUNDS)}) background)?", text)
    text, background = found.groups()
    parts = re.split(rf" ({'|'.join(RELATIONS)}) ", text)
    relation = parts[1] if len(parts) == 3 else None
    phrases = parts[::2] if relation else re.split(r", and |, |\. | and ", text)
    wanted = tuple(_parse_phrase(phrase) for phrase in phrases)
    if len(parts) not in (1, 3) or None in wanted or sum(w.count for w in wanted) > MOST_SHAPES:
        return None
    return Request(_task(wanted, relation, background), wanted, relation, background)


@cache
def _phrase_pattern() -> re.Pattern:
    kinds = "|".join([*KINDS, *map(plural, KINDS)])
    return re.compile(
        rf"(an?|{'|'.join(NUMBERS[1 : MOST_SHAPES + 1])}) "
        rf"(?:({'|'.join(SIZES)}) )?(?:({'|'.join(COLOURS)}) )?({kinds})"
        rf"(?: (?:at|in|on) the ({'|'.join(PLACES)}))?"
    )


def _parse_phrase(phrase: str) -> Wanted | None:
    """Inverse of `noun_phrase`, with an optional place."""
    found = _phrase_pattern().fullmatch(phrase)
    if not found:
        return None
    number, size, colour, noun, place = found.groups()
    count = NUMBERS.index(number) if number in NUMBERS else 1
    kind = next((kind for kind in KINDS if noun == (plural(kind) if count > 1 else kind)), None)
    return Wanted(kind, colour, size, count, place) if kind else None


def _task(wanted: tuple[Wanted, ...], relation: str | None, background: str | None) -> str:
    """Task of a parsed request; the first that fits for requests of a user."""
    if background and all(w.colour and w.size and w.place for w in wanted):
        return "description"
    if relation:
        return "position"
    if len(wanted) > 1:
        return "color_attribution" if any(w.colour for w in wanted) else "two_object"
    if wanted[0].count > 1:
        return "counting"
    return "colors" if wanted[0].colour else "single_object"


# --- sampling -------------------------------------------------------------------------------------


def sample(
    rng: numpy.random.Generator, task: str, split: str = "train"
) -> tuple[str, Request, Scene]:
    """Draw a short caption, its request, and a scene that satisfies it.

    In "train" neither the request nor the scene is reserved for evaluation, in "eval" both are, and
    neither split has a held-out pair. In "unseen" the caption has one.
    """
    if task not in TASKS or split not in SPLITS or (split == "unseen" and task not in UNSEEN_TASKS):
        raise ValueError(f"There is nothing to draw for task {task!r} in split {split!r}.")
    unseen, evaluation = split == "unseen", split == "eval"
    while True:
        request = _draw_request(rng, task, split)
        if not unseen and is_evaluation(request) != evaluation:
            continue
        # a request with all attributes may have no scene in its split: then draw another
        for _ in range(SCENES_PER_REQUEST):
            scene = _draw_scene(rng, request)
            if unseen or is_evaluation_scene(scene) == evaluation:
                return write(request, rng), request, scene


def pick(rng: numpy.random.Generator, options):
    """Draw one item of a sequence, five times faster than `Generator.choice`."""
    return options[rng.integers(len(options))]


def _maybe(rng: numpy.random.Generator, options, probability: float):
    return pick(rng, tuple(options)) if rng.random() < probability else None


@cache
def _seen_colours(kind: str) -> tuple[str, ...]:
    return tuple(colour for colour in COLOURS if (colour, kind) not in HELD_OUT_PAIRS)


def _draw_request(rng: numpy.random.Generator, task: str, split: str) -> Request:
    """Draw a request of a task, with a held-out pair only in "unseen"."""
    unseen = split == "unseen"
    first, second = (KINDS[i] for i in rng.permutation(len(KINDS))[:2])
    colour = None
    if unseen:
        colour, first = pick(rng, HELD_OUT_PAIRS)
        second = pick(rng, [kind for kind in KINDS if kind != first])
    background = _maybe(rng, BACKGROUNDS, 0.3)
    if task == "single_object":
        wanted = [Wanted(first, None, _maybe(rng, SIZES, 0.4))]
    elif task == "two_object":
        sizes = [pick(rng, tuple(SIZES)) for _ in range(2)] if rng.random() < 0.3 else (None, None)
        wanted = [Wanted(first, None, sizes[0]), Wanted(second, None, sizes[1])]
    elif task == "counting":
        colour = colour or _maybe(rng, _seen_colours(first), 0.5)
        wanted = [Wanted(first, colour, None, int(rng.integers(2, MOST_SHAPES + 1)))]
    elif task == "colors":
        colour = colour or pick(rng, _seen_colours(first))
        wanted = [Wanted(first, colour, _maybe(rng, SIZES, 0.3))]
    elif task == "position" and not unseen and rng.random() < 0.5:
        wanted = [Wanted(first), Wanted(second)]
    else:
        colour = colour or pick(rng, _seen_colours(first))
        others = [other for other in _seen_colours(second) if other != colour]
        wanted = [Wanted(first, colour), Wanted(second, pick(rng, others))]
        if unseen and rng.random() < 0.5:
            wanted.reverse()
    relation = None
    if task == "position":
        # Which shape is on the left depends on relation and order together: if all relations were
        # equally frequent, neither alone would be informative, and a generator would get no
        # gradient towards either. In "train" most relations begin with the left or upper shape.
        begin = split == "train" and rng.random() < 0.6
        relation = pick(rng, ("left of", "above") if begin else RELATIONS)
    return Request(task, tuple(wanted), relation, background)


@cache
def _cells_in(relation: str) -> tuple[tuple[int, int], ...]:
    """Pairs of cells in a relation, on opposite sides of the image.

    A relation then determines the third of the image that each shape is in; closer pairs, which the
    checker accepts as well, would be much less informative.
    """
    pairs = []
    for first in range(GRID**2):
        for second in range(GRID**2):
            down = second // GRID - first // GRID
            right = second % GRID - first % GRID
            along = {"left of": right, "right of": -right, "above": down, "below": -down}[relation]
            if along == GRID - 1:
                pairs.append((first, second))
    return tuple(pairs)


def _draw_scene(rng: numpy.random.Generator, request: Request) -> Scene:
    """Draw a scene that satisfies a request without places; other attributes are random.

    Without a relation, shapes are in reading order in the order of the caption, as in `describe`:
    "a red circle and a blue square" then determines the colour of each place. In random order the
    colours would be ambiguous until both shapes are placed, and learned last.
    """
    slots = [wanted for wanted in request.wanted for _ in range(wanted.count)]
    if request.relation:
        cells = pick(rng, _cells_in(request.relation))
    else:
        cells = sorted(rng.permutation(GRID**2)[: len(slots)].tolist())
    shapes = [
        Shape(
            wanted.kind,
            wanted.colour or pick(rng, _seen_colours(wanted.kind)),
            wanted.size or pick(rng, tuple(SIZES)),
            *divmod(cell, GRID),
        )
        for wanted, cell in zip(slots, cells, strict=True)
    ]
    return scene_of(shapes, request.background or pick(rng, tuple(BACKGROUNDS)))
