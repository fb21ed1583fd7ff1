"""Sixty drawn scenes for the GenEval scorer: ten of each task, half of them wrong on purpose.

Use them to test verdicts of the scorer without a detector.

The prompts are published ones. Objects are plain ellipses and rectangles; what is where, in which
colour, is known, so the right verdict on each scene is known too.
"""

from dataclasses import dataclass

import numpy
from PIL import Image, ImageDraw

from triptych.evaluation.geneval.colours import COLOURS, ColourClassifier
from triptych.evaluation.geneval.detection import OBJECT_NAMES, DetectedObject, Detector
from triptych.evaluation.geneval.layout import read_prompts

SIZE = 200
RGB = {
    "red": (220, 20, 30),
    "orange": (255, 140, 0),
    "yellow": (250, 230, 20),
    "green": (20, 150, 40),
    "blue": (30, 60, 220),
    "purple": (120, 30, 150),
    "pink": (255, 150, 200),
    "brown": (110, 65, 25),
    "black": (5, 5, 5),
    "white": (250, 250, 250),
}
GREY = (153, 153, 153)
# Left, top, right, bottom of what is drawn first, second, ...; none beside another by chance.
PLACES = [(20, 70, 70, 120), (130, 75, 185, 125), (80, 10, 120, 50), (80, 150, 120, 190)]
PLACES += [(10, 10, 45, 45)]
BESIDE = {
    "left of": (10, 80, 50, 120),
    "right of": (150, 80, 190, 120),
    "above": (80, 10, 120, 50),
    "below": (80, 150, 120, 190),
}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
MIDDLE = (80, 80, 120, 120)


@dataclass
class Scene:
    """An image for an entry of the prompt file, and the right verdict on it."""

    entry: dict
    right: bool
    objects: list[tuple[str, str, tuple[int, int, int, int]]]
    """(name, colour, box) of each."""
    number: int
    """Of the scene: its background, and its shapes, follow from it."""

    def draw(self) -> tuple[Image.Image, list[DetectedObject]]:
        """The image, and what a good detector finds: the doubtful things first."""
        backgrounds = [rgb for name, rgb in RGB.items() if name not in self._colours()]
        image = Image.new("RGB", (SIZE, SIZE), backgrounds[self.number % len(backgrounds)])
        # a mark of its own, so that no two scenes are the same image
        image.putpixel((SIZE - 1, SIZE - 1), (self.number, 0, 0))
        found = self._doubtful()
        for index, (name, colour, box) in enumerate(self.objects):
            shape = Image.new("1", (SIZE, SIZE))
            pen = ImageDraw.Draw(shape)
            inside = (box[0], box[1], box[2] - 1, box[3] - 1)
            (pen.ellipse if (self.number + index) % 2 else pen.rectangle)(inside, fill=1)
            image.paste(RGB[colour], mask=shape)
            found.append(DetectedObject(name, 0.99 - 0.01 * index, box, numpy.array(shape)))
        return image, found

    def _colours(self):
        return {colour for _, colour, _ in self.objects}

    def _doubtful(self):
        """Just below the threshold: one more of every asked object, and a thing not asked for."""
        below = 0.9 if self.entry["tag"] == "counting" else 0.3
        asked = [clause["class"] for clause in self.entry["include"]]
        return [DetectedObject(name, below, (0, 0, 30, 30)) for name in [*asked, "toaster"]]


def scenes() -> list[Scene]:
    """Sixty, the tasks one after the other, right and wrong in turn."""
    by_tag = {}
    for entry in read_prompts():
        by_tag.setdefault(entry["tag"], []).append(entry)
    made = []
    for tag, entries in by_tag.items():
        for n in range(10):
            entry = entries[n * len(entries) // 10]
            right = n % 2 == 0
            made.append(Scene(entry, right, _objects(tag, entry, right, n), len(made)))
    return made


def _objects(tag, entry, right, n):
    clauses = entry["include"]
    names = [clause["class"] for clause in clauses]
    if tag == "counting":
        wrong = clauses[0]["count"] + (1 if n % 4 == 1 else -1)  # one too many, or too few
        number = clauses[0]["count"] if right else wrong
        return [(names[0], "red", place) for place in PLACES[:number]]
    if tag == "position":
        wanted = clauses[1]["position"][0]
        # on the wrong side; or on the right side, but hardly off the centre
        near = (70, 76, 118, 116) if wanted in ("left of", "right of") else (76, 70, 116, 118)
        wrong = BESIDE[OPPOSITE[wanted]] if n % 4 == 1 else near
        return [(names[0], "red", MIDDLE), (names[1], "blue", BESIDE[wanted] if right else wrong)]
    if tag == "single_object":
        other = next(name for name in ("vase", "pizza") if name != names[0])
        return [(names[0] if right else other, "green", PLACES[n % 5])]
    if tag == "two_object":
        shown = names if right else [names[n % 4 == 1]]
        return [(name, "brown", place) for name, place in zip(shown, PLACES, strict=False)]
    colours = [clause["color"] for clause in clauses]
    if not right and tag == "color_attr":
        colours = colours[::-1]  # both colours are there, of the wrong objects
    elif not right:
        colours = [next(colour for colour in COLOURS if colour != colours[0])]
    return list(zip(names, colours, PLACES, strict=False))


class TrueBoxes(Detector):
    """Knows every scene by its pixels."""

    name, classes = "true boxes", frozenset(OBJECT_NAMES)

    def __init__(self, drawn):
        scenes_drawn = (scene.draw() for scene in drawn)
        self.known = {image.tobytes(): found for image, found in scenes_drawn}

    def detect(self, image):
        return self.known[image.tobytes()]


class Pixels(ColourClassifier):
    """The colour nearest to the most frequent one of a crop that is not the grey around it."""

    name = "pixels"

    def classify(self, crops, object_name):
        return [self._nearest(crop) for crop in crops]

    def _nearest(self, crop):
        pixels = numpy.asarray(crop).reshape(-1, 3)
        pixels = pixels[(pixels != GREY).any(1)]
        values, numbers = numpy.unique(pixels, axis=0, return_counts=True)
        most = values[numbers.argmax()].astype(int)
        return min(COLOURS, key=lambda name: ((most - RGB[name]) ** 2).sum())
