"""Writing of WebDataset shards."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import webdataset

from triptych.utils.atomic_write import new_folder


def write_samples(
    folder: Path, name: str, samples: Iterable[dict[str, Any]], samples_per_shard: int = 1000
) -> None:
    """Write tar shards FOLDER/NAME-00000.tar and so on. The folder appears when it is complete.

    Args:
        folder: output folder, which must be empty or missing.
        name: beginning of the shards' names.
        samples: bytes and text by webdataset's names, with "__key__".
        samples_per_shard: maximum number of samples in a shard.
    """
    with new_folder(folder) as unfinished, ExitStack() as files:
        pattern = str(unfinished).replace("%", "%%") + f"/{name}-%05d.tar"
        with webdataset.ShardWriter(
            pattern,
            maxcount=samples_per_shard,
            verbose=0,
            # in secure mode, which streaming enables, webdataset opens no local files
            opener=lambda path: files.enter_context(open(path, "wb")),
            encoder=False,
            mtime=0,
        ) as sink:
            for sample in samples:
                sink.write(sample)
