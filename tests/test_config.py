"""Every file under conf/ against the real command line, in one process."""

import os
import sys

import pytest
import yaml
from builders import ROOT

from triptych.cli.main import main, trains_one_panel
from triptych.cli.recipes import recipe_of, require_shards
from triptych.utils.documents import read_yaml
from triptych.utils.parser_errors import plain

CONF = ROOT / "conf"
STAGES = sorted(path.stem for path in (CONF / "stages").glob("*.yaml"))
PRESETS = sorted(path.stem for path in (CONF / "presets").glob("*.yaml"))
# A SigLIP 2 of one's own has no recipe.
PAIRS = [(p, s) for p in PRESETS for s in STAGES if (p, s) != ("siglip2_sana", "encoder")]
ADDED = sorted(
    path for folder in ("data", "data/tiny", "trainer") for path in (CONF / folder).glob("*.yaml")
)


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


def fit(stage, *more, preset="tiny"):
    return ["fit", "--preset", preset, "--stage", stage, *more]


def printed(triptych, *arguments):
    status, out, err = triptych(*arguments, "--print_config")
    assert status == 0, err
    return yaml.safe_load(out)


def refused(triptych, status, *arguments):
    """The one sentence on standard error; beneath it may stand what the parser tried besides."""
    found, out, err = triptych(*arguments)
    said = [line for line in err.splitlines() if not line.startswith("triptych fit reads: ")]
    line, *others = "\n".join(said).strip().splitlines()
    assert all(other.startswith("  or: ") for other in others)
    assert found == status and out == "" and line.startswith("triptych: ")
    assert os.listdir() == []  # nothing was written
    return line


@pytest.fixture
def shards(tmp_path_factory):
    """A folder with a shard, as far as the command line looks."""
    folder = tmp_path_factory.mktemp("shards")
    (folder / "a.tar").touch()
    return folder


def callbacks_of(config):
    return {each["class_path"].split(".")[-1]: each for each in config["trainer"]["callbacks"]}


@pytest.mark.parametrize(("preset", "stage"), PAIRS)
def test_every_pair_parses_and_has_the_numbers_of_its_recipe(triptych, preset, stage, shards):
    config = printed(triptych, *fit(stage, preset=preset))
    mine = printed(triptych, *fit(stage, "--data-dir", shards, preset=preset))
    recipe = read_yaml(recipe_of(preset, stage))
    added = {each["class_path"].split(".")[-1] for each in recipe["trainer"].get("callbacks+", [])}
    own = preset == "tiny" and stage != "preferences"  # of which the shapes world has none
    assert own == ("Shapes" in str(config["data"]) or "Edits" in str(config["data"]))
    assert mine["data"]["class_path"] == "triptych.data_modules.ShardDataModule"
    assert mine["data"]["init_args"]["shards"] == str(shards)
    assert "Evaluate" not in callbacks_of(mine)  # the score of the shapes world
    for found in (config, mine):
        assert found["model"]["preset"] == preset and found["model"]["stage"] == stage
        assert found["model"]["loss_weights"] and len(found["trainer"]["logger"]) == 2
        # the decoder itself says what of it trains
        assert (found["model"]["trainable"] is None) == (stage == "decoder")
        optimization = recipe["model"]["optimization"]
        assert optimization.items() <= found["model"]["optimization"].items()
        assert found["trainer"]["max_steps"] == recipe["trainer"]["max_steps"]
        assert found["data"]["init_args"]["batch_size"] == recipe["data"]["init_args"]["batch_size"]
        callbacks = callbacks_of(found)
        assert {"Checkpoint", "ExportWeights", "SampleGrid", *added} <= set(callbacks)
        every = found["trainer"]["val_check_interval"]
        assert callbacks["SampleGrid"]["init_args"]["every_n_steps"] == every
    assert mine["trainer"]["val_check_interval"] == recipe["trainer"]["val_check_interval"]


def test_only_the_list_of_base_is_a_list_of_callbacks():
    lists = [p for p in CONF.rglob("*.yaml") if "callbacks" in (read_yaml(p).get("trainer") or {})]
    assert lists == [CONF / "base.yaml"]


def test_no_stage_names_a_number_of_a_recipe():
    for path in (CONF / "stages").glob("*.yaml"):
        written = read_yaml(path)
        assert "optimization" not in written["model"] and "trainer" not in written
        assert "batch_size" not in written["data"]["init_args"]


def test_published_recipe_is_the_default_and_keeps_its_ema_with_data(triptych, shards):
    config = printed(triptych, *fit("stage2", "--data-dir", shards, preset="blip3o_8b"))
    assert config["model"]["optimization"]["lr"] == 1e-4
    assert {"EMA", "FlowLossByNoise"} <= set(callbacks_of(config))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--preset=tinny", "--stage=stage2"], "the preset 'tinny' is unknown; choose one of blip"),
        (["--preset=", "--stage=stage2"], "the preset '' is unknown"),
        (["--preset=tiny", "--stage=nothing"], "choose one of decoder, edits, encoder, joint, pr"),
        (["--preset=tiny"], "--stage is missing"),
        (["--preset"], "--preset needs a value"),
        (fit("stage2", "--hardware=fsdp3")[1:], "choose one of cpu, ddp, fsdp1, fsdp2, single"),
        (fit("encoder", preset="siglip2_sana")[1:], "has no recipe for the stage 'encoder'"),
        (fit("stage2", "--data-dir", "no/such folder")[1:], "'no/such folder' does not exist"),
        (fit("stage2", "--data-dir", CONF)[1:], "holds no WebDataset shard (*.tar)"),
        (fit("stage2", "--from=nowhere")[1:], "there are no weights at 'nowhere'"),
        (fit("stage2", "--panel=dit")[1:], "choose one of decoding, generation, understanding"),
    ],
)
def test_unknown_preset_or_stage_is_one_sentence_and_status_2(triptych, flags, says):
    assert says in refused(triptych, 2, "fit", *flags)


@pytest.mark.parametrize("shard", ["A.TAR", "sub/folder/a.tar", "sub/a.Tar"])
def test_shards_in_sub_folders_and_in_capitals_are_data(shard, tmp_path):
    (tmp_path / shard).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / shard).touch()
    require_shards(str(tmp_path))


def test_stage_starts_from_the_weights_of_a_preset_or_file(triptych):
    weights = printed(triptych, *fit("stage3", "--from", "tiny"))["model"]["weights"]
    assert weights["generation"] == "asset:tiny/generation.safetensors"
    file = ROOT / "src/triptych/assets/tiny/generation.safetensors"
    weights = printed(triptych, *fit("stage2", "--from", file))["model"]["weights"]
    assert weights["generation"] == str(file)
    assert weights["understanding"] == "asset:tiny/understanding.safetensors"


@pytest.mark.parametrize(
    ("panel", "stage"),
    [("understanding", "stage1"), ("generation", "stage2"), ("decoding", "decoder")],
)
def test_a_panel_of_a_preset_is_the_root(triptych, panel, stage):
    config = printed(triptych, *fit(stage, "--panel", panel))
    own = read_yaml(CONF / "presets" / "tiny.yaml")["model"][panel]
    assert config["model"]["class_path"] == own["class_path"]
    recipe = read_yaml(CONF / "recipes" / "tiny" / f"{stage}.yaml")
    given = config["model"]["init_args"]["optimization"]
    assert recipe["model"]["optimization"].items() <= given.items()
    assert config["trainer"]["max_steps"] == recipe["trainer"]["max_steps"]
    assert "Evaluate" not in callbacks_of(config)


def test_a_preset_of_my_own_has_the_published_recipes(triptych, tmp_path):
    (tmp_path / "conf" / "presets").mkdir(parents=True)
    text = (CONF / "presets" / "blip3o_4b.yaml").read_text()
    (tmp_path / "conf" / "presets" / "mine.yaml").write_text(
        text.replace("preset: blip3o_4b", "preset: mine")
    )
    config = printed(triptych, *fit("stage2", preset="mine"))
    assert config["model"]["preset"] == "mine"
    assert config["model"]["optimization"]["lr"] == 1e-4


def test_every_folder_of_recipes_belongs_to_a_preset():
    folders = {path.name for path in (CONF / "recipes").iterdir()}
    assert folders - {"published"} <= set(PRESETS)
    assert not [path for path in CONF.rglob("*") if path.is_symlink()]


@pytest.mark.parametrize("path", ADDED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_file_to_add_parses(triptych, path):
    config = printed(triptych, *fit("stage2"), "--config", path)
    written = yaml.safe_load(path.read_text())
    if "class_path" in written.get("data", {}):
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
    assert (
        options["tasks"] == ["text_to_image", "image_to_text"] and options["text_only_ratio"] == 0.4
    )
    assert "images" not in options and "folder" not in options


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
    assert "'fti' is not a command; choose one of fit" in refused(triptych, 2, "fti")


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
        (fit("stage2", "--model.loss_weights.generatoin=1.0"), "'generatoin' is no panel"),
    ],
)
def test_impossible_run_is_one_sentence_and_status_1(triptych, arguments, says):
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


def test_model_class_selects_a_single_panel():
    assert trains_one_panel(["fit", "--model", "UnderstandingModule"])
    assert trains_one_panel(["fit", "--model=triptych.modules.GenerationModule"])
    assert not trains_one_panel(["fit", "--model", "conf/presets/tiny.yaml", "--model.seed=3"])


def test_parser_errors_become_their_cause_in_one_line():
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


def test_optimizer_and_schedule_are_class_paths(triptych):
    name = "--model.optimization"
    flags = [f"{name}.optimizer=torch.optim.SGD", f"{name}.optimizer.momentum=0.9"]
    flags += [
        f"{name}.lr_scheduler=torch.optim.lr_scheduler.StepLR",
        f"{name}.lr_scheduler.step_size=1",
    ]
    found = printed(triptych, *fit("stage2", *flags))["model"]["optimization"]
    assert found["optimizer"]["init_args"]["momentum"] == 0.9
    assert found["lr_scheduler"]["class_path"] == "torch.optim.lr_scheduler.StepLR"
