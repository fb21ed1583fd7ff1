"""Published names and configuration against ours, in both directions."""

import pytest
import torch
from builders import built, unified, vlm

from triptych.backbones import QwenText, QwenVision
from triptych.checkpoints.published import key_mapping
from triptych.checkpoints.published.key_mapping import Place, place_of, published_key

OURS = "understanding.vlm.model."
NAMES = {
    "visual.blocks.0.attn.qkv.bias": OURS + "model.visual.blocks.0.attn.qkv.bias",
    "visual.patch_embed.proj.weight": OURS + "model.visual.patch_embed.proj.weight",
    "model.embed_tokens.weight": OURS + "model.language_model.embed_tokens.weight",
    "model.layers.7.mlp.up_proj.weight": OURS + "model.language_model.layers.7.mlp.up_proj.weight",
    "model.norm.weight": OURS + "model.language_model.norm.weight",
    "lm_head.weight": OURS + "lm_head.weight",
    "model.latent_queries": "generation.queries",
    "model.dit.model.layers.3.gate": "generation.dit.dit.layers.3.gate",
    "model.dit.model.caption_projection.linear_1.bias": (
        "generation.dit.caption_projection.linear_1.bias"
    ),
    "model.gen_vision_tower.vision_tower.model.pos_embed": "encoder.tower.pos_embed",
    "model.gen_vision_tower.vision_tower.model.blocks.1.norm2.weight": (
        "encoder.tower.blocks.1.norm2.weight"
    ),
}


@pytest.mark.parametrize(("key", "name"), NAMES.items())
def test_a_name_there_and_back(key, name):
    assert place_of(key) == Place(name)
    assert published_key(name) == key


@pytest.mark.parametrize("prefix", ["", key_mapping.PUBLISHED_TOWER])
def test_bare_tower_has_no_prefix_and_optional_biases(prefix):
    for key in ("cls_token", "patch_embed.proj.bias", "blocks.0.mlp.fc1.weight"):
        assert place_of(prefix + key) == Place("encoder.tower." + key)
    name = "encoder.tower.blocks.5.attn.qkv.bias"
    assert place_of(prefix + "blocks.5.attn.q_bias") == Place(name, 0)
    assert place_of(prefix + "blocks.5.attn.v_bias") == Place(name, 2)
    assert place_of(prefix + "blocks.5.attn.qkv.bias") == Place(name)


def test_two_biases_make_one():
    fused = key_mapping.fuse_bias({0: torch.tensor([1.0, 2.0]), 2: torch.tensor([3.0, 4.0])})
    assert fused.tolist() == [1, 2, 0, 0, 3, 4]


@pytest.mark.parametrize("key", ["mm_projector.weight", "model.mm_projector.bias", "scheduler"])
def test_unknown_keys_map_to_nothing(key):
    assert place_of(key) is None


def test_names_since_transformers_4_52():
    assert place_of("model.visual.merger.ln_q.weight") == place_of("visual.merger.ln_q.weight")
    key = "layers.0.mlp.up_proj.weight"
    assert place_of(f"model.language_model.{key}") == place_of(f"model.{key}")


def test_queries_lose_and_gain_their_batch_axis():
    published = torch.randn(1, 4, 8)
    ours = key_mapping.from_published("generation.queries", published)
    assert ours.shape == (4, 8)
    assert torch.equal(key_mapping.to_published("generation.queries", ours), published)
    other = torch.randn(1, 1, 8)
    assert key_mapping.from_published("encoder.tower.cls_token", other) is other


def test_every_parameter_that_was_published_has_a_key():
    model = built(unified("inference"))
    names = [name for name, _ in model.named_parameters()]
    without = {name for name in names if published_key(name) is None}
    assert key_mapping.UNPUBLISHED <= without
    assert all(
        n in key_mapping.UNPUBLISHED or n.startswith(("vae.", "decoding.", "encoding."))
        for n in without
    )
    keys = [published_key(name) for name in names if name not in without]
    assert len(keys) == len(set(keys))
    assert all(
        place_of(key).name == name
        for key, name in zip(keys, [name for name in names if name not in without], strict=True)
    )


def test_sizes_are_read_from_the_tensors():
    model = built(unified("inference"))
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    dit, tower = model.generation.dit, model.encoder
    ffn = dit.dit.layers[0].feed_forward.linear_1.out_features
    assert key_mapping.dit_arguments(shapes) == {
        "width": dit.width,
        "depth": dit.depth,
        "heads": dit.heads,
        "ffn_width": ffn,
    }
    assert key_mapping.condition_width(shapes) == 64
    assert key_mapping.tower_arguments(shapes, tower.pool, head_width=16) == {
        name: getattr(tower, name)
        for name in ("image_size", "patch_size", "width", "depth", "heads", "mlp_width", "pool")
    }


@pytest.mark.parametrize("nested", [False, True])
def test_the_language_model_is_configured_by_config_json(nested):
    ours = vlm(rms_norm_eps=1e-6)
    config = ours.config().to_dict()
    if not nested:  # as before transformers 4.52
        text = config.pop("text_config")
        rope = text.pop("rope_parameters")
        config |= text | {
            "rope_theta": rope["rope_theta"],
            "rope_scaling": {"type": "default", "mrope_section": rope["mrope_section"]},
        }
    arguments = key_mapping.text_arguments(config)
    assert QwenText(**arguments, initializer_range=0.06) == ours.text
    assert QwenVision(**key_mapping.vision_arguments(config)) == ours.vision


def test_config_json_has_the_keys_of_blip3o():
    config = {"n_query": 64, "gen_pooling": "early_pool2d_4"}
    assert key_mapping.generation_arguments(config) == {"num_queries": 64}
    assert key_mapping.pooling(config) == 4


def test_the_decoder_of_sdxl():
    unet = {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "addition_time_embed_dim": 256,
    }
    arguments = key_mapping.decoder_arguments(unet)
    assert arguments["widths"] == [320, 640, 1280] and arguments["depths"] == [0, 2, 10]
    assert arguments["head_width"] == [64, 64, 64] and arguments["time_width"] == 256
