"""Training checkpoints: reading, check of frozen weights, and export of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    expected_names,
    full_name,
    label_of,
    read_weights,
    save_weights,
)
from triptych.training.sharded_checkpoint import REST, load_data, read_full_state
from triptych.utils.errors import UserError
from triptych.utils.png_metadata import shown_name

Base = dict[str, dict[str, str]]
"""File name and sha256 of the weights of frozen parts, by label."""


def read_checkpoint(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Read a single-file checkpoint on the CPU.

    A checkpoint without a manifest, such as one of an older version, is read unchecked.

    Raises:
        UserError: the checkpoint does not exist, is damaged, or has more than data.
    """
    if not path.exists() or atomic_checkpoint.manifest_of(path.resolve()).exists():
        atomic_checkpoint.check(path)
    return load_data(path, mmap)


@dataclass(frozen=True)
class RunProgress:
    """Position of a training run."""

    step: int = 0
    epochs: int = 0
    """Number of completed epochs."""
    callbacks: dict[str, Any] = field(default_factory=dict)
    """State of each callback by its key."""


def read_progress(path: Path) -> RunProgress:
    """Read the position of a checkpoint, a file or a folder, without its tensors.

    Raises:
        UserError: the checkpoint does not exist or is damaged.
    """
    atomic_checkpoint.check(path)
    content = read_checkpoint(path / REST if path.is_dir() else path, mmap=True)
    loops = content.get("loops", {}).get("fit_loop", {})
    epochs = loops.get("epoch_progress", {}).get("current", {}).get("processed", 0)
    return RunProgress(content.get("global_step", 0), epochs, content.get("callbacks", {}))


def frozen_base(sources: WeightFiles, frozen: Iterable[str]) -> Base:
    """File and `weights_hash`, by label, of the weights that the parameters `frozen` come from."""
    labels = {label_of(full_name(name)) for name in frozen}
    return {
        label: {
            "file": shown_name(source),
            "sha256": weights_hash(WeightFiles(**{label: source}), ""),
        }
        for label, source in asdict(sources).items()
        if source is not None and label in labels
    }


def check_base(saved: Base, own: Base) -> None:
    """Check that the frozen weights of a checkpoint are those of this run.

    Raises:
        UserError: they differ.
    """
    for label, note in saved.items():
        if label in own and own[label]["sha256"] != note["sha256"]:
            raise UserError(
                f"the checkpoint was trained on the {label} weights {note['file']} "
                f"(sha256 {note['sha256'][:12]}), this run has {own[label]['file']} "
                f"(sha256 {own[label]['sha256'][:12]}); name the file that it was trained on "
                f"with --model.weights.{label}=FILE."
            )


def read_trained(path: Path, average: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the trained tensors of a checkpoint, a file or a folder, and its origin.

    Tensors are by full name; no model is built. Heads that are used only to train the encoder are
    excluded.

    Args:
        path: path of the checkpoint.
        average: whether to read the EMA instead of the weights.

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
    saved = content.get("triptych", {})
    origin = {
        "preset": saved.get("preset", "custom"),
        "stage": saved.get("stage", "custom"),
        "steps": str(content["global_step"]),
    }
    tensors = with_plain_names(tensors, lambda name: expected_names()(full_name(name)), path)
    named = {full_name(name): tensor for name, tensor in tensors.items()}
    return {name: t for name, t in named.items() if name.split(".")[0] != "encoding"}, origin


def export_checkpoint(
    path: Path,
    out: Path,
    average: bool,
    dtype: torch.dtype,
    *,
    before: Path | None = None,
    extrapolate: float = 1.0,
) -> None:
    """Write the weights of a checkpoint, a file or a folder, as a weight file for inference.

    Args:
        path: path of the checkpoint.
        out: path of the weight file.
        average: whether to read the EMA instead of the weights.
        dtype: dtype of the floating-point tensors in the file.
        before: weight file that the run started from.
        extrapolate: w in before + w (weights - before): 0 is before, 1 the weights of the run,
            between them a mean of both, above 1 further along the way of the run.

    Raises:
        UserError: an error of `read_trained`, a weight is not finite, `before` does not hold what
            the run trained, or `out` cannot be written.
    """
    tensors, origin = read_trained(path, average)
    if before is not None:
        tensors = extrapolated(tensors, before, extrapolate)
    save_weights(tensors, out, origin, dtype)


def extrapolated(tensors: Mapping[str, Tensor], before: Path, weight: float) -> dict[str, Tensor]:
    """before + weight (tensors - before), float32, of floating-point tensors; others unchanged.

    Raises:
        UserError: `before` lacks a tensor, or has it in another shape.
    """
    started = read_weights(before)
    found = {}
    for name, tensor in tensors.items():
        if name not in started or started[name].shape != tensor.shape:
            raise UserError(
                f"{before} does not hold {name} as the run trained it; name the weights that the "
                "run started from (--before)."
            )
        if tensor.is_floating_point():
            tensor = torch.lerp(started[name].float(), tensor.float(), weight)
        found[name] = tensor
    return found


def read_folder(path: Path) -> dict[str, Any]:
    """Read a distributed checkpoint, without the optimizer's tensors.

    Raises:
        UserError: the folder is damaged or not a checkpoint.
    """
    atomic_checkpoint.check(path)
    return {**load_data(path / REST), **read_full_state(path, "state_dict")}
