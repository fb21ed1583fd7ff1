"""Sampling: query outputs, guided steps of the DiT, features for the decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.contracts import Condition
from triptych.evaluation.parity.checkpoint import START_OF_IMAGE_ID, Checkpoint
from triptych.evaluation.parity.checks import Checks
from triptych.evaluation.parity.recorded import Case
from triptych.prompts import PAD, pad, token_id
from triptych.sampler import sample_flow, times


def recognizes(case: Case) -> bool:
    return case.has_file("io.safetensors") and bool(case.io.matching(r".*\.query_hidden"))


@torch.no_grad()
def check(case: Case, shared: Checkpoint, checks: Checks) -> None:
    io = case.io
    steps = case["steps"]
    grid = torch.from_numpy(times(steps)).float()
    checks.values("sigmas", torch.cat([grid, torch.zeros(1)]), io["sigmas"])
    checks.values("timesteps", 1000 * grid, io["timesteps"])
    pixels, grids = check_picture(io, shared, checks)

    prompts = [match[1] for match in io.matching(r"(.*)\.query_hidden")]
    image_id = shared.understander.model.config.image_token_id
    rows = {name: [*io[f"{name}.input_ids"][0].tolist(), START_OF_IMAGE_ID] for name in prompts}
    for name in prompts:
        shown = (pixels, grids) if image_id in rows[name] else (None, None)
        condition = ask(shared, [rows[name]], *shown)
        checks.values(f"{name}: query_hidden", condition.states, io[f"{name}.query_hidden"])
        check_sampling(case, shared, name, condition, checks)

    # One batch of all of them, padded, as the published code cannot.
    condition = ask(shared, list(rows.values()), pixels, grids)
    hidden = torch.cat([io[f"{name}.query_hidden"] for name in prompts])
    checks.values("all in one batch: query_hidden", condition.states, hidden)
    noise = torch.cat([io[f"{name}.noise"] for name in prompts])
    latents = sample(case, shared, condition, noise)
    recorded = torch.cat([io[f"{name}.latents"] for name in prompts])
    checks.values("all in one batch: latents", latents, recorded)


def check_picture(io, shared: Checkpoint, checks: Checks) -> tuple[Tensor | None, Tensor | None]:
    """Patches and grid of the picture that prompts of a case show, after checking both."""
    if "picture_u8" not in io:
        return None, None
    picture = io["picture_u8"].permute(2, 0, 1)[None]
    pixels, grids = shared.understander.image_inputs(picture)
    checks.values("pixel_values", pixels, io["pixel_values"])
    checks.same("image_grid_thw", grids, io["image_grid_thw"])
    return pixels, grids


def ask(shared: Checkpoint, rows: list[list[int]], pixels, grids) -> Condition:
    """The condition of generation prompts."""
    ids, mask = pad(rows, token_id(shared.understander.tokenizer, PAD))
    queries = shared.model.generation.queries
    return shared.understander.condition(ids, mask, queries, pixels, grids)


def sample(case: Case, shared: Checkpoint, condition: Condition, noise: Tensor, on_step=None):
    """As `GenerationModule.sample`, from recorded noise."""
    generation = shared.model.generation
    return sample_flow(
        generation.dit,
        condition,
        noise,
        case["steps"],
        case["guidance_scale"],
        on_step,
        generation.integer_times,
    )


def check_sampling(
    case: Case, shared: Checkpoint, name: str, condition: Condition, checks: Checks
) -> None:
    io, told, after = case.io, [], {}
    watch = shared.model.generation.dit.dit.register_forward_pre_hook(
        lambda _, arguments: told.append(arguments[1][0].item())
    )
    latents = sample(case, shared, condition, io[f"{name}.noise"], after.__setitem__)
    watch.remove()
    checks.same(f"{name}: times told to the DiT", told, io["dit_timesteps_long"].tolist())
    for match in io.matching(rf"{name}\.latents_after_(\d+)"):
        checks.values(match[0].replace(".", ": "), after[int(match[1]) - 1], io[match[0]])
    checks.values(f"{name}: latents", latents, io[f"{name}.latents"])
    features = latents.flatten(2).transpose(1, 2)
    checks.values(f"{name}: features", features, io[f"{name}.features"])
