"""One training step: every intermediate from the prompt to the gradients."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from triptych.checkpoints.published import key_mapping
from triptych.evaluation.parity.checkpoint import Checkpoint
from triptych.evaluation.parity.checks import Checks
from triptych.evaluation.parity.recorded import Case, Tensors
from triptych.evaluation.parity.seeing import Seen, check_seeing
from triptych.interfaces import Condition
from triptych.loss import mse, path, sample_time
from triptych.prompts import PAD, pad, token_id
from triptych.utils.errors import UserError


def recognizes(case: Case) -> bool:
    """Whether the case records a training step."""
    return case.has_file("io.safetensors") and "img_hidden_states" in case.io


def check(case: Case, shared: Checkpoint, checks: Checks) -> None:
    """The lines of `GenerationModule.step`, with recorded noise, time and drop."""
    io, model = case.io, shared.model
    model.zero_grad(set_to_none=True)
    generation, understander = model.generation, shared.understander
    starts = io["i_s_pos"].tolist()
    rows = [row[:start].tolist() for row, start in zip(io["input_ids"], starts, strict=True)]
    ids, mask = pad(rows, token_id(understander.tokenizer, PAD))
    seen = see_images(io, shared, checks)

    with torch.no_grad():
        embeddings = understander.embed(ids, *seen)
    shown = io["attention_mask"].bool()
    sequences = [
        torch.cat([row[:start], generation.queries])
        for row, start in zip(embeddings, starts, strict=True)
    ]
    checks.same("tokens and queries of each row", shown.sum(1), [len(row) for row in sequences])
    checks.values("inputs_embeds", torch.cat(sequences), io["inputs_embeds"][shown])

    inputs = (ids, mask, generation.queries, *seen)
    condition = understander.condition(*inputs)
    checks.values("img_hidden_states", condition.states, io["img_hidden_states"])
    check_whole_pass(shared, inputs, io, checks)

    with torch.no_grad():
        images = recorded_images(case, shared)
        features = model.encoder.pool_tokens(model.encoder.image_tokens(images))
    if "latents" in io:
        checks.values("latents", features, io["latents"])

    t = io["timesteps"].double() / 1000
    on_the_grid = sample_time((io["timesteps"] - 0.5) / 1000, torch.zeros(len(t)), "uniform")
    checks.values("timesteps are times of ours", on_the_grid, t)
    x_t, target = path(features, io["noise"], t)
    condition = condition.drop(io["drop_mask"].bool())
    prediction = generation.dit(x_t, t, condition.states)
    loss = mse(prediction, target)
    loss.backward()
    if "dit_x" in io:
        checks.values("dit_x", x_t, io["dit_x"])
    if "dit_z" in io:
        checks.values("dit_z", condition.states, io["dit_z"])
    checks.values("noise_pred", prediction, io["noise_pred"])
    checks.values("loss", loss, io["loss"])
    check_gradients(case, shared, checks)


def see_images(io: Tensors, shared: Checkpoint, checks: Checks) -> Seen:
    """The images that prompts of a case show, if any."""
    if "und_image" not in io:
        return None, None
    seen = check_seeing(shared, io["und_pictures_u8"], io["und_image"], io["grid_thw"], checks)
    with torch.no_grad():
        features = shared.understander.image_features(*seen)
    checks.values("und_features", features, io["und_features"])
    return seen


def check_whole_pass(shared: Checkpoint, inputs: tuple, io: Tensors, checks: Checks) -> None:
    """The condition once more, without the cached prompt: as while the language model trains."""
    language_model = shared.understander.model.model.language_model
    language_model.requires_grad_(True)
    try:
        condition: Condition = shared.understander.condition(*inputs)
    finally:
        language_model.requires_grad_(False)
    checks.values("img_hidden_states, whole pass", condition.states, io["img_hidden_states"])


def recorded_images(case: Case, shared: Checkpoint) -> Tensor:
    """The normalized target images, which one case may have from another."""
    if "gen_image" in case.io:
        return case.io["gen_image"].float()
    return shared.siblings[borrowed_from(case)].io["gen_image"].float()


def borrowed_from(case: Case) -> str | None:
    """The name of the case whose target images this one takes; None where it has its own."""
    if "gen_image" in case.io:
        return None
    named = re.search(r"(\S+)/io", case["gen_image"])
    if named is None:
        raise UserError(f"{case.folder} neither holds a gen_image nor says whose it takes.")
    return named[1]


def check_gradients(case: Case, shared: Checkpoint, checks: Checks) -> None:
    """Recorded gradients in full, the norms of all, and that nothing else has one."""
    io = case.io
    gradients = {
        key_mapping.published_key(name): key_mapping.to_published(name, parameter.grad)
        for name, parameter in shared.model.named_parameters()
        if parameter.grad is not None
    }
    for match in io.matching(r"grad\.(.*)"):
        checks.gradient(f"gradient of {match[1]}", gradients.get(match[1]), io[match[0]])
    if "grad_norms" in case:
        norms = case["grad_norms"]
        checks.same("what has a gradient", sorted(gradients), sorted(norms))
        ours = [gradients[key].norm().item() if key in gradients else 0.0 for key in norms]
        checks.gradient(
            "norms of all gradients", torch.tensor(ours), torch.tensor(list(norms.values()))
        )
