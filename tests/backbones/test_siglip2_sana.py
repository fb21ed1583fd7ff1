"""SigLIP 2 and SANA: against their library classes, as parts of the model, from their folders."""

import pytest
import torch
from builders import (
    ROOT,
    SIDE,
    built,
    decoder_loss,
    decodes_each_by_its_seed,
    loss_follows_from_seed_and_samples,
    shaken,
)
from diffusers import SanaTransformer2DModel
from small_siglip2_sana import (
    DC_AE,
    images,
    library_sana,
    library_siglip,
    released_features,
    sana,
    siglip,
    small_sana,
)
from tolerances import assert_same_images
from torch import nn
from transformers import (
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from triptych.backbones import DCAutoencoder, Siglip2
from triptych.inference.loading import describe_model
from triptych.interfaces import SamplerConfig
from triptych.utils.errors import UserError
from triptych.utils.images import pixels_to_unit
from triptych.utils.rng import uniform


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


# --- the encoder ----------------------------------------------------------------------------------


def test_features_are_the_pooled_hidden_states_before_the_last_layer():
    theirs = library_siglip()
    ours = built(siglip()).eval()
    missing, unused = ours.tower.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing
    assert all(n.startswith(("encoder.layers.2.", "post_layernorm.", "head.")) for n in unused)
    tokens, features = released_features(theirs, images(2))
    assert torch.equal(ours.tokens(images(2)), tokens)
    assert torch.equal(ours(images(2)), features)


def test_images_become_numbers_as_in_siglips_own_processor():
    processor = SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    theirs = processor(images=list(images(2)), return_tensors="pt")["pixel_values"]
    assert torch.allclose(pixels_to_unit(images(2)), theirs, atol=1e-7)  # one rounding


def test_encoder_knows_its_feature_shape_before_it_is_built():
    assert Siglip2().feature_shape == (1152, 8, 8) and not Siglip2().is_built
    for model in (siglip(), siglip(grid=4), siglip(patch_size=16, width=48)):
        assert built(model).eval()(images(2, 64)).shape == (2, *model.feature_shape)


def test_encoder_refuses_sizes_that_do_not_fit():
    with pytest.raises(UserError, match="image_size 50 is not a multiple of patch_size 8"):
        siglip(image_size=50)
    with pytest.raises(UserError, match="width 32 is not a multiple of heads 3"):
        siglip(heads=3)
    with pytest.raises(UserError, match="depth 1 must be 2 or more"):
        siglip(depth=1)
    with pytest.raises(UserError, match="grid 8 is finer than the 6x6 patches"):
        siglip(grid=8)


# --- the autoencoder ------------------------------------------------------------------------------


def test_autoencoder_is_diffusers_with_scaled_latents():
    _, theirs = library_sana()
    ours = built(DCAutoencoder(**DC_AE)).eval()
    ours.vae.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        latents = ours(images(2))
        raw = theirs.encode(pixels_to_unit(images(2))).latent
        shown = theirs.decode(raw).sample
    assert latents.shape == (2, *ours.feature_shape) == (2, 4, 6, 6)
    assert torch.equal(latents, raw * 0.41407)
    expected = ((shown.clamp(-1, 1) + 1) * 127.5).round()
    back = ours.decode(latents)
    assert back.dtype == torch.uint8 and (back - expected).abs().max() <= 1  # rounding


def test_autoencoder_refuses_sizes_that_do_not_fit():
    with pytest.raises(UserError, match="image_size 50 is not a multiple of 8"):
        DCAutoencoder(**{**DC_AE, "image_size": 50})
    with pytest.raises(UserError, match="must be equally long"):
        DCAutoencoder(**{**DC_AE, "encoder_depths": [1, 1]})


# --- the decoder ----------------------------------------------------------------------------------


def test_velocity_is_that_of_diffusers_behind_the_connector():
    ours = small_sana()
    theirs, _ = library_sana()
    theirs.load_state_dict(ours.transformer.state_dict())
    features, x, t = torch.randn(2, 32, 3, 3), torch.randn(2, 4, 6, 6), torch.tensor([0.25, 1.0])
    first, _, second, norm = ours.connector
    tokens = features.permute(0, 2, 3, 1).reshape(2, 9, 32)
    hidden = second(nn.functional.gelu(first(tokens), approximate="tanh"))
    hidden = hidden * (hidden.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norm.weight
    with torch.no_grad():
        expected = theirs(x, hidden, torch.tensor([250.0, 1000.0])).sample
        assert torch.allclose(ours.velocity(x, t, ours.condition(features)), expected, atol=1e-5)


def test_connector_starts_at_the_published_scale():
    model = sana()
    model.configure_shapes((32, 3, 3))
    condition = built(model).condition(torch.randn(4, 32, 3, 3))
    assert condition.shape == (4, 9, 48)
    assert condition.square().mean().item() == pytest.approx(5.5, rel=0.01)


def test_loss_is_finite_and_trains_only_transformer_and_connector():
    model = small_sana()
    loss = decoder_loss(model, torch.randn(4, 32, 3, 3), images(4), torch.arange(4))
    loss.backward()
    assert loss.shape == () and loss.isfinite()
    for name, parameter in model.named_parameters():
        trained = name.split(".")[0] in model.trained_parts
        assert (parameter.grad is not None) == trained, name
        assert not trained or parameter.grad.any(), name


def test_loss_of_no_velocity_is_the_mean_square_of_noise_minus_latents():
    model = small_sana(cond_drop_prob=0.0)
    features, pixels, samples = torch.randn(8, 32, 3, 3), images(8), torch.arange(8)
    seen = {}

    def record(module, given):
        seen["x_t"], seen["t"] = given[0], given[2] / 1000

    model.transformer.register_forward_pre_hook(record)
    nn.init.zeros_(model.transformer.proj_out.weight)
    nn.init.zeros_(model.transformer.proj_out.bias)
    with torch.no_grad():
        loss = decoder_loss(model, features, pixels, samples)
        data = model.vae(pixels)
    # x_t = (1 - t) data + t noise, so noise - data = (x_t - data) / t
    target = (seen["x_t"] - data) / seen["t"][:, None, None, None]
    assert loss.item() == pytest.approx(target.square().mean().item(), rel=1e-4)
    assert (1000 * seen["t"]).frac().abs().max() < 1e-3 and seen["t"].unique().numel() == 8


def test_loss_is_a_function_of_seed_and_samples():
    loss_follows_from_seed_and_samples(small_sana(), images(4))


def test_one_sample_in_ten_trains_on_the_black_image():
    model = small_sana()
    seen = []
    model.connector.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    features = torch.randn(300, 32, 3, 3)
    with torch.no_grad():
        decoder_loss(model, features, images(1).expand(300, -1, -1, -1), torch.arange(300))
    rows = seen[0].transpose(1, 2).unflatten(2, (3, 3))
    null = (rows == model.null_features).flatten(1).all(1)
    assert torch.equal(rows[~null], features[~null])
    assert torch.equal(null, uniform(0, "decoder-drop", range(300)) < 0.1)
    assert 15 <= null.sum() <= 45  # 30, give or take three deviations


def test_guidance_is_against_the_black_image():
    model = small_sana()
    features = torch.randn(2, 32, 3, 3)
    of_null = model.null_features.expand(2, -1, -1, -1)

    def shown(features, guidance):
        return model.decode(features, [0, 1], num_inference_steps=3, guidance_scale=guidance)

    plain, guided = shown(features, 1.0), shown(features, 6.0)
    assert_same_images(shown(of_null, 1.0), shown(of_null, 6.0))
    assert not torch.equal(plain, guided)
    model.set_null_features(torch.randn(32, 3, 3))
    assert torch.equal(plain, shown(features, 1.0))
    assert not torch.equal(guided, shown(features, 6.0))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_an_image_depends_on_its_seed_and_not_on_its_neighbours(guidance):
    decodes_each_by_its_seed(small_sana(), guidance)


def test_decoder_refuses_sizes_that_do_not_fit():
    with pytest.raises(UserError, match="width 64 is no multiple of heads 5 and cross_heads 2"):
        sana(heads=5)
    with pytest.raises(UserError, match="width 64 is no multiple of heads 4 and cross_heads 3"):
        sana(cross_heads=3)


def test_decoder_refuses_no_steps():
    with pytest.raises(UserError, match="at least 1 step, not 0"):
        sana(sampling=SamplerConfig(num_inference_steps=0))
    with pytest.raises(UserError, match="at least 1 step, not 0"):
        small_sana().decode(torch.randn(1, 32, 3, 3), [0], num_inference_steps=0)


# --- built on meta --------------------------------------------------------------------------------


def test_model_built_on_meta_runs_after_loading_weights():
    encoder, decoder = shaken(built(siglip())), small_sana()
    features = encoder(images(2)).detach()
    twins = siglip(), sana()
    twins[1].configure_shapes((32, 3, 3))
    twins[1].connect(decoder.vae)
    for twin, original in zip(twins, (encoder, decoder), strict=True):
        with torch.device("meta"):
            twin.build()
        twin.to_empty(device="cpu")
        twin.load_state_dict(original.state_dict())
        twin.eval()
        for name, buffer in twin.named_buffers():  # in no state dict: anything may be in there
            assert name not in original.state_dict()
            buffer.fill_(-1)
    twins[1].set_null_features(decoder.null_features)
    assert torch.equal(twins[0](images(2)), features)
    assert torch.equal(twins[1].decode(features, [0, 1]), decoder.decode(features, [0, 1]))


@pytest.fixture(scope="module")
def preset():
    """conf/presets/siglip2_sana.yaml, built on the meta device."""
    model = describe_model([ROOT / "conf" / "presets" / "siglip2_sana.yaml"])
    with torch.device("meta"):
        model.build()
    return model


def test_the_preset_has_the_published_sizes(preset):
    # Published SigLIP 2: patches and positions, then 27 layers of four attention maps, the
    # feed-forward network and two norms; a final norm and a pooling head, neither of which we
    # build, nor the last layer.
    width, mlp = 1152, 4304
    embeddings = 3 * 16 * 16 * width + width + 32 * 32 * width
    layer = 4 * (width + 1) * width + 2 * width * mlp + mlp + width + 2 * 2 * width
    with torch.device("meta"):
        tower = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=width,
                intermediate_size=mlp,
                num_hidden_layers=27,
                num_attention_heads=16,
                image_size=512,
                patch_size=16,
            )
        )
        transformer = SanaTransformer2DModel(sample_size=16)  # diffusers' defaults: SANA 1600M
    assert size(tower) == 428_772_800
    assert size(tower) - size(tower.head) - size(tower.post_layernorm) == embeddings + 27 * layer
    assert size(preset.encoder) == embeddings + 26 * layer == 398_292_640
    decoder = preset.decoding.decoder
    assert size(decoder.transformer) == size(transformer) == 1_604_462_752
    shapes = {name: p.shape for name, p in transformer.named_parameters()}
    assert {name: p.shape for name, p in decoder.transformer.named_parameters()} == shapes
    caption = 2304
    linear = (width + 1) * caption + (caption + 1) * caption
    assert size(decoder.connector) == linear + caption == 7_969_536
    assert size(preset.vae) == 312_250_275 and preset.vae.feature_shape == (32, 16, 16)


def test_preset_generates_features_of_its_encoder(preset):
    assert preset.encoder.feature_shape == preset.generation.feature_shape == (1152, 8, 8)
    assert preset.generation.dit.dit.patch_embedder.proj.in_features == 1152
    assert preset.generation.dit.condition_width == 2048
    assert preset.generation.dit.dit.layers[0].feed_forward.linear_1.out_features == 4864
    assert (
        preset.decoding.decoder.sampling.guidance_scale == 3.0
        and preset.decoding.decoder.sampling.num_inference_steps == 30
    )
    assert preset.decoding.decoder.cond_drop_prob == 0.1
