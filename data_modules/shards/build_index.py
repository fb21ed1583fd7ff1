"""Build missing indexes of shards, several shards in parallel."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from triptych.data_modules.parallel import parallel_map
from triptych.data_modules.shards.identity import compute_probe
from triptych.data_modules.shards.index import ShardIndex, UnusableIndex, write_index
from triptych.data_modules.shards.index_columns import (
    add_checksums,
    add_token_counts,
    missing_checksums,
    read_tokenizer,
)
from triptych.data_modules.shards.index_format import COLUMNS, IndexContents, Problem
from triptych.utils.errors import UserError
from triptych.utils.listing.names import FIRST_IMAGE, KINDS, kind_for
from triptych.utils.listing.tar import (
    DOTTED,
    DUPLICATE,
    Group,
    group_members,
    scan,
    split_dotted,
)
from triptych.utils.listing.tar_headers import BLOCK

log = logging.getLogger(__name__)

MAX_PROBLEM_KEYS = 5  # stored for each reason
MIN_PARALLEL = 4  # shards; fewer are indexed in this process

TOO_LARGE = "member too large"


def build_index(shard: str | Path) -> ShardIndex:
    """Scan a shard, write its index, and open it.

    Raises:
        UserError: the shard is not a tar, is gzipped, cannot be read or changes meanwhile; or the
            index cannot be written.
    """
    shard = Path(shard)
    return write_index(shard, scan_shard(shard))


def scan_shard(shard: Path, dotted_names: bool = False) -> IndexContents:
    """Scan a shard for samples and problems.

    Args:
        dotted_names: whether names with dots in them are samples too, see `tar.split_dotted`.

    Raises:
        UserError: the shard is not a tar, is gzipped, cannot be read or changes meanwhile.
    """
    try:
        before = shard.stat()
    except OSError as error:
        raise UserError(f"the shard {shard} cannot be read: {error.strerror}.") from error
    rows: list[list[int]] = []
    keys: list[bytes] = []
    end = 0
    seen: set[bytes] = set()
    damaged: set[bytes] = set()
    excluded: dict[str, tuple[int, list[str]]] = {}  # reason -> (samples, some keys)
    groups = group_members(scan(shard))
    for group in split_dotted(groups) if dotted_names else groups:
        reason = _reason(group, seen)
        seen.add(group.key)
        if not reason:
            end += len(group.key)
            keys.append(group.key)
            rows.append([end, *_places(group)])
        elif not (group.fault and group.key in damaged):  # both halves of one damaged sample
            count, names = excluded.setdefault(reason, (0, []))
            samples = group.split_dotted() if reason == DOTTED else [group]
            names += [sample.key.decode("utf-8", "backslashreplace") for sample in samples]
            excluded[reason] = count + len(samples), names[:MAX_PROBLEM_KEYS]
            damaged.add(group.key)
    probe = compute_probe(shard)
    after = shard.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise UserError(f"the shard {shard} is being written to; index it when it is complete.")
    return IndexContents(
        before.st_size,
        before.st_mtime_ns,
        np.array(rows, "<u4").reshape(-1, COLUMNS),
        b"".join(keys),
        problems=[Problem(reason, *each) for reason, each in sorted(excluded.items())],
        probe=probe,
    )


def _reason(group: Group, seen: set[bytes]) -> str:
    """Reason why a group of members is not a sample; "" if it is one."""
    if not group.fault and group.key in seen:
        return DUPLICATE
    places = group.members.values()
    too_large = any(size >= 1 << 32 or offset // BLOCK >= 1 << 32 for offset, size in places)
    return group.reason or (TOO_LARGE if too_large else "")


def _places(group: Group) -> list[int]:
    """First block and size of the member of each role."""
    places = []
    kinds = {role: kind_for(role, group.members) for role in KINDS}
    if kinds["image"] is None:  # a conversation: its other images follow the first
        kinds["image"] = next((kind for kind in FIRST_IMAGE if kind in group.members), None)
    for kind in kinds.values():
        offset, size = group.members.get(kind, (0, 0))
        places += [offset // BLOCK, size]
    return places


def index_shards(
    shards: Sequence[Path],
    *,
    workers: int | None = None,
    tokenizer: str | Path | None = None,
    checksums: bool = False,
) -> Iterator[ShardIndex | UserError]:
    """Indexes of shards, in their order; missing and unusable ones are built.

    The result of a shard that cannot be indexed is its error, so that it does not stop the others.
    Each index is written when its shard is done: an interrupted run resumes at the next shard.

    Args:
        shards: paths of the shards.
        workers: number of processes; None takes all cores.
        tokenizer: tokenizer.json, or a folder with one, to count the tokens of the captions.
        checksums: whether to compute a checksum of each sample, which reads all of every shard.

    Raises:
        UserError: the tokenizer does not exist; no index is written then.
    """
    if tokenizer is not None:
        read_tokenizer(tokenizer)
    work = partial(_complete_index, tokenizer=tokenizer, checksums=checksums)
    yield from parallel_map(work, shards, 1 if len(shards) < MIN_PARALLEL else workers)


def require_checksums(shards: Iterable[Path]) -> None:
    """Refuse shards that have no checksums to verify, before any index is written.

    Raises:
        UserError: a shard that can be read has no index, or one without checksums.
    """
    for shard in shards:
        try:
            index = ShardIndex.of(shard)
        except UnusableIndex:
            index = None
        if index is not None and index.checksums is not None:
            continue
        try:
            scan_shard(shard)
        except UserError:
            continue  # damaged: reported when it is indexed
        raise missing_checksums(shard)


def open_indexes(shards: Sequence[Path], build: bool = True) -> list[ShardIndex]:
    """Open the indexes of shards; build missing ones, with a progress bar.

    Raises:
        UserError: a shard has no index and cannot be indexed (or must not be, without `build`), or
            its index is stale, damaged or another file.
    """
    indexes = [ShardIndex.of(shard) for shard in shards]
    missing = [shard for shard, index in zip(shards, indexes, strict=True) if index is None]
    if missing and not build:
        raise UserError(
            f"{len(missing)} of {len(shards)} shards have no index, first {missing[0]}; run "
            f"`triptych data index {missing[0].parent}`."
        )
    if copies := [index.shard for index in indexes if index is not None and index.mtime_changed]:
        log.warning(
            "%d shards have another time stamp than when they were indexed, but the same size and "
            "content: taken as they are, %s for one",
            len(copies),
            copies[0],
        )
    built = list(_with_progress(index_shards(missing), len(missing)))
    for index in built:
        if isinstance(index, UserError):
            raise index
    fresh = iter(built)
    return [next(fresh) if index is None else index for index in indexes]


def _complete_index(
    shard: Path, tokenizer: str | Path | None, checksums: bool
) -> ShardIndex | UserError:
    try:
        try:
            index = ShardIndex.of(shard)
        except UnusableIndex:
            index = None
        index = build_index(shard) if index is None else index
        if tokenizer is not None:
            index = add_token_counts(index, tokenizer)
        return add_checksums(index) if checksums else index
    except UserError as error:
        return error


def _with_progress(results: Iterable, total: int) -> Iterable:
    """The same results, with a progress bar if standard error is a terminal."""
    if not (total and sys.stderr.isatty()):
        return results
    from rich.console import Console
    from rich.progress import track

    return track(results, "indexing shards", total, console=Console(stderr=True))
