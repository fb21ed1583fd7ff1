"""Equal weights of tokens and samples in the loss, for any split over batches, steps or ranks."""

import math

import pytest
from lightning import Callback
from split_batches import (
    TASKS,
    Listed,
    Steps,
    apart,
    cut,
    described,
    fit,
    plain,
    sizes,
    trainer,
    validated,
    write_conversations,
)

from triptych.callbacks import Checkpoint, GradientNorms, SpikeGuard
from triptych.data_modules import ConversationFile, DatasetConfig, MixedDataModule, ShardFolder
from triptych.interfaces import IMAGE_TO_TEXT, TEXT_TO_IMAGE
from triptych.utils.errors import UserError

STAGES = list(TASKS)
CUTS = [(8,), (4, 4), (2, 2, 2, 2), (1,) * 8, (3, 5), (1, 4, 3)]


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    return write_conversations(tmp_path_factory.mktemp("talks"))


@pytest.fixture(scope="module")
def model_of(weights):
    """The model of a stage, the same one each time: its weights never change."""
    made = {}
    return lambda stage: made.setdefault(stage, described(stage, weights))


@pytest.fixture
def pieces(model_of, shapes_folder, talks):
    """(stage, pieces) -> model and batches."""

    def make(stage, parts, **options):
        model = model_of(stage)
        return model, cut(model, stage, shapes_folder, talks, parts, **options)

    return make


@pytest.mark.parametrize("parts", CUTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
def test_a_batch_of_eight_has_one_gradient_and_one_loss_however_it_is_cut(stage, parts, pieces):
    model, (whole,) = pieces(stage, sizes(8))
    gradients, loss = plain(model, whole)
    model, batches = pieces(stage, sizes(*parts))
    seen, _ = fit(model, batches, len(parts))
    assert apart(seen.gradients[0], gradients) < 1e-6
    assert seen.losses == pytest.approx([loss], rel=1e-6)


def test_the_cuts_would_differ_if_batches_weighed_equally(pieces):
    """The texts are of such lengths that a mean of means is another number."""
    model, batches = pieces("stage1", sizes(4, 4))
    _, (whole,) = pieces("stage1", sizes(8))
    means = [plain(model, batch)[1] for batch in batches]
    assert abs(sum(means) / 2 - plain(model, whole)[1]) > 1e-2


@pytest.mark.parametrize("stage", ["stage1", "stage2", "joint"])
@pytest.mark.parametrize("limit", [None, 5])
def test_the_last_step_of_an_epoch_may_have_fewer_batches(stage, limit, pieces):
    """Three batches a step: of seven the last is alone, of five the last two are."""
    model, batches = pieces(stage, sizes(*[1] * 7))
    steps = math.ceil((limit or 7) / 3)
    seen, _ = fit(model, batches, 3, steps, limit_train_batches=limit)
    for number in range(steps):
        first = 3 * number
        left = min(3, (limit or 7) - first)
        gradients, loss = plain(model, pieces(stage, sizes(left, first=first))[1][0])
        assert apart(seen.gradients[number], gradients) < 1e-6
        assert seen.losses[number] == pytest.approx(loss, rel=1e-6)


def test_every_epoch_counts_anew(pieces):
    model, batches = pieces("stage1", sizes(*[1] * 5))
    seen, _ = fit(model, batches, 3, steps=4, max_epochs=2)
    assert seen.losses[:2] == seen.losses[2:] and seen.losses[0] != seen.losses[1]


@pytest.mark.parametrize("stage", ["stage1", "joint"])
@pytest.mark.parametrize("silent", [(2, 3), (0, 1), (0, 1, 2, 3, 4, 5)])
def test_a_micro_batch_may_have_nothing_to_learn(stage, silent, pieces):
    model, (whole,) = pieces(stage, sizes(8), silent=silent)
    gradients, loss = plain(model, whole)
    model, batches = pieces(stage, sizes(2, 2, 2, 2), silent=silent)
    seen, _ = fit(model, batches, 4)
    assert apart(seen.gradients[0], gradients) < 1e-6
    assert seen.losses == pytest.approx([loss], rel=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_with_nothing_to_learn_has_no_gradient(accumulate, pieces):
    model, batches = pieces("stage1", sizes(*[2] * accumulate), silent=(0, 1, 2, 3))
    seen, _ = fit(model, batches, accumulate)
    assert seen.losses == [0.0]
    assert seen.gradients[0] and not any(g.any() for g in seen.gradients[0].values())


class SavesOnce(Callback):
    """A checkpoint after the first step."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == 1 and not self.path.exists():
            trainer.save_checkpoint(self.path)


def test_a_resumed_run_takes_the_steps_of_one_that_did_not_end(pieces, tmp_path):
    """Inside of an epoch whose last step is a shorter one."""
    model, batches = pieces("stage1", sizes(*[1] * 5))
    file = tmp_path / "one.ckpt"
    whole, _ = fit(model, batches, 2, steps=3, callbacks=(SavesOnce(file),))
    seen, _ = fit(model, batches, 2, steps=3, start=2, resume=file)
    assert seen.losses == whole.losses[1:]
    assert [apart(a, b) for a, b in zip(seen.gradients, whole.gradients[1:], strict=True)] == [0, 0]


def test_gradient_accumulation_needs_a_counting_loader(pieces):
    model, batches = pieces("stage1", sizes(1, 1))
    runner = trainer(max_steps=1, accumulate_grad_batches=2, limit_val_batches=0)
    with pytest.raises(UserError, match=r"accumulate_grad_batches is 2.*AccumulationLoader"):
        runner.fit(model, Listed(batches))
    runner = trainer(max_steps=1, limit_val_batches=0)
    runner.fit(model, Listed(batches))


# --- who reads losses -----------------------------------------------------------------------------


def test_guards_and_norms_read_the_whole_step(pieces):
    found = {}
    for parts in [(8,), (2, 2, 2, 2), (5, 3)]:
        model, batches = pieces("stage1", sizes(*parts))
        guard = SpikeGuard()
        _, runner = fit(model, batches, len(parts), callbacks=(guard, GradientNorms()))
        logged = {name: value.item() for name, value in runner.callback_metrics.items()}
        assert guard.mean.item() == pytest.approx(logged["train/loss"])
        found[parts] = [guard.mean.item(), logged["grad_norm/all"]]
    for each in found.values():
        assert each == pytest.approx(found[(8,)], rel=1e-5)


# --- validation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_a_validation_has_one_value_whatever_the_size_of_batches(stage, pieces):
    model, (whole,) = pieces(stage, sizes(8))
    expected = validated(model, [whole])
    assert {"val/loss"} < expected.keys()
    for parts in [(4, 4), (3, 3, 2), (1,) * 8]:
        _, batches = pieces(stage, sizes(*parts))
        assert validated(model, batches) == pytest.approx(expected, rel=1e-5)


# --- from data sets -------------------------------------------------------------------------------


def mixed(talks, shapes_folder, batch_size, num_val_samples=8, joint=False):
    """Talks, and in joint training captioned images, in their order as it is drawn."""
    sets = {"talks": DatasetConfig(ConversationFile(str(talks)), IMAGE_TO_TEXT)}
    if joint:
        sets["shapes"] = DatasetConfig(ShardFolder(str(shapes_folder / "eval")), TEXT_TO_IMAGE)
    return MixedDataModule(
        sets, batch_size=batch_size, num_val_samples=num_val_samples, length_bucket_batches=1
    )


@pytest.mark.parametrize("stage", ["stage1", "joint"])
def test_a_run_on_data_sets_does_not_depend_on_the_size_of_its_batches(
    stage, model_of, shapes_folder, talks
):
    found = []
    for accumulate in (1, 2, 8):
        seen = Steps()
        options = {"max_steps": 2, "accumulate_grad_batches": accumulate, "limit_val_batches": 0}
        data = mixed(talks, shapes_folder, 8 // accumulate, joint=stage == "joint")
        trainer((seen,), **options).fit(model_of(stage), data)
        found.append(seen)
    for seen in found[1:]:
        assert seen.losses == pytest.approx(found[0].losses, rel=1e-6)
        for own, other in zip(seen.gradients, found[0].gradients, strict=True):
            assert apart(own, other) < 1e-6


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 4), (4, 1), (8, 2)])
def test_run_resumes_with_other_accumulation(
    before, after, model_of, shapes_folder, talks, tmp_path
):
    def run(accumulate, steps, folder, **options):
        seen = Steps()
        checkpoint = Checkpoint(every_n_train_steps=1, save_async=False)
        runner = trainer(
            (seen, checkpoint),
            max_steps=steps,
            accumulate_grad_batches=accumulate,
            limit_val_batches=0,
            enable_checkpointing=True,
            default_root_dir=folder,
        )
        data = mixed(talks, shapes_folder, 8 // accumulate)
        runner.fit(model_of("stage1"), data, weights_only=True, **options)
        return seen, checkpoint.last_model_path

    whole, _ = run(1, 5, tmp_path / "whole")
    _, last = run(before, 3, tmp_path / "begun")
    seen, _ = run(after, 5, tmp_path / "on", ckpt_path=last)
    assert seen.losses == pytest.approx(whole.losses[3:], rel=1e-6)
    for own, other in zip(seen.gradients, whole.gradients[3:], strict=True):
        assert apart(own, other) < 1e-6


def test_a_joint_validation_sees_each_family_to_its_end(model_of, shapes_folder, talks):
    """Twelve talks and sixteen images: in batches of any size one ends before the other."""
    model, found = model_of("joint"), []
    for batch_size in (16, 5, 3, 1):
        runner = trainer()
        runner.validate(model, mixed(talks, shapes_folder, batch_size, 16, True), verbose=False)
        found.append({name: value.item() for name, value in runner.callback_metrics.items()})
    for each in found:
        assert each == pytest.approx(found[0], rel=1e-5)
        parts = each["val/understanding"] + each["val/generation"]
        assert each["val/loss"] == pytest.approx(parts, rel=1e-6)
