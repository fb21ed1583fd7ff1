"""Images that clients send: limits, and reading with checks before decompression."""

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
    max_pixels=2**24,  # 4096 x 4096, or 64 MB during decoding
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
    """Read an image file as upright RGB.

    Args:
        data: content of the file.
        size: side in pixels of the squares that the model gets; the image is cropped and resized,
            so that queued requests are small. None keeps the image as it is.
        param: field name of the file, for messages.

    Raises:
        APIError: 400; the file is not an image, or a damaged, animated or too large one.
    """
    try:
        upright = read_image(data, LIMITS)
    except ImageError as error:
        raise _image_error(param, error) from error
    if size is None:
        return upright
    return square_image(upright, size)


def _image_error(param: str, error: ImageError) -> APIError:
    if error.reason == DAMAGED:  # Pillow's messages do not help
        return bad_request(
            param,
            f"{param}: this is not an image that can be read; send a whole PNG, JPEG, WebP or GIF.",
            "invalid_image",
        )
    return bad_request(
        param,
        f"{param}: the image {error}; send another.",
        CODES.get(error.reason, "invalid_image"),
    )


def read_url(url: str, param: str) -> bytes:
    """Decode the file in a data URL.

    Raises:
        APIError: 400; the URL is a link, which this server does not fetch, or damaged.
    """
    try:
        return read_data_url(url)
    except ImageError as error:
        if error.reason == LINK:
            message = f"{param}: this server fetches no images; send {EXAMPLE} instead."
            raise bad_request(param, message, "unsupported_image_url") from error
        raise bad_request(
            param, f"{param}: this {error}; send {EXAMPLE}", "invalid_image"
        ) from error
