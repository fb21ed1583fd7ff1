"""The official Qwen tokenizers: our prompts have the published ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from triptych.conversations import chat_ids
from triptych.prompts import (
    GENERATION_INSTRUCTION,
    IM_END,
    IM_START,
    IMAGE_PAD,
    SYSTEM,
    conversation_ids,
    generation_ids,
)
from triptych.utils.tokens import Control, token_id
from verify_real import qwen_tokenizers as qwen
from verify_real.rows import Row

LONGEST = 4096
STOCK = {  # SHA-256 of the published files of Qwen2.5 and Qwen2.5-VL
    "vocab.json": "ca10d7e9fb3ed18575dd1e277a2579c16d108e32f27439684afa0e10b1440910",
    "merges.txt": "599bab54075088774b1733fde865d5bd747cbcc7a547c5bc12610e874e26f5e3",
}
PUBLISHED_IDS = {
    IM_START: 151644,
    IM_END: 151645,
    IMAGE_PAD: 151655,
    "[IMG]": 151665,
    "[/IMG]": 151666,
    "<image>": 151667,
}
CHATS = (
    ("What is shown?",),
    ("Name a colour.", "Blue.", "Another one, in German; and 123 + 45?"),
    ("Hi!", "Hello, wie geht's?", "Gut :)\n\n  Und dir?", "Auch gut.", "再见"),
)
TEXTS = (
    "Hello world",
    "Der süße Bär läuft über 1234567 Brücken.",
    "红色的圆在蓝色的方块左边。",
    "अआ इई العربية ไทย 한국어 🙂👩‍👩‍👧",
    "def f(x):\n\treturn x  # don't\r\n\n  it's  ",
)


def rows(parts: Path) -> Iterator[Row]:
    """Rows of the check."""
    stock = qwen.stock_files(parts)
    wrong = sum(hashlib.sha256(stock[name]).hexdigest() != sha for name, sha in STOCK.items())
    yield Row(
        "qwen2.5 vocabulary and merges", "published files, hashes that differ", wrong, 0, "=="
    )
    content = qwen.qwen2_5_files(parts)
    plain = qwen.load(content, parts)
    yield Row("qwen2.5 tokens", "published number", len(plain), 151665, "==")
    ours = qwen.for_generation(content, parts)
    yield Row("qwen2.5 tokens with [IMG]", "published number", len(ours), 151668, "==")
    differing = sum(token_id(ours, token) != number for token, number in PUBLISHED_IDS.items())
    compared = f"published ids of {' '.join(PUBLISHED_IDS)}, those that differ"
    yield Row("qwen2.5 control tokens", compared, differing, 0, "==")

    captions = prompts()
    encode = qwen.rank_encoder(qwen.ranks(parts))
    ids = [generation_ids(ours, caption, LONGEST) for caption in captions]
    named = f"of {len(captions)} prompts of GenEval and DPG-Bench"
    template = [_template(plain, _request(caption)) for caption in captions]
    image = token_id(ours, "[IMG]")
    yield _count(
        "generation prompts", f"Qwen's chat template, {named}", ids, _ended(template, image)
    )
    by_ranks = [_by_ranks(encode, [*SYSTEM, *_turn(_request(caption))]) for caption in captions]
    yield _count(
        "generation prompts by ranks", f"tiktoken's ranks, {named}", ids, _ended(by_ranks, image)
    )
    three = qwen.for_generation(qwen.tokenizer_files(parts / "qwen3"), parts)
    ids3 = [generation_ids(three, caption, LONGEST) for caption in captions]
    ended = _ended(template, token_id(three, "[IMG]"))
    yield _count("generation prompts of Qwen3", f"Qwen2.5's, but for [IMG], {named}", ids3, ended)

    roles = ("user", "assistant")
    chats = [[(roles[n % 2], text) for n, text in enumerate(chat)] for chat in CHATS]
    system = ("system", "You are a helpful assistant.")
    expected = [
        plain.apply_chat_template(
            [{"role": role, "content": text} for role, text in (system, *chat)],
            add_generation_prompt=True,
            return_dict=False,
        )
        for chat in chats
    ]
    named = f"Qwen's chat template, of {len(chats)}"
    found = [chat_ids(ours, [(role, [text]) for role, text in chat], LONGEST) for chat in chats]
    yield _count("chat prompts", named, found, expected)
    turns = [[*zip(chat[::2], (*chat[1::2], None), strict=True)] for chat in CHATS]
    found = [conversation_ids(ours, each, LONGEST)[0] for each in turns]
    yield _count("training conversations", named, found, expected)
    found = [ours.encode(text) for text in TEXTS]
    yield _count(
        "texts of many scripts", f"tiktoken's ranks, of {len(TEXTS)}", found, map(encode, TEXTS)
    )


def prompts() -> list[str]:
    """Prompts of GenEval and DPG-Bench."""
    package = files("triptych.evaluation")
    lines = [
        *package.joinpath("geneval/evaluation_metadata.jsonl").read_text().splitlines(),
        *package.joinpath("dpg/prompts.jsonl").read_text().splitlines(),
    ]
    return [json.loads(line)["prompt"].strip() for line in lines if line.strip()]


def _request(caption: str) -> str:
    return GENERATION_INSTRUCTION.format(caption=caption)


def _turn(message: str) -> tuple[str, ...]:
    return (IM_START, f"user\n{message}", IM_END, "\n", IM_START, "assistant\n")


def _template(tokenizer: Any, message: str) -> list[int]:
    """Ids of Qwen's own chat template."""
    system = {"role": "system", "content": "You are a helpful assistant."}
    messages = [system, {"role": "user", "content": message}]
    options = {"add_generation_prompt": True, "return_dict": False}
    return tokenizer.apply_chat_template(messages, **options)


def _by_ranks(encode: Callable[[str], list[int]], pieces: Sequence[str]) -> list[int]:
    """Ids of texts by ranks, and of control tokens by the published numbers."""
    ids: list[int] = []
    for piece in pieces:
        ids += [PUBLISHED_IDS[piece]] if isinstance(piece, Control) else encode(piece)
    return ids


def _ended(rows: Iterable[list[int]], token: int) -> list[list[int]]:
    return [[*row, token] for row in rows]


def _count(name: str, compared: str, ours: Sequence, expected: Iterable) -> Row:
    """Row of the number of texts whose ids differ."""
    differing = sum(a != b for a, b in zip(ours, expected, strict=True))
    return Row(name, compared, differing, 0, "==")
