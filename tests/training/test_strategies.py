"""Two processes (gloo, CPU) against one: DDP, FSDP2, accumulation, checkpoints between them."""

import json
import sys
from dataclasses import asdict

import processes
import pytest
import ranks
import torch
from split_batches import apart, cut, described, plain, sizes, validated, write_conversations

pytestmark = pytest.mark.slow  # a minute for what all of them look at

STEPS = {"steps": 4, "every": 2}
TWO = [
    {"name": "ddp", "strategy": "ddp", **STEPS},
    {"name": "fsdp2", "strategy": "fsdp2", **STEPS},
    {"name": "files", "strategy": "fsdp2_files", **STEPS},
    {
        "name": "replicated",
        "strategy": "fsdp2",
        "steps": 2,
        "execution": {"frozen_params": "replicate"},
    },
    {"name": "muon_ddp", "strategy": "ddp", "steps": 2, "optimizer": "muon"},
    {"name": "muon_fsdp2", "strategy": "fsdp2", "steps": 2, "optimizer": "muon"},
    {"name": "joint_fsdp2", "strategy": "fsdp2", "stage": "joint", "steps": 1},
    {"name": "decoder_ddp", "strategy": "ddp", "stage": "decoder", "steps": 1},
    {"name": "decoder_fsdp2", "strategy": "fsdp2", "stage": "decoder", "steps": 1},
    *(
        {"name": f"{new}_from_{old}", "strategy": new, "resume": f"{old}/checkpoints/{AT}", **STEPS}
        for AT in ["00000002.ckpt"]
        for new, old in [
            ("ddp", "ddp"),
            ("fsdp2", "fsdp2"),
            ("fsdp2_files", "files"),
            ("fsdp2", "one"),
        ]
    ),
]


# Batches of eight, cut: the pieces of both ranks.
EVEN = [sizes(4), sizes(4, first=4)]
CUT = [sizes(2, 2), sizes(2, 2, first=4)]
UNEVEN = [sizes(1, 2), sizes(4, 1, first=3)]
SHORT = [sizes(1, 1, 1), sizes(1, 1, 1, first=3)]
SILENT_RANK = [4, 5, 6, 7]
CASES = [
    {"strategy": strategy, "stage": stage, "pieces": pieces, "silent": silent}
    for strategy, stage, pieces, silent in [
        ("ddp", "stage1", EVEN, []),
        ("ddp", "stage2", CUT, []),
        ("ddp", "decoder", EVEN, []),
        ("ddp", "joint", CUT, []),
        ("ddp", "joint", UNEVEN, []),
        ("ddp", "joint", CUT, [2, 3]),
        ("ddp", "joint", EVEN, SILENT_RANK),
        ("fsdp2", "joint", EVEN, []),
        ("fsdp2", "joint", CUT, []),
        ("fsdp2", "joint", CUT, SILENT_RANK),
    ]
]
LAST_STEP = {"strategy": "ddp", "stage": "joint", "pieces": SHORT, "accumulate": 2}
VALIDATION = {"strategy": "ddp", "stage": "joint", "pieces": UNEVEN, "validate": True}


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    return write_conversations(tmp_path_factory.mktemp("talks"))


@pytest.fixture(scope="module")
def fits(shapes_folder, talks, weights, tmp_path_factory):
    """Results of all fits by name: those of TWO by two processes that are started once."""
    out = tmp_path_factory.mktemp("ranks")
    one = {"shapes": shapes_folder, "out": out, "weights": asdict(weights), "batch": 8}
    ranks.fit(name="one", **one, **STEPS)
    ranks.fit(name="joint", stage="joint", steps=1, **one)
    ranks.fit(name="muon", steps=2, optimizer="muon", **one)
    ranks.fit(name="accumulated", steps=2, accumulate=4, **{**one, "batch": 2})
    plan = {"shapes": str(shapes_folder), "out": str(out), "weights": asdict(weights), "fits": TWO}
    plan |= {"talks": str(talks), "cut": [*CASES, LAST_STEP, VALIDATION]}
    (out / "plan.json").write_text(json.dumps(plan))
    ranks.run_ranks("ranks.py", out / "plan.json")
    found = {path.stem: torch.load(path, weights_only=True) for path in out.glob("*.pt")}
    return {**found, "folder": out}


@pytest.fixture(scope="module")
def whole_batch(shapes_folder, talks, weights):
    """(stage, samples) -> the model of a stage, and these samples as one batch."""
    models = {}

    def make(stage, samples, **options):
        model = models.setdefault(stage, described(stage, weights))
        (batch,) = cut(model, stage, shapes_folder, talks, [list(samples)], **options)
        return model, batch

    return make


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)


@pytest.mark.parametrize(
    ("name", "within"),
    [("ddp", 1e-6), ("accumulated", 1e-6), ("fsdp2", 1e-5), ("replicated", 1e-5)],
)
def test_gradients_are_those_of_one_process_with_the_whole_batch(fits, name, within):
    assert apart(fits[name]["gradients"], fits["one"]["gradients"]) < within


def test_sharded_frozen_parameters_give_the_gradients_of_replicated_ones(fits):
    shard, replicate = fits["fsdp2"], fits["replicated"]
    assert apart(shard["gradients"], replicate["gradients"]) < 1e-6
    assert shard["losses"][:2] == pytest.approx(replicate["losses"], rel=1e-6)


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_losses_and_weights_stay_those_of_one_process(fits, name):
    assert fits[name]["losses"] == pytest.approx(fits["one"]["losses"], rel=1e-6)
    # Adam divides by the gradient's size: rounding of small gradients becomes whole steps
    assert apart(fits[name]["state"], fits["one"]["state"]) < 1e-5


@pytest.mark.parametrize(("name", "share"), [("muon_ddp", 2), ("muon_fsdp2", 1)])
def test_muon_moves_the_weights_of_one_process_and_ddp_splits_its_work(fits, name, share):
    found, one = fits[name], fits["muon"]
    # matrices with hardly a gradient in some directions are scaled up in these too
    assert apart(found["state"], one["state"]) < 1e-3
    assert found["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert found["facts"]["orthogonalized"] == one["facts"]["orthogonalized"] // share > 0


def test_every_learned_word_counts_the_same_on_any_rank(fits):
    """Ranks have answers of different lengths: a mean of means would weigh them differently."""
    assert apart(fits["joint_fsdp2"]["gradients"], fits["joint"]["gradients"]) < 1e-5


@pytest.mark.parametrize("number", range(len(CASES)))
def test_two_ranks_have_the_gradient_and_the_loss_of_one_batch(number, fits, whole_batch):
    case, found = CASES[number], fits["cut"][number]
    model, whole = whole_batch(case["stage"], range(8), silent=case["silent"])
    gradients, loss = plain(model, whole)
    assert apart(found["gradients"][0], gradients) < 1e-6
    assert found["losses"] == pytest.approx([loss], rel=1e-6)


def test_the_last_step_of_two_ranks_may_have_fewer_batches(fits, whole_batch):
    found = fits["cut"][-2]
    for number, samples in enumerate([[0, 1, 3, 4], [2, 5]]):
        model, whole = whole_batch("joint", samples)
        gradients, loss = plain(model, whole)
        assert apart(found["gradients"][number], gradients) < 1e-6
        assert found["losses"][number] == pytest.approx(loss, rel=1e-6)


def test_a_validation_that_is_spread_over_ranks_has_the_value_of_one(fits, whole_batch):
    model, whole = whole_batch("joint", range(8))
    assert fits["cut"][-1] == pytest.approx(validated(model, [whole]), rel=1e-5)


def test_the_decoder_under_fsdp2_learns_as_under_ddp(fits):
    fsdp2, ddp = fits["decoder_fsdp2"], fits["decoder_ddp"]
    assert apart(fsdp2["gradients"], ddp["gradients"]) < 1e-5


def test_fsdp2_shards_all_or_only_trained_parameters(fits):
    shard, replicate = fits["fsdp2"]["facts"], fits["replicated"]["facts"]
    assert shard["replicated"] == 0 and shard["here"] < 0.51 * shard["all"]
    trained = replicate["trained_bytes"] // 4
    assert replicate["here"] == pytest.approx(replicate["all"] - trained / 2, rel=1e-2)


FROZEN_TOWER = {"trainable": ["understanding.vlm.model.model.language_model", "generation"]}
TRAINED_TOWER = {"trainable": ["understanding.vlm.model.model.visual", "generation"]}
EDITS = ["image_to_image", "text_to_image"]  # of the first rank, of the second
ONE_SEES = [
    {"strategy": strategy, "stage": stage, "pieces": EVEN, "settings": settings, **more}
    for strategy, stage, settings, more in [
        ("ddp", "stage1", {}, {}),
        ("fsdp2", "stage1", {}, {}),
        ("fsdp2", "stage1", {"execution": {"activation_checkpointing": True}}, {}),
        ("fsdp2", "joint", FROZEN_TOWER, {}),
        ("fsdp2", "joint", TRAINED_TOWER, {}),
        ("ddp", "joint", TRAINED_TOWER, {"tasks": EDITS}),
        ("fsdp2", "joint", TRAINED_TOWER, {"tasks": EDITS}),
        ("fsdp2", "stage2", {}, {"tasks": EDITS}),
    ]
]


@pytest.fixture(scope="module")
def seen_by_one(shapes_folder, weights, tmp_path_factory):
    """Results of ONE_SEES, and the conversations: the first rank's have images, no others."""
    out = tmp_path_factory.mktemp("one-sees")
    talks = write_conversations(out, 8, with_image=4)
    plan = {"shapes": str(shapes_folder), "out": str(out), "weights": asdict(weights), "fits": []}
    plan |= {"talks": str(talks), "cut": ONE_SEES}
    (out / "plan.json").write_text(json.dumps(plan))
    ranks.run_ranks("ranks.py", out / "plan.json")
    return torch.load(out / "cut.pt", weights_only=True), talks


@pytest.mark.parametrize("number", range(len(ONE_SEES)))
def test_a_rank_without_images_waits_for_no_other(number, seen_by_one, shapes_folder, weights):
    """Blocks of a split vision tower were gathered by one rank alone: an error, or no end."""
    (found, talks), case = seen_by_one, ONE_SEES[number]
    model = described(case["stage"], weights, **ranks.settings_of(case))
    where = (model, case["stage"], shapes_folder, talks)
    halves = case.get("tasks") and zip(case["pieces"], case["tasks"], strict=True)
    batches = [cut(*where, piece, tasks=[task])[0] for piece, task in halves or ()]
    results = [plain(model, batch) for batch in batches or cut(*where, [list(range(8))])]
    names = {name for gradients, _ in results for name in gradients}
    gradients = {
        name: sum(each[name] for each, _ in results if name in each) / len(results)
        for name in names
    }
    assert apart(found[number]["gradients"][0], gradients) < 1e-6
    loss = sum(loss for _, loss in results) / len(results)
    assert found[number]["losses"] == pytest.approx([loss], rel=1e-6)


THREE = """
from datetime import timedelta

import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from triptych.training.strategies import fix_buckets


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(6))

    def forward(self, x):
        for number in (3, 0, 5, 1, 4, 2):  # not as they are registered
            x = torch.tanh(self.layers[number](x))
        return x.square().sum()


def run(rank, file):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{file}", rank=rank, world_size=3, timeout=timedelta(seconds=120)
    )

    def trained(steps, state):
        model = DistributedDataParallel(Model(), gradient_as_bucket_view=True)
        fix_buckets(model)
        model.load_state_dict(state or model.state_dict())
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for step in steps:
            torch.manual_seed(10 * step + rank)
            optimizer.zero_grad()
            model(torch.randn(8, 64)).backward()
            optimizer.step()
        return model.state_dict()

    whole, resumed = trained(range(6), None), trained(range(3, 6), trained(range(3), None))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


if __name__ == "__main__":
    import sys

    # forks: each would import everything again
    multiprocessing.start_processes(run, (sys.argv[1],), 3, start_method="fork")
"""


def test_three_ranks_of_ddp_resume_bit_for_bit(tmp_path):
    """A sum of three depends on its order, and that on where a gradient lies in DDP's buckets."""
    (tmp_path / "three.py").write_text(THREE)
    command = [sys.executable, tmp_path / "three.py", tmp_path / "store"]
    done = processes.run(command, seconds=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_ddp_has_buckets_only_for_trained_parameters(fits):
    facts = fits["ddp"]["facts"]
    assert facts["bucket_bytes"] == facts["trained_bytes"] < 4 * facts["all"] / 1.7


@pytest.mark.parametrize(
    ("resumed", "whole"),
    [("ddp_from_ddp", "ddp"), ("fsdp2_from_fsdp2", "fsdp2"), ("fsdp2_files_from_files", "files")],
)
def test_resuming_is_bit_identical(fits, resumed, whole):
    assert fits[resumed]["losses"] == fits[whole]["losses"][2:]
    assert same(fits[resumed]["state"], fits[whole]["state"])


def test_run_resumes_under_another_strategy(fits):
    resumed, whole = fits["fsdp2_from_one"], fits["one"]
    assert resumed["losses"] == pytest.approx(whole["losses"][2:], rel=1e-6)
    assert apart(resumed["state"], whole["state"]) < 1e-5


def test_a_whole_checkpoint_is_the_file_that_one_process_writes(fits):
    two, one = (
        torch.load(fits["folder"] / name / "checkpoints" / "00000002.ckpt", weights_only=True)
        for name in ("fsdp2", "one")
    )
    assert two.keys() == one.keys() and two["state_dict"].keys() == one["state_dict"].keys()
    for mine, theirs in zip(two["optimizer_states"], one["optimizer_states"], strict=True):
        assert mine["param_groups"] == theirs["param_groups"]
        for number, state in theirs["state"].items():
            assert {n: t.shape for n, t in mine["state"][number].items()} == {
                n: t.shape for n, t in state.items()
            }


def test_a_sharded_checkpoint_holds_a_file_a_rank_and_no_frozen_part(fits):
    folder = fits["folder"] / "files" / "checkpoints" / "00000002.ckpt"
    parts = sorted(folder.glob("*.distcp"))
    trained = fits["files"]["facts"]["trained_bytes"]
    assert len(parts) == 2 and sum(p.stat().st_size for p in parts) < 3 * trained + 2**20
