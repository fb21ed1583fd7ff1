"""Null for any setting of a model, its data or its callbacks: it works, or a sentence refuses."""

import pytest
import yaml
from builders import ROOT, STAGE2, config_words
from jsonargparse import Namespace

from triptych.cli.main import main
from triptych.inference.loading import describe_model
from triptych.modules import UnifiedModule
from triptych.utils.config_nulls import require_values
from triptych.utils.errors import ConfigurationError, UserError

TINY = ROOT / "conf/presets/tiny.yaml"


def leaves(settings, path=()):
    """Dotted paths of everything in a model section: each value and each section of values."""
    for name, value in settings.items():
        yield ".".join([*path, name])
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))


NAMES = sorted(leaves(yaml.safe_load(TINY.read_text())["model"]))
QUICK = {"weights", "encoder.init_args.width", "generation.init_args.dit", "preset"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.sweep) for n in NAMES]
)
def test_a_model_with_a_null_is_described_or_refused(name):
    try:
        model = describe_model([TINY], [f"--model.{name}=null"])
    except UserError as error:
        assert "Traceback" not in str(error) and "NoneType" not in str(error), error
    else:
        assert isinstance(model, UnifiedModule)


@pytest.mark.parametrize(
    ("settings", "kind", "says"),
    [
        ({"preset": None}, UnifiedModule, "section.preset is null"),
        ({"optimization": {"lr": None}}, UnifiedModule, "section.optimization.lr is null"),
        ({"optimization": {"betas": [0.9, None]}}, UnifiedModule, "betas.1 is null"),
        ({"loss_weights": {"generation": None}}, UnifiedModule, "loss_weights.generation is null"),
        (None, UnifiedModule, "section is null"),
        (
            {
                "class_path": "triptych.callbacks.Checkpoint",
                "init_args": {"every_n_train_steps": None},
            },
            object,
            "section.every_n_train_steps is null",
        ),
        (
            {
                "class_path": "triptych.data_modules.MixedDataModule",
                "init_args": {"datasets": {"mine": {"task": None}}},
            },
            object,
            "section.datasets.mine.task is null",
        ),
    ],
)
def test_the_null_is_named(settings, kind, says):
    with pytest.raises(ConfigurationError, match=says):
        require_values(namespaces(settings), kind, "section")


@pytest.mark.parametrize(
    "settings",
    [
        {"weights": None, "trainable": None, "optimization": None, "execution": None},
        {"weights": {"encoder": None}},
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"monitor": None},
        },
    ],
)
def test_nulls_that_mean_something_pass(settings):
    require_values(namespaces(settings), UnifiedModule, "section")


def namespaces(value):
    """Mappings as the parser gives them, but for those that are values of theirs."""
    if isinstance(value, dict) and not value.keys() & {"generation", "mine"}:
        return Namespace(**{name: namespaces(each) for name, each in value.items()})
    if isinstance(value, dict):
        return {name: namespaces(each) for name, each in value.items()}
    return value


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--model.optimization.lr=null", "model.optimization.lr is null"),
        ("--data.batch_size=null", "data.batch_size is null"),
        pytest.param("--model.weights=null", "has no weights for", marks=pytest.mark.sweep),
        pytest.param("--model.encoder=null", "which is null", marks=pytest.mark.sweep),
    ],
)
def test_a_fit_with_a_null_is_refused(flag, says, tmp_path, monkeypatch, capsys, shapes_folder):
    monkeypatch.chdir(tmp_path)
    configs = config_words(*STAGE2, "data/folder")
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *configs, f"--data.shards={shapes_folder / 'train'}", flag])
    said = capsys.readouterr().err
    assert stopped.value.code in (1, 2) and says in said and "Traceback" not in said
    assert not list(tmp_path.rglob("*.yaml"))
