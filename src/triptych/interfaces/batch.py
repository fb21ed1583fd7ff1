"""Tasks, the training batch, and the condition of the generator."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils._pytree import register_dataclass

from triptych.interfaces.reward import RewardSample
from triptych.utils.rng import Draw

TEXT_TO_IMAGE = "text_to_image"
IMAGE_TO_TEXT = "image_to_text"
TEXT_TO_TEXT = "text_to_text"
IMAGE_TO_IMAGE = "image_to_image"
INTERLEAVED = "interleaved"
INTERLEAVED_IMAGES = "interleaved_images"
TEXT_TO_REWARD = "text_to_reward"
TEXT_TO_PREFERENCE = "text_to_preference"
IMAGE_GENERATION = "image_generation"
LANGUAGE_MODELING = "language_modeling"
REWARDED_GENERATION = "rewarded_generation"
PREFERRED_GENERATION = "preferred_generation"
# The loss of a task, `Batch.objective`; tasks of one objective may mix in a batch.
OBJECTIVE_OF_TASK = {
    TEXT_TO_IMAGE: IMAGE_GENERATION,
    IMAGE_TO_IMAGE: IMAGE_GENERATION,
    IMAGE_TO_TEXT: LANGUAGE_MODELING,
    TEXT_TO_TEXT: LANGUAGE_MODELING,
    INTERLEAVED: LANGUAGE_MODELING,
    INTERLEAVED_IMAGES: IMAGE_GENERATION,
    TEXT_TO_REWARD: REWARDED_GENERATION,
    TEXT_TO_PREFERENCE: PREFERRED_GENERATION,
}

IGNORED = -100  # in labels: no loss is taken
TURN = 1 << 40  # between the sample numbers of the images of a conversation


@dataclass
class Batch:
    """One training batch. The DataModule builds it; Lightning moves it to the device whole."""

    objective: str
    """IMAGE_GENERATION (images are targets, also those of edits), LANGUAGE_MODELING (text is the
    target, with or without an image), REWARDED_GENERATION (images are made, and rewards score them)
    or PREFERRED_GENERATION (of two images one is preferred); see OBJECTIVE_OF_TASK."""
    keys: list[str]
    """[B] names of the samples in their shards: a bad loss can be traced to its images. Where
    prompts are conversations to make several images in, B counts these images, see `query_rows`."""
    step: int
    """Number of this batch since the start of training, equal on every rank."""
    sample_ids: Tensor
    """[B] int64, global sample numbers since the start of training: the source of every draw. Image
    k of a conversation has k * `TURN` more than the conversation."""
    input_ids: Tensor
    """[B,T] int64, right-padded; [P,T] where `query_rows` gives each row its place in P prompts."""
    attention_mask: Tensor
    """Like `input_ids`, 1 on tokens, 0 on padding."""
    query_places: Tensor | None = None
    """[P,G] int64, places in each prompt of the `[IMG]` after which the queries of its images run;
    0 in a prompt of fewer than G. None: at the end of each prompt, for its only image."""
    query_rows: Tensor | None = None
    """[B] int64, the place of each row in the flattened [P*G] of `query_places`."""
    num_shared_prefix_tokens: int = 0
    """Length of the text prefix shared by all prompts of the batch; see `prompts.shared_tokens`.
    Counted by the loader: counting on the device would synchronize with the host."""
    labels: Tensor | None = None
    """[B,T] int64, IGNORED where no loss is taken."""
    label_indices: Tensor | None = None
    """[L] int64, places of the tokens that predict a label in the flattened [B*T]; None leaves
    finding them to the model, which synchronizes."""
    understanding_pixels: Tensor | None = None
    """[S,patch] float32, the patches of all images as the VLM's processor cuts them."""
    image_grid_thw: Tensor | None = None
    """[images,3] int64, grid of patches (time, height, width) of each image; on the host."""
    position_ids: Tensor | None = None
    """[3,B,T] int64, positions (time, height, width) of the tokens of prompts that show images, by
    `Preprocessing.position_ids`; None leaves them to the model, which synchronizes."""
    may_show: bool = False
    """Whether a task of this objective shows images in its prompts; equal on every rank, also where
    this batch holds none."""
    target_pixels: Tensor | None = None
    """[B,3,H,W] uint8, the images to generate, encode or reconstruct. Those whose features came
    along are black, or None if all did, unless the model wants `Preprocessing.images_too`."""
    rejected_pixels: Tensor | None = None
    """[B,3,H,W] uint8, of pairs of images those to which `target_pixels` are preferred."""
    target_features: Tensor | None = None
    """[B,C,h,w], features of the images when they were computed before."""
    has_features: Tensor | None = None
    """[B] bool, which rows of `target_features` were; None if all."""
    source_pixels: Tensor | None = None
    """[S,3,H,W] uint8, the images that edits change, of the rows that `has_source`, for a model
    that takes them (`Preprocessing.takes_source`); None without any."""
    has_source: Tensor | None = None
    """[B] bool, which rows are edits of an image in `source_pixels`; None without any."""
    may_have_source: bool = False
    """Whether a task of this batch has source images that the model takes; equal on every rank,
    also where this batch holds none."""
    reward_samples: list[RewardSample] = field(default_factory=list)
    """[B], what the images are made for that rewards score; empty in other batches."""
    repetition: int = 0
    """Number of steps before this one that took the same samples, see `MixedDataModule`."""
    draws: dict[str, Tensor] = field(default_factory=dict)
    """Random draws of the step by stream, float32 [B*repeats,...], made by the loader's workers
    (`Preprocessing.draws`); the step makes those that are missing, see `drawn`."""
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
            return empty.float(), torch.zeros(0, 3, dtype=torch.long)
        return self.understanding_pixels, self.image_grid_thw

    @property
    def queries_of_prompts(self) -> dict[str, Tensor]:
        """`query_places` and `query_rows` by name; none where each prompt has one image."""
        if self.query_places is None:
            return {}
        return {"query_places": self.query_places, "query_rows": self.query_rows}

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
        draws = {stream: values.to(device, **options) for stream, values in self.draws.items()}
        return replace(self, draws=draws, **moved)

    def pin_memory(self) -> Batch:
        """The batch in pinned memory, as torch's DataLoader asks for it."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        pinned = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        draws = {stream: values.pin_memory() for stream, values in self.draws.items()}
        return replace(self, draws=draws, **pinned)


def _several_ranks() -> bool:
    ready = distributed.is_available() and distributed.is_initialized()
    return ready and distributed.get_world_size() > 1


# Fields of Batch that the host reads to draw noise and to encode images.
READ_BY_THE_HOST = ("sample_ids", "has_features", "image_grid_thw")


def label_indices(labels: Tensor) -> Tensor:
    """Places [L] of the tokens that predict a label of `labels` [B,T], in the flattened [B*T]."""
    learned = nn.functional.pad(labels[:, 1:] != IGNORED, (0, 1))
    return learned.flatten().nonzero().flatten()


def drawn(
    batch: Batch, draws: Iterable[Draw], seed: int, device: torch.device
) -> dict[str, Tensor]:
    """`draws` by stream on `device`: those of the loader, others made here.

    Making them here takes the host milliseconds in the middle of the step, and copies from memory
    that is not pinned.
    """
    values = {}
    for draw in draws:
        value = batch.draws.get(draw.stream)
        value = draw(seed, batch.sample_ids) if value is None else value
        values[draw.stream] = value.to(device, non_blocking=True)
    return values


def batches_in(batch: Batch | dict[str, Batch | None]) -> list[Batch]:
    """The batch; of joint training and validation those of all objectives that have one left."""
    if isinstance(batch, dict):
        return [each for each in batch.values() if each is not None]
    return [batch]


@dataclass(frozen=True)
class BatchContents:
    """Contents of all batches of a run, in training and evaluation; the default is unknown data."""

    has_features: bool = False
    """Whether every image to generate, encode or decode comes with its features."""
    shows_images: bool = True
    """Whether prompts may hold images, see `Batch.may_show`."""
    has_sources: bool = True
    """Whether there may be edits, whose source images a generator may take."""


@dataclass
class Condition:
    """Conditioning of the generator: the language model's hidden states at the query positions."""

    hidden_states: Tensor
    """[B,N,D]"""

    def drop(self, dropped: Tensor) -> Condition:
        """The null condition (zeros) where `dropped` [B] is True: classifier-free guidance."""
        keep = (~dropped).to(self.hidden_states.dtype)[:, None, None]
        return Condition(self.hidden_states * keep)

    def repeat_interleave(self, repeats: int) -> Condition:
        """Each row `repeats` times: [B*repeats,N,D]."""
        return Condition(self.hidden_states.repeat_interleave(repeats, 0))


register_dataclass(Condition)  # FSDP looks for the tensors in what a part returns
