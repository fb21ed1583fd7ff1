"""Models and batches on fake CUDA tensors, as Lightning would place them."""

from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

import triptych.modules.base as base
import triptych.modules.unified as unified
from triptych.backbones import qwen2_5_vl_tower
from triptych.cli.recipes import recipe_of
from triptych.inference.loading import describe_stage
from triptych.modules.unused_parts import unused_parts
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


MOST = 1 << 16
"""Elements of a fake tensor on the CPU that keeps its values."""


@contextmanager
def host_numbers():
    """Let the layout of the vision tower be computed with real numbers in fake mode.

    Its lengths keep their values, which torch allows only scalars; what moves to the device must
    not, as the stub would have to compute with it.
    """
    layout = qwen2_5_vl_tower.tower_layout

    def tower_layout(grids, vision):
        mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
        with unset_fake_temporarily():
            real = layout(torch.tensor(grids.tolist()), vision)
        convert = mode.fake_tensor_converter.from_real_tensor
        lengths = ("cu_seqlens", "cu_window_seqlens")
        return {n: convert(mode, v, make_constant=n in lengths) for n, v in real.items()}

    def may_turn_const(mode, tensor):
        return (
            tensor.device.type == "cpu" and tensor.numel() <= MOST and not mode.is_our_fake(tensor)
        )

    with (
        patch.object(qwen2_5_vl_tower, "tower_layout", tower_layout),
        patch.object(FakeTensorMode, "may_turn_const", may_turn_const),
    ):
        yield


@contextmanager
def fake_mode():
    """FakeTensorMode in which real tensors (tables, sample ids) may take part."""
    with FakeTensorMode(allow_non_fake_inputs=True), host_numbers():
        yield


def stage_model(preset, stage, *flags, trainer=None, contents=None):
    """The model of a preset in a stage, by its own `configure_model`, on the meta device.

    Call it outside of fake mode: timm and diffusers read numbers while they build. Weight files
    are not read; everything else is as in a run: freezing, dtypes, sharding, recomputation.

    Args:
        trainer: trainer whose precision and strategy count; None is one device in float32.
        contents: `BatchContents` of the run, which does not load what it never computes with; None
            loads all parts.
    """
    files = [presets()[preset], conf_files(f"stages/{stage}.yaml")[stage], recipe_of(preset, stage)]
    model = describe_stage(files, [*flags])
    if trainer is not None:
        model.trainer = trainer
    if contents is not None:
        model.unused = unused_parts(model, contents)
    with (
        patch.object(unified, "unused_in_run", lambda *_: model.unused),
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
