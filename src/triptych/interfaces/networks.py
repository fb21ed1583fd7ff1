"""Interfaces of the networks: language model, image encoder, velocity model, pixel decoder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from triptych.interfaces.batch import Batch, Condition
from triptych.interfaces.lazy_module import LazyModule
from triptych.interfaces.sampling import SamplerConfig, Sampling
from triptych.interfaces.source import Source
from triptych.utils.errors import UserError
from triptych.utils.rng import Draw


class VisionLanguageModel(LazyModule):
    """Reads text and images. Its width and tokenizer come from its configuration."""

    fsdp_forward_methods = ("condition", "lm_loss", "next_token_logits", "generate_text")

    width: int
    """D"""
    left_out: Mapping[str, str] = MappingProxyType({})
    """Keys of `optional_parts` that `build` leaves out, each with the error message of its use."""

    @property
    def optional_parts(self) -> dict[str, str]:
        """Paths of the submodules that `condition` of prompts without images does not need.

        By name: "vision_tower", "lm_head". Only those with parameters of their own.
        """
        return {}

    @property
    @abstractmethod
    def tokenizer(self) -> Any:
        """A transformers tokenizer that knows the chat template's special tokens."""

    @abstractmethod
    def condition(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        queries: Tensor,
        understanding_pixels: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        num_shared_prefix_tokens: int = 0,
        query_places: Tensor | None = None,
        query_rows: Tensor | None = None,
    ) -> Condition:
        """Outputs at `queries` [N,D], placed after each right-padded prompt [B,T].

        With `query_places` [B,G] they run after each of these tokens instead, as if the prompt
        ended there, and `query_rows` [R] chooses the rows of the flattened [B*G,N,D].

        Images, if any, fill the placeholders of the prompts in order; as in `Batch`, and as
        there the first `num_shared_prefix_tokens` tokens are the same in all prompts. Pixels may
        be empty, see `Batch.shown`.
        """

    @abstractmethod
    def lm_loss(self, batch: Batch) -> Tensor:
        """Mean cross entropy over `batch.labels`; scalar, and 0, not NaN, if there is no label."""

    @abstractmethod
    def image_inputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B,3,H,W] -> patches [S,patch] float32 and grids [B,3] int64."""

    def position_ids(self, input_ids: Tensor, attention_mask: Tensor, grids: Tensor) -> Tensor:
        """Positions int64 [3,B,T] of right-padded prompts [B,T] that show images, on the CPU.

        The loader's workers compute them for `Batch.position_ids`.
        """
        raise NotImplementedError

    @abstractmethod
    def image_tokens(self) -> int:
        """Number of placeholder tokens of one image in the prompt."""

    def chat_inputs(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[int]] | None:
        """Patches and grid like `image_inputs`, for uint8 images [3,H,W] that keep their shapes.

        The list holds the number of placeholder tokens of each. None: only squares are supported.

        Raises:
            UserError: an image has a shape that cannot be shown.
        """
        return None

    def next_token_logits(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        understanding_pixels: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
    ) -> Tensor:
        """Logits float32 [B,vocabulary] of the token after each right-padded prompt [B,T]."""
        raise NotImplementedError(f"{type(self).__name__} computes no logits of a next token")

    @abstractmethod
    def generate_text(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        understanding_pixels: Tensor | None,
        image_grid_thw: Tensor | None,
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        forbidden: Sequence[Sequence[int]] = (),
        on_tokens: Callable[[list[int]], list[bool]] | None = None,
    ) -> Tensor:
        """Continuation of left-padded prompts [B,T], greedy by default; the new tokens only.

        `forbidden` has the tokens that each row may not get; nothing is forbidden where it is
        empty.
        `on_tokens` receives the B tokens of every step and returns the rows that are finished; an
        exception it raises ends the call. Finished rows are filled with padding.

        Raises:
            NotFiniteError: logits are NaN or infinite.
        """


class ImageEncoder(LazyModule):
    """Pixels in, feature grid out. Frozen targets for the generator, input for the decoder."""

    fsdp_forward_methods = ("blank_features",)

    feature_shape: tuple[int, int, int]
    """(C, h, w), derived from the configuration without building."""
    image_size: int
    """Side in pixels of the square image that the encoder sees."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Normalization of colours in [0,1]; the defaults equal `pixels_to_unit`."""

    @property
    def feature_std(self) -> float | None:
        """Standard deviation of the features, if it follows from the settings; else None."""
        return None

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B,3,H,W] of any size -> features float [B,C,h,w]."""

    def blank_features(self) -> Tensor:
        """Features [1,C,h,w] of an image that shows nothing, for a decoder to keep away from.

        A black one, unless an encoder was published with another.
        """
        size, device = self.image_size, next(self.parameters()).device
        return self(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device))

    def feature_config(self) -> dict[str, Any]:
        """Class name and settings, which decide its features beside its weights and the image.

        A class that moves to another module keeps its caches. The settings are the constructor's
        arguments of plain types; an encoder keeps them as attributes of the same names.
        """
        plain = (bool, int, float, str, tuple, list, type(None))
        given = ((name, getattr(self, name, self)) for name in signature(type(self)).parameters)
        return {
            "encoder": type(self).__qualname__,
            "feature_shape": self.feature_shape,
            "mean": self.mean,
            "std": self.std,
            **{name: value for name, value in given if isinstance(value, plain)},
        }


class VelocityModel(LazyModule):
    """Predicts the velocity of the flow for noisy features under a condition."""

    takes_source: bool = False
    """Whether `forward` takes the features of the image that an edit changes, as `source`."""

    @abstractmethod
    def configure_shapes(self, feature_shape: tuple[int, int, int], condition_width: int) -> None:
        """Set the shape of the target and the width of the condition, before `build`."""

    @abstractmethod
    def forward(
        self, x_t: Tensor, t: Tensor, condition: Tensor, source: Source | None = None
    ) -> Tensor:
        """x_t [B,C,h,w], t [B] in [0,1] (1 is noise), condition [B,N,D] -> velocity [B,C,h,w].

        t may be float64: 1000 t is then an exact integer wherever that was drawn. A `source` is
        only given to a model that `takes_source`; a row without one is computed as with None.
        """

    def with_cached_condition(
        self,
        condition: Tensor,
        negative_condition: Tensor | None = None,
        *,
        source: Source | None = None,
    ) -> Velocity:
        """Velocity as a function of only x_t and t, for many calls under one condition [B,N,D].

        A model may cache what depends only on the condition. With a `negative_condition` [1,N,D],
        x_t and t have twice the rows: first those under it, then those under the condition. A
        `source` has all rows of x_t; where it has three times B, 2B are under the negative one.
        """
        return bind_condition(self, condition, negative_condition, source=source)


def bind_condition(
    model: Callable[..., Tensor],
    condition: Tensor,
    negative_condition: Tensor | None = None,
    *,
    source: Source | None = None,
) -> Velocity:
    """`VelocityModel.with_cached_condition` of a model that caches nothing."""
    if negative_condition is not None:
        negative_rows = num_negative_rows(condition, source)
        condition = torch.cat([negative_condition.expand(negative_rows, -1, -1), condition])
    sources = () if source is None else (source,)
    return lambda x_t, t: model(x_t, t, condition, *sources)


def num_negative_rows(condition: Tensor, source: Source | None) -> int:
    """Number of rows under the negative condition, beside B rows under `condition` [B,N,D]."""
    return len(condition) if source is None else len(source) - len(condition)


Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B,C,h,w], t [B]) -> velocity [B,C,h,w]"""


OnImage = Callable[[int, Callable[[], Tensor]], None]
"""Called after each network call as (index from 0, function that returns the current images uint8
[B,3,H,W])."""


@dataclass
class DecodeOptions:
    """Settings of one call of `PixelDecoder.decode`."""

    sampling: SamplerConfig
    negative_features: Tensor | None
    on_image: OnImage | None


class PixelDecoder(LazyModule):
    """Features to pixels."""

    trained_parts: tuple[str, ...]
    """Names of the submodules that train; others are frozen."""

    latent: bool = True
    """Whether it generates latents of a VAE, and needs one; False for one that makes pixels."""

    sampling: SamplerConfig
    """Default settings of `decode`."""

    needs_null_features: bool = False
    """True while a decoder whose own null condition is a blank image, not zeros, lacks it."""

    @abstractmethod
    def configure_shapes(self, feature_shape: tuple[int, int, int]) -> None:
        """Set the shape of the features to decode, before `build`."""

    def connect(self, vae: ImageEncoder | None) -> None:
        """Set the VAE whose latents are generated, before `build`.

        It is kept in a tuple: its owner has registered it as its child.

        Raises:
            UserError: there is none, and the decoder is a latent one.
        """
        if vae is None and self.latent:
            raise UserError("the decoder makes latents of a VAE, and vae is null; name one.")
        self._neighbours = (vae,)

    @property
    def vae(self) -> ImageEncoder | None:
        """The VAE whose latents are generated."""
        return self._neighbours[0]

    def set_null_features(self, features: Tensor) -> None:
        """Set the encoder's `blank_features` [C,h,w]; called before first use where needed."""
        raise NotImplementedError

    def random_draws(self) -> list[Draw]:
        """Random draws of `loss`, one row for each sample."""
        return []

    @abstractmethod
    def loss(self, features: Tensor, pixels: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
        """Training loss of features [B,C,h,w] of images uint8 [B,3,H,W]; scalar, a mean over
        samples. `draws` has the values [B,...] of `random_draws` by stream."""

    @torch.no_grad()
    def decode(
        self,
        features: Tensor,
        seeds: list[int],
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        negative_features: Tensor | None = None,
        on_image: OnImage | None = None,
    ) -> Tensor:
        """Decode features [B,C,h,w] to uint8 [B,3,H,W], each from only its seed, within rounding.

        Args:
            num_inference_steps, guidance_scale, sampler: replacements of those in `sampling`.
            negative_features: features [1,C,h,w] that guidance leads away from; None is the
                decoder's own.
            on_image: callback after every call of the network.
        """
        sampling = self.sampling.updated(
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, name=sampler
        )
        options = DecodeOptions(sampling, negative_features, on_image)
        return self.decode_with(features, seeds, options)

    @abstractmethod
    def decode_with(self, features: Tensor, seeds: list[int], options: DecodeOptions) -> Tensor:
        """Decode by `options`; see `decode`."""
