"""The VLM: transformers' Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
    StoppingCriteriaList,
)

from triptych.backbones.prompt_cache import causal_mask
from triptych.backbones.query_pass import condition
from triptych.backbones.qwen2_5_vl_config import (
    QwenText,
    QwenVision,
    Vocabulary,
    check_vocabulary,
    transformers_config,
)
from triptych.backbones.qwen2_5_vl_images import ImagePatches
from triptych.backbones.qwen2_5_vl_tower import PositionalMerger, TowerLayouts
from triptych.backbones.token_sampling import Forbid, Logits, Watch, choice, none_ends
from triptych.interfaces import Batch, Condition, Sampling, VisionLanguageModel, label_indices
from triptych.prompts import IMAGE_PAD
from triptych.utils.errors import UserError
from triptych.utils.paths import PREFIX, resolve
from triptych.utils.pretrained import load_pretrained


class QwenVL(VisionLanguageModel):
    """Qwen2.5-VL with its tokenizer and image processor.

    Args:
        tokenizer: folder or hub id; `asset:` names one inside the package.
        text, vision: sizes of the language model and the vision tower.
        image_size: side in pixels to which an image is scaled before it is cut into patches;
            a multiple of patch_size * spatial_merge_size.
        vocabulary: rows of the embedding and ids of special tokens. None reads them from the
            tokenizer when the network is built; given, the tokenizer must agree with them when it
            is first used, and building needs no tokenizer.
        min_pixels, max_pixels: area limits of images in conversations, which keep their shape, as
            Qwen2.5-VL was made for; both None: images are squares there too.
        image_positions: positions of an image in the prompt of a condition: "line" as published,
            one token after the other as if it were text; "grid" by rows and columns, like those of
            the images that the language model has learned to answer about.
    """

    def __init__(
        self,
        tokenizer: str,
        text: QwenText,
        vision: QwenVision,
        *,
        image_size: int = 448,
        vocabulary: Vocabulary | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        image_positions: Literal["line", "grid"] = "line",
    ) -> None:
        super().__init__()
        self.patches = ImagePatches(vision, image_size, min_pixels, max_pixels)
        self.tokenizer_name, self.given_vocabulary = tokenizer, vocabulary
        self.text, self.vision, self.image_size = text, vision, image_size
        self.image_positions = image_positions
        self.width = text.hidden_size
        self._tower_layouts = TowerLayouts(vision)

    @cached_property
    def tokenizer(self) -> Any:
        name = self.tokenizer_name
        if name.startswith(PREFIX):
            name = str(resolve(name, created_by="make pretrain-tiny"))
        try:
            tokenizer = load_pretrained("AutoTokenizer", name)
        except UserError as error:
            raise UserError(
                f"there is no tokenizer at {name}: name a folder or hub id "
                f"(`triptych convert` makes a folder of a published checkpoint); {error}"
            ) from error
        if self.given_vocabulary is not None:
            check_vocabulary(self.given_vocabulary, tokenizer)
        return tokenizer

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Vocabulary as configured, or as read from the tokenizer."""
        return self.given_vocabulary or Vocabulary.of(self.tokenizer)

    def config(self) -> Qwen2_5_VLConfig:
        """The transformers configuration of these sizes."""
        return transformers_config(self.text, self.vision, self.vocabulary)

    def build(self) -> None:
        self.model = Qwen2_5_VLForConditionalGeneration(self.config())
        self.model.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=self.vocabulary.im_end,
            pad_token_id=self.vocabulary.pad,
        )
        if std := self.vision.position_std:
            visual = self.model.model.visual
            tokens = self.image_tokens()
            visual.merger = PositionalMerger(visual.merger, tokens, self.width, std)
        for part in self.left_out:  # afterwards, so that random draws are those of the whole
            owner, _, name = self.optional_parts[part].rpartition(".")
            setattr(self.get_submodule(owner), name, None)

    @property
    def optional_parts(self) -> dict[str, str]:
        parts = {"vision_tower": "model.model.visual"}
        return parts if self.text.tie_word_embeddings else parts | {"lm_head": "model.lm_head"}

    def _require(self, part: str) -> None:
        if part in self.left_out:
            raise UserError(self.left_out[part])

    def blocks(self) -> list[nn.Module]:
        blocks = [*self.model.model.language_model.layers]
        if self.model.model.visual is not None:
            blocks += self.model.model.visual.blocks
        if not self.text.tie_word_embeddings:  # as large as several layers, each
            blocks += [self.model.model.language_model.embed_tokens]
            blocks += [self.model.lm_head] if self.model.lm_head is not None else []
        return blocks

    def image_tokens(self) -> int:
        return self.patches.tokens_of_a_square

    def image_inputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.patches.of_squares(images)

    def chat_inputs(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[int]] | None:
        return self.patches.of_any_shape(images)

    @property
    def _patches_of_a_token(self) -> int:
        return self.patches.patches_of_a_token

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
        """Outputs at `queries` [N,D], put after each prompt [B,T]; see `query_pass.condition`."""
        return condition(
            self,
            input_ids,
            attention_mask,
            queries,
            understanding_pixels=understanding_pixels,
            image_grid_thw=image_grid_thw,
            position_ids=position_ids,
            num_shared_prefix_tokens=num_shared_prefix_tokens,
            query_places=query_places,
            query_rows=query_rows,
        )

    def embed(
        self,
        input_ids: Tensor,
        understanding_pixels: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
    ) -> Tensor:
        """Embeddings [B,T,D] of prompts [B,T], images in their placeholders.

        Raises:
            UserError: there are more or fewer placeholders than the images make tokens; on a GPU
                the device's own error, later.
        """
        embeddings = self.model.model.language_model.embed_tokens(input_ids)
        if understanding_pixels is None:
            return embeddings
        features = self.image_features(understanding_pixels, image_grid_thw).to(embeddings.dtype)
        places = self._token_types(input_ids).bool()
        number = places.sum()
        if number.device.type == "cuda":  # reading it would synchronize
            torch._assert_async(number == len(features))
        elif int(number) != len(features):
            raise UserError(
                f"the images make {len(features)} tokens, the prompts hold {int(number)} "
                f"placeholders; put one {IMAGE_PAD} a token where the image is shown."
            )
        return embeddings.masked_scatter(places[..., None], features)

    def image_features(self, understanding_pixels: Tensor, image_grid_thw: Tensor) -> Tensor:
        """Outputs of the vision tower for all images, one after the other: [tokens,D].

        Without images (empty pixels, see `Batch.shown`) there are none; where other ranks wait for
        the tower, it runs on a blank token, with gradients of zero.
        """
        self._require("vision_tower")
        number = None
        if not len(understanding_pixels):
            number = 0
            understanding_pixels, image_grid_thw = self.patches.blank(understanding_pixels.device)
            if not self._ranks_wait_for_tower():
                return understanding_pixels.new_zeros(0, self.width)
        visual = self.model.model.visual
        pixels = understanding_pixels.to(visual.dtype)
        layout = self._tower_layouts(image_grid_thw, pixels.device)
        return visual(pixels, grid_thw=image_grid_thw, **layout).pooler_output[:number]

    def _ranks_wait_for_tower(self) -> bool:
        """Whether its parameters are split over ranks, or its gradients summed over them."""
        parameters = list(self.model.model.visual.parameters())
        if any(isinstance(parameter, DTensor) for parameter in parameters):
            return True
        return torch.is_grad_enabled() and any(p.requires_grad for p in parameters)

    def lm_loss(self, batch: Batch) -> Tensor:
        """Mean cross entropy; logits are computed only where there is a label.

        Nothing synchronizes with the device where the loader counted ahead: `Batch.position_ids`
        and `Batch.label_indices`.
        """
        self._require("lm_head")
        (pixels, grids), positions = batch.shown, batch.position_ids
        if positions is None and grids is not None and len(grids):
            positions = self.position_ids(batch.input_ids, batch.attention_mask, grids)
        states = self.model.model.language_model(
            inputs_embeds=self.embed(batch.input_ids, pixels, grids),
            attention_mask=causal_mask(batch.attention_mask, batch.input_ids.shape[1]),
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        learned = batch.label_indices
        if learned is None:
            learned = label_indices(batch.labels)
        logits = self.model.lm_head(states.flatten(0, 1)[learned])
        targets = batch.labels.flatten()[learned + 1]
        total = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
        return total / max(1, len(targets))

    def next_token_logits(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        understanding_pixels: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
    ) -> Tensor:
        self._require("lm_head")
        positions = None
        if understanding_pixels is not None:
            positions = self.position_ids(input_ids, attention_mask, image_grid_thw)
        states = self.model.model.language_model(
            inputs_embeds=self.embed(input_ids, understanding_pixels, image_grid_thw),
            attention_mask=causal_mask(attention_mask, input_ids.shape[1]),
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        rows = torch.arange(len(states), device=states.device)
        return self.model.lm_head(states[rows, attention_mask.sum(1) - 1]).float()

    def position_ids(self, input_ids: Tensor, attention_mask: Tensor, grids: Tensor) -> Tensor:
        return self._rope.get_rope_index(
            input_ids, self._token_types(input_ids), grids, attention_mask=attention_mask
        )[0]

    @cached_property
    def _rope(self) -> Qwen2_5_VLModel:
        """Only a holder of the configuration for `get_rope_index`: it works before `build`."""
        holder = Qwen2_5_VLModel.__new__(Qwen2_5_VLModel)
        object.__setattr__(holder, "config", self.config())
        return holder

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
        self._require("lm_head")
        # `generate` encodes images as soon as the arguments are named, even as None
        images = {}
        if understanding_pixels is not None:
            self._require("vision_tower")
            images = {
                "pixel_values": understanding_pixels,
                "image_grid_thw": image_grid_thw,
                "mm_token_type_ids": self._token_types(input_ids),
            }
        logits = Logits()
        new = self.model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            logits_processor=LogitsProcessorList(
                [logits, Forbid(forbidden), *choice(sampling or Sampling())]
            ),
            stopping_criteria=StoppingCriteriaList([Watch(on_tokens or none_ends, logits)]),
            **images,
        )
        return new[:, input_ids.shape[1] :]

    def _token_types(self, input_ids: Tensor) -> Tensor:
        """1 on image tokens, 0 on text: what transformers builds the M-RoPE positions from."""
        return (input_ids == self.vocabulary.image_pad).int()
