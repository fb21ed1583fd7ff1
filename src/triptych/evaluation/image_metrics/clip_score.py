"""CLIP score: alignment of images with their captions, by a CLIP model that the user chooses.

Mean over images of 100 max(cos, 0) between image and caption (Hessel et al. 2021, arXiv 2104.08718;
with the factor 100 of torchmetrics in place of 2.5). Not from torchmetrics, which gives no scores
of single images and fails with the outputs of transformers 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity

from triptych.evaluation.image_metrics.feature_space import batches
from triptych.evaluation.image_sources import (
    Entry,
    ImageSource,
    count_states,
    read_images,
    source_name,
)
from triptych.evaluation.judges.hub import require_weights
from triptych.evaluation.report import Report
from triptych.evaluation.statistics import bootstrap
from triptych.utils.errors import UserError
from triptych.utils.pretrained import load_pretrained
from triptych.utils.tokens import break_control_tokens


class ClipJudge:
    """A CLIP model of transformers, from a folder on disk.

    Args:
        folder: argument of `CLIPModel.from_pretrained` and `CLIPProcessor.from_pretrained`.
        device: device to compute on.

    Raises:
        UserError: the folder has no CLIP model.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu") -> None:
        self.folder, self.device = Path(folder), torch.device(device)
        try:
            self.model = load_pretrained("CLIPModel", folder, local_files_only=True)
            self.processor = load_pretrained("CLIPProcessor", folder, local_files_only=True)
        except UserError as error:
            raise UserError(
                f"{folder} is no folder with a CLIP model and its processor ({error}); "
                "download one, such as openai/clip-vit-large-patch14, and name its folder."
            ) from error
        require_weights(self.model, folder)
        self.model = self.model.eval().to(self.device)
        self.most_tokens = self.model.config.text_config.max_position_embeddings

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Tensor:
        """Scores [B] from 0 to 100 of pairs; captions are truncated where `is_cut` is true."""
        inputs = self.processor.image_processor(list(images), return_tensors="pt")
        words = self.processor.tokenizer(
            [break_control_tokens(self.processor.tokenizer, caption) for caption in captions],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=self.most_tokens,
        )
        image_features = self.model.get_image_features(**inputs.to(self.device)).pooler_output
        text_features = self.model.get_text_features(**words.to(self.device)).pooler_output
        return 100 * cosine_similarity(image_features, text_features).clamp(min=0).cpu()

    def is_cut(self, caption: str) -> bool:
        """Whether the caption has more tokens than the model's maximum, usually 77."""
        tokenizer = self.processor.tokenizer
        text = break_control_tokens(tokenizer, caption)
        return len(tokenizer(text)["input_ids"]) > self.most_tokens


def score(images: ImageSource, judge: ClipJudge, batch_size: int = 32) -> Report:
    """CLIP score of images and their captions; see `read_images`.

    Images without a caption are counted as "without_caption". Captions that are too long for the
    model are truncated and counted as "cut_captions".

    Raises:
        UserError: no image can be scored.
    """
    entries = []
    for batch in batches(read_images(images), batch_size):
        entries += _scored(batch, judge)
    marks = [(entry, mark) for entry, mark in entries if mark is not None]
    if not marks:
        raise UserError(
            f"none of the {len(entries)} images in {source_name(images)} can be read and has a "
            "caption; put a .txt file beside each, or a results.jsonl into the folder."
        )
    values = [mark for _, mark in marks]
    return Report(
        benchmark="clip_score",
        scores={"CLIP score": sum(values) / len(values)},
        judged_by=f"CLIP model {judge.folder.name}",
        intervals={"CLIP score": bootstrap([_by_caption(marks)], [1.0])},
        numbers={"CLIP score": len(values)},
        counts={
            "expected": len(entries),
            "scored": len(values),
            **count_states(entry for entry, _ in entries),
            "without_caption": sum(entry.state == "without_caption" for entry, _ in entries),
            "cut_captions": sum(judge.is_cut(entry.caption) for entry, _ in marks),
        },
        settings={"folder": source_name(images), "clip": judge.folder},
        items=[entry.item(**({} if mark is None else {"score": mark})) for entry, mark in entries],
    )


def _scored(batch: list[Entry], judge: ClipJudge) -> Iterator[tuple[Entry, float | None]]:
    """Yield entries, without their images, and their scores or None."""
    for entry in batch:
        if entry.image is not None and not entry.caption:
            entry.state, entry.note = "without_caption", "nothing says what it should show"
    ready = [entry for entry in batch if not entry.state]
    marks = []
    if ready:
        marks = judge([e.image for e in ready], [e.caption for e in ready]).tolist()
    by_key = {entry.key: mark for entry, mark in zip(ready, marks, strict=True)}
    for entry in batch:
        entry.image = None
        yield entry, by_key.get(entry.key)


def _by_caption(marks: list[tuple[Entry, float]]) -> list[list[float]]:
    """Scores grouped by caption: images of one caption are dependent."""
    ordered = sorted(marks, key=lambda pair: pair[0].caption)
    return [[mark for _, mark in group] for _, group in groupby(ordered, lambda p: p[0].caption)]
