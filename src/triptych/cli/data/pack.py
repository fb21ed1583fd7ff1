"""`triptych data pack`: packing of images and captions into shards."""

from __future__ import annotations

import argparse
import hashlib
import os
from pathlib import Path
from typing import Any

from triptych.cli.arguments import command_parser, parse
from triptych.cli.data.arguments import SOURCES, add_source, add_workers
from triptych.cli.data.printing import print_problems, progress_bar
from triptych.utils.limits import COUNT

EXAMPLES = """\
  triptych data pack photos --out data/photos

The same command resumes where it stopped."""


def pack(arguments: list[str]) -> None:
    """Pack images and captions into shards."""
    parsed = parse(pack_parser(), arguments)
    from triptych.data_modules.sources.detect import detect_source
    from triptych.data_modules.tools.pack import pack as write
    from triptych.data_modules.tools.pack import skipped

    source = detect_source(
        parsed.source,
        parsed.images_dir,
        split=parsed.split,
        image_column=parsed.image_column,
        caption_column=parsed.caption_column,
        dotted_names=True,
    ).open()
    origin = {
        "source": str(parsed.source.resolve()),
        "content": _content(parsed.source, parsed.out),
        "format": type(source).__name__,
        "images_dir": str(parsed.images_dir.resolve()) if parsed.images_dir else None,
        "split": parsed.split,
        "image_column": parsed.image_column,
        "caption_column": parsed.caption_column,
    }
    with progress_bar("packing") as progress:
        shards = write(
            source,
            parsed.out,
            origin,
            samples_per_shard=parsed.samples_per_shard,
            workers=parsed.workers,
            progress=progress,
        )
    samples = sum(shard.samples for shard in shards)
    print(f"{samples:,} samples in {len(shards):,} shards: {parsed.out}")
    print_problems(skipped(shards))


def pack_parser() -> argparse.ArgumentParser:
    """Create the parser of `triptych data pack`."""
    description = "Pack images and captions into WebDataset shards; image files are not reencoded."
    parser = command_parser("data pack", f"{description}\n\n{SOURCES}", EXAMPLES, model=False)
    add_source(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder of the shards to write; required",
    )
    parser.add_argument(
        "--samples-per-shard",
        type=COUNT,
        default=1000,
        metavar="N",
        help="number of samples of each shard; default %(default)s",
    )
    parser.add_argument(
        "--images-dir",
        type=Path,
        metavar="FOLDER",
        help="folder that image paths in a file are relative to; default that of the file",
    )
    for kind in ("image", "caption"):
        parser.add_argument(
            f"--{kind}-column",
            metavar="NAME",
            help=f"column of the {kind}s in a table; default the first of the usual names",
        )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="split of a saved data set; default the only one",
    )
    add_workers(parser)
    return parser


def _content(source: Path, out: Path) -> int:
    """Hash of a file, or of the names, sizes and modification times of the files of a folder.

    Args:
        source: file, folder or pattern.
        out: output folder, which is ignored if it is inside the source.
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
            identity = f"\0{found.st_size}\0{found.st_mtime_ns}\0"
            digest.update(os.fsencode(file) + identity.encode())
    return _number(digest)


def _number(digest: Any) -> int:
    return int(digest.hexdigest()[:12], 16)
