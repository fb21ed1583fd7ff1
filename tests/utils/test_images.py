"""Conversions of images: arrays, tensors, Pillow images, files; and their metadata."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.utils.errors import UserError
from triptych.utils.image_urls import read_data_url
from triptych.utils.images import (
    data_url,
    encode_image,
    image_to_tensor,
    scaled_pixels,
    to_arrays,
    to_images,
    to_tensor,
)
from triptych.utils.png_metadata import embed_metadata, metadata_of, read_metadata

ARRAYS = np.random.default_rng(0).integers(0, 256, (3, 6, 4, 3), dtype=np.uint8)


def test_conversions_are_inverse():
    pixels = to_tensor(list(ARRAYS))
    assert pixels.shape == (3, 3, 6, 4) and pixels.is_contiguous()
    assert np.array_equal(to_arrays(pixels), ARRAYS)
    images = to_images(pixels)
    assert images[0].mode == "RGB" and images[0].size == (4, 6)
    assert torch.equal(torch.stack([image_to_tensor(image) for image in images]), pixels)


def test_pixels_are_scaled_within_their_range():
    pixels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    pixels[..., 4:] = 255  # bicubic goes beyond both ends beside an edge
    assert scaled_pixels(pixels, 8) is pixels
    scaled = scaled_pixels(pixels, 16)
    assert scaled.shape == (1, 3, 16, 16) and scaled.dtype == torch.uint8
    assert scaled[..., :4].max() == 0 and scaled[..., -4:].min() == 255


@pytest.mark.parametrize("given", [ARRAYS[0], Image.fromarray(ARRAYS[0])])
def test_a_data_url_holds_the_file(given):
    data = read_data_url(data_url(given))
    assert data == encode_image(given, "PNG")
    assert np.array_equal(Image.open(io.BytesIO(data)), ARRAYS[0])
    assert data_url(data) == data_url(given)
    assert data_url(given, "JPEG", quality=50).startswith("data:image/jpeg;base64,")


def test_metadata_is_a_dictionary_in_memory_and_text_in_a_file(tmp_path):
    metadata = {"prompt": "ein grüner Kreis", "seed": 3, "request": {"seeds": [3, 4]}}
    image = embed_metadata(Image.fromarray(ARRAYS[0]), metadata)
    assert metadata_of(image) is metadata
    image.save(tmp_path / "a.png")
    assert read_metadata(tmp_path / "a.png") == metadata
    with Image.open(tmp_path / "a.png") as read:
        assert metadata_of(read) == metadata
    Image.fromarray(ARRAYS[0]).save(tmp_path / "b.png")
    assert metadata_of(Image.fromarray(ARRAYS[0])) == {}
    with pytest.raises(UserError, match="says nothing of how it was made"):
        read_metadata(tmp_path / "b.png")
