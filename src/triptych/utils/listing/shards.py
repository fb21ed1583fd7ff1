"""WebDataset shards: the *.tar files of a folder, of a glob or brace pattern, or one file."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from braceexpand import UnbalancedBracesError, braceexpand

from triptych.utils.errors import UserError
from triptych.utils.listing.folders import SHARD_SUFFIX, walk
from triptych.utils.listing.names import IMAGE_SUFFIXES, is_hidden

log = logging.getLogger(__name__)

GZIPPED = (".tar.gz", ".tgz")
COMPRESSED = (*GZIPPED, ".tar.zst", ".tar.bz2", ".tar.xz", ".tar.lz4", ".tbz2", ".txz", ".tzst")


def find_shards(source: str | Path, gzipped: bool = False) -> list[Path]:
    """Find tar shards in a folder and its subfolders, by a pattern, or a single file; sorted.

    ".tar" is case-insensitive. Hidden files and folders are skipped. Patterns have *, ?, [...], **
    and braces: "set/{00000..00099}.tar", whose files must all exist. Compressed shards are skipped
    with a warning.

    Args:
        source: a folder, pattern or file.
        gzipped: whether to include gzipped shards, for streaming.

    Raises:
        UserError: no shard is found, one of a brace pattern is missing, or all are compressed.
    """
    path = Path(source)
    if os.path.isdir(path):
        names = [os.path.join(path, name) for name, _ in walk(path)]
    elif os.path.lexists(path):
        return [path]
    else:
        names = list(_matching(str(source)))
    names = sorted(names, key=lambda name: name.split("/"))
    suffixes = (SHARD_SUFFIX, *GZIPPED) if gzipped else SHARD_SUFFIX
    shards = [name for name in names if name.lower().endswith(suffixes)]
    packed = [name for name in names if name.lower().endswith(COMPRESSED) and name not in shards]
    if shards:
        if packed:
            log.warning(
                "%s: %d compressed shards are left out, %s for one; unpack them",
                *(source, len(packed), packed[0]),
            )
        return [Path(name) for name in shards]
    if packed:
        what, remedy = "gzipped", "unpack them with gunzip, or stream them"
        if not packed[0].lower().endswith(GZIPPED):
            what, remedy = f"compressed ({Path(packed[0]).name})", "unpack them"
        raise UserError(
            f"the shards in {source} are {what}, and samples in them cannot be found by their "
            f"place; {remedy}."
        )
    what = "does not exist"
    if os.path.isdir(path):
        what = "holds no *.tar shard, nor does a folder inside it"
        if any(name.lower().endswith(IMAGE_SUFFIXES) for name in names):
            raise UserError(
                f"the shard folder {source} holds images and no *.tar shard; make shards of it "
                f"with `triptych data pack {source} --out FOLDER`."
            )
    if names and not os.path.isdir(path):
        what = f"matches {Path(names[0]).name}, but no *.tar file"
    raise UserError(
        f"the shard folder {source} {what}; give a folder of WebDataset shards (--data.shards)."
    )


def _matching(pattern: str) -> Iterator[str]:
    """Files that match a pattern, and files in matching folders."""
    try:
        for alternative in braceexpand(pattern):
            if not glob.has_magic(alternative):
                if not os.path.lexists(alternative) and alternative != pattern:
                    raise UserError(
                        f"the shard {alternative} does not exist, which {pattern} names; download "
                        "it, or give the folder."
                    )
                yield from _inside(alternative)
                continue
            literal = Path(alternative).parts
            for name in glob.iglob(alternative, recursive=True):
                parts = [part for part in Path(name).parts if part not in literal]
                if not is_hidden(os.fsencode("/".join(parts))):
                    yield from [name] if "**" in literal else _inside(name)
    except UnbalancedBracesError as error:
        raise UserError(f"the braces of {pattern} cannot be written out ({error}).") from error


def _inside(path: str) -> Iterator[str]:
    """Yield a file, or all files of a folder."""
    if os.path.isdir(path):
        yield from (os.path.join(path, name) for name, _ in walk(Path(path)))
    elif os.path.lexists(path):
        yield path
