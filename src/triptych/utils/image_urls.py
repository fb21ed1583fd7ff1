"""Data URLs (RFC 2397); links are not fetched."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from triptych.utils.errors import ImageError

LINK = "is a link, which is not fetched"
WRONG_DATA_URL = "is a damaged data URL"
EXAMPLE = "data:image/png;base64,..."
SCHEME = re.compile(r"\s*([a-zA-Z][a-zA-Z0-9+.-]*):")
FETCHED = ("http", "https", "ftp", "ftps", "file", "blob", "s3", "gs", "hf")
LONGEST_HEAD = 1000  # characters before the comma


def is_url(text: str) -> bool:
    """Whether a text is a data URL or a link, not a path."""
    return _scheme(text) in ("data", *FETCHED)


def read_data_url(url: str) -> bytes:
    """Decode a data URL of any media type.

    Like browsers, accepts upper and lower case before the comma, percent encoding, white space, and
    base64 without padding.

    Raises:
        ImageError: it is a link or not a URL, or a data URL without base64 and binary content.
    """
    if _scheme(url) != "data":
        raise ImageError(LINK, f"give {EXAMPLE}")
    head, comma, content = url.strip().partition(",")
    if not comma or len(head) > LONGEST_HEAD:
        raise ImageError(WRONG_DATA_URL, f"it has no comma, as {EXAMPLE} has")
    data = unquote_to_bytes(content) if "%" in content else content.encode("utf-8", "replace")
    if head.rpartition(";")[2].strip().lower() != "base64":
        if data.isascii() and b"\0" not in data:
            raise ImageError(WRONG_DATA_URL, "it has no ;base64 before its comma, and holds text")
        return data
    data = data.translate(None, b" \t\n\f\r").rstrip(b"=")
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except binascii.Error as error:
        raise ImageError(WRONG_DATA_URL, "what follows ;base64, is not base64") from error


def _scheme(text: str) -> str:
    match = SCHEME.match(text)
    return match[1].lower() if match else ""
