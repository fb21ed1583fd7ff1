"""Networks, as plain `nn.Module`s behind the roles of `triptych.interfaces`. No Lightning here.

attention          xformers attention where its kernels run
dc_ae              DC-AE, the autoencoder of SANA
eva_clip           EVA-CLIP as a grid of features
lumina_dit         Lumina-Next DiT behind a caption projection
lumina_patches     its patch embedding, with learned positions and the source of an edit
prompt_cache       key-value cache of prompts that queries continue
query_groups       queries at several places of one prompt
query_pass         queries that run through the language model behind a prompt
qwen2_5_vl         Qwen2.5-VL
qwen2_5_vl_config  sizes and vocabulary of Qwen2.5-VL
qwen2_5_vl_images  patches of images, as its vision tower reads them
qwen2_5_vl_tower   positions and windows of its vision tower
sana               SANA's transformer as a pixel decoder
sdxl               SDXL's UNet as a pixel decoder
siglip2            SigLIP 2 as a grid of features
token_sampling     next-token sampling by seed
vae                VAE, also as an image encoder
"""

from triptych.backbones.dc_ae import DCAutoencoder
from triptych.backbones.eva_clip import EvaClip
from triptych.backbones.lumina_dit import LuminaNextDiT
from triptych.backbones.qwen2_5_vl import QwenVL
from triptych.backbones.qwen2_5_vl_config import QwenText, QwenVision, Vocabulary
from triptych.backbones.sana import SanaDecoder
from triptych.backbones.sdxl import SDXLDecoder
from triptych.backbones.siglip2 import Siglip2
from triptych.backbones.vae import KLAutoencoder

__all__ = [
    "DCAutoencoder",
    "EvaClip",
    "KLAutoencoder",
    "LuminaNextDiT",
    "QwenText",
    "QwenVL",
    "QwenVision",
    "SDXLDecoder",
    "SanaDecoder",
    "Siglip2",
    "Vocabulary",
]
