"""Weights on disk: safetensors whose keys are the names inside `UnifiedModule`."""

from triptych.weights.files import WeightFiles, full_name, load_weights, read_metadata, save_weights

__all__ = ["WeightFiles", "full_name", "load_weights", "read_metadata", "save_weights"]
