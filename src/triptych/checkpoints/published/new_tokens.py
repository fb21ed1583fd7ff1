"""Embedding rows for tokens that a stock language model lacks, initialized like in BLIP3-o."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from triptych.checkpoints.published.components import EMBEDDING, HEAD, Tensors
from triptych.checkpoints.published.safetensors_stream import Stored
from triptych.utils.errors import UserError

_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def with_new_rows(tensors: Tensors, known: int, rows: int, where: object) -> Tensors:
    """Truncate the vocabulary to `rows`, of which those from `known` on are new.

    New rows of the embedding are the mean of the rows before them. The head keeps its stored rows,
    as in the published training: their logits are unused.

    Raises:
        UserError: the vocabulary has fewer rows, or is of another type than floating-point.
    """
    embedding = tensors.get(EMBEDDING)
    if embedding is None or embedding.shape[0] < rows or embedding.dtype not in _TYPES:
        raise UserError(
            f"{where} has no embedding of at least {rows} rows in a floating type, which "
            f"its tokenizer of {known} tokens and the added ones need; check the folder."
        )
    changed = dict(tensors)
    changed[EMBEDDING] = _mean_rows(embedding, known, rows)
    if HEAD in tensors:
        changed[HEAD] = tensors[HEAD].rows(0, rows)
    return changed


def _mean_rows(table: Stored, known: int, rows: int) -> Stored:
    """The first `known` rows of `table`, followed by their mean up to `rows`."""
    dtype, width = _TYPES[table.dtype], table.shape[1]
    row = table.nbytes // table.shape[0]

    def read() -> Iterator[bytes]:
        total, rest = torch.zeros(width, dtype=torch.float64), b""
        for chunk in table.rows(0, known).chunks():
            yield chunk
            whole = rest + chunk
            end = len(whole) // row * row
            if end:
                block = torch.frombuffer(bytearray(whole[:end]), dtype=dtype)
                total += block.view(-1, width).sum(0, dtype=torch.float64)
            rest = whole[end:]
        mean = (total / known).to(dtype)
        yield mean.view(torch.uint8).numpy().tobytes() * (rows - known)

    return Stored(table.dtype, (rows, width), read)
