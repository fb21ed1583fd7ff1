"""One rank of a large world: sizes counted on fake tensors, over torch's fake process group.

A program, as process groups are global: `python tests/helpers/fake_ranks.py CASE` prints what
`count` or `count_ddp` returns for each rank of the case; both are JSON. Nothing is sent, and
nothing is computed.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import weakref
from typing import Any

import torch
from fake_cuda.model import fake_mode, stage_model
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import distributed
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from triptych.training.fsdp import gather_state_dict, shard
from triptych.training.meta_init import materialize
from triptych.training.optimizer import make_optimizer
from triptych.training.strategies import LeanDDPStrategy, ShardedStrategy
from triptych.training.synthetic_batches import caption_batch

PRODUCTS = {"mm", "addmm", "bmm", "linear"}
CPU = torch.device("cpu")
ADAMW = "--model.optimization.optimizer=null"
"""Of the published recipes, whose state a plan knows."""
FLAGS = ["--model.build_decoder=false", "--model.execution.frozen_dtype=bfloat16"]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this rank stores."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def stored(tensors: Any) -> int:
    """Bytes of the storages of `tensors` on this rank, each counted once."""
    storages = [local(each).untyped_storage() for each in tensors]
    return sum({each._cdata: each.nbytes() for each in storages}.values())


def elements(tensors: Any) -> list[int]:
    """Elements of each tensor on this rank."""
    return [local(each).numel() for each in tensors]


class Storages(TorchDispatchMode):
    """Counts live storages, the bytes of gathered parameters, and all-gathers.

    torch's MemTracker hooks frozen parameters, which fails, and refuses modules that are called
    twice in a step.
    """

    def __init__(self, trained: list[tuple[torch.nn.Module, str]]) -> None:
        super().__init__()
        self.trained = trained
        self.live: dict[int, int] = {}
        self.now = self.peak = self.gathered = 0
        self.gathers: list[int] = []  # bytes of each all-gather

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.overloadpacket.__name__
        if name == "_local_scalar_dense":
            return 1  # a sample number, which the host reads
        if name in PRODUCTS:
            whole = [getattr(*each) for each in self.trained]
            whole = [each for each in whole if not isinstance(each, DTensor)]
            self.gathered = max(self.gathered, stored(whole) if whole else 0)
        if name == "_allgather_base_":
            self.gathers.append(args[0].nbytes)
        result = op(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor):
                self.add(local(each).untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key not in self.live:
            weakref.finalize(storage, self.remove, key)
            self.live[key] = 0
        self.resized(key, storage.nbytes())

    def resized(self, key: int, size: int) -> None:
        self.now += size - self.live[key]
        self.live[key] = size
        self.peak = max(self.peak, self.now)

    def remove(self, key: int) -> None:
        self.now -= self.live.pop(key)

    def __enter__(self):
        plain = torch.UntypedStorage.resize_  # FSDP2 frees and refills gathered parameters by it

        def resize(storage, size):
            result = plain(storage, size)
            if id(storage) in self.live:
                self.resized(id(storage), size)
            return result

        self.plain, torch.UntypedStorage.resize_ = plain, resize
        return super().__enter__()

    def __exit__(self, *exception):
        torch.UntypedStorage.resize_ = self.plain
        return super().__exit__(*exception)


def count_ddp(case: dict[str, Any], rank: int) -> dict[str, Any]:
    """Bytes of DDP's buckets on one rank, which are its gradients.

    Trained parameters have addresses but no memory, as nothing is written to them; so the first
    broadcast is left out, and the backward pass of `fix_buckets`. Frozen ones stay on meta, which
    DDP refuses unless it ignores them.
    """
    world = case["world"]
    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    model = stage_model(case["preset"], case["stage"], *FLAGS)
    for module in model.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            if parameter.requires_grad:
                setattr(module, name, torch.nn.Parameter(torch.empty_like(parameter, device=CPU)))
    strategy = LeanDDPStrategy(find_unused_parameters=True, process_group_backend="fake")
    strategy.parallel_devices, strategy.cluster_environment = [CPU], LightningEnvironment()
    strategy._lightning_module = model
    strategy._ddp_kwargs["init_sync"] = False
    known = strategy._setup_model(model)._get_ddp_logging_data()
    distributed.destroy_process_group()
    buckets = [int(size) for size in known["bucket_sizes"].split(", ")]
    return {"rank": rank, "world": known["world_size"], "buckets": buckets}


def count(case: dict[str, Any], rank: int) -> dict[str, Any]:
    """Sizes on one rank: of parameters, and of an optimizer step; of a training step on request."""
    world = case["world"]
    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    mesh = distributed.device_mesh.init_device_mesh("cpu", (world,))
    model = stage_model(case["preset"], case["stage"], *FLAGS, ADAMW)
    model.train()
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    shard(model, mesh, case["frozen_params"])
    found: dict[str, Any] = {"rank": rank}
    with fake_mode():
        materialize(model, CPU)
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(CPU)
        parameters = dict(model.named_parameters())
        trained = [parameters[name] for name in names]
        optimizer = make_optimizer(model, model.optimization)
        places = [name.rpartition(".")[::2] for name in names]
        if case.get("step"):
            storages = Storages([(model.get_submodule(path), name) for path, name in places])
            features = torch.zeros(case["step"], *model.target_encoder.feature_shape)
            batch = caption_batch(model, len(features), features=features, pixels=False)
            with storages:
                for parameter in parameters.values():
                    storages.add(local(parameter).untyped_storage())
                found["before"] = storages.now
                with torch.autocast("cpu", torch.bfloat16):
                    loss = model.step(batch)[0]
                loss.backward()
                del loss, batch
                found |= {"gathered": storages.gathered, "gathers": storages.gathers}
                found |= {"peak": storages.peak, "after": storages.now}
        else:
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
        found["gradients"] = elements(parameter.grad for parameter in trained)
        optimizer.step()
        found["parameters"] = elements(trained)
        found["trained_bytes"] = stored(trained)
        frozen = [p for p in parameters.values() if not p.requires_grad]
        found["frozen_bytes"], found["frozen"] = stored(frozen), elements(frozen)
        states = [optimizer.state[parameter] for parameter in trained]
        moments = {key for state in states for key in state} - {"step"}
        found["moments"] = {key: elements(state[key] for state in states) for key in moments}
        found["state_bytes"] = stored(state[key] for state in states for key in moments)
        entries = {"state_dict": {name: parameters[name].detach() for name in names}}
        entries["optimizer_0"] = get_optimizer_state_dict(model, optimizer)
        with unset_fake_temporarily():  # it reads offsets
            planner = DefaultSavePlanner()
            planner.set_up_planner(entries, is_coordinator=rank == 0)
            plan = planner.create_local_plan()
        found["entries"] = [
            [str(item.index.fqn), item.tensor_data.chunk.sizes.numel() * 4]
            for item in plan.items
            if item.tensor_data is not None
        ]
        if case.get("resume"):
            whole = gather_state_dict(optimizer.state_dict())
            resumed = make_optimizer(model, model.optimization)
            strategy = ShardedStrategy(process_group_backend="fake")
            strategy.optimizers = [resumed]
            strategy.load_optimizer_state_dict({"optimizer_states": [whole]})
            states = [resumed.state[parameter] for parameter in trained]
            found["resumed_bytes"] = stored(state[key] for state in states for key in moments)
    distributed.destroy_process_group()
    return found


if __name__ == "__main__":
    case = json.loads(sys.argv[1])
    tasks = [(case, rank) for rank in case["ranks"]]
    # each in a process of its own: torch caches the place of a rank by its mesh, and all are equal
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        count_rank = count_ddp if case.get("strategy") == "ddp" else count
        print(json.dumps(pool.starmap(count_rank, tasks, chunksize=1)))
