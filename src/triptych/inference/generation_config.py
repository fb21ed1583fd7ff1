"""Generation settings: one dataclass for pipeline, command line, server, web page and scores.

Each field, with its limit and its help, is an argument of `UnifiedPipeline`, a flag of every
command that generates images, a key of JSON lines and of HTTP requests, a control of the web page,
and a key of evaluators' `generation_config`; those `OF_EDITS` only where images are edited.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from triptych.utils.errors import UserError
from triptych.utils.limits import (
    CANDIDATES,
    IMAGES,
    INTERVAL,
    PORTION,
    SAMPLER,
    SCALE,
    SEED,
    STEPS,
    TEXT,
)

DECODER = "decoder_"
"""Prefix of the decoder's fields, in front of the name of its own setting."""
CALL = ("num_images_per_prompt", "seed")
"""Fields that determine the set of images of a call; all others are settings of each image."""


def _field(limit: Any, label: str, text: str, default: Any = None) -> Any:
    return field(default=default, metadata={"limit": limit, "label": label, "help": text})


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Generation settings with the names of diffusers; None is the model's own value.

    Raises:
        UserError: a value is out of range.
    """

    num_inference_steps: int | None = _field(
        STEPS, "steps", "number of steps that make image features"
    )
    guidance_scale: float | None = _field(SCALE, "guidance", "strength of guidance by the prompt")
    image_guidance_scale: float | None = _field(
        SCALE, "image guidance", "strength of guidance by the image to edit"
    )
    guidance_interval: tuple[float, float] | None = _field(
        INTERVAL,
        "guidance interval",
        "times from 0 to 1, 1 being noise, between which guidance works",
    )
    guidance_rescale: float | None = _field(
        PORTION,
        "guidance rescale",
        "share, from 0 to 1, of the way back to the deviation of features without guidance",
    )
    sampler: str | None = _field(SAMPLER, "sampler", "scheduler that integrates image features")
    negative_prompt: str | None = _field(
        TEXT, "negative prompt", "text that guidance leads away from"
    )
    decoder_num_inference_steps: int | None = _field(
        STEPS, "steps", "number of steps of the decoder, from image features to pixels"
    )
    decoder_guidance_scale: float | None = _field(
        SCALE, "guidance", "strength of guidance by image features in the decoder"
    )
    decoder_sampler: str | None = _field(SAMPLER, "sampler", "scheduler of the decoder")
    num_candidates: int | None = _field(
        CANDIDATES,
        "candidates",
        "number of images made for each one, of which the model keeps that which it thinks shows "
        "the prompt best; 1 ranks nothing",
    )
    num_images_per_prompt: int = _field(IMAGES, "images", "number of images of each prompt", 1)
    seed: int | list[int] | None = _field(
        SEED,
        "seed",
        "seed of the first image, each next one has one more; or a list of one an image",
    )

    def __post_init__(self) -> None:
        if self.negative_prompt == "":
            object.__setattr__(self, "negative_prompt", None)
        if isinstance(self.guidance_interval, list):  # from JSON
            object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))
        for each in fields(self):
            value, limit = getattr(self, each.name), each.metadata["limit"]
            if value is None:
                continue
            listed = each.name == "seed" and isinstance(value, Sequence)
            for one in value if listed else [value]:
                limit.require(one, each.name)

    @property
    def candidates(self) -> int:
        """Number of candidates of each image; 1 is the image itself."""
        return self.num_candidates or 1

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of each image by name."""
        return {name: getattr(self, name) for name in SETTINGS}

    @property
    def of_features(self) -> dict[str, Any]:
        """Keyword arguments of `GenerationModule.sample`."""
        return {name: getattr(self, name) for name in SETTINGS if _samples_features(name)}

    @property
    def of_decoder(self) -> dict[str, Any]:
        """Keyword arguments of `PixelDecoder.decode`."""
        return {name.removeprefix(DECODER): getattr(self, name) for name in DECODER_SETTINGS}

    def resolved(self, model: Any) -> dict[str, Any]:
        """`settings` in JSON values, with None replaced by the values of a UnifiedModule."""
        given = self.settings.items()
        used = {n: own_value(model, n) if value is None else value for n, value in given}
        return {n: list(value) if isinstance(value, tuple) else value for n, value in used.items()}


def own_value(model: Any, name: str) -> Any:
    """A UnifiedModule's own value of a setting, or None."""
    if name in OFF:
        return OFF[name]
    if name in OF_EDITS and not model.generation.takes_source:
        return None
    part = model.decoding.decoder if name.startswith(DECODER) else model.generation
    name = name.removeprefix(DECODER)
    return getattr(part.sampling, "name" if name == "sampler" else name, None)


def limit_of(name: str) -> Any:
    """Limit of a field, from `utils.limits`."""
    return FIELDS[name].metadata["limit"]


def label_of(name: str) -> str:
    """Label of a field on the web page."""
    return FIELDS[name].metadata["label"]


def help_of(name: str) -> str:
    """Description of a field, a noun phrase."""
    return FIELDS[name].metadata["help"]


FIELDS = {each.name: each for each in fields(GenerationConfig)}
SETTINGS = tuple(name for name in FIELDS if name not in CALL)
OFF = {"num_candidates": 1, "guidance_rescale": 0.0}
"""Settings that models have no value of: those that change nothing."""
OF_EDITS = ("image_guidance_scale",)
"""Settings that only edits have, by a model whose generator sees the image."""
OF_PROMPTS = ("num_candidates",)
"""Settings that edits have only with a ranker: the model ranks images of captions itself."""
EDIT_SETTINGS = tuple(name for name in SETTINGS if name not in OF_PROMPTS)
PROMPT_SETTINGS = tuple(name for name in SETTINGS if name not in OF_EDITS)
"""Settings of images of a prompt alone."""
PROMPT_FIELDS = tuple(name for name in FIELDS if name not in OF_EDITS)
DECODER_SETTINGS = tuple(name for name in SETTINGS if name.startswith(DECODER))


def _samples_features(name: str) -> bool:
    """Whether a field is an argument of the sampler of image features."""
    return name not in ("negative_prompt", "num_candidates") and not name.startswith(DECODER)


def without_call_fields(config: GenerationConfig | None) -> GenerationConfig:
    """Check the configuration of an evaluator, which sets the number and seeds of images itself.

    Raises:
        UserError: the configuration has a seed or a number of images per prompt.
    """
    config = config or GenerationConfig()
    for name in CALL:
        if getattr(config, name) != FIELDS[name].default:
            raise UserError(
                f"generation_config has {name}, which an evaluator decides itself; leave it out."
            )
    return config
