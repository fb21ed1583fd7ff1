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
"""Maximum number of samples of a data set that are examined for `needs`."""


@dataclass
class Preview:
    """One sample with the requested contents; the others may be missing."""

    key: str
    text: str = ""
    """The caption, or the instruction of an edit."""
    image: Image.Image | None = None
    turn: tuple[str, str] | None = None
    """A question about the image, and its answer."""


def previews(
    datasets: Iterable[TaskDataset],
    processor: Preprocessing,
    max_previews: int,
    needs: set[Need],
    decoder: Decoder,
) -> list[Preview]:
    """Find the first samples that a model can take and that have all of `needs`.

    Args:
        datasets: open data sets of one objective.
        processor: the model's tokenizer, limits and image sizes.
        max_previews: maximum number of samples.
        needs: required contents. "caption": a text to draw; "image": an image; "turn": a question
            about it; "edit": an image and the instruction that changes it.
        decoder: decoder of the training batches: previews show what the model sees.
    """
    results: list[Preview] = []
    for dataset in datasets:
        for number in range(min(len(dataset.source), MAX_EXAMINED)):
            if len(results) == max_previews:
                return results
            with suppress(BadSample):
                results.append(_preview(dataset, number, processor, needs, decoder))
    return results


def _preview(
    dataset: TaskDataset, number: int, processor: Preprocessing, needs: set[Need], decoder: Decoder
) -> Preview:
    """The preview of one sample.

    Raises:
        BadSample: it lacks one of `needs`, or the model cannot take it.
    """
    source, key = dataset.source, dataset.source.key(number)
    is_edit = dataset.task == IMAGE_TO_IMAGE and source.has_image(number, "source")
    if "edit" in needs and not is_edit or "caption" in needs and is_edit:
        raise BadSample(key, "not an edit, or not a caption")
    # in the prompt template of inference
    dataset.prompt(number, number, replace(processor, training_template=processor.template))
    preview = Preview(key)
    try:
        preview.text = dataset.caption(number, number, 0)
    except BadSample:
        if needs & {"caption", "edit"}:
            raise
    if "turn" in needs:
        preview.turn = dataset.sample_turns(
            dataset.conversation_turns(number, number, 0), number, 0
        )[0]
    if "edit" in needs:
        preview.image = source.image(number, "source", decoder)
    elif "image" in needs:
        if not source.has_image(number, "image"):
            raise BadSample(key, "no image")
        preview.image = source.image(number, decoder=decoder)
    return preview
