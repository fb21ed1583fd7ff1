"""Every flag of Lightning's Trainer: it means what Lightning says, or is refused in a sentence.

Commands run in forks of one warm process, with the callbacks of all configurations but `Evaluate`.
"""

import inspect
import itertools
from types import SimpleNamespace

import pytest
import yaml
from builders import STAGE2, config_words, data, unified
from commands import run as run_program
from configured_callbacks import configured
from jsonargparse import Namespace
from lightning import Callback, Trainer

from triptych.checkpoints.run_folder import of_trainer
from triptych.cli.trainer_flags import reconcile
from triptych.data_modules.sampling.step_dataset import make_step_sampler, require_step_based_run
from triptych.utils.errors import UserError

WORKS = None
MY_LOGGER = """
from lightning.pytorch.loggers.logger import Logger


class MyLogger(Logger):
    name, version = "mine", 0

    def log_metrics(self, metrics, step=None):
        print("logged", step)

    def log_hyperparams(self, *_, **__):
        pass
"""
# Flag -> [(value, None if it works or what the sentence says), ...]; a flag is given in a process.
FLAGS = {
    "accelerator": [("cpu", WORKS), ("nope", "invalid accelerator name"), ("tpu", "torch_xla")],
    "strategy": [("ddp", WORKS), ("fsdp", "requires a GPU"), ("nope", "invalid strategy name")],
    "devices": [
        *(("auto", WORKS), ("1", WORKS)),
        *((value, "devices") for value in ("0", "-1", "[]", "[0]", "nope")),
    ],
    "num_nodes": [("1", WORKS), ("0", "num_nodes is 0"), ("2", "waits for processes on other nod")],
    "precision": [
        *((value, WORKS) for value in ("null", "32", "64", "16", "bf16", "16-mixed", "bf16-true")),
        *((value, WORKS) for value in ("16-true", "bf16-mixed", "32-true", "64-true")),
        *(("transformer-engine", "transformer_engine"), ("nope", "precision")),
    ],
    "logger": [
        *(("false", WORKS), ("true", WORKS), ("null", WORKS), ("[]", WORKS)),
        *(("my_package.MyLogger", WORKS), ("CSVLogger", "save_dir"), ("nope", "logger")),
    ],
    "callbacks": [
        *(("null", WORKS), ("[]", WORKS), ("ModelCheckpoint", WORKS)),
        ("[{class_path: EarlyStopping, init_args: {monitor: nope}}]", "metric `nope` which is not"),
        ("[{class_path: EarlyStopping, init_args: {monitor: val/loss}}]", WORKS),
    ],
    "fast_dev_run": [("true", WORKS), ("3", WORKS), ("false", WORKS), ("-1", "fast_dev_run")],
    "max_epochs": [
        *(("-1", WORKS), ("null", WORKS), ("0", WORKS), ("-2", "max_epochs")),
        *(("1", "counts epochs"), ("3", "counts epochs")),
    ],
    "min_epochs": [("null", WORKS), ("0", WORKS), ("2", "counts epochs"), ("-1", "min_epochs")],
    "max_steps": [
        *(("1", WORKS), ("0", "max_steps to 1 or more"), ("-1", "max_steps to 1 or more")),
        *(("-5", "max_steps"), ("null", "max_steps")),
    ],
    "min_steps": [("1", WORKS), ("5", "more than --trainer.max_steps"), ("-1", "min_steps")],
    "max_time": [("00:00:10:00", WORKS), ("nope", "not a valid duration")],
    "limit_train_batches": [
        ("1", WORKS),
        ("1.0", WORKS),
        ("0", WORKS),
        ("0.5", "a share of"),
        ("-1", ""),
    ],
    "limit_val_batches": [("0", WORKS), ("1", WORKS), ("1.0", WORKS), ("-1", "limit_val_batches")],
    "limit_test_batches": [("0", WORKS), ("1", WORKS), ("1.5", "limit_test_batches")],
    "limit_predict_batches": [("0", WORKS), ("1", WORKS), ("1.5", "limit_predict_batches")],
    "overfit_batches": [
        *(("1", WORKS), ("2", WORKS), ("0.0", WORKS), ("-1", "overfit_batches")),
        *(("1.0", "a share of"), ("0.5", "a share of")),
    ],
    "val_check_interval": [
        *(("1", WORKS), ("5", WORKS), ("00:00:00:01", WORKS)),
        *((value, "val_check_interval") for value in ("0", "-1", "0.5", "1.0")),
    ],
    "check_val_every_n_epoch": [("null", WORKS), ("1", WORKS), ("0", "check_val_every_n_epoch")],
    "num_sanity_val_steps": [("2", WORKS), ("-1", WORKS), ("-3", "num_sanity_val_steps")],
    "log_every_n_steps": [("0", WORKS), ("1", WORKS), ("null", WORKS), ("-1", "log_every_n_steps")],
    "enable_checkpointing": [("false", WORKS), ("true", WORKS), ("null", WORKS)],
    "enable_progress_bar": [("false", WORKS), ("true", WORKS), ("null", WORKS)],
    "enable_model_summary": [("false", WORKS), ("true", WORKS), ("null", WORKS)],
    "accumulate_grad_batches": [("2", WORKS), ("0", "whole number from 1"), ("-1", "from 1")],
    "gradient_clip_val": [
        ("0", WORKS),
        ("0.5", WORKS),
        ("null", WORKS),
        ("-1", "gradient_clip_val"),
    ],
    "gradient_clip_algorithm": [("value", WORKS), ("norm", WORKS), ("nope", "Allowed algorithms")],
    "deterministic": [("true", WORKS), ("warn", WORKS), ("null", WORKS)],
    "benchmark": [("true", WORKS), ("null", WORKS)],
    "inference_mode": [("false", WORKS), ("true", WORKS)],
    "use_distributed_sampler": [("true", WORKS), ("false", WORKS)],
    "profiler": [
        *(("simple", WORKS), ("advanced", WORKS), ("pytorch", WORKS), ("nope", "profiler")),
    ],
    "detect_anomaly": [("true", WORKS), ("false", WORKS)],
    "barebones": [("true", WORKS), ("false", WORKS)],
    "plugins": [("[]", WORKS), ("AsyncCheckpointIO", "save_async=true"), ("nope", "plugins")],
    "sync_batchnorm": [("true", WORKS), ("false", WORKS)],
    "reload_dataloaders_every_n_epochs": [("1", WORKS), ("0", WORKS), ("-1", "from 0")],
    "default_root_dir": [("null", WORKS), ("elsewhere", "for a run without loggers")],
    "enable_autolog_hparams": [("false", WORKS), ("true", WORKS)],
    "model_registry": [("nope", WORKS), ("null", WORKS)],
}
# Flags that rule out what others and the callbacks count on: each pair of them.
MEETING = (
    *("logger=false", "enable_checkpointing=false", "fast_dev_run=true", "overfit_batches=1"),
    *("limit_val_batches=0", "limit_train_batches=1", "log_every_n_steps=0"),
)


@pytest.fixture(scope="module")
def triptych(forks):
    return forks


@pytest.fixture(scope="module")
def words(tmp_path_factory, shapes_folder):
    """Stage 2 of a smaller tiny preset for two steps, with all configured callbacks."""
    callbacks = [{"class_path": name, "init_args": more} for name, more in configured().items()]
    for each in callbacks:
        if each["class_path"].endswith("SampleGrid"):
            each["init_args"] = {"every_n_steps": 9, "num_samples": 1}
        if each["class_path"].endswith("FlowLossByNoise"):
            each["init_args"] = {"batches": 1, "times": [0.5]}
    callbacks = [each for each in callbacks if not each["class_path"].endswith("Evaluate")]
    dit = {"width": 32, "depth": 1, "heads": 2, "multiple_of": 16}
    generation = {
        "num_queries": 2,
        "flow": {"num_noise_samples": 1},
        "sampling": {"num_inference_steps": 1},
        "dit": {"init_args": dit},
    }
    decoder = {"sampling": {"num_inference_steps": 1}}
    settings = {
        "model": {
            "generation": {"init_args": generation},
            "decoding": {"init_args": {"decoder": {"init_args": decoder}}},
        },
        "data": {"init_args": {"batch_size": 2, "num_val_samples": 4}},
        "trainer": {
            **{"max_steps": 2, "val_check_interval": 1, "log_every_n_steps": 1},
            "callbacks": callbacks,
        },
    }
    path = tmp_path_factory.mktemp("flags") / "small.yaml"
    path.write_text(yaml.safe_dump(settings))
    shards = [f"--data.{key}={shapes_folder / part}" for key, part in SHARDS.items()]
    return [*config_words(*STAGE2, "data/folder", path), *shards]


SHARDS = {"shards": "train", "val_shards": "eval"}


def files(folder):
    """Names of the files that a run left, but for locks."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.name for path in found}


def tried(triptych, folder, words, says, *flags):
    """Run a fit with flags and check that it works, or is refused as `says`: what it left."""
    (folder / "my_package.py").write_text(MY_LOGGER)
    status, output = triptych(folder, "fit", *words, *(f"--trainer.{flag}" for flag in flags))
    assert "Traceback" not in output, output[-3000:]
    (folder / "my_package.py").unlink()
    if says is WORKS:
        assert status == 0, output[-3000:]
        return files(folder), output
    lines = [line for line in output.splitlines() if line.startswith("triptych: ")]
    assert status in (1, 2) and len(lines) == 1 and says in lines[0], output[-3000:]
    return files(folder), output


def test_every_flag_of_lightning_is_tried_here():
    assert set(FLAGS) == set(inspect.signature(Trainer).parameters)


def samples(cases, of):
    """The first of every `of` cases; the others are for sweeps."""
    marks = [pytest.mark.sweep if number % of else pytest.mark.slow for number in range(len(cases))]
    return [pytest.param(*case, marks=mark) for case, mark in zip(cases, marks, strict=True)]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    samples([(name, *each) for name, cases in FLAGS.items() for each in cases], of=9),
)
def test_a_flag_works_or_is_refused_in_a_sentence(name, value, says, triptych, words, tmp_path):
    left, _ = tried(triptych, tmp_path, words, says, f"{name}={value}")
    if says is not WORKS and "metric" not in says:  # refused before the first batch
        assert not left
    if name == "fast_dev_run" and value != "false":
        assert not left


@pytest.mark.parametrize(
    "flags", samples([(pair,) for pair in itertools.combinations(MEETING, 2)], of=7)
)
def test_flags_meet(flags, triptych, words, tmp_path):
    tried(triptych, tmp_path, words, WORKS, *flags)


@pytest.mark.slow
def test_a_run_without_logger_and_checkpoints_still_leaves_its_weights(triptych, words, tmp_path):
    flags = ("logger=false", "enable_checkpointing=false", "num_sanity_val_steps=1")
    left, output = tried(triptych, tmp_path, words, WORKS, *flags)
    assert {"weights.safetensors", "config.yaml"} <= left and "metrics.csv" not in left
    assert not any(name.endswith(".ckpt") for name in left)
    assert output.count("LearningRateMonitor steps aside") == 1


def test_a_logger_without_folder_leaves_everything_in_the_runs_folder(triptych, words, tmp_path):
    left, output = tried(triptych, tmp_path, words, WORKS, "logger=my_package.MyLogger")
    run = tmp_path / "runs/tiny/stage2/version_0"
    assert files(run) | {"weights.safetensors"} == left and "logged 0" in output
    assert {"config.yaml", "last.ckpt", "step-00000002.png"} <= left


def test_a_fast_dev_run_leaves_nothing(triptych, words, tmp_path):
    left, _ = tried(triptych, tmp_path, words, WORKS, "fast_dev_run=2", "logger=false")
    assert not left and not list(tmp_path.iterdir())


COMMANDS = ("validate", "test", "predict")
OFTEN = ("logger=false", "enable_checkpointing=false", "fast_dev_run=true", "barebones=true")


@pytest.mark.parametrize(
    ("command", "flag"), samples(list(itertools.product(COMMANDS, OFTEN)), of=5)
)
def test_other_commands_take_the_flags_too(command, flag, triptych, words, tmp_path):
    limits = [f"--trainer.limit_{name}_batches=1" for name in ("val", "test", "predict")]
    weights = "--model.weights.generation=asset:tiny/generation.safetensors"
    size = [  # of the preset, as its weights are
        f"--model.generation.init_args.{key}"
        for key in ("num_queries=16", "dit.init_args.width=192", "dit.init_args.depth=6")
    ]
    size += [
        f"--model.generation.init_args.dit.init_args.{key}" for key in ("heads=6", "multiple_of=32")
    ]
    arguments = [command, *words, *limits, weights, *size, f"--trainer.{flag}"]
    status, output = triptych(tmp_path, *arguments)
    assert status == 0 and "Traceback" not in output, output[-3000:]
    if flag.startswith("fast"):
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_three_processes_on_a_cpu_train_together(words, tmp_path):
    done = run_program(tmp_path, "fit", *words, "--trainer.devices=3", "--trainer.max_steps=1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "weights.safetensors" in files(tmp_path)
    flag = "--trainer.use_distributed_sampler=true"
    refused = run_program(tmp_path, "fit", *words, "--trainer.devices=2", flag)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert refused.stderr.count("set --trainer.use_distributed_sampler=false") == 1


@pytest.mark.slow
def test_a_run_from_its_own_config_has_a_folder_of_its_own(triptych, words, tmp_path):
    tried(triptych, tmp_path, words, WORKS, "limit_val_batches=0", "max_steps=1")
    stage = tmp_path / "runs/tiny/stage2"
    before = {
        path: path.read_bytes() for path in (stage / "version_0").rglob("*") if path.is_file()
    }
    again = ["--config", stage / "version_0/config.yaml"]
    tried(triptych, tmp_path, again, WORKS, "max_steps=2")
    assert before == {path: path.read_bytes() for path in before}
    assert len(before) == len([p for p in (stage / "version_0").rglob("*") if p.is_file()])
    first, second = (
        yaml.safe_load((stage / f"version_{n}/config.yaml").read_text()) for n in (0, 1)
    )
    assert second["trainer"].pop("max_steps") == 2 and first["trainer"].pop("max_steps") == 1
    assert first == second


# --- what the flags mean --------------------------------------------------------------------------


class Keys(Callback):
    """Names of the samples of every batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append(tuple(batch.keys))


@pytest.mark.parametrize("flag", ["overfit_batches", "limit_train_batches"])
def test_the_same_batches_come_again(flag, shapes_folder, weights, tmp_path):
    keys = Keys()
    trainer = Trainer(
        **{"accelerator": "cpu", "max_steps": 5, "logger": False, "callbacks": [keys], flag: 2},
        **{"enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0},
        **{"enable_model_summary": False, "default_root_dir": tmp_path},
    )
    model = unified("stage2", weights=weights, build_decoder=False)
    trainer.fit(model, datamodule=data(shapes_folder, num_workers=0))
    assert trainer.global_step == 5
    first, second = keys.seen[:2]
    assert keys.seen == [first, second, first, second, first] and first != second


def position(**settings):
    """The batches of an epoch that a run of that position still trains on."""
    trainer = SimpleNamespace(
        **{"max_steps": 10, "accumulate_grad_batches": 1, "global_step": 0, "world_size": 1},
        **{"limit_train_batches": 1.0, "overfit_batches": 0.0, "fast_dev_run": False},
        **{"max_epochs": -1, "min_epochs": None},
    )
    trainer.__dict__.update(settings)
    return list(make_step_sampler(trainer))


def test_resumed_run_continues_within_its_epoch():
    assert position(global_step=7) == [7, 8, 9]
    assert position(global_step=7, limit_train_batches=3) == [1, 2]
    assert position(global_step=6, limit_train_batches=3) == [0, 1, 2]
    assert position(global_step=3, accumulate_grad_batches=2) == list(range(6, 20))
    # three batches an epoch are two steps of at most two
    assert position(global_step=3, accumulate_grad_batches=2, limit_train_batches=3) == [2]
    assert position(global_step=4, accumulate_grad_batches=2, limit_train_batches=3) == [0, 1, 2]
    assert position(max_epochs=2, limit_train_batches=3) == [0, 1, 2]  # epochs of three batches


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_steps": -1}, "max_steps to 1 or more"),
        ({"limit_train_batches": 0.5}, "--trainer.limit_train_batches=0.5 is a share"),
        ({"overfit_batches": 1.0}, "--trainer.overfit_batches=1.0 is a share"),
        ({"max_epochs": 1}, "--trainer.max_epochs counts epochs"),
        ({"min_epochs": 2}, "--trainer.min_epochs counts epochs"),
    ],
)
def test_epoch_based_flags_are_refused(settings, says):
    with pytest.raises(UserError, match=says):
        position(**settings)


def test_lightnings_sampler_of_ranks_is_refused():
    connector = SimpleNamespace(use_distributed_sampler=True)
    trainer = SimpleNamespace(max_steps=1, world_size=2, _accelerator_connector=connector)
    with pytest.raises(UserError, match="set --trainer.use_distributed_sampler=false"):
        require_step_based_run(trainer)


def settled(**settings):
    given = {name: None for name in inspect.signature(Trainer).parameters}
    given |= {"max_steps": 2, "num_nodes": 1, "barebones": False, **settings}
    trainer = Namespace(**given)
    reconcile(trainer)
    return trainer


NUMBERS = {
    "accumulate_grad_batches": (0, -1),
    "check_val_every_n_epoch": (0, -1),
    "gradient_clip_val": (-1, -0.5, float("nan"), float("inf")),
    "log_every_n_steps": (-1,),
    "min_epochs": (-1,),
    "min_steps": (-1, 3),
    "num_nodes": (0, -1, 2),
    "num_sanity_val_steps": (-2,),
    "reload_dataloaders_every_n_epochs": (-1,),
    "val_check_interval": (0, 0.0, -1, -0.5),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in NUMBERS.items() for value in values]
)
def test_numbers_that_make_no_sense_are_refused_by_name(name, value, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match=rf"^--trainer\.{name}\b"):
        settled(**{name: value})


def test_nodes_that_the_user_starts_are_no_mistake(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "node-0")
    assert settled(num_nodes=2).num_nodes == 2


def test_flags_take_the_callbacks_along_that_they_rule_out():
    names = ("LearningRateMonitor", "EarlyStopping")
    callbacks = [Namespace(class_path=f"lightning.pytorch.callbacks.{name}") for name in names]
    ours = ("ProgressBar", "Checkpoint", "EMA")
    callbacks += [Namespace(class_path=f"triptych.callbacks.{name}") for name in ours]

    def left(**flags):
        found = settled(callbacks=list(callbacks), **flags).callbacks
        return [each.class_path.rpartition(".")[2] for each in found]

    assert left() == [*names, *ours]
    assert left(logger=False) == ["EarlyStopping", *ours]
    assert left(enable_checkpointing=False) == [*names, "ProgressBar", "EMA"]
    assert left(enable_progress_bar=False) == [*names, "Checkpoint", "EMA"]
    assert left(barebones=True) == ["EarlyStopping", "EMA"]


@pytest.mark.parametrize("logger", [True, False])
def test_a_fast_dev_run_has_no_folder(logger, tmp_path):
    settings = {"accelerator": "cpu", "logger": logger, "default_root_dir": tmp_path}
    assert of_trainer(Trainer(**settings, fast_dev_run=1)) is None
    folder = of_trainer(Trainer(**settings))
    assert folder == (tmp_path / "lightning_logs/version_0" if logger else tmp_path)
