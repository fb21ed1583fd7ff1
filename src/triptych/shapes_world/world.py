"""Scenes of one to four shapes on a 3x3 grid, and their drawing.

An image is uint8 [48, 48, 3], with nine cells of 16 pixels. Each shape is in the centre of its own
cell, without jitter, so that a program can read an image exactly.
"""

from dataclasses import asdict, dataclass
from functools import cache

import numpy
from PIL import Image, ImageDraw

GRID = 3
CELL = 16
PIXELS = GRID * CELL
MOST_SHAPES = 4

KINDS = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (215, 30, 35),
    "green": (20, 150, 50),
    "blue": (35, 75, 230),
    "yellow": (250, 225, 40),
    "purple": (150, 40, 185),
    "orange": (245, 130, 20),
}
SIZES = {"small": 8, "large": 14}  # pixels across
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
PLACES = (  # in reading order: PLACES[GRID * row + column]
    *("top left", "top", "top right"),
    *("left", "centre", "right"),
    *("bottom left", "bottom", "bottom right"),
)

# These (colour, kind) pairs are never in the train or eval splits. Each colour and each kind occurs
# in other pairs, so that these require a new combination of known attributes.
HELD_OUT_PAIRS = (("red", "triangle"), ("blue", "circle"), ("yellow", "cross"))

SUPERSAMPLING = 8


@dataclass(frozen=True)
class Shape:
    """An object in a cell. Row 0 is the top and column 0 is the left."""

    kind: str
    colour: str
    size: str
    row: int
    column: int

    @property
    def place(self) -> str:
        """Name of the cell, for example "top left"."""
        return PLACES[GRID * self.row + self.column]


@dataclass(frozen=True)
class Scene:
    """Complete description of an image. The shapes are in reading order."""

    shapes: tuple[Shape, ...]
    background: str

    def to_dict(self) -> dict:
        """Dictionary of JSON values."""
        return {"shapes": [asdict(shape) for shape in self.shapes], "background": self.background}

    @classmethod
    def from_dict(cls, values: dict) -> "Scene":
        """Inverse of `to_dict`."""
        return cls(tuple(Shape(**shape) for shape in values["shapes"]), values["background"])


def scene_of(shapes, background: str) -> Scene:
    """Scene of shapes given in any order."""
    return Scene(tuple(sorted(shapes, key=lambda s: (s.row, s.column))), background)


@cache
def mask(kind: str, size: str) -> numpy.ndarray:
    """Coverage of each pixel of a cell by a shape, float [16, 16] in [0, 1]."""
    width = CELL * SUPERSAMPLING
    across = SIZES[size] * SUPERSAMPLING
    low, high = (width - across) // 2, (width + across) // 2 - 1
    canvas = Image.new("L", (width, width), 0)
    pen = ImageDraw.Draw(canvas)
    if kind == "circle":
        pen.ellipse((low, low, high, high), fill=255)
    elif kind == "square":
        pen.rectangle((low, low, high, high), fill=255)
    elif kind == "triangle":
        pen.polygon(((low, high), (high, high), (width // 2, low)), fill=255)
    elif kind == "cross":
        inner = round(0.34 * across)
        pen.rectangle((low + inner, low, high - inner, high), fill=255)
        pen.rectangle((low, low + inner, high, high - inner), fill=255)
    else:
        raise ValueError(f"There is no shape called {kind!r}. The shapes are {', '.join(KINDS)}.")
    return numpy.asarray(canvas.reduce(SUPERSAMPLING), dtype=numpy.float64) / 255


@cache
def cell_image(kind: str, colour: str, size: str, background: str) -> numpy.ndarray:
    """Image of a cell with a shape, uint8 [16, 16, 3]."""
    cover = mask(kind, size)[:, :, None]
    mixed = cover * COLOURS[colour] + (1 - cover) * BACKGROUNDS[background]
    return numpy.round(mixed).astype(numpy.uint8)


@cache
def _empty(background: str) -> numpy.ndarray:
    """Image without shapes, uint8 [48, 48, 3]."""
    return numpy.full((PIXELS, PIXELS, 3), BACKGROUNDS[background], dtype=numpy.uint8)


def draw(scene: Scene) -> numpy.ndarray:
    """Draw the image of a scene, uint8 [48, 48, 3]."""
    image = _empty(scene.background).copy()
    for shape in scene.shapes:
        top, left = CELL * shape.row, CELL * shape.column
        image[top : top + CELL, left : left + CELL] = cell_image(
            shape.kind, shape.colour, shape.size, scene.background
        )
    return image
