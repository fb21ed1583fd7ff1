"""Parity of the EVA tower: tokens, pooled features, image transform."""

from __future__ import annotations

import torch
from PIL import Image

from triptych.backbones import EvaClip
from triptych.checkpoints.published import key_mapping
from triptych.evaluation.parity.checks import Checks
from triptych.evaluation.parity.loading import fill, map_keys
from triptych.evaluation.parity.recorded import Case
from triptych.utils.images import square


def recognizes(case: Case) -> bool:
    """Whether the case records only an EVA tower."""
    return case.has_file("weights.safetensors") and "cls_and_patches" in case.io


@torch.no_grad()
def check(case: Case, checks: Checks) -> None:
    """Check the tower with both layouts of its bias, and the published transform."""
    io, published = case.io, case.file("weights").all()
    head_width = case["config"]["vision_cfg"]["head_width"]
    model = tower(published, case["pool"], head_width)
    images = io["pixel_values"]
    tokens = model.image_tokens(images)
    checks.values("tower with CLS", model.tower.forward_features(images), io["cls_and_patches"])
    checks.values("output", tokens, io["output"])
    checks.values("pooled", model.pool_tokens(tokens), io["pooled"])
    split = tower(_split_bias(published), case["pool"], head_width)
    checks.values("output with biases q and v", split.image_tokens(images), io["output"])

    image = Image.fromarray(io["image_u8"].numpy())
    for name, shown in (
        ("image_preprocessed", image),
        ("image_gray_preprocessed", image.convert("L")),
    ):
        pixels = square(shown, io[name].shape[-1])[None]
        checks.values(name, model.clip_normalize(pixels / 255), io[name])
    pixels = square(image, model.image_size)[None]
    checks.values("normalized by the encoder", model.normalize(pixels), io["image_preprocessed"])


def tower(published: dict[str, torch.Tensor], pool: int, head_width: int) -> EvaClip:
    """Build the tower with published weights."""
    weights = map_keys(published)
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    model = EvaClip(**key_mapping.tower_arguments(shapes, pool, head_width))
    model.build()
    fill(model, "encoder.", weights)
    return model.eval()


def _split_bias(published: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights in the other published layout, without a bias on keys."""
    split = {}
    for name, tensor in published.items():
        if name.endswith("qkv.bias"):
            query, _, value = tensor.chunk(3)
            split[name.replace("qkv.bias", "q_bias")] = query
            split[name.replace("qkv.bias", "v_bias")] = value
        else:
            split[name] = tensor
    return split
