"""Images of one or two shapes whose captions say their sizes, from which sizes are learned.

A generator that learns from the captions of `captions.sample` alone does not follow sizes: what
they say of an image is little beside what colours and places leave open. So these captions lead
from saying everything to saying no more than the size. See docs/tiny_preset.md.
"""

import numpy

from triptych.shapes_world.captions import (
    Request,
    Wanted,
    describe,
    is_evaluation,
    pick,
    sample,
    write,
)
from triptych.shapes_world.world import Scene

TASKS = ("single_object", "two_object", "colors", "color_attribution")
DETAIL = (0.0, 0.5, 1.0)  # probability of colours, of places and of the background in a caption
REDRAWN = 0.6  # share of the pairs with the small shape first that are drawn again


def sample_sized(
    rng: numpy.random.Generator, index: int, split: str = "train"
) -> tuple[str, Request, Scene]:
    """Draw a caption with sizes, its request, and the scene, neither of them of another split.

    In seven of ten pairs of two sizes the large shape is named first. If both orders were equally
    frequent, sizes would say nothing without the order and the order nothing without the sizes, and
    which size is of which shape would not be learned; as with relations, see `captions.sample`.
    """
    while True:
        _, _, scene = sample(rng, TASKS[index % len(TASKS)], split)
        sizes = [shape.size for shape in scene.shapes]
        if sizes == ["small", "large"] and rng.random() < REDRAWN:
            continue
        request = _part_of(scene, rng)
        if is_evaluation(request) != (split == "eval"):
            continue
        full = request.background and all(w.colour and w.place for w in request.wanted)
        return describe(scene, rng) if full else write(request, rng), request, scene


def _part_of(scene: Scene, rng: numpy.random.Generator) -> Request:
    """Request with the sizes in a scene and a random part of the rest."""
    colours, places, background = rng.random(3) < pick(rng, DETAIL)
    wanted = tuple(
        Wanted(s.kind, s.colour if colours else None, s.size, 1, s.place if places else None)
        for s in scene.shapes
    )
    return Request("description", wanted, None, scene.background if background else None)
