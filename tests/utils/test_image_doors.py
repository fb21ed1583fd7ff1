"""Every reader of images gives the same 8-bit RGB pixels, for any mode, depth and orientation."""

import base64
import io
import json
import struct
import tarfile
import zlib
from urllib.parse import quote

import numpy as np
import pytest
import torch
from bad_images import png as black_png
from PIL import Image

from triptych.data_modules.decode import Decoder
from triptych.data_modules.sources.base import BadSample
from triptych.data_modules.sources.tables import TextTable
from triptych.data_modules.tools.inspect import collect_statistics
from triptych.data_modules.tools.pack import pack
from triptych.evaluation.expected_images import ExpectedImage, opened
from triptych.evaluation.image_sources import read_images
from triptych.inference.chat_messages import Message, read_messages
from triptych.serving.asgi.api_errors import APIError
from triptych.serving.images.image_input import read_request_image, read_url
from triptych.utils.errors import ImageError, UserError
from triptych.utils.image_modes import to_8_bits
from triptych.utils.image_reader import read_image
from triptych.utils.images import open_image

WIDTH, HEIGHT = 10, 6
RAMP = np.linspace(0, 255, HEIGHT * WIDTH).round().reshape(HEIGHT, WIDTH).astype(np.uint8)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], -1)
GREY, RGB = Image.fromarray(RAMP), Image.fromarray(COLOURS)
COVER = Image.fromarray(np.where(np.arange(WIDTH) < WIDTH // 2, 0, 255).astype(np.uint8) + 0 * RAMP)
HALF = Image.fromarray(np.full_like(RAMP, 128))


def url_of(data, head="data:image/png;base64,"):
    return head + base64.b64encode(data).decode()


def in_messages(part, shape):
    part = {"type": "image", "image": part} if shape == "mapping" else part
    message = Message("user", [part]) if shape == "Message" else {"role": "user", "content": [part]}
    return read_messages([message])[0].content[0]


def of_folder(path):
    (entry,) = read_images(path.parent)
    if entry.image is None:
        raise UserError(entry.note)
    return entry.image


def of_shard(path):
    with tarfile.open(path.parent / "a.tar", "w") as tar:
        tar.add(path, f"a{path.suffix}")
    try:
        (entry,) = read_images(path.parent / "a.tar")
    finally:
        (path.parent / "a.tar").unlink()
    if entry.image is None:
        raise UserError(entry.note)
    return entry.image


def of_table(path):
    (path.parent / "t.jsonl").write_text(json.dumps({"image": path.name, "caption": "c"}))
    return TextTable(path.parent / "t.jsonl").open().image(0)


def of_loader(path):
    (pixels,) = Decoder()(path.read_bytes(), HEIGHT)
    return pixels


def of_benchmark(path):
    sample = ExpectedImage("k", "p", path.name)
    if (found := opened(path.parent, sample)) is None:
        raise UserError(sample.state)
    return found


def lazily(path):
    return Image.open(io.BytesIO(path.read_bytes()))


def loaded(path):
    image = lazily(path)
    image.load()
    return image


FILE_DOORS = {
    "path": read_image,
    "text of a path": lambda path: read_image(str(path)),
    "bytes": lambda path: read_image(path.read_bytes()),
    "bytearray": lambda path: read_image(bytearray(path.read_bytes())),
    "data URL": lambda path: read_image(url_of(path.read_bytes())),
    "Pillow": lambda path: read_image(lazily(path)),
    "Pillow, loaded": lambda path: read_image(loaded(path)),
    "Pillow, copied": lambda path: read_image(lazily(path).copy()),
    "twice": lambda path: read_image(read_image(path)),
    "command": open_image,
    "message, path": lambda path: in_messages(path, "mapping"),
    "message, Pillow": lambda path: in_messages(lazily(path), "plain"),
    "message, Pillow in a mapping": lambda path: in_messages(lazily(path), "mapping"),
    "Message": lambda path: in_messages(lazily(path), "Message"),
    "message, data URL": lambda path: in_messages(url_of(path.read_bytes()), "mapping"),
    "server": lambda path: read_request_image(path.read_bytes(), None, "image"),
    "server, URL": lambda path: read_request_image(
        read_url(url_of(path.read_bytes()), "u"), None, "u"
    ),
    "folder to score": of_folder,
    "shard to score": of_shard,
    "images to score": lambda path: next(iter(read_images([lazily(path)]))).image,
    "benchmark": of_benchmark,
    "table": of_table,
}


def transparent_png(depth, colour_type, samples, transparent):
    """A PNG of raw samples, [H,W] or [H,W,C], one of whose colours is transparent."""

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    height, width = samples.shape[:2]
    if depth == 16:
        rows = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    else:
        bits = np.unpackbits(samples.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        rows = np.packbits(bits.reshape(height, -1), axis=-1)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), rows], 1)
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    key = np.array(transparent, ">u2").tobytes()
    parts = [(b"IHDR", header), (b"tRNS", key), (b"IDAT", zlib.compress(rows.tobytes()))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in [*parts, (b"IEND", b"")])


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def over_white(colours, cover):
    """float [H,W,3] of colours [H,W,3] or [H,W] under a cover [H,W]."""
    share = np.asarray(cover, np.float64)[..., None] / 255
    colours = np.asarray(colours, np.float64)
    colours = colours if colours.ndim == 3 else np.repeat(colours[..., None], 3, -1)
    return colours * share + 255 * (1 - share)


def covered(image, cover):
    image = image.copy()
    image.putalpha(cover)
    return image


def files():
    """name -> (suffix, content, pixels [H,W,3], largest difference)"""
    deep = RAMP.astype(np.uint16) * 257
    palette = RGB.quantize(16)
    clear_palette = np.asarray(palette.convert("RGB"), np.float64)
    clear_palette[np.asarray(palette) == 3] = 255
    of_palette = np.asarray(palette.convert("RGB"))
    alphas = bytes(range(0, 256, 16))
    steps = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    found = {
        "8-bit": (saved(RGB), COLOURS, 0),
        "grey": (saved(GREY), RAMP, 0),
        "two colours": (saved(GREY.convert("1")), np.asarray(GREY.convert("1")) * 255, 0),
        "16-bit grey": (saved(Image.fromarray(deep)), RAMP, 0),
        "16-bit grey, between": (saved(Image.fromarray(np.minimum(deep, 65_407) + 128)), RAMP, 1),
        "RGBA": (saved(covered(RGB, COVER)), over_white(COLOURS, COVER), 0),
        "RGBA, half": (saved(covered(RGB, HALF)), over_white(COLOURS, HALF), 1),
        "grey and alpha": (saved(covered(GREY, HALF)), over_white(RAMP, HALF), 1),
        "palette": (saved(palette), of_palette, 0),
        "palette, a colour clear": (saved(palette, transparency=3), clear_palette, 0),
        "palette, alphas": (
            saved(palette, transparency=alphas),
            over_white(of_palette, np.frombuffer(alphas, np.uint8)[np.asarray(palette)]),
            1,
        ),
        "16-bit grey, a level clear": (
            transparent_png(16, 0, deep, [deep[2, 3]]),
            np.where(RAMP == RAMP[2, 3], 255, RAMP),
            0,
        ),
        "16-bit RGB, a colour clear": (
            transparent_png(16, 2, COLOURS.astype(np.uint16) * 257, COLOURS[2, 3] * np.uint16(257)),
            np.where((COLOURS == COLOURS[2, 3]).all(-1, keepdims=True), 255, COLOURS),
            0,
        ),
        "8-bit RGB, a colour clear": (
            transparent_png(8, 2, COLOURS, COLOURS[2, 3]),
            np.where((COLOURS == COLOURS[2, 3]).all(-1, keepdims=True), 255, COLOURS),
            0,
        ),
        **{
            f"{depth}-bit grey, a level clear": (
                transparent_png(depth, 0, steps % (1 << depth), [1]),
                np.where(steps % (1 << depth) == 1, 255, steps % (1 << depth) * scale),
                0,
            )
            for depth, scale in {2: 85, 4: 17, 8: 1}.items()
        },
        "1-bit grey, black clear": (transparent_png(1, 0, steps % 2, [0]), 0 * RAMP + 255, 0),
    }
    read = {name: (".png", *rest) for name, rest in found.items()}
    webp = saved(covered(RGB, COVER), "WEBP", lossless=True, exact=True)
    read["WebP with alpha"] = (".webp", webp, over_white(COLOURS, COVER), 0)
    jpeg = Image.open(io.BytesIO(saved(RGB.convert("CMYK"), "JPEG", quality=100, subsampling=0)))
    read["CMYK JPEG"] = (
        ".jpg",
        saved(RGB.convert("CMYK"), "JPEG", quality=100, subsampling=0),
        np.asarray(jpeg.convert("RGB")),
        0,
    )
    grey_jpeg = saved(GREY, "JPEG", quality=100)
    read["grey JPEG"] = (".jpg", grey_jpeg, np.asarray(Image.open(io.BytesIO(grey_jpeg))), 0)
    return read


FILES = files()


def pixels_of(image):
    assert image.mode == "RGB"
    return np.asarray(image)


def difference(found, expected):
    """The largest between images [H,W,3]; the expected one may be grey, [H,W]."""
    expected = np.asarray(expected, np.float64)
    expected = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, -1)
    assert found.shape == expected.shape
    return np.abs(found - expected).max()


# A loaded image of Pillow no longer says how deep its file was, nor so its transparent colour.
FORGOTTEN = ("2-bit grey, a level clear", "4-bit grey, a level clear", "16-bit RGB, a colour clear")


@pytest.mark.parametrize("door", FILE_DOORS)
def test_every_door_gives_the_same_pixels(door, tmp_path):
    for number, (name, (suffix, content, expected, most)) in enumerate(FILES.items()):
        if name in FORGOTTEN and door in ("Pillow, loaded", "Pillow, copied"):
            continue
        path = tmp_path / str(number) / f"image{suffix}"
        path.parent.mkdir()
        path.write_bytes(content)
        found = pixels_of(FILE_DOORS[door](path))
        assert difference(found, expected) <= most, name
        assert np.array_equal(found, read_image(path)), name


@pytest.mark.parametrize("name", FILES)
def test_the_loader_gives_the_same_pixels(name):
    """Not scaled: the square of the short side is cut from the middle."""
    _, content, expected, most = FILES[name]
    (found,) = Decoder()(content, HEIGHT)
    left = (WIDTH - HEIGHT) // 2
    expected = np.asarray(expected)[:, left : left + HEIGHT]
    assert difference(found.permute(1, 2, 0).numpy().astype(np.float64), expected) <= max(
        most, "JPEG" in name
    )


def test_the_published_transform_drops_the_alpha_channel():
    content = FILES["RGBA"][1]
    (found,) = Decoder("pillow")(content, HEIGHT)
    left = (WIDTH - HEIGHT) // 2
    assert np.array_equal(found.permute(1, 2, 0), COLOURS[:, left : left + HEIGHT])
    assert np.array_equal(read_image(content, alpha="drop"), RGB)


# --- orientation ----------------------------------------------------------------------------------

TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("door", FILE_DOORS)
def test_every_door_honours_every_orientation(door, tmp_path):
    for orientation, turned in TURNED.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / str(orientation) / "image.png"
        path.parent.mkdir()
        RGB.save(path, exif=exif)
        found = pixels_of(FILE_DOORS[door](path))
        assert np.array_equal(found, turned(COLOURS)), orientation


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_the_loader_honours_every_orientation(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    large = RGB.resize((64, 64), Image.Resampling.NEAREST)
    content = saved(large, kind, exif=exif, quality=95)
    plain = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    (found,) = Decoder()(content, 64)
    assert (
        difference(found.permute(1, 2, 0).numpy().astype(np.float64), TURNED[orientation](plain))
        <= 2
    )


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "P"])
def test_an_orientation_that_was_set_in_memory(mode, orientation):
    image = Image.fromarray(RAMP.astype(np.uint16) * 257) if mode == "I;16" else RGB.convert(mode)
    upright = np.asarray(read_image(image))
    image.getexif()[0x0112] = orientation
    assert np.array_equal(read_image(image), TURNED[orientation](upright))


def test_damaged_exif_in_memory_turns_nothing():
    for exif in (b"Exif\0\0nonsense", b"II*\0\xff\xff\xff\xff", b""):
        image = RGB.copy()
        image.info["exif"] = exif
        assert np.array_equal(read_image(image), COLOURS)


# --- modes of Pillow ------------------------------------------------------------------------------

DEEP = RAMP.astype(np.uint16) * 257
IN_MEMORY = {
    **{mode: (GREY.convert(mode), RAMP, 0) for mode in ("L", "I", "F")},
    "1": (GREY.convert("1"), np.asarray(GREY.convert("1")) * 255, 0),
    "LA": (covered(GREY, HALF), over_white(RAMP, HALF), 1),
    "La": (covered(GREY, HALF).convert("La"), over_white(RAMP, HALF), 2),
    "P": (RGB.quantize(16), np.asarray(RGB.quantize(16).convert("RGB")), 0),
    "PA": (
        Image.merge("PA", [RGB.quantize(16), COVER]),
        over_white(RGB.quantize(16).convert("RGB"), COVER),
        0,
    ),
    "RGB": (RGB, COLOURS, 0),
    "RGBX": (RGB.convert("RGBX"), COLOURS, 0),
    "RGBA": (covered(RGB, HALF), over_white(COLOURS, HALF), 1),
    "RGBa": (covered(RGB, HALF).convert("RGBa"), over_white(COLOURS, HALF), 2),
    "CMYK": (RGB.convert("CMYK"), COLOURS, 1),
    "YCbCr": (RGB.convert("YCbCr"), COLOURS, 3),
    "HSV": (RGB.convert("HSV"), COLOURS, 6),
    "LAB": (RGB.convert("LAB"), np.asarray(RGB.convert("LAB").convert("RGB")), 0),
    "I;16": (Image.fromarray(DEEP), RAMP, 0),
    "I;16L": (Image.frombytes("I;16L", GREY.size, DEEP.astype("<u2").tobytes()), RAMP, 0),
    "I;16B": (Image.frombytes("I;16B", GREY.size, DEEP.astype(">u2").tobytes()), RAMP, 0),
    "I;16N": (Image.frombytes("I;16N", GREY.size, DEEP.tobytes()), RAMP, 0),
    "I of 16 bits": (Image.fromarray(DEEP.astype(np.int32)), RAMP, 0),
    "F from 0 to 1": (Image.fromarray((RAMP / 255).astype(np.float32)), RAMP, 0),
}


def test_every_mode_of_pillow_is_tried():
    assert set(Image.MODES) <= set(IN_MEMORY)


@pytest.mark.parametrize("mode", IN_MEMORY)
def test_every_mode_of_pillow(mode):
    image, expected, most = IN_MEMORY[mode]
    before = image.tobytes()
    assert difference(pixels_of(read_image(image)), expected) <= most
    assert difference(pixels_of(read_image(image.copy(), alpha="white")), expected) <= most
    assert image.tobytes() == before


@pytest.mark.parametrize("kind", ["I;16", "I;16B", "I", "F"])
def test_a_tiff_that_pillow_opened(kind, tmp_path):
    deep = {"I;16": DEEP, "I;16B": DEEP.astype(">u2"), "I": DEEP.astype(np.int32)}.get(kind)
    image = Image.fromarray((RAMP / 255).astype(np.float32) if deep is None else deep)
    image.save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as opened_image:
        assert difference(pixels_of(read_image(opened_image)), RAMP) == 0


def test_16_bits_are_rounded():
    values = np.arange(65_536, dtype=np.uint16)
    assert np.array_equal(to_8_bits(values), np.floor(values / 257 + 0.5))


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0.0, 1.0001]]),
        np.array([[-0.001, 1.0]]),
        np.array([[0.5, 254.5]]),
        np.array([[0.5, np.nan]]),
        np.array([[0.5, np.inf]]),
        np.array([[-1, 5]]),
        np.array([[0, 70_000]]),
        np.array([[0, 2**40]]),
        np.array([[1j, 0]]),
        np.array([["a", "b"]]),
    ],
)
def test_images_of_unknown_value_range_are_refused(values):
    with pytest.raises(UserError, match="unknown range .*convert it to 8 or 16 bits"):
        open_image(values)
    if values.dtype.kind in "if" and abs(np.nan_to_num(values)).max() < 2**31:
        image = Image.fromarray(values.astype(np.int32 if values.dtype.kind == "i" else np.float32))
        with pytest.raises(ImageError, match="unknown range"):
            read_image(image)


# --- arrays and tensors ---------------------------------------------------------------------------

TYPES = {
    np.uint8: 1,
    np.uint16: 257,
    np.float32: 1 / 255,
    np.float64: 1 / 255,
    np.int64: 1,
    np.int32: 257,
}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("channels", [0, 1, 2, 3, 4])
def test_arrays_and_tensors(kind, channels):
    cover = np.asarray(COVER)
    layers = {0: RAMP, 1: RAMP[..., None], 2: np.dstack([RAMP, cover]), 3: COLOURS}
    values = layers.get(channels, np.dstack([COLOURS, cover]))
    values = (values * np.float64(TYPES[kind])).round(9).astype(kind)
    expected = COLOURS if channels > 2 else RAMP
    expected = over_white(expected, COVER) if channels in (2, 4) else expected
    tensor = torch.from_numpy(values)
    tensor = tensor.movedim(-1, 0) if channels else tensor
    for given in (values, tensor, tensor.clone()):
        assert difference(pixels_of(open_image(given)), expected) == 0
        assert difference(pixels_of(in_messages(given, "mapping")), expected) == 0
        (entry,) = read_images([given])
        assert difference(pixels_of(entry.image), expected) == 0


def test_other_arrays():
    bits = RAMP > 100
    assert difference(pixels_of(read_image(bits)), bits * 255) == 0
    assert difference(pixels_of(read_image(torch.from_numpy(RAMP / 255).bfloat16())), RAMP) <= 1
    graph = torch.from_numpy(RAMP / 255).requires_grad_()
    assert difference(pixels_of(read_image(graph)), RAMP) == 0
    for shape in [(3, 6, 10), (2, 6, 10, 3), (10,), (), (0, 5, 3), (4, 4, 5)]:
        with pytest.raises(UserError, match="not of the shape of an image"):
            open_image(np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match="not of the shape of an image"):
        open_image(torch.zeros(6, 10, 3))
    for other in (None, 5, {}, object()):
        with pytest.raises(UserError, match="is not an image .*give a path"):
            open_image(other)


# --- data URLs ------------------------------------------------------------------------------------

CONTENT = saved(RGB)
TEXT = base64.b64encode(CONTENT).decode()
GOOD_URLS = {
    "usual": f"data:image/png;base64,{TEXT}",
    "no type": f"data:;base64,{TEXT}",
    "another type": f"data:application/octet-stream;base64,{TEXT}",
    "wrong type": f"data:text/plain;base64,{TEXT}",
    "parameters": f"data:image/png;charset=utf-8;name=a.png;base64,{TEXT}",
    "capitals": f"DATA:Image/PNG;BASE64,{TEXT}",
    "lines": "data:image/png;base64,\r\n" + "\n".join(TEXT[n : n + 60] for n in range(0, 9999, 60)),
    "space around": f"  data:image/png;base64, {TEXT}\n",
    "percent in base64": f"data:image/png;base64,{quote(TEXT, safe='')}",
    "no padding": f"data:image/png;base64,{TEXT.rstrip('=')}",
    "percent": f"data:image/png,{quote(CONTENT)}",
    "percent, no type": f"data:,{quote(CONTENT)}",
}
BAD_URLS = {
    "no marker": (f"data:image/png,{TEXT}", "no ;base64 before its comma"),
    "no comma": (f"data:image/png;base64{TEXT}", "no comma"),
    "empty": ("data:", "no comma"),
    "not base64": ("data:image/png;base64,!!!!", "is not base64"),
    "a letter too many": ("data:image/png;base64,AAAAA", "is not base64"),
    "other letters": ("data:image/png;base64,é" + TEXT, "is not base64"),
    "no image": ("data:image/png;base64,aGVsbG8=", "not an image that can be read"),
    "nothing": ("data:image/png;base64,", "not an image that can be read"),
    "drawing": ("data:image/svg+xml,<svg/>", "no ;base64 before its comma"),
}
LINKS = ["http://a.example/b.png", "https://a.example/?data:,", "HTTPS://A.EXAMPLE", "ftp://a/b"]


def refused_by(door, url):
    if door == "server":
        with pytest.raises(APIError) as found:
            read_request_image(read_url(url, "url"), None, "url")
        return found.value.message
    with pytest.raises(UserError) as found:
        open_image(url) if door == "command" else in_messages(url, "mapping")
    return str(found.value)


@pytest.mark.parametrize("name", GOOD_URLS)
def test_data_urls_are_read_by_their_content(name):
    url = GOOD_URLS[name]
    assert np.array_equal(open_image(url), COLOURS)
    assert np.array_equal(read_request_image(read_url(url, "url"), None, "url"), COLOURS)
    assert np.array_equal(in_messages(url, "mapping"), COLOURS)


@pytest.mark.parametrize("door", ["server", "command", "message"])
@pytest.mark.parametrize("name", BAD_URLS)
def test_wrong_data_urls_are_named(name, door):
    url, words = BAD_URLS[name]
    said = refused_by(door, url)
    assert words in said and "fetch" not in said and len(said) < 250


@pytest.mark.parametrize("door", ["server", "command", "message"])
@pytest.mark.parametrize("url", LINKS)
def test_links_are_refused_as_links(url, door):
    said = refused_by(door, url)
    assert ("fetches no" if door == "server" else "is a link, which is not fetched") in said


# --- shapes ---------------------------------------------------------------------------------------

LINES = [(1, 5000), (5000, 1), (3, 301)]


@pytest.mark.parametrize("door", FILE_DOORS | {"loader": of_loader})
@pytest.mark.parametrize("shape", LINES)
def test_every_door_refuses_a_line(shape, door, tmp_path):
    path = tmp_path / "line.png"
    path.write_bytes(black_png(*shape))
    if door == "images to score":
        (entry,) = read_images([lazily(path)])
        assert entry.state == "unreadable" and "too long for its width" in entry.note
        return
    with pytest.raises((ImageError, UserError, BadSample, APIError)) as found:
        (FILE_DOORS | {"loader": of_loader})[door](path)
    said = getattr(found.value, "message", None) or str(found.value)
    assert "too long for its width" in said or door in ("benchmark", "shard to score")


def test_lines_are_counted_by_a_name_of_their_own(tmp_path):
    for number, shape in enumerate([(1, 5000), (60, 40), (5000, 1)]):
        (tmp_path / f"{number}.png").write_bytes(black_png(*shape))
    rows = [json.dumps({"image": f"{n}.png", "caption": "c"}) for n in range(3)]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    source = TextTable(tmp_path / "t.jsonl").open()
    named = {"image is too long for its width": 2}
    assert collect_statistics(source, workers=1).problems == named
    (packed,) = pack(source, tmp_path / "shards", {}, workers=1)
    assert packed.samples == 1 and packed.skipped == named


def test_images_without_pixels_are_refused():
    with pytest.raises(UserError, match="has no pixels"):
        open_image(Image.new("RGB", (0, 5)))
