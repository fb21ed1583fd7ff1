"""Training steps of a stage by Lightning's Trainer on fake CUDA tensors, and their events."""

import logging
import warnings
from contextlib import contextmanager
from unittest.mock import patch

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from lightning_utilities.core.apply_func import apply_to_collection
from torch import distributed
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.distributed import device_mesh
from torch.distributed.tensor import _dispatch
from torch.utils.data import DataLoader, IterableDataset

from fake_cuda.model import CUDA, fake_mode, place, stage_model
from fake_cuda.monitor import DeviceMonitor
from triptych.callbacks import (
    EMA,
    Checkpoint,
    Evaluate,
    FrozenCheck,
    GradientNorms,
    NonFiniteGuard,
    ProgressBar,
    SampleGrid,
    SpikeGuard,
)
from triptych.callbacks._checkpoint_io import DurableCheckpointIO
from triptych.interfaces import BatchContents
from triptych.training.fsdp import shard
from triptych.training.ranks import take_over
from triptych.training.strategies import ShardedStrategy
from triptych.training.synthetic_batches import stage_batches

FIRST, LAST = 1, 2
"""Steps between whose starts events are recorded; the first step fills caches."""
SHOWING = ("stage1", "edits", "joint")
"""Stages whose prompts show images."""
IMAGES = ("decoder", "encoder")
"""Stages whose losses take images."""


class Batches(IterableDataset):
    """Batches of the steps."""

    def __init__(self, make):
        self.make = make

    def __iter__(self):
        while True:
            yield self.make()


class Window(Callback):
    """Records from the start of one step to the start of the next: a whole turn of the loop."""

    def __init__(self, monitor, micro_batches):
        self.monitor, self.events, self.bytes = monitor, {}, {}
        self.first, self.last = FIRST * micro_batches, LAST * micro_batches
        self.wide = []  # frozen parameters in float32
        self.started = 0

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if self.started == self.first:
            self.monitor.clear()
        if self.started == self.last:
            self.events, self.bytes = dict(self.monitor.events), dict(self.monitor.bytes)
            trainer.should_stop = True
        self.started += 1


class ZerosCheckpointIO(DurableCheckpointIO):
    """Writes zeros for the values of fake tensors, and reads tensors as fake ones on the CPU."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        with unset_fake_temporarily():
            real = apply_to_collection(
                checkpoint, FakeTensor, lambda fake: torch.zeros(fake.shape, dtype=fake.dtype)
            )
            super().save_checkpoint(real, path)

    def load_checkpoint(self, path, map_location=None, weights_only=None):
        with unset_fake_temporarily():
            real = super().load_checkpoint(path)
        return apply_to_collection(
            real, torch.Tensor, lambda t: torch.empty(t.shape, dtype=t.dtype)
        )


class FakeCheckpoint(Checkpoint):
    """Checkpoint of the run.

    Args:
        every: number of steps between checkpoints; None saves none, though decides each step.
    """

    def __init__(self, every=None):
        super().__init__(every_n_train_steps=every or 1000)
        self.saves = every is not None

    def _monitor_candidates(self, trainer):
        with unset_fake_temporarily():  # the step's number is part of the file's name
            return super()._monitor_candidates(trainer)

    def _save_checkpoint(self, trainer, filepath):
        if self.saves:
            super()._save_checkpoint(trainer, filepath)


class SeldomCheck(FrozenCheck):
    """Decides in each step, and never checks: fake tensors have no bits."""

    def _check(self, trainer, module):
        pass


class SeldomGrid(SampleGrid):
    """Decides in each step, and never makes images."""

    def lacks(self, trainer, module):
        return None

    def _show(self, trainer, module):
        pass


class SeldomScore(Evaluate):
    """Decides in each step, and never scores."""

    def lacks(self, trainer, module):
        return None

    def _score(self, trainer, module):
        self.after = {}

    def on_train_end(self, trainer, module):
        pass


@contextmanager
def real_meshes():
    """Make device meshes outside of fake mode, as they read the numbers of their ranks.

    And let sharded parameters draw without comparing the random states of the ranks, as torch 2.11
    does on the host.
    """
    make = device_mesh.init_device_mesh

    def made(*args, **options):
        with unset_fake_temporarily():
            return make(*args, **options)

    with (
        patch.object(device_mesh, "init_device_mesh", made),
        patch.object(_dispatch, "is_rng_supported_mesh", lambda mesh: False),
    ):
        yield


def cached_features(model, size):
    """Features of `size` images, as a cache has them."""
    return torch.zeros(size, *model.target_encoder.feature_shape)


def stage_batch(model, stage, size, cached, micro_batches=1):
    """The batches of a micro-batch of a stage, by objective, as the loader counts them."""
    images = {"edits": stage == "edits"}
    if cached and stage not in ("stage1", "encoder"):
        images |= {"features": cached_features(model, size), "pixels": stage in IMAGES}
    batches = stage_batches(model, size, step=1, **images)
    for each in batches.values():
        each.may_show |= stage == "joint"  # a rank whose prompts show none, beside ranks with edits
        if micro_batches > 1:
            with unset_fake_temporarily():
                each.step_elements = micro_batches * int(each.elements)
    return batches


def trainer_of(*callbacks, every=None, **options):
    """A Trainer with the callbacks of a run; nothing is logged in its first steps.

    Args:
        every: number of steps between checkpoints.
    """
    logging.getLogger("lightning").setLevel(logging.ERROR)
    logging.getLogger("triptych").setLevel(logging.CRITICAL)  # guards read made-up losses
    warnings.filterwarnings("ignore")
    defaults = dict(
        accelerator="gpu",
        devices=1,
        precision="bf16-mixed",
        max_steps=10,
        gradient_clip_val=1.0,
        log_every_n_steps=1000,
        logger=CSVLogger("logs"),
        callbacks=[
            *callbacks,
            LearningRateMonitor("step"),
            ProgressBar(),
            GradientNorms(),
            NonFiniteGuard(),
            SpikeGuard(),
            EMA(export=False),
            SeldomCheck(1000),
            SeldomGrid(1000),
            SeldomScore(None, 1000),
            FakeCheckpoint(every),
        ],
        enable_model_summary=False,
        plugins=[ZerosCheckpointIO()],
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    return Trainer(**{**defaults, **options})


def step_events(
    preset, stage, *flags, size=2, cached=True, change=None, callbacks=(), resumed=None, **options
):
    """Events of a turn of the training loop under bfloat16, with the callbacks of a run.

    Args:
        change: function of the model, called before training: what a test breaks.
        callbacks: more callbacks.
        resumed: checkpoint to resume.
        options: of the Trainer.

    Returns:
        A `Window` with `events` (`Event` -> count) and `bytes`.
    """
    monitor = DeviceMonitor(lambda tensor: True if tensor.dtype == torch.bool else 1)
    micro_batches = options.get("accumulate_grad_batches", 1)
    window = Window(monitor, micro_batches)
    trainer = trainer_of(window, *callbacks, **options)
    take_over(trainer)
    contents = BatchContents(has_features=cached, shows_images=stage in SHOWING)
    flags = ["--model.build_decoder=false", *flags]
    model = stage_model(preset, stage, *flags, trainer=trainer, contents=contents)
    if isinstance(trainer.strategy, ShardedStrategy):
        ranks = distributed.get_world_size()
        mesh = device_mesh.init_device_mesh("cuda", (ranks,), mesh_dim_names=("data_parallel",))
        shard(model, mesh, "shard")
    if change is not None:
        change(model)
    FakeTensor.__deepcopy__ = lambda self, memo: self.detach().clone()
    # Lightning moves the model by these, and torch refuses to swap fake parameters
    model.to = lambda device: place(model, CUDA)
    model.cpu = lambda: model
    # no more than the start of the last step
    model.on_train_batch_start = lambda *_: -1 if window.started > window.last else None
    frozen = ((name, p) for name, p in model.named_parameters() if not p.requires_grad)
    window.wide = [name for name, p in frozen if p.dtype == torch.float32]
    with fake_mode(), real_meshes(), monitor:
        batches = Batches(lambda: stage_batch(model, stage, size, cached, micro_batches))
        trainer.fit(model, DataLoader(batches, batch_size=None), ckpt_path=resumed)
    return window
