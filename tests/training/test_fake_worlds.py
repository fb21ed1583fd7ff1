"""The 8B preset on 8, 32 and 256 ranks: fake tensors, and process groups that send nothing."""

import json
import os
import sys

import processes
import pytest
import torch
from builders import ROOT
from fake_cuda.model import stage_model

from triptych.cli.plan.memory import cached_encoder, fake_model
from triptych.cli.plan.request import read_request
from triptych.training.gpu_specs import gpu_of
from triptych.training.memory.replay import Layout, replay
from triptych.training.shard_sizes import checkpoint_plan, shard_numel
from triptych.training.synthetic_batches import stage_batches

FLOAT32 = 4
FLAGS = ["--model.build_decoder=false"]


def counted(**case):
    """Results of `fake_ranks.count` for each rank of a case, by rank."""
    case = {"preset": "blip3o_8b", "stage": "stage2", **case}
    command = [sys.executable, ROOT / "tests/helpers/fake_ranks.py", json.dumps(case)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = processes.run(command, seconds=600, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return {each["rank"]: each for each in json.loads(done.stdout.splitlines()[-1])}


def stage2(preset):
    """Stage 2 of a preset on the meta device, unsharded."""
    return stage_model(preset, "stage2", *FLAGS)


def trained_of(model):
    """Parameters that train, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module", params=["tiny", pytest.param("blip3o_8b", marks=pytest.mark.slow)])
def preset(request):
    return request.param


@pytest.fixture(scope="module")
def model(preset):
    return stage2(preset)


@pytest.fixture(scope="module")
def trained(model):
    return trained_of(model)


@pytest.fixture(scope="module")
def eight(preset):
    """The first of 8 ranks after a training step of one sample, everything sharded."""
    case = {"preset": preset, "world": 8, "ranks": [0], "frozen_params": "shard"}
    return counted(**case, step=1, resume=True)[0]


def cut(parameters, world, rank):
    """Elements of each parameter on a rank, by torch's own cut of its rows."""
    found = []
    for parameter in parameters:
        chunks = torch.empty(len(parameter), device="meta").chunk(world)
        rows = len(chunks[rank]) if rank < len(chunks) else 0
        found.append(rows * parameter[0].numel())
    return found


LARGE_IN_CI = [
    pytest.param("blip3o_8b", marks=pytest.mark.slow),
    pytest.param("tiny", marks=pytest.mark.sweep),
]
"""The presets of a test that starts a process for each, `make test-slow` the large one alone."""


def is_sharded(found, trained, world, rank):
    """Check that parameters, gradients and optimizer state are one rank's share, and no more."""
    expected = cut(trained.values(), world, rank)
    assert found["parameters"] == expected
    assert found["gradients"] == expected
    assert found["moments"] == {"exp_avg": expected, "exp_avg_sq": expected}
    assert found["state_bytes"] == 2 * FLOAT32 * sum(expected)
    # FSDP2 pads every shard to the size of the first
    padded = FLOAT32 * sum(shard_numel(p.shape, world) for p in trained.values())
    assert FLOAT32 * sum(expected) <= found["trained_bytes"] <= padded


def whole_bytes(trained):
    return FLOAT32 * sum(p.numel() for p in trained.values())


def test_eight_ranks_share_parameters_gradients_and_optimizer_state(eight, trained):
    is_sharded(eight, trained, 8, 0)


def test_eight_ranks_share_frozen_parameters(eight, model):
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert eight["frozen"] == cut(frozen, 8, 0)
    assert eight["frozen_bytes"] == 2 * sum(eight["frozen"])


def test_no_rank_gathers_all_that_trains(eight, model, trained, preset):
    """A block of the DiT is gathered while it computes, at most two at a time."""
    block = FLOAT32 * sum(p.numel() for p in model.generation.dit.blocks()[0].parameters())
    outside = whole_bytes(trained) - block * len(model.generation.dit.blocks())
    assert block <= eight["gathered"] <= outside + 2 * block < whole_bytes(trained)
    assert eight["before"] + eight["trained_bytes"] <= eight["after"]
    if preset == "blip3o_8b":  # activations of a sample are small beside what trains
        assert eight["gathered"] < whole_bytes(trained) / 8
        # shards, their gradients, and what blocks need while they compute
        assert eight["peak"] - eight["before"] < whole_bytes(trained)


def test_a_step_gathers_frozen_blocks_once_forward_and_once_backward(eight, model, preset):
    """The template, the prompts and the queries are computed while a layer is gathered."""
    language_model = model.understanding.vlm.model.model.language_model
    layer = gathered_bytes(language_model.layers[0], 8)
    assert eight["gathers"].count(layer) == 2 * len(language_model.layers)
    if preset == "blip3o_8b":  # in tiny it belongs to no unit of its own
        assert eight["gathers"].count(gathered_bytes(language_model.embed_tokens, 8)) == 1
        assert round(sum(eight["gathers"]) / 1e9, 1) == 38.3  # 38.1 without the tower


def gathered_bytes(module, world):
    """Bytes of an all-gather of the parameters of a frozen module."""
    return 2 * world * sum(shard_numel(p.shape, world) for p in module.parameters())


def test_a_plan_knows_peak_and_traffic_of_sharded_frozen_parameters(eight, preset):
    model = read_request(
        preset, "stage2", "fsdp2", devices=8, gpu=gpu_of("h100"), overrides=FLAGS
    ).model
    encoder = cached_encoder(model)
    trace = fake_model(model, "bf16-mixed").trace(lambda: stage_batches(model, 1))
    plan = replay(trace, Layout("shard", 8), 1, skipped=encoder, holds_skipped=True)
    assert plan.all_gather_bytes == pytest.approx(sum(eight["gathers"]), rel=0.05)
    assert plan.peak - plan.optimizer == pytest.approx(eight["peak"], rel=0.05)


def test_optimizer_state_of_a_gathered_checkpoint_is_sharded_again(eight):
    assert eight["resumed_bytes"] == eight["state_bytes"]


def test_eight_ranks_write_the_bytes_of_the_plan(eight, trained):
    has_the_planned_entries(eight, trained, 8, 0)


def has_the_planned_entries(found, trained, world, rank):
    """Compare torch's own plan of a rank with the arithmetic one."""
    plan = checkpoint_plan(trained, world, save_sharded=True)
    # a step number for each parameter, the same on all ranks: each plans it, one of them writes it
    numbers = [size for name, size in found["entries"] if name.endswith(".step")]
    assert numbers == [FLOAT32] * len(trained)
    own = sum(size for _, size in found["entries"]) - sum(numbers)
    assert own == plan.rank_bytes[rank] - (sum(numbers) if rank == 0 else 0)


@pytest.mark.parametrize(
    ("preset", "world"),
    [
        pytest.param("tiny", 256, marks=pytest.mark.slow),
        pytest.param("blip3o_8b", 32, marks=pytest.mark.sweep),
        pytest.param("blip3o_8b", 256, marks=pytest.mark.sweep),
    ],
)
def test_more_ranks_share_parameters_and_optimizer_state(preset, world):
    """First, middle and last: rows do not divide evenly, and some parameters have too few."""
    ranks, trained = [0, world // 2, world - 1], trained_of(stage2(preset))
    case = {"preset": preset, "world": world, "ranks": ranks, "frozen_params": "replicate"}
    found = counted(**case, resume=True)
    assert 0 in cut(trained.values(), world, world - 1)
    for rank in ranks:
        is_sharded(found[rank], trained, world, rank)
        assert found[rank]["resumed_bytes"] == found[rank]["state_bytes"]
        has_the_planned_entries(found[rank], trained, world, rank)


@pytest.mark.parametrize("preset", LARGE_IN_CI)
def test_the_last_of_many_ranks_takes_a_step(preset):
    """Empty shards take part in gathering, in the gradients and in the optimizer."""
    trained = trained_of(stage2(preset))
    found = counted(preset=preset, world=256, ranks=[255], frozen_params="shard", step=1)[255]
    is_sharded(found, trained, 256, 255)


@pytest.mark.parametrize(
    ("preset", "world"),
    [
        pytest.param("blip3o_8b", 8, marks=pytest.mark.slow),
        *(pytest.param("blip3o_8b", world, marks=pytest.mark.sweep) for world in (32, 256)),
        *(pytest.param("tiny", world, marks=pytest.mark.sweep) for world in (8, 32, 256)),
    ],
)
def test_ddp_sends_the_gradients_of_what_trains_alone(preset, world):
    trained = trained_of(stage2(preset))
    found = counted(preset=preset, world=world, ranks=[world - 1], strategy="ddp")[world - 1]
    assert found["world"] == world
    assert sum(found["buckets"]) == whole_bytes(trained)
    assert max(found["buckets"]) < 2**26  # several, which are sent during the backward pass


@pytest.mark.parametrize("world", [8, 32, 256])
def test_shards_of_all_ranks_together_are_the_parameters(world, trained):
    for parameter in trained.values():
        shares = [shard_numel(parameter.shape, world, rank) for rank in range(world)]
        assert sum(shares) == parameter.numel() and shares[0] == max(shares)


@pytest.mark.parametrize("world", [8, 32, 256])
def test_a_checkpoint_has_the_same_tensors_in_one_file_or_in_many(world, trained):
    one, many = (checkpoint_plan(trained, world, save_sharded=each) for each in (False, True))
    assert one.total_bytes == many.total_bytes == 3 * whole_bytes(trained) + FLOAT32 * len(trained)
    assert one.files == 2 and one.rank_bytes[1:] == (0,) * (world - 1)
    assert many.files == world + 3 and max(many.rank_bytes) == many.rank_bytes[0]
