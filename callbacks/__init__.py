"""Callbacks. A new one is a new file here, or a class in your own folder."""

if __name__ != "triptych.callbacks":
    raise ImportError(f"import this folder as 'triptych.callbacks', not as {__name__!r}")

from triptych.callbacks.checkpoint import Checkpoint
from triptych.callbacks.ema import EMA
from triptych.callbacks.evaluate import Evaluate
from triptych.callbacks.export_weights import ExportWeights
from triptych.callbacks.flow_loss import FlowLossByNoise
from triptych.callbacks.frozen_check import FrozenCheck
from triptych.callbacks.gradient_norms import GradientNorms
from triptych.callbacks.guards import NonFiniteGuard, SpikeGuard
from triptych.callbacks.image_writer import WritePictures
from triptych.callbacks.progress import ProgressBar
from triptych.callbacks.run_summary import RunSummary
from triptych.callbacks.sample_grid import SampleGrid
from triptych.callbacks.throughput import Throughput

__all__ = [
    "EMA",
    "Checkpoint",
    "Evaluate",
    "ExportWeights",
    "FlowLossByNoise",
    "FrozenCheck",
    "GradientNorms",
    "NonFiniteGuard",
    "ProgressBar",
    "RunSummary",
    "SampleGrid",
    "SpikeGuard",
    "Throughput",
    "WritePictures",
]
