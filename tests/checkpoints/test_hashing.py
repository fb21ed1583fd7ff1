"""Hashes that distinguish weights."""

import torch
from torch import nn

from triptych.checkpoints.hashing import VALUES, model_hash


def module(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(300, 300), nn.BatchNorm1d(300))


def test_equal_weights_are_alike_and_others_are_not():
    assert model_hash(module()) == model_hash(module())
    assert model_hash(module()) != model_hash(module(1))
    assert model_hash(module()) != model_hash(module().bfloat16())
    assert model_hash(module()) != model_hash(nn.Sequential(*module(), nn.ReLU(), module()[1]))


def test_a_step_of_training_and_a_buffer_are_seen():
    trained = module()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-5)
    trained(torch.randn(4, 300)).square().mean().backward()
    optimizer.step()
    assert 300 * 300 > VALUES and model_hash(trained) != model_hash(module())
    counted = module()
    counted[1].num_batches_tracked += 1
    assert model_hash(counted) != model_hash(module())
