"""The shapes world as WebDataset tar shards.

A sample is KEY.jpg (image), KEY.txt (caption) and KEY.json (everything about it); a story is
KEY.json and several images. Sample i of a
split depends only on the seed, the split and i: a data set is reproducible byte for byte with the
same versions of the libraries, and a larger one begins with the smaller one.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy

from triptych.shapes_world.captions import (
    INSTRUCT_TASKS,
    SPLITS,
    TASKS,
    UNSEEN_TASKS,
    Request,
    describe,
    request_of,
    sample,
)
from triptych.shapes_world.edits import EDITS, Edit, sample_edit
from triptych.shapes_world.edits import SPLITS as EDIT_SPLITS
from triptych.shapes_world.near_misses import shows_caption
from triptych.shapes_world.questions import (
    attribute_questions,
    caption_questions,
    grid_reading,
    parse_reading,
    questions,
)
from triptych.shapes_world.sizes import sample_sized
from triptych.shapes_world.stories import messages_of, sample_story
from triptych.shapes_world.world import Scene, draw
from triptych.utils.atomic_write import new_folder
from triptych.utils.disk_usage import announce
from triptych.utils.documents import read_json
from triptych.utils.errors import UserError
from triptych.utils.images import encode_image
from triptych.utils.shard_writing import write_samples

VERSION = 11  # incremented whenever the same seed gives other samples
MARKER = "shapes.json"
EDITS_VERSION = 1
EDITS_MARKER = "edits.json"
STORIES_VERSION = 3
STORIES_MARKER = "stories.json"
SIZED_VERSION = 1
SIZED_MARKER = "sized.json"
LONG_CAPTIONS = 0.2  # share of the training captions
IMAGE_TURNS = 3  # in addition to the reading of all nine cells, which is the first or last turn
QUESTIONS = 12  # in addition to the reading: a second conversation, of which a batch takes some
CAPTION_QUESTIONS = 4  # of that conversation, whether the image shows a caption
CAPTION_TURNS = 4
BLOCK = 512  # bytes; members of a tar are padded to it and have a header of this size
MIN_SHARDS = 8  # at least one for every process and loader worker


def make_sample(split: str, index: int, seed: int) -> dict:
    """Sample `index` of a split, as bytes and text by webdataset's names."""
    (caption, request, scene), rng = _draw_sample(split, index, seed)
    short_request = request
    long_caption = describe(scene, rng)
    if split == "train" and rng.random() < LONG_CAPTIONS:
        caption, request = long_caption, request_of(scene)
    turns = [(question, answer) for question, answer, _ in questions(scene, rng, IMAGE_TURNS)]
    reading = [grid_reading(scene)]
    # half of the time the questions come first, to be answered from the image only
    turns = reading + turns if rng.random() < 0.5 else turns + reading
    facts = {
        "task": request.task,
        "caption": caption,
        "long_caption": long_caption,
        "request": request.to_dict(),
        "scene": scene.to_dict(),
        "conversation": turns,
        "text_conversation": [
            parse_reading(request),
            *caption_questions(request, rng, CAPTION_TURNS),
        ],
    }
    practice = questions(scene, rng, QUESTIONS, "practice")
    practice += shows_caption(scene, short_request, rng, CAPTION_QUESTIONS)
    facts["questions"] = [*reading, *((question, answer) for question, answer, _ in practice)]
    facts |= {"reading": reading, "attribute_questions": attribute_questions(scene)}
    return {
        "__key__": f"{split}{index:08d}",
        "jpg": _jpeg(draw(scene)),
        "txt": caption.encode(),
        "json": json.dumps(facts).encode(),
    }


def make_request(split: str, index: int, seed: int) -> Request:
    """Meaning of the short caption of `make_sample`."""
    return _draw_sample(split, index, seed)[0][1]


def _draw_sample(
    split: str, index: int, seed: int
) -> tuple[tuple[str, Request, Scene], numpy.random.Generator]:
    source = numpy.random.SeedSequence([seed, SPLITS.index(split), index])
    rng = numpy.random.Generator(numpy.random.PCG64(source))
    tasks = {"unseen": UNSEEN_TASKS, "instruct": INSTRUCT_TASKS}.get(split, TASKS)
    return sample(rng, tasks[index % len(tasks)], split), rng


def make_edit(split: str, index: int, seed: int) -> Edit:
    """Edit `index` of a split; the kinds of edits alternate."""
    # separate random streams, after those of the captions' splits
    stream = len(SPLITS) + EDIT_SPLITS.index(split)
    source = numpy.random.SeedSequence([seed, stream, index])
    rng = numpy.random.Generator(numpy.random.PCG64(source))
    return sample_edit(rng, tuple(EDITS)[index % len(EDITS)], split)


def make_edit_sample(split: str, index: int, seed: int) -> dict:
    """Edit `index` of a split in the format of `make_sample`.

    KEY.txt is the instruction, KEY.source.jpg the image before and KEY.jpg the image after.
    """
    edit = make_edit(split, index, seed)
    facts = {
        "task": edit.kind,
        "caption": edit.instruction,
        "request": edit.request.to_dict(),
        "source": edit.source.to_dict(),
        "scene": edit.target.to_dict(),
    }
    return {
        "__key__": f"{split}{index:08d}",
        "source.jpg": _jpeg(draw(edit.source)),
        "jpg": _jpeg(draw(edit.target)),
        "txt": edit.instruction.encode(),
        "json": json.dumps(facts).encode(),
    }


def make_story_sample(split: str, index: int, seed: int) -> dict:
    """Story `index` of a split: KEY.json with its messages, and its images KEY.0.jpg, KEY.1.jpg."""
    # separate random streams, after those of captions and edits
    stream = len(SPLITS) + len(EDIT_SPLITS) + EDIT_SPLITS.index(split)
    source = numpy.random.SeedSequence([seed, stream, index])
    turns = sample_story(numpy.random.Generator(numpy.random.PCG64(source)), split)
    drawn = [turn for turn in turns if turn.scene is not None]
    facts = {
        "messages": messages_of(turns),
        "requests": [turn.request.to_dict() for turn in drawn],
        "scenes": [turn.scene.to_dict() for turn in drawn],
    }
    return {
        "__key__": f"{split}{index:08d}",
        **{f"{number}.jpg": _jpeg(draw(turn.scene)) for number, turn in enumerate(drawn)},
        "json": json.dumps(facts).encode(),
    }


def make_sized_sample(split: str, index: int, seed: int) -> dict:
    """Image `index` of `sizes.sample_sized` in the format of `make_sample`."""
    # separate random streams, after those of captions, edits and stories
    stream = len(SPLITS) + 2 * len(EDIT_SPLITS) + EDIT_SPLITS.index(split)
    rng = numpy.random.Generator(
        numpy.random.PCG64(numpy.random.SeedSequence([seed, stream, index]))
    )
    caption, request, scene = sample_sized(rng, index, split)
    facts = {
        "task": request.task,
        "caption": caption,
        "request": request.to_dict(),
        "scene": scene.to_dict(),
    }
    return {
        "__key__": f"{split}{index:08d}",
        "jpg": _jpeg(draw(scene)),
        "txt": caption.encode(),
        "json": json.dumps(facts).encode(),
    }


def _jpeg(image: numpy.ndarray) -> bytes:
    """JPEG without colour subsampling, which would blur the edges of small shapes."""
    return encode_image(image, "JPEG", quality=95, subsampling=0)


def write_shards(
    folder: str | Path,
    split: str,
    samples: int,
    *,
    seed: int,
    samples_per_shard: int = 1000,
    progress: Callable[[int], None] | None = None,
    make: Callable[[str, int, int], dict] = make_sample,
) -> None:
    """Write tar shards FOLDER/SPLIT-00000.tar and so on. The folder appears when it is complete.

    Args:
        folder: output folder, which must be empty or missing.
        split: split of the samples.
        samples: number of samples.
        seed: random seed of the data set.
        samples_per_shard: maximum number of samples in a shard.
        progress: callback for the number of samples written so far.
        make: function that generates a sample, such as `make_sample`.

    Raises:
        UserError: the folder is not empty.
    """
    folder = Path(folder)
    _refuse_full(folder)
    write_samples(
        folder, split, _made(make, split, samples, seed=seed, progress=progress), samples_per_shard
    )


def _made(
    make: Callable[[str, int, int], dict],
    split: str,
    samples: int,
    *,
    seed: int,
    progress: Callable[[int], None] | None,
) -> Iterator[dict]:
    for index in range(samples):
        yield make(split, index, seed)
        if progress:
            progress(index + 1)


def ensure_shapes(
    folder: str | Path,
    *,
    train: int = 30000,
    evaluation: int = 600,
    unseen: int = 200,
    instruct: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Generate FOLDER/train, /eval, /unseen and /instruct if they are missing.

    Args:
        folder: folder of the data set.
        train, evaluation, unseen: number of samples of these splits.
        instruct: number of samples of "instruct"; None takes that of `train`, at most 12,000.
        seed: random seed of the data set.
        progress: callback for the number of samples of a split written so far.

    Returns:
        The folder.

    Raises:
        UserError: the folder contains anything other than this data set.
    """
    instruct = min(train, 12000) if instruct is None else instruct
    sizes = dict(zip(SPLITS, (train, evaluation, unseen, instruct), strict=True))
    kind = _Kind("the shapes world", MARKER, VERSION, make_sample)
    return _ensure(kind, Path(folder), sizes, seed, progress)


def ensure_edits(
    folder: str | Path,
    *,
    train: int = 30000,
    evaluation: int = 600,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Generate FOLDER/train and /eval of edits if they are missing; see `ensure_shapes`."""
    sizes = dict(zip(EDIT_SPLITS, (train, evaluation), strict=True))
    kind = _Kind("the edits of the shapes world", EDITS_MARKER, EDITS_VERSION, make_edit_sample)
    return _ensure(kind, Path(folder), sizes, seed, progress)


def ensure_stories(
    folder: str | Path,
    *,
    train: int = 30000,
    evaluation: int = 600,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Generate FOLDER/train and /eval of stories if they are missing; see `ensure_shapes`."""
    sizes = dict(zip(EDIT_SPLITS, (train, evaluation), strict=True))
    name = "the stories of the shapes world"
    kind = _Kind(name, STORIES_MARKER, STORIES_VERSION, make_story_sample)
    return _ensure(kind, Path(folder), sizes, seed, progress)


def ensure_sized(
    folder: str | Path,
    *,
    train: int = 12000,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Generate FOLDER/train of images whose captions say sizes; see `ensure_shapes`."""
    name = "the sized shapes of the shapes world"
    kind = _Kind(name, SIZED_MARKER, SIZED_VERSION, make_sized_sample)
    return _ensure(kind, Path(folder), {"train": train}, seed, progress)


@dataclass(frozen=True)
class _Kind:
    """A kind of data set: shapes, edits, stories or sized shapes."""

    name: str
    marker: str
    """Name of the marker file of a complete folder."""
    version: int
    make: Callable[[str, int, int], dict]


def _ensure(
    kind: _Kind,
    folder: Path,
    sizes: dict[str, int],
    seed: int,
    progress: Callable[[int], None] | None,
) -> Path:
    marker = {"version": kind.version, "seed": seed, "samples": sizes}
    if not _is_complete(folder, kind.marker, marker):
        _refuse_full(folder)
        announce(kind.name, folder, _size_of(sizes, seed, kind.make))
        with new_folder(folder) as unfinished:
            for split, samples in sizes.items():
                write_shards(
                    unfinished / split,
                    split,
                    samples,
                    seed=seed,
                    samples_per_shard=max(1, min(1000, -(-samples // MIN_SHARDS))),
                    progress=progress,
                    make=kind.make,
                )
            (unfinished / kind.marker).write_text(json.dumps(marker))
        if not _is_complete(folder, kind.marker, marker):
            _refuse_full(folder)
    return folder


def _is_complete(folder: Path, marker_name: str, marker: dict) -> bool:
    if not (folder / marker_name).exists():
        return False
    stored = read_json(folder / marker_name)
    if stored != marker:
        raise UserError(
            f"{folder} holds another shapes data set ({stored}) than the one asked for "
            f"({marker}): delete it or choose another folder."
        )
    return True


def _size_of(sizes: dict[str, int], seed: int, make: Callable[[str, int, int], dict]) -> int:
    """Approximate size of the shards in bytes, from the first sample of each task."""
    total = 0
    for split, samples in sizes.items():
        first = [make(split, index, seed) for index in range(min(samples, len(TASKS)))]
        contents = [each for sample in first for each in sample.values() if isinstance(each, bytes)]
        padded = sum(BLOCK + -(-len(content) // BLOCK) * BLOCK for content in contents)
        total += padded * samples // max(len(first), 1)
    return total


def _refuse_full(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} exists and is not a shapes data set: choose an empty or new folder."
        )
