"""`triptych data index`: indexes of shards, and their unusable samples."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from triptych.cli.arguments import command_parser, parse
from triptych.cli.data.arguments import add_folder, add_workers
from triptych.cli.data.printing import print_problems, print_table, progress_bar
from triptych.utils.errors import UserError

EXAMPLES = """\
  triptych data index data/photos

Shards with an index that is up to date are skipped. The status is 1 if no sample is usable."""


def index(arguments: list[str]) -> None:
    """Index shards, and report their problems."""
    description = (
        "Write the index of each shard, SHARD.idx. Training writes missing ones itself;\nuse this "
        "command for large sets, and after shards changed."
    )
    parser = command_parser("data index", description, EXAMPLES, model=False)
    add_folder(parser)
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help="tokenizer.json, or its folder, that counts the tokens of captions: batches of "
        "captions of similar length are then exact; default none",
    )
    parser.add_argument(
        "--checksums",
        action="store_true",
        help="checksum of each sample in the index, which reads all data; default none",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="comparison of each sample with its checksum, which reads all data; default none",
    )
    add_workers(parser)
    parsed = parse(parser, arguments)
    from triptych.data_modules.shards.build_index import index_shards, require_checksums
    from triptych.utils.listing.shards import find_shards

    shards = find_shards(parsed.folder)
    if parsed.verify and not parsed.checksums:
        require_checksums(shards)
    indexes, excluded = [], Counter()
    problems: list[tuple[str, int | str, str, str]] = []
    with progress_bar("indexing") as progress:
        built = index_shards(
            shards,
            workers=parsed.workers,
            tokenizer=parsed.tokenizer,
            checksums=parsed.checksums,
        )
        for done, index in enumerate(built, 1):
            progress(done, len(shards))
            if isinstance(index, UserError):
                problems.append((shards[done - 1].name, "all", str(index), ""))
                continue
            indexes.append(index)
            for problem in index.problems:
                excluded[problem.reason] += problem.samples
                first = ", ".join(problem.keys[:3])
                problems.append((index.shard.name, problem.samples, problem.reason, first))
    if problems:
        print_table(("shard", "left out", "reason", "first keys"), problems)
    samples = sum(map(len, indexes))
    print(f"{samples:,} samples in {len(indexes):,} of {len(shards):,} shards")
    print_problems(excluded)
    if not samples:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in excluded.most_common())
        raise UserError(
            f"{parsed.folder} holds no usable sample: none with an image (KEY.jpg, png or webp) "
            f"and a caption (KEY.txt or KEY.json) next to it{reasons and f' ({reasons})'}."
        )
    if parsed.verify:
        _verify(indexes, parsed.workers)


def _verify(indexes: list, workers: int | None) -> None:
    """Report samples that have changed since their checksums were computed."""
    from triptych.data_modules.parallel import parallel_map
    from triptych.data_modules.shards.index_columns import changed_samples

    changed = []
    with progress_bar("verifying") as progress:
        for done, keys in enumerate(parallel_map(changed_samples, indexes, workers), 1):
            progress(done, len(indexes))
            if keys:
                shard = indexes[done - 1].shard.name
                changed.append((shard, len(keys), "other bytes", ", ".join(keys[:3])))
    if changed:
        print_table(("shard", "changed", "difference", "first keys"), changed)
        raise UserError(
            f"{sum(row[1] for row in changed):,} samples in {len(changed):,} shards are not what "
            "they were when their checksums were taken; download those shards again."
        )
    print("all samples are as they were when their checksums were taken")
