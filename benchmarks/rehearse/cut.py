"""Flags that cut the depth of a preset, and the memory of a training step.

Widths, image sizes and lengths of prompts stay real. What does not fit MOST_GB even so is cut
further, by `further_cuts`, and the result says by which.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from triptych.cli.recipes import recipe_of
from triptych.inference.loading import describe_stage
from triptych.modules import UnifiedModule
from triptych.training.freezing import freeze_all_but
from triptych.utils.documents import read_yaml
from triptych.utils.errors import UserError
from triptych.utils.paths import conf_files, presets

MOST_GB = 8.8  # of weights, gradients and states; the rest of 10 is for Python and activations
BASE_GB = 0.9  # torch, diffusers, transformers
WORDS = 8192  # rows of a cut vocabulary
VLM = "--model.understanding.init_args.vlm.init_args."
DECODER = "--model.decoding.init_args.decoder.init_args."
HEADS = "--model.encoding.init_args.heads.init_args."
LABELS = ("understanding", "encoder", "vae", "decoder", "generation")


def section(preset: str) -> dict[str, Any]:
    """The `model` section of a preset."""
    return read_yaml(presets()[preset])["model"]


def depth_flags(preset: str, layers: int) -> list[str]:
    """Flags with `layers` blocks in each network, or as many as it has."""
    model = section(preset)
    vlm = model["understanding"]["init_args"]["vlm"]["init_args"]
    vision = min(layers, vlm["vision"]["depth"])
    flags = [
        f"{VLM}text.num_hidden_layers={min(layers, vlm['text']['num_hidden_layers'])}",
        f"{VLM}vision.depth={vision}",
        f"{VLM}vision.fullatt_block_indexes=[{vision - 1}]",
        f"--model.encoder.init_args.depth={min(layers, model['encoder']['init_args']['depth'])}",
    ]
    dit = model["generation"]["init_args"]["dit"]["init_args"]["depth"]
    flags.append(f"--model.generation.init_args.dit.init_args.depth={min(layers, dit)}")
    decoder = model["decoding"]["init_args"]["decoder"]["init_args"]
    if "depths" in decoder:  # a UNet
        depths = [min(layers, depth) for depth in decoder["depths"]]
        flags += [f"{DECODER}depths={depths}", f"{DECODER}layers_per_block=1"]
    else:
        flags.append(f"{DECODER}depth={min(layers, decoder['depth'])}")
    if "KLAutoencoder" in model["vae"]["class_path"]:
        # images of the real size, decoded in 2 x 2 tiles that overlap
        side = model["vae"]["init_args"]["image_size"]
        flags.append(f"--model.vae.init_args.tile={side * 3 // 4 // 8 * 8}")
    return flags


def stage_files(preset: str, stage: str) -> list[Path]:
    """The files of conf/ that the stage reads: preset, stage, recipe."""
    return [presets()[preset], conf_files(f"stages/{stage}.yaml")[stage], recipe_of(preset, stage)]


def precision(stage: str, recipe: Path) -> str:
    """The recipe's precision, or float32 where the processor would convolve without bfloat16.

    There torch's convolutions in bfloat16 are a hundred times slower than in float32.
    """
    own = read_yaml(recipe)["trainer"].get("precision", "32-true")
    slow = stage in ("encoder", "decoder") and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "32-true" if slow else own


def stage_flags(preset: str, stage: str, layers: int) -> tuple[list[str], list[str], float]:
    """Flags of a stage that fit, the further cuts that were made, and the GB that it takes.

    Raises:
        UserError: it does not fit, even with every cut.
    """
    files = stage_files(preset, stage)
    flags, made = [*depth_flags(preset, layers), "--model.build_decoder=false"], []
    if stage == "encoder":
        flags.append(f"{HEADS}depth={layers}")
    frozen_bytes = 2 if precision(stage, files[-1]) == "bf16-mixed" else 4
    for name, more in [("", []), *further_cuts(preset, stage)]:
        flags += more
        made += [name] if name else []
        nothing = [f"--model.weights.{label}=null" for label in LABELS]
        taken = gigabytes(describe_stage(files, [*flags, *nothing]), frozen_bytes)
        if taken <= MOST_GB:
            return flags, made, taken
    raise UserError(
        f"a step of {stage} of {preset} takes {taken:.1f} GB at LAYERS={layers}, {MOST_GB} are "
        "allowed; give fewer layers."
    )


def weight_flags(preset: str, stage: str, flags: list[str], folder: Path) -> list[str]:
    """Flags that name the random files in `folder` for every label of which the stage reads one."""
    named = asdict(describe_stage(stage_files(preset, stage), flags).weights)
    named["vae"] = named["vae"] or named["encoder"]  # of the tiny preset one file holds both
    return [f"--model.weights.{each}={folder / each}.safetensors" for each in LABELS if named[each]]


def further_cuts(preset: str, stage: str) -> list[tuple[str, list[str]]]:
    """Cuts by name, of networks that the stage trains: only frozen ones are read from files."""
    if stage == "encoder":
        return [("vocabulary of the text tower", [f"{HEADS}vocabulary={WORDS}"])]
    model = section(preset)
    decoder = model["decoding"]["init_args"]["decoder"]["init_args"]
    if stage == "decoder" and "depths" in decoder:
        depths = [min(1, depth) for depth in decoder["depths"]]
        return [("transformer layers of the UNet", [f"{DECODER}depths={depths}"])]
    vlm = model["understanding"]["init_args"]["vlm"]["init_args"]
    if stage not in ("stage1", "joint") or "vocabulary" not in vlm:
        return []
    names = ("pad", "im_end", "vision_start", "vision_end", "image_pad", "start_of_image")
    ids = ", ".join(f"{name}: {WORDS - 8 + number}" for number, name in enumerate(names))
    random = "--model.weights.understanding=null"
    return [
        ("vocabulary", [f"{VLM}vocabulary={{rows: {WORDS}, {ids}}}", random]),
        ("layers of the language model", [f"{VLM}text.num_hidden_layers=1"]),
    ]


def gigabytes(model: UnifiedModule, frozen_bytes: int) -> float:
    """GB of weights, gradients and optimizer states in a training step of a described model."""
    with torch.device("meta"):
        model.build()
    freeze_all_but(model, model.trainable)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    return BASE_GB + (16 * trained + frozen_bytes * frozen) / 1e9
