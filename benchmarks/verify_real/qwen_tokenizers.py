"""The tokenizers of Qwen2.5 and Qwen3 out of the file of Qwen3, and a second one from ranks."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import regex

from triptych.checkpoints.published.tokenizer_files import load, tokenizer_files, with_added_tokens

QWEN2_5_TOKENS = 151665  # Qwen3 added four
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen's split of a text into words, of its tokenizer for tiktoken."""


def qwen3(parts: Path) -> Any:
    """Tokenizer of Qwen3, as published."""
    return load(tokenizer_files(parts / "qwen3"), parts / "qwen3")


def qwen2_5_files(parts: Path) -> dict[str, bytes]:
    """Files of the tokenizer of Qwen2.5 and Qwen2.5-VL: Qwen3's without the tokens it added."""
    files = {name: json.loads(text) for name, text in tokenizer_files(parts / "qwen3").items()}
    whole = files["tokenizer.json"]
    whole["added_tokens"] = [e for e in whole["added_tokens"] if e["id"] < QWEN2_5_TOKENS]
    added = files["tokenizer_config.json"]["added_tokens_decoder"]
    files["tokenizer_config.json"]["added_tokens_decoder"] = {
        number: entry for number, entry in added.items() if int(number) < QWEN2_5_TOKENS
    }
    return {name: json.dumps(content).encode() for name, content in files.items()}


def for_generation(files: dict[str, bytes], where: Path) -> Any:
    """The tokenizer with the tokens of BLIP3-o, as `triptych convert` makes it."""
    return load(with_added_tokens(load(files, where), files), where)


def write_for_generation(parts: Path, folder: Path) -> None:
    """Write the files of the Qwen2.5 tokenizer with the tokens of BLIP3-o."""
    files = qwen2_5_files(parts)
    for name, content in with_added_tokens(load(files, parts), files).items():
        (folder / name).write_bytes(content)


def stock_files(parts: Path) -> dict[str, bytes]:
    """vocab.json and merges.txt of Qwen2.5, written as published."""
    model = json.loads((parts / "qwen3/tokenizer.json").read_bytes())["model"]
    vocabulary = json.dumps(model["vocab"], ensure_ascii=False, separators=(",", ":"))
    merges = "".join(f"{' '.join(pair)}\n" for pair in model["merges"])
    return {"vocab.json": vocabulary.encode(), "merges.txt": merges.encode()}


def ranks(parts: Path) -> dict[bytes, int]:
    """Rank of each sequence of bytes, of the tokenizer for tiktoken; a rank is the token's id."""
    lines = (parts / "qwen.tiktoken").read_bytes().splitlines()
    pairs = (line.split() for line in lines if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def rank_encoder(of: dict[bytes, int]) -> Callable[[str], list[int]]:
    """Byte pair encoding of texts without control tokens, from nothing but ranks."""

    @cache
    def word_ids(word: bytes) -> list[int]:
        pieces = [word[i : i + 1] for i in range(len(word))]
        while True:
            pairs = [of.get(a + b) for a, b in zip(pieces, pieces[1:], strict=False)]
            known = [rank for rank in pairs if rank is not None]
            if not known:
                return [of[piece] for piece in pieces]
            at = pairs.index(min(known))
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]

    return lambda text: [
        i for word in regex.findall(PATTERN, text) for i in word_ids(word.encode())
    ]
