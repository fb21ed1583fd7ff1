"""Callbacks. A new one is a file here, or a class in your own folder.

checkpoint        checkpoint schedule, and checks before a run resumes
ema               exponential moving average of the weights
evaluate          scores before, during and after training
export_weights    export of trained weights as safetensors
flow_loss         validation loss by noise level
frozen_check      verification that frozen parameters stay unchanged
gradient_norms    gradient norms, overall and by component
guards            skips steps that would harm the weights
image_writer      image files of `triptych predict`
progress          progress bar
run_summary       components, memory and cost before the first step
sample_grid       image grids during training
throughput        samples, tokens, FLOPs and MFU
_checkpoint_io    checkpoint writes, synchronous or in the background
_evaluation_mode  evaluation mode within training
_optional         base of callbacks that disable themselves if a run lacks their requirements
_resumed_log      log of a resumed run
_skip_step        skips of an optimizer step

Hooks of a fit, in the order of their calls; a callback overrides those that it needs. Each gets the
trainer and the module first, and runs on all ranks.

- setup: once per command, after the data is set up
- on_load_checkpoint, load_state_dict: in a resumed run, with the checkpoint, and with the state
  that this callback stored in it
- on_train_start: before the first batch
- on_train_batch_start: before each micro-batch
- on_before_backward: before the backward pass of a micro-batch, with its loss
- on_before_optimizer_step: after the last backward pass of a step, with the optimizer
- on_train_batch_end: after each micro-batch, and after the step if it was its last one
- on_validation_start, on_validation_batch_end, on_validation_end: around a validation and after
  each of its batches
- on_save_checkpoint, state_dict: when a checkpoint is written, to extend it, and to store the state
  of this callback in it
- on_train_end: after the last step
- on_fit_end: after a fit, also if nothing was left to train
- on_exception: when an exception ends the run
- teardown: last of all
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
