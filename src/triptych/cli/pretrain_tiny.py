"""Training of all weights of the tiny preset from scratch: `make pretrain-tiny`.

Each run is an ordinary `triptych fit` in a process of its own; finished runs are skipped, and an
interrupted one resumes from its last checkpoint. The result is a folder with the weights in float16
and a record of their training.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.checkpoints import atomic_checkpoint
from triptych.cli.arguments import command_parser, parse
from triptych.utils.disk_usage import output_folder
from triptych.utils.documents import read_json_lines, read_text
from triptych.utils.errors import UserError
from triptych.utils.limits import TRAINING_STEPS
from triptych.utils.paths import presets

if TYPE_CHECKING:
    from torch import Tensor

SEED = 0
"""seed_everything of conf/base.yaml."""


@dataclass(frozen=True)
class PretrainStage:
    """A pretraining run: name, number of steps, and runs whose weights it needs."""

    name: str
    steps: int
    label: str
    """Label of its weight file, see `triptych.checkpoints.WeightFiles`."""
    needs: tuple[str, ...] = ()
    """Names of the runs whose weights it reads."""
    flags: tuple[str, ...] = ()
    """Data flags, if it does not train on the data of its stage."""
    stage: str | None = None
    """Its stage, if that is not its name."""


# A generator memorizes 30,000 images before it generalizes over captions.
MANY = ("--data.init_args.folder=data/shapes_100k", "--data.init_args.images=100000")
NO_SIZED = "--data.init_args.sized_ratio=0"
TWO = "--hardware=cpu"  # processes
CONSTANT = "--model.optimization.lr_scheduler=constant"  # stage 1 goes on from there
# The tower trains in the first run alone, see docs/tiny_preset.md.
NO_TOWER = (
    "--model.trainable=[understanding.vlm.model.model.language_model,'*merger.position']",
    "--model.optimization.lr_overrides={'*merger.position': 1.0e-3}",
)
READING = (
    "--data.init_args.conversation_key=reading",
    "--data.init_args.text_only_ratio=0",
    "--data.init_args.stories_ratio=0",
    CONSTANT,
)
ATTRIBUTES = (
    "--data.init_args.conversation_key=attribute_questions",
    "--data.init_args.part=instruct",  # more images of two kinds
    "--data.init_args.length_bucket_batches=1",  # some of everything in every batch
    "--data.init_args.stories_ratio=0.1",
    CONSTANT,
    *NO_TOWER,
)
EDITS = (
    "--model.optimization.lr=5.0e-3",
    "--data.init_args.changes=80000",
    "--data.init_args.stories=data/shapes_stories",  # those of stage 1
    "--data.init_args.num_stories=30000",
)
REWARDED = (TWO, "--data.datasets.unseen.weight=0")  # no image, and no caption, of unseen pairs
CURATED = (
    "--data.init_args.part=instruct",  # more of what is learned last
    "--data.init_args.share=0.3",
)
# Learning all questions at once stops at what a guess from all shapes of an image answers. So first
# the tower learns what is in each cell, then the language model which attributes are of one shape.
PLAN = (
    PretrainStage("reading", 350, "understanding", (), (*READING, TWO), "stage1"),
    PretrainStage("attributes", 900, "understanding", ("reading",), (*ATTRIBUTES, TWO), "stage1"),
    PretrainStage("stage1", 2200, "understanding", ("reading", "attributes"), (*NO_TOWER, TWO)),
    PretrainStage("encoder", 1500, "encoder"),
    PretrainStage("decoder", 1000, "decoder", ("encoder",)),
    PretrainStage(
        "stage2",
        4500,
        "generation",
        ("encoder", "reading", "stage1", "decoder"),
        (*MANY, NO_SIZED, TWO),
    ),
    PretrainStage(
        "edits_first",
        2000,
        "generation",
        ("encoder", "reading", "stage1", "decoder", "stage2"),
        (*MANY, *EDITS, NO_SIZED, TWO),
        "edits",
    ),
    PretrainStage(
        "singles",
        200,
        "generation",
        ("encoder", "reading", "stage1", "decoder", "edits_first"),
        (
            *MANY,
            TWO,
            CONSTANT,
            "--model.optimization.lr=5.0e-3",
            "--data.init_args.sized_ratio=0.8",
        ),
        "stage2",
    ),
    PretrainStage(
        "edits",
        3300,
        "generation",
        ("encoder", "reading", "stage1", "decoder", "singles"),
        (*MANY, *EDITS, TWO),
    ),
    PretrainStage(
        "tuning",
        1500,
        "generation",
        ("encoder", "reading", "stage1", "decoder", "edits"),
        (*MANY, *EDITS, *CURATED, TWO, "--data.init_args.stories_ratio=0.2"),
        "edits",
    ),
    PretrainStage(
        "sizes",
        250,
        "generation",
        ("encoder", "reading", "stage1", "decoder", "tuning"),
        (
            *MANY,
            TWO,
            CONSTANT,
            "--model.optimization.lr=4.0e-3",
            "--data.init_args.sized_ratio=0.7",
        ),
        "stage2",
    ),
    PretrainStage(
        "last",
        1150,
        "generation",
        ("encoder", "reading", "stage1", "decoder", "sizes"),
        (
            *MANY,
            *EDITS,
            *CURATED,
            TWO,
            "--model.optimization.lr=4.0e-3",
            "--data.init_args.stories_ratio=0.15",
            "--data.init_args.sized_ratio=0.3",
        ),
        "edits",
    ),
    PretrainStage(
        "rewards",
        240,
        "generation",
        ("encoder", "reading", "stage1", "decoder", "last"),
        (*REWARDED, "--data.datasets.pairs.weight=1", "--model.optimization.lr=1.0e-4"),
        "rl",
    ),
    PretrainStage(
        "pairs",
        240,
        "generation",
        ("encoder", "reading", "stage1", "decoder", "rewards"),
        (*REWARDED, "--data.datasets.pairs.weight=2", "--model.optimization.lr=3.0e-4"),
        "rl",
    ),
)


EXAMPLES = """\
  triptych pretrain --status
  triptych pretrain --runs runs/pretrain

Finished runs are skipped, and an interrupted run resumes from its last checkpoint."""


def pretrain(arguments: list[str]) -> None:
    """Train all weights of the tiny preset from scratch."""
    parser = command_parser(
        "pretrain", "Train all weights of the tiny preset from scratch.", EXAMPLES, model=False
    )
    parser.add_argument(
        "--runs",
        type=output_folder,
        default=Path("runs/pretrain"),
        metavar="FOLDER",
        help="folder of the runs; default %(default)s",
    )
    parser.add_argument(
        "--steps",
        type=TRAINING_STEPS,
        metavar="N",
        help="number of steps of every run, for tests; default each run's own",
    )
    parser.add_argument(
        "--status", action="store_true", help="status of the runs, without training"
    )
    parsed = parse(parser, arguments)
    run(parsed.runs, parsed.steps, parsed.status)


def run(runs: Path, steps: int | None = None, status_only: bool = False) -> None:
    """Train the unfinished runs of `PLAN` in the folder `runs`, each for `steps` if given.

    Raises:
        UserError: a run failed; finished runs are kept, and the same command resumes.
    """
    print(overview(runs))
    if status_only:
        return
    make_tokenizer(runs)
    for each in PLAN:
        if weights_of(each, runs) is None:
            train(each, runs, steps)
            print(overview(runs))
    folder = collect(runs)
    print(f"weights and provenance.json are in {folder}; copy them over src/triptych/assets/tiny.")


def weights_of(planned: PretrainStage, runs: Path) -> Path | None:
    """Return the weights of the last finished attempt at a run."""
    found = atomic_checkpoint.in_runs(runs / planned.name, "weights.safetensors")
    return found[-1] if found else None


def overview(runs: Path) -> str:
    """Return a table of finished and remaining runs."""
    lines = [f"{'run':10} {'steps':>6}  state"]
    for planned in PLAN:
        if weights := weights_of(planned, runs):
            state = f"done: {weights}"
        elif checkpoint := atomic_checkpoint.latest([runs / planned.name]):
            state = f"interrupted: resumes from {checkpoint}"
        else:
            state = "to do"
        lines.append(f"{planned.name:10} {planned.steps:6}  {state}")
    return "\n".join(lines)


def command(planned: PretrainStage, runs: Path, steps: int | None) -> list[str]:
    """Return the `triptych fit` arguments of a run."""
    flags = [f"--trainer.max_steps={steps or planned.steps}"]
    for logger_flag in ("=CSVLogger", f".save_dir={runs}", f".name={planned.name}"):
        flags.append(f"--trainer.logger{logger_flag}")
    flags.append(f"--{TOKENIZER_FLAG}={tokenizer_folder(runs)}")
    for label, weights in beginning(planned, runs).items():
        flags.append(f"--model.weights.{label}={weights}")
    flags.append("--ckpt_path=auto")
    return [
        "fit",
        "--preset",
        "tiny",
        "--stage",
        planned.stage or planned.name,
        *flags,
        *planned.flags,
    ]


def beginning(planned: PretrainStage, runs: Path) -> dict[str, Path]:
    """Return the weight file of each label from which a run starts.

    Of several runs that it needs with one label, the tensors are merged to one file.
    """
    import torch

    from triptych.checkpoints import read_metadata, save_weights

    files: dict[str, list[Path]] = {}
    for other in PLAN:
        if other.name in planned.needs:
            files.setdefault(other.label, []).append(weights_of(other, runs))
    for label, paths in files.items():
        if len(paths) > 1:
            target = runs / planned.name / "start" / f"{label}.safetensors"
            save_weights(merged(paths), target, read_metadata(paths[-1]), torch.float32)
            paths[:] = [target]
    return {label: path for label, (path,) in files.items()}


def merged(paths: list[Path]) -> dict[str, Tensor]:
    """Return the tensors of several weight files, of which each holds what its run trained.

    Of a tensor in several files, the latest is taken.
    """
    from safetensors.torch import load_file

    return {name: tensor for path in paths for name, tensor in load_file(path).items()}


TOKENIZER_FLAG = "model.understanding.init_args.vlm.init_args.tokenizer"


def tokenizer_folder(runs: Path) -> Path:
    """Return the folder of the tokenizer."""
    return runs / "tokenizer"


def make_tokenizer(runs: Path) -> None:
    """Train the tokenizer unless it exists, which takes seconds."""
    if not (tokenizer_folder(runs) / "tokenizer.json").exists():
        from triptych.shapes_world.tokenizer import train_tokenizer

        train_tokenizer(tokenizer_folder(runs))


def train(planned: PretrainStage, runs: Path, steps: int | None) -> None:
    """Train one run, and record its command and duration in its folder."""
    arguments = command(planned, runs, steps)
    print("triptych " + shlex.join(arguments), flush=True)
    started = time.time()
    result = subprocess.run([sys.executable, "-P", "-m", "triptych", *arguments], check=False)
    seconds = round(time.time() - started)
    log = runs / planned.name / "attempts.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        entry = {"command": "triptych " + shlex.join(arguments), "seconds": seconds}
        entry |= {"commit": commit(), "status": result.returncode}
        file.write(json.dumps(entry) + "\n")
    if result.returncode:
        raise UserError(
            f"{planned.name} stopped with status {result.returncode} after {seconds} s; "
            "`make pretrain-tiny` resumes where it stopped."
        )


def collect(runs: Path) -> Path:
    """Cast the last weights of each label to float16, score them, and write provenance.json."""
    import torch

    from triptych.checkpoints import read_metadata, save_weights

    folder = runs / "assets"
    files: dict[str, list[Path]] = {}
    for planned in PLAN:
        files.setdefault(planned.label, []).append(weights_of(planned, runs))
    for label, paths in files.items():
        save_weights(
            merged(paths), folder / f"{label}.safetensors", read_metadata(paths[-1]), torch.float16
        )
    files = sorted(folder.glob("*.safetensors"))
    record = {
        "seed": SEED,
        "parts": {each.name: attempts(each, runs) for each in PLAN},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU used",
        "versions": versions(),
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "scores": scores(runs, folder),
    }
    (folder / "provenance.json").write_text(json.dumps(record, indent=1))
    return folder


def attempts(planned: PretrainStage, runs: Path) -> list[dict]:
    """Return the recorded attempts at a run: several if it was interrupted."""
    path = runs / planned.name / "attempts.jsonl"
    return [line for _, line in read_json_lines(read_text(path), path)]


def scores(runs: Path, folder: Path) -> dict:
    """Evaluate the collected weights on captions, reconstructions and questions."""
    from triptych.evaluation import evaluate_all
    from triptych.inference.loading import load_model

    labels = sorted({each.label for each in PLAN})
    flags = [f"--model.weights.{label}={folder / label}.safetensors" for label in labels]
    flags.append(f"--{TOKENIZER_FLAG}={tokenizer_folder(runs)}")
    return evaluate_all(load_model([presets()["tiny"]], flags), num_images=600)


def versions() -> dict[str, str]:
    """Return the versions of the packages that determine numbers."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "diffusers", "timm")}


def commit() -> str:
    """Return the commit of the working tree, "unknown" outside of git."""
    result = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "unknown"
