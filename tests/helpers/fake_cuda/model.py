"""Models and batches on fake CUDA tensors, as Lightning would place them."""

from unittest.mock import patch

import torch

import triptych.modules.base as base
from triptych.cli.recipes import recipe_of
from triptych.inference.loading import describe_stage
from triptych.training.memory.host_numbers import HostNumbers
from triptych.training.meta_init import materialize
from triptych.utils.paths import conf_files, presets

CUDA = torch.device("cuda", 0)
TWO_LAYERS = [
    "--model.understanding.vlm.text.num_hidden_layers=2",
    "--model.understanding.vlm.vision.depth=2",
    "--model.understanding.vlm.vision.fullatt_block_indexes=[1]",
    "--model.encoder.depth=2",
    "--model.generation.dit.depth=2",
]
"""Flags that leave two layers of every transformer, at their real widths."""


fake_mode = HostNumbers
"""Fake mode in which real tensors (tables, sample ids) may take part, and stay real on the host."""


def stage_model(preset, stage, *flags, trainer=None):
    """The model of a preset in a stage, by its own `configure_model`, on the meta device.

    Call it outside of fake mode: timm and diffusers read numbers while they build. Weight files
    are not read; everything else is as in a run: freezing, dtypes, sharding, recomputation.

    Args:
        trainer: trainer whose precision and strategy count; None is one device in float32.
    """
    files = [presets()[preset], conf_files(f"stages/{stage}.yaml")[stage], recipe_of(preset, stage)]
    model = describe_stage(files, [*flags])
    if trainer is not None:
        model.trainer = trainer
    with (
        patch.object(base, "find_all", lambda weights: {}),
        patch.object(base, "start_at_random", lambda *_: None),
        patch.object(base, "materialize", lambda *_: None),
        patch.object(base, "load_weights", lambda *_: None),
        patch.object(model, "_require_weights", lambda *_: None),
    ):
        model.configure_model()
    return model


def place(model, device=CUDA):
    """Give `model` memory on `device`; call it in fake mode.

    As `Strategy.model_to_device`: `Module.to` would swap fake parameters, which torch refuses.
    """
    materialize(model, device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
        if hasattr(module, "_device"):
            module._device = device
    return model
