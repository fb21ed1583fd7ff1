"""The published transform: rounding of sides and of the crop, and every kind of image."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from triptych.utils.image_squares import square_image
from triptych.utils.images import square


def ramp(width, height):
    """An image whose red is its column and whose green is its row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8))


def test_square_of_the_right_size_is_unchanged():
    image = ramp(20, 20)
    assert torch.equal(square(image, 20).permute(1, 2, 0), torch.from_numpy(np.array(image)))


@pytest.mark.parametrize(
    ("width", "left"), [(20, 0), (21, 0), (22, 1), (23, 2), (24, 2), (25, 2), (27, 4)]
)
def test_half_a_pixel_of_the_crop_goes_to_the_even_side(width, left):
    shown = square(ramp(width, 20), 20)
    assert shown[0, 0, 0] == left and shown.shape == (3, 20, 20)
    assert square(ramp(20, width), 20)[1, 0, 0] == left


def test_the_long_side_is_rounded_down():
    """150x90 at 448 is 746 wide, not 747: all columns of the crop lie half a pixel elsewhere."""
    image = ramp(150, 90)
    wide = image.resize((746, 448), Image.Resampling.BICUBIC).crop((149, 0, 149 + 448, 448))
    assert torch.equal(square(image, 448).permute(1, 2, 0), torch.from_numpy(np.array(wide)))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_every_image_has_three_colours(mode):
    assert square(ramp(30, 20).convert(mode), 10).shape == (3, 10, 10)


@pytest.mark.parametrize("shape", [(150, 90), (90, 150), (97, 101), (640, 20), (3, 5), (448, 448)])
def test_pillow_square_equals_that_of_torchvision(shape):
    image = ramp(*shape)
    for size in (16, 48, 448):
        expected = center_crop(resize(image, size, InterpolationMode.BICUBIC), size)
        assert square_image(image, size).tobytes() == expected.tobytes()
