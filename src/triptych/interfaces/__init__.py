"""Shared dataclasses and abstract base classes: the interfaces between models and data.

batch          tasks, the training batch, the condition of the generator
lazy_module    the base class of all networks
networks       what a language model, encoder, velocity model or decoder implements
sampling       settings of samplers
source         source images of edits as the generator sees them
preprocessing  settings of a model that its data needs
evaluator      the base class of scores
ranker         scores of single images, to choose among candidates
reward         scores of images that a generator learns from

Shape letters, used in the whole package:
    B batch, T text tokens, N queries, D width of the language model,
    C feature channels, h w feature grid, H W pixels, Z latent channels, S sum of image patches.
"""

from triptych.interfaces.batch import (
    IGNORED,
    IMAGE_GENERATION,
    IMAGE_TO_IMAGE,
    IMAGE_TO_TEXT,
    INTERLEAVED,
    INTERLEAVED_IMAGES,
    LANGUAGE_MODELING,
    OBJECTIVE_OF_TASK,
    PREFERRED_GENERATION,
    READ_BY_THE_HOST,
    REWARDED_GENERATION,
    TEXT_TO_IMAGE,
    TEXT_TO_PREFERENCE,
    TEXT_TO_REWARD,
    TEXT_TO_TEXT,
    TURN,
    Batch,
    BatchContents,
    Condition,
    batches_in,
    drawn,
    label_indices,
)
from triptych.interfaces.evaluator import Evaluator
from triptych.interfaces.lazy_module import LazyModule
from triptych.interfaces.networks import (
    DecodeOptions,
    ImageEncoder,
    OnImage,
    PixelDecoder,
    Velocity,
    VelocityModel,
    VisionLanguageModel,
    bind_condition,
)
from triptych.interfaces.preprocessing import Preprocessing
from triptych.interfaces.ranker import Ranker, as_ranker, ranked
from triptych.interfaces.reward import Reward, RewardSample, as_reward, rewarded
from triptych.interfaces.sampling import FlowSamplerConfig, SamplerConfig, Sampling
from triptych.interfaces.source import Source

__all__ = [
    "Batch",
    "BatchContents",
    "Condition",
    "DecodeOptions",
    "Evaluator",
    "FlowSamplerConfig",
    "IGNORED",
    "IMAGE_GENERATION",
    "IMAGE_TO_IMAGE",
    "IMAGE_TO_TEXT",
    "INTERLEAVED",
    "INTERLEAVED_IMAGES",
    "ImageEncoder",
    "LANGUAGE_MODELING",
    "LazyModule",
    "OBJECTIVE_OF_TASK",
    "OnImage",
    "PixelDecoder",
    "Preprocessing",
    "READ_BY_THE_HOST",
    "PREFERRED_GENERATION",
    "REWARDED_GENERATION",
    "Ranker",
    "Reward",
    "RewardSample",
    "SamplerConfig",
    "Sampling",
    "Source",
    "TEXT_TO_IMAGE",
    "TEXT_TO_PREFERENCE",
    "TEXT_TO_REWARD",
    "TEXT_TO_TEXT",
    "TURN",
    "Velocity",
    "VelocityModel",
    "VisionLanguageModel",
    "as_ranker",
    "as_reward",
    "batches_in",
    "bind_condition",
    "drawn",
    "label_indices",
    "ranked",
    "rewarded",
]
