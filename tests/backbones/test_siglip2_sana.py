"""SigLIP 2 and SANA: against their library classes, as parts of the model, from their folders."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from builders import (
    ROOT,
    SIDE,
    batches,
    built,
    decodes_each_by_its_seed,
    loss_follows_from_seed_and_samples,
    relative,
    shaken,
    unified,
)
from diffusers import AutoencoderDC, SanaTransformer2DModel
from safetensors.torch import load_file, save_file
from tolerances import assert_close, assert_same_images
from torch import nn
from transformers import (
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from triptych.backbones import DCAutoencoder, SanaDecoder, Siglip2
from triptych.checkpoints import WeightFiles
from triptych.checkpoints.published.siglip_sana import convert_siglip_sana, full_names
from triptych.cli.main import main
from triptych.inference.loading import describe_model
from triptych.inference.model_inference import inference_of
from triptych.interfaces import TEXT_TO_IMAGE, ImageEncoder, SamplerConfig
from triptych.modules import PixelDecoderModule, UnifiedModule
from triptych.utils.errors import UserError
from triptych.utils.images import pixels_to_unit
from triptych.utils.rng import uniform

# 6x6 patches of 8 pixels, pooled to 3x3 features
SIGLIP = {"image_size": SIDE, "patch_size": 8, "width": 32, "depth": 3, "heads": 2}
SIGLIP |= {"mlp_width": 64, "grid": 3}
# 6x6 latents, the last of the four levels with attention
DC_AE = {"image_size": SIDE, "latent_channels": 4, "block_widths": [16, 32, 32, 32]}
DC_AE |= {"encoder_depths": [1] * 4, "decoder_depths": [1] * 4, "attention_levels": 1}
SANA = {
    "width": 64,
    "depth": 2,
    "heads": 4,
    "cross_heads": 2,
    "caption_width": 48,
    "sampling": SamplerConfig(num_inference_steps=2),
}


def siglip(**sizes):
    return Siglip2(**{**SIGLIP, **sizes})


def dc_ae():
    return DCAutoencoder(**DC_AE)


def sana(**sizes):
    model = SanaDecoder(**{**SANA, **sizes})
    model.connect(dc_ae())
    return model


def small_sana(**sizes):
    """A built decoder that knows its null condition."""
    model = sana(**sizes)
    model.configure_shapes((32, 3, 3))
    model = shaken(built(model), 0.05)
    model.set_null_features(torch.randn(32, 3, 3, generator=torch.Generator().manual_seed(5)))
    return model


def images(number, side=SIDE):
    """Random images uint8 [N,3,side,side]."""
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (number, 3, side, side), dtype=torch.uint8, generator=generator)


def library_siglip(whole=False):
    """The tower as transformers has it, alone or inside a whole SigLIP, with all three layers."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    vision = {**sizes, "num_hidden_layers": 3, "image_size": SIDE, "patch_size": 8}
    torch.manual_seed(0)
    if not whole:
        return shaken(SiglipVisionModel(SiglipVisionConfig(**vision)))
    text = {**sizes, "num_hidden_layers": 1, "vocab_size": 64, "projection_size": 32}
    text |= {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
    return shaken(SiglipModel(SiglipConfig(vision_config=vision, text_config=text)))


def library_sana():
    """Transformer and autoencoder as diffusers has them, built from their own arguments."""
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=16,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=32,
        cross_attention_dim=64,
        caption_channels=48,
        sample_size=6,
    )
    blocks, scales = ("ResBlock",) * 3 + ("EfficientViTBlock",), ((), (), (), (5,))
    vae = AutoencoderDC(
        latent_channels=4,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(16, 32, 32, 32),
        decoder_block_out_channels=(16, 32, 32, 32),
        encoder_layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )
    return shaken(transformer, 0.05), shaken(vae, 0.05)


def released_features(tower, pixels):
    """Features of images by the published encoder: tokens and pooled."""
    with torch.no_grad():
        states = tower(pixels_to_unit(pixels), output_hidden_states=True).hidden_states
    grid = states[-2].transpose(1, 2).unflatten(2, (6, 6))
    assert relative(states[-2], states[-1]) > 0.1  # the choice of layer shows
    return states[-2], nn.functional.adaptive_avg_pool2d(grid, 3)


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
    loss = model.loss(torch.randn(4, 32, 3, 3), images(4), seed=0, sample_ids=torch.arange(4))
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
        loss = model.loss(features, pixels, seed=0, sample_ids=samples)
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
        model.loss(
            features, images(1).expand(300, -1, -1, -1), seed=0, sample_ids=torch.arange(300)
        )
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


# --- in the model ---------------------------------------------------------------------------------


def converted(sources, target):
    """The weight files that `sources` become."""
    convert_siglip_sana([str(source) for source in sources], target)
    assert {path.name for path in target.iterdir()} == {
        "encoder.safetensors",
        "vae.safetensors",
        "decoder.safetensors",
    }
    labels = ("encoder", "vae", "decoder")
    files = {label: str(target / f"{label}.safetensors") for label in labels}
    return WeightFiles(**files)


def paired(weights, **settings):
    """Encoder and decoder in their composer, in the stage that trains the decoder."""
    options = {"loss_weights": {"decoding": 1.0}, "stage": "decoder", **settings}
    model = UnifiedModule(
        encoder=siglip(),
        vae=dc_ae(),
        decoding=PixelDecoderModule(sana()),
        weights=weights,
        **options,
    )
    model.configure_model()
    return model


def batch_of(samples):
    """A batch of captioned images, as the DataModule builds it for any model of this size."""
    return batches(unified("stage2"), samples, TEXT_TO_IMAGE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Library folders as published: SigLIP, and SANA with `transformer/` and `vae/`."""
    folder = tmp_path_factory.mktemp("published")
    library_siglip().save_pretrained(folder / "siglip")
    transformer, vae = library_sana()
    transformer.save_pretrained(folder / "sana" / "transformer")
    vae.save_pretrained(folder / "sana" / "vae")
    return folder


@pytest.fixture(scope="module")
def files(folders):
    """Weight files of ours from the folders."""
    return converted([folders / "siglip", folders / "sana"], folders / "ours")


def test_stage_trains_the_parts_that_the_decoder_names(files, samples):
    model = paired(files).train()
    beginnings = {".".join(name.split(".")[:3]) for name in model.trained}
    assert beginnings == {"decoding.decoder.transformer", "decoding.decoder.connector"}
    assert not model.encoder.training and not model.vae.vae.training
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    loss, _ = model.step(batch_of(samples))
    loss.backward()
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == model.trained


def test_the_panel_hands_over_the_black_image_once(files, samples):
    model = paired(files)
    calls = []
    model.encoder.register_forward_hook(lambda module, given, made: calls.append(len(given[0])))
    with torch.inference_mode():  # as in validation; training goes on afterwards
        inference_of(model).reconstruct(images(2), seeds=[0, 1])
    black = model.encoder(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8))[0]
    assert calls == [2, 1, 1]
    assert torch.equal(model.decoding.decoder.null_features, black)
    model.step(batch_of(samples))[0].backward()
    inference_of(model).reconstruct(images(2), seeds=[0, 1])
    assert calls == [2, 1, 1, 4, 2]
    assert not [name for name in model.trained_state() if "null" in name]


class Colours(ImageEncoder):
    """A user's own encoder, with no more than the role asks for: colours of 3x3 regions."""

    feature_shape, image_size = (32, 3, 3), SIDE

    def build(self):
        self.mix = nn.Conv2d(3, 32, 1)

    def forward(self, pixels):
        return self.mix(nn.functional.adaptive_avg_pool2d(pixels_to_unit(pixels), 3))


def test_an_encoder_of_ones_own_has_a_black_image_for_the_decoder():
    panel = PixelDecoderModule(sana(), built(Colours()), built(dc_ae()))
    panel.decoder.build()
    pixels = panel.decode(torch.zeros(2, 32, 3, 3), [0, 1])
    assert pixels.shape == (2, 3, SIDE, SIDE)
    mix = panel.encoder.mix
    black = mix.bias - mix.weight[:, :, 0, 0].sum(1)  # -1 in every channel
    assert torch.allclose(
        panel.decoder.null_features, black[:, None, None].expand(32, 3, 3), atol=1e-6
    )


def test_a_decoder_that_wants_a_blank_image_needs_the_encoder():
    panel = PixelDecoderModule(sana(), siglip(), dc_ae())
    with pytest.raises(UserError, match="no weights of its image encoder.*weights.encoder=FILE"):
        panel.decode(torch.zeros(1, 32, 3, 3), [0])


# --- published weights ----------------------------------------------------------------------------


def assert_computes_as(model, tower, transformer, vae):
    """The model's parts do what the library's models do."""
    _, features = released_features(tower, images(2))
    x, t, condition = torch.randn(2, 4, 6, 6), torch.tensor([0.5, 1.0]), torch.randn(2, 9, 48)
    decoder = model.decoding.decoder.eval()
    with torch.no_grad():
        latents = vae.encode(pixels_to_unit(images(2))).latent * decoder.vae.scaling
        velocity = transformer(x, condition, 1000 * t).sample
        assert_close(model.encoder(images(2)), features)
        assert_close(decoder.vae(images(2)), latents)
        assert_close(decoder.velocity(x, t, condition), velocity)


@pytest.mark.parametrize("kind", ["tower alone", "whole SigLIP", "in shards"])
def test_library_folders_become_weight_files(kind, folders, tmp_path):
    whole = library_siglip(whole=kind == "whole SigLIP")
    options = {"max_shard_size": "20KB"} if kind == "in shards" else {}
    whole.save_pretrained(tmp_path / "siglip", **options)
    assert (len(list((tmp_path / "siglip").glob("*.safetensors"))) > 1) == (kind == "in shards")
    sources = [tmp_path / "siglip", folders / "sana"]
    model = paired(converted(sources, tmp_path / "ours"))
    tower = whole.vision_model if kind == "whole SigLIP" else whole
    assert_computes_as(model, tower, *library_sana())
    # Published nowhere but in the joint release: it starts as it was built.
    assert model.decoding.decoder.connector[-1].weight.eq(5.5**0.5).all()


def joint_release(tower, transformer, vae, connector, wrapper=""):
    """Tensors under the names of the joint release."""
    parts = {
        f"encoder.model.{wrapper}": tower,
        "transformer.transformer.": transformer,
        "transformer.connector.": connector,
        "vae.": vae,
    }
    return {
        beginning + name: tensor
        for beginning, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


@pytest.mark.parametrize("wrapper", ["", "vision_model."])
def test_the_joint_release_becomes_weight_files(wrapper, tmp_path):
    tower, (transformer, vae) = library_siglip(), library_sana()
    connector = small_sana().connector
    released = joint_release(tower, transformer, vae, connector, wrapper)
    assert "transformer.connector.3.weight" in released
    save_file(released, tmp_path / "model.safetensors")
    model = paired(converted([tmp_path], tmp_path / "ours"))
    assert_computes_as(model, tower, transformer, vae)
    features = torch.randn(2, 32, 3, 3)
    tokens = features.flatten(2).transpose(1, 2)
    assert_close(model.decoding.decoder.condition(features), connector(tokens))


def test_names_that_nothing_reads_are_left_out():
    names = full_names(
        f"encoder.model.vision_model.{name}"
        for name in [
            "embeddings.position_ids",
            "embeddings.position_embedding.weight",
            "encoder.layers.9.mlp.fc1.bias",
            "encoder.layers.10.mlp.fc1.bias",
            "post_layernorm.weight",
            "head.probe",
        ]
    )
    assert list(names.values()) == [
        "encoder.tower.embeddings.position_embedding.weight",
        "encoder.tower.encoder.layers.9.mlp.fc1.bias",
    ]


def test_another_checkpoint_is_refused(folders, tmp_path):
    with pytest.raises(UserError, match=r"holds no weights .*diffusion_pytorch_model.safetensors"):
        convert_siglip_sana([str(tmp_path)], tmp_path / "ours")
    for name in ("down_blocks.0.weight", "encoder.model.decoder.weight"):
        save_file({name: torch.zeros(2)}, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match="is no tensor of SigLIP 2 or SANA"):
            converted([folders / "sana", tmp_path], tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


# --- from the command line ------------------------------------------------------------------------


def test_convert_takes_both_library_folders_at_once(folders, files, tmp_path, capsys):
    ours = tmp_path / "ours"
    main(["convert", str(folders / "siglip"), str(folders / "sana"), str(ours)])
    said = capsys.readouterr().out
    assert "no source has the connector: it starts at random" in said and "is complete" in said
    for label in ("encoder", "vae", "decoder"):
        made, expected = ours / f"{label}.safetensors", getattr(files, label)
        assert made.read_bytes() == Path(expected).read_bytes()
    main(["convert", str(folders / "siglip"), str(tmp_path / "tower")])
    assert [path.name for path in (tmp_path / "tower").iterdir()] == ["encoder.safetensors"]
    assert "no source is a SANA" in capsys.readouterr().out


def test_convert_takes_the_joint_release(tmp_path):
    released = joint_release(library_siglip(), *library_sana(), small_sana().connector)
    save_file(released, tmp_path / "model.safetensors")
    main(["convert", str(tmp_path), str(tmp_path / "ours")])
    decoder = load_file(tmp_path / "ours" / "decoder.safetensors")
    norm = decoder["decoding.decoder.connector.3.weight"]
    assert torch.equal(norm, released["transformer.connector.3.weight"])


def test_convert_refuses_mismatched_components(folders, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    flux = tmp_path / "flux"
    shutil.copytree(folders / "sana", flux)
    (flux / "transformer" / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    siglip_folder, target = folders / "siglip", tmp_path / "ours"
    for status, says, words in (
        (1, "other is neither SigLIP nor SANA", [siglip_folder, other]),
        (1, "takes no --encoder or --decoder; name both", [siglip_folder, "--decoder", flux]),
        (1, "is of a FluxTransformer2DModel, and SANA has a SanaTrans", [siglip_folder, flux]),
        (2, "a model file is the only SOURCE; leave out", ["model.yaml", siglip_folder]),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["convert", *map(str, words), str(target)])
        assert stopped.value.code == status and says in capsys.readouterr().err
        assert not target.exists()


@pytest.mark.parametrize("kind", ["siglip2", "siglip2_vision_model"])
def test_convert_says_which_siglip_2_it_takes(kind, folders, tmp_path, capsys):
    naflex, target = tmp_path / "naflex", tmp_path / "ours"
    naflex.mkdir()
    (naflex / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    for sources in ([naflex], [naflex, folders / "sana"]):
        with pytest.raises(SystemExit) as stopped:
            main(["convert", *map(str, sources), str(target)])
        said = capsys.readouterr().err
        assert stopped.value.code == 1 and said.count("\n") == 1 and not target.exists()
        assert f"config.json is of a NaFlex SigLIP 2 ({kind})" in said
        assert "fixed resolution" in said and "google/siglip2-so400m-patch16-512" in said


SWAP = [
    "--model.encoder=triptych.backbones.Siglip2",
    *(f"--model.encoder.{name}={value}" for name, value in SIGLIP.items()),
    "--model.decoding.decoder=triptych.backbones.SanaDecoder",
    *(f"--model.decoding.decoder.{name}={value}" for name, value in SANA.items()),
    "--model.vae=triptych.backbones.DCAutoencoder",
    *(f"--model.vae.{name}={value}" for name, value in DC_AE.items()),
]


@pytest.fixture
def fit(monkeypatch, tmp_path, shapes_folder):
    """Runs `triptych fit` of a stage of the tiny preset in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["triptych"])
    short = {"max_steps": 1, "limit_val_batches": 1, "val_check_interval": 1}
    sheets = {"every_n_steps": 1, "num_samples": 2}
    short["callbacks"] = [
        {"class_path": "triptych.callbacks.ExportWeights"},
        {"class_path": "triptych.callbacks.SampleGrid", "init_args": sheets},
    ]
    (tmp_path / "short.yaml").write_text(yaml.safe_dump({"trainer": short}))

    def run(stage, *flags):
        conf = ROOT / "conf"
        files = [
            "base.yaml",
            "presets/tiny.yaml",
            f"stages/{stage}.yaml",
            f"recipes/tiny/{stage}.yaml",
        ]
        files.append("data/folder.yaml")
        words = [word for name in files for word in ("--config", str(conf / name))]
        data = [f"--data.shards={shapes_folder / 'train'}", "--data.batch_size=4"]
        main(["fit", *words, "--config", "short.yaml", *data, *flags])
        return tmp_path / "runs" / "tiny" / stage

    return run


@pytest.mark.slow
def test_the_pair_takes_the_place_of_the_tiny_presets_by_flags(fit, files):
    made = [*SWAP, *(f"--model.weights.{n}={getattr(files, n)}" for n in ("encoder", "vae"))]
    decoder = fit("decoder", *made) / "weights.safetensors"
    assert decoder.exists()
    stage2 = fit("stage2", *made, f"--model.weights.decoder={decoder}")
    config = yaml.safe_load((stage2 / "version_0" / "config.yaml").read_text())
    assert config["model"]["encoder"]["class_path"] == "triptych.backbones.Siglip2"
    sheets = sorted(path.name for path in (stage2 / "version_0" / "samples").glob("*.png"))
    assert sheets == ["step-00000000.png", "step-00000001.png"]
    assert (stage2 / "weights.safetensors").exists()
