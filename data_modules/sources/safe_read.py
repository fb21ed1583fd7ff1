"""Reading the files that a data set names, and no others."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from triptych.data_modules.sources.base import BadSample
from triptych.utils.documents import open_regular
from triptych.utils.errors import UserError

MAX_IMAGE_BYTES = 64 << 20


def read_inside(folder: Path, name: object, key: str, what: str, most: int) -> bytes:
    """The file `name`, a relative path that a data set gives, in `folder`.

    Args:
        key: key of the sample, and `what` names the role of the file: "image".
        most: size limit in bytes; a larger file is not read.

    Raises:
        BadSample: the path leaves the folder, or the file does not exist or is too large.
    """
    if not isinstance(name, str) or not name:
        raise BadSample(key, f"{what} is no path", repr(name)[:100])
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise BadSample(key, f"{what} lies outside of the data set's folder", name)
    try:
        with open_regular(folder / path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise BadSample(key, f"{what} is too large", f"{size:,} bytes of {most:,}")
            return file.read(most)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise BadSample(key, f"{what} is missing", name) from error
        raise BadSample(key, f"{what} is no file that can be read", str(error)) from error
    except OSError as error:
        raise BadSample(key, f"{what} cannot be read", str(error)) from error


def open_if_there(path: str | Path) -> BinaryIO | None:
    """A regular file, open for reading; None where there is nothing.

    Raises:
        UserError: there is something else, or it may not be read.
    """
    try:
        return open_regular(path)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
