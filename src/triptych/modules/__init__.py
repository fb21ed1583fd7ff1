"""The LightningModules: three panels, the training of their encoder, and their composer."""

from triptych.modules.decoding import PixelDecoderModule
from triptych.modules.encoder_training import EncodingModule
from triptych.modules.generation import GenerationModule
from triptych.modules.understanding import UnderstandingModule
from triptych.modules.unified import UnifiedModule

__all__ = [
    "EncodingModule",
    "GenerationModule",
    "PixelDecoderModule",
    "UnderstandingModule",
    "UnifiedModule",
]
