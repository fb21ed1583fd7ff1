"""`triptych data`: what is done to data before training. Part of the composition root."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triptych.inference.trusted_config import add_trust
from triptych.utils.atomic_write import replacing
from triptych.utils.disk_usage import output_file
from triptych.utils.errors import UserError
from triptych.utils.limits import BATCH, COUNT, IMAGES, PROCESSES

FORMATTER = argparse.RawDescriptionHelpFormatter
SOURCES = """\
SOURCE is one of
  a folder of pictures with KEY.txt beside them, or a metadata.csv or .jsonl (file_name, text)
  a CSV or JSONL with a picture and a caption in each row
  a JSON or JSONL of LLaVA conversations, or of edits (source, instruction, target)
  a Parquet file, a folder of them, or a folder that Hugging Face `datasets` saved
  a folder of shards, to cut them anew
"""


def run(arguments: list[str]) -> None:
    """Dispatch `triptych data ...`."""
    parser = argparse.ArgumentParser(
        prog="triptych data",
        description="What is done to data before training. docs/data.md tells more.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _pack_parser(commands)
    _index_parser(commands)
    _inspect_parser(commands)
    _features_parser(commands)
    parsed, parsed.flags = parser.parse_known_args(arguments)
    takes = "--model." if parsed.command == "features" else ()
    if unknown := [flag for flag in parsed.flags if not flag.startswith(takes)]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        parsed.run(parsed)
    except KeyboardInterrupt:  # 130: what a shell reports of a program that Ctrl-C ended
        parser.exit(130, "triptych: interrupted; the same command goes on where it stopped.\n")


def _pack_parser(commands) -> None:
    parser = commands.add_parser(
        "pack",
        help="pictures and captions into shards",
        formatter_class=FORMATTER,
        description="Pictures and captions into WebDataset shards, the pictures as they are.\n\n"
        + SOURCES,
        epilog="example:\n  triptych data pack photos --out data/photos\n"
        "The same command goes on where it stopped.",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the shards")
    parser.add_argument("--samples-per-shard", type=COUNT, default=1000, metavar="N")
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="where paths of pictures in a file begin"
    )
    parser.add_argument("--picture-column", metavar="NAME", help="default: the usual names")
    parser.add_argument("--caption-column", metavar="NAME", help="default: the usual names")
    parser.add_argument("--split", metavar="NAME", help="of a saved data set that has several")
    _add_workers(parser)
    parser.set_defaults(run=pack)


def _index_parser(commands) -> None:
    parser = commands.add_parser(
        "index",
        help="find every sample of shards, and what is wrong with the others",
        formatter_class=FORMATTER,
        description="Writes SHARD.idx beside each shard: where its samples are. Training does this "
        "by itself\nwhere there is none; do it here for large sets, and after shards changed.",
        epilog="example:\n  triptych data index data/photos\n"
        "Shards whose index is up to date are left alone. The status is 1 if nothing is usable.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="of shards; or one shard, or a pattern")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help="tokenizer.json, or its folder: count the tokens of captions, which makes batches of "
        "captions of like length exact",
    )
    parser.add_argument(
        "--checksums", action="store_true", help="take a checksum of each sample; reads everything"
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare with the checksums; reads everything"
    )
    _add_workers(parser)
    parser.set_defaults(run=index)


def _inspect_parser(commands) -> None:
    parser = commands.add_parser(
        "inspect",
        help="counts, lengths, sizes, duplicates, a sheet of pictures",
        formatter_class=FORMATTER,
        description="What is in a data set.\n\n" + SOURCES,
        epilog="example:\n  triptych data inspect data/photos --out photos.png --pictures 24",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument(
        "--out", type=output_file, metavar="FILE.png", help="sheet of pictures to write"
    )
    parser.add_argument("--pictures", type=IMAGES, default=48, metavar="N", help="on the sheet")
    parser.add_argument(
        "--samples", type=COUNT, default=20000, metavar="N", help="to read, evenly spread"
    )
    _add_workers(parser)
    parser.set_defaults(run=inspect)


def _features_parser(commands) -> None:
    parser = commands.add_parser(
        "features",
        help="image features of shards, computed once",
        formatter_class=FORMATTER,
        description="Runs the frozen encoder over shards, once. Training finds FOLDER/features by "
        "itself, takes it if it is of\nthe model's encoder, and then neither decodes nor encodes "
        "pictures to be generated.",
        epilog="example:\n  triptych data features data/photos --config conf/model/tiny.yaml\n"
        "Any --model.x=y flag of `triptych fit` may follow. The same command goes on where it "
        "stopped.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="of shards; or one shard, or a pattern")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: FOLDER/features")
    parser.add_argument(
        "--config", action="append", required=True, metavar="YAML", help="model files"
    )
    add_trust(parser)
    parser.add_argument(
        "--objective",
        choices=["clip", "vae"],
        default="clip",
        help="whose features: the image encoder's (default), or the VAE's latents",
    )
    parser.add_argument(
        "--dtype",
        choices=["bf16", "fp32", "int8"],
        default="bf16",
        help="of the numbers on disk; the manifest states the error (default: %(default)s)",
    )
    parser.add_argument(
        "--decode",
        choices=["torchvision", "pillow"],
        default="torchvision",
        help="how pictures are read, as in training; pillow is the published transform, which "
        "drops alpha channels (default: %(default)s)",
    )
    parser.add_argument("--batch-size", type=BATCH, default=32, metavar="N", help="of each process")
    parser.add_argument(
        "--workers", type=PROCESSES, metavar="N", help="decoding processes of each; default: none"
    )
    parser.add_argument(
        "--devices", type=PROCESSES, default=1, metavar="N", help="GPUs, or CPU processes"
    )
    parser.add_argument("--accelerator", default="auto", metavar="NAME", help="auto, cpu or gpu")
    parser.add_argument(
        "--precision",
        default="32-true",
        metavar="NAME",
        help="to compute in, as Lightning names it, such as bf16-mixed (default: %(default)s)",
    )
    parser.set_defaults(run=features)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=PROCESSES, metavar="N", help="processes; default: cores")


def pack(parsed: argparse.Namespace) -> None:
    """Pictures and captions into shards."""
    from triptych.data_modules.sources.detect import source_at
    from triptych.data_modules.tools.pack import pack as write
    from triptych.data_modules.tools.pack import skipped

    source = source_at(
        parsed.source,
        parsed.pictures,
        parsed.split,
        parsed.picture_column,
        parsed.caption_column,
        mend=True,
    ).open()
    origin = {
        "source": str(parsed.source.resolve()),
        "content": _content(parsed.source, parsed.out),
        "format": type(source).__name__,
        "pictures": str(parsed.pictures.resolve()) if parsed.pictures else None,
        "split": parsed.split,
        "picture_column": parsed.picture_column,
        "caption_column": parsed.caption_column,
    }
    with _progress("packing") as progress:
        shards = write(
            source, parsed.out, origin, parsed.samples_per_shard, parsed.workers, progress
        )
    lost = skipped(shards)
    samples = sum(shard.samples for shard in shards)
    print(f"{samples:,} samples in {len(shards):,} shards: {parsed.out}")
    _print_problems(lost)


def _content(source: Path, out: Path) -> int:
    """Hash of a file; of a folder or a pattern, of its files' names, sizes and times of change.

    Args:
        out: a folder that may lie in the source, and does not count.
    """
    from triptych.utils.listing.folders import DATA_SUFFIXES, files_of
    from triptych.utils.listing.shards import find_shards

    if os.path.isfile(source):
        with source.open("rb") as file:
            return _number(hashlib.file_digest(file, "sha256"))
    if os.path.isdir(source):
        files = [source / name for name in files_of(source, *DATA_SUFFIXES)]
    else:
        files = find_shards(source)
    digest, own = hashlib.sha256(), os.path.realpath(out)
    for file in files:
        place = Path(os.path.realpath(file))
        if place.is_file() and not place.is_relative_to(own):
            found = place.stat()
            said = f"\0{found.st_size}\0{found.st_mtime_ns}\0"
            digest.update(os.fsencode(file) + said.encode())
    return _number(digest)


def _number(digest: Any) -> int:
    return int(digest.hexdigest()[:12], 16)


def index(parsed: argparse.Namespace) -> None:
    """Index shards, and say what is wrong with them."""
    from triptych.data_modules.shards.build_index import index_shards, require_checksums
    from triptych.utils.listing.shards import find_shards

    shards = find_shards(parsed.folder)
    if parsed.verify and not parsed.checksums:
        require_checksums(shards)
    indexes, lost = [], Counter()
    problems: list[tuple[str, int | str, str, str]] = []
    with _progress("indexing") as progress:
        built = index_shards(shards, parsed.workers, parsed.tokenizer, parsed.checksums)
        for done, found in enumerate(built, 1):
            progress(done, len(shards))
            if isinstance(found, UserError):
                problems.append((shards[done - 1].name, "all", str(found), ""))
                continue
            indexes.append(found)
            for problem in found.problems:
                lost[problem.reason] += problem.samples
                first = ", ".join(problem.keys[:3])
                problems.append((found.shard.name, problem.samples, problem.reason, first))
    if problems:
        _print_table(("shard", "left out", "why", "first of them"), problems)
    samples = sum(map(len, indexes))
    print(f"{samples:,} samples in {len(indexes):,} of {len(shards):,} shards")
    _print_problems(lost)
    if not samples:
        why = ", ".join(f"{count:,} {reason}" for reason, count in lost.most_common())
        raise UserError(
            f"{parsed.folder} holds no usable sample: none with a picture (KEY.jpg, png or webp) "
            f"and a caption (KEY.txt or KEY.json) next to it{why and f' ({why})'}."
        )
    if parsed.verify:
        _verify(indexes, parsed.workers)


def _verify(indexes: list, workers: int | None) -> None:
    """Name the samples that are not what they were when their checksums were taken."""
    from triptych.data_modules.parallel import each
    from triptych.data_modules.shards.index_columns import changed_samples

    changed = []
    with _progress("verifying") as progress:
        for done, keys in enumerate(each(changed_samples, indexes, workers), 1):
            progress(done, len(indexes))
            if keys:
                shard = indexes[done - 1].shard.name
                changed.append((shard, len(keys), "other bytes", ", ".join(keys[:3])))
    if changed:
        _print_table(("shard", "changed", "how", "first of them"), changed)
        raise UserError(
            f"{sum(row[1] for row in changed):,} samples in {len(changed):,} shards are not what "
            "they were when their checksums were taken; download those shards again."
        )
    print("all samples are as they were when their checksums were taken")


def inspect(parsed: argparse.Namespace) -> None:
    """What is in a data set."""
    if parsed.out and parsed.out.suffix.lower() != ".png":
        raise UserError(f"the sheet {parsed.out} must be a .png (--out).")
    from triptych.data_modules.sources.detect import source_at
    from triptych.data_modules.tools.inspect import contact_sheet, examine

    source = source_at(parsed.source).open()
    with _progress("reading") as progress:
        found = examine(source, parsed.samples, parsed.workers, progress)
    print("\n".join(_report(source, found)))
    if parsed.out:
        sheet = contact_sheet(source, parsed.pictures)
        with replacing(parsed.out) as file:
            sheet.save(file, "PNG")
        print(f"pictures         {parsed.out}")


def features(parsed: argparse.Namespace) -> None:
    """Image features of shards."""
    from triptych.cli.data_features import features as make

    make(parsed)


def _report(source, found) -> Iterator[str]:
    """The lines that `inspect` prints."""
    from triptych.data_modules.decode import Decoder
    from triptych.data_modules.tools.inspect import histogram, repeated

    shards = source.shard_sizes
    yield f"source           {source.name} ({type(source).__name__})"
    yield f"samples          {len(source):,}"
    yield f"shards           {len(shards):,}, samples in each: {_range(shards)}"
    if found.samples < len(source):
        yield f"read             {found.samples:,} of them, evenly spread; what follows is of these"
    if found.words:
        yield f"caption words    {_range(found.words)}"
        yield from histogram(found.words)
        yield f"caption bytes    {_range(found.caption_bytes)}"
    if found.sizes:
        widths, heights = zip(*found.sizes, strict=True)
        formats = ", ".join(f"{name} {count:,}" for name, count in found.formats.most_common())
        yield f"formats          {formats}"
        yield f"picture width    {_range(widths)} pixels"
        yield f"picture height   {_range(heights)} pixels"
        common = Counter(found.sizes).most_common(5)
        yield "common sizes     " + ", ".join(f"{w}x{h} ({n:,})" for (w, h), n in common)
        yield f"picture bytes    {_range(found.picture_bytes)}"
    yield (
        f"repeated         {repeated(found.keys):,} keys, {repeated(found.captions):,} captions, "
        f"{repeated(found.pictures):,} pictures (same bytes)"
    )
    problems = found.problems.copy()
    for index in getattr(source, "indexes", []):  # of shards
        problems.update({problem.reason: problem.samples for problem in index.problems})
    summary = ", ".join(f"{count:,} {reason}" for reason, count in problems.most_common())
    yield f"left out         {summary or 'nothing'}"
    if hint := Decoder().hint:
        yield f"note             {hint}"


def _range(values) -> str:
    """The least, the middle one and the most of some numbers."""
    ordered = sorted(int(value) for value in values)
    least, middle, most = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    return f"{least:,} to {most:,}, median {middle:,}" if least != most else f"{least:,}"


def _print_problems(lost: Counter[str]) -> None:
    for reason, count in lost.most_common():
        print(f"left out: {count:,} {reason}")


def _print_table(head: tuple[str, ...], rows: list[tuple]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*head, box=None)
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else _shown(cell) for cell in row))
    width = None if sys.stdout.isatty() else 200  # a file has no width of its own
    Console(width=width, highlight=False).print(table)


def _shown(text: str) -> str:
    """Names from an archive, without what a terminal would take for commands."""
    from rich.markup import escape

    return escape("".join(one if one.isprintable() else "?" for one in text))


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
