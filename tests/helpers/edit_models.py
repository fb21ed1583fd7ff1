"""A small model whose generator sees source images, and batches of edits for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from builders import unified
from safetensors.torch import load_file, save_file
from torch import nn

from triptych.checkpoints.weight_files import read_metadata
from triptych.data_modules import Collator, ShardFolder, TaskDataset
from triptych.interfaces import IMAGE_TO_IMAGE, TEXT_TO_IMAGE, Batch
from triptych.utils.paths import resolve


def edit_model(stage: str = "stage2", source: str = "channels", **settings: Any):
    """A `unified` model whose DiT takes a source; random weights, those of the source zero."""
    model = unified(stage, dit_sizes={"source": source}, **settings)
    model.configure_model()
    return model


def learned(model: Any) -> Any:
    """`model` with what its DiT learns of a source no longer zero."""
    torch.manual_seed(3)
    for name, parameter in model.generation.dit.named_parameters():
        if ".source_" in name:
            nn.init.normal_(parameter, std=0.5)
    return model


def mixed_batch(model: Any, captions: Path, edits: Path, wanted: str = "cece") -> Batch:
    """A batch with a caption for each "c" and an edit for each "e" of `wanted`."""
    sets = {
        "c": TaskDataset(ShardFolder(captions).open(), TEXT_TO_IMAGE),
        "e": TaskDataset(ShardFolder(edits).open(), IMAGE_TO_IMAGE),
    }
    build = Collator(list(sets.values()), model.preprocessing())
    places = [("ce".index(kind), number) for number, kind in enumerate(wanted)]
    return build(0, places, range(len(places)))


def tiny_flags(folder: Path) -> list[str]:
    """Flags of the tiny preset with a generator that sees sources, by random weights in `folder`.

    All other weights are those of the preset.
    """
    path = resolve("asset:tiny/generation.safetensors", created_by="")
    tensors, metadata = load_file(path), read_metadata(path)
    width = tensors["generation.dit.dit.patch_embedder.proj.weight"].shape
    draw = torch.Generator().manual_seed(3)
    inside = "generation.dit.dit.patch_embedder.source_embedder."
    tensors[inside + "weight"] = 0.2 * torch.randn(width, generator=draw)
    tensors[inside + "bias"] = 0.2 * torch.randn(width[:1], generator=draw)
    file = folder / "seeing.safetensors"
    save_file(tensors, file, metadata)
    flag = "--model.generation.init_args.dit.init_args.source=channels"
    return [flag, f"--model.weights.generation={file}"]
