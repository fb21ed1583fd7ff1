"""What `shapes_questions.yaml` calls: documents to conversations, answers to verdicts."""

from typing import Any

from PIL import Image

from triptych.shapes_world.checker import answer_is_right


def image(document: dict[str, Any]) -> list[Image.Image]:
    """The one that the question is about."""
    return [Image.open(document["image"]).convert("RGB")]


def question(document: dict[str, Any], lmms_eval_specific_kwargs: object = None) -> str:
    """As our own evaluation asks it, without a word around it."""
    return document["question"]


def process_results(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """As our own evaluation judges."""
    return {"right": float(answer_is_right(results[0], document["answer"]))}
