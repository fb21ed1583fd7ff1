"""Preview samples of a data set for callbacks."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image

from triptych.data_modules.batching.tasks import TaskDataset
from triptych.data_modules.decode import Decoder
from triptych.data_modules.sources.base import BadSample
from triptych.interfaces import IMAGE_TO_IMAGE, Preprocessing

Need = Literal["caption", "image", "turn", "edit"]
MAX_EXAMINED = 2000
"""Samples of a data set: where none of these serves, none is expected to."""


@dataclass
class Preview:
    """One sample with the requested contents; others may be there or not."""

    key: str
    text: str = ""
    """The caption, or the instruction of an edit."""
    image: Image.Image | None = None
    turn: tuple[str, str] | None = None
    """A question about the image, and its answer."""


def previews(
    datasets: Iterable[TaskDataset],
    processor: Preprocessing,
    number: int,
    needs: set[Need],
    decoder: Decoder,
) -> list[Preview]:
    """The first samples, at most `number`, that a model can take and that have all of `needs`.

    Args:
        datasets: data sets of one objective, open.
        decoder: of the training batches: previews show what the model sees.
        needs: "caption": a text to draw; "image": an image; "turn": a question about it; "edit":
            an image and the instruction that changes it.
    """
    found: list[Preview] = []
    for dataset in datasets:
        for place in range(min(len(dataset.source), MAX_EXAMINED)):
            if len(found) == number:
                return found
            with suppress(BadSample):
                found.append(_preview(dataset, place, processor, needs, decoder))
    return found


def _preview(
    dataset: TaskDataset, number: int, processor: Preprocessing, needs: set[Need], decoder: Decoder
) -> Preview:
    """One sample.

    Raises:
        BadSample: it lacks something, or the model cannot take it.
    """
    source, key = dataset.source, dataset.source.key(number)
    is_edit = dataset.task == IMAGE_TO_IMAGE and source.has_image(number, "source")
    if "edit" in needs and not is_edit or "caption" in needs and is_edit:
        raise BadSample(key, "is an edit or is none")
    # in the prompt template of inference
    dataset.prompt(number, number, replace(processor, training_template=processor.template))
    found = Preview(key)
    try:
        found.text = dataset.caption(number, number, 0)
    except BadSample:
        if needs & {"caption", "edit"}:
            raise
    if "turn" in needs:
        found.turn = dataset.some(dataset.conversation_turns(number, number, 0), number, 0)[0]
    if "edit" in needs:
        found.image = source.image(number, "source", decoder)
    elif "image" in needs:
        if not source.has_image(number, "image"):
            raise BadSample(key, "no image")
        found.image = source.image(number, decoder=decoder)
    return found
