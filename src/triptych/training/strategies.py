"""Lightning strategies for `trainer.strategy.class_path`, with fixes for its own ones."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.strategy import Strategy
from torch import Tensor
from torch.distributed import checkpoint as sharded_files
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecision
from torch.distributed.fsdp.wrap import CustomPolicy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from triptych.training.execution import blocks_of
from triptych.training.fsdp import copy_into, gather_state_dict, shard_like
from triptych.training.muon import MuonWithAdamW
from triptych.training.ranks import announce_failures
from triptych.training.sharded_checkpoint import REST, load_data, read_into
from triptych.utils.errors import UserError


class _EndsTogether(Strategy):
    """A strategy whose ranks all end when one of them fails."""

    def setup_environment(self) -> None:
        super().setup_environment()
        announce_failures()


class LeanDDPStrategy(_EndsTogether, DDPStrategy):
    """DDP that ignores frozen parameters, and splits the work of Muon.

    Every rank reads frozen parameters from the same files: they are neither broadcast at the start
    or with the buffers, nor in the gradients' buckets. All ranks have the same gradients: each
    orthogonalizes a part of Muon's matrices.

    Args:
        find_unused_parameters: whether a step may leave trainable parameters unused, such as the
            vision tower if all data sets are text-only.
        process_group_backend: communication backend; null chooses by the device.
        collective_timeout: seconds after which a collective fails because a rank does not respond.
    """

    def __init__(
        self,
        find_unused_parameters: bool = False,
        process_group_backend: str | None = None,
        collective_timeout: float = 1800.0,
    ) -> None:
        super().__init__(
            timeout=timedelta(seconds=collective_timeout),
            process_group_backend=process_group_backend,
            find_unused_parameters=find_unused_parameters,
            gradient_as_bucket_view=True,  # the buckets are the gradients: no second copy
        )

    def _setup_model(self, model: torch.nn.Module) -> DistributedDataParallel:
        trained = self.lightning_module.trained_state()
        named = [*model.named_parameters(), *model.named_buffers()]
        frozen = [name for name, _ in named if name not in trained]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
        wrapped = super()._setup_model(model)
        fix_buckets(wrapped)
        return wrapped

    def setup_optimizers(self, trainer: Trainer) -> None:
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            if isinstance(optimizer, MuonWithAdamW):
                optimizer.share(torch.distributed.group.WORLD)


def fix_buckets(model: DistributedDataParallel) -> None:
    """Fix DDP's gradient buckets before the first step; collective.

    DDP rebuilds its buckets after the first step of a process, and the bucket of a gradient
    determines the order in which the ranks' values are added. From three ranks on, a resumed run
    would round its first step differently from an uninterrupted run. A backward pass of zeros, from
    the last parameter to the first, replaces the first step.
    """
    if model.find_unused_parameters:
        return  # DDP keeps its buckets then
    trained = [p for p in model.parameters() if p.requires_grad]
    zero = torch.zeros((), device=trained[0].device)
    for parameter in trained:
        zero = zero + (parameter * 0).sum()
    model.reducer.prepare_for_forward()
    model.reducer.prepare_for_backward([])
    zero.backward()
    model.reducer._rebuild_buckets()
    for parameter in trained:
        parameter.grad = None


class BlockFSDPStrategy(_EndsTogether, FSDPStrategy):
    """FSDP1 with one unit per block, so that frozen and trainable blocks never share one.

    Parameters outside of blocks are one more unit, gathered for the whole step, with trainable and
    frozen parameters of one dtype. Parts cannot be called outside of steps. Not tested.
    """

    def __init__(self, process_group_backend: str | None = None) -> None:
        super().__init__(process_group_backend=process_group_backend, state_dict_type="full")

    @property
    def mixed_precision_config(self) -> MixedPrecision | None:
        config = super().mixed_precision_config
        return config and replace(config, buffer_dtype=None)  # buffers stay float32

    def _setup_model(self, model: torch.nn.Module) -> torch.nn.Module:
        if self.root_device.type == "cpu":
            raise UserError("FSDP1 needs GPUs; on the CPU, TRAINER=fsdp2 splits a model as well.")
        blocks = set(blocks_of(model))
        self.kwargs["auto_wrap_policy"] = CustomPolicy(lambda module: module in blocks)
        return super()._setup_model(model)


class ShardedStrategy(_EndsTogether, ModelParallelStrategy):
    """FSDP2 over all ranks of all nodes; `BaseModule.configure_model` shards.

    A checkpoint contains trainable parameters and optimizer state, as with any other strategy.
    Gathered, it is identical to that of a single process, so that a run can resume with another
    strategy or number of ranks.

    Args:
        save_sharded: whether each rank writes its own shard to a folder, instead of one file that
            is gathered on the first rank. Such a folder is readable by any number of ranks, but
            only by this strategy.
        process_group_backend: communication backend; null chooses by the device.
        collective_timeout: seconds after which a collective fails because a rank does not respond.
    """

    def __init__(
        self,
        save_sharded: bool = False,
        process_group_backend: str | None = None,
        collective_timeout: float = 1800.0,
    ) -> None:
        super().__init__(
            save_distributed_checkpoint=save_sharded,
            process_group_backend=process_group_backend,
            timeout=timedelta(seconds=collective_timeout),
        )
        self.save_sharded = save_sharded

    def setup_environment(self) -> None:
        # Lightning's "auto" is tensor parallelism inside a node, which is not supported
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    # Saving -------------------------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        state = {name: t.detach() for name, t in self.lightning_module.trained_state().items()}
        return state if self.save_sharded else gather_state_dict(state, keep=self.is_global_zero)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        if self.save_sharded:
            return get_optimizer_state_dict(self.model, optimizer)
        return gather_state_dict(optimizer.state_dict(), keep=self.is_global_zero)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(self.broadcast(filepath))
        if not self.save_sharded:
            if path.is_dir() and self.is_global_zero:
                shutil.rmtree(path)  # of an earlier run that saved sharded
            Strategy.save_checkpoint(self, checkpoint, path, storage_options)
            return
        path.mkdir(parents=True, exist_ok=True)
        sharded_files.save(_tensors(checkpoint), checkpoint_id=path)
        if self.is_global_zero:
            rest = {k: v for k, v in checkpoint.items() if k not in _TENSORS}
            torch.save(rest, path / REST)

    # Loading ------------------------------------------------------------------------------------

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        if not path.is_dir():
            return Strategy.load_checkpoint(self, path, weights_only)
        # in place: first the state of this run, then the values from the files
        checkpoint = {"state_dict": self.lightning_module.trained_state()}
        if self.optimizers:
            states = [get_optimizer_state_dict(self.model, each) for each in self.optimizers]
            checkpoint["optimizer_states"] = states
        tensors = _tensors(checkpoint)
        read_into(path, tensors)
        return {
            **load_data(path / REST),
            **checkpoint,
            "optimizer_states": [tensors[name] for name in tensors if name != "state_dict"],
        }

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        own = self.lightning_module.trained_state()
        for name, tensor in checkpoint["state_dict"].items():
            if tensor is not own[name]:  # not read in place
                copy_into(own[name].detach(), tuple(tensor.shape), tensor.__getitem__)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            if any(isinstance(key, str) for key in state["state"]):
                set_optimizer_state_dict(self.model, optimizer, state)
            else:
                optimizer.load_state_dict(_split_like(optimizer, state))


_TENSORS = ("state_dict", "optimizer_states")


def _tensors(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Tensor entries of a checkpoint, which are stored in a file per rank."""
    states = checkpoint.get("optimizer_states", [])
    optimizers = {f"optimizer_{number}": state for number, state in enumerate(states)}
    return {"state_dict": checkpoint["state_dict"], **optimizers}


def _split_like(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """Shard the tensors of a full optimizer state like their parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def split(number: int, value: Any) -> Any:
        parameter = parameters[number]
        fits = isinstance(value, Tensor) and value.shape == parameter.shape
        return shard_like(value, parameter) if fits else value

    return {
        **state,
        "state": {
            number: {name: split(number, value) for name, value in values.items()}
            for number, values in state["state"].items()
        },
    }
