"""Parity of text answers: greedy tokens, logits, positions, inputs of the vision tower."""

from __future__ import annotations

import torch

from triptych.backbones import QwenVL
from triptych.evaluation.parity.checkpoint import RecordedCheckpoint
from triptych.evaluation.parity.checks import Checks
from triptych.evaluation.parity.generating import see_image
from triptych.evaluation.parity.recorded import Case, RecordedTensors
from triptych.evaluation.parity.seeing import Seen


def recognizes(case: Case) -> bool:
    """Whether the case records text answers."""
    return case.has_file("io.safetensors") and bool(case.io.matching(r".*\.first_logits"))


@torch.no_grad()
def check(case: Case, shared: RecordedCheckpoint, checks: Checks) -> None:
    """Check greedy answers, the positions of their prompts, and their logits."""
    io, vlm = case.io, shared.vlm
    vlm.model.generation_config.eos_token_id = None  # as recorded: never stop
    image = see_image(io, shared, checks)
    for match in io.matching(r"(.*)\.first_logits"):
        name = match[1]
        ids, output = io[f"{name}.input_ids"], io[f"{name}.output_ids"]
        types = (ids == vlm.model.config.image_token_id).int()
        seen = image if bool(types.any()) else (None, None)
        mask = torch.ones_like(ids)
        answer = vlm.generate_text(ids, mask, *seen, max_new_tokens=output.shape[1])
        checks.same(f"{name}: output_ids", answer, output)
        positions, delta = vlm.model.model.get_rope_index(
            ids, mm_token_type_ids=types, image_grid_thw=seen[1], attention_mask=mask
        )
        checks.same(f"{name}: rope_position_ids", positions, io[f"{name}.rope_position_ids"])
        if name in case["cases"]:
            checks.same(f"{name}: rope_delta", delta, case["cases"][name]["rope_delta"])
        if f"{name}.features" in io:
            features = vlm.image_features(*seen)
            checks.values(f"{name}: features", features, io[f"{name}.features"])
        check_logits(io, vlm, name, seen, checks)


def check_logits(io: RecordedTensors, vlm: QwenVL, name: str, seen: Seen, checks: Checks) -> None:
    """Check the logits of each greedy token, in one pass over prompt and recorded answer."""
    prompt, output = io[f"{name}.input_ids"], io[f"{name}.output_ids"]
    ids = torch.cat([prompt, output[:, :-1]], 1)
    images = {}
    if seen[0] is not None:
        images = {"pixel_values": seen[0], "image_grid_thw": seen[1]}
    logits = vlm.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == vlm.model.config.image_token_id).int(),
        logits_to_keep=output.shape[1],
        use_cache=False,
        **images,
    ).logits
    checks.values(f"{name}: first_logits", logits[:, 0], io[f"{name}.first_logits"])
    chosen = logits.gather(2, output[..., None])[0, :, 0]
    checks.values(f"{name}: chosen_logits", chosen, io[f"{name}.chosen_logits"])
    best = logits[0].topk(2, dim=-1).values
    # The margin is a small difference of large numbers: compare the second logit instead.
    second = io[f"{name}.chosen_logits"] - io[f"{name}.top2_margin"]
    checks.values(f"{name}: second logits, by top2_margin", best[:, 1], second)
