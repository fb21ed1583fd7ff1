"""Random weight files of a cut preset; the published layout and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rehearse import cut
from triptych.checkpoints.published.convert import convert
from triptych.checkpoints.published.export import export
from triptych.checkpoints.published.key_mapping import UNPUBLISHED
from triptych.checkpoints.weight_files import label_of, save_weights
from triptych.inference.loading import describe_model
from triptych.modules import UnifiedModule
from triptych.modules.initialization import draws_of
from triptych.training.meta_init import parameters_on_meta
from triptych.utils.errors import UserError
from triptych.utils.paths import ASSETS, presets

TOKENIZER = ASSETS / "tiny" / "tokenizer"  # a stand-in: what is written is not read as text


def described(preset: str, layers: int, *more: str) -> UnifiedModule:
    """The cut model, all panels, not built."""
    nothing = [f"--model.weights.{label}=null" for label in cut.LABELS]
    return describe_model([presets()[preset]], [*nothing, *cut.depth_flags(preset, layers), *more])


def own_weights(folder: Path) -> list[str]:
    """Flags that name the files of `write`."""
    return [f"--model.weights.{label}={folder / label}.safetensors" for label in cut.LABELS]


def write(preset: str, layers: int, folder: Path) -> dict[str, Any]:
    """Write a random weight file per label, in bfloat16."""
    model = described(preset, layers)
    with parameters_on_meta():
        model.build()
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tied -= {name for name, _ in model.named_parameters()}
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    total = 0
    for label in cut.LABELS:
        tensors = {n: t for n, t in state.items() if label_of(n) == label}
        made = {n: drawn(n, t) if t.is_meta else t for n, t in tensors.items()}
        path = folder / f"{label}.safetensors"
        save_weights(made, path, {"preset": preset, "stage": "rehearsal"}, torch.bfloat16)
        total += path.stat().st_size
    return {
        "gb_written": round(total / 1e9, 2),
        "parameters": sum(t.numel() for t in state.values()),
    }


def drawn(name: str, like: Tensor) -> Tensor:
    """Small noise in bfloat16, or ones for the scale of a norm."""
    if like.ndim == 1 and name.endswith("weight"):
        return torch.ones(like.shape, dtype=torch.bfloat16)
    with draws_of(name):
        return (torch.randn(like.shape) * 0.02).bfloat16()


def there_and_back(preset: str, layers: int, folder: Path) -> dict[str, Any]:
    """Export the weight files to the published layout, convert that, and compare all tensors."""
    published, again = folder / "published", folder / "converted"
    model = described(preset, layers, *own_weights(folder), f"{cut.VLM}tokenizer={TOKENIZER}")
    try:
        export(model, published, say=lambda line: None)
    except UserError as error:
        if "only a model of the published kind" not in str(error):
            raise
        return {"skipped": f"{preset} has no published layout of its own: {error}"}
    convert(str(published), again, say=lambda line: None)
    compared, different = 0, []
    for label in cut.LABELS:
        if not (again / f"{label}.safetensors").exists():
            continue  # the EVA tower is published elsewhere
        with (
            safe_open(folder / f"{label}.safetensors", "pt") as ours,
            safe_open(again / f"{label}.safetensors", "pt") as theirs,
        ):
            for name in sorted({*ours.keys(), *theirs.keys()} - UNPUBLISHED):
                compared += 1
                both = name in ours.keys() and name in theirs.keys()  # noqa: SIM118
                if not both or not torch.equal(ours.get_tensor(name), theirs.get_tensor(name)):
                    different.append(name)
    return {
        "tensors": compared,
        "different": different[:5],
        "match": {"tensors that differ after export and conversion": [len(different), 0]},
    }
