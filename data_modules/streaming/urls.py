"""Shards by address: lists them, checks the scheme, opens one as a byte stream."""

from __future__ import annotations

import gzip
import http.client
import os
import urllib.request
import zlib
from glob import has_magic
from typing import BinaryIO
from urllib.parse import urlparse

from triptych.utils.documents import open_regular
from triptych.utils.errors import UserError
from triptych.utils.listing.shards import GZIPPED, find_shards

TIMEOUT = 60.0  # seconds without a byte
# Errors of a file that is remote, or compressed.
READ_ERRORS = (OSError, EOFError, UserError, zlib.error, http.client.HTTPException)
SCHEMES = ("", "file", "http", "https")
"""Schemes that the standard library opens."""
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}
"""Other schemes -> the package that opens them."""


def list_shard_urls(urls: str | list[str]) -> list[str]:
    """Addresses of shards: braces expanded, local folders and patterns listed.

    Raises:
        UserError: there is none.
    """
    from triptych.data_modules.streaming.secure_webdataset import expand_urls

    shards = []
    for url in [urls] if isinstance(urls, str) else urls:
        if not urlparse(url).scheme and (os.path.isdir(url) or has_magic(url)):
            shards += map(str, find_shards(url, gzipped=True))
        else:
            shards += expand_urls(url)
    if not shards:
        raise UserError("data.urls is empty; give the address of a shard.")
    return shards


def check_url(url: str) -> None:
    """Refuse an address that `open_url` cannot open.

    Raises:
        UserError: the scheme is unknown (`pipe:` for one), or its package is not installed.
    """
    scheme = urlparse(url).scheme
    if scheme in SCHEMES:
        return
    if scheme not in PACKAGES:
        names = ", ".join(f"{name}://" for name in (*SCHEMES, *PACKAGES) if name)
        raise UserError(f"the shard {url} cannot be streamed; give a file, or one of {names}.")
    import fsspec

    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        package = PACKAGES[scheme]
        raise UserError(
            f"the shard {url} needs the package {package}; run `pip install {package}`."
        ) from error


def open_url(url: str) -> BinaryIO:
    """Open a shard as a byte stream, decompressed if it is gzipped.

    Not by webdataset: that opens http and hf through the program curl, with a user's token among
    its arguments for all to see, supports no s3, and in its secure mode opens no local file.

    Raises:
        OSError, UserError, http.client.HTTPException, ...: see READ_ERRORS.
    """
    parsed = urlparse(url)
    if parsed.scheme in ("http", "https"):
        file = urllib.request.urlopen(url, timeout=TIMEOUT)
    elif parsed.scheme in PACKAGES:
        import fsspec

        file = fsspec.open(url, "rb").open()
    else:
        file = open_regular(urllib.request.url2pathname(parsed.path) if parsed.scheme else url)
    return gzip.GzipFile(fileobj=file) if parsed.path.lower().endswith(GZIPPED) else file
