"""Flags that the commands on data share."""

from __future__ import annotations

import argparse
from pathlib import Path

from triptych.utils.limits import PROCESSES

SOURCES = """\
SOURCE is one of
  a folder of images with KEY.txt next to them, or a metadata.csv or .jsonl (file_name, text)
  a CSV or JSONL with an image and a caption in each row
  a JSON or JSONL of LLaVA conversations, or of edits (source, instruction, target)
  a Parquet file, a folder of them, or a folder that Hugging Face `datasets` saved
  a folder of shards, to be divided again
"""


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the data set to read."""
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="data set to read, in one of the forms above"
    )


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Add the folder of shards."""
    parser.add_argument(
        "folder", metavar="FOLDER", help="folder of shards, or one shard, or a pattern"
    )


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add --workers."""
    parser.add_argument(
        "--workers",
        type=PROCESSES,
        metavar="N",
        help="number of processes; default one for each core",
    )
