"""Sizes and vocabulary of Qwen2.5-VL, and their configuration for transformers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from transformers import Qwen2_5_VLConfig

from triptych.prompts import (
    IM_END,
    IMAGE_PAD,
    PAD,
    START_OF_IMAGE,
    VISION_END,
    VISION_START,
    token_id,
)
from triptych.utils.errors import UserError


@dataclass
class QwenText:
    """Sizes of the language model; the defaults are Qwen2.5-VL-7B's. Names as in transformers."""

    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    max_position_embeddings: int = 128000
    rope_theta: float = 1e6
    mrope_section: list[int] = field(default_factory=lambda: [16, 24, 24])
    tie_word_embeddings: bool = False
    rms_norm_eps: float = 1e-5
    """transformers' default; the config.json of every published Qwen2.5-VL says 1e-6."""
    initializer_range: float = 0.02
    """Deviation of new weights, vision tower included; narrow models learn faster from more."""


@dataclass
class QwenVision:
    """Sizes of the vision tower; the defaults are Qwen2.5-VL's. Names as in transformers."""

    depth: int = 32
    hidden_size: int = 1280
    intermediate_size: int = 3420
    num_heads: int = 16
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    window_size: int = 112
    fullatt_block_indexes: list[int] = field(default_factory=lambda: [7, 15, 23, 31])
    position_std: float = 0.0
    """Deviation of a learned vector for each token's place, added to the tower's outputs, which are
    then normalized; 0 for neither, as in Qwen2.5-VL. Rotary positions are relative and never reach
    what attention passes on: a small model then says what is in an image, and where only while
    there is one thing. All images have one size."""


@dataclass
class Vocabulary:
    """Token ids and size that the network needs; the defaults are the published tokenizer's.

    In a preset, they let the network be built without the tokenizer's files.
    """

    rows: int = 151668
    """Rows of the embedding; at least as many as the tokenizer has tokens."""
    pad: int = 151643
    im_end: int = 151645
    vision_start: int = 151652
    vision_end: int = 151653
    image_pad: int = 151655
    start_of_image: int = 151665

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        """The vocabulary of a tokenizer that knows all special tokens."""
        ids = {name: token_id(tokenizer, token) for name, token in SPECIAL_IDS.items()}
        return cls(rows=len(tokenizer), **ids)


# Field of Vocabulary -> token.
SPECIAL_IDS = {
    "pad": PAD,
    "im_end": IM_END,
    "vision_start": VISION_START,
    "vision_end": VISION_END,
    "image_pad": IMAGE_PAD,
    "start_of_image": START_OF_IMAGE,
}


def transformers_config(
    text: QwenText, vision: QwenVision, vocabulary: Vocabulary
) -> Qwen2_5_VLConfig:
    """The transformers configuration of these sizes."""
    sizes = asdict(text)
    rope = {
        "rope_type": "default",
        "rope_theta": sizes.pop("rope_theta"),
        "mrope_section": sizes.pop("mrope_section"),
    }
    tied = sizes.pop("tie_word_embeddings")
    tower = asdict(vision)
    del tower["position_std"]  # ours
    ids = {
        "bos_token_id": vocabulary.pad,
        "eos_token_id": vocabulary.im_end,
        "pad_token_id": vocabulary.pad,
    }
    return Qwen2_5_VLConfig(
        text_config={
            **sizes,
            **ids,
            "vocab_size": vocabulary.rows,
            "rope_parameters": rope,
            "tie_word_embeddings": tied,
        },
        vision_config={
            **tower,
            "out_hidden_size": text.hidden_size,
            "hidden_act": "silu",
            "initializer_range": text.initializer_range,
        },
        image_token_id=vocabulary.image_pad,
        vision_start_token_id=vocabulary.vision_start,
        vision_end_token_id=vocabulary.vision_end,
        tie_word_embeddings=tied,
    )


def check_vocabulary(given: Vocabulary, tokenizer: Any) -> None:
    """Refuse a tokenizer whose ids are not those that the network was built with."""
    own = Vocabulary.of(tokenizer)
    wrong = [
        f"{one.name} {getattr(own, one.name)} instead of {getattr(given, one.name)}"
        for one in fields(Vocabulary)
        if one.name != "rows" and getattr(own, one.name) != getattr(given, one.name)
    ]
    if own.rows > given.rows:
        wrong.append(f"{own.rows} tokens for {given.rows} rows")
    if wrong:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} is not the one of this model: it has "
            f"{', '.join(wrong)}; name the tokenizer that belongs to the weights."
        )
