"""Weights on disk: safetensors whose keys are the names inside `UnifiedModule`."""

from triptych.weights.files import load_weights, read_metadata, save_weights

__all__ = ["load_weights", "read_metadata", "save_weights"]
