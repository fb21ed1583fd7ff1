"""Models, batches and optimizers on fake CUDA tensors, as Lightning would place them."""

from contextlib import contextmanager

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from triptych.backbones import qwen2_5_vl_tower
from triptych.cli.recipes import recipe_of
from triptych.inference.loading import describe_stage
from triptych.interfaces import IMAGE_GENERATION, LANGUAGE_MODELING, Batch
from triptych.training.execution import cast_frozen
from triptych.training.freezing import freeze_all_but
from triptych.training.meta_init import materialize, parameters_on_meta
from triptych.utils.paths import conf_files, presets

CUDA = torch.device("cuda", 0)


def stage_model(preset, stage, *flags, frozen_dtype=torch.bfloat16):
    """The model of a preset in a stage, on the meta device.

    Call it outside of fake mode: timm and diffusers read numbers while they build.
    """
    files = [presets()[preset], conf_files(f"stages/{stage}.yaml")[stage], recipe_of(preset, stage)]
    model = describe_stage(files, [*flags])
    with parameters_on_meta():
        model.build()
    model.trained = freeze_all_but(model, model.trainable)
    cast_frozen(model, frozen_dtype)
    return model


@contextmanager
def host_numbers():
    """Let the layout of the vision tower be computed with real numbers in fake mode.

    Its lengths keep their values, which torch allows only scalars; what moves to the device must
    not, as the stub would have to compute with it.
    """
    limit, layout = fake_tensor.CONSTANT_NUMEL_LIMIT, qwen2_5_vl_tower.tower_layout

    def tower_layout(grids, vision):
        mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
        with unset_fake_temporarily():
            real = layout(torch.tensor(grids.tolist()), vision)
        convert = mode.fake_tensor_converter.from_real_tensor
        lengths = ("cu_seqlens", "cu_window_seqlens")
        return {n: convert(mode, v, make_constant=n in lengths) for n, v in real.items()}

    fake_tensor.CONSTANT_NUMEL_LIMIT, qwen2_5_vl_tower.tower_layout = 1 << 16, tower_layout
    try:
        yield
    finally:
        fake_tensor.CONSTANT_NUMEL_LIMIT, qwen2_5_vl_tower.tower_layout = limit, layout


@contextmanager
def fake_mode():
    """FakeTensorMode in which real tensors (tables, sample ids) may take part."""
    with FakeTensorMode(allow_non_fake_inputs=True), host_numbers():
        yield


def place(model, device=CUDA):
    """Give `model` memory on `device`; call it in fake mode.

    The same as `configure_model` and `Strategy.model_to_device` without weight files: `Module.to`
    would swap fake parameters, which torch refuses.
    """
    materialize(model, device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
        if hasattr(module, "_device"):
            module._device = device
    return model


def image_batch(model, size, tokens=136, prefix=23, cached=True, pixels=False):
    """A batch of the generation loss on the CPU: captions, and features or images, or both."""
    ids = torch.ones(size, tokens, dtype=torch.long)
    side = model.image_size
    images = {"target_pixels": torch.zeros(size, 3, side, side, dtype=torch.uint8)}
    features = {}
    if cached:
        features = {"target_features": torch.zeros(size, *model.target_encoder.feature_shape)}
    return Batch(
        IMAGE_GENERATION,
        [str(number) for number in range(size)],
        0,
        torch.arange(size),
        ids,
        torch.ones_like(ids),
        num_shared_prefix_tokens=prefix,
        draws=_draws(model, size),
        **features,
        **(images if pixels or not cached else {}),
    )


def _draws(model, size):
    """The draws of the loader's workers."""
    return {
        draw.stream: torch.zeros(size * draw.repeats, *draw.shape) for draw in model.random_draws()
    }


def text_batch(model, size, tokens=200, images=True):
    """A batch of the understanding loss on the CPU: `tokens` of text, and an image each or none."""
    vlm = model.understanding.vlm
    ids = torch.ones(size, tokens, dtype=torch.long)
    shown = {}
    if images:
        with unset_fake_temporarily():
            squares = torch.zeros(size, 3, vlm.image_size, vlm.image_size, dtype=torch.uint8)
            patches, grids = vlm.image_inputs(squares)
            count = vlm.image_tokens()
            ids = torch.ones(size, tokens + count, dtype=torch.long)
            ids[:, 4 : 4 + count] = vlm.vocabulary.image_pad
            positions = vlm.position_ids(ids, torch.ones_like(ids), grids)
        shown = {"understanding_pixels": patches, "image_grid_thw": grids, "may_show": True}
        shown["position_ids"] = positions
    return Batch(
        LANGUAGE_MODELING,
        [str(number) for number in range(size)],
        0,
        torch.arange(size),
        ids,
        torch.ones_like(ids),
        labels=ids.clone(),
        label_indices=torch.arange(size * (ids.shape[1] - 1)),
        **shown,
    )
