"""GenEval with a real detector, on composites whose content is known."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from PIL import Image

from triptych.evaluation.geneval.colours import ColourClassifier
from triptych.evaluation.geneval.detection import Detector
from triptych.evaluation.geneval.layout import sample_path, write_metadata
from triptych.evaluation.geneval.rules import OFFICIAL
from triptych.evaluation.geneval.scoring import score
from verify_real.rows import Row
from verify_real.ssd_detector import SsdMobileNet
from verify_real.stamps import Stamps, fitted, paste

SIDE, LARGE, SMALL = 300, 220, 120  # pixels
NEAR, FAR, MIDDLE = 80, 220, 150  # places of centres
OBJECTS = {
    "apple": "food/fruit/apple_red",
    "bear": "animals/mammals/bears/bear",
    "bird": "animals/birds/owl",
    "cow": "animals/mammals/bovines/zebu",
    "dog": "animals/mammals/dogs/dog",
    "elephant": "animals/mammals/elephant",
    "giraffe": "animals/mammals/giraffe",
    "horse": "animals/mammals/equines/horse",
    "sheep": "animals/mammals/bovines/sheep",
    "zebra": "animals/mammals/equines/zebra",
}
ALONE = 8  # of the objects must be found alone, or this detector is no judge
# The detector misses some objects in a composite. Rules that are wrong for a task (all is right,
# left for right, at least for exactly) agree with at most half of its truths or of its untruths.
AGREES = 0.8


class NoColours(ColourClassifier):
    """Stands where no prompt names a colour."""

    name = "none"

    def classify(self, crops: Sequence[Image.Image], object_name: str) -> list[str]:
        raise NotImplementedError


@dataclass(frozen=True)
class Composite:
    """An image, an entry of a prompt file that it meets, and others that it does not meet."""

    image: Image.Image
    true: dict[str, Any]
    untrue: tuple[dict[str, Any], ...]


def rows(parts: Path) -> Iterator[Row]:
    """Rows of the check."""
    stamps, detector = Stamps(parts), SsdMobileNet(parts)
    images = {name: stamps.image(stamp) for name, stamp in OBJECTS.items()}
    found = {name: image for name, image in images.items() if _is_found(detector, name, image)}
    compared = f"objects that {detector.name} finds alone, of {len(images)}"
    yield Row("detector on single objects", compared, len(found), ALONE, ">=")
    made = composites(found)
    for true in (True, False):
        entries = [
            (each.image, entry)
            for each in made
            for entry in ((each.true,) if true else each.untrue)
        ]
        for tag, (right, number) in agreement(detector, entries, true).items():
            kind = "truths" if true else "untruths"
            compared = f"known content of composites: {kind} judged as such, of {number}"
            yield Row(f"GenEval {tag}: {kind}", compared, right / number, AGREES, ">=")


def _is_found(detector: Detector, name: str, image: Image.Image) -> bool:
    """Whether the detector finds an object, large and small, and nothing beside it."""
    for size in (LARGE, SMALL):
        canvas = paste([(fitted(image, size), (MIDDLE, MIDDLE))], SIDE)
        objects = detector.detect(canvas)
        seen = [each.name for each in objects if each.confidence > OFFICIAL.confidence]
        if seen != [name]:
            return False
    return True


def composites(images: dict[str, Image.Image]) -> list[Composite]:
    """Composites for four tasks of GenEval."""
    names = sorted(images)
    small = {name: fitted(image, SMALL) for name, image in images.items()}
    made = []
    for number, name in enumerate(names):
        other, third = (names[(number + step) % len(names)] for step in (1, 2))
        one = paste([(fitted(images[name], LARGE), (MIDDLE, MIDDLE))], SIDE)
        made.append(
            Composite(
                one, _entry("single_object", _some(name)), (_entry("single_object", _some(other)),)
            )
        )
        both = paste([(small[name], (NEAR, MIDDLE)), (small[other], (FAR, MIDDLE))], SIDE)
        untrue = _entry("two_object", _some(name), _some(third))
        made.append(Composite(both, _entry("two_object", _some(name), _some(other)), (untrue,)))
        made.append(_counted(name, small[name], 2 + number % 3))
    for number, (name, other) in enumerate(combinations(names, 2)):
        if number % 4 == 0:
            made.append(
                _placed(
                    name, other, small, ("left of", "right of", "above", "below")[number // 4 % 4]
                )
            )
    return made


def _counted(name: str, image: Image.Image, count: int) -> Composite:
    places = [(NEAR, NEAR), (FAR, FAR), (FAR, NEAR), (NEAR, FAR)][:count]
    canvas = paste([(image, place) for place in places], SIDE)
    true, more, fewer = (_number(name, wanted) for wanted in (count, count + 1, count - 1))
    return Composite(canvas, true, (more, fewer))


def _number(name: str, count: int) -> dict[str, Any]:
    """Exactly `count` objects, as GenEval's prompts of counting want."""
    return {**_entry("counting", _some(name, count)), "exclude": [_some(name, count + 1)]}


def _placed(name: str, other: str, images: dict[str, Image.Image], relation: str) -> Composite:
    """`other` is in `relation` to `name`."""
    horizontal, first = relation in ("left of", "right of"), relation in ("left of", "above")
    near, far = ((NEAR, MIDDLE), (FAR, MIDDLE)) if horizontal else ((MIDDLE, NEAR), (MIDDLE, FAR))
    at_other, at_name = (near, far) if first else (far, near)
    canvas = paste([(images[name], at_name), (images[other], at_other)], SIDE)
    relations = ("left of", "right of", "above", "below")
    entries = {
        each: _entry("position", _some(name), {**_some(other), "position": [each, 0]})
        for each in relations
    }
    true = entries.pop(relation)
    return Composite(canvas, true, tuple(entries.values()))


def _some(name: str, count: int = 1) -> dict[str, Any]:
    return {"class": name, "count": count}


def _entry(tag: str, *include: dict[str, Any]) -> dict[str, Any]:
    return {"tag": tag, "prompt": tag, "include": list(include)}


def agreement(
    detector: Detector, entries: list[tuple[Image.Image, dict[str, Any]]], true: bool
) -> dict[str, tuple[int, int]]:
    """By tag, how many entries the scorer judges to be `true`, and of how many."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, prompts = Path(scratch, "images"), Path(scratch, "prompts.jsonl")
        prompts.write_text("".join(json.dumps(entry) + "\n" for _, entry in entries))
        for number, (image, entry) in enumerate(entries):
            path = sample_path(folder, number, 0)
            path.parent.mkdir(parents=True)
            image.save(path)
            write_metadata(folder, number, entry)
        report = score(folder, detector, NoColours(), prompts=prompts, images_per_prompt=1)
    counts: dict[str, tuple[int, int]] = {}
    for item in report.items:
        right, number = counts.get(item["tag"], (0, 0))
        counts[item["tag"]] = (right + (bool(item["score"]) == true), number + 1)
    return counts
