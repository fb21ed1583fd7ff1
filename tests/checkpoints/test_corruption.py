"""Truncated and corrupted shards: no wrong pairs, and lost samples are counted.

What a wrong byte does depends on where it is:

- in a header (name, size, checksum, any field): the checksum of the header is wrong. The member is
  lost, and with it the samples on both sides, each of which may be the one that it belonged to.
- in a payload of an image or text: nothing in a tar file tells. The index is as before; an image
  may fail to decode, a caption may be another text (`ShardIndex.checksums` tells).
- in the padding behind a payload: nothing at all.
- in the zeros that end the archive: they may have been a header, and the last sample is given up.
- in a header of long names, which is a header and a payload: in the first as above. In the second
  a member gets another name: no checksum guards it. It is never joined to another sample's, but
  its own sample is counted under two names, or goes on without its JSON or its text.

A file that is cut off has lost the sample it is cut in, or the last one before the cut where that
may have had another member. What came behind the cut no one can count.
"""

import contextlib
import io
import random
import tarfile

import pytest
from tar_shards import number_of, sample

from triptych.data_modules import BadSample, ShardFolder
from triptych.data_modules.shards.build_index import build_index
from triptych.utils.errors import UserError
from triptych.utils.listing.names import KINDS, split_at_first_dot

SAMPLES = 12
FORMATS = {
    "ustar": (tarfile.USTAR_FORMAT, "{:08d}"),
    "pax, a time in an extra header": (tarfile.PAX_FORMAT, "{:08d}"),
    "pax, names in an extra header": (tarfile.PAX_FORMAT, "größe-" + "n" * 100 + "{:08d}"),
    "gnu, long names": (tarfile.GNU_FORMAT, "folder/" + "n" * 100 + "{:08d}"),
}


@pytest.fixture(params=FORMATS)
def shard(request, tmp_path):
    """A whole shard, whose samples have members of many sizes."""
    form, key = FORMATS[request.param]
    members = [
        member
        for number in range(SAMPLES)
        for member in sample(number, key.format(number), repeat=1 + 37 * number % 300)
    ]
    extra = {"mtime": "1700000000.25"} if "time" in request.param else {}
    path = tmp_path / ("plain.tar" if request.param == "ustar" else "named.tar")
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(content), extra
            archive.addfile(info, io.BytesIO(content))
    return path


def times(shard):
    """Number of damaged copies."""
    return 200 if shard.name == "plain.tar" else 50


class Map:
    """Offsets of the parts of an intact shard, from tarfile."""

    def __init__(self, path):
        self.content = path.read_bytes()
        with tarfile.open(path) as archive:
            self.members = archive.getmembers()
        self.starts = {}  # key -> where its first payload begins, that is its first header ends
        self.naming = set()  # bytes of payloads of headers of names
        for member in self.members:
            self.starts.setdefault(split_at_first_dot(member.name.encode())[0], member.offset_data)
            self.naming |= set(range(member.offset + 512, member.offset_data - 512))
        last = self.members[-1]
        self.end = last.offset_data + -(-last.size // 512) * 512


def places(index):
    """key -> where its members are."""
    return {
        index.key(row): [index.member(row, role) for role in KINDS] for row in range(len(index))
    }


def lost(index):
    return sum(problem.samples for problem in index.problems)


def check_pairs(path):
    """Every sample that can be had is one sample's image, caption and facts."""
    try:
        folder = ShardFolder(path).open()
    except UserError:
        return
    for n in range(len(folder)):
        numbers = {number_of(folder.image_bytes(n))}
        with contextlib.suppress(BadSample):  # the caption has lost its name
            numbers.add(number_of(folder.caption(n).encode()))
        with contextlib.suppress(BadSample):  # the wrong byte is in the JSON
            numbers |= {
                number_of("".join(stamps).encode()) for stamps in folder.metadata(n).values()
            }
        assert len(numbers) == 1


def test_a_cut_loses_the_sample_it_is_in_and_no_other(shard, tmp_path):
    rng = random.Random(0)
    whole, parts = places(build_index(shard)), Map(shard)
    boundaries = [m.offset for m in parts.members] + [m.offset_data for m in parts.members]
    cuts = [rng.randrange(len(parts.content)) for _ in range(times(shard) - 30)]
    cuts += rng.sample(boundaries, 26) + [0, 511, parts.end, parts.end + 1]
    for number, cut in enumerate(cuts):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(parts.content[:cut])
        begun = [key.decode() for key, start in parts.starts.items() if start <= cut]
        if cut < 512:
            with pytest.raises(UserError, match="is empty|is damaged: there is no tar header"):
                build_index(path)
            continue
        index = build_index(path)
        if cut > parts.end:
            assert places(index) == whole and index.problems == []
            continue
        assert places(index) == {key: whole[key] for key in begun[:-1]}, cut
        expected = [("truncated", 1, begun[-1:])] if begun else []
        assert [tuple(problem) for problem in index.problems] == expected, cut
        check_pairs(path)


def test_a_wrong_byte_loses_no_more_than_is_counted(shard, tmp_path):
    rng = random.Random(1)
    whole, parts = places(build_index(shard)), Map(shard)
    headers = [m.offset_data - 512 + n for m in parts.members for n in range(512)]
    half = times(shard) // 2
    positions = rng.sample(range(len(parts.content)), half) + rng.sample(headers, half)
    for number, position in enumerate(positions):
        content = bytearray(parts.content)
        content[position] ^= rng.randrange(1, 256)
        path = tmp_path / f"{number}.tar"
        path.write_bytes(content)
        index = build_index(path)
        check_pairs(path)
        if position in parts.naming:
            continue
        found = places(index)
        assert found.items() <= whole.items(), position
        assert len(whole) - len(found) == lost(index) <= 2, position
        if position in headers:
            member = parts.members[headers.index(position) // 512]
            key = split_at_first_dot(member.name.encode())[0].decode()
            assert key not in found or bytes(content) == parts.content
        elif position < parts.end and not is_header(parts, position):
            assert found == whole


def is_header(parts, position):
    """Whether a byte is in front of a payload."""
    return any(m.offset <= position < m.offset_data for m in parts.members)


def test_random_holes_and_noise_never_make_a_wrong_pair(shard, tmp_path):
    rng = random.Random(2)
    whole, parts = places(build_index(shard)), Map(shard)
    for number in range(times(shard) // 4):
        size = rng.choice([1, 40, 512, 1024, 5000])
        start = rng.randrange(512, len(parts.content) - size)
        noise = bytes(size) if number % 2 else rng.randbytes(size)
        rest = noise + parts.content[start + size :]
        path = tmp_path / f"{number}.tar"
        path.write_bytes(parts.content[:start] + rest)
        found = places(build_index(path))
        # Zeros over the last members are the end of an archive like any other: no one can tell.
        if any(rest) and not parts.naming & set(range(start, start + size)):
            assert found.items() <= whole.items(), (start, size)


def test_a_download_that_stopped_in_a_file_of_the_right_size_is_cut_off(shard, tmp_path):
    whole, parts = places(build_index(shard)), Map(shard)
    cut = parts.members[7].offset_data + 3  # in the second member of the third sample
    path = tmp_path / "x.tar"
    path.write_bytes(parts.content[:cut] + bytes(20_000))
    index = build_index(path)
    assert places(index) == dict(list(whole.items())[:2])
    assert [tuple(problem[:2]) for problem in index.problems] == [("truncated", 1)]
