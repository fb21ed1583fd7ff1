"""A real Qwen2.5 of 1.5 billion parameters in our class, in bfloat16."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from triptych.backbones.qwen2_5_vl_config import Vocabulary
from triptych.conversations import chat_ids
from verify_real.gguf_models import as_qwen_vl, load_reference
from verify_real.language_model import Question
from verify_real.language_model import rows as language_model_rows
from verify_real.parts import QWEN_GGUF
from verify_real.qwen_tokenizers import write_for_generation
from verify_real.rows import Row

ROWS = 151936  # of the published embedding; the tokenizer has fewer
QUESTIONS = {
    "What is the capital of France? One word.": "Paris",
    "A red circle is left of a blue square. What colour is the circle? One word.": "Red",
}


def rows(parts: Path) -> Iterator[Row]:
    """Rows of the check."""
    with tempfile.TemporaryDirectory() as scratch:
        write_for_generation(parts, Path(scratch))
        reference = load_reference(parts / QWEN_GGUF, torch.bfloat16)
        vlm = as_qwen_vl(reference, Vocabulary(rows=ROWS), scratch)
        tokenizer = vlm.tokenizer
        questions = [
            Question(chat_ids(tokenizer, [("user", [question])], 512), word)
            for question, word in QUESTIONS.items()
        ]
        yield from language_model_rows("qwen2.5 1.5b", reference, vlm, tokenizer, questions)
