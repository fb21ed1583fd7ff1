"""The checkpoint shared by cases, built as the model that trains and generates."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triptych.backbones import EvaClip, LuminaNextDiT, QwenText, QwenVision, QwenVL
from triptych.checkpoints.published import key_mapping
from triptych.evaluation.parity.checks import Checks
from triptych.evaluation.parity.loading import fill, map_keys
from triptych.evaluation.parity.recorded import Case
from triptych.interfaces import FlowSamplerConfig
from triptych.modules import GenerationModule, UnderstandingModule, UnifiedModule
from triptych.prompts import IM_END, IMAGE_PAD, PAD, START_OF_IMAGE, VISION_END, VISION_START
from triptych.training.freezing import freeze_all_but
from triptych.utils.errors import UserError

# Constants of the published code; the cases have ids and no tokenizer.
START_OF_IMAGE_ID = 151665
QUERY_ID = 151667

FILES = ("weights", "gen_vision_tower")


class PublishedIds:
    """Substitute for a tokenizer: the special token ids of a published configuration."""

    unk_token_id = None
    name_or_path = "the recorded checkpoint"

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._size = config["vocab_size"]
        self._ids = {
            PAD: config["pad_token_id"],
            IM_END: config["eos_token_id"],
            IMAGE_PAD: config["image_token_id"],
            VISION_START: config["vision_start_token_id"],
            VISION_END: config["vision_end_token_id"],
            START_OF_IMAGE: START_OF_IMAGE_ID,
        }

    def __len__(self) -> int:
        return self._size

    def convert_tokens_to_ids(self, token: str) -> int | None:
        return self._ids.get(token)


class RecordedCheckpoint:
    """The model of a checkpoint case, built once; only generation is trainable."""

    def __init__(self, case: Case, cases: list[Case]) -> None:
        self.case = case
        self.siblings = {each.name: each for each in cases}

    @cached_property
    def published(self) -> dict[str, Tensor]:
        """All tensors by published key, vocabulary matrices included."""
        case = self.case
        tensors = {k: v for name in FILES for k, v in case.file(name).all().items()}
        width = case["config_llm"]["hidden_size"]
        for matrix in ("embed_tokens", "lm_head"):
            formula = case["formula"].get(matrix)
            if formula:
                tensors[formula["key"]] = by_formula(case["vocab_size"], width, formula)
        if case["config_llm"]["tie_word_embeddings"]:
            tensors.pop("lm_head.weight", None)  # tied to the embeddings
        return tensors

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """All tensors by our full names."""
        return map_keys(self.published)

    @cached_property
    def model(self) -> UnifiedModule:
        case, shapes = self.case, {name: tensor.shape for name, tensor in self.weights.items()}
        config = case["config_llm"]
        text, vision = key_mapping.text_arguments(config), key_mapping.vision_arguments(config)
        # any valid size: recorded images have their own
        image_size = vision["patch_size"] * vision["spatial_merge_size"]
        vlm = QwenVL("", QwenText(**text), QwenVision(**vision), image_size=image_size)
        vlm.tokenizer = PublishedIds({**config, "vocab_size": case["vocab_size"]})
        head_width = case["config_eva"]["vision_cfg"]["head_width"]
        model = UnifiedModule(
            understanding=UnderstandingModule(vlm),
            encoder=EvaClip(
                **key_mapping.tower_arguments(shapes, key_mapping.pooling(config), head_width)
            ),
            generation=GenerationModule(
                LuminaNextDiT(
                    **key_mapping.dit_arguments(shapes), patch_size=case["config_dit"]["patch_size"]
                ),
                **key_mapping.generation_arguments(config),
                sampling=FlowSamplerConfig(integer_timesteps=True),
            ),
        )
        model.build()
        fill(model, "", self.weights)
        freeze_all_but(model, ["generation"])
        return model.eval()

    @property
    def vlm(self) -> QwenVL:
        return self.model.understanding.vlm


def by_formula(rows: int, columns: int, formula: Mapping[str, Any]) -> Tensor:
    """Compute a matrix described in `case.json`: a uint32 hash of row, column and seed."""
    i = np.arange(rows, dtype=np.uint32)[:, None] * np.uint32(0x9E3779B1)
    j = np.arange(columns, dtype=np.uint32)[None] * np.uint32(0x85EBCA77)
    h = i + j + np.uint32(formula["seed"] * 0xC2B2AE3D % 2**32)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x2C1B3C6D)
    h ^= h >> np.uint32(12)
    h *= np.uint32(0x297A2D39)
    h ^= h >> np.uint32(15)
    values = (h / 2.0**32 - 0.5) * 2 * formula["scale"]
    return torch.from_numpy(values.astype(np.float32))


def recognizes(case: Case) -> bool:
    """Whether the case records the shared checkpoint."""
    return "config_llm" in case


def check(case: Case, shared: RecordedCheckpoint, checks: Checks) -> None:
    """Check names and shapes in both directions, and stored rows of the vocabulary matrices."""
    _check_formula(case, shared, checks)
    own = {
        name: parameter
        for name, parameter in shared.model.named_parameters()
        if name not in key_mapping.UNPUBLISHED
    }
    checks.same("names", sorted(own), sorted(shared.weights))
    checks.same(
        "shapes",
        [list(own[name].shape) for name in sorted(own)],
        [list(shared.weights[name].shape) for name in sorted(own)],
    )
    back = {
        key_mapping.published_key(name): key_mapping.to_published(name, parameter.detach())
        for name, parameter in own.items()
    }
    checks.same("published names again", sorted(back), sorted(shared.published))
    unequal = [
        key for key, tensor in back.items() if not torch.equal(tensor, shared.published[key])
    ]
    checks.same("published tensors again, bit for bit", unequal, [])
    checks.same("queries", len(shared.model.generation.queries), case["n_query"])
    arguments = key_mapping.dit_arguments({name: each.shape for name, each in own.items()})
    checks.same("feed-forward width", arguments["ffn_width"], case["ffn_inner_dim"])


def _check_formula(case: Case, shared: RecordedCheckpoint, checks: Checks) -> None:
    if not case.has_file("embed_rows.safetensors"):
        return
    stored = case.file("embed_rows")
    key = case["formula"]["embed_tokens"]["key"]
    if key not in shared.published:
        raise UserError(f"{case.folder} holds no {key} and no formula for it.")
    rows = shared.published[key][stored["row_ids"]]
    checks.same("embeddings by formula, bit for bit", torch.equal(rows, stored["rows"]), True)
