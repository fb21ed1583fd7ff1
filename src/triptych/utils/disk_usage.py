"""Announcement of a command's disk usage before it writes, and refusal of likely mistakes."""

from __future__ import annotations

import os
import re
import shutil
import sys
from argparse import ArgumentTypeError
from pathlib import Path

from triptych.utils.errors import UserError


def announce(what: str, folder: Path, size: int) -> None:
    """Announce a write on standard error; refuse an impossible one.

    Args:
        what: description of the output, such as "the shapes world".
        folder: output folder.
        size: approximate total size in bytes.

    Raises:
        UserError: the folder can neither be created nor written to, or the disk is too full.
    """
    place = require_place(what, folder)
    free = shutil.disk_usage(place).free
    if size > free:
        raise UserError(
            f"{what} takes about {in_units(size)}, and the disk of {place} has {in_units(free)} "
            "left; make room, or name a folder on another disk."
        )
    print(
        f"triptych: writing {what} (about {in_units(size)}) to {folder}",
        file=sys.stderr,
        flush=True,
    )


def require_place(what: str, folder: Path) -> Path:
    """Nearest existing folder, `folder` or a parent, without creating anything.

    Raises:
        UserError: the folder can neither be created nor written to.
    """
    place = next(each for each in [folder, *folder.absolute().parents] if os.path.lexists(each))
    if not place.is_dir():
        raise UserError(f"{what} cannot be written to {folder}: {place} is no folder.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(
            f"{what} cannot be written to {folder}: {place} is not yours to write to; name another "
            "folder."
        )
    return place


def output_file(text: str) -> Path:
    """Type for argparse of an output file, checked without creating anything.

    Raises:
        ArgumentTypeError: the path exists and is not a file, or its folder can neither be created
            nor written to.
    """
    path = Path(text)
    if path.exists() and not path.is_file():
        raise ArgumentTypeError(f"{text} is a folder or a device; name a file")
    output_folder(str(path.parent))
    return path


def output_folder(text: str) -> Path:
    """Type for argparse of an output folder; see `output_file`."""
    try:
        require_place("what is made", Path(text))
    except UserError as error:
        raise ArgumentTypeError(str(error).rstrip(".")) from error
    return Path(text)


def refuse_other_files(folder: Path, ours: re.Pattern[str], flag: str) -> list[str]:
    """Names in a folder, all of which must match `ours`; empty if the folder does not exist.

    Raises:
        UserError: it is not a folder, or has other files, so that its name is likely a mistake.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{flag} {folder} is no folder to write to: {error.strerror}.") from error
    for name in names:
        if not ours.fullmatch(name):
            raise UserError(
                f"the folder {folder} holds something else already, {name} for one; give an empty "
                f"folder or a new one ({flag})."
            )
    return names


def in_units(size: float) -> str:
    """Format a number of bytes, such as "243 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
