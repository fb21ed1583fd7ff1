"""Sizes of the published presets, counted on the meta device."""

import pytest
import torch
from builders import ROOT

from triptych.backbones import QwenText, QwenVision, QwenVL, Vocabulary
from triptych.inference.loading import describe_model
from triptych.training.freezing import freeze_all_but
from triptych.utils.errors import UserError

# Counted in the published system: queries, DiT and its caption projection (diffusers' inert
# pad_token is none of it); the frozen EVA tower; the UNet of the decoder.
PUBLISHED = {
    "blip3o_4b": {"trained": 1_362_388_896, "width": 2048, "vlm": 3_754_074_112},
    "blip3o_8b": {"trained": 1_365_239_712, "width": 3584, "vlm": 8_289_328_128},
}
TOWER, UNET = 4_350_208_256, 2_525_520_644


def described(preset, *flags):
    return describe_model([ROOT / "conf" / "presets" / f"{preset}.yaml"], flags)


def size(parameters):
    return sum(parameter.numel() for parameter in parameters)


@pytest.fixture(scope="module", params=sorted(PUBLISHED))
def preset(request):
    """The name of a published preset, and its model built on the meta device."""
    model = described(request.param)
    with torch.device("meta"):
        model.build()
    return request.param, model


def test_stage_2_trains_as_many_parameters_as_published(preset):
    name, model = preset
    trained = freeze_all_but(model, ["generation"])
    found = size(p for n, p in model.named_parameters() if n in trained)
    assert found == PUBLISHED[name]["trained"]


def test_frozen_parts_have_the_published_sizes(preset):
    name, model = preset
    assert size(model.encoder.parameters()) == TOWER
    assert size(model.decoding.decoder.unet.parameters()) == UNET
    assert size(model.understanding.parameters()) == PUBLISHED[name]["vlm"]


def test_shapes_between_the_panels_are_the_published_ones(preset):
    name, model = preset
    assert model.generation.queries.shape == (64, PUBLISHED[name]["width"])
    assert model.encoder.feature_shape == (1792, 8, 8)
    embedding = model.understanding.vlm.model.model.language_model.embed_tokens
    assert embedding.weight.shape == (151668, PUBLISHED[name]["width"])
    assert model.understanding.vlm.image_tokens() == 256
    assert model.generation.dit.dit.layers[0].feed_forward.linear_1.out_features == 4864
    add = model.decoding.decoder.unet.add_embedding.linear_1
    assert (add.in_features, add.out_features) == (3328, 1280)
    assert model.vae.image_size == 1024


def test_no_trick_of_the_tiny_preset_is_on(preset):
    _, model = preset
    assert not model.encoder.standardize and model.decoding.decoder.baseline is None
    assert (
        model.generation.query_init_std == 1.0
        and model.generation.flow.timestep_sampling == "uniform"
    )
    assert model.generation.dit.gate_init == 0.0
    assert model.understanding.vlm.text.rms_norm_eps == 1e-6
    assert model.decoding.decoder.prediction == "epsilon"


def test_images_are_sampled_as_the_released_weights_were_scored(preset):
    _, model = preset
    assert model.decoder_negative == "space_prompt" and model.generation.sampling.integer_timesteps
    assert model.generation.prompt.template == "published_inference"
    assert (
        model.generation.sampling.num_inference_steps,
        model.generation.sampling.guidance_scale,
    ) == (30, 3.0)
    decoder = model.decoding.decoder
    assert (
        decoder.sampling.num_inference_steps,
        decoder.sampling.guidance_scale,
        decoder.original_size,
    ) == (
        50,
        3.0,
        1024,
    )


def test_published_preset_without_tokenizer_fails_at_first_use():
    model = described("blip3o_4b")
    with pytest.raises(UserError, match=r"no tokenizer at weights/blip3o_4b/tokenizer.*convert"):
        model.preprocessing()


def small(vocabulary):
    return QwenVL(
        "asset:tiny/tokenizer", QwenText(64, 128, 2, 4, 2), QwenVision(), vocabulary=vocabulary
    )


def test_a_tokenizer_must_agree_with_the_vocabulary_that_was_given(tokenizer):
    true = Vocabulary.of(tokenizer)
    assert small(None).vocabulary == true
    assert len(small(true).tokenizer) == true.rows
    roomy = Vocabulary(**{**vars(true), "rows": true.rows + 8})
    assert len(small(roomy).tokenizer) == true.rows
    assert small(roomy).config().text_config.vocab_size == true.rows + 8
    with pytest.raises(UserError, match=r"pad \d+ instead of 151643"):
        _ = small(Vocabulary()).tokenizer
    few = Vocabulary(**{**vars(true), "rows": 100})
    with pytest.raises(UserError, match=r"\d+ tokens for 100 rows"):
        _ = small(few).tokenizer
