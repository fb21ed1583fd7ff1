"""Memory counted on fake tensors against real steps, and against FSDP2 under a fake group."""

import functools

import pytest
import torch
from fake_cuda import runtime
from fake_cuda.model import place, stage_model
from step_memory import step_peak
from torch import distributed
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from triptych.cli.plan.memory import MemoryPlan, Way
from triptych.cli.plan.request import read_request
from triptych.training.fsdp import shard
from triptych.training.gpu_specs import gpu_of
from triptych.training.memory.host_numbers import HostNumbers
from triptych.training.memory.placement import frozen_placement
from triptych.training.memory.replay import Layout, replay
from triptych.training.memory.storages import StorageCounter, rounded
from triptych.training.meta_init import parameters_on_meta
from triptych.training.synthetic_batches import stage_batches

RANKS = 4
WITHIN = 0.05
FLAGS = ("--model.build_decoder=false",)


@functools.cache
def plan_of(preset, stage, batch_size=None, *flags, stories=0.0):
    """The plan of a stage at a batch size, by default the recipe's; without stories by default."""
    return MemoryPlan(
        read_request(
            preset,
            stage,
            "single",
            devices=1,
            gpu=gpu_of("h100"),
            batch_size=batch_size,
            stories=stories,
            overrides=[*FLAGS, *flags],
        )
    )


def planned(plan, strategy, ranks, batch_size, recompute=False):
    """Peak of a rank at another batch size than that of the plan."""
    return replay(plan.trace(recompute), Layout(strategy, ranks), batch_size).peak


CPU_STEPS = [
    ("stage2", "single", 3),
    ("stage2", "ddp", 24),
    ("stage1", "ddp", 8),
    ("joint", "single", 4),
    ("decoder", "single", 16),
    pytest.param("stage1", "single", 2, marks=pytest.mark.slow),
    pytest.param("joint", "ddp", 16, marks=pytest.mark.slow),
    pytest.param("decoder", "ddp", 4, marks=pytest.mark.slow),
    pytest.param("edits", "single", 16, marks=pytest.mark.slow),
    pytest.param("encoder", "ddp", 16, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("stage, strategy, batch_size", CPU_STEPS)
def test_memory_of_a_real_step_on_the_cpu(stage, strategy, batch_size):
    """Of the tiny preset, from a plan at batch 8."""
    model = place(stage_model("tiny", stage, *FLAGS), torch.device("cpu")).train()
    found = step_peak(model, batch_size, keeps_gradients=strategy == "ddp", edits=stage == "edits")
    counted = planned(plan_of("tiny", stage, 8), strategy, 1, batch_size)
    assert counted == pytest.approx(found, rel=WITHIN)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "edits"])
def test_memory_of_a_real_step_with_stories(stage):
    model = place(stage_model("tiny", stage, *FLAGS), torch.device("cpu")).train()
    found = step_peak(model, 16, edits=stage == "edits", stories=0.35)
    plan = plan_of("tiny", stage, 8, stories=0.35)
    assert planned(plan, "single", 1, 16) == pytest.approx(found, rel=WITHIN)
    assert planned(plan_of("tiny", stage, 8), "single", 1, 16) < 0.97 * found


@pytest.fixture
def fake_group():
    """A process group of RANKS ranks in which nothing is sent."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    yield
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, strategy, batch_size",
    [
        ("stage2", "shard", 24),
        ("stage2", "replicate", 4),
        ("stage1", "shard", 16),
        ("joint", "shard", 4),
        ("edits", "replicate", 16),
        ("decoder", "shard", 16),
    ],
)
def test_memory_of_fsdp2(stage, strategy, batch_size, fake_group):
    mesh = init_device_mesh("cpu", (RANKS,), mesh_dim_names=("data_parallel",))
    model = stage_model("tiny", stage, *FLAGS)
    shard(model, mesh["data_parallel"], strategy)
    with HostNumbers():
        place(model, torch.device("cpu")).train()
        found = step_peak(model, batch_size, edits=stage == "edits")
    counted = planned(plan_of("tiny", stage, 8), strategy, RANKS, batch_size)
    assert counted == pytest.approx(found, rel=WITHIN)


VLM = "--model.understanding.init_args.vlm.init_args"
SHALLOW = (
    f"{VLM}.text.num_hidden_layers=3",
    f"{VLM}.vision.depth=4",
    f"{VLM}.vision.fullatt_block_indexes=[1]",
    "--model.generation.init_args.dit.init_args.depth=2",
    "--model.encoder.init_args.depth=2",
)
"""The published widths, shallow: counted in seconds."""
SLOW_STEPS = [
    ("blip3o_8b", "stage2", 32, "replicate", 8),
    ("blip3o_4b", "stage1", 4, "shard", 8),
]
SWEPT_STEPS = [
    (preset, stage, batch_size, strategy, ranks)
    for preset in ("blip3o_8b", "blip3o_4b", "siglip2_sana")
    for stage, sizes in {
        "stage1": (4, 16),
        "stage2": (8, 32),
        "stage3": (1,),
        "edits": (8, 32),
        "joint": (4, 16),
        "decoder": (4, 16),
        "encoder": (8, 32),
    }.items()
    for batch_size in sizes
    for strategy, ranks in (("ddp", 8), ("shard", 8), ("replicate", 32))
    if (preset, stage) != ("siglip2_sana", "encoder")  # it has none
    if stage != "encoder" or strategy == "ddp"  # cannot be sharded
    if (preset, stage, batch_size, strategy, ranks) not in SLOW_STEPS
] + [("siglip2_sana", "decoder", 32, "ddp", 4)]
"""Half and double of the recipes' batches."""


def memory_case(preset, stage, *numbers):
    """The words of `fake_cuda.cases` for a step, and the flags of its model."""
    flags = SHALLOW if stage != "decoder" else ()
    return ":".join(["memory", preset, stage, *map(str, numbers), *flags]), flags


@pytest.fixture(scope="module")
def on_fake_cuda(tmp_path_factory):
    """Function that counts a step; those of `SLOW_STEPS` in one process, which imports once."""
    folder, kept = tmp_path_factory.mktemp("stub"), {}

    def of(*step):
        if step not in kept:
            steps = SLOW_STEPS if step in SLOW_STEPS else [step]
            found = runtime.run(folder, *(memory_case(*each)[0] for each in steps))
            kept.update(zip(steps, found.values(), strict=True))
        return kept[step]

    return of


@pytest.mark.linux
@pytest.mark.cuda_stub
@pytest.mark.parametrize(
    "preset, stage, batch_size, strategy, ranks",
    [
        *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW_STEPS),
        *(pytest.param(*each, marks=pytest.mark.sweep) for each in SWEPT_STEPS),
    ],
)
def test_memory_of_a_step_on_fake_cuda_tensors(
    preset, stage, batch_size, strategy, ranks, on_fake_cuda
):
    """From a plan at the recipe's batch."""
    _, flags = memory_case(preset, stage)
    found = on_fake_cuda(preset, stage, batch_size, strategy, ranks)
    assert "error" not in found, found["error"]
    counted = planned(plan_of(preset, stage, None, *flags), strategy, ranks, batch_size)
    assert counted == pytest.approx(found["peak"], rel=WITHIN)


@pytest.mark.slow
def test_a_trace_of_one_batch_size_tells_of_others():
    """Also where gradients and casts of weights, which do not scale, are most of the memory."""
    plan = plan_of("tiny", "joint", 2)
    other = plan._model.trace(lambda: stage_batches(plan.request.model, 8, step=1), recompute=True)
    for strategy in ("ddp", "shard"):
        layout = Layout(strategy, RANKS)
        counted, exact = (replay(each, layout, 8) for each in (plan.trace(True), other))
        assert counted.peak == pytest.approx(exact.peak, rel=0.01)


def test_integers_that_the_host_reads_are_real():
    with HostNumbers():
        lengths = torch.arange(4) + torch.tensor([1, 2, 3, 4])
        assert lengths.tolist() == [1, 3, 5, 7] and int((lengths > 2).sum()) == 3
        values = torch.randn(3, 4)
        with pytest.raises(Exception, match="_local_scalar_dense"):
            values.sum().item()
        assert isinstance(values[lengths[:1]], FakeTensor)


def test_frozen_parameters_are_replicated_where_they_fit():
    assert frozen_placement(25, 80) == frozen_placement(40, 80) == "replicate"
    assert frozen_placement(41, 80) == frozen_placement(1, None) == "shard"


def test_storages_are_counted_until_they_are_freed():
    with StorageCounter() as counter:
        first = torch.zeros(1000)
        view = first[:10]
        second = first + 1
        assert counter.now == 2 * rounded(4000)
        del second
        assert counter.now == rounded(4000)
        del first
        assert counter.now == rounded(4000)
        del view
    assert counter.now == 0 and counter.peak == 2 * rounded(4000)


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        ([], {"vision_tower", "encoder"}),
        (["--model.decoder_negative=black_image", "--model.build_decoder=true"], {"vision_tower"}),
    ],
)
def test_parts_that_a_cached_stage_does_not_load_are_not_planned(flags, kept):
    """The tiny preset's head is tied; a blank image to guide against needs the encoder."""
    overrides = ["--model.build_decoder=false", *flags]
    options = {"devices": 2, "gpu": gpu_of("h100"), "overrides": overrides}

    def parameters(unused):
        model = read_request("tiny", "stage2", "ddp", **options).model
        model.unused = unused
        with parameters_on_meta():
            model.build()
        return sum(rounded(p.nbytes) for p in model.parameters())

    plan = MemoryPlan(read_request("tiny", "stage2", "ddp", **options))
    cached, live = (
        plan.memory(Way("ddp", recompute=False, cached=cached)).parameters
        for cached in (True, False)
    )
    buffers = plan.trace(False).buffers
    assert cached == buffers + parameters(kept)
    assert live == buffers + parameters({"vision_tower"})
    assert (cached < live) == ("encoder" in kept)
