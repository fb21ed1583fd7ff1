"""Language models in GGUF files: transformers' own class, and ours with the same tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from triptych.backbones import QwenText, QwenVision, QwenVL
from triptych.backbones.qwen2_5_vl_config import Vocabulary
from triptych.training.meta_init import parameters_on_meta

NO_VISION = QwenVision(
    depth=1, hidden_size=32, intermediate_size=32, num_heads=2, fullatt_block_indexes=[0]
)
"""The smallest vision tower; no image is shown to it."""


def load_reference(path: Path, dtype: torch.dtype) -> Any:
    """The model as transformers reads it from a GGUF file, its weights unpacked to `dtype`."""
    import transformers

    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # newer ones would compute with packed weights
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=dtype, **options
    )
    return model.eval().requires_grad_(False)


def as_qwen_vl(model: Any, vocabulary: Vocabulary, tokenizer: str = "") -> QwenVL:
    """Our language model with the tensors of transformers' Qwen2 or Llama, which it shares.

    A Llama is a Qwen2 whose queries, keys and values have no bias: the biases are zeros. Rotary
    positions of text are those of one axis, however they are split among three.

    Args:
        model: transformers' model.
        vocabulary: its ids of special tokens.
        tokenizer: folder of the tokenizer, for prompts.
    """
    config, dtype = model.config, model.dtype
    half = config.hidden_size // config.num_attention_heads // 2
    text = QwenText(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        max_position_embeddings=config.max_position_embeddings,
        rope_theta=config.rope_parameters["rope_theta"],
        mrope_section=[half // 4, half * 3 // 8, half - half // 4 - half * 3 // 8],
        tie_word_embeddings=config.tie_word_embeddings,
        rms_norm_eps=config.rms_norm_eps,
    )
    vlm = QwenVL(tokenizer, text, NO_VISION, vocabulary=vocabulary)
    with parameters_on_meta():
        vlm.build()
    state = {
        name
        if name.startswith("lm_head")
        else name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in model.state_dict().items()
    }
    for name, tensor in vlm.model.state_dict().items():
        if name.startswith("model.visual.") or (name.endswith("_proj.bias") and name not in state):
            state[name] = torch.zeros(tensor.shape, dtype=dtype)
    vlm.model.load_state_dict(state, strict=True, assign=True)
    return vlm.eval().requires_grad_(False)
