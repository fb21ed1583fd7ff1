"""Every backbone against the library class it wraps, and the promises of its role."""

import math

import pytest
import timm
import torch
from builders import (
    SIDE,
    built,
    decoder,
    decoder_loss,
    decodes_each_by_its_seed,
    dit,
    eva,
    loss_follows_from_seed_and_samples,
    relative,
    shaken,
    vae,
)
from diffusers import LuminaNextDiT2DModel
from diffusers.models.embeddings import PixArtAlphaTextProjection, get_2d_rotary_pos_embed_lumina
from drawn_images import drawn
from torch import nn

from triptych.backbones import (
    EvaClip,
    KLAutoencoder,
    LuminaNextDiT,
)
from triptych.backbones.eva_clip import CLIP_MEAN, CLIP_STD
from triptych.evaluation.parity.loading import fill, map_keys
from triptych.interfaces import SamplerConfig
from triptych.utils.errors import UserError
from triptych.utils.images import pixels_to_unit

# --- DiT ------------------------------------------------------------------------------------------


def small_dit(**sizes):
    model = dit(**sizes)
    model.configure_shapes((8, 6, 6), 24)
    return shaken(built(model), 0.05)


def test_dit_gives_a_velocity_of_the_features_shape():
    x = torch.randn(2, 8, 6, 6)
    for model in (small_dit(), small_dit(patch_size=2)):
        velocity = model(x, torch.tensor([0.3, 1.0]), torch.randn(2, 5, 24))
        assert velocity.shape == x.shape and velocity.isfinite().all()


@pytest.mark.parametrize("position_std, told_apart", [(0.0, False), (1.0, True)])
def test_dit_distinguishes_equal_tokens_by_learned_positions(position_std, told_apart):
    equal, nothing_said = torch.randn(1, 8, 1, 1).expand(1, 8, 6, 6), torch.zeros(1, 5, 24)
    velocity = small_dit(position_std=position_std)(equal, torch.ones(1), nothing_said)
    spread = (velocity - velocity[..., :1, :1]).abs().max() / velocity.abs().max()
    assert (spread > 1e-2) == told_apart and (spread < 1e-5) != told_apart


def test_dit_that_predicts_features_gives_their_velocity():
    """v = (x_t - x) / t of one network, whose outputs are read as velocity or as features."""
    x, condition = torch.randn(3, 8, 6, 6), torch.randn(3, 5, 24)
    t = torch.tensor([0.01, 0.3, 1.0])
    outputs = small_dit()(x, t, condition)
    velocity = small_dit(prediction="features")(x, t, condition)
    divisor = torch.tensor([0.05, 0.3, 1.0])[:, None, None, None]
    torch.testing.assert_close(velocity, (x - outputs) / divisor)
    features = torch.randn(3, 8, 6, 6)
    noise = (x - (1 - divisor) * features) / divisor
    torch.testing.assert_close((x - features) / divisor, noise - features)


def test_dit_of_the_published_sizes():
    model = LuminaNextDiT()
    model.configure_shapes((1792, 8, 8), 3584)
    with torch.device("meta"):
        model.build()
    assert len(model.dit.layers) == 24
    assert model.dit.layers[0].feed_forward.linear_1.out_features == 4864
    assert model.dit.layers[0].gate.shape == (28,)


@pytest.mark.parametrize(
    ("rule", "published"),  # of published sizes: the width under diffusers' rule, before and after
    [({}, 4864), ({"ffn_dim_multiplier": 1.5}, 7168)],
)
def test_dit_takes_both_feed_forward_widths_that_are_published(rule, published):
    ours = LuminaNextDiT(depth=1, ffn_width=published)
    ours.configure_shapes((1792, 8, 8), 3584)
    with torch.device("meta"):
        ours.build()
        theirs = LuminaNextDiT2DModel(
            8, 1, 1792, 1792, 1, 28, 28, 256, cross_attention_dim=1792, learn_sigma=False, **rule
        )
    shapes = {name: parameter.shape for name, parameter in theirs.named_parameters()}
    assert {name: parameter.shape for name, parameter in ours.dit.named_parameters()} == shapes


@pytest.mark.parametrize("width", [1, 7, 100, 170, 171, 1000])
def test_dit_uses_the_configured_feed_forward_width(width):
    model = small_dit(ffn_width=width)
    assert model.dit.layers[0].feed_forward.linear_2.in_features == width
    assert model(torch.randn(1, 8, 6, 6), torch.ones(1), torch.randn(1, 5, 24)).isfinite().all()


def test_dit_equals_diffusers_with_the_same_weights():
    ours = small_dit()
    theirs = LuminaNextDiT2DModel(
        sample_size=6,
        patch_size=1,
        in_channels=8,
        hidden_size=64,
        num_layers=2,
        num_attention_heads=4,
        num_kv_heads=4,
        multiple_of=32,
        learn_sigma=False,
        qk_norm=True,
        cross_attention_dim=64,
    )
    theirs.load_state_dict(ours.dit.state_dict())
    projection = PixArtAlphaTextProjection(24, 64)
    projection.load_state_dict(ours.caption_projection.state_dict())
    x, t, condition = torch.randn(2, 8, 6, 6), torch.tensor([0.25, 1.0]), torch.randn(2, 5, 24)
    expected = theirs.eval()(
        hidden_states=x,
        timestep=torch.tensor([250.0, 1000.0]),
        encoder_hidden_states=projection(condition),
        encoder_mask=torch.ones(2, 5),
        image_rotary_emb=get_2d_rotary_pos_embed_lumina(16, 384, 384),  # as published, cut there
        cross_attention_kwargs={},
    ).sample
    assert torch.allclose(ours(x, t, condition), expected, atol=1e-6)


def test_dit_listens_through_its_gates():
    x, t = torch.randn(1, 8, 6, 6), torch.tensor([0.5])
    one, other = torch.randn(1, 5, 24), torch.randn(1, 5, 24)
    model = small_dit()
    for layer in model.dit.layers:
        nn.init.zeros_(layer.gate)
    # the pooled condition also joins the time embedding: compare two of the same mean
    same_mean = one.flip(1).roll(2, 1)
    assert torch.allclose(model(x, t, one), model(x, t, same_mean), atol=1e-5)
    assert relative(model(x, t, one), model(x, t, other)) > 1e-3
    assert all(layer.gate.eq(1).all() for layer in built_dit().dit.layers)


def built_dit():
    model = dit(gate_init=1.0)
    model.configure_shapes((8, 6, 6), 24)
    return built(model)


def test_dit_refuses_sizes_that_do_not_fit():
    with pytest.raises(UserError, match="width 64 / heads 5"):
        dit(heads=5)
    with pytest.raises(UserError, match="3x3 feature grid does not fit DiT patch_size 2"):
        dit(patch_size=2).configure_shapes((8, 3, 3), 24)


# --- EVA ------------------------------------------------------------------------------------------


def stock_eva(**options):
    """The tower of timm, as small as ours."""
    sizes = {"img_size": SIDE, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
    name = "eva02_enormous_patch14_clip_224"
    return timm.create_model(name, **sizes, mlp_ratio=2, num_classes=0, **options)


def test_eva_tokens_are_those_of_the_stock_timm_tower():
    ours = shaken(built(eva(standardize=False)), 0.1)
    stock = stock_eva().eval()
    stock.norm = nn.Identity()  # the release takes the last block's output
    state = {}
    for name, tensor in ours.tower.state_dict().items():
        if name.endswith("qkv.bias"):  # stock EVA has no bias on keys
            tensor[32:64] = 0
            state[name.replace("qkv.bias", "q_bias")] = tensor[:32]
            state[name.replace("qkv.bias", "v_bias")] = tensor[64:]
        else:
            state[name] = tensor
    stock.load_state_dict(state)
    pixels = drawn(2)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    expected = stock.forward_features((pixels / 255 - mean) / deviation)[:, 1:]
    assert torch.allclose(ours.tokens(pixels), expected, atol=1e-5)
    assert torch.allclose(ours(pixels), expected.transpose(1, 2).unflatten(2, (3, 3)), atol=1e-5)


def test_eva_takes_the_weights_of_the_stock_timm_tower():
    """Through the layouts, with the bias of queries and of values apart, and then fused."""
    stock = shaken(stock_eva(use_post_transformer_norm=False), 0.1)
    images = torch.randn(2, 3, SIDE, SIDE)
    expected = stock.forward_features(images)[:, 1:]
    apart = map_keys(stock.state_dict())
    # Any bias on keys adds the same to all scores of a query: the softmax takes it away.
    fused = {
        n: t + (torch.arange(len(t)) // 32 == 1) if "qkv.bias" in n else t for n, t in apart.items()
    }
    for state in (apart, fused):
        ours = built(eva(standardize=False))
        fill(ours, "encoder.", state)
        assert torch.allclose(ours.image_tokens(images), expected, atol=1e-5)


def test_eva_of_nothing_is_the_mean_colour():
    model = shaken(built(eva()), 0.1)
    mean = (torch.tensor(CLIP_MEAN) * 255).round().to(torch.uint8)
    grey = mean[:, None, None].expand(1, 3, SIDE, SIDE)
    blank, black = model.blank_features(), model(torch.zeros_like(grey))
    assert blank.shape == (1, 32, 3, 3)
    assert relative(blank, model(grey)) < 0.1 * relative(blank, black)


def test_an_encoder_sees_nothing_in_a_black_image():
    model = built(vae()).eval()
    blank = model.blank_features()
    assert blank.shape == (1, *model.feature_shape)
    assert torch.equal(blank, model(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)))


def test_eva_knows_its_feature_shape_before_it_is_built():
    assert EvaClip().feature_shape == (1792, 8, 8) and not EvaClip().is_built
    for model in (eva(), eva(patch_size=8, pool=2), eva(width=64, patch_size=8)):
        assert built(model).eval()(drawn(2)).shape == (2, *model.feature_shape)


def test_eva_takes_images_of_any_size():
    large = drawn(1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    model = built(eva()).eval()
    assert relative(model(large), model(drawn(1))) < 0.2


def test_eva_pools_row_by_row():
    model = eva(patch_size=8, pool=2)  # 6x6 tokens to 3x3 features
    tokens = torch.arange(36.0)[None, :, None]
    rows = torch.tensor([3.5, 15.5, 27.5])[:, None] + torch.tensor([0.0, 2.0, 4.0])
    assert torch.equal(model.pool_tokens(tokens)[0, 0], rows)


def test_eva_standardizes_its_channels():
    model = shaken(built(eva()), 0.1).train()
    images = drawn(32)
    with torch.no_grad():
        raw = model.pool_tokens(model.tokens(images))
        features = [model.norm(raw) for _ in range(300)][0]  # running statistics take a while
        shown = model.eval()(images)
    assert features.mean((0, 2, 3)).abs().max() < 1e-4
    assert (features.var((0, 2, 3)) - 1).abs().max() < 0.02
    assert (shown.var((0, 2, 3)) - 1).abs().max() < 0.05


def test_eva_refuses_sizes_that_do_not_fit():
    with pytest.raises(UserError, match="image_size 50 is not a multiple of patch_size 16"):
        eva(image_size=50)
    with pytest.raises(UserError, match="width 32 is not a multiple of heads 3"):
        eva(heads=3)


# --- VAE ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"linear_skip": False, "scaling": 0.13},
        {"linear_skip": False, "block_widths": [16, 32], "patch_size": 4, "norm_groups": 4},
    ],
)
def test_vae_round_trip_has_the_images_shape(sizes):
    model = built(vae(**sizes)).eval()
    latents = model(drawn(2))
    assert model.feature_shape == (8, 6, 6) and latents.shape == (2, 8, 6, 6)
    shown = model.decode(latents)
    assert shown.shape == (2, 3, SIDE, SIDE) and shown.dtype == torch.uint8


def test_vae_defaults_are_sdxls():
    model = KLAutoencoder()
    assert model.feature_shape == (4, 128, 128)
    with torch.device("meta"):
        model.build()
    assert sum(p.numel() for p in model.vae.parameters()) == 83_653_863  # SDXL's VAE


@pytest.mark.parametrize(("channels", "least"), [(8, 22.0), (32, 28.0)])
def test_vae_on_principal_components_shows_scenes_it_has_not_seen(channels, least):
    model = built(vae(latent_channels=channels)).eval()
    images = drawn(96)
    model.start_from_principal_components(images[:64])
    latents = model.posterior(images[:64]).mean.detach()
    assert torch.allclose(latents.var((0, 2, 3)), torch.ones(channels), atol=0.01)
    unseen = images[64:]
    error = (model.images(model.posterior(unseen).mean) - pixels_to_unit(unseen)) / 2
    assert -10 * math.log10(error.detach().square().mean()) > least


@pytest.mark.parametrize("scaling", [None, 0.13025])
def test_vae_raw_undoes_standardize(scaling):
    model = built(vae(scaling=scaling))
    if scaling is None:
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.1, 4)
    x = torch.randn(2, 8, 6, 6)
    model.eval()
    assert torch.allclose(model.raw(model.standardize(x)), x, atol=1e-5)
    assert not torch.allclose(model.standardize(x), x, atol=0.1)


def test_vae_refuses_sizes_that_do_not_fit():
    with pytest.raises(UserError, match="image_size 50 is not a multiple of 8"):
        vae(image_size=50)
    with pytest.raises(UserError, match="linear_skip needs a single level"):
        vae(block_widths=[16, 32])


# --- decoder --------------------------------------------------------------------------------------


def small_decoder(**sizes):
    model = decoder(**sizes)
    model.configure_shapes((32, 3, 3))
    return shaken(built(model), 0.02)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_decoder_loss_is_finite_and_trains_only_the_unet(prediction):
    model = small_decoder(prediction=prediction, feature_noise=0.2)
    loss = decoder_loss(model, torch.randn(4, 32, 3, 3), drawn(4), torch.arange(4))
    loss.backward()
    assert loss.shape == () and loss.isfinite()
    assert all(p.grad is not None for p in (*model.unet.parameters(), *model.baseline.parameters()))
    assert all(p.grad is None for p in model.vae.parameters())


def test_decoder_loss_is_a_function_of_seed_and_samples():
    loss_follows_from_seed_and_samples(small_decoder(), drawn(4))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_decoding_an_image_does_not_depend_on_its_neighbours(guidance):
    decodes_each_by_its_seed(small_decoder(), guidance)


def test_decoder_guidance_moves_away_from_the_negative_condition():
    model = small_decoder()
    features, noise = torch.randn(2, 32, 3, 3), torch.randn(2, *model.vae.feature_shape)
    null = torch.randn(1, 32, 3, 3)
    zeros = model.sample(SamplerConfig(2, 3.0), features, noise)
    assert torch.equal(
        zeros,
        model.sample(
            SamplerConfig(2, 3.0), features, noise, negative_features=torch.zeros_like(null)
        ),
    )
    led = model.sample(SamplerConfig(2, 3.0), features, noise, negative_features=null)
    assert relative(led, zeros) > 1e-3
    # one null for all images, and it matters to none where there is no guidance
    assert torch.equal(
        led,
        model.sample(
            SamplerConfig(2, 3.0), features, noise, negative_features=null.expand(2, -1, -1, -1)
        ),
    )
    plain = model.sample(SamplerConfig(2, 1.0), features, noise)
    assert torch.equal(
        plain, model.sample(SamplerConfig(2, 1.0), features, noise, negative_features=null)
    )
    assert torch.allclose(
        plain,
        model.sample(SamplerConfig(2, 2.0), features, noise, negative_features=features),
        atol=1e-4,
    )


@pytest.mark.parametrize("original", [None, 1024])
def test_decoder_tells_the_unet_sizes_and_the_mean_of_the_tokens(original):
    model = small_decoder(original_size=original)
    seen = {}
    model.unet.register_forward_pre_hook(lambda _, a, named: seen.update(named), with_kwargs=True)
    features = torch.randn(3, 32, 3, 3)
    model.sample(SamplerConfig(1), features, torch.randn(3, *model.vae.feature_shape))
    added = seen["added_cond_kwargs"]
    side = original or SIDE
    assert added["time_ids"].tolist() == [[side, side, 0, 0, SIDE, SIDE]] * 6
    assert torch.allclose(added["text_embeds"][:3], features.mean((2, 3)), atol=1e-6)


def test_decoder_refuses_sizes_that_do_not_fit():
    with pytest.raises(UserError, match=r"widths \[32, 32\] and depths \[1\] must pair up"):
        decoder(depths=[1])
    model = decoder()
    model.configure_shapes((32, 4, 4))
    with pytest.raises(UserError, match="6 latents a side are no multiple of 4 features"):
        model.build()


def test_decoder_refuses_no_steps():
    with pytest.raises(UserError, match="at least 1 step, not 0"):
        decoder(sampling=SamplerConfig(num_inference_steps=0))
    with pytest.raises(UserError, match="at least 1 step, not 0"):
        decoder().scheduler(SamplerConfig(num_inference_steps=0))  # 0 is not "the default"


@pytest.fixture
def after_a_loaded_model():
    """As after `transformers`' from_pretrained, if it was the first to use a device context."""
    constructors = torch.utils._device._device_constructors
    constructors.cache_clear()
    plain = torch.linspace
    torch.linspace = lambda *args, **kwargs: plain(*args, **{"device": "cpu", **kwargs})
    with torch.device("meta"):
        torch.empty(1)
    torch.linspace = plain
    yield
    constructors.cache_clear()


def test_a_device_context_holds_for_the_noise_levels_too(after_a_loaded_model):
    model = decoder()
    model.configure_shapes((32, 3, 3))
    with torch.device("meta"):
        assert torch.linspace(0, 1, 2).device.type == "cpu"  # what no longer heeds it
        model.build()
    assert {each.device.type for each in (*model.parameters(), *model.buffers())} == {"meta"}
