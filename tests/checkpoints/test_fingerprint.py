"""Hashes that distinguish weights."""

import torch
from torch import nn

from triptych.checkpoints.digest import VALUES, weights_digest


def module(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(300, 300), nn.BatchNorm1d(300))


def test_equal_weights_are_alike_and_others_are_not():
    assert weights_digest(module()) == weights_digest(module())
    assert weights_digest(module()) != weights_digest(module(1))
    assert weights_digest(module()) != weights_digest(module().bfloat16())
    assert weights_digest(module()) != weights_digest(
        nn.Sequential(*module(), nn.ReLU(), module()[1])
    )


def test_a_step_of_training_and_a_buffer_are_seen():
    trained = module()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-5)
    trained(torch.randn(4, 300)).square().mean().backward()
    optimizer.step()
    assert 300 * 300 > VALUES and weights_digest(trained) != weights_digest(module())
    counted = module()
    counted[1].num_batches_tracked += 1
    assert weights_digest(counted) != weights_digest(module())
