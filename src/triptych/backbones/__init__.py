"""Networks, as plain `nn.Module`s behind the roles of `triptych.interfaces`. No Lightning here."""

from triptych.backbones.dc_ae import DCAutoencoder
from triptych.backbones.eva_clip import EvaClip
from triptych.backbones.lumina_dit import LuminaNextDiT
from triptych.backbones.qwen2_5_vl import QwenText, QwenVision, QwenVL, Vocabulary
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
