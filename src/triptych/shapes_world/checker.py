"""Exact checker: reads the scene from the pixels of an image, and scores images with it.

Every cell is compared with the drawing of each kind, colour and size. A cell that matches no
drawing makes the whole image unclear, and an unclear image satisfies no request. The limits below
tolerate JPEG, mild noise and blur, and generated images.
"""

from collections.abc import Sequence
from functools import cache
from itertools import permutations

import numpy

from triptych.shapes_world.captions import TASKS, Request, Wanted
from triptych.shapes_world.world import (
    BACKGROUNDS,
    CELL,
    COLOURS,
    GRID,
    KINDS,
    PIXELS,
    SIZES,
    Scene,
    Shape,
    cell_image,
    mask,
)

# pixel values from 0 to 255
BACKGROUND_LIMIT = 40  # largest channel difference from the named background colour
SHAPE_LIMIT = 22  # mean absolute difference of a cell from the drawing of a shape
EMPTY_LIMIT = 14  # mean absolute difference of a cell from the plain background
SPECK = 64  # a pixel of an empty cell this far from the background is a speck
MAX_SPECKS = 6  # single wrong pixels are tolerated; a dot of 3x3 pixels is an object
MIN_OVERLAP = 0.7  # intersection over union of the foreground and the shape

Look = tuple[str, str, str]  # kind, colour, size


@cache
def _looks() -> list[Look]:
    return [(kind, colour, size) for kind in KINDS for colour in COLOURS for size in SIZES]


@cache
def _drawings(background: str) -> numpy.ndarray:
    """Drawings of a cell, float32 [48 looks, 768 values]."""
    drawn = [cell_image(kind, colour, size, background) for kind, colour, size in _looks()]
    return numpy.stack(drawn).reshape(len(drawn), -1).astype(numpy.float32)


@cache
def _covers() -> numpy.ndarray:
    """Pixels that belong to each look, bool [48, 256]."""
    covers = [mask(kind, size).reshape(-1) >= 0.5 for kind, _, size in _looks()]
    return numpy.stack(covers)


@cache
def _rim() -> numpy.ndarray:
    """Outermost pixels of all cells, which no shape covers, bool [48, 48]."""
    inside = numpy.arange(PIXELS) % CELL
    edge = (inside == 0) | (inside == CELL - 1)
    return edge[:, None] | edge[None, :]


def _background_name(seen: numpy.ndarray) -> str | None:
    """Name of a background colour, or None."""
    for name, colour in BACKGROUNDS.items():
        if numpy.abs(seen - colour).max() <= BACKGROUND_LIMIT:
            return name
    return None


def read(image: numpy.ndarray) -> Scene | None:
    """Read the scene of an image uint8 [48, 48, 3]; None if any cell is unclear.

    The scene may have from zero to nine shapes.
    """
    background, cells = _read_cells(image)
    if background is None or None in cells:
        return None
    return Scene(tuple(each for each in cells if each is not None), background)


def clear_shapes(image: numpy.ndarray) -> tuple[Shape, ...]:
    """Shapes of an image uint8 [48, 48, 3] that are clear, whatever its other cells show."""
    _, cells = _read_cells(image)
    return tuple(each for each in cells if each is not None)


def _read_cells(image: numpy.ndarray) -> tuple[str | None, list[Shape | None]]:
    """Name of the background, and the shape of each cell that is not empty, None if unclear.

    Without a name for the background nothing is known of the cells.
    """
    if image.shape != (PIXELS, PIXELS, 3) or image.dtype != numpy.uint8:
        raise ValueError(
            f"The checker reads uint8 images of shape {(PIXELS, PIXELS, 3)}, "
            f"but got {image.dtype} {image.shape}."
        )
    seen = numpy.median(image[_rim()].astype(numpy.float32), axis=0)
    background = _background_name(seen)
    if background is None:
        return None, []
    cells = image.reshape(GRID, CELL, GRID, CELL, 3).swapaxes(1, 2).astype(numpy.float32)
    cells = cells.reshape(GRID**2, CELL**2, 3)
    ground = numpy.array(BACKGROUNDS[background], dtype=numpy.float32)

    away = numpy.abs(cells - seen)  # [9, 256, 3]; a uniform tint of the background is not an object
    specks = (away.max(axis=2) > SPECK).sum(axis=1)
    empty = (away.mean(axis=(1, 2)) <= EMPTY_LIMIT) & (specks <= MAX_SPECKS)

    # nearest drawing by |cell - drawing|^2 - |cell|^2; the last term is equal for all drawings
    flat, drawings = cells.reshape(GRID**2, -1), _drawings(background)
    nearest = ((drawings**2).sum(axis=1) - 2 * flat @ drawings.T).argmin(axis=1)  # [9]

    shown: list[Shape | None] = []
    for cell in numpy.flatnonzero(~empty):
        kind, colour, size = _looks()[nearest[cell]]
        error = numpy.abs(flat[cell] - drawings[nearest[cell]]).mean()
        axis = numpy.array(COLOURS[colour], dtype=numpy.float32) - ground
        foreground = (cells[cell] - ground) @ axis >= 0.5 * (axis @ axis)  # closer to the colour
        cover = _covers()[nearest[cell]]
        overlap = (foreground & cover).sum() / (foreground | cover).sum()
        if error > SHAPE_LIMIT or overlap < MIN_OVERLAP:
            shown.append(None)
        else:
            shown.append(Shape(kind, colour, size, *divmod(int(cell), GRID)))
    return background, shown


def satisfies(scene: Scene, request: Request) -> bool:
    """Whether the scene meets the request exactly, with nothing else."""
    if len(scene.shapes) != request.total or request.background not in (None, scene.background):
        return False
    slots = [i for i, wanted in enumerate(request.wanted) for _ in range(wanted.count)]
    return any(
        all(_fits(shape, request.wanted[i]) for i, shape in zip(slots, order, strict=True))
        and _related(
            [shape for i, shape in zip(slots, order, strict=True) if i == 0],
            [shape for i, shape in zip(slots, order, strict=True) if i == 1],
            request.relation,
        )
        for order in permutations(scene.shapes)
    )


def _fits(shape: Shape, wanted: Wanted) -> bool:
    return (
        shape.kind == wanted.kind
        and wanted.colour in (None, shape.colour)
        and wanted.size in (None, shape.size)
        and wanted.place in (None, shape.place)
    )


def _related(first: list[Shape], second: list[Shape], relation: str | None) -> bool:
    """Whether all of `first` are in the relation to all of `second`."""
    holds = {
        None: lambda a, b: True,
        "left of": lambda a, b: a.column < b.column,
        "right of": lambda a, b: a.column > b.column,
        "above": lambda a, b: a.row < b.row,
        "below": lambda a, b: a.row > b.row,
    }[relation]
    return all(holds(a, b) for a in first for b in second)


def check(image: numpy.ndarray, request: Request) -> bool:
    """Whether an image uint8 [48, 48, 3] meets the request exactly."""
    scene = read(image)
    return scene is not None and satisfies(scene, request)


def shape_eval(images: Sequence[numpy.ndarray], requests: Sequence[Request]) -> dict[str, float]:
    """Share of correct images for each task, and their unweighted "mean".

    Tasks without a request are omitted.
    """
    right = [check(image, request) for image, request in zip(images, requests, strict=True)]
    return by_task(right, requests)


def chance_levels(images: Sequence[numpy.ndarray], requests: Sequence[Request]) -> dict[str, float]:
    """Expected scores if every request gets the correct image of another request.

    The exact mean over all shuffles that move every image; needs at least two pairs.
    """
    scenes = [read(image) for image in images]
    rates = []
    for i, request in enumerate(requests):
        others = scenes[:i] + scenes[i + 1 :]
        rates.append(sum(s is not None and satisfies(s, request) for s in others) / len(others))
    return by_task(rates, requests)


def by_task(scores: Sequence[float], requests: Sequence[Request]) -> dict[str, float]:
    """Mean score of each task with requests, in the order of TASKS, and their "mean"."""
    means = {}
    for task in (*TASKS, "description"):
        of_task = [s for s, request in zip(scores, requests, strict=True) if request.task == task]
        if of_task:
            means[task] = sum(of_task) / len(of_task)
    six = [means[task] for task in TASKS if task in means]
    return means | ({"mean": sum(six) / len(six)} if six else {})


def answer_is_right(given: str, expected: str) -> bool:
    """Whether two answers are equal, ignoring case, spaces and full stops at the end."""
    return _plain(given) == _plain(expected)


def _plain(answer: str) -> str:
    return " ".join(answer.lower().split()).rstrip(".").rstrip()
