"""Tokenizer of the tiny preset: byte-level BPE in Qwen's layout, trained on the shapes world."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from triptych.prompts import GENERATION_INSTRUCTION, PAD, SPECIAL_TOKENS, SYSTEM, user_turn
from triptych.shapes_world.shards import make_edit_sample, make_sample, make_story_sample
from triptych.utils.documents import read_text
from triptych.utils.paths import resolve

CHAT_TEMPLATE = "asset:tiny/tokenizer/chat_template.jinja"
# Subset of Qwen2's pattern for short English: words have their leading space, digits are single,
# newlines are separate.
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


def texts(samples: int, seed: int):
    """Yield all texts of `samples` training samples, edits and stories, and of the templates."""
    yield "".join((*SYSTEM, *user_turn(GENERATION_INSTRUCTION)))
    for index in range(samples):
        facts = json.loads(make_sample("train", index, seed)["json"])
        yield facts["caption"]
        yield facts["long_caption"]
        for turn in facts["conversation"] + facts["text_conversation"] + facts["questions"]:
            yield from turn
        yield json.loads(make_edit_sample("train", index, seed)["json"])["caption"]
        for message in json.loads(make_story_sample("train", index, seed)["json"])["messages"]:
            content = message["content"]
            parts = content if isinstance(content, list) else [content]
            yield from (part for part in parts if isinstance(part, str))


def train_tokenizer(folder: str | Path, vocabulary: int = 768, samples: int = 4000, seed: int = 0):
    """Train and save a tokenizer of at most `vocabulary` tokens, which encodes any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(samples, seed), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=256,
    )
    fast.chat_template = read_text(resolve(CHAT_TEMPLATE))
    fast.save_pretrained(str(folder))
    return fast
