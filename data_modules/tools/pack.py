"""Pack any source into WebDataset shards: images unchanged, output reproducible byte for byte.

Shard k holds the samples k*n ... of the source, in their order. So shards can be written by several
processes, and a stopped run resumes with the missing shards.
"""

from __future__ import annotations

import copy
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
from triptych.data_modules.batching.messages import MESSAGES, parts_with_images
from triptych.data_modules.decode import Decoder
from triptych.data_modules.parallel import parallel_map
from triptych.data_modules.sources.base import (
    CAPTION_KEYS,
    BadSample,
    DataSource,
    ImageRole,
    bad_sample_on_error,
)
from triptych.utils.atomic_write import LOCK, alone_in, replacing, temporary_path
from triptych.utils.captions import REPLACEMENT
from triptych.utils.disk_usage import announce, refuse_other_files
from triptych.utils.documents import read_text
from triptych.utils.errors import UserError
from triptych.utils.image_reader import FORMAT_NAMES, format_of, read_header
from triptych.utils.listing.tar import BLOCK
from triptych.utils.records import parse
from triptych.utils.text import split_lines

MANIFEST = "pack.jsonl"
PARTIAL = ".partial"  # suffix of a shard that is being written
SIZE_SAMPLES = 16  # samples from which the size of all is estimated
MAX_KEY = 80  # characters: with a suffix it fits into a plain tar header
# Names in messages for the entries of a plan.
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
# Files of a folder of shards, also those that other commands write beside the shards.
OWN_FILES = re.compile(
    rf"shard-\d{{5,}}\.tar(\.(idx|partial))?|{MANIFEST}|features|\.(shard|pack|lock).*"
)


@dataclass
class PackedShard:
    """Summary of one packed shard."""

    shard: str
    samples: int
    skipped: dict[str, int] = field(default_factory=dict)
    """reason -> number of bad samples"""


def pack(
    source: DataSource,
    folder: str | Path,
    origin: dict,
    *,
    samples_per_shard: int = 1000,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[PackedShard]:
    """Write FOLDER/shard-00000.tar and so on; complete shards are skipped.

    Args:
        source: open source.
        folder: output folder.
        origin: identity of the source, and every option that changes the output, as JSON values.
        samples_per_shard: number of samples of each shard.
        workers: number of processes; None takes all cores.
        progress: callback that receives the number of finished shards, and of all.

    Raises:
        UserError: the folder holds other files, or shards of another source; or no sample can be
            packed, and then nothing is written.
    """
    folder = Path(folder)
    plan = {"version": 1, "samples_per_shard": samples_per_shard, "samples": len(source), **origin}
    shards = range(-(-len(source) // samples_per_shard))
    done = _finished_shards(folder, plan)
    if missing := [shard for shard in shards if _name(shard) not in done]:
        count = "1 shard" if len(missing) == 1 else f"{len(missing):,} shards"
        announce(count, folder, _estimate_size(source, missing, samples_per_shard))
    with alone_in(folder):
        done = _finished_shards(folder, plan)  # another process may have packed some meanwhile
        if not (folder / MANIFEST).exists():
            _append(folder, plan)
        for partial in folder.glob(f"*{PARTIAL}"):
            partial.unlink()
        missing = [shard for shard in shards if _name(shard) not in done]
        write_shard = _ShardWriter(source, folder, samples_per_shard)
        try:
            for packed in parallel_map(write_shard, missing, workers):
                done[packed.shard] = packed
                _append(folder, asdict(packed))
                if progress:
                    progress(len(done), len(shards))
            if not any(packed.samples for packed in done.values()):
                counts = skipped(done.values()).most_common()
                reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts)
                raise UserError(f"no sample of {source.name} could be packed: {reasons}.")
        except UserError:
            if not any(packed.samples for packed in done.values()):
                for path in [*folder.glob("shard-*.tar"), folder / MANIFEST]:
                    path.unlink()
            raise
    return [done[_name(shard)] for shard in shards]


def skipped(shards: Iterable[PackedShard]) -> Counter[str]:
    """Number of skipped samples, by reason."""
    total: Counter[str] = Counter()
    for shard in shards:
        total.update(shard.skipped)
    return total


def safe_key(key: str) -> str:
    r"""Key of letters, digits, _ and -; a changed one ends in a hash, so that it stays unique.

    It has no dot, because webdataset ends a key at its first dot.
    """
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", key).strip("_") or "sample"
    if safe == key and len(key) <= MAX_KEY:
        return key
    suffix = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{safe[: MAX_KEY - len(suffix) - 1]}-{suffix}"


def image_suffix(image: bytes) -> str | None:
    """Suffix of an encoded image by its first bytes, such as jpg; None for other files."""
    name = format_of(image)
    return name and {"JPEG": "jpg"}.get(name, name.lower())


def members(source: DataSource, number: int) -> Iterator[tuple[str, bytes]]:
    """(kind, content) of the members of a sample: images, caption, metadata.

    Raises:
        BadSample: there is no image, or its format is not one of a shard.
    """
    metadata = source.metadata(number)
    if parts_with_images(metadata.get(MESSAGES)):
        yield from _conversation(source, number, metadata)
        return
    if source.has_image(number, "source"):
        yield _image(source, number, "source", "source.")
    yield _image(source, number, "image", "")
    try:
        captions = source.captions(number)
    except BadSample:
        lists = (each for name, each in metadata.items() if name not in CAPTION_KEYS)
        if not any(isinstance(each, list) and each for each in lists):
            raise  # a conversation, whatever its key, needs no caption
    else:
        if len(captions) > 1:  # KEY.txt holds only one
            metadata = {**metadata, "caption": captions}
        else:
            yield "txt", check_text(captions[0], source.key(number), "caption").encode()
    if metadata:
        yield "json", _json(metadata, source.key(number))


def _conversation(source: DataSource, number: int, metadata: dict) -> Iterator[tuple[str, bytes]]:
    """Members of a conversation: its images, numbered as they are first shown, and its JSON."""
    names: dict[str, str] = {}
    for part in parts_with_images(metadata[MESSAGES]):
        if part["image"] not in names:
            content = source.named_image_bytes(number, part["image"])
            kind = _checked_kind(source, number, content, "image of a message")
            names[part["image"]] = f"{len(names)}.{kind}"
            yield names[part["image"]], content
    metadata = copy.deepcopy(metadata)
    for part in parts_with_images(metadata[MESSAGES]):
        part["image"] = names[part["image"]]
    yield "json", _json(metadata, source.key(number))


def _json(metadata: dict, key: str) -> bytes:
    """Metadata as portable JSON; U+FFFD replaces bytes of a column that are not UTF-8."""
    metadata = {
        name: _readable(value) if isinstance(value, str) else value
        for name, value in metadata.items()
    }
    try:
        text = json.dumps(metadata, ensure_ascii=False, sort_keys=True, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:  # NaN, for one
        raise BadSample(key, "metadata is not JSON", str(error)) from error
    return check_text(text, key, "its JSON").encode()


def _readable(text: str) -> str:
    """Replace surrogates, which stand for bytes that are not UTF-8."""
    return re.sub("[\udc80-\udcff]", REPLACEMENT, text)


def _image(source: DataSource, number: int, role: ImageRole, prefix: str) -> tuple[str, bytes]:
    if not source.has_image(number, role):
        raise BadSample(source.key(number), f"no {role}")
    content = source.image_bytes(number, role)
    return prefix + _checked_kind(source, number, content, role), content


def _checked_kind(source: DataSource, number: int, content: bytes, label: str) -> str:
    """Suffix of an image, checked to be one that a run can read."""
    kind = image_suffix(content)
    if kind is None:
        raise BadSample(source.key(number), f"{label} is no {FORMAT_NAMES}")
    with bad_sample_on_error(source.key(number), label):  # a run would skip it
        read_header(content, Decoder().limits)
    return kind


@dataclass
class _ShardWriter:
    """Picklable function that writes one shard."""

    source: DataSource
    folder: Path
    samples_per_shard: int

    def __call__(self, shard: int) -> PackedShard:
        first = shard * self.samples_per_shard
        numbers = range(first, min(first + self.samples_per_shard, len(self.source)))
        path = self.folder / _name(shard)
        packed = PackedShard(path.name, 0)
        bad_samples: Counter[str] = Counter()
        with (
            replacing(path, temporary_path(path), durable=False) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for number in numbers:
                try:
                    sample = list(members(self.source, number))
                except BadSample as bad:
                    bad_samples[bad.reason] += 1
                    continue
                key = safe_key(self.source.key(number))
                for kind, content in sample:
                    # without time and owner, for reproducible bytes
                    info = tarfile.TarInfo(f"{key}.{kind}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                packed.samples += 1
        packed.skipped = dict(bad_samples)
        return packed


def _name(shard: int) -> str:
    return f"shard-{shard:05d}.tar"


def _estimate_size(source: DataSource, shards: list[int], samples_per_shard: int) -> int:
    """Approximate size in bytes of shards to be written, from a few of their samples."""
    sizes = []
    for place in range(SIZE_SAMPLES):
        shard = shards[place * len(shards) // SIZE_SAMPLES]
        number = min(shard * samples_per_shard + place, len(source) - 1)
        try:
            contents = [content for _, content in members(source, number)]
        except BadSample:
            continue
        sizes.append(sum(BLOCK + -(-len(content) // BLOCK) * BLOCK for content in contents))
    samples = min(len(shards) * samples_per_shard, len(source))
    return samples * sum(sizes) // max(len(sizes), 1)


def _finished_shards(folder: Path, plan: dict) -> dict[str, PackedShard]:
    """Complete shards by the manifest of an earlier run.

    Raises:
        UserError: the folder holds other files, or the output of another plan.
    """
    files = [name for name in refuse_other_files(folder, OWN_FILES, "--out") if name != LOCK]
    if not files:
        return {}
    if MANIFEST not in files:
        raise UserError(
            f"the folder {folder} holds {files[0]}, but not the {MANIFEST} of a run of this "
            "command; give an empty folder or a new one (--out)."
        )
    lines = [_parse_line(line) for line in split_lines(read_text(folder / MANIFEST))]
    stored, shards = lines[0] if lines else None, lines[1:]
    if stored is None:
        raise UserError(f"{folder / MANIFEST} is damaged; delete the folder and pack it again.")
    differing = [name for name in plan if stored.get(name) != plan[name]]
    if differing:
        name = differing[0]
        how = f"{LABELS.get(name, name)} was {stored.get(name)!r}, is {plan[name]!r}"
        if name == "content":
            how = f"{LABELS[name]} has changed since"
        raise UserError(
            f"the folder {folder} holds shards that were packed otherwise ({how}); give another "
            "folder (--out), or delete it."
        )
    # After a crash the last line may be incomplete: its shard is written again.
    return {
        packed.shard: packed
        for packed in map(_packed_shard, shards)
        if packed and packed.shard in files
    }


def _parse_line(line: str) -> dict | None:
    try:
        record = parse(line.encode())
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _packed_shard(line: dict | None) -> PackedShard | None:
    """The shard of a line of the manifest; None for another line."""
    try:
        return PackedShard(str(line["shard"]), int(line["samples"]), dict(line["skipped"]))
    except (KeyError, TypeError, ValueError):
        return None


def _append(folder: Path, line: dict) -> None:
    """Append to the manifest: a line for the plan, then one for each complete shard."""
    path = folder / MANIFEST
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * torn + json.dumps(line) + "\n")
