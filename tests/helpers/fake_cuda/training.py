"""Training steps of a stage by Lightning's Trainer on fake CUDA tensors, and their events."""

import logging

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.data import DataLoader, IterableDataset

from fake_cuda.model import CUDA, fake_mode, image_batch, place, stage_model, text_batch
from fake_cuda.monitor import DeviceMonitor
from triptych.callbacks import (
    EMA,
    GradientNorms,
    NonFiniteGuard,
    ProgressBar,
    SpikeGuard,
    Throughput,
)

FIRST, LAST = 1, 3
"""Steps between whose starts events are recorded; the first step fills caches."""


class Batches(IterableDataset):
    """The same batch for every step, with its own sample ids."""

    def __init__(self, make):
        self.make = make

    def __iter__(self):
        for _ in range(LAST + 1):
            yield self.make()


class Window(Callback):
    """Records from the start of one step to the start of another: whole turns of the loop."""

    def __init__(self, monitor):
        self.monitor, self.events = monitor, []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == FIRST:
            self.monitor.clear()
        if batch_idx == LAST:
            self.events = list(self.monitor.events)


def stage_batches(model, stage, size, cached):
    """A function that makes a batch of a stage; of joint training one for each objective."""
    images = stage in ("decoder", "encoder")

    def make():
        if stage == "stage1":
            return text_batch(model, size)
        if stage == "joint":
            both = {"understanding": text_batch(model, size)}
            return both | {"generation": image_batch(model, size, cached=cached)}
        return image_batch(model, size, cached=cached, pixels=images)

    return make


def events_of_steps(preset, stage, *flags, size=4, cached=True, change=None):
    """Events of two steps of a stage under bfloat16 autocast with the callbacks of a run.

    Args:
        change: function of the model, called before training: what a test breaks.
    """
    model = stage_model(preset, stage, "--model.build_decoder=false", *flags)
    if change is not None:
        change(model)
    FakeTensor.__deepcopy__ = lambda self, memo: self.detach().clone()
    model.configure_model = lambda: None
    model.trained_shapes = {name: t.shape for name, t in model.trained_state().items()}
    # Lightning moves the model by these, and torch refuses to swap fake parameters
    model.to = lambda device: place(model, CUDA)
    model.cpu = lambda: model
    monitor = DeviceMonitor(lambda dtype: True if dtype == torch.bool else 1)
    window = Window(monitor)
    callbacks = [window, LearningRateMonitor("step"), ProgressBar(), GradientNorms()]
    callbacks += [NonFiniteGuard(), SpikeGuard(), Throughput(), EMA(export=False)]
    logging.getLogger("lightning").setLevel(logging.ERROR)
    with fake_mode():
        make = stage_batches(model, stage, size, cached)
        trainer = Trainer(
            accelerator="gpu",
            devices=1,
            precision="bf16-mixed",
            max_steps=LAST + 1,
            gradient_clip_val=1.0,
            log_every_n_steps=1000,
            logger=CSVLogger("logs"),
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_model_summary=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        with monitor:
            trainer.fit(model, DataLoader(Batches(make), batch_size=None))
    return window.events
