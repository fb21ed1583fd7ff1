"""Base LightningModule: building, loading, freezing, optimizing and logging."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from triptych.backbones.attention import use_xformers
from triptych.checkpoints import WeightFiles, find_all, load_tensors, load_weights, stored_names
from triptych.checkpoints.hashing import weights_hash
from triptych.checkpoints.weight_checks import require_state
from triptych.checkpoints.weight_files import CREATED_BY, full_name, label_of
from triptych.interfaces import Batch, ImageEncoder, LazyModule, Preprocessing, batches_in
from triptych.modules.initialization import build_own, build_part, start_at_random
from triptych.modules.loss_weighting import Means, OptimizerStep
from triptych.training.execution import Execution, cast_frozen, compile_blocks, recompute_blocks
from triptych.training.freezing import freeze_all_but, frozen_modules, is_unused_parameter
from triptych.training.fsdp import shard
from triptych.training.memory.placement import frozen_placement, smallest_memory
from triptych.training.meta_init import materialize, parameters_on_meta
from triptych.training.optimizer import Optimization, make_optimizer, make_schedule
from triptych.utils.errors import UserError
from triptych.utils.precision import ExactBuffers, own_precision
from triptych.utils.rng import Draw

Metrics = dict[str, Tensor]
FSDP1 = "_fsdp_wrapped_module."  # what the older FSDP puts into the names of parameters


class BaseModule(ExactBuffers, LightningModule):
    """A LightningModule of networks that are built late.

    A subclass writes `step`, the maths of one loss; the composer calls it. The weight of a batch
    among others is set only in `loss_weighting`.

    Args:
        optimization: optimizer and schedule.
        trainable: module paths or globs of what trains; None is everything.
        weights: files to start from, by label; see `triptych.checkpoints`.
        seed: random seed of all draws in training.
        execution: dtype of frozen parts, compilation, and sharding over ranks.
    """

    def __init__(
        self,
        *,
        optimization: Optimization | None = None,
        trainable: list[str] | None = None,
        weights: WeightFiles | None = None,
        seed: int = 0,
        execution: Execution | None = None,
    ) -> None:
        super().__init__()
        self.optimization = optimization or Optimization()
        self.trainable = ["*"] if trainable is None else trainable
        self.weights, self.seed = weights or WeightFiles(), seed
        self.execution = execution or Execution()
        self.trained: set[str] | None = None
        self.trained_before: dict[str, Tensor] = {}
        """By full name, tensors of a training checkpoint that win over those of `weights`."""
        self.trained_shapes: dict[str, torch.Size] = {}
        """Full shapes of `trained_state`; some strategies show a rank only its own part."""
        self.left_out_paths: tuple[str, ...] = ()
        """Paths of submodules that weight files may have and this run leaves out."""

    def step(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Loss and metrics of one batch: scalars, means over `batch.elements`."""
        raise NotImplementedError

    def random_draws(self) -> list[Draw]:
        """Random draws of `step` for image generation batches, which the loader makes ahead."""
        return []

    def preprocessing(self) -> Preprocessing:
        """Settings that the DataModule needs to build this panel's batches."""
        raise UserError(f"{type(self).__name__} says nothing of its inputs; train it composed.")

    def build(self) -> None:
        """Create the parameters of this panel and of its parts, unless they are built.

        Draws follow from torch's seed and a part's name, not from what else is built.
        """
        for name, module in list(self.named_children()):
            if isinstance(module, LazyModule):
                build_part(name, module)
        build_own(self)

    def build_own(self) -> None:
        """Create the parameters that are in none of the parts."""

    # Lightning hooks, in the order of the style guide -------------------------------------------

    def configure_model(self) -> None:
        if self.trained is not None:
            return  # Lightning calls this hook once per fit, validate, test and predict
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            with parameters_on_meta():
                self.build()
            absent = tuple(full_name(path + ".") for path in self.left_out_paths)
            stored = stored_names(find_all(self.weights).values(), self, absent)
            stored |= self.trained_before.keys()
            freeze_all_but(self, self.trainable)
            self._require_weights(stored)  # before memory is taken
            start_at_random(self, stored)
        self.trained = freeze_all_but(self, self.trainable)
        execution = self.execution
        cast_frozen(self, self._frozen_dtype())
        self.trained_shapes = {name: t.shape for name, t in self.trained_state().items()}
        if self.device_mesh is not None:
            self._shard(self.device_mesh["data_parallel"])
        materialize(self, self._home())
        load_weights(self, self.weights, absent)
        load_tensors(self, self.trained_before, "the training checkpoint", absent)
        self.trained_before = {}
        if execution.attention == "xformers":
            use_xformers(self, self._home())
        if execution.compile:
            compile_blocks(self, execution.compile_backend)
        if execution.activation_checkpointing:
            recompute_blocks(self)
        # Lightning does not call `train` before the first step: what is new is in training mode,
        # and a frozen encoder would normalize by its batches.
        self.train(self.training)

    def training_step(self, batch: Batch | dict[str, Batch], batch_idx: int) -> Tensor:
        micro_batches = self.trainer.accumulate_grad_batches
        if batch_idx % micro_batches == 0:  # when Lightning makes the gradients zero
            self._step_so_far = OptimizerStep(micro_batches)
        batches = batches_in(batch)
        losses = [self._step_so_far.weighted(each, *self.step(each)) for each in batches]
        self.log_epochs(batches)
        return torch.stack(losses).sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._log_means("train", self._step_so_far.means)

    def on_validation_epoch_start(self) -> None:
        self._evaluated = Means()

    def validation_step(self, batch: Batch | dict[str, Batch], batch_idx: int) -> Tensor:
        """The loss of the batch alone, of all objectives, scalar."""
        losses = []
        for each in batches_in(batch):
            loss, metrics = self.step(each)
            self._evaluated.add(each, loss, metrics)
            losses.append(loss)
        return torch.stack(losses).sum()

    def on_validation_epoch_end(self) -> None:
        self._log_means("val", self._evaluated)

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def test_step(self, batch: Batch | dict[str, Batch], batch_idx: int) -> Tensor:
        return self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._log_means("test", self._evaluated)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's, also beside a fused optimizer under bfloat16.

        Lightning (2.6) refuses that pair under every mixed precision, for the sake of float16's
        scaler, which the optimizer undoes only after gradients were clipped; bfloat16 has none.
        """
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0.0, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = make_optimizer(self, self.optimization)
        steps = self.trainer.max_steps
        if steps < 1:
            raise UserError("set --trainer.max_steps: the learning-rate schedule needs its length.")
        schedule = make_schedule(optimizer, steps, self.optimization)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    # Checkpoints: what trains, and nothing else -------------------------------------------------

    def trained_state(self) -> dict[str, Tensor]:
        """Parameters that train, and the buffers of modules that train."""
        names = self.trained or set()
        holders = {name.rpartition(".")[0].split(".")[0] for name in names}
        frozen = {id(m) for top in frozen_modules(self) for m in top.modules()}
        named = ((name.replace(FSDP1, ""), p) for name, p in self.named_parameters())
        state = {name: p for name, p in named if name in names}
        for path, module in self.named_modules():
            if id(module) in frozen or path.split(".")[0] not in holders:
                continue
            for name, buffer in module.named_buffers(recurse=False):
                if name not in module._non_persistent_buffers_set:
                    state[f"{path}.{name}" if path else name] = buffer
        return state

    @property
    def strict_loading(self) -> bool:
        return False  # a checkpoint has no frozen parts; on_load_checkpoint checks the rest

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = self.trained_state()
        checkpoint["state_dict"] = {
            name: tensor for name, tensor in checkpoint["state_dict"].items() if name in kept
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored = checkpoint["state_dict"]
        expected = self.trained_shapes
        different = sorted(
            name
            for name in stored.keys() | expected.keys()
            if name not in stored or name not in expected or stored[name].shape != expected[name]
        )
        if different:
            raise UserError(
                "the checkpoint is of another stage or preset: it and this run disagree on "
                f"{len(different)} of {len(expected)} trained tensors, {different[0]} for one; "
                "resume it with the configuration that made it."
            )
        require_state(stored, self.trained_state(), "the checkpoint")

    # Others -------------------------------------------------------------------------------------

    def cpu(self) -> BaseModule:
        """Move to the CPU, as Lightning does at the end, also after `configure_model` raised.

        Parameters on the meta device stay there: moving them would fail, and hide the refusal.
        """
        return self if any(p.is_meta for p in self.parameters()) else super().cpu()

    def feature_config_of(self, encoder: ImageEncoder, image_size: int) -> dict[str, Any]:
        """All that decides the features of an image: settings, weights, and how it is cut.

        Reads the weight files; nothing need be built. Features of the same identity are the same.
        """
        path = next(name for name, module in self.named_modules() if module is encoder)
        return {
            **encoder.feature_config(),
            "image_size": image_size,
            "weights": weights_hash(self.weights, full_name(path + ".")),
        }

    def train(self, mode: bool = True) -> BaseModule:
        super().train(mode)
        if self.trained is not None:
            for module in frozen_modules(self):
                module.eval()
        return self

    def _log_means(self, prefix: str, means: Means) -> None:
        """Log loss and metrics of an optimizer step, or of a whole evaluation."""
        every_step = prefix == "train"
        options = {"batch_size": 1, "on_step": every_step, "on_epoch": not every_step}
        for name, value in means.over_all_ranks().items():
            # Not prog_bar: Lightning would read it in every step. The ProgressBar takes the loss.
            self.log(f"{prefix}/{name}", value, **options)

    def log_epochs(self, batches: list[Batch]) -> None:
        """Log how far training has come in each data set."""
        epochs = {
            # On the host: Lightning would copy a plain number to the device, and wait.
            f"data/epochs/{name}": torch.tensor(number)
            for each in batches
            for name, number in each.epochs.items()
        }
        self.log_dict(epochs, batch_size=len(batches[0]), on_step=True, on_epoch=False)

    def _shard(self, mesh: DeviceMesh) -> None:
        """Split over the ranks of `mesh`, which Lightning's ModelParallelStrategy brings."""
        placement = self.execution.frozen_params
        if placement == "auto":
            frozen = sum(p.nbytes for p in self.parameters() if not p.requires_grad)
            placement = frozen_placement(frozen, smallest_memory(self._home(), mesh))
        shard(self, mesh, placement)

    def _frozen_dtype(self) -> torch.dtype:
        if self.execution.frozen_dtype is not None:
            return getattr(torch, self.execution.frozen_dtype)
        mixed = self._trainer is not None and self._trainer.precision == "bf16-mixed"
        return torch.bfloat16 if mixed else torch.float32

    def _home(self) -> torch.device:
        """Device of this rank; the CPU without a Trainer."""
        trainer = self._trainer
        return torch.device("cpu") if trainer is None else trainer.strategy.root_device

    def _require_weights(self, filled: set[str]) -> None:
        """A frozen part of random numbers is a mistake: name it and the command that makes it."""
        for own_name, parameter in self.named_parameters():
            name = full_name(own_name)
            if not parameter.requires_grad and name not in filled and not is_unused_parameter(name):
                label = label_of(name)
                raise UserError(
                    f"this stage freezes {name.split('.')[0]!r} but has no weights for {name}; "
                    f"`{CREATED_BY[label]}` makes them, --model.weights.{label}=FILE names them."
                )


@torch.no_grad()
def target_features(batch: Batch, encoder: ImageEncoder) -> Tensor:
    """Features float32 [B,C,h,w]: cached ones of the batch, else the frozen encoder's.

    Contiguous in both cases: another memory layout would change the bits of later computations.
    """
    if batch.target_features is None:
        return encoded(encoder, batch.target_pixels).contiguous()
    features = batch.target_features.float()
    if batch.has_features is None:
        return features
    missing = (~batch.has_features).nonzero().flatten().to(features.device, non_blocking=True)
    return features.index_copy(0, missing, encoded(encoder, batch.target_pixels[missing]))


@torch.no_grad()
def encoded(encoder: ImageEncoder, pixels: Tensor) -> Tensor:
    """Features float32 [B,C,h,w] of images uint8 [B,3,H,W], by a frozen encoder."""
    with own_precision(encoder):
        return encoder(pixels).float()
