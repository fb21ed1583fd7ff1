"""Recorded cases through our classes: those of the published code, if present, and our own."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from diffusers import LuminaNextDiT2DModel
from diffusers.models.embeddings import PixArtAlphaTextProjection, get_2d_rotary_pos_embed_lumina
from published_release import CASES
from safetensors.torch import load_file, save_file

from triptych.cli.main import main
from triptych.evaluation.parity import run_cases
from triptych.evaluation.parity.checks import Checks, relative_error


def test_every_recorded_case_of_the_published_code():
    lines = []
    report = run_cases(CASES, lines.append)
    assert report.failed == []
    assert report.cases >= 9 and len(report.quantities) >= 30
    assert {each.bound for each in report.quantities} == {0.0, 1e-5, 1e-4}
    assert len(lines) == 1 + len(report.quantities)


# --- own cases of the same form: the libraries' classes, other sizes ------------------------------


def dit_case(folder, side, ffn):
    """diffusers' DiT, forward and gradients, recorded as the published one's are."""
    torch.manual_seed(side)
    width, channels, condition_width, batch = 32, 6, 20, 2
    model = LuminaNextDiT2DModel(
        side, 1, channels, width, 2, 4, 4, 8, ffn / 85, cross_attention_dim=width, learn_sigma=False
    )
    projection = PixArtAlphaTextProjection(condition_width, width)
    for parameter in [*model.parameters(), *projection.parameters()]:
        torch.nn.init.normal_(parameter, std=0.3)
    io = {
        "x": torch.randn(batch, channels, side, side),
        "timestep": torch.tensor([503.0, 7.0]),
        "z_latents": torch.randn(batch, 5, condition_width),
        "loss_weight": torch.randn(batch, channels, side, side),
    }
    x, z = io["x"].clone().requires_grad_(), io["z_latents"].clone().requires_grad_()
    io["output"] = model(
        x,
        io["timestep"],
        projection(z),
        torch.ones(batch, 5),
        get_2d_rotary_pos_embed_lumina(8, 384, 384),
        cross_attention_kwargs={},
    ).sample
    io["loss"] = (io["output"] * io["loss_weight"]).mean()
    io["loss"].backward()
    io["grad.x"], io["grad.z_latents"] = x.grad, z.grad
    named = {f"model.{name}": p for name, p in model.named_parameters() if name != "pad_token"}
    named |= {f"model.caption_projection.{n}": p for n, p in projection.named_parameters()}
    io |= {f"grad.{name}": p.grad for name, p in named.items() if "norm_k.bias" not in name}
    write(folder, {"config": {"patch_size": 1}, "ffn_inner_dim": ffn}, io=io, weights=named)


def eva_case(folder):
    """timm's EVA with default attention: no bias on keys."""
    torch.manual_seed(0)
    model = timm.create_model(
        "eva02_enormous_patch14_clip_224",
        img_size=24,
        patch_size=4,
        embed_dim=24,
        depth=2,
        num_heads=3,
        mlp_ratio=2,
        num_classes=0,
        use_post_transformer_norm=False,
    ).eval()
    state = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("q_bias"):
            tensor, value = torch.randn(24), torch.randn(24)
            model.get_parameter(name).data = tensor
            model.get_parameter(name.replace("q_bias", "v_bias")).data = value
            state[name.replace("q_bias", "qkv.bias")] = torch.cat([tensor, torch.ones(24), value])
        elif not name.endswith("v_bias"):
            state[name] = tensor
    io = {"pixel_values": torch.randn(3, 3, 24, 24)}
    with torch.no_grad():
        io["cls_and_patches"] = model.forward_features(io["pixel_values"])
    io["output"] = io["cls_and_patches"][:, 1:]
    grid = io["output"].transpose(1, 2).reshape(3, 24, 6, 6)
    io["pooled"] = torch.nn.functional.avg_pool2d(grid, 3)
    io["image_u8"] = torch.full((30, 50, 3), 255, dtype=torch.uint8)
    white = (1 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )
    for name, side in (("image_preprocessed", 24), ("image_gray_preprocessed", 10)):
        io[name] = white[:, None, None].expand(1, 3, side, side).contiguous()
    write(folder, {"config": {"vision_cfg": {"head_width": 8}}, "pool": 3}, io=io, weights=state)


def write(folder, facts, **files):
    folder.mkdir(parents=True)
    for name, tensors in files.items():
        tensors = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
        save_file(tensors, folder / f"{name}.safetensors")
    facts |= {"files": {f"{name}.safetensors": {} for name in files}}
    (folder / "case.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    dit_case(folder / "dit_of_other_sizes", side=5, ffn=96)
    dit_case(folder / "another", side=4, ffn=128)
    eva_case(folder / "tower")
    return folder


@pytest.fixture
def cases(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "cases"))


def run(folder, capsys):
    """Exit status, the lines on standard output, standard error."""
    status = 0
    try:
        main(["parity", str(folder)])
    except SystemExit as stop:
        status = stop.code
    out = capsys.readouterr()
    return status, out.out.splitlines(), out.err


def test_cases_of_the_libraries_classes_hold(cases, capsys):
    status, lines, _ = run(cases, capsys)
    summary = json.loads(lines[-1])
    assert status == 0 and summary["failed"] == [] and summary["cases"] == 3
    assert summary["quantities"] == len(lines) - 2 > 80  # every gradient of two DiTs
    assert summary["worst"]["error"] <= summary["worst"]["bound"]


@pytest.mark.parametrize(
    ("tensor", "by", "failed"),
    [
        ("output", 2e-5, "output"),
        ("grad.x", 2e-4, "gradient of x"),
        ("grad.model.layers.1.gate", float("nan"), "gradient of model.layers.1.gate"),
    ],
)
def test_a_value_that_is_off_fails(tensor, by, failed, cases, capsys):
    path = cases / "another" / "io.safetensors"
    io = load_file(path)
    place = io[tensor].abs().flatten().argmin()
    io[tensor].view(-1)[place] += by * io[tensor].abs().max()
    save_file(io, path)
    status, lines, _ = run(cases, capsys)
    assert status == 1
    assert json.loads(lines[-1])["failed"] == [f"another: {failed}"]
    assert [line for line in lines if line.endswith("FAILED")]


def test_a_weight_that_is_off_fails(cases, capsys):
    path = cases / "tower" / "weights.safetensors"
    weights = load_file(path)
    weights["blocks.0.norm2.weight"] *= 1.001
    save_file(weights, path)
    status, lines, _ = run(cases, capsys)
    assert status == 1
    assert all(name.startswith("tower: ") for name in json.loads(lines[-1])["failed"])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: shutil.rmtree(f), "folder of cases .* does not exist"),
        (lambda f: [shutil.rmtree(each) for each in f.iterdir()], "holds no case"),
        (lambda f: (f / "tower/case.json").write_text("{"), "case.json is no JSON at line 1"),
        (lambda f: (f / "tower/case.json").write_text("[]"), "case.json is no JSON object"),
        (lambda f: (f / "tower/io.safetensors").unlink(), "tower/io.safetensors does not exist"),
        (
            lambda f: os.truncate(f / "tower/weights.safetensors", 999),
            "tower/weights.safetensors is no whole safetensors file",
        ),
        (lambda f: write(f / "x", {}, io={"y": torch.ones(1)}), "cases/x is a case of no known"),
        (lambda f: forget(f / "tower", "pool"), "case.json says nothing of 'pool'"),
        (lambda f: forget(f / "another", "config", "patch_size"), "says nothing of 'patch_size'"),
    ],
)
def test_a_damaged_folder_is_named_in_one_sentence(damage, says, cases, capsys):
    damage(cases)
    status, _, error = run(cases, capsys)
    assert status == 2
    (line,) = error.splitlines()
    assert line.startswith("triptych parity: ")
    assert re.search(says, line)


def test_a_case_without_its_checkpoint_is_left_out_and_the_others_run(cases, capsys):
    write(cases / "x", {}, io={"img_hidden_states": torch.ones(1)})
    status, lines, error = run(cases, capsys)
    summary = json.loads(lines[-1])
    assert status == 2 and "x needs the checkpoint that cases share, which is not there" in error
    assert summary["cases"] == 3 and summary["left_out"] == ["x"] and summary["failed"] == []
    for name in ("tower", "another", "dit_of_other_sizes"):
        shutil.rmtree(cases / name)
    status, lines, error = run(cases, capsys)
    assert status == 2 and lines == [] and "can be run: x needs the checkpoint" in error


def forget(folder, *keys):
    """Delete a fact of a case."""
    facts = json.loads((folder / "case.json").read_text())
    inner = facts
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    (folder / "case.json").write_text(json.dumps(facts))


def test_errors_are_relative_to_the_greatest_value():
    recorded = torch.tensor([-2.0, 1.0])
    assert relative_error(recorded + torch.tensor([0.0, 0.5]), recorded) == 0.25
    assert relative_error(recorded[:1], recorded) == float("inf")
    assert relative_error(recorded * float("nan"), recorded) != 0


def test_exact_values_are_compared_by_count():
    checks = Checks("case")
    checks.same("ids", torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 2], [3, 5]]))
    checks.same("longer", [1, 2, 3], [1])
    checks.same("equal", [1.0, 2.0], torch.tensor([1, 2]))
    checks.gradient("none", None, torch.ones(1))
    assert [each.error for each in checks.quantities] == [1, 2, 0, float("inf")]
    assert [each.ok for each in checks.quantities] == [False, False, True, False]


def test_a_pixel_may_round_either_way_only_at_the_edge():
    checks = Checks("case")
    recorded = torch.tensor([100.500001, 200.2]) / 255
    for pixels in ([101, 200], [100, 200], [101, 201], [99, 200]):
        checks.rounded(str(pixels), torch.tensor(pixels), recorded)
    assert [each.ok for each in checks.quantities] == [True, True, False, False]


def test_subset_of_the_published_cases(tmp_path, capsys):
    for name in ("full_train_i2i", "tiny_model"):
        shutil.copytree(CASES / name, tmp_path / name)
    status, lines, error = run(tmp_path, capsys)
    assert status == 2 and "takes its images from full_train_t2i, which is not there" in error
    assert json.loads(lines[-1])["cases"] == 1 and json.loads(lines[-1])["failed"] == []
