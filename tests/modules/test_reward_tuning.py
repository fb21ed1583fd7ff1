"""Learning from rewards: what is drawn, what learns, exact resume, and what is refused."""

import pytest
import torch
from lightning import Callback, Trainer
from reward_models import ALGORITHMS, brightness, model_of, prompts

from triptych.callbacks import Checkpoint
from triptych.interfaces import FlowSamplerConfig
from triptych.modules import (
    AdvantageWeightedMatching,
    DiffusionNFT,
    FlowGRPO,
    RewardTuningModule,
)
from triptych.utils.errors import UserError


class Watch(Callback):
    """Keeps the loss and the logged values of every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        values = {name: value.item() for name, value in trainer.logged_metrics.items()}
        self.seen.append({**values, "loss": outputs["loss"].item(), "keys": tuple(batch.keys)})


def fit(model, folder, steps, *callbacks, resume=None, validate=None, accumulate=1, **settings):
    """Train; returns what was seen of every step."""
    watch = Watch()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        val_check_interval=validate or 1000,
        check_val_every_n_epoch=None,
        limit_val_batches=None if validate else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
        callbacks=[watch, *callbacks],
    )
    trainer.fit(model, prompts(**settings), ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(folder / "end.ckpt")
    return watch.seen


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_resumed_run_draws_and_learns_the_same(algorithm, weights, tmp_path):
    """Stopped between the two steps that learn from one set of images."""
    folders = {name: tmp_path / name for name in ("whole", "begun", "resumed")}
    for folder in folders.values():
        folder.mkdir()
    whole = model_of(weights, algorithm)
    seen = fit(whole, folders["whole"], 5)
    begun = fit(model_of(weights, algorithm), folders["begun"], 3)
    resumed = model_of(weights, algorithm)
    later = fit(resumed, folders["resumed"], 5, resume=folders["begun"] / "end.ckpt")
    assert seen == [*begun, *later]  # not approximately
    for (name, one), (_, other) in zip(
        whole.named_parameters(), resumed.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name


def test_queries_and_dit_learn_and_nothing_else(weights, tmp_path):
    model = model_of(weights)
    model.configure_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, tmp_path, 2)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert {name.split(".")[1] for name in changed} == {"queries", "dit"}
    assert all(name.startswith("generation.") for name in changed)


def test_a_set_of_images_is_learned_from_several_times(weights, tmp_path):
    seen = fit(model_of(weights), tmp_path, 4)
    assert [each["keys"] for each in seen[::2]] == [each["keys"] for each in seen[1::2]]
    assert seen[0]["keys"] != seen[2]["keys"]
    rewards = [each["train/reward"] for each in seen]
    assert rewards[0] == rewards[1] != rewards[2]
    assert seen[0]["loss"] != seen[1]["loss"]  # other noise


def test_micro_batches_of_a_step_have_images_of_their_own(weights, tmp_path):
    """Four micro-batches, two a step, then the same again: one iteration, one policy that draws."""
    model = model_of(weights)
    seen = fit(model, tmp_path, 2, accumulate=2)
    keys = [each["keys"] for each in seen]
    assert keys[:2] == keys[2:] and keys[0] != keys[1]
    assert model.reward_tuning.iteration == 0 and len(model.reward_tuning._drawn) == 2
    fit(resumed := model_of(weights), tmp_path, 4, accumulate=2)
    assert resumed.reward_tuning.iteration == 1


@pytest.mark.parametrize("algorithm", ["matching", "grpo", "cps"])
def test_ratios_are_exactly_one_before_the_first_update(algorithm, weights, tmp_path):
    model = model_of(weights, algorithm, reference_weight=0.0)
    first, second, *_ = fit(model, tmp_path, 2)
    assert first["train/ratio"] == 1 and first["train/ratio_std"] == 0
    assert second["train/ratio_std"] > 0


@pytest.mark.parametrize("algorithm", ["matching", "grpo", "cps"])
def test_equal_rewards_teach_nothing(algorithm, weights, tmp_path):
    model = model_of(
        weights, algorithm, lambda images, samples: torch.ones(len(images)), reference_weight=0.0
    )
    model.configure_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen = fit(model, tmp_path, 2)
    assert seen[0]["train/equal_groups"] == 1 and seen[0]["train/reward_std"] == 0
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_policy_that_draws_follows_the_one_that_learns(weights, tmp_path):
    model = model_of(weights)
    fit(model, tmp_path, 4)
    tuning = model.reward_tuning
    assert tuning.iteration == 1 and tuning._old.distance() > 0
    tuning._old.follow(0.0)
    assert tuning._old.distance() == 0


def test_a_validation_scores_held_out_prompts_and_leaves_the_run_as_it_is(weights, tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    model = model_of(weights)
    with_it = fit(model, tmp_path / "a", 3, validate=1)
    metrics = model.trainer.callback_metrics
    assert metrics["val/loss"] == -metrics["val/reward"] < 0
    without = fit(model_of(weights), tmp_path / "b", 3)
    assert [each["loss"] for each in with_it] == [each["loss"] for each in without]


def test_a_reward_that_fails_stops_the_run_with_a_checkpoint(weights, tmp_path):
    calls = []

    def fails_later(images, samples):
        calls.append(len(images))
        if len(calls) > 2:
            raise ConnectionError("the judge is down")
        return brightness(images, samples)

    model = model_of(weights, reward=fails_later)
    with pytest.raises(UserError, match="'fails_later' failed on 4 images with ConnectionError"):
        fit(model, tmp_path, 6, Checkpoint(every_n_train_steps=100))
    (saved,) = [path for path in tmp_path.rglob("*.ckpt") if not path.is_symlink()]
    assert torch.load(saved, weights_only=True)["global_step"] == 2


@pytest.mark.parametrize(
    "make,said",
    [
        (lambda: RewardTuningModule(group_size=1), "group_size is 1; give 2 images"),
        (lambda: RewardTuningModule(sampling=FlowSamplerConfig()), "guidance_scale is 3.0; give 1"),
        (lambda: RewardTuningModule(reference_weight=-1.0), "reference_weight -1.0"),
        (lambda: DiffusionNFT(beta=0.0), "beta 0.0"),
        (lambda: FlowGRPO(1), "1 steps and window None"),
        (lambda: FlowGRPO(4, window=4), "window 4"),
        (lambda: FlowGRPO(4, step="ode"), "'ode'; choose one of sde, cps"),
        (lambda: FlowGRPO(4, step="cps", noise_level=1.5), "at most 1 for cps"),
        (lambda: AdvantageWeightedMatching(clip=0.0), "clip 0.0"),
    ],
)
def test_what_cannot_teach_is_refused(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_a_missing_reward_is_named_before_weights_are_read(weights):
    with pytest.raises(UserError, match="no reward; name one, --model.reward="):
        model_of(weights, reward=None).configure_model()
