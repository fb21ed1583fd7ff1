"""Cases that `python -m fake_cuda` runs; each returns its events by kind."""

import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from lightning.pytorch.loggers import CSVLogger
from torch import distributed
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.testing._internal.distributed.fake_pg import FakeStore

from fake_cuda.memory import memory as memory
from fake_cuda.model import CUDA, TWO_LAYERS, fake_mode, place, stage_model
from fake_cuda.monitor import DeviceMonitor
from fake_cuda.training import step_events
from triptych import sampler
from triptych.backbones import sdxl, token_sampling
from triptych.callbacks import RunSummary, Throughput
from triptych.interfaces import Sampling
from triptych.loss import OBJECTIVES
from triptych.training import strategies
from triptych.training.execution import cast_frozen
from triptych.training.strategies import ShardedStrategy


def step(preset, stage, *words):
    """A training step.

    Words: "live" features, "whole" depth, "fsdp2" for a rank of 8, "flops" for those who count
    them, "logged" for a step that is logged, "resumed" from a checkpoint, "accumulated" gradients
    of recomputed blocks, "channels" or "tokens" of a DiT that sees sources, those of `OBJECTIVES`,
    and "break-NAME", see `BREAKS`.
    """
    flags = [] if "whole" in words else [*TWO_LAYERS]
    flags += [f"--model.generation.objective={word}" for word in words if word in OBJECTIVES]
    sources = [word for word in words if word in ("channels", "tokens")]
    flags += [f"--model.generation.dit.source={word}" for word in sources]
    change = next((BREAKS[word] for word in words if word in BREAKS), None)
    size = 16 if "whole" in words else 2
    options = ranks() if "fsdp2" in words else {}
    if "resumed" in words:
        step_events(preset, stage, *flags, every=1, logger=CSVLogger("saved"))
        (options["resumed"],) = Path("saved").rglob("00000001.ckpt")
    if "flops" in words:  # counted by a step of its own
        options["callbacks"] = [Throughput(), RunSummary()]
    if "logged" in words:
        options |= {"callbacks": [Throughput()], "log_every_n_steps": 1}
    if "accumulated" in words:
        options["accumulate_grad_batches"] = 2
        flags.append("--model.execution.activation_checkpointing=true")
    live = "live" in words
    window = step_events(
        preset, stage, *flags, size=size, cached=not live, change=change, **options
    )
    return {"events": by_kind(window), "wide": window.wide}


def ranks(world=8):
    """Options of a Trainer of FSDP2 on the first of `world` ranks, whose collectives do nothing."""
    os.environ |= {"WORLD_SIZE": str(world), "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}
    os.environ |= {"LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "fake"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29512"}
    if not distributed.is_initialized():
        distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    # a FakeStore says that every key is set, so that a rank has failed; gloo would need a real one
    strategies.announce_failures = lambda: None
    new_group = distributed.new_group
    distributed.new_group = lambda *args, **options: new_group(
        *args, **options | {"backend": "fake"}
    )
    strategy = ShardedStrategy(process_group_backend="fake")
    return {"num_nodes": world, "strategy": strategy}


def by_kind(monitor):
    """Kind -> [[text, count, bytes]]."""
    kinds = {}
    for event, count in monitor.events.items():
        kinds.setdefault(event.kind, []).append([str(event), count, monitor.bytes[event]])
    return kinds


def inference(preset, *samplers):
    """Events of an image and of a chat, call by call, in bfloat16."""
    model = stage_model(preset, "stage2", *TWO_LAYERS).requires_grad_(False).eval()
    cast_frozen(model, torch.bfloat16)
    with fake_mode(), real_numbers(), torch.no_grad():
        place(model)
        calls = Calls()
        ids = torch.ones(2, 136, dtype=torch.long, device=CUDA)
        mask = torch.ones_like(ids)
        vlm, queries = model.understanding.vlm, model.generation.queries
        shared = {"num_shared_prefix_tokens": 23}
        condition = calls("condition", vlm.condition, ids, mask, queries, **shared)
        for name in samplers:
            options = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "sampler": name}
            sample, decode = model.generation.sample, model.decoding.decode
            features = calls(f"sample {name}", sample, condition, [1, 2], **options)
            calls(f"decode {name}", decode, features.float(), [1, 2], **options)
        prompt = ids[:, :20], mask[:, :20], None, None
        drawn = Sampling(temperature=0.7, top_p=0.9, seeds=(1, 2))
        for name, sampling in (("chat", None), ("chat drawn", drawn)):
            calls.tokens = 0
            options = {"max_new_tokens": 8, "sampling": sampling}
            calls(name, vlm.generate_text, *prompt, **options)
    return {"calls": calls.events}


STEPS, TOKENS = 4, 12
"""Steps of a sampler; reads after which a chat has ended, some of them before its first token."""


class Calls:
    """Calls functions and records their events by name."""

    def __init__(self):
        self.events, self.tokens = {}, None

    def __call__(self, name, function, *arguments, **options):
        with DeviceMonitor(self.answer) as monitor:
            result = function(*arguments, **options)
        self.events[name] = by_kind(monitor)
        return result

    def answer(self, tensor):
        """Value of a read: everything is finite; a chat has ended after `TOKENS` questions."""
        if tensor.dtype != torch.bool:
            return 1
        if self.tokens is None or tensor.device.type == "cpu":
            return True
        self.tokens += 1
        return self.tokens >= TOKENS


@contextmanager
def real_numbers():
    """Leave fake mode for what it cannot do: grids by numpy, draws of a generator."""

    def real(make):
        def made(*args, **options):
            with unset_fake_temporarily():
                return make(*args, **options)

        return made

    with ExitStack() as stack:
        for owner, name in (
            (sampler, "flow_solver"),
            (sampler, "diffusion_solver"),
            (sdxl, "diffusion_solver"),
            (token_sampling.Gumbel, "noise"),
        ):
            stack.enter_context(patch.object(owner, name, real(getattr(owner, name))))
        yield


# What tests break, to see that the check notices -------------------------------------------------


def _read_the_loss(model):
    step = model.generation.step

    def reading(batch):
        loss, metrics = step(batch)
        loss.item()
        return loss, metrics

    model.generation.step = reading


def _mask_on_the_host(model):
    step = model.generation.step

    def mixing(batch):
        loss, metrics = step(batch)
        return loss * torch.ones(2), metrics

    model.generation.step = mixing


def _float32_language_model(model):
    for parameter in model.understanding.parameters():
        parameter.data = parameter.data.float()


BREAKS = {
    "break-read": _read_the_loss,
    "break-host": _mask_on_the_host,
    "break-float32": _float32_language_model,
}
