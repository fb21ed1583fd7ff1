"""Constants are buffers: no forward pass makes a tensor from Python numbers, or reads one back.

On a GPU either is a copy that the host waits for. Parts compute here on the meta device, where a
tensor that comes from the host shows.
"""

import traceback

import pytest
import torch
from builders import unified
from small_parts import CASES, draw, pixels
from torch import Tensor
from torch.overrides import TorchFunctionMode

from triptych.interfaces import IMAGE_GENERATION, Batch, Condition, SamplerConfig
from triptych.sampler import SAMPLERS, sample_flow

MADE = {torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, torch.scalar_tensor}
MADE |= {torch.frombuffer, Tensor.new_tensor}
READ = {Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.nonzero, Tensor.__bool__}
READ |= {Tensor.__int__, Tensor.__float__, Tensor.__index__}
# Data, not constants: the draws of a step, the grid of a sampler, the arguments of these tests.
DATA = ("triptych/utils/rng.py", "tests/helpers/small_parts.py")
GRID = ("flow_solver", "diffusion_solver", "times")  # functions of the sampler


class Copies(TorchFunctionMode):
    """Notes what is copied between the host and the meta device, and by which line."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = [each for each in (*args, *(kwargs or {}).values()) if isinstance(each, Tensor)]
        # a single number of the host is an argument of the kernel, which nobody waits for
        from_host = any(each.device.type == "cpu" and each.dim() for each in given)
        made = isinstance(out, Tensor) and out.is_meta and out.numel()
        arrives = made and (from_host or function in MADE)
        if arrives or (function in READ and any(each.is_meta for each in given)):
            frames = traceback.extract_stack()[:-1]
            last = [f for f in frames if "triptych/" in f.filename or "tests/" in f.filename][-1]
            grid = last.filename.endswith("triptych/sampler.py") and last.name in GRID
            if not grid and not any(data in last.filename for data in DATA):
                self.found.append(f"{function.__name__} in {last.filename}:{last.lineno}")
        return out


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"QwenVL.vision"}))
@torch.no_grad()
def test_a_forward_pass_copies_nothing(name):
    """All but the vision tower, of which transformers reads the grids of its images."""
    part, call = CASES[name]()
    expected = call(part)
    part.to("meta")
    with Copies() as copies:
        made = call(part)
    assert made.is_meta and made.shape == expected.shape
    assert copies.found == []


@pytest.mark.parametrize("stage", ["stage2", "decoder", "encoder"])
def test_a_training_step_copies_nothing(stage):
    model = unified(stage)
    with torch.device("meta"):
        model.build()
    model.trained = {name for name, _ in model.named_parameters()}
    ids = torch.ones(2, 12, dtype=torch.long)
    batch = Batch(
        IMAGE_GENERATION, ["a", "b"], 1, torch.arange(2), ids, ids, target_pixels=pixels()
    )
    # as the loader's workers do
    batch.draws = {draw.stream: draw(0, batch.sample_ids) for draw in model.random_draws()}
    batch = batch.to("meta")
    with Copies() as copies:
        model.train().step(batch)[0].backward()
    assert copies.found == []


def flow(sampler, steps):
    part, _ = CASES["LuminaNextDiT"]()
    condition, noise = Condition(draw(2, 4, 64).to("meta")), draw(2, 32, 3, 3).to("meta")
    part.to("meta")
    return lambda: sample_flow(
        part, condition, noise, num_inference_steps=steps, guidance_scale=2.0, sampler=sampler
    )


def diffusion(sampler, steps):
    part, _ = CASES["SDXLDecoder"]()
    features, noise = draw(2, 32, 3, 3).to("meta"), draw(2, *part.vae.feature_shape).to("meta")
    sampling = SamplerConfig(steps, 2.0, sampler)
    part.to("meta")
    return lambda: part.sample(sampling, features, noise, on_step=lambda *_: None)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("integrate", [flow, diffusion])
@torch.no_grad()
def test_sampler_copies_only_its_timesteps(integrate, sampler):
    """However many steps it takes."""
    call = integrate(sampler, 3)
    with Copies() as copies:
        call()
    assert len(copies.found) == 1


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda x: x + x.new_tensor([1.0, 2.0]),
        lambda x: x + torch.tensor([1.0, 2.0], device=x.device),
        lambda x: x + torch.ones(2, device="cpu").to(x.device),
        lambda x: x.clone().copy_(torch.ones(2, device="cpu")),
        lambda x: x[torch.tensor([0, 1])],
    ],
)
def test_copies_are_seen(forbidden):
    """The watch itself."""
    with Copies() as copies:
        forbidden(torch.ones(2, device="meta"))
    assert copies.found
