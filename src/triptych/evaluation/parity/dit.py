"""Parity of the DiT: forward and gradients, for any width of its feed-forward layers."""

from __future__ import annotations

from triptych.backbones import LuminaNextDiT
from triptych.checkpoints.published import key_mapping
from triptych.evaluation.parity.checks import Checks
from triptych.evaluation.parity.loading import fill, map_keys
from triptych.evaluation.parity.recorded import Case


def recognizes(case: Case) -> bool:
    """Whether the case records only a DiT."""
    return case.has_file("weights.safetensors") and "z_latents" in case.io


def check(case: Case, checks: Checks) -> None:
    """Check one forward and backward pass."""
    io = case.io
    weights = map_keys({f"model.dit.{k}": v for k, v in case.file("weights").all().items()})
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    model = LuminaNextDiT(
        **key_mapping.dit_arguments(shapes), patch_size=case["config"]["patch_size"]
    )
    model.configure_shapes(tuple(io["x"].shape[1:]), key_mapping.condition_width(shapes))
    model.build()
    fill(model, key_mapping.DIT, weights)
    checks.same("feed-forward width", model.ffn_width, case["ffn_inner_dim"])

    x, condition = io["x"].requires_grad_(), io["z_latents"].requires_grad_()
    output = model(x, io["timestep"].double() / 1000, condition)
    loss = (output * io["loss_weight"]).mean()
    loss.backward()
    checks.values("output", output, io["output"])
    checks.values("loss", loss, io["loss"])
    checks.gradient("gradient of x", x.grad, io["grad.x"])
    checks.gradient("gradient of z_latents", condition.grad, io["grad.z_latents"])
    parameters = dict(model.named_parameters())
    for match in io.matching(r"grad\.(model\..*)"):
        name = key_mapping.place_of(f"model.dit.{match[1]}").name.removeprefix(key_mapping.DIT)
        checks.gradient(f"gradient of {match[1]}", parameters[name].grad, io[match[0]])
