"""Every file under conf/ against the real command line, in one process."""

import os
import sys

import pytest
import yaml
from builders import ROOT

from triptych.cli.main import alone, main
from triptych.utils.parser_errors import plain

CONF = ROOT / "conf"
RECIPES = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "base")
PRESETS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
# What the Makefile reads after a recipe for one preset.
OVERLAYS = sorted(p for name in PRESETS for p in (CONF / "recipes" / name).glob("*.yaml"))
ADDED = sorted(path for folder in ("data", "trainer") for path in (CONF / folder).glob("*.yaml"))


@pytest.fixture
def triptych(monkeypatch, capsys, tmp_path):
    """Runs the command line in this process, in an empty folder: (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["triptych"])
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments):
        status = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code or 0
        out, err = capsys.readouterr()
        return status, out, err

    return run


def fit(recipe, *more, preset="tiny"):
    configs = [CONF / "base.yaml", CONF / "model" / f"{preset}.yaml", CONF / f"{recipe}.yaml"]
    return ["fit", *(word for path in configs for word in ("--config", path)), *more]


def printed(triptych, *arguments):
    status, out, err = triptych(*arguments, "--print_config")
    assert status == 0, err
    return yaml.safe_load(out)


def refused(triptych, status, *arguments):
    """The one sentence on standard error; beneath it may stand what the parser tried besides."""
    found, out, err = triptych(*arguments)
    line, *others = err.strip().splitlines()
    assert all(other.startswith("  or: ") for other in others)
    assert found == status and out == "" and line.startswith("triptych: ")
    assert os.listdir() == []  # nothing was written
    return line


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_parses_with_every_preset(triptych, recipe, preset):
    config = printed(triptych, *fit(recipe, preset=preset))
    assert config["model"]["preset"] == preset and config["model"]["stage"] == recipe
    assert config["model"]["losses"]
    # the decoder itself says what of it trains
    assert (config["model"]["trains"] is None) == (recipe == "decoder")
    assert config["trainer"]["max_steps"] > 0
    named = {callback["class_path"].split(".")[-1] for callback in config["trainer"]["callbacks"]}
    assert {"Checkpoint", "ExportWeights", "SampleGrid", "LearningRateMonitor"} <= named
    assert len(config["trainer"]["logger"]) == 2


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipe_of_a_preset_parses_with_its_data(triptych, path):
    folder = CONF / "data" / "folder.yaml"
    overlay, more = ["--config", path], ["--config", folder, "--data.shards=mine"]
    alone = printed(triptych, *fit(path.stem, preset=path.parent.name), *overlay)
    config = printed(triptych, *fit(path.stem, preset=path.parent.name), *overlay, *more)
    written = yaml.safe_load(path.read_text())
    assert written["model"]["optimization"].items() <= config["model"]["optimization"].items()
    added = written["trainer"].pop("callbacks+", [])
    assert written["trainer"].items() <= config["trainer"].items()
    classes = [each["class_path"] for each in alone["trainer"]["callbacks"]]
    assert {each["class_path"] for each in added} <= set(classes)
    batch_size = written["data"]["init_args"]["batch_size"]
    for found in (alone, config):  # never the shapes
        assert found["data"]["class_path"] == "triptych.data_modules.ShardDataModule"
        assert found["data"]["init_args"]["batch_size"] == batch_size
    callbacks = {each["class_path"].split(".")[-1]: each for each in config["trainer"]["callbacks"]}
    assert "Evaluate" not in callbacks
    every = config["trainer"]["val_check_interval"]
    assert callbacks["SampleGrid"]["init_args"]["every"] == every


def test_every_folder_of_recipes_belongs_to_a_preset():
    folders = {path.name for path in (CONF / "recipes").iterdir()}
    assert folders - {"published"} <= set(PRESETS)
    assert {"stage2", "stage3", "decoder"} <= {path.stem for path in OVERLAYS} <= set(RECIPES)


@pytest.mark.parametrize("path", ADDED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_file_to_add_parses(triptych, path):
    config = printed(triptych, *fit("stage2"), "--config", path)
    written = yaml.safe_load(path.read_text())
    if "data" in written:
        assert config["data"]["class_path"] == written["data"]["class_path"]
    if path.parent.name == "trainer":
        for name, value in written["trainer"].items():
            given = config["trainer"][name]
            assert given == value or given["class_path"] == value["class_path"]


def test_my_own_shards_take_the_place_of_the_shapes_and_keep_the_recipe(triptych):
    config = printed(
        triptych,
        *fit("joint"),
        "--config",
        CONF / "data" / "folder.yaml",
        "--data.shards=mine",
        "--data.batch_size=7",
    )["data"]
    assert config["class_path"] == "triptych.data_modules.ShardDataModule"
    options = config["init_args"]
    assert options["shards"] == "mine" and options["batch_size"] == 7
    assert options["tasks"] == ["text_to_image", "image_to_text"] and options["text_only"] == 0.4
    assert "pictures" not in options and "folder" not in options


def test_flags_win_over_files_and_later_files_over_earlier(triptych, tmp_path):
    later = tmp_path / "later.yaml"
    later.write_text("trainer: {max_steps: 11}\nmodel: {seed: 5}\n")
    config = printed(
        triptych,
        *fit("stage2"),
        "--config",
        later,
        "--model.seed=6",
        "--model.encoder.init_args.width=64",
        "--model.generation.init_args.objective=clip_mse",
        "--model.generation.init_args.dit.init_args.depth=3",
    )
    assert config["trainer"]["max_steps"] == 11 and config["model"]["seed"] == 6
    assert config["model"]["encoder"]["init_args"]["width"] == 64
    generation = config["model"]["generation"]["init_args"]
    assert generation["objective"] == "clip_mse" and generation["dit"]["init_args"]["depth"] == 3


def test_a_callback_is_added_to_the_others(triptych):
    config = printed(triptych, *fit("stage2"), "--trainer.callbacks+=ModelSummary")
    *before, last = config["trainer"]["callbacks"]
    assert last["class_path"].endswith("ModelSummary") and len(before) >= 4


@pytest.mark.parametrize(
    ("flag", "names"),
    [
        ("--trainer.max_stepz=3", "max_stepz"),
        ("--model.generation.init_args.number_of_querys=3", "number_of_querys"),
        ("--model.encoder.init_args.widht=64", "widht"),
        ("--model.weights.encodr=x", "encodr"),
        ("--data.init_args.batchsize=3", "batchsize"),
        ("--trainer.max_steps=many", "many"),
        ("--model.generation.init_args.objective=clip_flwo", "clip_flwo"),
        ("--trainer.callbacks+=NoSuchCallback", "NoSuchCallback"),
        ("--config=nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_a_wrong_flag_is_one_sentence_and_status_2(triptych, flag, names):
    assert names in refused(triptych, 2, *fit("stage2"), flag)


def test_a_wrong_key_in_a_file_is_one_sentence_and_status_2(triptych, tmp_path_factory):
    wrong = tmp_path_factory.mktemp("conf") / "wrong.yaml"
    wrong.write_text("trainer: {max_stepz: 3}\n")
    assert "max_stepz" in refused(triptych, 2, *fit("stage2"), "--config", wrong)


def test_an_unknown_command_is_one_sentence_and_status_2(triptych):
    assert "'fti' is no command; choose one of fit" in refused(triptych, 2, "fti")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate", ""], "the prompt is empty"),
        (["generate", "a circle", "  "], "the prompt is empty"),
        (["chat", "nowhere.png", "what?"], "nowhere.png does not exist"),
        (["chat", "nowhere.png", " "], "the question is empty"),
        (["generate", "a circle", "--from", "nowhere"], "there is no model at nowhere"),
        (["generate", "a circle", "--config", "x.yaml"], "x.yaml does not exist"),
        (fit("stage2", "--ckpt_path=nowhere.ckpt"), "nowhere.ckpt does not exist"),
        (fit("stage2", "--ckpt_path=last"), "there is no whole checkpoint under runs/tiny/stage2"),
        (
            fit("stage2", preset="blip3o_8b"),
            "`triptych convert CHECKPOINT weights/blip3o_8b` makes it",
        ),
        (["convert", "nowhere", "out"], "nowhere does not exist and is no hub id"),
        (fit("stage2", "--model.losses.generatoin=1.0"), "'generatoin' is no panel"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_status_1(triptych, arguments, says):
    assert says in refused(triptych, 1, *arguments)


def test_own_commands_refuse_unknown_flags(triptych):
    status, _, err = triptych("generate", "a circle", "--sede=3")
    assert status == 2 and "--sede=3" in err


def test_help_lists_every_command(triptych):
    for arguments in ((), ("--help",), ("-h",)):
        status, out, _ = triptych(*arguments)
        assert status == 0
        for command in (
            "fit",
            "validate",
            "test",
            "predict",
            "generate",
            "chat",
            "eval",
            "demo",
            "convert",
        ):
            assert f"\n  {command} " in out


def test_a_panel_alone_is_a_model_class():
    assert alone(["fit", "--model", "UnderstandingModule"])
    assert alone(["fit", "--model=triptych.modules.GenerationModule"])
    assert not alone(["fit", "--model", "conf/model/tiny.yaml", "--model.seed=3"])


def test_what_the_parser_says_becomes_its_cause_in_one_line():
    said = """Parser key "model.generation":
      Does not validate against any of the Union subtypes
      Errors:
        - Problem with given class_path 'GenerationModule':
            Option 'number_of_querys' is not accepted
        - Expected a <class 'NoneType'>
      Given value: 3"""
    cause = "model.generation: GenerationModule: Option 'number_of_querys' is not accepted"
    assert plain(said).splitlines() == [cause, "  or: expected null"]
    assert plain(" one\n  sentence\n") == "one sentence"
