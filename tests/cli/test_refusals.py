"""A refused command leaves no file and no folder; the right one then works in the same place."""

import os
import shutil
import tarfile

import pytest
from builders import ROOT
from PIL import Image

MODEL = ["--config", ROOT / "conf/presets/tiny.yaml"]
STAGE2 = [
    "--config",
    ROOT / "conf/base.yaml",
    *MODEL,
    "--config",
    ROOT / "conf/stages/stage2.yaml",
    "--config",
    ROOT / "conf/recipes/tiny/stage2.yaml",
    "--config",
    ROOT / "conf/data/tiny/stage2.yaml",
]
SHARDS = ["--config", ROOT / "conf/data/folder.yaml", "--data.shards=good"]
FEW = ["--num-inference-steps", 1, "--decoder-num-inference-steps", 1]
BAD_MODELS = [
    ["--model.bogus=1"],
    ["--model.weights.generation=bad.safetensors"],
    ["--model.weights.generation=nowhere.safetensors"],
    ["--config", "bad.yaml"],
    ["--config", "nowhere.yaml"],
]
BAD_SOURCES = [["--from", each] for each in ("nowhere", "bad.safetensors", "bad.ckpt")]
BAD_DEVICES = [["--device", "bogus"], ["--part", "3/2"], ["--batch-size", 0], ["--seed", "x"]]
BAD_PLACES = ["file/new", "file/new/deeper"]


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (48, 48), "red").save(tmp_path / "red.png")
    (tmp_path / "red.txt").write_text("a red thing")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    (tmp_path / "bad.yaml").write_text("model:\n  nope: 1\n")
    for name in ("bad.safetensors", "bad.ckpt", "bad.png", "bad.json", "file"):
        (tmp_path / name).write_bytes(b"nothing of the kind" * 9)
    for name in ("empty", "damaged", "good", "images", "others"):
        (tmp_path / name).mkdir()
    (tmp_path / "others/notes.md").write_text("of somebody")
    (tmp_path / "damaged/bad.tar").write_bytes(b"no tar" * 200)
    for ending in ("png", "txt"):
        shutil.copy(tmp_path / f"red.{ending}", tmp_path / "images")
    with tarfile.open(tmp_path / "good/a.tar", "w") as shard:
        for ending in ("png", "txt"):
            shard.add(tmp_path / f"red.{ending}", f"0.{ending}")
    return tmp_path


def each(command, *others):
    return [[*command, *other] for other in others]


NEW_REPORT = ["--out", "new/scores.json", "--page", "new/page.html", "--images-dir", "kept/images"]
SHAPES = ["eval", "shapes", "--num-captions", 2, *NEW_REPORT]
FEATURES = ["data", "features", "good", *MODEL]
EXPORT = ["export", "--out", "new/weights.safetensors"]
INSPECT = ["data", "inspect", "--out", "new/sheet.png"]
CONVERT = ["convert"]
DRAW = ["--out", "new/out"]

REFUSED = {
    "generate": [
        *each(["generate", "a", *FEW, *DRAW], *BAD_MODELS, *BAD_SOURCES, *BAD_DEVICES),
        *each(["generate", "a", *FEW], *BAD_SOURCES),  # to the default folder
        *each(["generate", *DRAW], ["--prompts", "nowhere"], ["--prompts", "bad.jsonl"], [" "]),
        *each(["generate", "a", *DRAW], ["--sampler", "bogus"], ["--ema"]),
        *each(["generate", "a", *DRAW], ["--num-inference-steps", 0]),
        *each(["generate", "a", *FEW], *(["--out", place] for place in BAD_PLACES)),
    ],
    "edit": [
        *each(["edit", "red.png", "b", *FEW, *DRAW], *BAD_MODELS, *BAD_SOURCES, *BAD_DEVICES),
        *each(["edit", *DRAW], ["bad.png", "b"], ["nowhere.png", "b"], ["--jsonl", "bad.jsonl"]),
        *each(["edit", "red.png", "b", *FEW], *(["--out", place] for place in BAD_PLACES)),
    ],
    "reconstruct": [
        *each(["reconstruct", "red.png", *DRAW], *BAD_MODELS, *BAD_SOURCES, *BAD_DEVICES),
        *each(["reconstruct", *DRAW], ["bad.png"], ["nowhere"], ["empty"], ["red.png", "bad.png"]),
        *each(["reconstruct", "red.png"], *(["--out", place] for place in BAD_PLACES)),
    ],
    "eval shapes": [
        *each(SHAPES, *BAD_MODELS, *BAD_SOURCES, *BAD_DEVICES, ["--num-inference-steps", 0]),
        *each(SHAPES, *(["--out", place] for place in [*BAD_PLACES, "empty"])),
        *each(SHAPES, *(["--page", place] for place in [*BAD_PLACES, "empty"])),
        *each(SHAPES, *(["--images-dir", place] for place in [*BAD_PLACES, "file"])),
    ],
    "eval others": [
        *each(
            ["eval", "geneval", *NEW_REPORT, "--generate-only"],
            *BAD_MODELS, *BAD_SOURCES, ["--limit", 0],
        ),
        *each(["eval", "dpg", *NEW_REPORT], ["--questions", "bad.json"], ["--questions", "no"]),
        *each(["eval", "wise", *NEW_REPORT], ["--prompts", "bad.json"], ["--prompts", "no"]),
        *each(
            ["eval", "fid", "--out", "new/scores.json", "--reference"],
            ["images", "--images-dir", "nowhere"],
            ["images", "--images-dir", "empty"],
            ["images", "--images-dir", "images", "--out", "empty"],
            ["empty", "--images-dir", "images"],
            ["damaged", "--images-dir", "images"],
        ),
        *each(["eval", "compare", "--chart", "new/x.png"], ["nowhere"], ["bad.json"]),
        ["eval", "understanding", "--out", "new/scores.json", "--tasks", "bogus"],
    ],
    "demo": [
        *each(["demo", "--out", "new/page", *MODEL], *BAD_MODELS, ["--bogus"]),
        *each(["demo", *MODEL], *(["--out", place] for place in [*BAD_PLACES, "others"])),
    ],
    "app": each(
        ["app", "--port", 0, "--votes", "new/votes.jsonl"],
        ["--prompts", "nowhere"], ["--prompts", "bad.jsonl"], ["--host", "999.1.1.1"], *BAD_SOURCES,
    ),
    "serve": each(["serve", "--port", 0], *BAD_SOURCES, ["--host", "999.1.1.1"]),
    "convert": [
        *([*CONVERT, source, "new/model"] for source in ["nowhere", "empty", "file", "bad.yaml"]),
        *each([*CONVERT, MODEL[1], "new/model"], ["--model.bogus=1"], ["--encoder", "file"]),
        [*CONVERT, "empty", "others"],
    ],
    "export": [
        *each(EXPORT, *([each] for each in ["nowhere", "bad.ckpt", "bad.safetensors", "empty"])),
        *each(EXPORT, ["bad.safetensors", "--ema"], ["bad.ckpt", "--dtype", "bogus"]),
        *each([*EXPORT, "bad.ckpt"], ["--extrapolate", 2], ["--before", "bad.safetensors"]),
        [*EXPORT, "bad.ckpt", "--before", "nowhere", "--extrapolate", 1],
        *each(["export", "bad.ckpt"], *(["--out", place] for place in [*BAD_PLACES, "empty"])),
    ],
    "data index": each(
        ["data", "index"],
        ["nowhere"], ["empty"], ["damaged"], ["bad.png"], ["good", "--verify"],
        ["good", "--tokenizer", "nowhere"], ["good", "--tokenizer", "bad.json"],
    ),
    "data inspect": [
        *each(INSPECT, ["nowhere"], ["empty"], ["damaged"], ["bad.png"], ["good", "--samples", 0]),
        *each(["data", "inspect", "images"], *(["--out", f"{place}.png"] for place in BAD_PLACES)),
        ["data", "inspect", "images", "--out", "new/sheet.txt"],
    ],
    "data features": [
        *each(["data", "features", *MODEL], ["nowhere"], ["empty"], ["damaged"]),
        *each(
            FEATURES, *BAD_MODELS, ["--precision", "bogus"],
            ["--device", "bogus"], ["--device", "cuda:99"], ["--devices", 0],
            ["--quantize", "4bit"], ["--low-memory"], ["--from", "nowhere"],
        ),
        *each(FEATURES, *(["--out", place] for place in [*BAD_PLACES, "others"])),
    ],
    "pretrain": each(["pretrain"], *(["--runs", place] for place in BAD_PLACES), ["--steps", 0]),
    "fit": [
        *each(["fit", *STAGE2, "--model.build_decoder=false"], *BAD_MODELS, ["--trainer.bogus=1"]),
        *each(
            ["fit", *STAGE2, *SHARDS],
            ["--ckpt_path=bad.ckpt"], ["--ckpt_path=nowhere"], ["--ckpt_path=last"],
            ["--data.shards=nowhere"], ["--data.shards=empty"], ["--data.shards=damaged"],
            ["--trainer.precision=7"], ["--trainer.accelerator=bogus"], ["--seed_everything=-5"],
            ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=file/new"],
        ),
    ],
    "validate": each(
        ["validate", *STAGE2, *SHARDS],
        *BAD_MODELS[2:], ["--ckpt_path=bad.ckpt"], ["--data.shards=damaged"],
    ),
}  # fmt: skip

THEN = {
    "generate": ["generate", "a", *FEW, *DRAW],
    "edit": ["edit", "red.png", "b", *FEW, *DRAW],
    "reconstruct": ["reconstruct", "red.png", "--decoder-num-inference-steps", 1, *DRAW],
    "eval shapes": SHAPES,
    "data index": ["data", "index", "good", "--checksums"],
    "data inspect": [*INSPECT, "images"],
    "data features": FEATURES,
}


def names(folder):
    return {
        os.path.relpath(os.path.join(place, name), folder)
        for place, folders, files in os.walk(folder)
        for name in [*folders, *files]
    }


HEAVY = {"fit", "validate", "edit", "reconstruct"}  # in the way of `generate`, or a second each
LONG = {"generate", "eval others", "eval shapes", "data features"}


def marks(kind):
    """Marks of a table: members that take long, and further ones."""
    return [pytest.mark.sweep] * (kind in HEAVY) + [pytest.mark.slow] * (kind in LONG)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=marks(kind)) for kind in REFUSED])
def test_refused_commands_leave_no_files(kind, forks, folder):
    before = names(folder)
    for command in REFUSED[kind]:
        status, said = forks(folder, *command)
        assert status in (1, 2) and "Traceback" not in said, (command, said)
        assert names(folder) == before, command
    if kind in THEN:
        status, said = forks(folder, *THEN[kind])
        assert status == 0, said
        assert names(folder) > before


def test_a_fit_is_refused_before_its_data_are_generated(tmp_path, triptych):
    words = ["fit", "--preset", "tiny", "--stage", "stage2", "--trainer.max_epochs=2"]
    status, _, err = triptych(*words)
    assert status == 1 and "--trainer.max_epochs counts epochs" in err
    assert not list(tmp_path.rglob("*.tar"))
