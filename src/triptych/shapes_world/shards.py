"""Writes the shapes world as WebDataset tar shards.

A sample is KEY.jpg (the image), KEY.txt (its caption) and KEY.json (all there is to know about
it). Sample i of a split depends only on the seed, the split and i, so that a data set can be
made again byte for byte with the same versions of the libraries, and a larger one begins with the
smaller one.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy
import webdataset

from triptych.shapes_world.captions import (
    INSTRUCT_TASKS,
    SPLITS,
    TASKS,
    UNSEEN_TASKS,
    describe,
    request_of,
    sample,
)
from triptych.shapes_world.edits import EDITS, Edit, sample_edit
from triptych.shapes_world.edits import SPLITS as EDIT_SPLITS
from triptych.shapes_world.questions import (
    caption_questions,
    grid_reading,
    parse_reading,
    questions,
)
from triptych.shapes_world.world import draw
from triptych.utils.atomic_write import new_folder
from triptych.utils.disk_usage import announce
from triptych.utils.documents import read_json
from triptych.utils.errors import UserError
from triptych.utils.images import encode_image

VERSION = 7  # raise it whenever the same seed gives other samples
MARKER = "shapes.json"
EDITS_VERSION = 1
EDITS_MARKER = "edits.json"
LONG_CAPTIONS = 0.2  # share of the training captions
IMAGE_TURNS = 3  # beside the reading of all nine cells, which opens or ends a conversation
QUESTIONS = 12  # and the reading: a second conversation, of which a batch takes some turns
CAPTION_TURNS = 4
BLOCK = 512  # bytes that members of a tar are rounded up to, each behind a header of one
FEWEST_SHARDS = 8  # so that every process and loader worker has one of its own


def make_sample(split: str, index: int, seed: int) -> dict:
    """Sample `index` of a split, as bytes and text under the names that webdataset expects."""
    source = numpy.random.SeedSequence([seed, SPLITS.index(split), index])
    rng = numpy.random.Generator(numpy.random.PCG64(source))
    tasks = {"unseen": UNSEEN_TASKS, "instruct": INSTRUCT_TASKS}.get(split, TASKS)
    caption, request, scene = sample(rng, tasks[index % len(tasks)], split)
    long_caption = describe(scene, rng)
    if split == "train" and rng.random() < LONG_CAPTIONS:
        caption, request = long_caption, request_of(scene)
    turns = [(question, answer) for question, answer, _ in questions(scene, rng, IMAGE_TURNS)]
    reading = [grid_reading(scene)]
    # Half of the time the questions come first: they must be answered from only the image.
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
    practice = questions(scene, rng, QUESTIONS, practice=True)
    facts["questions"] = [*reading, *((question, answer) for question, answer, _ in practice)]
    return {
        "__key__": f"{split}{index:08d}",
        "jpg": _jpeg(draw(scene)),
        "txt": caption.encode(),
        "json": json.dumps(facts).encode(),
    }


def make_edit(split: str, index: int, seed: int) -> Edit:
    """Edit `index` of a split. The kinds of edits come in turn."""
    # Streams of random numbers of their own, behind those of the captions' splits.
    stream = len(SPLITS) + EDIT_SPLITS.index(split)
    source = numpy.random.SeedSequence([seed, stream, index])
    rng = numpy.random.Generator(numpy.random.PCG64(source))
    return sample_edit(rng, tuple(EDITS)[index % len(EDITS)], split)


def make_edit_sample(split: str, index: int, seed: int) -> dict:
    """Edit `index` of a split, as `make_sample`: KEY.txt is its instruction, KEY.source.jpg the
    image before and KEY.jpg the one after."""
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


def _jpeg(image: numpy.ndarray) -> bytes:
    """JPEG without colour subsampling, which would smear the edges of small shapes."""
    return encode_image(image, "JPEG", quality=95, subsampling=0)


def write_shards(
    folder: str | Path,
    split: str,
    samples: int,
    seed: int,
    samples_per_shard: int = 1000,
    progress: Callable[[int], None] | None = None,
    make: Callable[[str, int, int], dict] = make_sample,
) -> None:
    """Write FOLDER/SPLIT-00000.tar and so on. The folder appears only when it is complete.

    `make` gives the samples: `make_sample` or `make_edit_sample`. `progress` is called with the
    number of samples written so far, after each of them. Raises UserError if there is something
    in the folder.
    """
    folder = Path(folder)
    _refuse_full(folder)
    with new_folder(folder) as unfinished, ExitStack() as files:
        pattern = str(unfinished).replace("%", "%%") + f"/{split}-%05d.tar"
        with webdataset.ShardWriter(
            pattern,
            maxcount=samples_per_shard,
            verbose=0,
            # in its secure mode, which streaming turns on, it opens no local file by itself
            opener=lambda path: files.enter_context(open(path, "wb")),
            encoder=False,
            mtime=0,
        ) as sink:
            for index in range(samples):
                sink.write(make(split, index, seed))
                if progress:
                    progress(index + 1)


def ensure_shapes(
    folder: str | Path,
    train: int = 30000,
    evaluation: int = 600,
    unseen: int = 200,
    instruct: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Make FOLDER/train, /eval, /unseen and /instruct, unless they are there already.

    `instruct` None makes as many as `train`, 12,000 at most: who asks for a small world gets one.
    Returns the folder. Raises UserError if it holds anything else than this very data set.
    """
    instruct = min(train, 12000) if instruct is None else instruct
    sizes = dict(zip(SPLITS, (train, evaluation, unseen, instruct), strict=True))
    return _ensure(
        "the shapes world", Path(folder), MARKER, VERSION, sizes, seed, progress, make_sample
    )


def ensure_edits(
    folder: str | Path,
    train: int = 30000,
    evaluation: int = 600,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Make FOLDER/train and /eval of edits, unless they are there already; as `ensure_shapes`."""
    sizes = dict(zip(EDIT_SPLITS, (train, evaluation), strict=True))
    return _ensure(
        "the edits of the shapes world",
        Path(folder),
        EDITS_MARKER,
        EDITS_VERSION,
        sizes,
        seed,
        progress,
        make_edit_sample,
    )


def _ensure(
    name: str,
    folder: Path,
    marker_name: str,
    version: int,
    sizes: dict[str, int],
    seed: int,
    progress: Callable[[int], None] | None,
    make: Callable[[str, int, int], dict],
) -> Path:
    marker = {"version": version, "seed": seed, "samples": sizes}
    if not _is_made(folder, marker_name, marker):
        _refuse_full(folder)
        announce(name, folder, _size_of(sizes, seed, make))
        with new_folder(folder) as unfinished:
            for split, samples in sizes.items():
                per_shard = max(1, min(1000, -(-samples // FEWEST_SHARDS)))
                write_shards(unfinished / split, split, samples, seed, per_shard, progress, make)
            (unfinished / marker_name).write_text(json.dumps(marker))
        if not _is_made(folder, marker_name, marker):
            _refuse_full(folder)
    return folder


def _is_made(folder: Path, marker_name: str, marker: dict) -> bool:
    if not (folder / marker_name).exists():
        return False
    found = read_json(folder / marker_name)
    if found != marker:
        raise UserError(
            f"{folder} holds another shapes data set ({found}) than the one asked for "
            f"({marker}): delete it or choose another folder."
        )
    return True


def _size_of(sizes: dict[str, int], seed: int, make: Callable[[str, int, int], dict]) -> int:
    """Bytes of the shards, about, from the first sample of each task."""
    found = 0
    for split, samples in sizes.items():
        first = [make(split, index, seed) for index in range(min(samples, len(TASKS)))]
        contents = [each for sample in first for each in sample.values() if isinstance(each, bytes)]
        padded = sum(BLOCK + -(-len(content) // BLOCK) * BLOCK for content in contents)
        found += padded * samples // max(len(first), 1)
    return found


def _refuse_full(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} exists and is not a shapes data set: choose an empty or new folder."
        )
