"""Every backbone against the library class it wraps, and the promises of its role."""

import math

import numpy as np
import pytest
import timm
import torch
from builders import (
    CAPTIONS,
    SIDE,
    batches,
    built,
    decoder,
    decodes_each_by_its_seed,
    dit,
    eva,
    loss_follows_from_seed_and_samples,
    relative,
    shaken,
    vae,
    vlm,
)
from diffusers import LuminaNextDiT2DModel
from diffusers.models.embeddings import PixArtAlphaTextProjection, get_2d_rotary_pos_embed_lumina
from torch import nn

from triptych.backbones import (
    EvaClip,
    KLAutoencoder,
    LuminaNextDiT,
    QwenText,
    QwenVision,
    QwenVL,
)
from triptych.backbones.eva_clip import CLIP_MEAN, CLIP_STD
from triptych.evaluation.parity.loading import fill, map_keys
from triptych.evaluation.shapes.shape_eval import examples
from triptych.interfaces import IMAGE_TO_TEXT, SamplerConfig
from triptych.modules import UnderstandingModule
from triptych.prompts import (
    PAD,
    conversation_ids,
    generation_ids,
    pad,
    reconstruction_ids,
    token_id,
)
from triptych.utils.errors import UserError
from triptych.utils.images import pixels_to_unit


def drawn(number):
    """Images of the shapes world: uint8 [N,3,48,48]."""
    images = np.stack([example.image for example in examples("eval", number)])
    return torch.from_numpy(images).permute(0, 3, 1, 2)


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
    loss = model.loss(torch.randn(4, 32, 3, 3), drawn(4), seed=0, sample_ids=torch.arange(4))
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


# --- Qwen -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen():
    return built(vlm()).eval()


def prompts(tokenizer, kind):
    """Ids and mask of three right-padded rows of different lengths."""
    if kind == "captions":  # they begin alike
        rows = [generation_ids(tokenizer, caption, 256) for caption in CAPTIONS]
    elif kind == "nothing in common":
        rows = [list(range(10 + 50 * i, 10 + 50 * i + 5 * (i + 1))) for i in range(3)]
    else:  # "all the same"
        rows = [generation_ids(tokenizer, CAPTIONS[0], 256)] * 3
    return pad(rows, token_id(tokenizer, PAD))


def mixed_prompts(qwen):
    """Ids, mask, patches and grids of three prompts; the first and the last show an image."""
    tokenizer, images = qwen.tokenizer, drawn(2)
    shown = reconstruction_ids(tokenizer, qwen.image_tokens(), 256)
    rows = [shown, generation_ids(tokenizer, CAPTIONS[0], 256), shown]
    return *pad(rows, token_id(tokenizer, PAD)), *qwen.image_inputs(images)


def test_language_model_refuses_images_that_do_not_fit():
    match = "vlm image_size 56 is not a multiple of 16, which is patch_size 8 x"
    with pytest.raises(UserError, match=match):
        QwenVL("", QwenText(), QwenVision(patch_size=8), image_size=56)


def test_condition_on_images_from_a_cached_prompt_is_that_of_the_whole_pass(qwen):
    ids, mask, patches, grids = mixed_prompts(qwen)
    start, pull = torch.randn(4, 64), torch.randn(3, 4, 64)
    results = {}
    for trains in (True, False):
        qwen.requires_grad_(trains)
        queries = start.clone().requires_grad_()
        states = qwen.condition(ids, mask, queries, patches, grids).hidden_states
        (states * pull).sum().backward()
        results[trains] = states.detach(), queries.grad
    assert all(p.grad is not None for p in qwen.model.model.visual.parameters())
    qwen.zero_grad()
    assert torch.allclose(results[False][0], results[True][0], atol=1e-5)
    assert relative(results[False][1], results[True][1]) <= 1e-5
    # the same words with another image are another condition
    assert relative(results[True][0][0], results[True][0][2]) > 1e-3


def test_images_in_a_batch_of_prompts_stay_with_their_prompt(qwen):
    qwen.requires_grad_(False)
    ids, mask, patches, grids = mixed_prompts(qwen)
    queries = torch.randn(4, 64)
    together = qwen.condition(ids, mask, queries, patches, grids).hidden_states
    own = len(patches) // 2
    inputs = [(patches[:own], grids[:1]), (None, None), (patches[own:], grids[1:])]
    for i, images in enumerate(inputs):
        length = int(mask[i].sum())
        alone = qwen.condition(ids[i : i + 1, :length], mask[i : i + 1, :length], queries, *images)
        assert torch.allclose(together[i], alone.hidden_states[0], atol=1e-5)
    twice = qwen.condition(ids[[0, 0]], mask[[0, 0]], queries, patches, grids).hidden_states
    assert torch.allclose(twice, together[[0, 2]], atol=1e-5)  # equal ids, unequal images


def test_condition_on_an_image_has_one_dimensional_positions(qwen):
    ids, mask, patches, grids = mixed_prompts(qwen)
    length, queries = int(mask[0].sum()), torch.randn(4, 64)
    with torch.no_grad():
        embeds = qwen.embed(ids[:1, :length], patches[: len(patches) // 2], grids[:1])
        expected = qwen.model.model.language_model(
            inputs_embeds=torch.cat([embeds, queries[None]], 1)
        ).last_hidden_state[:, length:]
        ours = qwen.condition(ids, mask, queries, patches, grids).hidden_states[:1]
    assert torch.allclose(ours, expected, atol=1e-5)


def test_condition_on_an_image_may_have_positions_by_row_and_column(qwen, monkeypatch):
    ids, mask, patches, grids = mixed_prompts(qwen)
    length, queries = int(mask[0].sum()), torch.randn(4, 64)
    line = qwen.condition(ids, mask, queries, patches, grids).hidden_states
    monkeypatch.setattr(qwen, "image_positions", "grid")
    image = (ids[0] == qwen.vocabulary.image_pad).nonzero().flatten()
    first, side = int(image[0]), 3
    assert len(image) == side * side
    # text before it counts on; it takes as many positions as it has rows, and so does what follows
    own = torch.arange(length + 4).expand(3, -1).clone()
    own[:, image] = first
    own[1, image] += torch.arange(side * side) // side
    own[2, image] += torch.arange(side * side) % side
    own[:, first + side * side :] -= side * side - side
    with torch.no_grad():
        embeds = qwen.embed(ids[:1, :length], patches[: len(patches) // 2], grids[:1])
        expected = qwen.model.model.language_model(
            inputs_embeds=torch.cat([embeds, queries[None]], 1), position_ids=own[:, None]
        ).last_hidden_state[:, length:]
    results = {}
    for trains in (True, False):
        qwen.requires_grad_(trains)
        results[trains] = qwen.condition(
            ids, mask, queries, patches, grids, num_shared_prefix_tokens=2
        ).hidden_states
        assert torch.allclose(results[trains][:1], expected, atol=1e-5)
    assert torch.allclose(results[True], results[False], atol=1e-5)
    assert torch.allclose(results[False][1], line[1], atol=1e-5)  # a prompt without an image
    assert relative(results[False][0], line[0]) > 1e-3


def test_images_without_a_place_in_the_prompt_are_refused(qwen):
    ids, mask, patches, grids = mixed_prompts(qwen)
    with pytest.raises(UserError, match="18 tokens, the prompts hold 9 placeholders"):
        qwen.condition(ids[:1], mask[:1], torch.randn(4, 64), patches, grids)


@pytest.mark.parametrize("kind", ["captions", "nothing in common", "all the same"])
def test_condition_from_a_cached_prompt_is_that_of_the_whole_pass(qwen, kind):
    ids, mask = prompts(qwen.tokenizer, kind)
    start = torch.randn(4, 64)
    pull = torch.randn(3, 4, 64)
    results = {}
    for trains in (True, False):
        qwen.requires_grad_(trains)
        queries = start.clone().requires_grad_()
        states = qwen.condition(ids, mask, queries).hidden_states
        (states * pull).sum().backward()
        results[trains] = states.detach(), queries.grad
    qwen.zero_grad()
    whole, cached = results[True], results[False]
    assert whole[0].shape == (3, 4, 64)
    assert torch.allclose(cached[0], whole[0], atol=1e-5)
    assert relative(cached[1], whole[1]) <= 1e-5


def test_padding_does_not_change_the_condition(qwen):
    qwen.requires_grad_(False)
    ids, mask = prompts(qwen.tokenizer, "captions")
    queries = torch.randn(4, 64)
    together = qwen.condition(ids, mask, queries).hidden_states
    for i in range(3):
        length = int(mask[i].sum())
        alone = qwen.condition(
            ids[i : i + 1, :length], mask[i : i + 1, :length], queries
        ).hidden_states
        assert torch.allclose(together[i], alone[0], atol=1e-5)
    longer = nn.functional.pad(ids, (0, 7)), nn.functional.pad(mask, (0, 7))
    assert torch.allclose(qwen.condition(*longer, queries).hidden_states, together, atol=1e-5)


def test_condition_equals_the_hidden_states_of_transformers(qwen):
    ids, mask = prompts(qwen.tokenizer, "captions")
    length, queries = int(mask[0].sum()), torch.randn(4, 64)
    language_model = qwen.model.model.language_model
    embeds = torch.cat([language_model.embed_tokens(ids[:1, :length]), queries[None]], 1)
    with torch.no_grad():
        expected = language_model(inputs_embeds=embeds).last_hidden_state[:, length:]
        ours = qwen.condition(ids, mask, queries).hidden_states[:1]
    assert torch.allclose(ours, expected, atol=1e-5)


def test_lm_loss_is_transformers_own(qwen, samples):
    batch = batches(UnderstandingModule(qwen, 256), samples, IMAGE_TO_TEXT, range(6))
    assert 0 < len(batch.image_grid_thw) < 6  # some without image
    with torch.no_grad():
        expected = qwen.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            labels=batch.labels,
            pixel_values=batch.understanding_pixels,
            image_grid_thw=batch.image_grid_thw,
            mm_token_type_ids=(batch.input_ids == qwen.model.config.image_token_id).int(),
        ).loss
        assert qwen.lm_loss(batch).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("seen", [True, False])
def test_answers_of_a_batch_are_those_one_at_a_time(seen, samples):
    qwen = built(vlm(initializer_range=0.3), seed=3).eval()
    tokenizer = qwen.tokenizer
    questions = ["what colour is it?", "how many shapes are there in this image?", "where?"]
    images = drawn(3)
    rows = [
        conversation_ids(tokenizer, [(q, None)], 256, qwen.image_tokens() if seen else 0)[0]
        for q in questions
    ]

    def answers(numbers):
        ids, mask = pad([rows[n] for n in numbers], token_id(tokenizer, PAD), left=True)
        patches, grids = qwen.image_inputs(images[numbers]) if seen else (None, None)
        return qwen.generate_text(ids, mask, patches, grids, max_new_tokens=8)

    together = answers([0, 1, 2])
    assert 1 <= together.shape[1] <= 8
    for n in range(3):
        alone = answers([n])[0]
        assert torch.equal(together[n, : len(alone)], alone)
        assert set(together[n, len(alone) :].tolist()) <= {token_id(tokenizer, PAD)}


def test_image_tokens_are_as_many_as_the_tower_makes(qwen):
    patches, grids = qwen.image_inputs(drawn(2))
    assert grids.tolist() == [[1, 6, 6]] * 2
    assert len(patches) // 4 == 2 * qwen.image_tokens() == 18


def test_reading_images_depends_on_the_images(qwen, samples):
    batch = batches(UnderstandingModule(qwen, 256), samples, IMAGE_TO_TEXT, range(6))
    with torch.no_grad():
        before = qwen.lm_loss(batch)
        batch.understanding_pixels = batch.understanding_pixels.flip(0)
        assert qwen.lm_loss(batch) != before
