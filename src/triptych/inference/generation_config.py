"""Generation settings: one dataclass behind pipeline, command line, server, web page and scores.

A field added here, with its limit and its help, is an argument of `UnifiedPipeline`, a flag of
every command that makes images, a key of JSON lines and of HTTP requests, a control of the web
page, and a key of evaluators' `generation_config`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from triptych.utils.errors import UserError
from triptych.utils.limits import IMAGES, INTERVAL, SAMPLER, SCALE, SEED, STEPS, TEXT

DECODER = "decoder_"
"""Prefix of the fields of the decoder; the name behind it is that of its own setting."""
CALL = ("num_images_per_prompt", "seed")
"""Fields that say which images a call makes; all others say how each image is made."""


def _field(limit: Any, label: str, text: str, default: Any = None) -> Any:
    return field(default=default, metadata={"limit": limit, "label": label, "help": text})


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Generation settings; None is the model's own value. Names are those of diffusers.

    Raises:
        UserError: a value is out of its range.
    """

    num_inference_steps: int | None = _field(
        STEPS, "steps", "number of steps that make image features"
    )
    guidance_scale: float | None = _field(SCALE, "guidance", "strength of guidance by the prompt")
    guidance_interval: tuple[float, float] | None = _field(
        INTERVAL,
        "guidance interval",
        "times from 0 to 1, 1 being noise, between which guidance works",
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
    num_images_per_prompt: int = _field(IMAGES, "images", "number of images of each prompt", 1)
    seed: int | list[int] | None = _field(
        SEED,
        "seed",
        "seed of the first image, each next one has one more; or a list of one an image",
    )

    def __post_init__(self) -> None:
        if self.negative_prompt == "":
            object.__setattr__(self, "negative_prompt", None)
        if isinstance(self.guidance_interval, list):  # as JSON has it
            object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))
        for each in fields(self):
            value, limit = getattr(self, each.name), each.metadata["limit"]
            if value is None:
                continue
            listed = each.name == "seed" and isinstance(value, Sequence)
            for one in value if listed else [value]:
                limit.require(one, each.name)

    @property
    def settings(self) -> dict[str, Any]:
        """Values of all fields that say how an image is made, by name."""
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
        """`settings` with the values of a UnifiedModule in place of None."""
        given = self.settings.items()
        return {n: own_value(model, n) if value is None else value for n, value in given}


def own_value(model: Any, name: str) -> Any:
    """The value that a UnifiedModule has of a setting itself; None where it has none."""
    part = model.decoding.decoder if name.startswith(DECODER) else model.generation
    name = name.removeprefix(DECODER)
    return getattr(part.sampling, "name" if name == "sampler" else name, None)


def limit_of(name: str) -> Any:
    """The limit of a field, of `utils.limits`."""
    return FIELDS[name].metadata["limit"]


def label_of(name: str) -> str:
    """The short name of a field for people, which the web page shows."""
    return FIELDS[name].metadata["label"]


def help_of(name: str) -> str:
    """The noun phrase that describes a field."""
    return FIELDS[name].metadata["help"]


FIELDS = {each.name: each for each in fields(GenerationConfig)}
SETTINGS = tuple(name for name in FIELDS if name not in CALL)
DECODER_SETTINGS = tuple(name for name in SETTINGS if name.startswith(DECODER))


def _samples_features(name: str) -> bool:
    """Whether a field is of the sampler of image features; a prompt is read before it."""
    return name != "negative_prompt" and not name.startswith(DECODER)


def settings_alone(config: GenerationConfig | None) -> GenerationConfig:
    """The configuration of an evaluator, which decides number and seeds of images itself.

    Raises:
        UserError: it has a seed, or a number of images of each prompt.
    """
    config = config or GenerationConfig()
    for name in CALL:
        if getattr(config, name) != FIELDS[name].default:
            raise UserError(
                f"generation_config has {name}, which an evaluator decides itself; leave it out."
            )
    return config
