"""Weights on disk: safetensors whose keys are the names inside `UnifiedModule`."""

from triptych.checkpoints.weight_files import (
    WeightFiles,
    find_all,
    full_name,
    hold,
    load_tensors,
    load_weights,
    read_metadata,
    require_files,
    save_weights,
    stored_names,
)

__all__ = [
    "WeightFiles",
    "find_all",
    "full_name",
    "hold",
    "load_tensors",
    "load_weights",
    "read_metadata",
    "require_files",
    "save_weights",
    "stored_names",
]
