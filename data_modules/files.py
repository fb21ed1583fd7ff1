"""Reading the files that a data set names, and no others."""

from __future__ import annotations

import stat
from pathlib import Path, PurePosixPath

from .source import BadSample

MAX_PICTURE_BYTES = 64 << 20
MAX_TEXT_BYTES = 1 << 20


def read_inside(folder: Path, name: object, key: str, what: str, most: int) -> bytes:
    """The file `name`, a relative path that a data set gives, in `folder`.

    Args:
        key: of the sample, and `what` the file is to it: "picture".
        most: bytes; a larger file is not read.

    Raises:
        BadSample: the path leaves the folder, or there is no such file, or it is too large.
    """
    if not isinstance(name, str) or not name:
        raise BadSample(key, f"{what} is no path", repr(name)[:100])
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise BadSample(key, f"{what} lies outside of the data set's folder", name)
    try:
        found = (folder / path).stat()
        if not stat.S_ISREG(found.st_mode):
            raise BadSample(key, f"{what} is no file", name)
        if found.st_size > most:
            raise BadSample(key, f"{what} is too large", f"{found.st_size:,} bytes of {most:,}")
        return (folder / path).read_bytes()
    except FileNotFoundError as error:
        raise BadSample(key, f"{what} is missing", name) from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise BadSample(key, f"{what} cannot be read", str(error)) from error
