"""From encoded images to squares: two decoders that agree, every kind of file, refusals."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from processes import run

from triptych.data_modules.decode import Decoder, fast_jpeg, jpeg_reduction
from triptych.utils.errors import ImageError
from triptych.utils.image_reader import ImageLimits, read_header, read_image
from triptych.utils.image_squares import place_of_square
from triptych.utils.images import square

FAST, EXACT = Decoder("torchvision"), Decoder("pillow")


def photo(width, height, seed=0):
    """Smooth colours with some noise, as photos have."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (height // 32 + 2, width // 32 + 2, 3), np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    noisy = smooth + rng.normal(0, 3, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photo(90, 60), kind, exif=exif)


def png(width, height, depth, colour, rows):
    """A PNG of raw rows, each with its filter byte."""

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.fixture(params=["simplejpeg", "without"], autouse=True)
def jpeg(request, monkeypatch):
    """With the fast decoder of JPEG, and as where it is not installed."""
    if request.param == "without":
        monkeypatch.setattr("triptych.data_modules.decode.fast_jpeg", lambda: None)
    return request.param


def difference(data, size):
    """Between the two ways, of 255."""
    (fast,), (exact,) = FAST(data, size), EXACT(data, size)
    assert fast.shape == exact.shape == (3, size, size) and fast.dtype == exact.dtype == torch.uint8
    return (fast.int() - exact.int()).abs().float()


RGB = photo(90, 60)
CLEAR = RGB.copy()
CLEAR.putalpha(photo(90, 60, 1).convert("L"))
DEEP = np.random.default_rng(0).integers(0, 256, (60, 1 + 90 * 6), np.uint8)
DEEP[:, 0] = 0
KINDS = {
    "jpeg": encoded(RGB, "JPEG"),
    "progressive jpeg": encoded(RGB, "JPEG", progressive=True),
    "gray jpeg": encoded(RGB.convert("L"), "JPEG"),
    "cmyk jpeg": encoded(RGB.convert("CMYK"), "JPEG"),
    **{f"{kind} turned {n}": turned(kind, n) for kind in ("JPEG", "PNG", "WEBP") for n in (3, 6)},
    "jpeg mirrored": turned("JPEG", 7),
    "png": encoded(RGB, "PNG"),
    "gray png": encoded(RGB.convert("L"), "PNG"),
    "png of two colours": encoded(RGB.convert("1"), "PNG"),
    "palette png": encoded(RGB.quantize(64), "PNG"),
    "palette png with holes": encoded(RGB.quantize(64), "PNG", transparency=bytes(range(64))),
    "png with alpha": encoded(CLEAR, "PNG"),
    "gray png with alpha": encoded(CLEAR.convert("LA"), "PNG"),
    "gray png of 16 bits": encoded(Image.fromarray(DEEP.astype(np.uint16) * 250), "PNG"),
    "png of 16 bits": png(90, 60, 16, 2, zlib.compress(DEEP.tobytes())),
    "webp": encoded(RGB, "WEBP"),
    "webp with alpha": encoded(CLEAR, "WEBP"),
    "moving webp": encoded(RGB, "WEBP", save_all=True, append_images=[photo(90, 60, 2)]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_agree_with_the_published_transform(kind):
    data = KINDS[kind]
    published = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if published.mode == "I;16":  # which the published conversion would clip
        published = Image.fromarray(((np.asarray(published) + 128.0) // 257).astype(np.uint8))
    for size in (20, 36, 48, 90):
        assert torch.equal(EXACT(data, size)[0], square(published.convert("RGB"), size))
        found = (FAST(data, size)[0].int() - square(read_image(data), size).int()).abs().float()
        if jpeg_reduction(read_header(data), size) == 1:
            assert found.max() <= 2 and found.mean() < 0.03  # rounding, once in each direction


@pytest.mark.parametrize("shape", [(700, 448), (448, 449), (130, 200), (333, 901), (60, 448)])
def test_the_ways_differ_by_rounding_whatever_the_shape(shape):
    tall = shape[1] > 2 * shape[0]
    assert difference(encoded(photo(*shape), "JPEG"), 230).mean() < (0.5 if tall else 0.05)


@pytest.mark.parametrize(
    ("shape", "orientation", "by"),
    [
        ((440, 600), 1, 1),
        ((800, 600), 1, 2),
        ((1300, 900), 1, 4),
        ((1301, 900), 1, 1),
        ((1302, 900), 1, 2),
        ((1800, 1808), 6, 8),
        ((1302, 902), 6, 2),
        ((1304, 904), 6, 8),
    ],
)
def test_large_jpegs_are_decoded_at_reduced_size(shape, orientation, by):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(*shape), "JPEG", quality=90, exif=exif)
    header = read_header(data)
    size = 224 if orientation == 1 else 112
    assert jpeg_reduction(header, size) == by
    assert difference(data, size).mean() < (1 if by > 1 else 0.05)


@pytest.mark.parametrize("jpeg", ["simplejpeg"], indirect=True)
def test_one_decoding_gives_several_sizes(monkeypatch):
    data, calls = KINDS["jpeg"], []
    decode = fast_jpeg()
    monkeypatch.setattr(
        "triptych.data_modules.decode.fast_jpeg",
        lambda: lambda *a, **k: calls.append(1) or decode(*a, **k),
    )
    small, large, again = FAST(data, 20, 48, 20)
    assert small.shape == (3, 20, 20) and large.shape == (3, 48, 48) and again is small
    assert len(calls) == 1 and torch.equal(large, FAST(data, 48)[0])


@pytest.mark.parametrize("shape", [(20, 27), (27, 20), (90, 150), (3, 3), (7, 500)])
def test_the_place_of_the_square_is_the_published_one(shape):
    rows, columns = np.meshgrid(*map(np.arange, shape), indexing="ij")
    ramp = Image.fromarray(np.stack([rows % 256, columns % 256, 0 * rows], -1).astype(np.uint8))
    size = min(shape)
    scaled, top, left = place_of_square(*shape, size)
    shown = square(ramp, size)
    assert scaled == shape and shown[0, 0, 0] == top % 256 and shown[1, 0, 0] == left % 256
    assert place_of_square(90, 150, 448)[0] == (448, 746)  # down, not to the nearest


@pytest.mark.parametrize("decoder", [FAST, EXACT])
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_half_a_file_is_refused(kind, decoder):
    with pytest.raises(ImageError, match="is damaged"):
        decoder(KINDS[kind][: len(KINDS[kind]) // 2], 48)


@pytest.mark.parametrize("data", [b"", b"text", b"\xff\xd8\xff", encoded(RGB, "TIFF"), b"RIFF" * 9])
def test_other_files_are_refused(data):
    with pytest.raises(ImageError, match="is damaged"):
        FAST(data, 48)


def test_no_damage_ends_the_process():
    """torchvision's PNG decoder does, on a wrong checksum; nothing but ImageError gets out."""
    rng, decode = np.random.default_rng(0), Decoder(max_pixels=1_000_000)
    refused = 0
    for _ in range(400):
        data = bytearray(list(KINDS.values())[rng.integers(len(KINDS))])
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(256)
        try:
            decode(bytes(data), 48)
        except ImageError:
            refused += 1
    assert 0 < refused < 400


def test_damaged_exif_is_upright():
    data = turned("JPEG", 6)
    start = data.index(b"Exif\0\0") + 6
    broken = data[:start] + b"\xff" * 8 + data[start + 8 :]
    assert torch.equal(FAST(broken, 48)[0], FAST(KINDS["jpeg"], 48)[0])


def test_too_many_pixels_are_refused_by_the_header():
    data = encoded(Image.new("L", (400, 300)), "PNG")
    assert Decoder(max_pixels=120_000)(data, 48)
    with pytest.raises(ImageError, match="has too many pixels .400x300, at most 119999"):
        Decoder(max_pixels=119_999)(data, 48)
    with pytest.raises(ImageError, match="has too many pixels"):
        read_image(data, ImageLimits(max_pixels=119_999))


@pytest.mark.parametrize("decoder", [FAST, EXACT])
def test_a_strip_does_not_become_a_sea(decoder):
    with pytest.raises(ImageError, match="too long for its width .50000x2"):
        decoder(encoded(Image.new("L", (50_000, 2)), "PNG"), 448)


BOMB = """
import sys
from triptych.data_modules.decode import Decoder
from triptych.utils.errors import ImageError
assert "simplejpeg" not in sys.modules  # imported at the first JPEG
data, refused = open(sys.argv[1], "rb").read(), 0
def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
before = peak()
for way in ("torchvision", "pillow"):
    try:
        Decoder(way)(data, 448)
    except ImageError as error:
        refused += "too many pixels" in str(error)
print(refused, peak() - before)
"""


@pytest.mark.parametrize("jpeg", ["simplejpeg"], indirect=True)
@pytest.mark.linux
def test_a_160_megapixel_bomb_is_refused_in_little_memory(tmp_path):
    rows, packer = (b"\0" + bytes(12_800)) * 100, zlib.compressobj(9)
    packed = b"".join(packer.compress(rows) for _ in range(125)) + packer.flush()
    bomb = png(12_800, 12_500, 8, 0, packed)
    assert len(bomb) < 200_000
    (tmp_path / "bomb.png").write_bytes(bomb)
    command = [sys.executable, "-c", BOMB, str(tmp_path / "bomb.png")]
    done = run(command, check=True)
    refused, kilobytes = map(int, done.stdout.split())
    assert refused == 2 and kilobytes < 64 << 10


@pytest.mark.parametrize("jpeg", ["simplejpeg"], indirect=True)
@pytest.mark.parametrize("shape", [(1800, 1808), (1300, 900), (801, 601)])
def test_without_simplejpeg_pixels_are_the_same_but_for_rounding(shape, monkeypatch):
    data = encoded(photo(*shape), "JPEG", quality=90)
    fast = FAST(data, 224)[0]
    monkeypatch.setattr("triptych.data_modules.decode.fast_jpeg", lambda: None)
    other = FAST(data, 224)[0]
    assert (fast.int() - other.int()).abs().float().mean() < 0.03


@pytest.mark.parametrize("jpeg", ["simplejpeg"], indirect=True)
def test_missing_simplejpeg_is_hinted_at(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "simplejpeg", None)
        fast_jpeg.cache_clear()
        assert fast_jpeg() is None and "pip install 'triptych[fast]'" in Decoder().hint
        assert Decoder("pillow").hint == ""
    fast_jpeg.cache_clear()
    assert Decoder().hint == ""


@pytest.mark.parametrize(("way", "shown"), [("torchvision", 255), ("pillow", 10)])
def test_a_preview_shows_transparency_as_the_model_sees_it(way, shown):
    file = io.BytesIO()
    Image.new("RGBA", (8, 8), (10, 10, 10, 0)).save(file, "PNG")
    decoder = Decoder(way)
    assert np.unique(np.array(decoder.decode_full(file.getvalue()))).tolist() == [shown]
    assert decoder(file.getvalue(), 8)[0].unique().tolist() == [shown]
