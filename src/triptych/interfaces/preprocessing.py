"""Settings of a model that its data needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from triptych.utils.rng import Draw


@dataclass
class Preprocessing:
    """Model settings that a DataModule needs to build batches; provided by the model."""

    tokenizer: Any
    """A transformers tokenizer; None where captions are not read."""
    max_tokens: int
    """Longest prompt, `[IMG]` included, or conversation, that the model takes."""
    image_size: int
    """Side in pixels of `Batch.target_pixels`."""
    understanding_size: int = 0
    """Side in pixels of the images given to `image_inputs`."""
    image_tokens: int = 0
    """Placeholder tokens of one image in a prompt."""
    image_inputs: Any = None
    """`VisionLanguageModel.image_inputs`: uint8 [B,3,H,W] -> (patches [S,patch], grids [B,3])."""
    position_ids: Any = None
    """`VisionLanguageModel.position_ids`; None where the model finds positions by itself."""
    template: str = "inference"
    """Prompt template of captions for image generation, one of `prompts.TEMPLATES`."""
    training_template: str = "inference"
    """The same while that is learned and validated."""
    features: Callable[[], dict[str, Any]] | None = None
    """Function that returns `BaseModule.feature_config_of` for `Batch.target_features`; it reads
    weight files. None where no step takes features."""
    draws: tuple[Draw, ...] = ()
    """Random draws of image generation batches, made while they are loaded; see `Batch.draws`."""
    seed: int = 0
    """Seed of these draws."""
    takes_source: bool = False
    """Whether steps want the source images of edits, as `Batch.source_pixels`."""
    images_too: bool = True
    """Whether steps want the images also of samples that bring their features."""
