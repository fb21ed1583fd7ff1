"""Memory counted on fake tensors against real steps, and against FSDP2 under a fake group."""

import pytest
import torch
from torch import distributed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from triptych.cli.plan.batches import stage_batches
from triptych.cli.plan.memory import MemoryPlan, Way, cached_encoder, fake_model
from triptych.cli.plan.request import read_request
from triptych.interfaces import batches_in
from triptych.training.freezing import freeze_all_but
from triptych.training.fsdp import shard
from triptych.training.gpu_specs import gpu_of
from triptych.training.memory.fake_step import HostReads
from triptych.training.memory.placement import frozen_placement
from triptych.training.memory.replay import Layout, replay
from triptych.training.memory.storages import StorageCounter, rounded
from triptych.training.meta_init import materialize, parameters_on_meta
from triptych.training.optimizer import make_optimizer

RANKS = 4
WITHIN = 0.05


def tiny(stage="stage2"):
    """The tiny preset's model of a stage, not built."""
    flags = ["--model.build_decoder=false"]
    return read_request(
        "tiny", stage, "single", devices=1, gpu=gpu_of("h100"), overrides=flags
    ).model


def frozen(model):
    """Build `model` on the meta device, as `configure_model` does."""
    with parameters_on_meta():
        model.build()
    model.trained = freeze_all_but(model, model.trainable)
    return model


def peak(model, batch_size, keeps_gradients, counted_parameters):
    """Peak bytes of the second of two steps, by the storages of its tensors."""
    optimizer = make_optimizer(model, model.optimization)
    counter = StorageCounter()
    for tensor in counted_parameters:
        counter.add(tensor)
    plain = torch.UntypedStorage.resize_

    def resize(storage, size):
        result = plain(storage, size)
        counter.resized(storage)
        return result

    with pytest.MonkeyPatch.context() as patch, counter, HostReads():
        patch.setattr(torch.UntypedStorage, "resize_", resize)
        for _ in range(2):
            counter.peak = counter.now
            batches = batches_in(stage_batches(model, batch_size))
            loss = torch.stack([model.step(batch)[0] for batch in batches]).sum()
            torch.autograd.backward(loss)
            del loss, batches
            optimizer.step()
            optimizer.zero_grad(set_to_none=not keeps_gradients)
    return counter.peak


@pytest.fixture(scope="module")
def stage2():
    """A trace of the tiny preset's stage 2 at batch 8, and the encoder whose features it caches."""
    model = tiny()
    encoder = cached_encoder(model)
    return fake_model(model, "32-true").trace(lambda: stage_batches(model, 8)), encoder


@pytest.mark.parametrize("batch_size", [3, 24])
@pytest.mark.parametrize("strategy", ["single", "ddp"])
def test_memory_of_a_real_step_on_the_cpu(stage2, strategy, batch_size):
    model = frozen(tiny())
    materialize(model, torch.device("cpu"))
    model.train()
    everything = [*model.parameters(), *model.buffers()]
    found = peak(model, batch_size, strategy == "ddp", everything)
    counted = replay(stage2[0], Layout(strategy, 1), batch_size)
    assert counted.peak == pytest.approx(found, rel=WITHIN)


@pytest.fixture
def fake_group():
    """A process group of RANKS ranks in which nothing is sent."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    yield
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["shard", "replicate"])
def test_memory_of_fsdp2(stage2, fake_group, strategy):
    mesh = init_device_mesh("cpu", (RANKS,), mesh_dim_names=("data_parallel",))
    model = frozen(tiny())
    with FakeTensorMode(allow_non_fake_inputs=True):
        shard(model, mesh["data_parallel"], strategy)
        materialize(model, torch.device("cpu"))
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = torch.empty_like(buffer)
        model.train()
        everything = [getattr(p, "_local_tensor", p) for p in model.parameters()]
        found = peak(model, 24, False, everything)
    counted = replay(stage2[0], Layout(strategy, RANKS), 24)
    assert counted.peak == pytest.approx(found, rel=WITHIN)


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
