"""Lightning's command line with our rules: one folder a run, short errors."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import jsonargparse
from lightning import Trainer
from lightning.pytorch.cli import LightningCLI

from triptych.contracts import UserError
from triptych.modules.panel import Panel
from triptych.ranks import take_over
from triptych.weights import durable, find_all

# Lightning's own use of a torch function that is being renamed: nothing a user can act on.
warnings.filterwarnings("ignore", message=".*LeafSpec.*")
# On purpose: what is frozen is in evaluation mode.
warnings.filterwarnings("ignore", message=".*module.*in eval mode at the start of training.*")
# Nothing of ours changes what a part returns in place.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
# On purpose: every rank validates on the same samples.
warnings.filterwarnings("ignore", message=".*when logging on epoch level in distributed setting.*")

# `${model.stage}` then works from any --config file, although the command is a subcommand.
jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)

# What a run may leave in its folder, for the last line of a fit.
RESULTS = (
    "weights.safetensors",
    "weights_ema.safetensors",
    "samples",
    "checkpoints",
    "metrics.csv",
    "config.yaml",
)


class TriptychCLI(LightningCLI):
    """Lightning's command line, with one folder a run and our rules for checkpoints."""

    def _parse_ckpt_path(self) -> None:
        # Lightning merges a checkpoint's hyper-parameters over the command line here, silently:
        # `--model.x` would be ignored on resume. The configuration is what the user says.
        return

    def before_instantiate_classes(self) -> None:
        settings = self.config[self.subcommand]
        settings.weights_only = True  # a checkpoint is data, never code
        if settings.trainer.enable_progress_bar is False:  # Lightning refuses both at once
            settings.trainer.callbacks = [
                callback
                for callback in settings.trainer.callbacks or []
                if not callback.class_path.endswith("ProgressBar")
            ]
        one_seed_for_all(settings)
        folders = one_folder_for_all(settings.trainer.logger, run_name(settings.model))
        if settings.get("ckpt_path"):
            settings.ckpt_path = find_checkpoint(settings.ckpt_path, folders)
        if self.subcommand == "fit":
            for folder in folders:
                require_writable(folder)

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        if isinstance(self.model, Panel):
            find_all(self.model.weights)  # before data is made and memory taken

    def instantiate_trainer(self, **settings: Any) -> Trainer:
        trainer = super().instantiate_trainer(**settings)
        take_over(trainer)
        return trainer

    def after_fit(self) -> None:
        folder = self.trainer.log_dir
        if folder is not None and self.trainer.is_global_zero:
            made = [name for name in RESULTS if (Path(folder) / name).exists()]
            print(f"run folder {folder}: {', '.join(made)}")


def run_name(model) -> str:
    """PRESET/STAGE, or the name of a panel that is trained alone."""
    if "class_path" in model:
        return model.class_path.rpartition(".")[2]
    return f"{model.preset}/{model.stage}"


def one_folder_for_all(loggers, name: str) -> set[Path]:
    """Give all loggers the name of the run and the same next number; returns runs/PRESET/STAGE.

    Each logger counts for itself, and counts the other's folders too, so that one run would be
    spread over several.
    """
    options = [
        logger.init_args
        for logger in (loggers if isinstance(loggers, list) else [loggers])
        if hasattr(logger, "init_args") and "save_dir" in logger.init_args
    ]
    folders = set()
    for init in options:
        init.name = init.get("name") or name
        folder = Path(init.save_dir) / init.name
        folders.add(folder)
        if init.get("version") is None:
            taken = [p.name.removeprefix("version_") for p in folder.glob("version_*")]
            numbers = [int(name) for name in taken if name.isdigit()]
            init.version = max(numbers, default=-1) + 1
    return folders


def one_seed_for_all(settings) -> None:
    """Give the seed of the run to model and data that name none of their own."""
    seed = settings.get("seed_everything")
    if not isinstance(seed, int) or isinstance(seed, bool):
        return
    for part in (settings.model, settings.get("data")):
        init = part.get("init_args", part) if part is not None else {}
        if init.get("seed") == 0:
            init.seed = seed


def find_checkpoint(wanted: str, folders: set[Path]) -> str | None:
    """The checkpoint at a path, links followed; for "last" the newest whole one in `folders`.

    "auto" is the same for a job that is started again and again: None while there is none.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if wanted in ("last", "auto"):
        found = durable.newest(folders)
        if found or wanted == "auto":
            return found and str(found)
        where = " or ".join(str(folder) for folder in sorted(folders))
        raise UserError(
            f"--ckpt_path=last: there is no whole checkpoint under {where}; start without it, or "
            "name a file."
        )
    path = Path(wanted).resolve()
    # without a manifest: of an older version, for whoever reads it to judge
    if not path.exists() or durable.manifest_of(path).exists():
        durable.check(path)
    return str(path)


def require_writable(folder: Path) -> None:
    """Find out now, and not at the first checkpoint, that a run's folder cannot be written.

    Nothing is made: the run may yet be refused.

    Raises:
        UserError: it cannot.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"0")
    except OSError as error:
        raise UserError(
            f"the folder of runs {folder} cannot be written ({error.strerror}); free it, or choose "
            "another with --trainer.logger."
        ) from error
