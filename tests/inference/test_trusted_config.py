"""Nothing that a stranger hands over runs: pickles, modules, class paths, tokenizers."""

import io
import json
import os
import pickle
import shutil
import sys
from datetime import timedelta
from pathlib import Path

import processes
import pytest
import torch
import yaml
from builders import ROOT, STAGE2, config_words
from torch import distributed
from torch.distributed import checkpoint as sharded_files
from torch.distributed.checkpoint import metadata as index_classes

from triptych.checkpoints import atomic_checkpoint
from triptych.cli.main import main, takes_classes
from triptych.inference.loading import describe_model
from triptych.inference.trusted_config import plain_model
from triptych.training.sharded_checkpoint import INDEX, read_full_state, read_index, read_into
from triptych.utils.errors import UserError
from triptych.utils.paths import ASSETS, presets

TINY = presets()["tiny"].resolve()
QUERIES = "generation.queries"


class Attack:
    """Unpickled, it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return exec, (f"open({str(self.marker)!r}, 'w').close()",)


@pytest.fixture
def marker(tmp_path):
    """A file that only a stranger's code would write."""
    marker = tmp_path / "it-ran"
    yield marker
    assert not marker.exists()


def refused(capsys, *arguments, status=1):
    """Error message of a command that fails without a traceback."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr().err
    assert ended.value.code == status and "triptych: " in said and "Traceback" not in said
    return said[said.rindex("triptych: ") :]


# --- pickles --------------------------------------------------------------------------------------


def save_sharded(place: Path, state: dict, rest: dict | None = None) -> None:
    """A folder as `ShardedStrategy` writes one, without its manifest."""
    sharded_files.save(state, checkpoint_id=place, no_dist=True)
    torch.save({"global_step": 1, "triptych": {}, **(rest or {})}, place / "meta.pt")


def pickled_index(place: Path, marker: Path) -> None:
    (place / INDEX).write_bytes(pickle.dumps(Attack(marker)))


def pickle_inside_an_index(place: Path, marker: Path) -> None:
    index = read_index(place)
    index.planner_data = {**index.planner_data, "x": Attack(marker)}
    (place / INDEX).write_bytes(pickle.dumps(index))


def pickle_in_a_shard(place: Path, marker: Path) -> None:
    shutil.rmtree(place)
    save_sharded(place, {"state_dict": {QUERIES: torch.zeros(16, 128), "x": Attack(marker)}})


def pickle_as_a_tensor(place: Path, marker: Path) -> None:
    index = read_index(place)
    (key, info) = next(iter(index.storage_data.items()))
    content = io.BytesIO()
    torch.save(Attack(marker), content)
    (place / info.relative_path).write_bytes(content.getvalue().ljust(10_000))
    info.offset, info.length = 0, len(content.getvalue())
    (place / INDEX).write_bytes(pickle.dumps(index))


def pickle_beside_the_shards(place: Path, marker: Path) -> None:
    torch.save({"global_step": 1, "x": Attack(marker)}, place / "meta.pt")


def pipe_as_a_shard(place: Path, marker: Path) -> None:
    (shard,) = place.glob("*.distcp")
    shard.unlink()
    os.mkfifo(shard)


def shard_outside(place: Path, marker: Path) -> None:
    index = read_index(place)
    for info in index.storage_data.values():
        info.relative_path = f"../{place.name}/{info.relative_path}"
    (place / INDEX).write_bytes(pickle.dumps(index))


def shard_through_a_link(place: Path, marker: Path) -> None:
    (shard,) = place.glob("*.distcp")
    shard.rename(place.parent / "elsewhere")
    shard.symlink_to(place.parent / "elsewhere")


def more_than_is_there(place: Path, marker: Path) -> None:
    index = read_index(place)
    for stored in index.state_dict_metadata.values():
        stored.size = torch.Size([2**40])
    (place / INDEX).write_bytes(pickle.dumps(index))


def far_place_in_a_list(place: Path, marker: Path) -> None:
    index = read_index(place)
    index.planner_data = {key: ("state_dict", 10**12) for key in index.planner_data}
    (place / INDEX).write_bytes(pickle.dumps(index))


def no_index(place: Path, marker: Path) -> None:
    (place / INDEX).write_bytes(b"\x80\x04.")


ATTACKS = [
    pickled_index,
    pickle_inside_an_index,
    pickle_in_a_shard,
    pickle_as_a_tensor,
    pickle_beside_the_shards,
    pipe_as_a_shard,
    shard_outside,
    shard_through_a_link,
    more_than_is_there,
    far_place_in_a_list,
    no_index,
]


def run_of(stranger, folder: Path, marker: Path) -> Path:
    """A run's folder with a sharded checkpoint by a stranger, with a manifest that agrees."""
    run = folder / "run"
    checkpoint = run / "checkpoints" / "1.ckpt"
    partial = atomic_checkpoint.temporary_path(checkpoint)
    partial.mkdir(parents=True)
    save_sharded(partial, {"state_dict": {QUERIES: torch.zeros(16, 128)}})
    (run / "config.yaml").write_text(TINY.read_text())
    stranger(partial, marker)
    atomic_checkpoint.commit_folder(partial, checkpoint)
    return run


COMMANDS = [
    ("export", "{checkpoint}", "--out", "out.safetensors"),
    ("generate", "x", "--from", "{run}"),
    ("generate", "x", "--from", "{checkpoint}"),
    ("reconstruct", str(ROOT / "docs/images/samples.png"), "--from", "{run}"),
    ("serve", "--port", "0", "--from", "{run}"),
    ("app", "--port", "0", "--from", "{run}"),
    ("eval", "shapes", "--from", "{run}"),
]


TRIED = [
    (command, attack)
    for attack in ATTACKS
    for command in COMMANDS[: 2 if attack not in (pickled_index, pickle_in_a_shard) else None]
]


@pytest.mark.parametrize(("command", "attack"), TRIED)
def test_no_command_unpickles_a_sharded_checkpoint(
    command, attack, tmp_path, marker, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    run = run_of(attack, tmp_path, marker)
    places = {"run": run, "checkpoint": run / "checkpoints" / "1.ckpt"}
    said = refused(capsys, *(word.format(**places) for word in command))
    assert said.count("\n") == 1 and len(said) < 800


@pytest.fixture
def one_rank(tmp_path):
    """A process group of one, as a run on one device has."""
    store = f"file://{tmp_path}/store"
    distributed.init_process_group(
        "gloo", init_method=store, rank=0, world_size=1, timeout=timedelta(seconds=60)
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("attack", [each for each in ATTACKS if each != pickle_beside_the_shards])
def test_no_resume_unpickles_a_sharded_checkpoint(attack, tmp_path, marker, one_rank):
    checkpoint = run_of(attack, tmp_path, marker) / "checkpoints" / "1.ckpt"
    state = {"state_dict": {QUERIES: torch.ones(16, 128), "x": None}}
    with pytest.raises(UserError, match="1.ckpt"):
        read_into(checkpoint, state)


def test_resume_reads_numbers_lists_and_tensors(tmp_path, one_rank):
    groups = [{"lr": 0.1, "betas": (0.9, 0.99), "name": "a"}, {"lr": 0.2, "betas": None}]
    saved = {"state_dict": {"x": torch.arange(3.0)}, "optimizer_0": {"param_groups": groups}}
    sharded_files.save(saved, checkpoint_id=tmp_path / "1.ckpt")
    state = {
        "state_dict": {"x": torch.zeros(3)},
        "optimizer_0": {"param_groups": [dict.fromkeys(group) for group in groups]},
    }
    read_into(tmp_path / "1.ckpt", state)
    assert torch.equal(state["state_dict"]["x"], torch.arange(3.0))
    assert state["optimizer_0"]["param_groups"] == groups
    assert torch.equal(
        read_full_state(tmp_path / "1.ckpt", "state_dict")["state_dict"]["x"], torch.arange(3.0)
    )


def test_index_unpickles_only_index_classes(tmp_path):
    names = ["os.system", "builtins.eval", "torch.load", "torch.hub.load", "numpy.load"]
    names += ["torch.distributed.checkpoint.metadata.os.system", "functools.partial"]
    for name in names:
        module, _, function = name.rpartition(".")
        (tmp_path / INDEX).write_bytes(f"c{module}\n{function}\n(Vx\ntR.".encode())
        with pytest.raises(UserError, match="holds code beside data"):
            read_index(tmp_path)
    assert index_classes.Metadata  # the module is there, and still gives nothing but its classes


def test_a_checkpoint_that_is_a_folder_is_for_one_strategy(tmp_path, capsys, marker):
    run = run_of(pickled_index, tmp_path, marker)
    files = config_words(*STAGE2)
    said = refused(
        capsys,
        *("fit", *files, f"--ckpt_path={run}/checkpoints/1.ckpt"),
        *(f"--trainer.default_root_dir={tmp_path}", "--trainer.logger=false"),
    )
    assert "--hardware fsdp2" in said


@pytest.mark.slow
def test_fit_does_not_resume_from_a_strangers_pickle(tmp_path, marker, shapes_folder):
    run = run_of(pickled_index, tmp_path, marker)
    names = (
        "base",
        "presets/tiny",
        "stages/stage2",
        "recipes/tiny/stage2",
        "data/tiny/stage2",
        "data/folder",
        "trainer/fsdp2",
    )
    command = [
        *(sys.executable, "-P", "-m", "triptych", "fit"),
        *(f"--config={ROOT}/conf/{name}.yaml" for name in names),
        *(f"--data.shards={shapes_folder}/train", "--data.batch_size=2"),
        *("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.max_steps=1"),
        f"--ckpt_path={run}/checkpoints/1.ckpt",
    ]
    done = processes.run(command, seconds=300, cwd=tmp_path)
    assert done.returncode == 1 and "holds code beside data" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


# --- modules in the current folder ----------------------------------------------------------------


STRANGERS = [
    "simplejpeg",
    "yaml",
    "json",
    "torch",
    "sitecustomize",
    "PIL",
    "argparse",
    "webdataset",
]


@pytest.fixture(params=["script", "module"])
def program(request):
    """The two ways to start the command."""
    script = Path(sys.executable).with_name("triptych")
    if request.param == "module":
        return [sys.executable, "-m", "triptych"]
    return [str(script)] if script.is_file() else [sys.executable, "-P", "-m", "triptych"]


def test_modules_of_the_current_folder_stand_in_for_no_other(program, tmp_path, marker):
    for name in STRANGERS:
        (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'w').close()")
    done = processes.run([*program, "data", "inspect", "."], cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("triptych: "), done.stderr


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_the_users_own_folder_comes_last(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    with pytest.raises(SystemExit):
        main([command, "--config", "nowhere.yaml"])
    assert sys.path[-1] == str(tmp_path) and sys.path.count(str(tmp_path)) == 1
    assert "nowhere.yaml does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("data", "inspect", "nowhere"),
        ("export", "nowhere.ckpt"),
        ("generate", "x", "--from", "nowhere"),
        ("convert", "nowhere", "out"),
        ("eval", "compare", "nowhere.json"),
    ],
)
def test_other_commands_do_not_import_from_the_current_folder(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    refused(capsys, *words)
    assert str(tmp_path) not in sys.path
    assert takes_classes(words[0], [*words, "--trust-class=mine"])
    assert takes_classes(words[0], [*words, "--model.encoder=mine.Encoder"])


# --- class paths ----------------------------------------------------------------------------------


@pytest.fixture
def stranger(tmp_path, marker, monkeypatch):
    """A module on the path whose import writes the marker."""
    (tmp_path / "stranger.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass X: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "stranger.X"
    sys.modules.pop("stranger", None)


PLACES = {
    "class_path": {"encoder": {"class_path": "stranger.X"}},
    "text for a class": {"encoder": "stranger.X"},
    "deep class_path": {
        "generation": {
            "class_path": "triptych.modules.GenerationModule",
            "init_args": {"dit": {"class_path": "stranger.X"}},
        }
    },
    "deep text": {
        "generation": {
            "class_path": "triptych.modules.GenerationModule",
            "init_args": {"dit": "stranger.X"},
        }
    },
    "dict_kwargs": {
        "encoder": {
            "class_path": "triptych.backbones.EvaClip",
            "dict_kwargs": {"x": {"class_path": "stranger.X"}},
        }
    },
    "a list": {"trainable": [{"class_path": "stranger.X"}]},
    "_target_": {"encoder": {"_target_": "stranger.X"}},
    "JSON in a text": {"encoder": '{"class_path": "stranger.X"}'},
    "escaped JSON in a text": {"encoder": '{"class_path": "stranger\\u002eX"}'},
    "YAML in a text": {"encoder": "class_path: stranger.X\ninit_args: {a: 2020-99-99}"},
    "text in a text": {"encoder": '{"a": "{class_path: stranger.X}"}'},
    "a key twice in a text": {"encoder": "{class_path: a.X, class_path: stranger.X}"},
    "interpolated": {
        "preset": "stranger",
        "stage": "X",
        "encoder": "${model.preset}.${model.stage}",
    },
    "interpolated class_path": {
        "preset": "stranger",
        "encoder": {"class_path": "${model.preset}.X"},
    },
    "pieces of YAML": {
        "preset": "{class_path: stranger",
        "stage": "X}",
        "encoder": "${model.preset}.${model.stage}",
    },
    "the standard library": {"encoder": {"class_path": "antigravity.fly"}},
    "a module of ours": {"encoder": {"class_path": "triptych_evil.X"}},
}


def model_with(changes: dict) -> str:
    model = yaml.safe_load(TINY.read_text())["model"]
    return yaml.safe_dump({"model": {**model, **changes}})


@pytest.mark.parametrize("name", PLACES)
def test_no_class_path_of_a_strangers_file_is_imported(name, stranger, tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text(model_with(PLACES[name]))
    with pytest.raises(UserError) as error:
        describe_model([path])
    assert str(path) in str(error.value) and "antigravity" not in sys.modules
    assert "stranger" not in sys.modules


@pytest.mark.parametrize(
    "command", [*COMMANDS[1:2], *COMMANDS[4:], ("convert", "{run}/model.yaml", "out")]
)
def test_no_command_imports_classes_named_by_a_folder(
    command, stranger, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.yaml").write_text(model_with(PLACES["deep class_path"]))
    said = refused(capsys, *(word.format(run=folder) for word in command))
    assert "names stranger.X" in said and "--trust-class=stranger" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("trusted", ["mine", "mine.Encoder"])
def test_trusted_classes_are_imported(trusted, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine.py").write_text(
        "from triptych.backbones import EvaClip\nclass Encoder(EvaClip): pass\n"
    )
    model = yaml.safe_load(TINY.read_text())["model"]["encoder"]
    path = tmp_path / "model.yaml"
    path.write_text(model_with({"encoder": {**model, "class_path": "mine.Encoder"}}))
    for wrong in ([], ["min"], ["mine.Other"], ["mine.Encode"]):
        with pytest.raises(UserError, match="not triptych's own"):
            describe_model([path], trust_class=wrong)
    assert type(describe_model([path], trust_class=[trusted]).encoder).__name__ == "Encoder"
    named = "--model.encoder=mine.Encoder"  # by the user, on the command line
    assert type(describe_model([TINY], [named]).encoder).__name__ == "Encoder"
    sys.modules.pop("mine", None)


@pytest.mark.parametrize(
    "value",
    ["${oc.env:SECRET}", "x-${oc.env:SECRET,none}", "${${model.stage}}", "${nothing}", "${model}",
     "${model.preset}",
     "${oc.create:x}", "${model.encoder.init_args}", "${", "${a", "\\${oc.env:A}"],
)  # fmt: skip
def test_only_names_of_plain_values_are_filled_in(value, monkeypatch):
    monkeypatch.setenv("SECRET", "leaked")
    document = {"model": {"preset": value, "encoder": {"init_args": {"a": 1}}, "stage": "model"}}
    with pytest.raises(UserError) as error:
        plain_model([document], ["model.yaml"])
    assert "leaked" not in str(error.value)


def test_names_are_looked_up_in_all_files():
    documents = [{"model": {"preset": "tiny", "seed": "${other.number}"}}, {"other": {"number": 3}}]
    documents.append({"model": {"weights": {"encoder": "w/${model.preset}/a.safetensors"}}})
    assert plain_model(documents, "abc") == [
        {"preset": "tiny", "seed": 3},
        {},
        {"weights": {"encoder": "w/tiny/a.safetensors"}},
    ]


@pytest.mark.parametrize("preset", sorted(presets()))
def test_every_preset_passes(preset):
    describe_model([presets()[preset]])


# --- tokenizers and other files of transformers ---------------------------------------------------


@pytest.fixture
def tokenizer_folder(tmp_path, marker):
    """The tiny preset's tokenizer with code of a stranger beside it."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(ASSETS / "tiny" / "tokenizer", folder)
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n")
    for name in ("tokenizer_config.json", "config.json"):
        path = folder / name
        content = json.loads(path.read_text()) if path.is_file() else {"model_type": "evil"}
        content |= {
            "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoConfig": "evil.Evil"}
        }
        content |= {"tokenizer_class": "Evil"}
        path.write_text(json.dumps(content))
    return folder


def test_remote_code_of_a_tokenizer_is_not_run(tokenizer_folder, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 10))
    flag = f"--model.understanding.vlm.tokenizer={tokenizer_folder}"
    try:
        main(
            [
                "generate",
                "a red circle",
                "--num-inference-steps",
                "1",
                "--decoder-num-inference-steps",
                "1",
                flag,
            ]
        )
    except SystemExit as ended:
        assert ended.code == 1
    assert sys.stdin.read() == "y\n" * 10
    assert "[y/N]" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[1]"),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "[" * 100_000),
        ("tokenizer_config.json", "7"),
        ("special_tokens_map.json", '{"a": {"b": [1]}'),
        ("config.json", None),
    ],
)
def test_broken_files_of_a_tokenizer_are_a_sentence(name, content, tmp_path):
    folder = tmp_path / "tokenizer"
    shutil.copytree(ASSETS / "tiny" / "tokenizer", folder)
    (folder / name).unlink(missing_ok=True)
    if content is None:
        os.mkfifo(folder / name)
    else:
        (folder / name).write_text(content)
    model = describe_model([TINY], [f"--model.understanding.vlm.tokenizer={folder}"])
    with pytest.raises(UserError) as error:
        model.understanding.vlm.tokenizer  # noqa: B018
    assert "\n" not in str(error.value)
