"""The LightningModules: three panels, the training of their encoder, and their composer.

base                building, loading, freezing and logging, shared by all
understanding       the understanding panel: a vision-language model
generation          the generation panel: queries and DiT; its step is the one to read first
auto_shift          deviation of the features, of which `flow.shift: auto` makes the shift
decoding            the decoding panel: a pixel decoder
unified             UnifiedModule, the composer of the panels
source              source images of a batch of edits, encoded for the generator
unused_parts        parts that a run never computes with, and does not load
preference_tuning   training of the generator by pairs of images, one of them preferred
reward_tuning       training of the generator by rewards: draw, score, learn
policy_algorithms   how scores become a loss: DiffusionNFT, Flow-GRPO, advantage weighted matching
encoder_training    training of the image encoder and the VAE
feature_extraction  only the frozen encoder, for `triptych data features`
initialization      parts on the meta device, and the weights they start from
loss_weighting      weights of batches within a step and a validation
text_generation     answers in text, batched and streamed
"""

from triptych.modules.decoding import PixelDecoderModule
from triptych.modules.encoder_training import EncodingModule
from triptych.modules.generation import GenerationModule
from triptych.modules.policy_algorithms import (
    AdvantageWeightedMatching,
    DiffusionNFT,
    FlowGRPO,
    PolicyAlgorithm,
)
from triptych.modules.preference_tuning import PreferenceTuningModule
from triptych.modules.reward_tuning import RewardTuningModule
from triptych.modules.understanding import UnderstandingModule
from triptych.modules.unified import UnifiedModule

__all__ = [
    "AdvantageWeightedMatching",
    "DiffusionNFT",
    "EncodingModule",
    "FlowGRPO",
    "GenerationModule",
    "PixelDecoderModule",
    "PolicyAlgorithm",
    "PreferenceTuningModule",
    "RewardTuningModule",
    "UnderstandingModule",
    "UnifiedModule",
]
