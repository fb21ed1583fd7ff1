"""Learning from pairs: the loss and its gradient, what learns, exact resume, what is refused."""

import math

import pytest
import torch
from builders import unified
from lightning import Callback, Trainer
from preference_models import captions, preference_model, preferences, write_preferences

from triptych.data_modules import Collator, ShardFolder, TaskDataset
from triptych.data_modules.sources.base import BadSample
from triptych.interfaces import TEXT_TO_PREFERENCE, bind_condition, drawn
from triptych.loss import mse, path, sample_time
from triptych.modules import PreferenceTuningModule
from triptych.utils.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_preferences(tmp_path_factory.mktemp("pairs") / "preferences")


class Watch(Callback):
    """Keeps what every step logs."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        values = {name: value.item() for name, value in trainer.logged_metrics.items()}
        self.seen.append({**values, "loss": outputs["loss"].item(), "keys": tuple(batch.keys)})


def fit(model, folder, place, steps, resume=None):
    """Train; returns what was seen of every step."""
    watch = Watch()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        limit_val_batches=0,
        log_every_n_steps=1,
        logger=False,
        default_root_dir=place,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[watch],
    )
    trainer.fit(model, preferences(folder), ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(place / "end.ckpt")
    return watch.seen


def batch_of(model, folder, number=4):
    dataset = TaskDataset(ShardFolder(str(folder)).open(), TEXT_TO_PREFERENCE)
    build = Collator([dataset], model.preprocessing())
    return build(0, [(0, place) for place in range(number)], range(number))


def test_a_batch_holds_both_images_in_their_roles(weights, folder):
    model = preference_model(weights)
    batch = batch_of(model, folder)
    assert batch.target_pixels.shape == batch.rejected_pixels.shape == (4, 3, 48, 48)
    source = ShardFolder(str(folder)).open()
    assert [source.caption(n) for n in range(4)] == captions(4)
    assert (batch.target_pixels[:, :, 0, 0] == 0).all()
    assert (batch.rejected_pixels[:, :, 0, 0] == 255).all()


def test_the_first_step_is_the_difference_of_two_flow_losses(weights, folder):
    """-log sigmoid(beta / 2 margin) at a margin of 0 has the gradient -beta / 4 of the margin."""
    model = preference_model(weights, beta=100.0)
    model.configure_model()
    batch, generation = batch_of(model, folder), model.generation
    loss, metrics = model.step(batch)
    assert loss.item() == pytest.approx(math.log(2)) and metrics["accuracy"] == 0
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    draws = drawn(batch, model.preference_tuning.random_draws(), model.seed, model.device)
    t = sample_time(draws["pair-time"], draws["pair-time-normal"], "uniform")
    errors = []
    for pixels in (batch.target_pixels, batch.rejected_pixels):
        x_t, target = path(model.encoder(pixels), draws["pair-noise"], t)
        velocity = bind_condition(generation.dit, generation.condition_of(batch).hidden_states)
        errors.append(mse(velocity(x_t, t), target))
    (100.0 / 4 * (errors[0] - errors[1])).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys() and found
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


def test_preferred_images_become_likelier_than_the_others(weights, folder, tmp_path):
    model = preference_model(weights, beta=50.0)
    first, *_ = fit(model, folder, tmp_path, 40)
    assert first["loss"] == pytest.approx(math.log(2)) and first["train/accuracy"] == 0
    with torch.no_grad():
        loss, metrics = model.step(batch_of(model, folder, 12))
    assert loss < 0.5 and metrics["accuracy"] > 0.8
    assert metrics["chosen"] > metrics["rejected"]


def test_a_resumed_run_compares_with_the_same_weights(weights, folder, tmp_path):
    places = {name: tmp_path / name for name in ("whole", "begun", "resumed")}
    for place in places.values():
        place.mkdir()
    whole = preference_model(weights)
    seen = fit(whole, folder, places["whole"], 4)
    begun = fit(preference_model(weights), folder, places["begun"], 2)
    resumed = preference_model(weights)
    later = fit(resumed, folder, places["resumed"], 4, resume=places["begun"] / "end.ckpt")
    assert seen == [*begun, *later]  # not approximately
    for (name, one), (_, other) in zip(
        whole.named_parameters(), resumed.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name


def test_queries_and_dit_learn_and_nothing_else(weights, folder, tmp_path):
    model = preference_model(weights)
    model.configure_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, folder, tmp_path, 2)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert {name.split(".")[1] for name in changed} == {"queries", "dit"}
    assert all(name.startswith("generation.") for name in changed)


def test_a_sample_without_a_worse_image_is_a_bad_one(weights, shapes_folder):
    model = preference_model(weights)
    dataset = TaskDataset(ShardFolder(str(shapes_folder / "train")).open(), TEXT_TO_PREFERENCE)
    with pytest.raises(BadSample, match="no 'rejected' in its metadata"):
        dataset.prompt(0, 0, model.preprocessing())


def test_what_cannot_teach_is_refused(weights):
    with pytest.raises(UserError, match="beta is 0.0; give"):
        PreferenceTuningModule(beta=0.0)
    with pytest.raises(UserError, match="preferences teach a flow"):
        unified(
            "preferences",
            "clip_mse",
            loss_weights={"preference_tuning": 1.0},
            preference_tuning=PreferenceTuningModule(),
        )
