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


def blind_flags(folder: Path) -> list[str]:
    """Flags of the tiny preset with a generator that sees no sources, its weights in `folder`."""
    path = resolve("asset:tiny/generation.safetensors", created_by="")
    tensors = {name: each for name, each in load_file(path).items() if ".source_" not in name}
    file = folder / "blind.safetensors"
    save_file(tensors, file, read_metadata(path))
    flag = "--model.generation.init_args.dit.init_args.source=none"
    return [flag, f"--model.weights.generation={file}"]
