"""Parts of a model that a training run never computes with, and so neither builds nor reads.

    encoder        its features are cached (`BatchContents.has_features`), and the generator takes
                   no source images, or there are none (`BatchContents.has_sources`)
    vision_tower   no prompt shows images (`BatchContents.shows_images`)
    lm_head        no loss reads logits

A part that may train is used, and so is one that a callback names in its `needed_parts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning import Trainer

from triptych.interfaces import BatchContents
from triptych.training.freezing import may_match
from triptych.utils.errors import UserError

PANELS = ("understanding", "generation", "decoding", "encoding", "encoder", "vae")
INSIDE = {
    "language_model": "understanding",
    "vision_tower": "understanding",
    "lm_head": "understanding",
}
"""Parts of a panel. The language model is the panel without the others."""
OPTIONAL = {
    "encoder": "image encoder",
    "vision_tower": "language model's vision tower",
    "lm_head": "language model's lm_head",
}
"""Parts that a run may leave out, in words."""


def panel_of(part: str) -> str:
    """Panel, or part beside the panels, that a part belongs to.

    Raises:
        UserError: there is no such part.
    """
    if part not in PANELS and part not in INSIDE:
        raise UserError(
            f"{part!r} is no part of a model; choose from {sorted({*PANELS, *INSIDE})}."
        )
    return INSIDE.get(part, part)


def optional_paths(model: Any) -> dict[str, str]:
    """Paths in a UnifiedModule of those of `OPTIONAL` that it has."""
    paths = {} if model.encoder is None else {"encoder": "encoder"}
    if model.understanding is not None:
        inside = model.understanding.vlm.optional_parts
        paths |= {name: f"understanding.vlm.{path}" for name, path in inside.items()}
    return paths


def unused_parts(model: Any, contents: BatchContents, needed: Iterable[str] = ()) -> set[str]:
    """Parts of `OPTIONAL` that the model's stage never computes with; none without losses.

    Args:
        model: a UnifiedModule, built or not.
        contents: contents of the run's batches.
        needed: parts that something else computes with, such as a callback.
    """
    if not model.loss_weights:
        return set()
    used = set(needed)
    if "understanding" in used:
        used |= {"vision_tower", "lm_head"}
    if {"generation", "vision_tower"} <= used and _sees_sources(model):
        used.add("encoder")  # it makes edits
    if contents.shows_images:
        used.add("vision_tower")
    if "understanding" in model.loss_weights:
        used.add("lm_head")
    if _encodes(model, contents) or _decodes_against_blank_image(model):
        used.add("encoder")
    return {
        part
        for part, path in optional_paths(model).items()
        if part not in used and not may_match(path, model.trainable)
    }


def _encodes(model: Any, contents: BatchContents) -> bool:
    """Whether a loss calls the image encoder."""
    losses = model.loss_weights.keys()
    if {"encoding", "preference_tuning"} & losses:
        return True
    targets = "generation" in losses and model.target_encoder is model.encoder
    if targets and contents.has_sources and _sees_sources(model):
        return True
    return not contents.has_features and (targets or "decoding" in losses)


def _sees_sources(model: Any) -> bool:
    """Whether the generator sees the images that edits change, through the image encoder."""
    generation = model.generation
    if generation is None or not generation.takes_source:
        return False
    return model.target_encoder is model.encoder


def _decodes_against_blank_image(model: Any) -> bool:
    """Whether the decoder's guidance, or its training, needs the features of a blank image."""
    if model.decoding is None or "decoding" not in model.stage_parts():
        return False
    return model.decoding.decoder.needs_null_features or model.decoder_negative == "black_image"


def unused_in_run(model: Any, trainer: Trainer) -> set[str]:
    """`unused_parts` of a command of a Trainer whose data and callbacks are set up."""
    contents = getattr(trainer.datamodule, "batch_contents", BatchContents)()
    return unused_parts(model, contents, needed_by_callbacks(trainer))


def needed_by_callbacks(trainer: Trainer) -> set[str]:
    """Parts that the active callbacks of a command name in `needed_parts`.

    Raises:
        UserError: a callback names something else.
    """
    command: Any = trainer.state.fn
    active = (c for c in trainer.callbacks if command in getattr(c, "serves", (command,)))
    needed = {part for each in active for part in getattr(each, "needed_parts", ())}
    for part in needed:
        panel_of(part)
    return needed


def absences(parts: Iterable[str]) -> Mapping[str, str]:
    """Sentences for the use of parts that were left out, by part."""
    return {
        part: f"this run does without the {OPTIONAL[part]}, as neither its data nor its losses "
        f"need it; a callback that does says so by needed_parts = ({part!r},)."
        for part in parts
    }
