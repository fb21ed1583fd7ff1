"""Callbacks. A new one is a file here, or a class in your own folder.

checkpoint        saves a run, and decides what may resume it
ema               exponential moving average of the weights
evaluate          scores before, during and after training
export_weights    trained weights as safetensors
flow_loss         validation loss by noise level
frozen_check      verifies that frozen parameters stay unchanged
gradient_norms    gradient norms, overall and by part
guards            skips steps that would harm the weights
image_writer      saves the images of `triptych predict`
progress          progress bar
run_summary       parts, memory and cost before the first step
sample_grid       grids of samples during training
throughput        samples, tokens, FLOPs and MFU
_checkpoint_io    writes checkpoints at once or in the background
_evaluation_mode  evaluation mode within training
_optional         callbacks that step aside where a run cannot serve them
_resumed_log      the log of a resumed run
_skip_step        skips an optimizer step
"""

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
from triptych.callbacks.image_writer import WriteImages
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
    "WriteImages",
]
