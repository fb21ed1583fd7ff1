"""Peak memory of a rank in training steps on fake CUDA tensors."""

import torch
from step_memory import step_peak
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from fake_cuda.model import CUDA, place, stage_model
from triptych.cli.recipes import recipe_of
from triptych.interfaces import BatchContents
from triptych.training.execution import recompute_blocks
from triptych.training.fsdp import shard
from triptych.training.memory.host_numbers import HostNumbers
from triptych.utils.documents import read_yaml

AUTOCAST = {"bf16-mixed": torch.bfloat16}


def memory(preset, stage, size, strategy="single", ranks=1, *words):
    """Peak bytes of a rank, with the precision of the recipe and features live.

    Args:
        strategy: "single", "ddp", "shard" or "replicate".
        words: "recompute", or flags of the model.
    """
    size, ranks = int(size), int(ranks)
    trainer = read_yaml(recipe_of(preset, stage)).get("trainer") or {}
    dtype = AUTOCAST.get(trainer.get("precision"))
    flags = ["--model.build_decoder=false", *(word for word in words if word.startswith("--"))]
    if dtype is not None:
        flags.append("--model.execution.frozen_dtype=bfloat16")
    shows = stage in ("stage1", "edits", "joint")
    model = stage_model(preset, stage, *flags, contents=BatchContents(False, shows))
    if strategy in ("shard", "replicate"):
        distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
        mesh = init_device_mesh("cuda", (ranks,), mesh_dim_names=("data_parallel",))
        shard(model, mesh["data_parallel"], strategy)
    with HostNumbers():
        place(model).train()
        if "recompute" in words:
            recompute_blocks(model)
        batch = {"dtype": dtype, "device": CUDA, "edits": stage == "edits"}
        peak = step_peak(model, size, keeps_gradients=strategy == "ddp", **batch)
    if distributed.is_initialized():
        distributed.destroy_process_group()
    return {"peak": peak}
