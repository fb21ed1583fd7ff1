"""Shards that cannot be seeked: over http, gzipped, cut off, and too large."""

import functools
import gzip
import http.server
import io
import itertools
import json
import pickle
import sys
import tarfile
import threading
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image
from processes import run

from triptych.data_modules.sources.base import BadSample
from triptych.data_modules.streaming.tar_stream import (
    InMemorySamples,
    MemberLimits,
    read_samples,
)
from triptych.data_modules.streaming.urls import check_url, open_url
from triptych.interfaces import IMAGE_GENERATION
from triptych.utils.errors import UserError
from triptych.utils.listing.tar import ZEROS


def encoded(number):
    """An image whose colour is its number."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (number, 10, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def sample(number):
    """Members of a sample whose caption is the number of its image."""
    return [(f"{number:04d}.png", encoded(number)), (f"{number:04d}.txt", str(number).encode())]


def tar(members):
    """The bytes of an archive of (name, bytes)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def shard(numbers):
    return tar([member for number in numbers for member in sample(number)])


def read(content, caps=None):
    """(good samples, reasons of the others) of an archive."""
    found = list(read_samples(io.BytesIO(content), caps or MemberLimits()))
    good = [one for one in found if not isinstance(one, BadSample)]
    return good, [one.reason for one in found if isinstance(one, BadSample)]


@pytest.fixture
def server(tmp_path):
    """The address of `tmp_path` over http."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


# --- one shard ------------------------------------------------------------------------------------


def test_samples_come_as_they_are():
    good, bad = read(shard(range(4)))
    assert [one.key for one in good] == ["0000", "0001", "0002", "0003"] and not bad
    source = InMemorySamples("s", good, MemberLimits())
    assert [source.caption(n) for n in range(4)] == list("0123")
    assert source.image_bytes(2) == encoded(2)
    assert source.has_image(0, "image") and not source.has_image(0, "source")


def test_wherever_a_shard_is_cut_off_no_sample_is_partial_or_wrongly_paired():
    whole = shard(range(6))
    size = len(sample(0)[0][1])
    for end in range(0, len(whole) - 1024, 97):
        good, bad = read(whole[:end])
        for one in good:
            assert one.members["png"] == encoded(int(one.members["txt"]))
            assert one.key == f"{int(one.members['txt']):04d}"
        if end > size + 1536:
            assert "truncated" in bad or len(good) == 6
        assert len(good) <= end // (size + 1024 + 512)


def test_damage_ends_the_shard_and_takes_its_neighbour_along():
    whole = bytearray(shard(range(6)))
    third = whole.index(b"0003.png")
    whole[third] ^= 255
    good, bad = read(bytes(whole))
    assert [one.key for one in good] == ["0000", "0001"]
    assert bad == ["damaged header"]


def test_a_hole_of_zeros_is_not_the_end_of_a_shard():
    whole = bytearray(shard(range(6)))
    third = whole.index(b"0003.png")
    whole[third : third + 1024] = bytes(1024)
    good, bad = read(bytes(whole))
    assert [one.key for one in good] == ["0000", "0001"] and bad == [ZEROS]


def test_long_names_are_read():
    name = "x" * 150
    good, _ = read(tar([(f"{name}.png", encoded(1)), (f"{name}.txt", b"1")]))
    assert [one.key for one in good] == [name]


def test_only_known_kinds_are_kept_and_incomplete_samples_are_named():
    bomb = pickle.dumps(print)
    members = [("a.png", encoded(1)), ("a.pkl", bomb), ("a.pth", bomb), ("a.txt", b"1")]
    members += [("b.txt", b"2"), ("c.png", encoded(3)), ("d.png", encoded(4)), ("d.json", b"{}")]
    good, bad = read(tar(members + sample(5) + [("a.png", encoded(6)), ("a.txt", b"6")]))
    assert [(one.key, sorted(one.members)) for one in good] == [
        ("a", ["png", "txt"]),
        ("d", ["json", "png"]),
        ("0005", ["png", "txt"]),
    ]
    assert bad == ["no image", "no caption", "duplicate key"]


def test_large_members_are_read_past():
    members = [("a.png", encoded(1)), ("a.txt", b"x" * 5000), *sample(2)]
    good, bad = read(tar(members), MemberLimits(text=1000))
    assert [one.key for one in good] == ["0002"] and bad == ["member too large"]


def test_a_bomb_is_never_held(tmp_path):
    """1 MB of gzip that would be 1 GiB of one member, and a header that claims as much."""
    header = tarfile.TarInfo("a.png")
    header.size = 1 << 30
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(header.tobuf())
        for _ in range(64):  # a part of it, which is enough to be seen in memory
            file.write(bytes(1 << 20))
    tracemalloc.start()
    try:
        with open_url(str(path)) as file:
            found = list(read_samples(file, MemberLimits(image=1 << 20)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [bad.reason for bad in found] == ["truncated"] and peak < 8 << 20


def test_gzipped_shards_and_shards_that_end_in_the_middle_of_gzip(tmp_path):
    packed = gzip.compress(shard(range(8)))
    (tmp_path / "a.tar.gz").write_bytes(packed)
    (tmp_path / "b.tar.gz").write_bytes(packed[: len(packed) // 2])
    with open_url(str(tmp_path / "a.tar.gz")) as file:
        assert len(list(read_samples(file, MemberLimits()))) == 8
    with open_url(str(tmp_path / "b.tar.gz")) as file:
        *good, bad = read_samples(file, MemberLimits())
    assert 0 < len(good) < 8 and bad.reason == "truncated"


def test_a_server_that_hangs_up_is_a_cut_off_shard(tmp_path):
    class HangsUp(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = shard(range(6))
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])

        def log_message(self, *words):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), HangsUp) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        with open_url(f"http://127.0.0.1:{serving.server_port}/a.tar") as file:
            *good, bad = read_samples(file, MemberLimits())
        serving.shutdown()
    assert [one.key for one in good] == ["0000", "0001", "0002", "0003"]
    assert bad.reason == "truncated"


@pytest.mark.parametrize("url", ["pipe:cat /etc/passwd", "ais://a/b.tar", "ftp://a/b.tar"])
def test_addresses_that_are_refused(url):
    with pytest.raises(UserError, match="cannot be streamed; give a file, or one of"):
        check_url(url)


def test_s3_error_names_its_requirements():
    try:
        import s3fs  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="needs the package s3fs; run `pip install s3fs`"):
            check_url("s3://bucket/a.tar")
    check_url("hf://datasets/owner/name/a.tar")
    check_url("https://host/a.tar")


# --- training -------------------------------------------------------------------------------------


@pytest.fixture
def processor(tokenizer):
    from builders import SIDE

    from triptych.interfaces import Preprocessing

    return Preprocessing(tokenizer, max_tokens=256, image_size=SIDE, understanding_size=SIDE)


def stream(processor, urls, **settings):
    from triptych.data_modules.streaming.shard_stream import ShardStream

    options = {"batch_size": 4, "start": 0, "stop": 6, "buffer": 16}
    return ShardStream(urls, "text_to_image", processor, **{**options, **settings})


def test_batches_know_their_step_and_a_resumed_run_draws_anew(tmp_path, server, processor):
    for number in range(3):
        (tmp_path / f"{number}.tar").write_bytes(shard(range(10 * number, 10 * number + 10)))
    urls = [f"{server}/{number}.tar" for number in range(3)]
    batches = list(stream(processor, urls))
    assert [batch.step for batch in batches] == list(range(6))
    assert [batch.sample_ids.tolist() for batch in batches[:2]] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    for batch in batches:
        for key, pixels in zip(batch.keys, batch.target_pixels, strict=True):
            assert pixels[0, 20, 20] == int(key)
    keys = [batch.keys for batch in batches]
    assert keys == [batch.keys for batch in stream(processor, urls)]
    assert keys != [batch.keys for batch in stream(processor, urls, rank=1, world=2)]
    resumed = list(stream(processor, urls, start=3))
    assert [batch.step for batch in resumed] == [3, 4, 5]
    assert [batch.keys for batch in resumed] != keys[3:]


def test_workers_take_turns(tmp_path, processor):
    from torch.utils.data import DataLoader

    (tmp_path / "a.tar").write_bytes(shard(range(20)))
    dataset = stream(processor, [str(tmp_path / "a.tar")], start=5, stop=10)
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    assert [batch.step for batch in loader] == [5, 6, 7, 8, 9]


def keys_of(dataset, batches):
    """Keys of the samples of the first batches of a reader, not decoded: [[key]]."""
    from triptych.data_modules.streaming.shard_stream import distinct_batches

    samples = dataset._samples(dataset.rank, dataset.world, [])
    found = itertools.islice(distinct_batches(samples, dataset.batch_size), batches)
    return [[sample.key for sample in batch] for batch in found]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_a_small_stream_has_every_sample_once_an_epoch(size, shards, tmp_path, processor):
    urls = [str(tmp_path / f"{number}.tar") for number in range(shards)]
    for number, url in enumerate(urls):
        Path(url).write_bytes(shard(range(size * number, size * (number + 1))))
    everything = {f"{number:04d}" for number in range(size * shards)}
    for batch in (1, 6, 16):
        batches = keys_of(stream(processor, urls, batch_size=batch), 3 * size * shards // batch + 3)
        assert all(len(set(keys)) == min(batch, len(everything)) for keys in batches)
        flat = list(itertools.chain(*batches))
        epochs = range(0, len(flat) - len(everything) + 1, len(everything))
        assert all(set(flat[n : n + len(everything)]) == everything for n in epochs)
    # each of three readers takes a third of an epoch
    thirds = [
        keys_of(stream(processor, urls, batch_size=1, rank=r, world=3), 120) for r in range(3)
    ]
    assert {keys[0] for third in thirds for keys in third} == everything
    first = [keys[0] for third in thirds for keys in third[: size * shards // 3]]
    assert len(set(first)) == len(first)


def test_broken_shards_are_counted_and_others_are_read(tmp_path, server, processor):
    (tmp_path / "good.tar").write_bytes(shard(range(10)))
    (tmp_path / "cut.tar").write_bytes(shard(range(10, 20))[:9000])
    urls = [f"{server}/{name}.tar" for name in ("good", "cut", "gone")]
    batches = list(stream(processor, urls, stop=20))
    reasons = {reason for batch in batches for _, reason in batch.dropped_samples}
    assert reasons == {"truncated", "shard cannot be opened"}
    assert all(len(batch) == 4 for batch in batches)


def test_a_stream_without_samples_ends(tmp_path, processor):
    (tmp_path / "a.tar").write_bytes(shard([]))
    with pytest.raises(UserError, match="the last 10 shards of the stream gave no sample"):
        next(iter(stream(processor, [str(tmp_path / "a.tar")])))


def test_a_module_validates_on_the_first_samples(tmp_path, processor):
    from triptych.data_modules import StreamDataModule

    for number in range(2):
        (tmp_path / f"{number}.tar").write_bytes(shard(range(10 * number, 10 * number + 10)))
    module = StreamDataModule(str(tmp_path / "{0..1}.tar"), num_val_samples=12, batch_size=8)
    module.connect(processor)
    module.setup("fit")
    assert [len(batch) for batch in module.val_dataloader()] == [8, 4]
    assert module.preview(IMAGE_GENERATION, 11, "caption")[-1].text == "10"


@pytest.mark.parametrize(
    ("urls", "says"),
    [
        ("pipe:cat x.tar", "cannot be streamed"),
        ("nowhere-{0..3}.tar", "no sample could be read from nowhere-0.tar"),
    ],
)
def test_a_module_that_can_read_nothing_is_refused(urls, says, processor):
    from triptych.data_modules import StreamDataModule

    module = StreamDataModule(urls)
    module.connect(processor)
    with pytest.raises(UserError, match=says):
        module.setup("fit")


def test_webdataset_runs_no_shell_once_we_are_imported():
    code = """
import json, webdataset
from triptych.data_modules import StreamDataModule
from webdataset.gopen import gopen
try:
    gopen("pipe:echo ran")
except ValueError as error:
    print(json.dumps(str(error)))
"""
    done = run([sys.executable, "-c", code])
    assert "cannot open pipe URLs" in json.loads(done.stdout)
