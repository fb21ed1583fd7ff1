"""A published BLIP3-o in small: random numbers under the published names, listed by hand.

Use it to test conversion and export without a download.

The names and the relations between shapes are those of the published checkpoints, taken from their
description and not from our code, so that a mistake in our table of names shows.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from builders import ROOT
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

# What the published code itself computed, and its weights.
CASES = ROOT / "tests" / "data" / "parity"

H, LAYERS, HEADS, KV, FFN = 64, 2, 4, 2, 96  # the language model
V, V_DEPTH, V_FFN = 32, 2, 48  # its vision tower
N, WIDTH, DEPTH, DIT_HEADS = 4, 48, 2, 4  # queries and DiT
C, E_DEPTH, PATCH, SIDE = 56, 2, 14, 4  # the EVA tower: 4x4 patches of 14 pixels
ROWS = 700  # of the vocabulary; the tiny tokenizer has fewer tokens
TOWER = "model.gen_vision_tower.vision_tower.model."

CONFIG = {
    "architectures": ["blip3oQwenForInferenceLM"],
    "model_type": "blip3o_qwen_inference",
    "vocab_size": ROWS,
    "hidden_size": H,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "tie_word_embeddings": False,
    "vision_config": {
        "depth": V_DEPTH,
        "hidden_size": V,
        "intermediate_size": V_FFN,
        "num_heads": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    },
    "gen_vision_tower": "eva-clip-E-14-plus",
    "gen_hidden_size": C,
    "gen_pooling": "early_pool2d_2",
    "n_query": N,
    "torch_dtype": "bfloat16",
}


def linear(name: str, out: int, into: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    shapes = {f"{name}.weight": (out, into)}
    return shapes | ({f"{name}.bias": (out,)} if bias else {})


def norm(name: str, width: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    shapes = {f"{name}.weight": (width,)}
    return shapes | ({f"{name}.bias": (width,)} if bias else {})


def language_model(text: str = "model.", vision: str = "visual.", head: bool = True):
    """Shapes of Qwen2.5-VL: by default as transformers 4.51 names them."""
    shapes = {f"{text}embed_tokens.weight": (ROWS, H), **norm(f"{text}norm", H, False)}
    shapes |= {"lm_head.weight": (ROWS, H)} if head else {}
    for i in range(LAYERS):
        layer = f"{text}layers.{i}."
        for name, out in (("q", H), ("k", H // HEADS * KV), ("v", H // HEADS * KV)):
            shapes |= linear(f"{layer}self_attn.{name}_proj", out, H)
        shapes |= linear(f"{layer}self_attn.o_proj", H, H, False)
        shapes |= linear(f"{layer}mlp.gate_proj", FFN, H, False)
        shapes |= linear(f"{layer}mlp.up_proj", FFN, H, False)
        shapes |= linear(f"{layer}mlp.down_proj", H, FFN, False)
        shapes |= norm(f"{layer}input_layernorm", H, False)
        shapes |= norm(f"{layer}post_attention_layernorm", H, False)
    shapes[f"{vision}patch_embed.proj.weight"] = (V, 3, 2, 14, 14)
    for i in range(V_DEPTH):
        block = f"{vision}blocks.{i}."
        shapes |= norm(f"{block}norm1", V, False) | norm(f"{block}norm2", V, False)
        shapes |= linear(f"{block}attn.qkv", 3 * V, V) | linear(f"{block}attn.proj", V, V)
        shapes |= linear(f"{block}mlp.gate_proj", V_FFN, V) | linear(
            f"{block}mlp.up_proj", V_FFN, V
        )
        shapes |= linear(f"{block}mlp.down_proj", V, V_FFN)
    shapes |= norm(f"{vision}merger.ln_q", V, False)
    shapes |= linear(f"{vision}merger.mlp.0", 4 * V, 4 * V)
    return shapes | linear(f"{vision}merger.mlp.2", H, 4 * V)


def generator(ffn: int = 256) -> dict[str, tuple[int, ...]]:
    """Shapes of queries and DiT; 256 is 8/3 of the width rounded up, 384 the other kind."""
    dit, t = "model.dit.model.", min(WIDTH, 1024)
    shapes: dict[str, tuple[int, ...]] = {"model.latent_queries": (1, N, H)}
    shapes |= linear(f"{dit}caption_projection.linear_1", WIDTH, H)
    shapes |= linear(f"{dit}caption_projection.linear_2", WIDTH, WIDTH)
    shapes |= linear(f"{dit}patch_embedder.proj", WIDTH, C)
    shapes |= linear(f"{dit}time_caption_embed.timestep_embedder.linear_1", t, 256)
    shapes |= linear(f"{dit}time_caption_embed.timestep_embedder.linear_2", t, t)
    shapes |= norm(f"{dit}time_caption_embed.caption_embedder.0", WIDTH)
    shapes |= linear(f"{dit}time_caption_embed.caption_embedder.1", t, WIDTH)
    for i in range(DEPTH):
        layer = f"{dit}layers.{i}."
        shapes[f"{layer}gate"] = (DIT_HEADS,)
        for attention in ("attn1", "attn2"):
            shapes |= norm(f"{layer}{attention}.norm_q", WIDTH)
            shapes |= norm(f"{layer}{attention}.norm_k", WIDTH)
            for name in ("to_q", "to_k", "to_v"):
                shapes |= linear(f"{layer}{attention}.{name}", WIDTH, WIDTH, False)
        shapes |= linear(f"{layer}attn2.to_out.0", WIDTH, WIDTH, False)
        shapes |= linear(f"{layer}feed_forward.linear_1", ffn, WIDTH, False)
        shapes |= linear(f"{layer}feed_forward.linear_2", WIDTH, ffn, False)
        shapes |= linear(f"{layer}feed_forward.linear_3", ffn, WIDTH, False)
        shapes |= linear(f"{layer}norm1.linear", 4 * WIDTH, t)
        shapes |= norm(f"{layer}norm1.norm", WIDTH, False)
        for name in ("ffn_norm1", "ffn_norm2", "norm2", "norm1_context"):
            shapes |= norm(f"{layer}{name}", WIDTH, False)
    shapes |= linear(f"{dit}norm_out.linear_1", WIDTH, t)
    return shapes | linear(f"{dit}norm_out.linear_2", C, WIDTH)


def tower(prefix: str = "", split: bool = False) -> dict[str, tuple[int, ...]]:
    """Shapes of the EVA tower, with one attention bias or with q_bias and v_bias."""
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}cls_token": (1, 1, C),
        f"{prefix}pos_embed": (1, SIDE * SIDE + 1, C),
        f"{prefix}patch_embed.proj.weight": (C, 3, PATCH, PATCH),
        f"{prefix}patch_embed.proj.bias": (C,),
    }
    for i in range(E_DEPTH):
        block = f"{prefix}blocks.{i}."
        shapes |= norm(f"{block}norm1", C) | norm(f"{block}norm2", C)
        shapes |= linear(f"{block}attn.qkv", 3 * C, C, bias=not split)
        if split:
            shapes |= {f"{block}attn.q_bias": (C,), f"{block}attn.v_bias": (C,)}
        shapes |= linear(f"{block}attn.proj", C, C)
        shapes |= linear(f"{block}mlp.fc1", 480, C) | linear(f"{block}mlp.fc2", C, 480)
    return shapes


def random(shapes, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> dict[str, Tensor]:
    """Numbers small enough that the networks compute with them."""
    source = torch.Generator().manual_seed(seed)
    return {n: (0.1 * torch.randn(s, generator=source)).to(dtype) for n, s in shapes.items()}


def write_checkpoint(folder: Path, tensors, config=None, shards: int = 3, tokenizer=True) -> Path:
    """The main folder: shards with an index, or a single file; config.json; tokenizer files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or CONFIG, indent=2))
    (folder / "generation_config.json").write_text('{"do_sample": true}\n')
    if tokenizer:
        for path in (ROOT / "src/triptych/assets/tiny/tokenizer").iterdir():
            shutil.copy(path, folder)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    names = sorted(tensors)
    files = {
        name: f"model-{i * shards // len(names) + 1:05d}-of-{shards:05d}.safetensors"
        for i, name in enumerate(names)
    }
    for file in sorted(set(files.values())):
        held = {name: tensors[name] for name in names if files[name] == file}
        save_file(held, folder / file, {"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return folder


def write_decoder(folder: Path, variant: str | None = "bf16", channels: int = C) -> Path:
    """A diffusers folder: a small UNet of SDXL's kind, a VAE, the scheduler."""
    torch.manual_seed(4)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        cross_attention_dim=channels,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=48 + channels,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 16),
        norm_num_groups=8,
        scaling_factor=0.13025,
    )
    unet.to(torch.bfloat16).save_pretrained(folder / "unet", variant=variant)
    vae.to(torch.bfloat16).save_pretrained(folder / "vae", variant=variant)
    EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "EmuVisualGenerationPipeline"}\n')
    return folder


def released(folder: Path, shards: int = 3, **changes) -> Path:
    """A whole release: checkpoint with the tower inside, tokenizer, decoder."""
    shapes = language_model() | generator() | tower(TOWER)
    write_checkpoint(folder, random(shapes), {**CONFIG, **changes}, shards)
    write_decoder(folder / "diffusion-decoder")
    return folder
