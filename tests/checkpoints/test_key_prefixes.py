"""Weights whose names have the prefixes of wrappers, in every reader."""

import json
import shutil

import published_release as published
import pytest
import torch
from builders import ROOT
from published_release import random, tower
from safetensors.torch import load_file, save_file

from triptych.checkpoints import WeightFiles, hold, stored_names
from triptych.checkpoints.hashing import weights_hash
from triptych.checkpoints.key_prefixes import plain_names, state_dict_in
from triptych.checkpoints.published.convert import convert_published
from triptych.checkpoints.training_checkpoint import read_trained
from triptych.checkpoints.weight_files import _PARTS
from triptych.inference.loading import find_source, load_model
from triptych.modules import UnifiedModule
from triptych.utils.errors import UserError

TINY = ROOT / "src/triptych/assets/tiny"
BEFORE = [
    "module.", "_orig_mod.", "model.", "net.", "network.", "ema.", "ema_model.", "model_ema.",
    "state_dict.", "_fsdp_wrapped_module.", "_forward_module.", "module._orig_mod.",
    "_orig_mod.module.", "module.module.", "_forward_module._fsdp_wrapped_module.model.",
]  # fmt: skip
INSIDE = [
    "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module",
    "_fsdp_wrapped_module._checkpoint_wrapped_module",
]  # fmt: skip


def renamed(tensors, before="", inside=""):
    """The tensors under longer names: before all, or after the first component."""
    names = {}
    for name in tensors:
        first, dot, rest = name.partition(".")
        names[name] = before + (f"{first}.{inside}{dot}{rest}" if inside else name)
    return {names[name]: tensor for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def tensors():
    return load_file(TINY / "generation.safetensors")


@pytest.mark.parametrize(
    ("before", "inside"), [*((each, "") for each in BEFORE), *(("", each) for each in INSIDE[:3])]
)
def test_a_weight_file_is_known_by_every_reader(before, inside, tensors, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(renamed(tensors, before, inside), path)
    assert stored_names([path]) == set(tensors)
    files = WeightFiles(generation=str(path))
    assert hold(files, "generation.") and not hold(files, "encoder.")
    whole = WeightFiles(generation="asset:tiny/generation.safetensors")
    assert weights_hash(files, "generation.") == weights_hash(whole, "generation.")


@pytest.mark.parametrize(("before", "inside"), [(BEFORE[-1], ""), ("", "module"), ("", INSIDE[-1])])
def test_a_model_has_the_same_weights(before, inside, tensors, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(renamed(tensors, before, inside), path, {"preset": "tiny"})
    source = find_source(path)
    assert source.overrides == [f"--model.weights.generation={path}"]
    model = load_model(source.configs, source.overrides)
    own = model.state_dict()
    assert all(torch.equal(own[name], tensor.to(own[name])) for name, tensor in tensors.items())


def test_a_prefix_that_nobody_knows_is_named(tensors, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(renamed(tensors, "student."), path)
    with pytest.raises(UserError, match=r"begin with 'student' .*save the weights without it"):
        load_model([ROOT / "conf/presets/tiny.yaml"], [f"--model.weights.generation={path}"])


def test_a_name_with_and_without_its_prefix_is_refused(tensors, tmp_path):
    path = tmp_path / "w.safetensors"
    queries = {"generation.queries": tensors["generation.queries"]}
    copied = {name: tensor.clone() for name, tensor in renamed(queries, inside="_orig_mod").items()}
    save_file(queries | copied, path)
    with pytest.raises(UserError, match="twice, as generation.*_orig_mod.*remove one"):
        stored_names([path])


def test_the_parts_of_a_model_are_those_that_names_may_begin_with():
    model = UnifiedModule.__init__.__annotations__
    assert set(model) >= _PARTS


def test_names_that_a_model_has_stay():
    qwen = ["model.layers.0.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"]
    only = ["model.layers.0.x", "model.norm.weight"]
    for names in (qwen, only):
        known = set(names).__contains__
        assert plain_names(names, known, "w") == {name: name for name in names}
        longer = [f"model.{name}" for name in names]
        assert list(plain_names(longer, known, "w").values()) == names
    alone = ["net.weight", "net.bias"]  # of a model of the user's own
    assert plain_names(alone, set(alone).__contains__, "w") == {name: name for name in alone}
    assert plain_names(alone, lambda name: False, "w") == {name: name for name in alone}


@pytest.mark.parametrize("before", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_a_training_checkpoint_is_read(before, tmp_path):
    state = {"generation.queries": torch.zeros(2, 2), "generation.dit.x": torch.ones(3)}
    torch.save(
        {"state_dict": renamed(state, before), "global_step": 3, "callbacks": {}},
        tmp_path / "last.ckpt",
    )
    assert set(read_trained(tmp_path / "last.ckpt", False)[0]) == set(state)


def prefixed(folder, before):
    """Lengthen all names of a published folder."""
    for path in folder.rglob("*.safetensors"):
        save_file(renamed(load_file(path), before), path, {"format": "pt"})
    for path in folder.rglob("*.index.json"):
        index = json.loads(path.read_text())
        index["weight_map"] = renamed(index["weight_map"], before)
        path.write_text(json.dumps(index))


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A published folder, and ours made of it."""
    folder = tmp_path_factory.mktemp("published")
    release = published.released(folder / "release")
    convert_published([str(release)], folder / "ours", say=lambda line: None)
    return release, folder / "ours"


@pytest.mark.parametrize("before", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_a_published_folder_is_converted(before, converted, tmp_path):
    release, ours = converted
    shutil.copytree(release, tmp_path / "release")
    prefixed(tmp_path / "release", before)
    convert_published([str(tmp_path / "release")], tmp_path / "made", say=lambda line: None)
    for path in ours.glob("*.safetensors"):
        made, wanted = load_file(tmp_path / "made" / path.name), load_file(path)
        assert made.keys() == wanted.keys()
        assert all(torch.equal(made[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("before", ["", "module.", "visual.", "module.visual."])
@pytest.mark.parametrize("holder", ["state_dict", "model", None])
def test_a_tower_of_torch_save_may_lie_inside(before, holder, converted, tmp_path):
    release, ours = converted
    bare = random(tower(), seed=3)
    content = renamed(bare, before)
    torch.save({holder: content, "epoch": 3} if holder else content, tmp_path / "tower.pt")
    convert_published(
        [str(release)],
        tmp_path / "made",
        encoder=str(tmp_path / "tower.pt"),
        say=lambda line: None,
    )
    made = load_file(tmp_path / "made" / "encoder.safetensors")
    assert torch.equal(made["encoder.tower.pos_embed"], bare["pos_embed"])


def test_weights_and_their_average_in_one_file_are_not_guessed_between():
    with pytest.raises(UserError, match=r"several sets of weights \(ema, model\)"):
        state_dict_in({"model": {}, "ema": {}, "step": 1}, "w.pt")
