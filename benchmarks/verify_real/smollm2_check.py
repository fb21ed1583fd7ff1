"""SmolLM2 135M, a real Llama, in our class of Qwen2.5-VL: a Qwen2 without biases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoTokenizer

from triptych.backbones.qwen2_5_vl_config import Vocabulary
from verify_real.gguf_models import as_qwen_vl, load_reference
from verify_real.language_model import Question
from verify_real.language_model import rows as language_model_rows
from verify_real.parts import SMOLLM_GGUF
from verify_real.rows import Row

QUESTIONS = {
    "What is the capital of France?": "Paris",
    "What is the capital of Italy?": "",  # it does not know
    "Is water wet?": "",
}


def rows(parts: Path) -> Iterator[Row]:
    """Rows of the check."""
    tokenizer = AutoTokenizer.from_pretrained(parts, gguf_file=SMOLLM_GGUF)
    reference = load_reference(parts / SMOLLM_GGUF, torch.float32)
    named = type(reference).__name__
    yield Row("smollm2 is a Llama", f"transformers' class: {named}", "Llama" in named, 1, "==")
    start, end = (tokenizer.convert_tokens_to_ids(f"<|im_{word}|>") for word in ("start", "end"))
    vocabulary = Vocabulary(
        rows=reference.config.vocab_size,
        pad=end,
        im_end=end,
        # no image is shown: any ids that no text has
        **dict.fromkeys(("vision_start", "vision_end", "image_pad", "start_of_image"), start),
    )
    questions = [
        Question(_prompt(tokenizer, question), word) for question, word in QUESTIONS.items()
    ]
    vlm = as_qwen_vl(reference, vocabulary)
    yield from language_model_rows("smollm2", reference, vlm, tokenizer, questions)


def _prompt(tokenizer: AutoTokenizer, question: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    options = {"add_generation_prompt": True, "return_dict": False}
    return tokenizer.apply_chat_template(messages, **options)
