"""Any source into WebDataset shards: images as they are, the same bytes every time.

Shard k holds the samples k*n ... of the source, in their order. So shards can be written by several
processes, and a stopped run resumes with the shards that are missing.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from triptych.data_modules.batching.clean_text import check_text
from triptych.data_modules.decode import Decoder
from triptych.data_modules.parallel import each
from triptych.data_modules.sources.base import CAPTIONS, BadSample, ImageRole, Source
from triptych.utils.atomic_write import LOCK, alone_in, replacing, temporary_path
from triptych.utils.captions import REPLACEMENT
from triptych.utils.disk_usage import announce, refuse_other_files
from triptych.utils.documents import read_text
from triptych.utils.errors import ImageError, UserError
from triptych.utils.image_reader import FORMAT_NAMES, format_of, read_header
from triptych.utils.listing.tar import BLOCK
from triptych.utils.records import parse
from triptych.utils.text import split_lines

MANIFEST = "pack.jsonl"
PARTIAL = ".partial"  # shards that are being written
LOOKED_AT = 16  # samples, from which the size of all is guessed
LONGEST_KEY = 80  # characters: with a kind behind it, it fits into a plain tar header
# Names in messages for the points of a plan.
LABELS = {
    "source": "SOURCE",
    "content": "the content of SOURCE",
    "format": "the format of SOURCE",
    "samples": "the number of samples",
    "samples_per_shard": "--samples-per-shard",
    "images_dir": "--images-dir",
    "split": "--split",
    "image_column": "--image-column",
    "caption_column": "--caption-column",
}
# Files that other commands lay beside the shards.
OURS = re.compile(
    rf"shard-\d{{5,}}\.tar(\.(idx|partial))?|{MANIFEST}|features|\.(shard|pack|lock).*"
)


@dataclass
class Packed:
    """Contents of one shard."""

    shard: str
    samples: int
    skipped: dict[str, int] = field(default_factory=dict)
    """reason -> samples that could not be read"""


def pack(
    source: Source,
    folder: str | Path,
    origin: dict,
    samples_per_shard: int = 1000,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Packed]:
    """Write FOLDER/shard-00000.tar and so on; complete shards are skipped.

    Args:
        source: the samples, open.
        origin: identity of this source, and every option that changes what is packed;
            must be JSON.
        workers: number of processes; None takes all cores.
        progress: callback that receives the number of shards that are done, and of all.

    Raises:
        UserError: the folder holds something else, or shards of another source; or no sample can
            be packed, and then nothing is left behind.
    """
    folder = Path(folder)
    plan = {"version": 1, "samples_per_shard": samples_per_shard, "samples": len(source), **origin}
    shards = range(-(-len(source) // samples_per_shard))
    done = _take_up(folder, plan)
    if missing := [shard for shard in shards if _name(shard) not in done]:
        said = "1 shard" if len(missing) == 1 else f"{len(missing):,} shards"
        announce(said, folder, _size_of(source, missing, samples_per_shard))
    with alone_in(folder):
        done = _take_up(folder, plan)  # another process may have packed some meanwhile
        if not (folder / MANIFEST).exists():
            _append(folder, plan)
        for partial in folder.glob(f"*{PARTIAL}"):
            partial.unlink()
        missing = [shard for shard in shards if _name(shard) not in done]
        job = _Job(source, folder, samples_per_shard)
        try:
            for packed in each(job, missing, workers):
                done[packed.shard] = packed
                _append(folder, asdict(packed))
                if progress:
                    progress(len(done), len(shards))
            if not any(packed.samples for packed in done.values()):
                lost = skipped(done.values()).most_common()
                reasons = ", ".join(f"{number:,} {reason}" for reason, number in lost)
                raise UserError(f"no sample of {source.name} could be packed: {reasons}.")
        except UserError:
            if not any(packed.samples for packed in done.values()):
                for path in [*folder.glob("shard-*.tar"), folder / MANIFEST]:
                    path.unlink()
            raise
    return [done[_name(shard)] for shard in shards]


def skipped(shards: Iterable[Packed]) -> Counter[str]:
    """Number of skipped samples, by reason."""
    total: Counter[str] = Counter()
    for shard in shards:
        total.update(shard.skipped)
    return total


def safe_key(key: str) -> str:
    r"""`key` in letters, digits, _ and -; a changed one ends in a hash, so that it stays unique.

    webdataset ends a key at its first dot, so that there is none.
    """
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", key).strip("_") or "sample"
    if safe == key and len(key) <= LONGEST_KEY:
        return key
    mark = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{safe[: LONGEST_KEY - len(mark) - 1]}-{mark}"


def kind_of(image: bytes) -> str | None:
    """The suffix of an encoded image by its first bytes, such as jpg; None of other files."""
    name = format_of(image)
    return name and {"JPEG": "jpg"}.get(name, name.lower())


def members(source: Source, number: int) -> Iterator[tuple[str, bytes]]:
    """(kind, content) of the members of a sample: images, caption, what else is known.

    Raises:
        BadSample: there is no image, or not one that shards can hold.
    """
    facts = source.facts(number)
    if source.has(number, "source"):
        yield _image(source, number, "source", "source.")
    yield _image(source, number, "image", "")
    try:
        captions = source.captions(number)
    except BadSample:
        lists = (each for name, each in facts.items() if name not in CAPTIONS)
        if not any(isinstance(each, list) and each for each in lists):
            raise  # but a conversation, whatever its name, needs none
    else:
        if len(captions) > 1:  # a KEY.txt holds one
            facts = {**facts, "caption": captions}
        else:
            yield "txt", check_text(captions[0], source.key(number), "caption").encode()
    if facts:
        yield "json", _json(facts, source.key(number))


def _json(facts: dict, key: str) -> bytes:
    """Facts as JSON that everyone can read; U+FFFD for bytes of a column that are not UTF-8."""
    facts = {
        name: _readable(value) if isinstance(value, str) else value for name, value in facts.items()
    }
    try:
        text = json.dumps(facts, ensure_ascii=False, sort_keys=True, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:  # NaN, for one
        raise BadSample(key, "facts are no JSON", str(error)) from error
    return check_text(text, key, "its JSON").encode()


def _readable(text: str) -> str:
    """Clean a column that is not trained on; bytes that are not UTF-8 came as surrogates."""
    return re.sub("[\udc80-\udcff]", REPLACEMENT, text)


def _image(source: Source, number: int, role: ImageRole, prefix: str) -> tuple[str, bytes]:
    if not source.has(number, role):
        raise BadSample(source.key(number), f"no {role}")
    content = source.image_bytes(number, role)
    kind = kind_of(content)
    if kind is None:
        raise BadSample(source.key(number), f"{role} is no {FORMAT_NAMES}")
    try:
        read_header(content, Decoder().limits)
    except ImageError as error:  # of no use to a run, which would leave it out
        raise BadSample(source.key(number), f"{role} {error.reason}", error.detail) from error
    return prefix + kind, content


@dataclass
class _Job:
    """Writes one shard; travels to the processes."""

    source: Source
    folder: Path
    samples_per_shard: int

    def __call__(self, shard: int) -> Packed:
        first = shard * self.samples_per_shard
        numbers = range(first, min(first + self.samples_per_shard, len(self.source)))
        path = self.folder / _name(shard)
        packed = Packed(path.name, 0)
        lost: Counter[str] = Counter()
        with (
            replacing(path, temporary_path(path), durable=False) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for number in numbers:
                try:
                    sample = list(members(self.source, number))
                except BadSample as bad:
                    lost[bad.reason] += 1
                    continue
                key = safe_key(self.source.key(number))
                for kind, content in sample:
                    # no time, no owner: the same bytes every time
                    info = tarfile.TarInfo(f"{key}.{kind}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                packed.samples += 1
        packed.skipped = dict(lost)
        return packed


def _name(shard: int) -> str:
    return f"shard-{shard:05d}.tar"


def _size_of(source: Source, shards: list[int], samples_per_shard: int) -> int:
    """Bytes of shards that are to be written, about, from a few of their samples."""
    sizes = []
    for place in range(LOOKED_AT):
        shard = shards[place * len(shards) // LOOKED_AT]
        number = min(shard * samples_per_shard + place, len(source) - 1)
        try:
            found = [content for _, content in members(source, number)]
        except BadSample:
            continue
        sizes.append(sum(BLOCK + -(-len(content) // BLOCK) * BLOCK for content in found))
    samples = min(len(shards) * samples_per_shard, len(source))
    return samples * sum(sizes) // max(len(sizes), 1)


def _take_up(folder: Path, plan: dict) -> dict[str, Packed]:
    """Shards that are complete, from the manifest of a run before; refuses any other contents."""
    there = [name for name in refuse_other_files(folder, OURS, "--out") if name != LOCK]
    if not there:
        return {}
    if MANIFEST not in there:
        raise UserError(
            f"the folder {folder} holds {there[0]}, but not the {MANIFEST} of a run of this "
            "command; give an empty folder or a new one (--out)."
        )
    lines = [_parsed(line) for line in split_lines(read_text(folder / MANIFEST))]
    found, shards = lines[0] if lines else None, lines[1:]
    if found is None:
        raise UserError(f"{folder / MANIFEST} is damaged; delete the folder and pack it again.")
    differing = [name for name in plan if found.get(name) != plan[name]]
    if differing:
        name = differing[0]
        how = f"{LABELS.get(name, name)} was {found.get(name)!r}, is {plan[name]!r}"
        if name == "content":
            how = f"{LABELS[name]} has changed since"
        raise UserError(
            f"the folder {folder} holds shards that were packed otherwise ({how}); give another "
            "folder (--out), or delete it."
        )
    # The last line may be half of one, after a crash: its shard is written again.
    return {
        packed.shard: packed for packed in map(_packed, shards) if packed and packed.shard in there
    }


def _parsed(line: str) -> dict | None:
    try:
        found = parse(line.encode())
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _packed(line: dict | None) -> Packed | None:
    """The shard in a line of the manifest; None if the line holds none."""
    try:
        return Packed(str(line["shard"]), int(line["samples"]), dict(line["skipped"]))
    except (KeyError, TypeError, ValueError):
        return None


def _append(folder: Path, line: dict) -> None:
    """The manifest is a line for the plan, then one for each shard as soon as it is complete."""
    path = folder / MANIFEST
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * torn + json.dumps(line) + "\n")
