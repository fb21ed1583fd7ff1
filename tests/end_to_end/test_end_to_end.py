"""Every stage through the real command line, in processes of their own, each on the one before.

A run takes a few steps on a few images; what is tested is that the stages fit together, that a
run leaves what it promises, and that Ctrl-C loses nothing.
"""

import csv
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import pytest
import torch
import yaml
from builders import ROOT
from commands import own_shards, run
from PIL import Image
from safetensors import safe_open

pytestmark = pytest.mark.slow

SCRIPT = Path(sys.executable).with_name("triptych")
# A shell without a terminal starts its background jobs deaf to Ctrl-C: give the hearing back.
HEARING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""
TWICE = """
import sys
from triptych.cli.main import main
for shards in ("empty", "nowhere"):
    try:
        main([*sys.argv[1:], f"--data.shards={shards}"])
    except SystemExit as stop:
        print("status", stop.code)
"""
STEPS = 3
CALLBACKS = [
    {"class_path": "triptych.callbacks.Checkpoint", "init_args": {"every_n_train_steps": 2}},
    {"class_path": "triptych.callbacks.ExportWeights"},
    {
        "class_path": "triptych.callbacks.SampleGrid",
        "init_args": {"every_n_steps": 2, "num_samples": 2},
    },
]
EVALUATE = {
    "class_path": "triptych.callbacks.Evaluate",
    "init_args": {
        "evaluator": {
            "class_path": "triptych.evaluation.ShapeEval",
            "init_args": {"num_images": 6, "generation_config": {"num_inference_steps": 2}},
        }
    },
}
SHORT = {
    "trainer": {
        "max_steps": STEPS,
        "val_check_interval": 2,
        "limit_val_batches": 1,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "callbacks": CALLBACKS,
    },
}
MY_PACKAGE = """
import os
import signal
from pathlib import Path

from lightning import Callback


class MyCallback(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        with Path("seen.txt").open("a") as file:
            file.write(f"{trainer.global_step}\\n")
        if trainer.global_step == int(os.environ.get("CTRL_C_AT", -1)):
            os.kill(os.getpid(), signal.SIGINT)
"""


def fit(stage, folder, *more, shards=()):
    """Arguments of a short `fit` of a stage; the shapes world is drawn if there are no `shards`."""
    short = folder / f"{stage}.yaml"
    evaluated = [EVALUATE] if stage in ("stage2", "stage3") else []
    trainer = {**SHORT["trainer"], "callbacks": CALLBACKS + evaluated}
    short.write_text(yaml.safe_dump({"trainer": trainer}))
    configs = [
        ROOT / "conf" / name
        for name in (
            "base.yaml",
            "presets/tiny.yaml",
            f"stages/{stage}.yaml",
            f"recipes/tiny/{stage}.yaml",
            f"data/tiny/{stage}.yaml",
        )
    ]
    words = [word for path in configs for word in ("--config", path)]
    return ["fit", *words, *shards, "--config", short, "--data.init_args.batch_size=4", *more]


def interrupt_and_resume(folder, shapes):
    """Stage 1 with a user's own callback, Ctrl-C in step 3 of 4; then resumed."""
    (folder / "my_package.py").write_text(MY_PACKAGE)
    arguments = [
        *fit("stage1", folder, shards=own_shards(shapes)),
        "--trainer.max_steps=4",
        "--trainer.callbacks+=my_package.MyCallback",
    ]
    hearing = [sys.executable, "-c", HEARING, SCRIPT]
    first = run(folder, *arguments, program=hearing, CTRL_C_AT="3")
    seen = (folder / "seen.txt").read_text().split()
    second = run(folder, *arguments, "--ckpt_path=last", program=[SCRIPT])
    return folder, first, seen, second


@pytest.fixture(scope="module")
def chain(tmp_path_factory, shapes_folder, forks):
    """All stages, each from the weights that the earlier ones wrote; by name, finished.

    Two processes at a time, of which one is a fork of a warm one; the encoder and what is
    interrupted are none. Beside the stages: "generate", "interrupted" (the results of
    `interrupt_and_resume`), "other" (a checkpoint of another stage) and "bad data".
    """
    folder = tmp_path_factory.mktemp("chain")
    (folder / "empty").mkdir()
    shards = own_shards(shapes_folder)
    made = {
        label: f"--model.weights.{label}=runs/tiny/{stage}/weights.safetensors"
        for label, stage in [
            ("encoder", "encoder"),
            ("understanding", "stage1"),
            ("decoder", "decoder"),
            ("generation", "stage2"),
        ]
    }
    frozen = [made["encoder"], made["understanding"], made["decoder"]]
    checkpoint = "--ckpt_path=runs/tiny/stage1/version_0/checkpoints/last.ckpt"
    done, forking = {}, Lock()

    def forked(*arguments):
        with forking:
            return forks.run(*arguments)

    with ThreadPoolExecutor(2) as pool:

        def start(stage, *more, shards=shards, name=None, run=forked):
            arguments = fit(stage, folder, *more, shards=shards)
            done[name or stage] = pool.submit(run, folder, *arguments)

        # the encoder's run draws the shapes world first, as `make` does
        start("encoder", "--data.init_args.images=48", shards=(), run=run)
        start("stage1")
        done["encoder"].result()
        start("decoder", made["encoder"])
        done["interrupted"] = pool.submit(
            interrupt_and_resume, tmp_path_factory.mktemp("interrupted"), shapes_folder
        )
        done["stage1"].result(), done["decoder"].result()
        start("stage2", *frozen)
        start("joint", *frozen)
        start("decoder", made["encoder"], checkpoint, name="other")
        done["bad data"] = pool.submit(
            run,
            folder,
            *fit("stage1", folder, shards=shards),
            "--data.val_shards=null",
            program=[sys.executable, "-c", TWICE],
        )
        done["stage2"].result()
        start("stage3", *frozen, shards=own_shards(shapes_folder, "instruct"))
        done["generate"] = pool.submit(
            run,
            folder,
            *(
                "generate",
                "a photo of a red circle",
                "two blue squares",
                "--num-inference-steps",
                "2",
            ),
            *("--config", ROOT / "conf" / "presets" / "tiny.yaml", "--seed", "7"),
            *(*frozen, made["generation"]),
        )
    return folder, {name: process.result() for name, process in done.items()}


@pytest.mark.parametrize("stage", ["encoder", "stage1", "decoder", "stage2", "stage3", "joint"])
def test_stage_writes_its_outputs(stage, chain):
    folder, done = chain
    assert done[stage].returncode == 0, done[stage].stderr[-3000:]
    results = folder / "runs" / "tiny" / stage / "version_0"
    assert str(results.relative_to(folder)) in done[stage].stdout.splitlines()[-1]
    rows = list(csv.DictReader((results / "metrics.csv").open()))
    losses = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
    assert len(losses) == STEPS and all(0 < loss < 1e4 for loss in losses)
    assert any(row.get("val/loss") for row in rows)
    assert list(results.glob("events.out.tfevents.*"))
    for step in (0, 2, STEPS):
        sheet = Image.open(results / "samples" / f"step-{step:08d}.png")
        assert min(sheet.size) > 48
    config = yaml.safe_load((results / "config.yaml").read_text())
    assert config["model"]["stage"] == stage
    checkpoint = torch.load(results / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["triptych"] == {"preset": "tiny", "stage": stage}
    for path in (results / "weights.safetensors", results.parent / "weights.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata()["stage"] == stage and file.metadata()["steps"] == str(STEPS)
            parts = {name.split(".")[0] for name in file.keys()}  # noqa: SIM118 - not a dict
    assert parts == {
        "encoder": {"encoder", "vae"},
        "stage1": {"understanding"},
        "decoder": {"decoding"},
        "joint": {"understanding", "generation"},
    }.get(stage, {"generation"})


def test_stage_2_ends_with_the_scores_of_before_and_after(chain):
    _, done = chain
    shown = done["stage2"].stdout
    assert "before   after" in shown
    assert [line for line in shown.splitlines() if line.startswith("mean")]


def test_stage_3_starts_from_stage_2(chain):
    folder, done = chain
    stage_2, stage_3 = (
        folder / f"runs/tiny/{s}/version_0/checkpoints" for s in ("stage2", "stage3")
    )
    weights = [
        torch.load(path / "last.ckpt", weights_only=True)["state_dict"]["generation.queries"]
        for path in (stage_2, stage_3)
    ]
    assert not torch.equal(*weights)
    assert torch.allclose(*weights, atol=0.01)  # a few small steps apart, not another start


def test_the_trained_model_draws_from_the_command_line(chain):
    folder, done = chain
    assert done["generate"].returncode == 0, done["generate"].stderr[-3000:]
    lines = [line.split("\t") for line in done["generate"].stdout.strip().splitlines()]
    assert [prompt for _, prompt in lines] == ["a photo of a red circle", "two blue squares"]
    assert [Path(path).name for path, _ in lines] == ["000007-000.png", "000008-001.png"]
    assert all(Image.open(folder / path).size == (48, 48) for path, _ in lines)


def test_the_shapes_were_drawn_once_and_completely(chain):
    folder, _ = chain
    marker = json.loads((folder / "data" / "shapes" / "shapes.json").read_text())
    assert marker["samples"]["train"] == 48
    assert not list((folder / "data").glob("*.partial"))


def test_a_users_own_callback_is_found_in_the_current_folder(chain):
    _, first, seen, _ = chain[1]["interrupted"]
    assert seen == ["1", "2", "3"], first.stderr[-3000:]


def test_ctrl_c_leaves_a_checkpoint_that_resumes(chain):
    folder, first, _, second = chain[1]["interrupted"]
    assert first.returncode != 0 and "Traceback" not in first.stderr
    runs = folder / "runs" / "tiny" / "stage1"
    last = torch.load(runs / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3
    assert not (runs / "version_0" / "weights.safetensors").exists()
    assert second.returncode == 0, second.stderr[-3000:]
    assert (folder / "seen.txt").read_text().split() == ["1", "2", "3", "4"]
    assert (runs / "version_1" / "weights.safetensors").exists()
    rows = list(csv.DictReader((runs / "version_1" / "metrics.csv").open()))
    assert [row["step"] for row in rows if row.get("train/loss")] == ["0", "1", "2", "3"]


def test_a_checkpoint_of_another_stage_is_one_sentence_and_status_1(chain):
    _, done = chain
    result = done["other"]
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith(
        "triptych: the checkpoint is of stage 'stage1', this run is of stage 'decoder'"
    )


def test_bad_data_is_one_sentence_and_status_1(chain):
    """An empty shard folder, then, in the same process, a missing one."""
    result = chain[1]["bad data"]
    assert [line for line in result.stdout.splitlines() if "status" in line] == ["status 1"] * 2
    said = [line for line in result.stderr.splitlines() if line.startswith("triptych: ")]
    assert "the shard folder empty holds no *.tar shard" in said[0]
    assert "the shard folder nowhere does not exist" in said[1]
    assert "Traceback" not in result.stderr
