"""Muon for matrices of blocks, AdamW for the rest: who moves what, and an exact resume."""

import copy

import pytest
import torch
from builders import unified
from nothing_read import NothingIsRead
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from triptych.training.freezing import freeze_all_but
from triptych.training.muon import MuonWithAdamW, block_matrices, orthogonalized
from triptych.training.optimizer import Optimization, make_optimizer
from triptych.utils.errors import UserError

MUON = Optimization(lr=1e-2, weight_decay=0.1, optimizer="muon", lr_scheduler="constant")


class Net(nn.Module):
    """Two blocks between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 16), nn.Linear(16, 8)])
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        states = self.layers[1](self.layers[0](self.embed(ids)).relu())
        return self.head(states)


def step(model, optimizer, seed):
    ids = torch.randint(11, (5,), generator=torch.Generator().manual_seed(seed))
    model(ids).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_matrices_of_blocks_are_orthogonalized_and_the_rest_is_adamw():
    ours, alone, adam = Net(), Net(), Net()
    before = {name: p.detach() for name, p in Net().named_parameters()}
    optimizer = make_optimizer(ours, MUON)
    muon = torch.optim.Muon(
        [layer.weight for layer in alone.layers],
        lr=1e-2,
        weight_decay=0.1,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = make_optimizer(adam, Optimization(lr=1e-2, weight_decay=0.1))
    for model, each in ((ours, optimizer), (alone, muon), (adam, adamw)):
        model(torch.arange(5)).square().mean().backward()
        draws = torch.Generator().manual_seed(1)
        for layer in model.layers:  # of full rank: what is nearly zero is scaled up to rounding
            layer.weight.grad = torch.randn(layer.weight.shape, generator=draws)
        each.step()
    matrices = {"layers.0.weight", "layers.1.weight"}
    for name, parameter in ours.named_parameters():
        if name not in matrices:
            assert torch.equal(parameter, adam.get_parameter(name)), name
            continue
        moved, other = (m.get_parameter(name).detach() - before[name] for m in (ours, alone))
        # torch's rounds to bfloat16, eight bits, in fifteen products one after the other
        torch.testing.assert_close(moved, other, rtol=0, atol=0.03 * float(other.abs().max()))
    assert block_matrices(ours) == matrices


def test_on_a_cpu_nothing_is_rounded_to_bfloat16():
    """A processor that has no such arithmetic takes 25 times as long for it."""

    class Dtypes(TorchDispatchMode):
        seen = set()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **kwargs or {})
            self.seen |= {each.dtype for each in (out,) if isinstance(each, torch.Tensor)}
            return out

    model = Net()
    optimizer = make_optimizer(model, MUON)
    model(torch.arange(5)).square().mean().backward()
    with Dtypes():
        optimizer.step()
    assert torch.float32 in Dtypes.seen and torch.bfloat16 not in Dtypes.seen


@pytest.mark.parametrize("shape", [(24, 24), (40, 16), (16, 40)])
def test_singular_values_are_brought_near_one(shape):
    group = torch.optim.Muon([nn.Parameter(torch.zeros(2, 2))]).param_groups[0]
    given = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalized(given, group)
    left, values, right = torch.linalg.svd(found, full_matrices=False)
    assert float(values.min()) > 0.5 and float(values.max()) < 1.3
    known_left, _, known_right = torch.linalg.svd(given, full_matrices=False)
    torch.testing.assert_close(left @ right, known_left @ known_right, rtol=0, atol=1e-4)


def test_a_resumed_run_goes_on_bit_for_bit():
    model = Net()
    optimizer = make_optimizer(model, MUON)
    for seed in range(3):
        step(model, optimizer, seed)
    resumed = copy.deepcopy(model)
    fresh = make_optimizer(resumed, MUON)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(resumed, fresh, seed)
    assert all(map(torch.equal, model.parameters(), resumed.parameters()))


@pytest.mark.parametrize("before", [0, 2])
def test_a_skipped_step_changes_no_bit_and_reads_nothing(before):
    """As in torch's fused optimizers, also of the first step, which makes the state."""
    model, untouched = Net(), Net()
    optimizer, plain = make_optimizer(model, MUON), make_optimizer(untouched, MUON)
    for seed in range(before):
        step(model, optimizer, seed)
        step(untouched, plain, seed)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.found_inf = torch.ones(())
    with NothingIsRead():
        optimizer.step()
    optimizer.zero_grad()
    assert all(map(torch.equal, model.parameters(), untouched.parameters()))
    optimizer.found_inf = torch.zeros(())
    step(model, optimizer, before)  # as if the bad one had not been
    step(untouched, plain, before)
    assert all(map(torch.equal, model.parameters(), untouched.parameters()))


def test_gradients_of_a_scaled_loss_are_divided():
    model, plain = Net(), Net()
    scaled, optimizer = make_optimizer(model, MUON), make_optimizer(plain, MUON)
    for own in (model, plain):
        own(torch.arange(5)).square().mean().backward()
    for parameter in model.parameters():
        parameter.grad *= 1024
    scaled.grad_scale, scaled.found_inf = torch.tensor(1024.0), torch.zeros(())
    scaled.step(), optimizer.step()
    assert all(map(torch.equal, model.parameters(), plain.parameters()))


def test_a_schedule_moves_both_rates():
    model = Net()
    before = copy.deepcopy(model)
    optimizer = make_optimizer(model, MUON)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    step(model, optimizer, seed=1)
    assert all(map(torch.equal, model.parameters(), before.parameters()))


def test_of_the_model_it_takes_attention_and_feed_forward_alone():
    model = unified("stage2")
    model.build()
    freeze_all_but(model, model.trainable)
    optimizer = make_optimizer(model, MUON)
    names = {id(p): name for name, p in model.named_parameters()}
    moved = {names[id(p)] for g in optimizer.param_groups if g["muon"] for p in g["params"]}
    assert moved and all(".layers." in name for name in moved)
    assert not {name for name in moved if name.endswith(("gate", "bias", "queries"))}
    assert "generation.queries" in {
        names[id(p)] for g in optimizer.param_groups for p in g["params"]
    }


def test_torch_without_muon_is_refused(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UserError, match="torch 2.9 or newer"):
        MuonWithAdamW([{"params": [nn.Parameter(torch.ones(2, 2))], "muon": True}], 1e-3)
