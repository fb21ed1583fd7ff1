"""Reads the files that a data set names, inside its folder only."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from triptych.data_modules.sources.base import BadSample
from triptych.utils.documents import open_regular
from triptych.utils.errors import UserError

MAX_IMAGE_BYTES = 64 << 20


def read_inside(folder: Path, name: object, key: str, label: str, max_bytes: int) -> bytes:
    """Read a file of a data set.

    Args:
        folder: folder of the data set.
        name: path of the file relative to `folder`, as the data set gives it, unchecked.
        key: key of the sample, for errors.
        label: role of the file, for errors, such as "image".
        max_bytes: size limit; a larger file is not read.

    Raises:
        BadSample: the path leaves the folder, or the file does not exist or is too large.
    """
    if not isinstance(name, str) or not name:
        raise BadSample(key, f"{label} is no path", repr(name)[:100])
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise BadSample(key, f"{label} lies outside of the data set's folder", name)
    try:
        with open_regular(folder / path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise BadSample(key, f"{label} is too large", f"{size:,} bytes of {max_bytes:,}")
            return file.read(max_bytes)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise BadSample(key, f"{label} is missing", name) from error
        raise BadSample(key, f"{label} is no file that can be read", str(error)) from error
    except OSError as error:
        raise BadSample(key, f"{label} cannot be read", str(error)) from error
