"""Square crop of an image for a model with Pillow only, as torch is slow to import."""

from __future__ import annotations

from PIL import Image

from triptych.utils.image_modes import to_rgb


def square_image(image: Image.Image, size: int) -> Image.Image:
    """The published transform: scale the short side to `size` (bicubic), centre crop, RGB."""
    image = to_rgb(image)
    if image.size == (size, size):
        return image
    (height, width), top, left = place_of_square(image.height, image.width, size)
    scaled = image.resize((width, height), Image.Resampling.BICUBIC)
    return scaled.crop((left, top, left + size, top + size))


def place_of_square(height: int, width: int, size: int) -> tuple[tuple[int, int], int, int]:
    """Resize and crop parameters of `square_image`: ((height, width) after scaling, top, left).

    Equal to torchvision's `resize` and `center_crop`: the long side is rounded down, and half a
    pixel of the crop is rounded to even.
    """
    short = min(height, width)
    scaled = (size * height // short, size * width // short)
    top, left = (round((side - size) / 2) for side in scaled)
    return scaled, top, left
