"""Images that clients send: read once, checked before anything is unpacked, kept small."""

from __future__ import annotations

from PIL import Image

from triptych.serving.asgi.api_errors import APIError, bad_request
from triptych.utils.errors import ImageError
from triptych.utils.image_headers import DAMAGED
from triptych.utils.image_reader import (
    ANIMATED,
    TOO_LARGE,
    TOO_LONG,
    TOO_MANY_PIXELS,
    ImageLimits,
    read_image,
)
from triptych.utils.image_squares import square_image
from triptych.utils.image_urls import EXAMPLE, LINK, read_data_url

LIMITS = ImageLimits(
    formats=("PNG", "JPEG", "WEBP", "GIF"),
    max_pixels=2**24,  # 4096 x 4096, or 64 MB while it is read
    max_side=16_384,
    animated=False,
)
CODES = {
    TOO_MANY_PIXELS: "image_too_large",
    TOO_LARGE: "image_too_large",
    TOO_LONG: "image_too_thin",
    ANIMATED: "animated_image",
}


def read_request_image(data: bytes, size: int | None, param: str) -> Image.Image:
    """Read the image in a file, upright, RGB.

    Args:
        size: side in pixels of the squares that the model sees; the rest of the image is
            dropped, so that queued requests are small. None: it sees images in their shapes.

    Raises:
        APIError: 400; it is not an image, or a damaged, an animated or a too large one.
    """
    try:
        upright = read_image(data, LIMITS)
    except ImageError as error:
        raise _problem(param, error) from error
    if size is None:
        return upright
    return square_image(upright, size)


def _problem(param: str, error: ImageError) -> APIError:
    if error.reason == DAMAGED:  # Pillow's words for it help nobody
        return bad_request(
            param,
            f"{param}: this is no image that can be read; send a whole PNG, JPEG, WebP or GIF.",
            "invalid_image",
        )
    return bad_request(
        param,
        f"{param}: the image {error}; send another.",
        CODES.get(error.reason, "invalid_image"),
    )


def read_url(url: str, param: str) -> bytes:
    """The file that a data URL holds.

    Raises:
        APIError: 400; it is a link, which this server does not fetch, or a damaged data URL.
    """
    try:
        return read_data_url(url)
    except ImageError as error:
        if error.reason == LINK:
            said = f"{param}: this server fetches no images; send {EXAMPLE} instead."
            raise bad_request(param, said, "unsupported_image_url") from error
        raise bad_request(
            param, f"{param}: this {error}; send {EXAMPLE}", "invalid_image"
        ) from error
