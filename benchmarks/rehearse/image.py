"""One image from tokens to a PNG file, in two parts: features, pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from rehearse import cut, weights
from triptych.inference.loading import describe_model
from triptych.training.synthetic_batches import caption_batch
from triptych.utils.paths import presets

GENERATED = "generated.pt"
STEPS = 2  # of each sampler
SEED = 7


def features(preset: str, layers: int, folder: Path) -> dict[str, Any]:
    """A prompt through the language model, and its features out of the DiT, twice."""
    model = loaded(preset, layers, folder, "decoding", "vae", "encoder")
    batch = caption_batch(model, 1, pixels=False)
    with torch.no_grad():
        condition = model.understanding.vlm.condition(
            batch.input_ids, batch.attention_mask, model.generation.queries
        )
        made = [
            model.generation.sample(condition, [SEED], num_inference_steps=STEPS) for _ in range(2)
        ]
    torch.save(made[0].float(), folder / GENERATED)
    shape = [1, *model.generation.feature_shape]
    return {
        "shape": list(made[0].shape),
        "match": {
            "the same seed again": [float((made[0] - made[1]).abs().max()), 0],
            "features of another shape": [int(list(made[0].shape) != shape), 0],
        },
    }


def pixels(preset: str, layers: int, folder: Path) -> dict[str, Any]:
    """Those features to pixels, and the image, saved, through the encoder again."""
    model = loaded(preset, layers, folder, "understanding", "generation")
    decoded = model.decoding.decode(
        torch.load(folder / GENERATED, weights_only=True),
        [SEED],
        num_inference_steps=STEPS,
        negative_features=model.encoder.blank_features().float()
        if not model.decoding.decoder.needs_null_features
        else None,
    )
    path = folder / "image.png"
    to_pil_image(decoded[0]).save(path)
    with Image.open(path) as file:
        again = pil_to_tensor(file.convert("RGB"))
    with torch.no_grad():
        encoded = model.encoder(again[None])
    side = model.vae.image_size
    return {
        "pixels": list(decoded.shape[1:]),
        "tiles_of": getattr(model.vae, "tile", None),
        "encoded_at": model.encoder.image_size,
        "match": {
            "pixels of the saved image": [int((again != decoded[0]).sum()), 0],
            "images of another size": [int(list(decoded.shape) != [1, 3, side, side]), 0],
            "features that are not finite": [int((~encoded.isfinite()).sum()), 0],
        },
    }


def loaded(preset: str, layers: int, folder: Path, *without: str) -> Any:
    """The cut model for inference, without some of its panels and parts; frozen parts bfloat16.

    What has convolutions is float32 where the processor has no bfloat16.
    """
    flags = [*weights.own_weights(folder), *cut.depth_flags(preset, layers)]
    model = describe_model([presets()[preset]], flags)
    model.left_out = set(without)
    slow = "decoding" not in without and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    model.execution.frozen_dtype = "float32" if slow else "bfloat16"
    model.configure_model()
    return model.requires_grad_(False).eval()
