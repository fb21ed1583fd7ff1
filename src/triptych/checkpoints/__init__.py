"""Weights on disk: safetensors whose keys are the names inside `UnifiedModule`.

weight_files         safetensors weight files: reading, writing, checking
training_checkpoint  training checkpoints: reading, frozen weights, weight export
atomic_checkpoint    crash-safe checkpoint writes with SHA-256 manifests
run_folder           run folders, version_N by an exclusive mkdir
hashing              hashes of weights, independent of their files
key_prefixes         weight names without the prefixes of training wrappers
weight_checks        checks for invalid weights, with the name of the tensor
published            layouts of released checkpoints: convert and export
"""

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
