"""Tokenizer files of a checkpoint: unchanged, or with the tokens that BLIP3-o added."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from triptych.utils.documents import TEXT_BYTES, read_bytes
from triptych.utils.errors import UserError
from triptych.utils.pretrained import load_pretrained

# all files that transformers' tokenizers and processors may read
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
# in the order of the published code; the last two are unused
ADDED = ("[IMG]", "[/IMG]", "<image>")


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Content of the tokenizer's files by name; empty if the folder has no tokenizer."""
    paths = {name: folder / name for name in FILES}
    files = {name: read_bytes(path, TEXT_BYTES) for name, path in paths.items() if path.is_file()}
    return files if {"tokenizer.json", "vocab.json"} & set(files) else {}


def load(files: dict[str, bytes], where: Path) -> Any:
    """Load the tokenizer from only these files, without the checkpoint's config.json.

    Raises:
        UserError: transformers cannot read them.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        try:
            tokenizer = load_pretrained("AutoTokenizer", folder)
        except UserError as error:
            reason = str(error).replace(folder, str(where))
            raise UserError(
                f"the tokenizer files of {where} cannot be read ({reason}); download them again."
            ) from error
    tokenizer.name_or_path = str(where)
    return tokenizer


def with_added_tokens(tokenizer: Any, files: dict[str, bytes]) -> dict[str, bytes]:
    """Add `[IMG]` and its companions to a stock Qwen2.5-VL tokenizer; returns its new files."""
    tokenizer.add_tokens(list(ADDED), special_tokens=True)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        saved = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return files | saved
