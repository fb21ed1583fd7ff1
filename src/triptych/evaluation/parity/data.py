"""Parity of token ids and pixels: templates, truncation, collation, transform."""

from __future__ import annotations

from PIL import Image
from transformers import PreTrainedTokenizerFast

from triptych.evaluation.parity.checkpoint import QUERY_ID, START_OF_IMAGE_ID
from triptych.evaluation.parity.checks import Checks
from triptych.evaluation.parity.recorded import Case
from triptych.prompts import (
    IGNORED,
    IM_START,
    START_OF_IMAGE,
    generation_ids,
    pad,
    reconstruction_ids,
    token_id,
)
from triptych.utils.errors import UserError
from triptych.utils.images import square


def recognizes(case: Case) -> bool:
    """Whether the case records prompts and collation."""
    return case.has_file("tokenizer.json")


class RecordedTokenizer:
    """The tokenizer of the case, with `[IMG]` under its recorded id."""

    unk_token_id = None

    def __init__(self, case: Case) -> None:
        path = case.folder / "tokenizer.json"
        try:
            self._tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
        except Exception as error:  # the Rust library raises plain exceptions
            raise UserError(f"{path} is no tokenizer ({error}).") from error
        self.name_or_path, self.backend_tokenizer = str(path), self._tokenizer.backend_tokenizer

    def __call__(self, text: str, **options) -> dict[str, list[int]]:
        return self._tokenizer(text, **options)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        if token == START_OF_IMAGE:
            return START_OF_IMAGE_ID
        return self._tokenizer.convert_tokens_to_ids(token)


def check(case: Case, checks: Checks) -> None:
    """Check prompts of training and inference, the collated batch and the image transform."""
    tokenizer = RecordedTokenizer(case)
    check_batch(case, tokenizer, checks)
    check_inference(case, tokenizer, checks)
    check_transform(case, checks)


def check_batch(case: Case, tokenizer: RecordedTokenizer, checks: Checks) -> None:
    """Check the collated training batch: rows, labels, mask, start of the queries."""
    io = case.io
    rows = training_rows(case, tokenizer)
    placeholders = [QUERY_ID] * num_queries(case)
    ids, mask = pad([row + placeholders for row in rows], case["pad_token_id"])
    checks.same("input_ids", ids, io["input_ids"])
    checks.same("attention_mask", mask.bool(), io["attention_mask"])
    checks.same("i_s_pos", [len(row) for row in rows], io["i_s_pos"])
    for index, (row, sample) in enumerate(zip(rows, case["per_sample"], strict=True)):
        whole = tokenizer(sample["text"], add_special_tokens=False)["input_ids"]
        checks.same(f"sample {index}: tokens before the cut", len(whole), sample["n"])
        checks.same(f"sample {index}: text", row[:-1], whole[: len(row) - 1])
    start = token_id(tokenizer, IM_START)
    labels = [published_labels(row, start) + placeholders for row in rows]
    checks.same("labels", pad(labels, IGNORED)[0], io["labels"])


def num_queries(case: Case) -> int:
    return int((case.io["input_ids"] == QUERY_ID).sum(1).max())


def training_rows(case: Case, tokenizer: RecordedTokenizer) -> list[list[int]]:
    """Token ids of training prompts, `[IMG]` included."""
    limit = case["model_max_length"] - num_queries(case)
    captions = iter(case["captions"])
    rows = []
    for kind, conversation in zip(case["kinds"], case["conversations"], strict=True):
        if kind == "gen":
            rows.append(
                generation_ids(tokenizer, next(captions), limit, template="published_training")
            )
        else:
            instruction = conversation[0]["value"].removeprefix("<image>\n")
            tokens = case["n_und_query"]
            rows.append(
                reconstruction_ids(
                    tokenizer,
                    tokens,
                    limit,
                    instruction=instruction,
                    template="published_training",
                )
            )
    return rows


def published_labels(row: list[int], start: int) -> list[int]:
    """Labels of the published code: the answer's turn, header and `[IMG]` included.

    Our batches have no such labels, as only the image loss is used.
    """
    turns = [place for place, number in enumerate(row) if number == start]
    # system message, question, answer; a truncated row may lack the last
    begin = turns[2] if len(turns) == 3 else len(row) - 1
    return [IGNORED] * begin + row[begin:]


def check_inference(case: Case, tokenizer: RecordedTokenizer, checks: Checks) -> None:
    """Check the prompts of released weights at inference."""
    for index, (caption, prompt) in enumerate(
        zip(case["captions"], case["inference_prompts"], strict=True)
    ):
        recorded = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        limit = len(recorded) + 1
        ours = generation_ids(tokenizer, caption, limit, template="published_inference")
        checks.same(f"inference prompt {index}", ours, [*recorded, START_OF_IMAGE_ID])


def check_transform(case: Case, checks: Checks) -> None:
    """Check the square image transform of the language model."""
    io = case.io
    if "und_source_u8" not in io:
        return
    side = 448  # constant of the published code, not recorded
    image = square(Image.fromarray(io["und_source_u8"].numpy()), side).permute(1, 2, 0)
    corner, center = io["und_corner_u8"], io["und_center_u8"]
    checks.same("und_corner_u8", image[: corner.shape[0], : corner.shape[1]], corner)
    top, left = ((side - size) // 2 for size in center.shape[:2])
    middle = image[top : top + center.shape[0], left : left + center.shape[1]]
    checks.same("und_center_u8", middle, center)
    checks.values("und_mean", image.double().mean((0, 1)), io["und_mean"])
