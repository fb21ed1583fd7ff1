"""Optional columns of an index: tokens of the captions, checksums of the samples."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from triptych.data_modules.batching.clean_text import captions_of
from triptych.data_modules.shards.index import ShardIndex, write_index
from triptych.data_modules.shards.index_format import ROLES
from triptych.utils.documents import open_regular
from triptych.utils.errors import UserError
from triptych.utils.records import parse
from triptych.utils.tokens import without_added_tokens

CHUNK = 1 << 20  # bytes read at a time
MAX_TEXT_BYTES = 1 << 20  # of a caption or JSON; longer ones are not read
BATCH = 1000  # captions tokenized at a time


def add_token_counts(index: ShardIndex, tokenizer: str | Path) -> ShardIndex:
    """Add the number of tokens of each caption to an index that lacks it.

    Length buckets then sort by tokens; without them they sort by bytes, an approximation. No
    special tokens are counted. An unreadable caption has 0 tokens.

    Args:
        tokenizer: path of a tokenizer.json, or of a folder with one.

    Raises:
        UserError: the tokenizer does not exist, or the shard cannot be read.
    """
    path = _tokenizer_file(tokenizer)
    digest = hashlib.blake2b(path.read_bytes(), digest_size=8).digest()
    if index.tokenizer == digest:
        return index
    reader = read_tokenizer(path)
    counts = np.zeros(len(index), np.uint32)
    with _opened(index) as file:
        for first in range(0, len(index), BATCH):
            rows = range(first, min(first + BATCH, len(index)))
            texts = [_caption(index, file, row) for row in rows]
            read = reader.encode_batch(texts, add_special_tokens=False)
            counts[first : first + BATCH] = [len(text.ids) for text in read]
    return write_index(index.shard, replace(index.contents(), tokens=counts, tokenizer=digest))


def add_checksums(index: ShardIndex) -> ShardIndex:
    """Add a checksum of each sample to an index that lacks them; reads all members."""
    if index.checksums is not None:
        return index
    sums = np.array(list(_checksums(index)), np.uint32)
    return write_index(index.shard, replace(index.contents(), checksums=sums))


def changed_samples(index: ShardIndex) -> list[str]:
    """Keys of samples whose members have changed since their checksum was computed.

    Raises:
        UserError: the index has no checksums, or the shard cannot be read.
    """
    if index.checksums is None:
        raise missing_checksums(index.shard)
    stored = index.checksums.tolist()
    return [index.key(row) for row, crc in enumerate(_checksums(index)) if crc != stored[row]]


def missing_checksums(shard: Path) -> UserError:
    """The error of a shard whose index has no checksums to verify."""
    return UserError(
        f"the index of {shard} has no checksums; take them while the shard is good: "
        f"`triptych data index {shard.parent} --checksums`."
    )


def _checksums(index: ShardIndex) -> Iterator[int]:
    with _opened(index) as file:
        for row in range(len(index)):
            crc = 0
            for role in ROLES:
                offset, size = index.member(row, role) or (0, 0)
                for start in range(offset, offset + size, CHUNK):
                    length = min(CHUNK, offset + size - start)
                    crc = zlib.crc32(os.pread(file, length, start), crc)
            yield crc


def _caption(index: ShardIndex, file: int, row: int) -> str:
    """The longest caption of a sample; "" if none is readable."""
    place = index.member(row, "txt") or index.member(row, "json")
    if place is None or place[1] > MAX_TEXT_BYTES:
        return ""
    caption: object = os.pread(file, place[1], place[0])
    try:
        if index.member(row, "txt") is None:
            caption = parse(caption)["caption"]
        return max(captions_of(caption, ""), key=len)
    except (ValueError, KeyError, TypeError):  # BadSample too, which is a ValueError
        return ""


def read_tokenizer(tokenizer: str | Path) -> Tokenizer:
    """Read a tokenizer.json, or that of a folder; it tokenizes control tokens as plain text.

    Raises:
        UserError: the tokenizer does not exist, or cannot be read.
    """
    path = _tokenizer_file(tokenizer)
    try:
        return without_added_tokens(Tokenizer.from_file(str(path)))
    except Exception as error:  # tokenizers raises no narrower type
        raise UserError(f"{path} is no tokenizer that can be read: {error}.") from error


def _tokenizer_file(tokenizer: str | Path) -> Path:
    path = Path(tokenizer)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"the tokenizer {tokenizer} is no tokenizer.json, nor a folder with one.")
    return path


@contextmanager
def _opened(index: ShardIndex) -> Iterator[int]:
    try:
        with open_regular(index.shard) as file:
            yield file.fileno()
    except OSError as error:
        raise UserError(f"the shard {index.shard} cannot be read: {error.strerror}.") from error
