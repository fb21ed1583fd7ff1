"""Training checkpoints: reading, their frozen base weights, and export of weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.checkpoints import atomic_checkpoint
from triptych.checkpoints.hashing import weights_hash
from triptych.checkpoints.key_prefixes import with_plain_names
from triptych.checkpoints.weight_files import (
    WeightFiles,
    expected,
    full_name,
    label_of,
    save_weights,
)
from triptych.training.sharded_checkpoint import REST, load_data, read_full_state
from triptych.utils.errors import UserError
from triptych.utils.png_metadata import shown_name

Base = dict[str, dict[str, str]]
"""Label -> name of the file and sha256 of the weights that frozen parts came from."""


def read_checkpoint(path: Path, mmap: bool = False) -> dict[str, Any]:
    """The content of a checkpoint that is a single file, on the CPU.

    A checkpoint without a manifest, say of an older version, is read as it is.

    Raises:
        UserError: it does not exist, is damaged, or holds more than data.
    """
    if not path.exists() or atomic_checkpoint.manifest_of(path.resolve()).exists():
        atomic_checkpoint.check(path)
    return load_data(path, mmap)


@dataclass(frozen=True)
class RunProgress:
    """Position of a training run."""

    step: int = 0
    epochs: int = 0
    """Finished ones."""
    callbacks: dict[str, Any] = field(default_factory=dict)
    """State of each callback, by its key."""


def read_progress(path: Path) -> RunProgress:
    """The position that a checkpoint, a file or a folder, was saved at; no tensor is read.

    Raises:
        UserError: it does not exist or is damaged.
    """
    atomic_checkpoint.check(path)
    content = read_checkpoint(path / REST if path.is_dir() else path, mmap=True)
    loops = content.get("loops", {}).get("fit_loop", {})
    epochs = loops.get("epoch_progress", {}).get("current", {}).get("processed", 0)
    return RunProgress(content.get("global_step", 0), epochs, content.get("callbacks", {}))


def frozen_base(sources: WeightFiles, frozen: Iterable[str]) -> Base:
    """File and checksum, by label, of the weights that the parameters named `frozen` came from.

    The checksum is of the numbers, see `weights_hash`; those of big files are remembered.
    """
    labels = {label_of(full_name(name)) for name in frozen}
    return {
        label: {
            "file": shown_name(source),
            "sha256": weights_hash(WeightFiles(**{label: source}), ""),
        }
        for label, source in asdict(sources).items()
        if source is not None and label in labels
    }


def check_base(made: Base, own: Base) -> None:
    """Refuse a checkpoint whose frozen parts were others than this run's.

    Raises:
        UserError: they were.
    """
    for label, note in made.items():
        if label in own and own[label]["sha256"] != note["sha256"]:
            raise UserError(
                f"the checkpoint was trained on the {label} weights {note['file']} "
                f"(sha256 {note['sha256'][:12]}), this run has {own[label]['file']} "
                f"(sha256 {own[label]['sha256'][:12]}); name the file that it was trained on "
                f"with --model.weights.{label}=FILE."
            )


def read_trained(path: Path, average: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The trained tensors of a checkpoint, a file or a folder, by full name, and its origin.

    No model is built. The heads of the encoder's training are excluded: nothing reads them.

    Args:
        average: whether to read the EMA in place of the weights themselves.

    Raises:
        UserError: the checkpoint is missing or damaged, or has no EMA.
    """
    content = read_folder(path) if path.is_dir() else read_checkpoint(path, mmap=True)
    tensors = content.get("state_dict")
    if not isinstance(tensors, dict) or "global_step" not in content:
        raise UserError(f"{path} is no checkpoint of a training run.")
    if average:
        state = content.get("callbacks", {}).get("EMA")
        if state is None:
            raise UserError(
                f"{path} holds no EMA: its run had no callback triptych.callbacks.EMA; leave "
                "--ema out."
            )
        tensors = {**tensors, **state["average"]}  # buffers have no average
    made = content.get("triptych", {})
    origin = {
        "preset": made.get("preset", "custom"),
        "stage": made.get("stage", "custom"),
        "steps": str(content["global_step"]),
    }
    tensors = with_plain_names(tensors, lambda name: expected()(full_name(name)), path)
    named = {full_name(name): tensor for name, tensor in tensors.items()}
    return {name: t for name, t in named.items() if name.split(".")[0] != "encoding"}, origin


def export_checkpoint(path: Path, out: Path, average: bool, dtype: torch.dtype) -> None:
    """Write the weights of a checkpoint, a file or a folder, as a weight file for inference.

    Args:
        average: whether to read the EMA in place of the weights themselves.
        dtype: of the floating-point tensors in the file.

    Raises:
        UserError: an error of `read_trained`, a weight is not finite, or `out` cannot be written.
    """
    tensors, origin = read_trained(path, average)
    save_weights(tensors, out, origin, dtype)


def read_folder(path: Path) -> dict[str, Any]:
    """The content of a checkpoint that each rank wrote a part of, without the optimizer's tensors.

    Raises:
        UserError: it is damaged or no checkpoint.
    """
    atomic_checkpoint.check(path)
    return {**load_data(path / REST), **read_full_state(path, "state_dict")}
