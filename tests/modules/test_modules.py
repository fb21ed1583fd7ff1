"""The panels and the unified model: trainable and frozen parts, outputs."""

from dataclasses import replace

import pytest
import torch
from builders import (
    CAPTIONS,
    FAST,
    SIDE,
    STAGES,
    batches,
    data,
    decoder,
    dit,
    eva,
    needed,
    steps,
    trained_names,
    unified,
    vae,
    vlm,
)
from lightning import Trainer
from PIL import Image
from tolerances import assert_same_images

from triptych.callbacks import WriteImages
from triptych.checkpoints import WeightFiles
from triptych.inference import image_generation
from triptych.inference.model_inference import inference_of
from triptych.interfaces import IMAGE_TO_TEXT, TEXT_TO_IMAGE, FlowSamplerConfig
from triptych.modules import (
    GenerationModule,
    PixelDecoderModule,
    UnderstandingModule,
    UnifiedModule,
)
from triptych.prompts import PAD, PromptConfig, pad, reconstruction_ids, token_id
from triptych.utils.errors import UserError

OBJECTIVES = ["clip_flow", "clip_mse", "vae_flow"]
TASKS = {
    "stage1": [IMAGE_TO_TEXT],
    "joint": [TEXT_TO_IMAGE, IMAGE_TO_TEXT],
}


def configured(stage, weights, **settings):
    model = unified(stage, weights=needed(weights, stage), **settings)
    model.configure_model()
    return model.train()


def stage_batches(model, samples, stage):
    return [batches(model, samples, task) for task in TASKS.get(stage, [TEXT_TO_IMAGE])]


def snapshot(model, names=None):
    every = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {n: t.detach().clone() for n, t in every.items() if names is None or n in names}


# --- objectives -----------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_learns_and_makes_images(objective, weights, samples):
    model = configured("stage2", weights, objective=objective)
    losses = steps(model, batches(model, samples, TEXT_TO_IMAGE), 8)
    assert losses[-1] < 0.8 * losses[0]
    model.eval()
    images = inference_of(model).generate(CAPTIONS, seeds=[0, 1, 2])
    assert images.shape == (3, 3, SIDE, SIDE) and images.dtype == torch.uint8
    features = model.generation.sample(image_generation.condition(model, CAPTIONS), [0, 1, 2])
    assert features.shape == (3, *model.target_encoder.feature_shape)
    assert model.target_encoder.feature_shape == ((8, 6, 6) if "vae" in objective else (32, 3, 3))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_is_a_function_of_seed_and_samples(objective, weights, samples):
    model = configured("stage2", weights, objective=objective)
    batch = batches(model, samples, TEXT_TO_IMAGE)
    with torch.no_grad():
        first, again = model.step(batch)[0], model.step(batch)[0]
        batch.sample_ids, batch.draws = batch.sample_ids + 100, {}
        other = model.step(batch)[0]
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (objective == "clip_mse")


def test_a_batch_may_bring_its_features(weights, samples):
    model = configured("stage2", weights)
    batch = batches(model, samples, TEXT_TO_IMAGE)
    with torch.no_grad():
        expected = model.step(batch)[0]
        batch.target_features, batch.target_pixels = model.encoder(batch.target_pixels), None
        assert torch.equal(model.step(batch)[0], expected)


def test_draws_of_a_sample_share_its_condition_and_average_its_losses(weights, samples):
    model = configured("stage2", weights)
    batch = batches(model, samples, TEXT_TO_IMAGE)
    qwen, asked = model.understanding.vlm, []
    condition = qwen.condition
    qwen.condition = lambda ids, *rest, **named: (
        asked.append(len(ids)) or condition(ids, *rest, **named)
    )
    numbers = batch.sample_ids
    batch.draws = {}
    with torch.no_grad():
        model.generation.flow = replace(model.generation.flow, num_noise_samples=2)
        together = model.step(batch)[0]
        model.generation.flow = replace(model.generation.flow, num_noise_samples=1)
        alone = []
        for draw in range(2):
            batch.sample_ids = 2 * numbers + draw
            alone.append(model.step(batch)[0])
    assert asked == [len(batch)] * 3
    assert torch.allclose(together, sum(alone) / 2, rtol=1e-5) and not torch.equal(*alone)


def test_drop_is_the_null_condition(weights, samples):
    model = configured("stage2", weights)
    batch = batches(model, samples, TEXT_TO_IMAGE)
    model.generation.flow = replace(model.generation.flow, cond_drop_prob=1.0)
    with torch.no_grad():
        before = model.step(batch)[0]
        model.generation.queries.mul_(2)
        assert torch.equal(model.step(batch)[0], before)
        model.generation.flow = replace(model.generation.flow, cond_drop_prob=0.0)
        assert not torch.equal(model.step(batch)[0], before)


def test_a_prompt_may_show_images(weights, samples):
    """Image to image: the batch brings patches, and the queries' outputs depend on them."""
    model = configured("stage2", weights)
    known = model.preprocessing()
    batch = batches(model, samples, TEXT_TO_IMAGE)
    rows = [reconstruction_ids(known.tokenizer, known.image_tokens, 256)] * 4
    batch.input_ids, batch.attention_mask = pad(rows, token_id(known.tokenizer, PAD))
    batch.understanding_pixels, batch.image_grid_thw = known.image_inputs(batch.target_pixels)
    losses = steps(model, batch, 8)
    assert losses[-1] < losses[0]
    model.eval()
    with torch.no_grad():
        first = model.step(batch)[0]
        batch.understanding_pixels = batch.understanding_pixels.flip(0)
        assert not torch.equal(model.step(batch)[0], first)
    assert model.predict_step(batch, 0)["images"].shape == (4, 3, SIDE, SIDE)


# --- the negative of the decoder ------------------------------------------------------------------


def guided(weights, negative, **settings):
    """A model whose decoder is guided away from `negative`."""
    model = configured("stage2", weights, decoder_negative=negative, **settings).eval()
    decoder = model.decoding.decoder
    decoder.sampling = replace(decoder.sampling, guidance_scale=3.0)
    return model


def test_negatives_are_of_three_kinds(weights):
    images = {}
    for kind in ("zeros", "space_prompt", "black_image"):
        model = guided(weights, kind)
        null = model.negative_features(kind)
        assert (null is None) == (kind == "zeros")
        assert null is None or null.shape == (1, 32, 3, 3)
        images[kind] = inference_of(model).generate(CAPTIONS, seeds=[0, 1, 2])
    assert not torch.equal(images["zeros"], images["space_prompt"])
    assert not torch.equal(images["zeros"], images["black_image"])
    assert not torch.equal(images["space_prompt"], images["black_image"])


def test_the_negative_prompt_is_a_run_of_its_own_seed(weights):
    model = guided(weights, "space_prompt", decoder_negative_seed=5)
    tokenizer = model.preprocessing().tokenizer
    ids = torch.tensor([[*tokenizer(" ")["input_ids"], token_id(tokenizer, "[IMG]")]])
    with torch.no_grad():
        condition = model.understanding.vlm.condition(
            ids, torch.ones_like(ids), model.generation.queries
        )
    expected = model.generation.sample(condition, [5])
    assert torch.equal(model.negative_features("space_prompt"), expected)
    other = guided(weights, "space_prompt", decoder_negative_seed=6).negative_features(
        "space_prompt"
    )
    assert not torch.equal(other, expected)


def test_training_uses_the_prompt_template_of_inference(weights):
    model = configured("stage2", weights).eval()
    caption = " a red circle\n"
    stripped = image_generation.condition(model, [caption]).hidden_states
    assert torch.equal(stripped, image_generation.condition(model, ["a red circle"]).hidden_states)
    model.generation.prompt = PromptConfig(training_template="published_training")
    assert torch.equal(stripped, image_generation.condition(model, [caption]).hidden_states)
    model.generation.prompt = PromptConfig(template="published_inference")
    assert not torch.equal(stripped, image_generation.condition(model, [caption]).hidden_states)


def test_the_negative_is_made_once_and_anew_after_training(weights, samples):
    model = guided(weights, "space_prompt")
    first = model.negative_features("space_prompt")
    assert model.negative_features("space_prompt") is first
    with torch.no_grad():
        model.generation.queries.mul_(2)
    model.train().eval()
    assert not torch.equal(model.negative_features("space_prompt"), first)


def test_a_reconstruction_is_led_away_from_the_blank_image(weights):
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    shown = {
        k: inference_of(guided(weights, k)).reconstruct(images, seeds=[0, 1])
        for k in ("space_prompt", "black_image")
    }
    assert torch.equal(shown["space_prompt"], shown["black_image"])
    assert not torch.equal(
        shown["black_image"],
        inference_of(guided(weights, "zeros")).reconstruct(images, seeds=[0, 1]),
    )


def test_image_does_not_depend_on_other_requests(weights):
    """Neither the first image nor its neighbours change another: each has its seed."""
    model = guided(weights, "space_prompt")
    together = inference_of(model).generate(CAPTIONS, seeds=[7, 8, 9])
    for number in (2, 0, 1):
        fresh = guided(weights, "space_prompt")
        alone = inference_of(fresh).generate(CAPTIONS[number : number + 1], seeds=[7 + number])[0]
        assert_same_images(alone, together[number])
        again = inference_of(model).generate(CAPTIONS[number : number + 1], seeds=[7 + number])[0]
        assert torch.equal(again, alone)
    other = inference_of(model).generate(CAPTIONS[:1], seeds=[8])[0]
    assert (other.int() - together[0].int()).abs().max() > 1


# --- what trains ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_trains_its_parts_and_nothing_else(stage, weights, samples):
    model = configured(stage, weights)
    before = snapshot(model)
    losses = steps(model, stage_batches(model, samples, stage), 5)
    assert losses[-1] < losses[0]
    after = snapshot(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    allowed = set(model.trained_state())
    assert changed <= allowed
    assert model.trained <= allowed
    for part in STAGES[stage]["trainable"]:
        assert any(name.startswith(part) for name in changed)
    frozen = before.keys() - allowed
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert len(frozen) > 10 or stage in ("stage1", "encoder")


def test_stage_2_gradients_reach_only_queries_and_dit(weights, samples):
    model = configured("stage2", weights)
    model.step(batches(model, samples, TEXT_TO_IMAGE))[0].backward()
    reached = trained_names(model)
    assert "generation.queries" in reached
    assert "generation.dit.caption_projection.linear_1.weight" in reached
    assert any(name.startswith("generation.dit.dit.layers.0.attn2") for name in reached)
    assert all(name.startswith("generation.") for name in reached)
    assert all(p.grad is None for p in model.understanding.parameters())


def test_joint_training_teaches_the_language_model_from_both_sides(weights, samples):
    model = configured("joint", weights)
    generation, understanding = stage_batches(model, samples, "joint")
    inside = "understanding.vlm.model.model.language_model.layers.0.mlp.up_proj.weight"
    gradients = {}
    for name, batch in (("generation", generation), ("understanding", understanding)):
        model.zero_grad()
        loss, metrics = model.step(batch)
        loss.backward()
        assert list(metrics) == [name]
        gradients[name] = trained_names(model)
        assert inside in gradients[name]
    assert "generation.queries" in gradients["generation"]
    assert not any(name.startswith("generation.") for name in gradients["understanding"])
    assert not any(".visual." in name for name in gradients["generation"])
    assert any(".visual." in name for name in gradients["understanding"])


def test_losses_are_weighted(weights, samples):
    model = configured("stage2", weights)
    batch = batches(model, samples, TEXT_TO_IMAGE)
    with torch.no_grad():
        once = model.step(batch)[0]
        model.loss_weights = {"generation": 0.5}
        half, metrics = model.step(batch)
    assert torch.equal(half, 0.5 * once) and torch.equal(metrics["generation"], once)


# --- what is refused ------------------------------------------------------------------------------


def test_an_unknown_loss_is_refused():
    with pytest.raises(UserError, match="'generatoin' is no panel; choose from"):
        unified(loss_weights={"generatoin": 1.0})


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"num_inference_steps": 0}, "at least 1 step, not 0"),
        ({"guidance_interval": (0.9, 0.1)}, r"sampling\.guidance_interval is 0\.9 to 0\.1; give"),
    ],
)
def test_generation_with_an_impossible_sampler_is_refused(setting, told):
    with pytest.raises(UserError, match=told):
        GenerationModule(dit(), sampling=FlowSamplerConfig(**setting))


def test_a_missing_panel_is_refused():
    with pytest.raises(UserError, match="understanding loss needs the panel 'understanding'"):
        UnifiedModule(loss_weights={"understanding": 1.0})
    with pytest.raises(UserError, match="generation loss needs the panel 'encoder'"):
        UnifiedModule(
            understanding=UnderstandingModule(vlm()),
            generation=GenerationModule(dit()),
            loss_weights={"generation": 1.0},
        )


def test_a_batch_that_no_loss_takes_is_refused(weights, samples):
    model = configured("stage2", weights)
    with pytest.raises(UserError, match="no loss of this stage takes language_modeling batches"):
        model.step(batches(model, samples, IMAGE_TO_TEXT))


# --- inference ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(weights):
    """The whole model, nothing trains; generation is random."""
    model = configured("stage2", weights)
    return model.requires_grad_(False).eval()


def test_an_image_is_that_of_its_prompt_and_seed(whole):
    together = inference_of(whole).generate(CAPTIONS, seeds=[4, 5, 6])
    assert torch.equal(together, inference_of(whole).generate(CAPTIONS, seeds=[4, 5, 6]))
    for i, caption in enumerate(CAPTIONS[:2]):
        alone = inference_of(whole).generate([caption], seeds=[4 + i])[0]
        assert_same_images(alone, together[i])
    other = inference_of(whole).generate(CAPTIONS[:1], seeds=[7])[0]
    assert (other.int() - together[0].int()).abs().max() > 10


def test_steps_and_guidance_are_options_of_a_call(whole):
    condition = image_generation.condition(whole, CAPTIONS[:1])
    sample = whole.generation.sample
    base = sample(condition, [0])
    assert torch.equal(base, sample(condition, [0], num_inference_steps=3, guidance_scale=3.0))
    assert not torch.equal(base, sample(condition, [0], num_inference_steps=5))
    assert not torch.equal(base, sample(condition, [0], guidance_scale=1.0))


def test_reconstructions_and_answers_have_the_right_shape(whole, samples):
    pixels = batches(whole, samples, TEXT_TO_IMAGE).target_pixels
    shown = inference_of(whole).reconstruct(pixels, seeds=[0, 1, 2, 3])
    assert shown.shape == pixels.shape and shown.dtype == torch.uint8
    answers = inference_of(whole).answer(pixels, ["what is it?"] * 4, max_new_tokens=4)
    assert len(answers) == 4 and all(isinstance(answer, str) for answer in answers)
    large = torch.nn.functional.interpolate(pixels, scale_factor=2)
    assert len(inference_of(whole).answer(large, ["what is it?"] * 4, max_new_tokens=4)) == 4
    assert len(inference_of(whole).answer(None, ["what?"], max_new_tokens=4)) == 1


def test_predictions_are_images_named_by_their_samples(whole, shapes_folder, tmp_path):
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[WriteImages(str(tmp_path / "out"))],
        enable_progress_bar=False,
    )
    (prediction,) = trainer.predict(whole, data(shapes_folder), weights_only=True)
    assert prediction["images"].shape == (4, 3, SIDE, SIDE)
    shown = sorted((tmp_path / "out").iterdir())
    assert [path.stem for path in shown] == sorted(prediction["keys"])
    assert all(Image.open(path).size == (SIDE, SIDE) for path in shown)


def test_an_empty_prompt_is_refused(whole):
    with pytest.raises(UserError, match="the prompt is empty"):
        inference_of(whole).generate([" "], seeds=[0])
    with pytest.raises(UserError, match="question 1 is empty"):
        inference_of(whole).answer(None, [""])


# --- each panel alone -----------------------------------------------------------------------------


def fit(panel, folder, stage, steps=2):
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=1,
        val_check_interval=steps,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer.fit(panel, data(folder, stage))
    assert trainer.global_step == steps
    return trainer.logged_metrics


def test_understanding_panel_trains_by_itself(shapes_folder):
    panel = UnderstandingModule(vlm(), max_tokens=256, optimization=FAST)
    metrics = fit(panel, shapes_folder, "stage1")
    assert metrics["train/understanding"] == metrics["train/loss"] > 0
    assert metrics["val/loss"] > 0


@pytest.mark.parametrize("objective", ["clip_flow", "clip_mse"])
def test_generation_panel_trains_by_itself(objective, shapes_folder, weights):
    panel = GenerationModule(
        dit(),
        num_queries=4,
        objective=objective,
        vlm=vlm(),
        encoder=eva(),
        optimization=FAST,
        weights=WeightFiles(understanding=weights.understanding, encoder=weights.encoder),
    )
    metrics = fit(panel, shapes_folder, "stage2")
    assert metrics["train/generation"] > 0
    assert all(n == "queries" or n.startswith("dit.") for n in panel.trained)


def test_decoding_panel_trains_by_itself_without_captions(shapes_folder, weights):
    panel = PixelDecoderModule(
        decoder(),
        eva(),
        vae(),
        optimization=FAST,
        trainable=["decoder.unet", "decoder.baseline"],
        weights=WeightFiles(encoder=weights.encoder, vae=weights.vae),
    )
    metrics = fit(panel, shapes_folder, "decoder")
    assert metrics["train/decoding"] > 0
    assert not any(n.startswith(("encoder.", "vae.")) for n in panel.trained)


def test_single_panel_names_its_missing_frozen_part():
    panel = GenerationModule(dit(), vlm=vlm(), encoder=eva())
    with pytest.raises(UserError, match="`make train-(stage1|encoder)` makes them"):
        panel.configure_model()


def test_draws_of_the_loader_are_those_of_the_step(weights, samples):
    for stage, task in (("stage2", TEXT_TO_IMAGE), ("decoder", TEXT_TO_IMAGE)):
        model = configured(stage, weights)
        batch = batches(model, samples, task)
        names = {draw.stream for draw in model.random_draws()}
        assert names and batch.draws.keys() == names
        with torch.no_grad():
            loaded = model.step(batch)[0]
            assert torch.equal(model.step(replace(batch, draws={}))[0], loaded)
            moved = {name: values.flip(0) for name, values in batch.draws.items()}
            assert not torch.equal(model.step(replace(batch, draws=moved))[0], loaded)
