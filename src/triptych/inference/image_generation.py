"""Images from a UnifiedModule, one batch of tensors at a time; used by `UnifiedPipeline`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from triptych.inference.edit_source import check_edit, source_of_images
from triptych.inference.generation_config import GenerationConfig
from triptych.interfaces import Condition, Source
from triptych.prompts import (
    IMAGE_PAD,
    PAD,
    generation_ids,
    pad,
    reconstruction_ids,
    shared_tokens,
    token_id,
)
from triptych.utils.errors import UserError
from triptych.utils.finite import require_finite
from triptych.utils.images import scaled_pixels


def prompt_rows(model: Any, prompts: list[str], with_image: bool = False) -> list[list[int]]:
    """Token ids of generation prompts, or, `with_image`, of instructions for an image.

    Raises:
        PromptError: a prompt is empty or too long.
    """
    facts = model.preprocessing()
    options = {"max_tokens": facts.max_tokens, "template": facts.template}
    if with_image:
        return [
            reconstruction_ids(facts.tokenizer, facts.image_tokens, instruction=text, **options)
            for text in prompts
        ]
    return [generation_ids(facts.tokenizer, text, **options) for text in prompts]


@torch.no_grad()
def condition(model: Any, prompts: list[str], images: Tensor | None = None) -> Condition:
    """Condition [B,N,D] of prompts, or of instructions for images uint8 [B,3,H,W]."""
    facts = model.preprocessing()
    rows = prompt_rows(model, prompts, with_image=images is not None)
    shown: tuple[Tensor, ...] = ()
    if images is not None:
        shown = facts.image_inputs(scaled_pixels(images, facts.understanding_size))
    return condition_of_rows(model, rows, shown)


def condition_of_rows(
    model: Any, rows: list[list[int]], shown: tuple[Tensor, ...] | None = None
) -> Condition:
    """Condition [B,N,D] of prompts of ids that end in `[IMG]`.

    Args:
        shown: patches and grids of their images, in order.
    """
    tokenizer = model.preprocessing().tokenizer
    ids, mask = pad(rows, token_id(tokenizer, PAD))
    return model.generation.condition(
        ids.to(model.device),
        mask.to(model.device),
        *(each.to(model.device) for each in shown or ()),
        num_shared_prefix_tokens=shared_tokens(rows, image=token_id(tokenizer, IMAGE_PAD)),
    )


def negative_condition(model: Any, config: GenerationConfig) -> Tensor | None:
    """Condition [1,N,D] of the negative prompt, or None."""
    if config.negative_prompt is None:
        return None
    return condition(model, [config.negative_prompt]).hidden_states


@torch.no_grad()
def generate(
    model: Any, prompts: list[str], *, seeds: list[int], config: GenerationConfig | None = None
) -> Tensor:
    """Generate images uint8 [B,3,H,W]; each depends only on its prompt and seed, up to rounding."""
    return _generated(model, condition(model, prompts), seeds, config or GenerationConfig())


@torch.no_grad()
def edit(
    model: Any,
    images: Tensor,
    prompts: list[str],
    *,
    seeds: list[int],
    config: GenerationConfig | None = None,
) -> Tensor:
    """Edit images uint8 [B,3,H,W] by prompts; results have the model's image size."""
    config = config or GenerationConfig()
    check_edit(model, config)
    states, source = condition(model, prompts, images), source_of_images(model, images)
    return _generated(model, states, seeds, config, source=source)


def _generated(
    model: Any,
    states: Condition,
    seeds: list[int],
    config: GenerationConfig,
    *,
    source: Source | None = None,
) -> Tensor:
    features = model.generation.sample(
        states,
        seeds,
        negative_condition=negative_condition(model, config),
        source=source,
        **config.of_features,
    )
    return model.decode(features, seeds, **config.of_decoder)


def require_encoder(model: Any) -> None:
    """Check that the model has an image encoder.

    Raises:
        UserError: the encoder has no weights.
    """
    if not model.encoder.is_built:
        raise UserError(
            model.encoder.absence
            or "this model has no weights of its image encoder; name them with "
            "--model.weights.encoder=FILE."
        )


@torch.no_grad()
def encode(model: Any, images: Tensor) -> Tensor:
    """Features float32 [B,C,h,w] of images uint8 [B,3,H,W], by the image encoder.

    Raises:
        UserError: the encoder has no weights.
        NotFiniteError: the features are NaN or infinite.
    """
    require_encoder(model)
    features = model.encoder(images.to(model.device)).float()
    require_finite(features, "the image encoder's features")
    return features


@torch.no_grad()
def reconstruct(
    model: Any, images: Tensor, *, seeds: list[int], config: GenerationConfig | None = None
) -> Tensor:
    """Reconstruct images uint8 [B,3,H,W] with encoder and decoder."""
    features = encode(model, images)
    kind = "zeros" if model.decoder_negative == "zeros" else "black_image"
    return model.decoding.decode(
        features,
        seeds,
        negative_features=model.negative_features(kind),
        **(config or GenerationConfig()).of_decoder,
    )
