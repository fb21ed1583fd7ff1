"""Two ranks of which one alone has edits, whose source images the generator sees."""

import json
from dataclasses import asdict

import pytest
import ranks
import torch
from split_batches import apart, cut, described, plain, sizes, write_conversations

PIECES = [sizes(4), sizes(4, first=4)]
TASKS = ["image_to_image", "text_to_image"]  # of the first rank, of the second
CASES = [
    {"strategy": strategy, "stage": stage, "settings": {"dit_sizes": {"source": source}}}
    for strategy, stage, source in [
        ("ddp", "stage2", "channels"),
        ("fsdp2", "stage2", "channels"),
        ("fsdp2", "stage2", "tokens"),
        ("fsdp2", "joint", "channels"),
    ]
]


@pytest.fixture(scope="module")
def found(edits_folder, weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("edit-ranks")
    talks = write_conversations(out, 8)
    cases = [{**case, "pieces": PIECES, "tasks": TASKS} for case in CASES]
    plan = {"shapes": str(edits_folder), "out": str(out), "weights": asdict(weights), "fits": []}
    plan |= {"talks": str(talks), "cut": cases}
    (out / "plan.json").write_text(json.dumps(plan))
    ranks.run_ranks("ranks.py", out / "plan.json")
    return torch.load(out / "cut.pt", weights_only=True), talks


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_rank_without_edits_waits_for_no_other(number, found, edits_folder, weights):
    """The frozen encoder is split over ranks: all of them encode, or none does."""
    (results, talks), case = found, CASES[number]
    model = described(case["stage"], weights, **case["settings"])
    where = (model, case["stage"], edits_folder, talks)
    halves = zip(PIECES, TASKS, strict=True)
    batches = [cut(*where, piece, tasks=[task])[0] for piece, task in halves]
    assert [each.source_pixels is not None for each in batches] == [True, False]
    alone = [plain(model, batch) for batch in batches]
    names = {name for gradients, _ in alone for name in gradients}
    mean = {name: sum(g[name] for g, _ in alone if name in g) / 2 for name in names}
    assert apart(results[number]["gradients"][0], mean) < 1e-6
    assert results[number]["losses"] == pytest.approx(
        [sum(loss for _, loss in alone) / 2], rel=1e-6
    )
