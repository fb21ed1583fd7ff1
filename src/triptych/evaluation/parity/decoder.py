"""Parity of the pixel decoder: inputs of its UNet, guided Euler steps, the image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from triptych.backbones import KLAutoencoder, SDXLDecoder
from triptych.backbones.sdxl import guided
from triptych.checkpoints.published import key_mapping
from triptych.evaluation.parity.checks import Checks
from triptych.evaluation.parity.loading import fill
from triptych.evaluation.parity.recorded import Case, RecordedTensors
from triptych.interfaces import SamplerConfig


def recognizes(case: Case) -> bool:
    """Whether the case records a pixel decoder."""
    return case.has_file("unet.safetensors")


@torch.no_grad()
def check(case: Case, checks: Checks) -> None:
    """Check one guided run from recorded noise."""
    io, steps, guidance = case.io, case["steps"], case["guidance_scale"]
    model = build(case)
    check_schedules(io, model, steps, checks)

    calls, after = [], {}
    watch = model.unet.register_forward_hook(
        lambda _, arguments, named, out: calls.append((arguments, named, out.sample)),
        with_kwargs=True,
    )
    features, negative = as_grid(io["cond"]), as_grid(io["negative"])
    latents = model.sample(
        SamplerConfig(steps, guidance),
        features,
        io["noise"],
        negative_features=negative,
        on_step=lambda step, x, _: after.update({step: x}),
    )
    watch.remove()
    check_first_call(io, calls[0], guidance, checks)
    for match in io.matching(r"latents_after_(\d+)"):
        checks.values(match[0], after[int(match[1]) - 1], io[match[0]])
    checks.values("final_latents", latents, io["final_latents"])

    images = model.vae.images(model.vae.raw(latents))
    shown = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    checks.values("image", shown, io["image"])
    pixels = model.vae.decode(latents).permute(0, 2, 3, 1)
    checks.rounded("image_u8", pixels, io["image"])


def build(case: Case) -> SDXLDecoder:
    """Build UNet and VAE with the weights of the case."""
    vae = KLAutoencoder(**key_mapping.vae_arguments(case["vae_config"], case["height"]))
    model = SDXLDecoder(
        **key_mapping.decoder_arguments(case["unet_config"]),
        original_size=case["original_size"][0],
    )
    tokens, channels = case.io["cond"].shape[1:]
    model.configure_shapes((channels, math.isqrt(tokens), math.isqrt(tokens)))
    model.connect(vae)
    vae.build()
    model.build()
    unet, autoencoder = case.file("unet").all(), case.file("vae").all()
    fill(model.unet, key_mapping.UNET, {key_mapping.UNET + k: v for k, v in unet.items()})
    fill(vae.vae, key_mapping.VAE, {key_mapping.VAE + k: v for k, v in autoencoder.items()})
    vae.eval()
    return model.eval()


def as_grid(tokens: Tensor) -> Tensor:
    """Reshape tokens [B,n,C], in row-major order, to a grid [B,C,h,w]."""
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def check_schedules(io: RecordedTensors, model: SDXLDecoder, steps: int, checks: Checks) -> None:
    """Check noise levels and timesteps of the run, and of other recorded numbers of steps."""
    for match in io.matching(r"(sigmas|timesteps)(?:_(\d+))?"):
        schedule = model.scheduler(SamplerConfig(int(match[2] or steps)))
        checks.values(match[0], getattr(schedule, match[1]), io[match[0]])


def check_first_call(io: RecordedTensors, call: tuple, guidance: float, checks: Checks) -> None:
    """Check inputs and output of the first UNet call, [conditional, negative]."""
    (sample, timesteps), named, output = call
    added = named["added_cond_kwargs"]
    checks.values("first_model_input", sample, io["first_model_input"])
    checks.values("first_t", timesteps, io["first_t"].expand_as(timesteps))
    checks.values("prompt_embeds", named["encoder_hidden_states"], io["prompt_embeds"])
    checks.values("text_embeds", added["text_embeds"], io["text_embeds"])
    checks.same("time_ids", added["time_ids"], io["time_ids"].view(-1, 6).float())
    checks.values("first_unet_output", output, io["first_unet_output"])
    conditional, unconditional = output.chunk(2)
    first = guided(conditional, unconditional, guidance)
    checks.values("first_guided", first, io["first_guided"])
