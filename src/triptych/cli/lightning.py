"""Lightning's command line with one folder for each run, and errors in one sentence."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from triptych.callbacks.sample_grid import SampleGrid
from triptych.checkpoints import atomic_checkpoint, require_files, run_folder
from triptych.checkpoints.run_folder import RunFolder
from triptych.cli.trainer_flags import reconcile
from triptych.inference.loading import BAD_VALUES
from triptych.inference.model_inference import inference_of
from triptych.modules.base import BaseModule
from triptych.training.ranks import take_over
from triptych.training.sharded_checkpoint import load_data
from triptych.training.strategies import ShardedStrategy
from triptych.utils.config_nulls import require_values
from triptych.utils.errors import UserError
from triptych.utils.limits import RUN_SEED
from triptych.utils.parser_errors import plain, raised_in

# Lightning's own use of a deprecated torch function: users cannot act on it.
warnings.filterwarnings("ignore", message=".*LeafSpec.*")
# Intended: frozen modules are in evaluation mode.
warnings.filterwarnings("ignore", message=".*module.*in eval mode at the start of training.*")
# The run's folder is new: it holds only the lock.
warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
# Nothing changes the output of a module in place.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
# Intended: every rank validates on the same samples.
warnings.filterwarnings("ignore", message=".*when logging on epoch level in distributed setting.*")

# Result files of a run, listed at the end of a fit.
RESULTS = (
    "weights.safetensors",
    "weights_ema.safetensors",
    "samples",
    "checkpoints",
    "scores.json",
    "metrics.csv",
    "config.yaml",
)


# Exceptions of jsonargparse and Lightning for invalid values.
REFUSALS = (MisconfigurationException, ImportError, *BAD_VALUES)


class RunConfig(SaveConfigCallback):
    """Writes config.yaml to the run's folder, and records whether the run started."""

    started = False

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        folder = run_folder.of_trainer(trainer)  # a collective of all ranks
        if folder is None or self.already_saved or not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, folder / self.config_filename, skip_none=False)
        self.already_saved = True

    def _record_start(self, trainer: Any, *_: Any) -> None:
        self.started = self.started or not trainer.sanity_checking

    on_train_batch_start = on_validation_batch_start = _record_start
    on_test_batch_start = on_predict_batch_start = _record_start


class TriptychCLI(LightningCLI):
    """LightningCLI with one folder for each run, and validation of checkpoints.

    The folder is created at the start, and removed if the run fails before its first batch.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.run: RunFolder | None = None
        self.record: RunConfig | None = None
        options["save_config_callback"] = self.recorder
        try:
            super().__init__(*arguments, **options)
        except BaseException as error:
            started = self.record is not None and self.record.started
            if self.run is not None and not started:
                self.run.remove()
            if (user_error := to_user_error(error, started)) is not None:
                raise user_error from error
            raise
        finally:
            if self.run is not None:
                self.run.lock.release()

    def recorder(self, parser: Any, config: Any, **_: Any) -> RunConfig:
        """Create the callback that writes config.yaml, without the folder of this run."""
        self.record = RunConfig(parser, self.recorded)
        return self.record

    def parse_arguments(self, parser, args) -> None:
        try:
            super().parse_arguments(parser, args)
        except RecursionError as error:
            raise UserError(
                "the configuration's ${...} refer to each other in a circle."
            ) from error
        settings = self.config[self.config.subcommand]
        for name in ("trainer", "model", "data"):
            section = settings.get(name)
            if section is not None and not isinstance(section, Namespace):
                raise UserError(
                    f"{name} is {str(section)[:60]!r}, not a mapping of names to values; correct "
                    "the configuration that says so."
                )
            require_values(section, self._model_class if name == "model" else Any, name)
        if settings.get("ckpt_path") == "":
            raise UserError("--ckpt_path is empty; name a file, or last, or leave it out.")
        seed = settings.get("seed_everything")
        if isinstance(seed, int) and not isinstance(seed, bool):
            RUN_SEED.require(seed, "--seed_everything")

    def _parse_ckpt_path(self) -> None:
        # Lightning merges a checkpoint's hyperparameters over the command line here, so `--model.x`
        # would be ignored silently on resume.
        return

    def before_instantiate_classes(self) -> None:
        settings = self.config[self.subcommand]
        settings.weights_only = True  # a checkpoint is data, never code
        reconcile(settings.trainer)
        share_seed(settings)
        parents = parents_of(settings.trainer, run_name(settings.model))
        if settings.get("ckpt_path"):
            settings.ckpt_path = find_checkpoint(settings.ckpt_path, set(parents))
        resumes = self.subcommand == "fit" and settings.get("ckpt_path")
        if resumes and settings.trainer.enable_checkpointing is False:
            raise UserError(
                "a run that resumes from --ckpt_path needs its Checkpoint callback, which checks "
                "that it resumes exactly; leave out --trainer.enable_checkpointing=false."
            )
        self.recorded = settings.clone()
        for init in loggers_of(self.recorded.trainer):
            init.version = None
        if not settings.trainer.fast_dev_run:  # which writes nothing
            self.create_folder(settings, parents)

    def create_folder(self, settings: Any, parents: list[Path]) -> None:
        """Create a folder for the run, or reuse that of a finished run.

        The first process decides for all ranks: the others write nothing, and receive the folder
        when the process group exists.
        """
        trainer, first = settings.trainer, run_folder.is_first_process()
        if first:
            for parent in parents:
                run_folder.require_writable(parent)
            run_folder.sweep(parents)
        if self.subcommand == "fit" and settings.get("ckpt_path"):
            finished = run_folder.finished(Path(settings.ckpt_path), trainer)
            if finished is not None:
                self.run = run_folder.take_up(finished) if first else None
                self.save_config_callback = None
                trainer.logger, trainer.default_root_dir = False, str(finished)  # keeps its log
                return
        if not first:
            return
        loggers = loggers_of(trainer)
        versions = [init.version for init in loggers if init.get("version") is not None]
        version, self.run = run_folder.take(parents, versions[0] if versions else None)
        for init in loggers:
            init.version = version
        trainer.default_root_dir = str(self.run.path)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except UserError:
            raise
        except REFUSALS as error:
            if not raised_in(error, ("jsonargparse", "lightning", "triptych")):
                raise  # in a class of the user, who needs the traceback
            raise UserError(f"the configuration is invalid: {plain(str(error))}") from error
        checkpoint = self.config[self.subcommand].get("ckpt_path")
        if (
            checkpoint
            and Path(checkpoint).is_dir()
            and not isinstance(self.trainer.strategy, ShardedStrategy)
        ):  # Lightning's own strategies would unpickle the files of such a folder
            raise UserError(
                f"the checkpoint {checkpoint} is a folder, which only fsdp2 reads; add "
                "--hardware fsdp2, or name a file."
            )
        if isinstance(self.model, BaseModule):
            require_files(self.model.weights)

    def instantiate_trainer(self, **settings: Any) -> Trainer:
        trainer = super().instantiate_trainer(**settings)
        for callback in trainer.callbacks:  # callbacks may not import inference
            if isinstance(callback, SampleGrid) and callback.previews is None:
                callback.previews = inference_of
        take_over(trainer)
        return trainer

    def before_fit(self) -> None:
        check_trainer = getattr(self.datamodule, "check_trainer", None)
        if check_trainer is not None:  # a DataModule of this project
            check_trainer(self.trainer)  # before data is generated
        self.trainer.callbacks.append(PlannedFit())

    def after_fit(self) -> None:
        folder = run_folder.of_trainer(self.trainer)
        if folder is not None and self.trainer.is_global_zero:
            results = [name for name in RESULTS if (Path(folder) / name).exists()]
            print(f"run folder {folder}: {', '.join(results)}")


class PlannedFit(Callback):
    """Plans a fit on GPUs when its data are known, before weights are loaded; see `check_fit`."""

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage == "fit" and on_gpu(trainer):
            from triptych.cli.plan.fit import check_fit, gpu_of_rank  # imports fake tensors

            check_fit(module, trainer, trainer.datamodule, gpu_of_rank(trainer))


def on_gpu(trainer: Trainer) -> bool:
    """Whether this rank trains on a GPU."""
    return trainer.strategy.root_device.type == "cuda"


def to_user_error(error: BaseException, started: bool) -> UserError | None:
    """Convert an error of Lightning about the configuration; return None for other errors.

    Args:
        started: whether batches were computed; afterwards only callbacks raise such errors.
    """
    if isinstance(error, UserError) or not isinstance(error, REFUSALS):
        return None
    if not raised_in(error, ("lightning.pytorch.callbacks" if started else "lightning",)):
        return None
    return UserError(f"the configuration is invalid: {plain(str(error))}")


def run_name(model) -> str:
    """Return the name of a run: PRESET/STAGE, or the class of a panel that is the root."""
    if "class_path" in model:
        return model.class_path.rpartition(".")[2]
    return f"{model.preset}/{model.stage}"


def loggers_of(trainer: Any) -> list[Any]:
    """Return the settings of the loggers that write to a folder."""
    loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    return [
        logger.init_args
        for logger in loggers
        if hasattr(logger, "init_args") and "save_dir" in logger.init_args
    ]


def parents_of(trainer: Any, name: str) -> list[Path]:
    """Return the parents of a run's folder, runs/PRESET/STAGE for each logger.

    Loggers without a name get that of the run. Without loggers, there is one parent.
    """
    if trainer.logger in (None, True):  # Lightning's default logger would share a folder
        trainer.logger = Namespace(
            class_path="lightning.pytorch.loggers.CSVLogger",
            init_args=Namespace(
                save_dir=trainer.default_root_dir or "runs", name=None, version=None
            ),
        )
    loggers = loggers_of(trainer)
    for init in loggers:
        init.name = init.get("name") or name
    if not loggers:
        return [Path(trainer.default_root_dir or "runs") / name]
    parents = list(dict.fromkeys(Path(init.save_dir) / init.name for init in loggers))
    root = trainer.default_root_dir
    if root is not None and Path(root) not in [Path(init.save_dir) for init in loggers]:
        raise UserError(
            "--trainer.default_root_dir is for a run without loggers; name the folder with "
            "save_dir in each of trainer.logger, or leave them out with --trainer.logger=true."
        )
    return parents


def share_seed(settings) -> None:
    """Set the seed of the run in model and data, unless they have their own."""
    seed = settings.get("seed_everything")
    if not isinstance(seed, int) or isinstance(seed, bool):
        return
    for section in (settings.model, settings.get("data")):
        init = section.get("init_args", section) if section is not None else {}
        if init.get("seed") == 0:
            init.seed = seed


def find_checkpoint(name: str, folders: set[Path]) -> str | None:
    """Find a checkpoint by path, or by "last" or "auto" the latest complete one in `folders`.

    With "auto", for jobs that restart, the result is None if there is none.

    Raises:
        UserError: the checkpoint does not exist, or is damaged.
    """
    if name in ("last", "auto"):
        found = atomic_checkpoint.latest(folders)
        if found or name == "auto":
            return found and str(found)
        where = " or ".join(str(folder) for folder in sorted(folders))
        raise UserError(
            f"--ckpt_path=last: there is no whole checkpoint under {where}; start without it, or "
            "name a file."
        )
    path = Path(name).resolve()
    # a checkpoint without a manifest is of an older version, which its reader checks
    if not path.exists() or atomic_checkpoint.manifest_of(path).exists():
        atomic_checkpoint.check(path)
    elif path.is_file():
        load_data(path, mmap=True)  # before data is generated
    return str(path)
