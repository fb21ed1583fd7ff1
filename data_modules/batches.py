"""From sample numbers to a `Batch`: what each task reads from a sample, tokens, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from triptych.contracts import IMAGE_TO_TEXT, TEXT_TO_IMAGE, Batch, Preprocessing
from triptych.pictures import square
from triptych.prompts import (
    GENERATION_INSTRUCTION,
    IGNORED,
    PAD,
    conversation_ids,
    generation_ids,
    pad,
    token_id,
)
from triptych.randomness import uniform

from .features import FeatureCache
from .source import Source

DESCRIBE = "describe the picture"


@dataclass
class BatchBuilder:
    """Builds batches of one task from a source; picklable, for loader workers.

    Args:
        folder: the samples, open.
        task: TEXT_TO_IMAGE or IMAGE_TO_TEXT.
        known: the model's tokenizer, limits and picture sizes.
        text_only: share of IMAGE_TO_TEXT samples that talk about a caption, without a picture.
        seed: of the choice of text-only samples.
        conversation: the list of [question, answer] turns in KEY.json to learn from.
        turns: take so many turns of a conversation, others every time; None takes all, in order.
        features: of the folder's pictures, computed before.
    """

    folder: Source
    task: str
    known: Preprocessing
    text_only: float = 0.0
    seed: int = 0
    conversation: str = "conversation"
    turns: int | None = None
    features: FeatureCache | None = None

    def __call__(self, step: int, numbers: Sequence[int], samples: Sequence[int]) -> Batch:
        """Batch `step` of the samples at `numbers`, whose global sample numbers are `samples`."""
        build = {TEXT_TO_IMAGE: self._text_to_image, IMAGE_TO_TEXT: self._image_to_text}[self.task]
        return build(step, numbers, torch.tensor(list(samples), dtype=torch.long))

    def _text_to_image(self, step: int, numbers: Sequence[int], samples: Tensor) -> Batch:
        known, folder = self.known, self.folder
        template = known.training_template
        keys = [folder.key(n) for n in numbers]
        if known.tokenizer is None:
            ids = mask = torch.zeros((len(keys), 0), dtype=torch.long)
        else:
            rows = [
                generation_ids(known.tokenizer, folder.caption(n), known.max_tokens, key, template)
                for n, key in zip(numbers, keys, strict=True)
            ]
            ids, mask = pad(rows, token_id(known.tokenizer, PAD))
        batch = Batch(TEXT_TO_IMAGE, keys, step, samples, ids, mask)
        found = [self.features and self.features.get(n) for n in numbers]
        wanted = [known.pictures_too or features is None for features in found]
        if any(wanted):
            size = known.picture_size
            black = torch.zeros(3, size, size, dtype=torch.uint8)
            pictures = [
                square(folder.picture(n), size) if wants else black
                for n, wants in zip(numbers, wanted, strict=True)
            ]
            batch.target_pixels = torch.stack(pictures)
        set_features(batch, found)
        return batch

    def _image_to_text(self, step: int, numbers: Sequence[int], samples: Tensor) -> Batch:
        known, folder = self.known, self.folder
        blind = uniform(self.seed, "text-only", samples) < self.text_only
        keys, rows, labels, pictures = [], [], [], []
        for number, sample, no_picture in zip(
            numbers, samples.tolist(), blind.tolist(), strict=True
        ):
            key = folder.key(number)
            facts = folder.facts(number)
            if no_picture:
                turns = about_caption(folder.caption(number), facts)
            else:
                turns = facts.get(self.conversation) or [(DESCRIBE, folder.caption(number))]
                turns = self._some(turns, sample)
                pictures.append(square(folder.picture(number), known.understanding_size))
            shown = 0 if no_picture else known.image_tokens
            row, learned = conversation_ids(known.tokenizer, turns, known.max_tokens, shown, key)
            keys.append(key)
            rows.append(row)
            labels.append(learned)
        ids, mask = pad(rows, token_id(known.tokenizer, PAD))
        patches, grids = known.image_inputs(torch.stack(pictures)) if pictures else (None, None)
        return Batch(
            IMAGE_TO_TEXT,
            keys,
            step,
            samples,
            ids,
            mask,
            labels=pad(labels, IGNORED)[0],
            understanding_pixels=patches,
            image_grid_thw=grids,
        )

    def _some(self, turns: list, sample: int) -> list:
        """`self.turns` of the turns in an order of their own, which `sample` alone decides."""
        if self.turns is None:
            return turns
        chosen = np.random.default_rng([self.seed, sample]).permutation(len(turns))
        return [turns[n] for n in chosen[: self.turns]]


def set_features(batch: Batch, found: list[Tensor | None]) -> None:
    """Put the features [C,h,w] that were found into a batch, zeros in the place of others."""
    some = next((features for features in found if features is not None), None)
    if some is None:
        return
    has = torch.tensor([features is not None for features in found])
    rows = [torch.zeros_like(some) if features is None else features for features in found]
    batch.target_features = torch.stack(rows)
    batch.has_features = None if has.all() else has


def about_caption(caption: str, facts: dict) -> list[tuple[str, str]]:
    """Text-only turns about a caption that is given as a generation prompt.

    The language model so learns to take that very prompt apart before the generator, which reads
    a frozen language model, depends on it.
    """
    turns = facts.get("text_conversation") or [("repeat the caption", caption)]
    prompt = GENERATION_INSTRUCTION.format(caption=caption)
    (_, first), *rest = turns
    return [(prompt, first), *rest]
