"""Saving of a model to a folder that `UnifiedPipeline.from_pretrained` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from triptych.checkpoints.weight_files import CREATED_BY, full_name, label_of, save_weights
from triptych.utils.atomic_write import replacing
from triptych.utils.errors import UserError

HEAD = """\
# Written by UnifiedPipeline.save_pretrained. The paths are absolute: change them here when the
# folder moves.
"""


def save_model(model: Any, folder: str | Path, description: dict[str, Any] | None) -> None:
    """Write model.yaml, the tokenizer and a weight file for each label.

    Args:
        model: a built UnifiedModule.
        folder: output folder.
        description: the `model` section that the model was built from.

    Raises:
        UserError: there is no such section, or the folder cannot be written.
    """
    if description is None:
        raise UserError(
            "this model was not loaded by from_pretrained, so its sizes are in no model file; "
            "write its weights by the callback ExportWeights."
        )
    home = Path(folder).resolve()
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}); choose another.") from error
    by_label: dict[str, dict[str, Tensor]] = {label: {} for label in CREATED_BY}
    for name, tensor in _stored(model):
        by_label[label_of(full_name(name))][full_name(name)] = tensor
    dtype = next(model.parameters()).dtype
    metadata = {"preset": model.preset, "stage": "saved"}
    files = {}
    for label, tensors in by_label.items():
        if tensors:
            files[label] = str(home / f"{label}.safetensors")
            save_weights(tensors, Path(files[label]), metadata, dtype)
    section = {**description, "weights": files, "loss_weights": {}, "trainable": None}
    if model.understanding is not None:
        vlm = section["understanding"]["init_args"]["vlm"]["init_args"]
        vlm["tokenizer"] = str(home / "tokenizer")
        model.understanding.vlm.tokenizer.save_pretrained(home / "tokenizer")
    text = HEAD + yaml.safe_dump({"model": section}, sort_keys=False)
    with replacing(home / "model.yaml") as file:
        file.write(text.encode())


def _stored(model: torch.nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters, shared ones once, and persistent buffers."""
    saved = model.state_dict().keys()
    return [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in saved)]
