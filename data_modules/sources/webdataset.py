"""Random access to local WebDataset shards; an index stores the place of every sample.

A sample is a run of members of one key in a shard, in any order; their names give their roles, see
`triptych.utils.listing.names`. Nothing else is read, nothing is unpickled.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from triptych.data_modules.shards.build_index import open_indexes, scan_shard
from triptych.data_modules.shards.index import InMemoryIndex, ShardIndex
from triptych.data_modules.sources.base import BadSample, ImageRole
from triptych.data_modules.sources.members import MemberSource
from triptych.utils.documents import open_regular
from triptych.utils.errors import UserError
from triptych.utils.listing.shards import find_shards
from triptych.utils.listing.tar import DOTTED, members_of_key

log = logging.getLogger(__name__)

MAX_OPEN = 64  # shards, and as many indexes; far below any limit on open files


class ShardFolder(MemberSource):
    """All complete samples of shards, by number.

    Args:
        source: folder with *.tar files, also in sub-folders, one tar file, a pattern (see
            `find_shards`), or a list of them.
        index: policy for missing indexes: "build" makes them; "require" refuses such shards.
        max_image_bytes: size limit of images; a larger one is a bad sample, and is not read.
        max_text_bytes: size limit of captions and JSON.

    Raises:
        UserError: there is no shard, a shard is an unreadable tar or newer than its index,
            or no sample has both an image and a caption.
    """

    def __init__(
        self,
        source: str | Path | Sequence[str | Path],
        *,
        index: Literal["build", "require"] = "build",
        max_image_bytes: int = 64 << 20,
        max_text_bytes: int = 1 << 20,
    ) -> None:
        self.sources = [source] if isinstance(source, (str, Path)) else list(source)
        self.name = ", ".join(map(str, self.sources))
        self.index = index
        self.max_image_bytes, self.max_text_bytes = max_image_bytes, max_text_bytes
        self.indexes: list[ShardIndex] = []
        self._ends = np.zeros(0, np.int64)  # cumulative number of samples of the shards
        self._tokens = False  # whether the indexes of all shards have caption tokens
        self._files: OrderedDict[int, BinaryIO] = OrderedDict()  # LRU cache: shard -> file
        self._mapped: OrderedDict[int, ShardIndex] = OrderedDict()  # LRU cache: shard -> index

    def open(self) -> ShardFolder:
        if self.indexes:
            return self
        paths = dict.fromkeys(path for source in self.sources for path in find_shards(source))
        indexes = self._open_indexes(list(paths))
        self._ends = np.cumsum([len(index) for index in indexes], dtype=np.int64)
        excluded = _summary(indexes)
        if not self._ends[-1]:
            raise UserError(
                f"the shards in {self.name} hold no sample with an image (KEY.jpg, png or webp) "
                f"and a caption (KEY.txt or KEY.json) next to it{excluded and f': {excluded}'}."
            )
        if excluded:
            log.warning("%s: %s left out; `triptych data index` names them", self.name, excluded)
        # Decided once: tokens that are counted during a run must not change its order.
        self._tokens = all(index.tokenizer is not None for index in indexes)
        self.indexes = indexes
        return self

    def _open_indexes(self, paths: list[Path]) -> list[ShardIndex]:
        return open_indexes(paths, build=self.index == "build")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getstate__(self) -> dict:
        # open files are not picklable
        return {**self.__dict__, "_files": OrderedDict(), "_mapped": OrderedDict()}

    def __del__(self) -> None:
        for file in self._files.values():
            file.close()

    @property
    def paths(self) -> list[Path]:
        """Paths of the shards, in the order of their samples."""
        return [index.shard for index in self.indexes]

    @property
    def shard_sizes(self) -> np.ndarray:
        return np.diff(self._ends, prepend=0)

    def caption_lengths(self, numbers: np.ndarray) -> np.ndarray:
        """int64 [n], in tokens if all shards have them, else in bytes of KEY.txt or KEY.json."""
        shards, rows = self.locate(numbers)
        sizes = np.empty(len(shards), np.int64)
        for shard in np.unique(shards):
            members = shards == shard
            sizes[members] = self._index(int(shard)).caption_lengths(rows[members], self._tokens)
        return sizes

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard of each sample, and its row in the index of that shard; int64 [n] each."""
        numbers = np.asarray(numbers, np.int64)
        shards = np.searchsorted(self._ends, numbers, side="right")
        return shards, numbers - np.concatenate([[0], self._ends])[shards]

    def key(self, number: int) -> str:
        index, row, _ = self._place(number)
        return index.key(row)

    def has_image(self, number: int, role: ImageRole) -> bool:
        index, row, _ = self._place(number)
        return index.member(row, role) is not None

    def named_image_bytes(self, number: int, name: str) -> bytes:
        """KEY.NAME; the images of a key follow each other in the shard, 0 first."""
        index, row, _ = self._place(number)
        key, first = index.key(row), index.member(row, "image")
        place = None
        if first is not None:
            try:
                place = members_of_key(index.shard, key, first[0]).get(name.lower())
            except (OSError, UserError) as error:
                raise BadSample(key, "shard cannot be read", str(error)) from error
        if place is None:
            raise BadSample(key, "image of a message is missing", f"{key}.{name}")
        return self._content(number, place, "image", self.max_image_bytes)

    def _read(self, number: int, role: str, max_bytes: int) -> bytes | None:
        index, row, _ = self._place(number)
        member = index.member(row, role)
        return None if member is None else self._content(number, member, role, max_bytes)

    def _content(self, number: int, place: tuple[int, int], role: str, max_bytes: int) -> bytes:
        """Read the member at (offset, size) of a sample."""
        index, row, shard = self._place(number)
        offset, size = place
        if size > max_bytes:
            raise BadSample(
                index.key(row), f"{role} is too large", f"{size:,} bytes of {max_bytes:,}"
            )
        try:
            content = os.pread(self._file(shard).fileno(), size, offset)
        except (OSError, UserError) as error:
            raise BadSample(index.key(row), "shard cannot be read", str(error)) from error
        if len(content) < size:
            raise BadSample(index.key(row), "shard became shorter", str(index.shard))
        return content

    def _place(self, number: int) -> tuple[ShardIndex, int, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        shard = int(np.searchsorted(self._ends, number, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        return self._index(shard), int(number) - first, shard

    def _index(self, shard: int) -> ShardIndex:
        if shard not in self._mapped:
            if len(self._mapped) >= MAX_OPEN:
                self._mapped.popitem(last=False)[1].release()
            self._mapped[shard] = self.indexes[shard]
        self._mapped.move_to_end(shard)
        return self._mapped[shard]

    def _file(self, shard: int) -> BinaryIO:
        if shard not in self._files:
            if len(self._files) >= MAX_OPEN:
                self._files.popitem(last=False)[1].close()
            self._files[shard] = open_regular(self.indexes[shard].shard)
        self._files.move_to_end(shard)
        return self._files[shard]


class DottedNameShards(ShardFolder):
    """Shards to repack: names with dots count as samples too, see `tar.split_dotted`."""

    def _open_indexes(self, paths: list[Path]) -> list[ShardIndex]:
        return [
            InMemoryIndex(index.shard, scan_shard(index.shard, dotted_names=True))
            if any(problem.reason == DOTTED for problem in index.problems)
            else index
            for index in super()._open_indexes(paths)
        ]


def _summary(indexes: list[ShardIndex]) -> str:
    """Summary of the samples that the indexes exclude: "3 samples (2 no caption, 1 truncated)"."""
    counts = Counter()
    for index in indexes:
        for problem in index.problems:
            counts[problem.reason] += problem.samples
    if not counts:
        return ""
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in counts.most_common())
    total = sum(counts.values())
    return f"{total:,} {'sample' if total == 1 else 'samples'} ({reasons})"
