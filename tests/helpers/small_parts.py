"""Every kind of network part in small, each with a call.

Use it for rules that hold for all parts: parametrize the test over `CASES`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from builders import SIDE, built, decoder, dit, eva, shaken, vae, vlm
from torch import Tensor

from triptych.backbones import DCAutoencoder, SanaDecoder, Siglip2
from triptych.interfaces import LazyModule
from triptych.modules.encoder_training import EncodingHeads

Case = tuple[LazyModule, Callable[[LazyModule], Tensor]]
"""A built part in evaluation mode, and a call of it that makes a tensor."""


def draw(*shape: int) -> Tensor:
    """Standard normal numbers, the same each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def pixels(number: int = 2, side: int = SIDE) -> Tensor:
    """Random images uint8 [N,3,side,side]."""
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (number, 3, side, side), dtype=torch.uint8, generator=generator)


def on(part: LazyModule) -> torch.device:
    return next(part.parameters()).device


def condition() -> Case:
    def call(part: LazyModule) -> Tensor:
        ids = torch.arange(24).reshape(2, 12).to(on(part))
        return part.condition(
            ids, torch.ones_like(ids), draw(4, part.width).to(on(part))
        ).hidden_states

    return built(vlm()).eval(), call


def vision() -> Case:
    """The vision tower on a wide image: 4 rows and 512 columns of patches."""

    def call(part: LazyModule) -> Tensor:
        return part.image_features(draw(2048, 3 * 2 * 8**2), torch.tensor([[1, 4, 512]]))

    return built(vlm()).eval(), call


def image_encoder(make: Callable[[], LazyModule]) -> Callable[[], Case]:
    return lambda: (shaken(built(make()), 0.05), lambda part: part(pixels().to(on(part))))


def siglip() -> Siglip2:
    sizes = {"patch_size": 8, "width": 32, "depth": 3, "heads": 2, "mlp_width": 64, "grid": 3}
    return Siglip2(image_size=SIDE, **sizes)


def dc_ae() -> DCAutoencoder:
    depths = {"encoder_depths": [1] * 4, "decoder_depths": [1] * 4, "attention_levels": 1}
    return DCAutoencoder(SIDE, 4, [16, 32, 32, 32], **depths)


def images_of(make: Callable[[], LazyModule], images: Callable[[LazyModule, Tensor], Tensor]):
    """The way back of an autoencoder."""

    def case() -> Case:
        part = shaken(built(make()), 0.02)
        return part, lambda part: images(part, draw(2, *part.feature_shape).to(on(part)))

    return case


def velocity() -> Case:
    def call(part: LazyModule) -> Tensor:
        given = draw(2, 32, 3, 3), torch.full((2,), 0.3), draw(2, 4, 64)
        return part(*(each.to(on(part)) for each in given))

    part = dit()
    part.configure_shapes((32, 3, 3), 64)
    return shaken(built(part)), call


def unet() -> Case:
    """A call of the UNet, on latents of noise and signal as their time has them."""

    def call(part: LazyModule) -> Tensor:
        given = draw(2, *part.vae.feature_shape), torch.tensor([30, 900]), draw(2, 32, 3, 3)
        latents, times, features = (each.to(on(part)) for each in given)
        signal, noise = part.levels(times)
        return part.denoise((signal + noise) * latents, times, features)

    part = decoder()
    part.configure_shapes((32, 3, 3))
    return shaken(built(part), 0.02).eval(), call


def sana() -> Case:
    def call(part: LazyModule) -> Tensor:
        told = part.condition(draw(2, 32, 3, 3).to(on(part)))
        given = draw(2, *part.vae.feature_shape), torch.full((2,), 0.3)
        return part.velocity(*(each.to(on(part)) for each in given), told)

    sizes = {"width": 64, "depth": 2, "heads": 4, "cross_heads": 2, "caption_width": 48}
    part = SanaDecoder(**sizes)
    part.connect(dc_ae())
    part.configure_shapes((32, 3, 3))
    return shaken(built(part), 0.05), call


def heads() -> Case:
    def call(part: LazyModule) -> Tensor:
        ids = torch.arange(24).reshape(2, 12).to(on(part))
        return part.text(ids, torch.ones_like(ids))

    part = EncodingHeads(640, 32, 1, 32, 256)
    part.configure_shapes((32, 3, 3), SIDE)
    return built(part).eval(), call


CASES: dict[str, Callable[[], Case]] = {
    "QwenVL": condition,
    "QwenVL.vision": vision,
    "EvaClip": image_encoder(eva),
    "Siglip2": image_encoder(siglip),
    "KLAutoencoder": image_encoder(vae),
    "KLAutoencoder.images": images_of(vae, lambda part, z: part.images(part.raw(z))),
    "DCAutoencoder": image_encoder(dc_ae),
    "DCAutoencoder.images": images_of(dc_ae, lambda p, z: p.vae.decode(z.to(p.vae.dtype)).sample),
    "LuminaNextDiT": velocity,
    "SDXLDecoder": unet,
    "SanaDecoder": sana,
    "EncodingHeads": heads,
}
