"""WebDataset shards: the *.tar files of a folder, of a glob or brace pattern, or one file."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from braceexpand import braceexpand

from triptych.errors import UserError

from .folders import SHARD_SUFFIX, walk
from .names import is_hidden

log = logging.getLogger(__name__)

GZIPPED = (".tar.gz", ".tgz")
COMPRESSED = (*GZIPPED, ".tar.zst", ".tar.bz2", ".tar.xz", ".tar.lz4", ".tbz2", ".txz", ".tzst")


def find_shards(source: str | Path) -> list[Path]:
    """Shards, sorted: all in a folder and its sub-folders, all that match a pattern, or one file.

    ".tar" is compared without regard to case. Hidden files and folders are left out. Patterns have
    *, ?, [...], ** and braces: "set/{00000..00099}.tar", whose files must all be there. Compressed
    shards are left out, and said to be.

    Raises:
        UserError: there is none, one of a brace pattern is missing, or all are compressed.
    """
    path = Path(source)
    if path.is_dir():
        names = [os.path.join(path, name) for name, _ in walk(path)]
    elif os.path.lexists(path):
        return [path]
    else:
        names = list(_matching(str(source)))
    names = sorted(names, key=lambda name: name.split("/"))
    found = [Path(name) for name in names if name.lower().endswith(SHARD_SUFFIX)]
    packed = [name for name in names if name.lower().endswith(COMPRESSED)]
    if found:
        if packed:
            log.warning(
                "%s: %d compressed shards are left out, %s for one; unpack them",
                *(source, len(packed), packed[0]),
            )
        return found
    if packed:
        gzipped = packed[0].lower().endswith(GZIPPED)
        what, remedy = ("gzipped", "unpack them with gunzip, or stream them")
        if not gzipped:
            what, remedy = f"compressed ({Path(packed[0]).name})", "unpack them"
        raise UserError(
            f"the shards in {source} are {what}, and samples in them cannot be found by their "
            f"place; {remedy}."
        )
    what = "is empty of *.tar shards, sub-folders included," if path.is_dir() else "does not exist"
    if names and not path.is_dir():
        what = f"matches {Path(names[0]).name}, but no *.tar file"
    raise UserError(
        f"the shard folder {source} {what}; give a folder of WebDataset shards (--data.shards)."
    )


def _matching(pattern: str) -> Iterator[str]:
    """Files that a pattern matches, and those in the folders that it matches."""
    try:
        alternatives: Iterable[str] = braceexpand(pattern)
        for alternative in alternatives:
            wild = glob.has_magic(alternative)
            literal = set(Path(alternative).parts)
            found = glob.glob(alternative, recursive=True) if wild else [alternative]
            if not wild and not os.path.lexists(alternative):
                if alternative == pattern:
                    return
                raise UserError(
                    f"the shard {alternative} does not exist, which {pattern} names; download it, "
                    "or give the folder."
                )
            for name in found:
                parts = [part for part in Path(name).parts if part not in literal]
                if any(is_hidden(os.fsencode(part)) for part in parts):
                    continue
                if os.path.isdir(name):
                    if "**" not in alternative:  # which has matched what is in it
                        yield from (os.path.join(name, each) for each, _ in walk(Path(name)))
                else:
                    yield name
    except ValueError as error:  # braces that do not close
        if isinstance(error, UserError):
            raise
        raise UserError(f"the braces of {pattern} cannot be expanded ({error}).") from error
