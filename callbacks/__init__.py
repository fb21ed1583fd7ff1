"""Callbacks. A new one is a new file here, or a class in your own folder."""

if __name__ != "triptych.callbacks":
    raise ImportError(f"import this folder as 'triptych.callbacks', not as {__name__!r}")

from .checkpoint import Checkpoint
from .export import ExportWeights

__all__ = ["Checkpoint", "ExportWeights"]
