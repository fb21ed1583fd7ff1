"""Detection of the data format of a path, for the data commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from triptych.data_modules.sources.base import DataSource
from triptych.data_modules.sources.image_folder import ImageFolder
from triptych.data_modules.sources.llava import ConversationFile
from triptych.data_modules.sources.tables import (
    HuggingFaceTable,
    ParquetTable,
    TextTable,
    is_saved_dataset,
)
from triptych.data_modules.sources.webdataset import DottedNameShards, ShardFolder
from triptych.utils.documents import open_regular
from triptych.utils.errors import UserError
from triptych.utils.listing.folders import SHARD_SUFFIX, files_of, holds_shards
from triptych.utils.listing.names import IMAGE_SUFFIXES
from triptych.utils.listing.shards import COMPRESSED, find_shards
from triptych.utils.records import DELIMITERS

JSON_LINES = (".jsonl", ".ndjson")


def detect_source(
    path: str | Path,
    images: str | Path | None = None,
    *,
    split: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    dotted_names: bool = False,
) -> DataSource:
    """Detect the source at a path; return it unopened.

    The formats are a folder of shards, of images with captions, of Parquet files, or saved by
    `datasets`; a shard, or a pattern of them; a CSV or Parquet file; JSON lines of captions, of
    LLaVA conversations or of edits. Suffixes are case-insensitive.

    Args:
        path: path of the data set.
        images: folder that the image paths of a table or a conversation file are relative to.
        split: split of a saved DatasetDict.
        image_column, caption_column: column names of a table.
        dotted_names: whether names in shards with dots in them are samples too.

    Raises:
        UserError: the path is none of these.
    """
    path = Path(path)
    columns: dict[str, Any] = {"image_column": image_column, "caption_column": caption_column}
    shards = DottedNameShards if dotted_names else ShardFolder
    if os.path.isdir(path):
        if is_saved_dataset(path):
            return HuggingFaceTable(path, images, split=split, **columns)
        if holds_shards(path):
            return shards(path)
        if files_of(path, ".parquet"):
            return ParquetTable(path, images or path, **columns)
        if files_of(path, *COMPRESSED) and not files_of(path, *IMAGE_SUFFIXES):
            find_shards(path)  # raises with the remedy for compressed shards
        return ImageFolder(path)
    suffix = path.suffix.lower()
    if suffix == SHARD_SUFFIX or path.name.lower().endswith(COMPRESSED):
        return shards(path)
    if not os.path.exists(path):
        raise UserError(f"{path} does not exist; give a folder or a file.")
    if suffix == ".parquet":
        return ParquetTable(path, images, **columns)
    is_table = any(columns.values())
    if suffix in DELIMITERS or (
        suffix in JSON_LINES and (is_table or not _has_conversation_record(path))
    ):
        return TextTable(path, images, **columns)
    if suffix in (".json", *JSON_LINES):
        return ConversationFile(path, images or path.parent)
    raise UserError(
        f"{path} is not of a known kind; give a folder, or a .tar, .csv, .tsv, .json, .jsonl, "
        ".ndjson or .parquet."
    )


def _has_conversation_record(path: Path) -> bool:
    """Whether the first record of JSON lines is one of a `ConversationFile`."""
    with open_regular(path) as file:
        first = file.readline(1 << 20)
    return any(
        b'"%s"' % name in first
        for name in (b"conversations", b"messages", b"instruction", b"image")
    )
