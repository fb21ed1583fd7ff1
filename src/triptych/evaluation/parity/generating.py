"""Parity of sampling: query outputs, guided steps of the DiT, features for the decoder."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from triptych.evaluation.parity.checkpoint import START_OF_IMAGE_ID, RecordedCheckpoint
from triptych.evaluation.parity.checks import Checks
from triptych.evaluation.parity.recorded import Case, RecordedTensors
from triptych.evaluation.parity.seeing import Seen, check_seeing
from triptych.interfaces import Condition
from triptych.prompts import PAD, pad, token_id
from triptych.sampler import OnStep, sample_flow, times


def recognizes(case: Case) -> bool:
    """Whether the case records a sampling run."""
    return case.has_file("io.safetensors") and bool(case.io.matching(r".*\.query_hidden"))


@torch.no_grad()
def check(case: Case, shared: RecordedCheckpoint, checks: Checks) -> None:
    """Check every prompt separately, then all in one batch."""
    io = case.io
    steps = case["steps"]
    grid = torch.from_numpy(times(steps)).float()
    checks.values("sigmas", torch.cat([grid, torch.zeros(1)]), io["sigmas"])
    checks.values("timesteps", 1000 * grid, io["timesteps"])
    seen = see_image(io, shared, checks)

    prompts = [match[1] for match in io.matching(r"(.*)\.query_hidden")]
    image_id = shared.vlm.model.config.image_token_id
    rows = {name: [*io[f"{name}.input_ids"][0].tolist(), START_OF_IMAGE_ID] for name in prompts}
    for name in prompts:
        shown = seen if image_id in rows[name] else (None, None)
        condition = condition_of(shared, [rows[name]], shown)
        checks.values(f"{name}: query_hidden", condition.hidden_states, io[f"{name}.query_hidden"])
        check_sampling(case, shared, name, condition, checks)

    # all in one padded batch, which the published code does not support
    condition = condition_of(shared, list(rows.values()), seen)
    hidden = torch.cat([io[f"{name}.query_hidden"] for name in prompts])
    checks.values("all in one batch: query_hidden", condition.hidden_states, hidden)
    noise = torch.cat([io[f"{name}.noise"] for name in prompts])
    latents = sample(case, shared, condition, noise)
    recorded = torch.cat([io[f"{name}.latents"] for name in prompts])
    checks.values("all in one batch: latents", latents, recorded)


def see_image(io: RecordedTensors, shared: RecordedCheckpoint, checks: Checks) -> Seen:
    """Inputs of the image in the case's prompts, if there is one."""
    if "picture_u8" not in io:
        return None, None
    return check_seeing(
        shared, io["picture_u8"][None], io["pixel_values"], io["image_grid_thw"], checks
    )


def condition_of(shared: RecordedCheckpoint, rows: list[list[int]], seen: Seen) -> Condition:
    """Condition of generation prompts."""
    ids, mask = pad(rows, token_id(shared.vlm.tokenizer, PAD))
    queries = shared.model.generation.queries
    return shared.vlm.condition(ids, mask, queries, *seen)


def sample(
    case: Case,
    shared: RecordedCheckpoint,
    condition: Condition,
    noise: Tensor,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample like `GenerationModule.sample`, from recorded noise."""
    generation = shared.model.generation
    return sample_flow(
        generation.dit,
        condition,
        noise,
        num_inference_steps=case["steps"],
        guidance_scale=case["guidance_scale"],
        integer_timesteps=generation.sampling.integer_timesteps,
        shift=generation.shift,
        on_step=on_step,
    )


def check_sampling(
    case: Case, shared: RecordedCheckpoint, name: str, condition: Condition, checks: Checks
) -> None:
    """Check the DiT's timestep at each step, and the result of each recorded step."""
    io, timesteps, after = case.io, [], {}
    watch = shared.model.generation.dit.dit.register_forward_pre_hook(
        lambda _, arguments: timesteps.append(arguments[1][0].item())
    )
    latents = sample(
        case, shared, condition, io[f"{name}.noise"], lambda step, x, _: after.update({step: x})
    )
    watch.remove()
    checks.same(f"{name}: timesteps of the DiT", timesteps, io["dit_timesteps_long"].tolist())
    for match in io.matching(rf"{re.escape(name)}\.latents_after_(\d+)"):
        checks.values(match[0].replace(".", ": "), after[int(match[1]) - 1], io[match[0]])
    checks.values(f"{name}: latents", latents, io[f"{name}.latents"])
    features = latents.flatten(2).transpose(1, 2)
    checks.values(f"{name}: features", features, io[f"{name}.features"])
