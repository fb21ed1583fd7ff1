"""Callbacks that follow the numbers of a training: norms, loss by noise, frozen parameters."""

from types import SimpleNamespace

import pytest
import torch
from builders import data, unified
from lightning import Callback, LightningModule
from line_model import Line, fit, logged
from torch import nn

from triptych.callbacks import (
    EMA,
    FlowLossByNoise,
    FrozenCheck,
    GradientNorms,
    NonFiniteGuard,
    ProgressBar,
    SpikeGuard,
    Throughput,
)
from triptych.callbacks.frozen_check import checksum
from triptych.callbacks.guards import Step
from triptych.utils.errors import UserError
from triptych.utils.rng import normal

# --- GradientNorms --------------------------------------------------------------------------------


def test_gradient_norms_of_each_part_before_clipping(tmp_path):
    class Norms(Callback):
        def __init__(self):
            self.seen = {}

        def on_before_optimizer_step(self, trainer, module, optimizer):
            grads = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
            self.seen[trainer.global_step] = grads

    norms = Norms()
    fit(Line(), tmp_path, GradientNorms(), norms, every=2, gradient_clip_val=1e-3)
    for part in ("first", "second", "all"):
        found = logged(tmp_path, f"grad_norm/{part}")
        assert list(found) == [1, 3, 5]
        for step, value in found.items():
            chosen = [g for n, g in norms.seen[step].items() if part in (n.split(".")[0], "all")]
            expected = torch.cat([g.flatten() for g in chosen]).double().norm().item()
            assert value == pytest.approx(expected, rel=1e-5) and value > 1e-3


def test_parts_are_named_as_people_name_them(tmp_path, shapes_folder, weights):
    fit(
        unified("stage2", weights=weights),
        tmp_path,
        GradientNorms(),
        steps=1,
        datamodule=data(shapes_folder),
    )
    header = (tmp_path / "run/metrics.csv").read_text().splitlines()[0].split(",")
    shown = {name for name in header if name.startswith("grad_norm/")}
    assert shown == {f"grad_norm/{p}" for p in ("generation.queries", "generation.dit", "all")}


def test_the_progress_bar_reads_the_loss_in_logged_steps_only(tmp_path):
    class Shown(Callback):
        def __init__(self):
            self.losses = []

        def on_train_batch_end(self, trainer, module, *_):
            self.losses.append(bar.get_metrics(trainer, module)["train/loss"])

    bar, shown, model = ProgressBar(), Shown(), Line()
    fit(model, tmp_path, bar, shown, every=3, enable_progress_bar=True)
    first, third, sixth = (pytest.approx(model.losses[n], rel=1e-6) for n in (0, 2, 5))
    assert shown.losses == [first, first, third, third, third, sixth]


# --- FlowLossByNoise ------------------------------------------------------------------------------


def test_flow_loss_by_noise_is_the_loss_at_that_time(tmp_path, shapes_folder, weights):
    model, seen = unified("stage2", weights=weights), []
    source = data(shapes_folder)

    class Batches(Callback):
        def on_validation_batch_end(self, trainer, module, outputs, batch, *_):
            with torch.no_grad():
                seen.append((len(batch), [reference(module, batch, t) for t in (0.25, 1.0)]))

    trainer = fit(
        model,
        tmp_path,
        FlowLossByNoise((0.25, 1.0)),
        Batches(),
        steps=1,
        datamodule=source,
        val_check_interval=1,
    )
    total = sum(size for size, _ in seen)
    for number, name in enumerate(("val/flow/t=0.25", "val/flow/t=1")):
        expected = sum(size * losses[number] for size, losses in seen) / total
        (value,) = logged(tmp_path, name).values()
        assert value == pytest.approx(expected, rel=1e-5)
    before = trainer.callback_metrics["val/flow/t=0.25"]
    trainer.validate(model, datamodule=source, verbose=False)
    assert trainer.callback_metrics["val/flow/t=0.25"] == before  # the same noises again


def reference(module, batch, t):
    """The flow loss written out, of weights as they are."""
    features = module.encoder(batch.target_pixels)
    noise = normal(features.shape[1:], 0, "loss-at", batch.sample_ids)
    states = module.understanding.vlm.condition(
        batch.input_ids, batch.attention_mask, module.generation.queries
    ).hidden_states
    x_t = (1 - t) * features + t * noise
    times = torch.full((len(batch),), t, dtype=torch.float64)
    velocity = module.generation.dit(x_t, times, states)
    return (velocity - (noise - features)).square().mean().item()


def test_flow_loss_is_skipped_without_a_generation_loss(tmp_path, caplog):
    fit(Line(), tmp_path, FlowLossByNoise())
    assert caplog.text.count("FlowLossByNoise steps aside: the stage has no generation loss") == 1
    for wrong in ({"times": (0.0,)}, {"times": ()}, {"batches": 0}):
        with pytest.raises(UserError):
            FlowLossByNoise(**wrong)


# --- FrozenCheck ----------------------------------------------------------------------------------


class Writes(Callback):
    """Changes one element of a frozen tensor after a step."""

    def __init__(self, step, amount):
        self.step, self.amount = step, amount

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == self.step:
            with torch.no_grad():
                module.frozen.weight[0, 0] += self.amount


@pytest.mark.parametrize(("step", "found"), [(1, 2), (3, 4), (5, 5)])
def test_a_frozen_tensor_that_changes_ends_the_run(tmp_path, step, found):
    check = FrozenCheck(every_n_steps=2)
    with pytest.raises(UserError, match=rf"frozen\.weight is frozen.* step {found}, with 0 other"):
        fit(Line(), tmp_path, Writes(step, 1e-6), check, steps=5)


def test_frozen_tensors_that_stay_end_nothing(tmp_path):
    fit(Line(), tmp_path, FrozenCheck(every_n_steps=2), steps=5)
    with pytest.raises(UserError, match="1 or more"):
        FrozenCheck(every_n_steps=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8])
def test_a_checksum_sees_every_element_and_every_exchange(dtype):
    tensor = torch.arange(64).to(dtype).reshape(8, 8)
    start = checksum(tensor)
    for place in range(64):
        changed = tensor.clone()
        changed.view(-1)[place] += 1
        assert not torch.equal(checksum(changed), start)
    exchanged = tensor.flatten()[torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    assert not torch.equal(checksum(exchanged), start)
    assert torch.equal(checksum(tensor.clone()), start)


# --- nothing waits for the device -----------------------------------------------------------------


class OnMeta(LightningModule):
    """On the meta device, which has no numbers: whoever reads one gets an error."""

    def __init__(self):
        super().__init__()
        with torch.device("meta"):
            self.layer = nn.Linear(3, 3)
        for parameter in self.parameters():
            parameter.grad = torch.empty_like(parameter)
        self.shown = {}

    @property
    def device(self):
        return torch.device("meta")

    def log_dict(self, values, **_):
        self.shown |= values


@pytest.mark.parametrize(
    "callback",
    [NonFiniteGuard, SpikeGuard, EMA, GradientNorms, Throughput],
    ids=lambda c: c.__name__,
)
def test_a_step_that_is_not_logged_reads_nothing_from_the_device(callback):
    module, callback = OnMeta(), callback()
    group = {"params": list(module.parameters())}
    optimizer = SimpleNamespace(
        param_groups=[group],
        _step_supports_amp_scaling=True,
        register_step_post_hook=lambda hook: hooks.append(hook),
    )
    hooks = []
    trainer = SimpleNamespace(
        global_step=0,
        log_every_n_steps=4,
        optimizers=[optimizer],
        world_size=1,
        global_rank=0,
        precision_plugin=None,
        strategy=SimpleNamespace(),
    )
    mask = torch.ones(2, 3, device="meta")
    batch = type(
        "Sized", (), {"__len__": lambda _: 2, "attention_mask": mask, "keys": ["a", "b"]}
    )()
    callback.on_train_start(trainer, module)
    for _ in range(3):
        callback.on_train_batch_start(trainer, module, batch, 0)
        callback.on_before_backward(trainer, module, torch.ones((), device="meta"))
        callback.on_before_optimizer_step(trainer, module, optimizer)
        for hook in hooks:
            hook(optimizer)
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, None, batch, 0)
    if isinstance(callback, (NonFiniteGuard, SpikeGuard)):
        assert optimizer.found_inf.device.type == "meta"
    if isinstance(callback, GradientNorms):  # the logger will read it
        callback.on_before_optimizer_step(trainer, module, optimizer)
        assert module.shown["grad_norm/layer"].device.type == "meta"


def test_a_logged_step_reads_the_flags():
    guard, module = NonFiniteGuard(), OnMeta()
    trainer = SimpleNamespace(global_step=4, log_every_n_steps=4, optimizers=[])
    guard._unread = [Step(4, ["a"], torch.ones((), device="meta") > 0)]
    with pytest.raises(NotImplementedError, match="meta"):
        guard.on_train_batch_start(trainer, module, None, 0)
