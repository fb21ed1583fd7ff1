"""Shared dataclasses and abstract base classes: the interfaces between models and data.

Shape letters, used in the whole package:
    B batch, T text tokens, N queries, D width of the language model,
    C feature channels, h w feature grid, H W pixels, Z latent channels, S sum of image patches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils._pytree import register_dataclass

from triptych.utils.errors import UserError
from triptych.utils.precision import ExactBuffers

TEXT_TO_IMAGE = "text_to_image"
IMAGE_TO_TEXT = "image_to_text"
TEXT_TO_TEXT = "text_to_text"
IMAGE_TO_IMAGE = "image_to_image"
IMAGE_GENERATION = "image_generation"
LANGUAGE_MODELING = "language_modeling"
# The loss of a task, `Batch.objective`; tasks of one objective may mix in a batch.
OBJECTIVE_OF_TASK = {
    TEXT_TO_IMAGE: IMAGE_GENERATION,
    IMAGE_TO_IMAGE: IMAGE_GENERATION,
    IMAGE_TO_TEXT: LANGUAGE_MODELING,
    TEXT_TO_TEXT: LANGUAGE_MODELING,
}

IGNORED = -100  # in labels: no loss is taken


@dataclass
class Batch:
    """One training batch. The DataModule builds it; Lightning moves it to the device whole."""

    objective: str
    """IMAGE_GENERATION (images are targets, also those of edits) or LANGUAGE_MODELING (text is the
    target, with or without an image); see OBJECTIVE_OF_TASK."""
    keys: list[str]
    """[B] names of the samples in their shards: a bad loss can be traced to its images."""
    step: int
    """Number of this batch since the start of training, equal on every rank."""
    sample_ids: Tensor
    """[B] int64, global sample numbers since the start of training: the source of every draw."""
    input_ids: Tensor
    """[B,T] int64, right-padded."""
    attention_mask: Tensor
    """[B,T] int64, 1 on tokens, 0 on padding."""
    num_shared_prefix_tokens: int = 0
    """Length of the text prefix shared by all prompts of the batch; see `prompts.shared_tokens`.
    Counted by the loader: counting on the device would synchronize with the host."""
    labels: Tensor | None = None
    """[B,T] int64, IGNORED where no loss is taken."""
    understanding_pixels: Tensor | None = None
    """[S,patch] float32, the patches of all images as the VLM's processor cuts them."""
    image_grid_thw: Tensor | None = None
    """[images,3] int64, grid of patches (time, height, width) of each image."""
    may_show: bool = False
    """Whether a task of this objective shows images in its prompts; equal on every rank, also where
    this batch holds none."""
    target_pixels: Tensor | None = None
    """[B,3,H,W] uint8, the images to generate, encode or reconstruct. Those whose features came
    along are black, or None if all did, unless the model wants `Preprocessing.images_too`."""
    target_features: Tensor | None = None
    """[B,C,h,w], features of the images when they were computed before."""
    has_features: Tensor | None = None
    """[B] bool, which rows of `target_features` were; None if all."""
    dropped_samples: list[tuple[str, str]] = field(default_factory=list)
    """(key, reason) of samples that could not be used; others of the batch stand in for them."""
    epochs: dict[str, float] = field(default_factory=dict)
    """In training: how often each data set, by name, has been gone through after this batch."""
    step_elements: int | None = None
    """`elements` of all micro-batches of this objective in the optimizer step, on this rank;
    counted ahead by `data_modules.AccumulationLoader`, None where another loader is used."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def elements(self) -> Tensor | int:
        """Number of equal terms that a loss of this batch is the mean of.

        In text: the tokens to learn, int64 [] on the labels' device. In images: the samples; all of
        them have equally many features or pixels.
        """
        return len(self) if self.labels is None else (self.labels[:, 1:] != IGNORED).sum()

    @property
    def shown(self) -> tuple[Tensor | None, Tensor | None]:
        """`understanding_pixels` and `image_grid_thw`.

        Empty instead of None where another rank may show images: a vision tower whose parameters
        are split, or whose gradients are summed, has to run on every rank.
        """
        if self.understanding_pixels is None and self.may_show and _several_ranks():
            empty = self.input_ids.new_zeros(0, 3)
            return empty.float(), empty
        return self.understanding_pixels, self.image_grid_thw

    def to(self, device: torch.device | str, **options: Any) -> Batch:
        """Move to `device`, except fields read on the host: reading them back would synchronize.

        Copies do not synchronize either, if they come from pinned memory.
        """
        options = {"non_blocking": torch.device(device).type == "cuda", **options}
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved = {
            name: tensor.to(device, **options)
            for name, tensor in tensors.items()
            if name not in READ_BY_THE_HOST
        }
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """The batch in pinned memory, as torch's DataLoader asks for it."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: tensor.pin_memory() for name, tensor in tensors.items()})


def _several_ranks() -> bool:
    ready = distributed.is_available() and distributed.is_initialized()
    return ready and distributed.get_world_size() > 1


# Fields of Batch that the host reads to draw noise and to encode images.
READ_BY_THE_HOST = ("sample_ids", "has_features")


def batches_in(batch: Batch | dict[str, Batch | None]) -> list[Batch]:
    """The batch; of joint training and validation those of all objectives that have one left."""
    if isinstance(batch, dict):
        return [each for each in batch.values() if each is not None]
    return [batch]


@dataclass
class Condition:
    """Conditioning of the generator: the language model's hidden states at the query positions."""

    hidden_states: Tensor
    """[B,N,D]"""

    def drop(self, dropped: Tensor) -> Condition:
        """The null condition (zeros) where `dropped` [B] is True: classifier-free guidance."""
        keep = (~dropped).to(self.hidden_states.dtype)[:, None, None]
        return Condition(self.hidden_states * keep)


register_dataclass(Condition)  # FSDP looks for the tensors in what a part returns


class LazyModule(ExactBuffers, ABC):
    """A network that is built late: the constructor takes configuration, `build` makes weights.

    Building is not loading: `build` gives random weights; `triptych.checkpoints` fills them.
    Constants of the forward pass are buffers, float32 whatever the parameters are; those in no
    weight file are registered with `persistent=False`.
    """

    fsdp_forward_methods: tuple[str, ...] = ()
    """Methods beside `forward` that are called from outside and use parameters: FSDP gathers the
    parameters for these calls too. Such a method returns tensors, or a dataclass
    that `torch.utils._pytree` knows."""

    @abstractmethod
    def build(self) -> None:
        """Create the parameters on torch's current default device.

        Parts inside of this one that are built already stay as they are.
        """

    def blocks(self) -> list[nn.Module]:
        """Submodules that are called one after the other and hold most of the parameters.

        Each is split over ranks, recomputed and compiled on its own. Only of a built part.
        """
        return []

    def called_modules(self) -> list[nn.Module]:
        """Modules whose calls, together, compute with all parameters: this one, or its children.

        The children where this one is never called itself (it has neither a `forward` nor
        `fsdp_forward_methods`), or where parts inside of it are also called on their own.
        """
        children = list(self.children())
        own = [child for child in children if not isinstance(child, LazyModule)]
        called = type(self).forward is not nn.Module.forward or self.fsdp_forward_methods
        return [self] if called and len(own) == len(children) else own

    @property
    def is_built(self) -> bool:
        """Whether `build` has run; parts inside of this one are not considered."""
        own = (child for child in self.children() if not isinstance(child, LazyModule))
        own_parameters = (parameter for child in own for parameter in child.parameters())
        return bool(self._parameters) or next(own_parameters, None) is not None


@dataclass
class Sampling:
    """Token sampling parameters. The default is greedy decoding."""

    temperature: float = 0.0
    """Softmax temperature; 0 is greedy decoding."""
    top_p: float = 1.0
    """Drawn from the likeliest tokens that together have this probability."""
    seeds: Sequence[int] = ()
    """Random seeds, one for each row, when tokens are sampled: a row depends only on its own."""


class VisionLanguageModel(LazyModule):
    """Reads text and images. Its width and tokenizer come from its configuration."""

    fsdp_forward_methods = ("condition", "lm_loss", "generate_text")

    width: int
    """D"""

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
        num_shared_prefix_tokens: int = 0,
    ) -> Condition:
        """Outputs at `queries` [N,D], placed after each right-padded prompt [B,T].

        Images, if any, fill the placeholders of the prompts in order; as in `Batch`, and as
        there the first `num_shared_prefix_tokens` tokens are the same in all prompts. Pixels may be empty, see
        `Batch.shown`.
        """

    @abstractmethod
    def lm_loss(self, batch: Batch) -> Tensor:
        """Mean cross entropy over `batch.labels`; scalar, and 0, not NaN, if there is no label."""

    @abstractmethod
    def image_inputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B,3,H,W] -> patches [S,patch] float32 and grids [B,3] int64."""

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

    @abstractmethod
    def generate_text(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        understanding_pixels: Tensor | None,
        image_grid_thw: Tensor | None,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        on_tokens: Callable[[list[int]], list[bool]] | None = None,
    ) -> Tensor:
        """Continuation of left-padded prompts [B,T], greedy by default; the new tokens only.

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

    @abstractmethod
    def configure_shapes(self, feature_shape: tuple[int, int, int], condition_width: int) -> None:
        """Set the shape of the target and the width of the condition, before `build`."""

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """x_t [B,C,h,w], t [B] in [0,1] (1 is noise), condition [B,N,D] -> velocity [B,C,h,w].

        t may be float64: 1000 t is then an exact integer wherever that was drawn.
        """

    def prepare(self, condition: Tensor, null: Tensor | None = None) -> Velocity:
        """Velocity as a function of only x_t and t, for many calls under one condition [B,N,D].

        A model may cache what depends only on the condition. With a `null` [1,N,D], x_t and t have
        twice the rows: first those under it, then those under the condition.
        """
        return velocity_under(self)(condition, null)


Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B,C,h,w], t [B]) -> velocity [B,C,h,w]"""


def velocity_under(model: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Velocity]:
    """Default `VelocityModel.with_cached_condition`, for a model that caches nothing."""

    def prepare(condition: Tensor, null: Tensor | None = None) -> Velocity:
        if null is not None:
            condition = torch.cat([null.expand_as(condition), condition])
        return lambda x_t, t: model(x_t, t, condition)

    return prepare


class PixelDecoder(LazyModule):
    """Features to pixels."""

    trained_parts: tuple[str, ...]
    """Names of the submodules that train; others are frozen."""

    latent: bool = True
    """Whether it generates latents of a VAE, and needs one; False for one that makes pixels."""

    num_inference_steps: int
    guidance_scale: float
    sampler: str
    """Default sampler of `decode`, one of `sampler.SAMPLERS`."""

    needs_null_features: bool = False
    """True while a decoder whose own null is a blank image, not zeros, has not been given it."""

    @abstractmethod
    def configure_shapes(self, feature_shape: tuple[int, int, int]) -> None:
        """Learn, before `build`, the shape of the features that will be decoded."""

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
        """The encoder's `blank_features`, [C,h,w]; called before first use if `needs_null_features`."""
        raise NotImplementedError

    @abstractmethod
    def loss(self, features: Tensor, pixels: Tensor, seed: int, samples: Tensor) -> Tensor:
        """Training loss for features [B,C,h,w] of images uint8 [B,3,H,W]; scalar, a mean over
        samples."""

    @abstractmethod
    def decode(
        self,
        features: Tensor,
        seeds: list[int],
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        null: Tensor | None = None,
        on_image: OnImage | None = None,
    ) -> Tensor:
        """Decode features [B,C,h,w] to uint8 [B,3,H,W], each from only its seed, within rounding.

        `null` [1,C,h,w] are the features that guidance leads away from; None is the decoder's own.
        `sampler` is one of `sampler.SAMPLERS`. `on_image` is called after every call of the
        network.
        """


OnImage = Callable[[int, Callable[[], Tensor]], None]
"""Called after each network call as (index from 0, function that returns the current images uint8
[B,3,H,W])."""


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
    """uint8 [B,3,H,W] -> (patches [S,patch], grids [B,3]); see `VisionLanguageModel.image_inputs`."""
    template: str = "inference"
    """Prompt template of captions for image generation, one of `prompts.TEMPLATES`."""
    training_template: str = "inference"
    """The same while that is learned and validated."""
    features: Callable[[], dict[str, Any]] | None = None
    """The identity that `Batch.target_features` must have to stand for this model's own, by name
    of its points; reads weight files. None where no step takes features."""
    images_too: bool = True
    """Whether steps want the images also of samples that bring their features."""


class Evaluator(ABC):
    """Scores a model: used by the command line, and by a callback during training."""

    parts: tuple[str, ...] = ()
    """Names of the panels and parts that the model must have built."""

    @abstractmethod
    def __call__(self, model: Any) -> dict[str, float]:
        """Scores of a built UnifiedModule in evaluation mode, by name; higher is better."""
