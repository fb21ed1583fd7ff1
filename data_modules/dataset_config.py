"""Configuration of one data set of a mixture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

from triptych.data_modules.batching.caption_dropout import NO_DROPOUT, CaptionDropout
from triptych.data_modules.batching.tasks import TaskDataset
from triptych.data_modules.features.cache import AUTO
from triptych.data_modules.sources.base import DataSource
from triptych.interfaces import OBJECTIVE_OF_TASK, TEXT_TO_IMAGE
from triptych.utils.errors import UserError


@dataclass
class DatasetConfig:
    """One data set of a mixture.

    Args:
        source: any `DataSource`, by class_path.
        task: task of the samples: "text_to_image", "image_to_image", "image_to_text",
            "text_to_text", "text_to_reward" (captions whose images a reward scores),
            "text_to_preference" (the better of two images; "rejected" in the metadata names the
            other one), or of
            conversations with images in any message "interleaved" (what is
            said) or "interleaved_images" (which images are made).
        weight: share of the samples of its objective, relative to the other data sets; null in all
            of them is in proportion to their numbers of samples. 0 excludes it.
        text_only_ratio: fraction of the image_to_text samples that are a conversation about the
            caption, without the image.
        conversation_key: key of the [question, answer] turns in the metadata of a sample; an
            image without it is described by its caption.
        max_turns: maximum number of turns of a conversation, drawn anew each time; null takes all,
            in order.
        caption_dropout: words left out of the captions of "text_to_image", see `CaptionDropout`.
        features: folder that `triptych data features` made of these samples; "auto" takes
            features/ beside the shards if it exists, "none" encodes every image anew.
    """

    source: DataSource
    task: str = TEXT_TO_IMAGE
    _: KW_ONLY
    weight: float | None = None
    text_only_ratio: float = 0.0
    conversation_key: str = "conversation"
    max_turns: int | None = None
    caption_dropout: CaptionDropout = NO_DROPOUT
    features: str = AUTO

    @property
    def objective(self) -> str | None:
        """Objective of the task; None for an unknown task, see `require_known_tasks`."""
        return OBJECTIVE_OF_TASK.get(self.task)

    def open(self, name: str) -> TaskDataset:
        """Open the samples as `task` reads them."""
        self.source.open()
        return TaskDataset(
            self.source,
            self.task,
            name,
            text_only_ratio=self.text_only_ratio,
            conversation_key=self.conversation_key,
            max_turns=self.max_turns,
            caption_dropout=self.caption_dropout,
        )


def require_known_tasks(datasets: Mapping[str, DatasetConfig]) -> None:
    """Refuse data sets of an unknown task.

    Raises:
        UserError: a task is not one of `interfaces.OBJECTIVE_OF_TASK`.
    """
    for name, config in datasets.items():
        if config.task not in OBJECTIVE_OF_TASK:
            raise UserError(
                f"data set {name!r}: the task {config.task!r} is unknown; choose one of "
                f"{', '.join(OBJECTIVE_OF_TASK)}."
            )


def open_by_objective(datasets: Mapping[str, DatasetConfig]) -> dict[str, list[TaskDataset]]:
    """Open data sets; return them by the objective of their tasks."""
    opened: dict[str, list[TaskDataset]] = {}
    for name, config in datasets.items():
        dataset = config.open(name)
        opened.setdefault(dataset.objective, []).append(dataset)
    return opened


def dataset_weights(datasets: Mapping[str, DatasetConfig], objective: str) -> dict[str, float]:
    """Weights of the data sets of an objective, by name; their sizes if none has a weight.

    Raises:
        UserError: some have a weight and some have none.
    """
    members = {
        name: config
        for name, config in datasets.items()
        if OBJECTIVE_OF_TASK[config.task] == objective
    }
    without = [name for name, config in members.items() if config.weight is None]
    if without and len(without) < len(members):
        raise UserError(
            f"data set {without[0]!r} has no weight, but others have one; give every data set "
            "of an objective a weight, or none of them."
        )
    return {
        name: float(len(config.source) if config.weight is None else config.weight)
        for name, config in members.items()
    }
