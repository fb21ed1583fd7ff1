"""Corrections of argument names from other libraries or older versions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import wraps
from typing import Any

from triptych.inference.generation_config import FIELDS
from triptych.utils.errors import UserError

MEANT = {
    "steps": "num_inference_steps",
    "num_steps": "num_inference_steps",
    "inference_steps": "num_inference_steps",
    "prior_num_inference_steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "true_cfg_scale": "guidance_scale",
    "prior_guidance_scale": "guidance_scale",
    "rescale": "guidance_rescale",
    "cfg_rescale": "guidance_rescale",
    "images_per_prompt": "num_images_per_prompt",
    "num_images": "num_images_per_prompt",
    "n": "num_images_per_prompt",
    "number": "num_images_per_prompt",
    "best_of": "num_candidates",
    "candidates": "num_candidates",
    "negative": "negative_prompt",
    "seeds": "seed",
    "generators": "generator",
    "scheduler": "sampler",
    "decoder_steps": "decoder_num_inference_steps",
    "decoder_guidance": "decoder_guidance_scale",
    "decoder_scheduler": "decoder_sampler",
    "image_guidance": "image_guidance_scale",
    "image_cfg_scale": "image_guidance_scale",
    "cfg_image_scale": "image_guidance_scale",
    "callback": "callback_on_step_end",
    "prompts": "prompt",
    "instruction": "prompt",
    "instructions": "prompt",
    "images": "image",
    "low_memory": "enable_model_cpu_offload",
    "torch_dtype": "dtype",
    "max_tokens": "max_new_tokens",
    "max_length": "max_new_tokens",
}
"""Our name of an argument, by names that users type."""
ABSENT = {
    "height": "images have the size of the model; resize them afterwards",
    "width": "images have the size of the model; resize them afterwards",
    "image": "pipe.edit(image, prompt=...) changes an image",
    "image_guidance_scale": "pipe.edit takes it, which has an image to be guided by",
    "callback_on_step_end_tensor_inputs": "a callback_on_step_end gets a Progress; leave it out",
    "timesteps": "use num_inference_steps",
    "sigmas": "use num_inference_steps",
}
"""Remedy for names without a counterpart."""


def remedy(name: str, known: Iterable[str]) -> str:
    """Clause of an error message that suggests one of the `known` names."""
    known = list(known)
    if (meant := MEANT.get(name)) in known:
        return f"use {meant}"
    if name in ABSENT:
        return ABSENT[name]
    if close := get_close_matches(name, known, 1):
        return f"use {close[0]}"
    return f"choose from {', '.join(known)}"


def refuse_unknown(given: Iterable[str], known: Iterable[str], call: str) -> None:
    """Refuse unknown names, and suggest the right one.

    Raises:
        UserError: a name is unknown.
    """
    known = list(known)
    for name in given:
        if name not in known:
            raise UserError(f"{call} has no argument {name!r}; {remedy(name, known)}.")


def named_arguments(call: str, settings: Iterable[str] = ()) -> Callable[[Callable], Callable]:
    """Decorate a method to suggest the right name for an unknown argument.

    Args:
        call: name of the method in the error.
        settings: fields of `GenerationConfig` that the method takes as **settings, added to its
            signature.
    """
    settings = tuple(settings)

    def decorate(method: Callable) -> Callable:
        signature = inspect.signature(method)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        keyword, kind = inspect.Parameter, inspect.Parameter.KEYWORD_ONLY
        own += [
            keyword(name, kind, default=FIELDS[name].default, annotation=FIELDS[name].type)
            for name in settings
        ]
        known = [p.name for p in own if p.name not in ("self", "cls")]

        @wraps(method)
        def named(self: Any, *args: Any, **given: Any) -> Any:
            refuse_unknown(given, known, call)
            return method(self, *args, **given)

        named.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
        return named

    return decorate
