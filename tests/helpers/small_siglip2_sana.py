"""SigLIP 2 and SANA in small, beside the same networks of the libraries.

Use it where a test compares ours with those of transformers and diffusers.
"""

import torch
from builders import (
    SIDE,
    built,
    relative,
    shaken,
)
from diffusers import AutoencoderDC, SanaTransformer2DModel
from torch import nn
from transformers import (
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from triptych.backbones import DCAutoencoder, SanaDecoder, Siglip2
from triptych.interfaces import SamplerConfig
from triptych.utils.images import pixels_to_unit

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
