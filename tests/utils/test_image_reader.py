"""The shared image reader: expensive images are refused from their header, everywhere alike."""

import io
import json
import os
import time
import tracemalloc

import numpy as np
import pytest
from bad_images import BAD, encoded, gif, jpeg, many_scans, overlapping_exif, png, segment
from PIL import Image, ImageOps

from triptych.cli.chat import require_readable
from triptych.data_modules.decode import Decoder
from triptych.data_modules.sources.base import BadSample
from triptych.data_modules.sources.tables import TextTable
from triptych.evaluation.dpg.layout import tile_size
from triptych.evaluation.expected_images import ExpectedImage, opened
from triptych.evaluation.image_sources import read_images
from triptych.inference.chat_messages import read_messages
from triptych.serving.asgi.api_errors import APIError
from triptych.serving.images.image_input import read_request_image
from triptych.utils.errors import ImageError, UserError
from triptych.utils.image_reader import ImageLimits, read_header, read_image
from triptych.utils.images import open_image
from triptych.utils.png_metadata import read_metadata


def table_image(path):
    (path.parent / "t.jsonl").write_text(json.dumps({"image": path.name, "caption": "c"}))
    return TextTable(path.parent / "t.jsonl").open().image(0)


def message(path):
    part = {"type": "image", "image": str(path)}
    return read_messages([{"role": "user", "content": [part, "what?"]}])


def benchmark(path):
    sample = ExpectedImage("k", "p", path.name)
    if opened(path.parent, sample) is None:
        raise UserError(sample.state)


def scored(path):
    (entry,) = read_images(path.parent)
    if entry.image is None:
        raise UserError(entry.note)


DOORS = {
    "reader, path": read_image,
    "reader, bytes": lambda path: read_image(path.read_bytes()),
    "command": open_image,
    "terminal": require_readable,
    "conversation": message,
    "loader": lambda path: Decoder()(path.read_bytes(), 48),
    "loader, pillow": lambda path: Decoder("pillow")(path.read_bytes(), 48),
    "table": table_image,
    "server": lambda path: read_request_image(path.read_bytes(), 48, "image"),
    "benchmark": benchmark,
    "metric": scored,
}
REFUSALS = (ImageError, UserError, BadSample, APIError)


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    paths = {}
    for name, (content, _) in BAD.items():
        paths[name] = folder / name / "image.png"
        paths[name].parent.mkdir()
        paths[name].write_bytes(content)
    return paths


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", BAD)
def test_every_door_refuses_it_at_once(name, door, bad_files):
    before = time.process_time()
    with pytest.raises(REFUSALS):
        DOORS[door](bad_files[name])
    assert time.process_time() - before < 1


@pytest.mark.parametrize("name", BAD)
def test_reader_errors_name_the_cause(name):
    with pytest.raises(ImageError, match=BAD[name][1]):
        read_image(BAD[name][0])


@pytest.mark.parametrize("door", [door for door in DOORS if "path" in door or door == "command"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "link to nothing", "zero byte"])
def test_irregular_image_files_are_refused_at_once(kind, door, tmp_path):
    path = tmp_path / "image.png"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "link to nothing":
        path.symlink_to(tmp_path / "nothing")
    else:
        path = "a\0.png"
    before = time.monotonic()
    with pytest.raises((ImageError, UserError)):
        DOORS[door](path)
    assert time.monotonic() - before < 1


def test_exif_that_points_to_itself_takes_little_memory():
    data = jpeg(segment(0xE1, overlapping_exif()))
    tracemalloc.start()
    read_image(data), Decoder()(data, 48)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


@pytest.mark.parametrize("scans", [12, 60])
def test_usual_progressive_files_are_read(scans):
    assert read_image(many_scans(scans)).size == (1000, 1000)


def test_scans_are_judged_by_size():
    data = many_scans(60)
    assert read_header(data, ImageLimits(max_pixels=3_000_000))
    with pytest.raises(ImageError, match="has too many scans .60 of 1000x1000, at most 40"):
        read_header(data, ImageLimits(max_pixels=2_000_000))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_that_of_pillow(kind, orientation):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8769] = orientation, "maker", {0x9003: "2026:01:01"}
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    data = encoded(image, kind, exif=exif)
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(read_image(data), turned)


def test_orientation_in_xmp():
    xmp = b"http://ns.adobe.com/xap/1.0/\0" + b'<x tiff:Orientation="6"/>'
    assert read_image(jpeg(segment(0xE1, xmp))).size == (48, 64)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "PNG", "WEBP", "JPEG"])
def test_formats_of_commands_and_data_sets(kind, tmp_path):
    Image.new("RGB", (64, 48), "red").save(tmp_path / f"a.{kind.lower()}")
    assert open_image(tmp_path / f"a.{kind.lower()}").size == (64, 48)
    (pixels,) = Decoder()((tmp_path / f"a.{kind.lower()}").read_bytes(), 48)  # of data sets
    assert pixels.shape == (3, 48, 48) and pixels[0].min() > 250 and pixels[1:].max() < 5


def test_animated_images_are_for_whom_they_suit():
    for data in (
        gif(frames=3),
        encoded(
            Image.new("RGB", (64, 48)),
            "PNG",
            save_all=True,
            append_images=[Image.new("RGB", (64, 48), "red")],
        ),
    ):
        assert read_image(data).size == (64, 48)
        with pytest.raises(ImageError, match="is animated"):
            read_image(data, ImageLimits(animated=False))
    assert read_image(gif(), ImageLimits(animated=False)).size == (64, 48)


def test_images_in_memory_have_the_same_limits(tmp_path):
    (tmp_path / "large.png").write_bytes(BAD["160 megapixels"][0])
    (tmp_path / "torn.png").write_bytes(encoded(Image.new("RGB", (640, 480)), "PNG")[:-40])
    for name, words in {"large.png": "too many pixels", "torn.png": "not an image"}.items():
        with Image.open(tmp_path / name) as lazy, pytest.raises(UserError, match=words):
            open_image(lazy)
    assert open_image(Image.new("L", (64, 48))).mode == "RGB"


def test_sizes_and_metadata_come_only_from_headers(bad_files):
    folder = bad_files["160 megapixels"].parent
    assert tile_size(folder, [ExpectedImage("k", "p", "image.png")]) == 0
    with pytest.raises(UserError, match="is not an image that can be read"):
        read_metadata(folder / "image.png")


def test_settings_of_another_shape_are_refused(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    for text in ("[]", "5", "[" * 100_000, "null", "{"):
        info = PngInfo()
        info.add_itxt("triptych", text)
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
        with pytest.raises(UserError, match="says nothing of how it was made"):
            read_metadata(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("160 megapixels", "image_too_large"),
        ("thin", "image_too_thin"),
        ("text", "invalid_image"),
        ("2,000 scans", "invalid_image"),
    ],
)
def test_codes_of_the_server(name, code):
    with pytest.raises(APIError) as found:
        read_request_image({**BAD, "thin": (png(10_100, 100), "")}[name][0], 48, "image")
    assert found.value.code == code and found.value.status == 400


def test_a_plain_image_is_read_by_all(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(png(64, 48))
    for door in DOORS.values():
        door(path)
