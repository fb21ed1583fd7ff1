"""Mapping between names and sizes of the published BLIP3-o checkpoints and of `UnifiedModule`.

Only names, shapes and configuration: nothing here opens a file. The published checkpoint is
transformers 4.51's Qwen2.5-VL with additional keys:

    visual.*                                      the vision tower of the language model
    model.embed_tokens, model.layers, model.norm  the language model
    lm_head.weight                                absent if it is tied to the embeddings
    model.latent_queries                          [1,N,D]; ours is [N,D]
    model.dit.model.*                             the DiT, with its caption projection
    model.gen_vision_tower.vision_tower.model.*   the EVA tower, or without prefix in its own file

The pixel decoder is in a separate folder, with diffusers' names: `unet/` and `vae/`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

VLM = "understanding.vlm.model."
QUERIES = "generation.queries"
DIT = "generation.dit."
TOWER = "encoder.tower."
UNET = "decoding.decoder.unet."
VAE = "vae.vae."

PUBLISHED_QUERIES = "model.latent_queries"
PUBLISHED_DIT = "model.dit.model."
PUBLISHED_TOWER = "model.gen_vision_tower.vision_tower.model."

# (published prefix, ours): the first match is used, so prefixes inside `model.` come first
_BEGINNINGS = (
    (PUBLISHED_DIT + "caption_projection.", DIT + "caption_projection."),
    (PUBLISHED_DIT, DIT + "dit."),
    (PUBLISHED_TOWER, TOWER),
    ("visual.", VLM + "model.visual."),
    ("model.embed_tokens.", VLM + "model.language_model.embed_tokens."),
    ("model.layers.", VLM + "model.language_model.layers."),
    ("model.norm.", VLM + "model.language_model.norm."),
    ("lm_head.", VLM + "lm_head."),
    # names since transformers 4.52, possible in files of stock Qwen2.5-VL
    ("model.visual.", VLM + "model.visual."),
    ("model.language_model.", VLM + "model.language_model."),
)
_BARE_TOWER = re.compile(r"(cls_token|pos_embed)$|(patch_embed|blocks)\.")
_SPLIT_BIAS = re.compile(r"(.*\.attn\.)([qv])_bias$")
# prefixes of the keys of diffusers' UNet and VAE
UNET_PARTS = ("conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block")
UNET_PARTS += ("up_blocks", "conv_norm_out", "conv_out")
VAE_PARTS = ("encoder", "decoder", "quant_conv", "post_quant_conv")
# declared by diffusers, unused and unpublished
UNPUBLISHED = {DIT + "dit.pad_token"}


@dataclass(frozen=True)
class Place:
    """Destination of a published tensor."""

    name: str
    """Full name inside `UnifiedModule`."""
    qkv_slice: int | None = None
    """Slice of an EVA bias [3C], 0 for query, 2 for value; None for the whole tensor."""


def place_of(key: str) -> Place | None:
    """Place of a published key in the model, or None."""
    split = _SPLIT_BIAS.match(key)
    if split:
        whole = place_of(f"{split[1]}qkv.bias")
        return whole and Place(whole.name, {"q": 0, "v": 2}[split[2]])
    if key == PUBLISHED_QUERIES:
        return Place(QUERIES)
    if _BARE_TOWER.match(key):
        return Place(TOWER + key)
    for published, ours in _BEGINNINGS:
        if key.startswith(published):
            return Place(ours + key.removeprefix(published))
    return None


def published_key(name: str) -> str | None:
    """Published key of a full name, with fused EVA biases; None if it was not published."""
    if name == QUERIES:
        return PUBLISHED_QUERIES
    if name in UNPUBLISHED:
        return None
    for published, ours in _BEGINNINGS:
        if name.startswith(ours):
            return published + name.removeprefix(ours)
    return None


def from_published(name: str, tensor: Tensor) -> Tensor:
    """Convert a published tensor to our shape: the queries have no batch axis."""
    return tensor[0] if name == QUERIES else tensor


def to_published(name: str, tensor: Tensor) -> Tensor:
    """Inverse of `from_published`."""
    return tensor[None] if name == QUERIES else tensor


def fuse_bias(qkv_slices: Mapping[int, Tensor]) -> Tensor:
    """Fuse EVA's bias [3C] from its query and value slices [C].

    The key slice is zero: Emu2's tower has none, and a bias on keys adds a constant to all scores
    of a query, to which the softmax is invariant.
    """
    return torch.cat([qkv_slices[0], torch.zeros_like(qkv_slices[0]), qkv_slices[2]])


# Configuration: published config.json -> arguments of our classes --------------------------------


def text_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `QwenText` from a config.json, flat (before transformers 4.52) or nested."""
    text = config.get("text_config") or config
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    taken = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "rms_norm_eps",
    )
    return {
        **{name: text[name] for name in taken},
        "rope_theta": text.get("rope_theta") or rope["rope_theta"],
        "mrope_section": list(rope["mrope_section"]),
        "tie_word_embeddings": bool(
            config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
        ),
    }


def vision_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `QwenVision` from the same config.json."""
    vision = config["vision_config"]
    taken = (
        "depth",
        "hidden_size",
        "intermediate_size",
        "num_heads",
        "patch_size",
        "spatial_merge_size",
        "temporal_patch_size",
        "window_size",
    )
    blocks = list(vision["fullatt_block_indexes"])
    published = {"fullatt_block_indexes": blocks, "position_std": 0.0}  # no learned places
    return {name: vision[name] for name in taken} | published


def generation_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `GenerationModule` from the same config.json."""
    return {"num_queries": config["n_query"]}


def pooling(config: Mapping[str, Any]) -> int:
    """Argument `pool` of `EvaClip` from the same config.json: 4 for "early_pool2d_4"."""
    return int(config["gen_pooling"].rpartition("_")[2])


# Shapes: sizes that are not in config.json, read from the tensors --------------------------------


def dit_arguments(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Arguments of `LuminaNextDiT` from shapes by full name.

    The feed-forward width is read from the tensors, as the published code gives two widths, with
    diffusers before and since 0.33 (4864 and 7168 at width 1792), and both have been trained.
    """
    inside = DIT + "dit."
    return {
        "width": shapes[inside + "patch_embedder.proj.weight"][0],
        "depth": _count(shapes, inside + "layers."),
        "heads": shapes[inside + "layers.0.gate"][0],
        "ffn_width": shapes[inside + "layers.0.feed_forward.linear_1.weight"][0],
    }


def condition_width(shapes: Mapping[str, Sequence[int]]) -> int:
    """Width D of the condition of a DiT, from shapes by full name."""
    return shapes[DIT + "caption_projection.linear_1.weight"][1]


def tower_arguments(
    shapes: Mapping[str, Sequence[int]], pool: int, head_width: int = 112
) -> dict[str, Any]:
    """Arguments of `EvaClip` from shapes by full name, which do not determine `head_width`."""
    _, tokens, width = shapes[TOWER + "pos_embed"]
    patch = shapes[TOWER + "patch_embed.proj.weight"][-1]
    return {
        "image_size": math.isqrt(tokens - 1) * patch,
        "patch_size": patch,
        "width": width,
        "depth": _count(shapes, TOWER + "blocks."),
        "heads": width // head_width,
        "mlp_width": shapes[TOWER + "blocks.0.mlp.fc1.weight"][0],
        "pool": pool,
    }


def _count(shapes: Mapping[str, Sequence[int]], beginning: str) -> int:
    """Number of numbered modules under `beginning`."""
    rest = (name.removeprefix(beginning) for name in shapes if name.startswith(beginning))
    return len({name.split(".")[0] for name in rest})


# The pixel decoder: diffusers' config.json -> arguments of our classes ---------------------------


def decoder_arguments(unet: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `SDXLDecoder` from the config.json of a `unet` folder."""
    widths = list(unet["block_out_channels"])
    layers = unet["transformer_layers_per_block"]
    layers = [layers] * len(widths) if isinstance(layers, int) else layers
    heads = unet["attention_head_dim"]  # diffusers calls the number of heads a dimension here
    heads = [heads] * len(widths) if isinstance(heads, int) else heads
    attends = ["CrossAttn" in kind for kind in unet["down_block_types"]]
    return {
        "widths": widths,
        "depths": [n if cross else 0 for n, cross in zip(layers, attends, strict=True)],
        "head_width": [width // number for width, number in zip(widths, heads, strict=True)],
        "layers_per_block": unet["layers_per_block"],
        "norm_groups": unet["norm_num_groups"],
        "time_width": unet["addition_time_embed_dim"],
    }


def vae_arguments(vae: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """Arguments of `KLAutoencoder` from the config.json of a `vae` folder."""
    return {
        "image_size": image_size,
        "latent_channels": vae["latent_channels"],
        "block_widths": list(vae["block_out_channels"]),
        "layers_per_block": vae["layers_per_block"],
        "norm_groups": vae["norm_num_groups"],
        "scaling": vae["scaling_factor"],
    }


# Export: arguments of our classes -> published config.json ---------------------------------------


def published_config(
    text: Mapping[str, Any],
    vision: Mapping[str, Any],
    vocabulary: Mapping[str, int],
    *,
    queries: int,
    channels: int,
    pool: int,
) -> dict[str, Any]:
    """config.json of a BLIP3-o, in the flat format of transformers 4.51.

    Args:
        text, vision, vocabulary: fields of `QwenText`, `QwenVision` and `Vocabulary`.
        queries: number of latent queries.
        channels: number of channels of the generated features.
        pool: side of the pooling of the tower's tokens.
    """
    text = dict(text)
    sections = text.pop("mrope_section")
    return {
        "architectures": ["blip3oQwenForInferenceLM"],
        "model_type": "blip3o_qwen_inference",
        **text,
        "vocab_size": vocabulary["rows"],
        "hidden_act": "silu",
        "rope_scaling": {"type": "mrope", "mrope_section": list(sections)},
        "bos_token_id": vocabulary["pad"],
        "eos_token_id": vocabulary["im_end"],
        "pad_token_id": vocabulary["pad"],
        "image_token_id": vocabulary["image_pad"],
        "vision_start_token_id": vocabulary["vision_start"],
        "vision_end_token_id": vocabulary["vision_end"],
        "use_sliding_window": False,
        "vision_config": {
            **vision,
            "model_type": "qwen2_5_vl",
            "hidden_act": "silu",
            "out_hidden_size": text["hidden_size"],
        },
        "gen_vision_tower": "eva-clip-E-14-plus",
        "gen_hidden_size": channels,
        "gen_pooling": f"early_pool2d_{pool}",
        "n_query": queries,
        # without these the published loader adds tokens and its own projector
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "mm_patch_merge_type": "flat",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "use_mm_proj": True,
        "image_aspect_ratio": "square",
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": 512,
    }


# Folders and files of a release ------------------------------------------------------------------

DECODER = "diffusion-decoder"
# pairs of file names: an index of several files, and a single file
MAIN_WEIGHTS = (("model.safetensors.index.json", "model.safetensors"),)
TOWER_WEIGHTS = (*MAIN_WEIGHTS, ("pytorch_model.bin.index.json", "pytorch_model.bin"))
# the published code prefers the bf16 variant
DECODER_WEIGHTS = tuple(
    (
        f"diffusion_pytorch_model.safetensors.index{variant}.json",
        f"diffusion_pytorch_model{variant}.safetensors",
    )
    for variant in (".bf16", "")
)
DECODER_FOLDERS = ("", "unet", "vae", "scheduler", "feature_extractor", "safety_checker")
# sampling settings of the decoder, with the keys of a scheduler_config.json
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "use_karras_sigmas": False,
}
