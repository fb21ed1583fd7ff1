"""Training of all weights of the tiny preset from nothing: `make pretrain-tiny`.

Each part is an ordinary `triptych fit` in a process of its own; a finished part is skipped,
an interrupted part resumes from its last checkpoint. At the end the weights, cast
to float16, and a record of how they were made are in one folder, ready to be shipped.
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

from triptych.checkpoints import atomic_checkpoint
from triptych.cli.arguments import command_parser, parse
from triptych.utils.disk_usage import output_folder
from triptych.utils.documents import read_json_lines, read_text
from triptych.utils.errors import UserError
from triptych.utils.limits import TRAINING_STEPS
from triptych.utils.paths import presets

SEED = 0  # conf/base.yaml: seed_everything, of every initialization, order and draw


@dataclass(frozen=True)
class Part:
    """One part of the work: a stage, how long, and whose weights it starts from."""

    name: str
    steps: int
    label: str
    """Label of the weight file that it makes, see `triptych.checkpoints.WeightFiles`."""
    needs: tuple[str, ...] = ()
    """Names of the parts whose weights it reads."""
    flags: tuple[str, ...] = ()
    """Data flags of the part, if it does not train on its stage's own data."""


# A generator learns 30,000 images by heart before it learns what captions have in common.
MANY = ("--data.init_args.folder=data/shapes_100k", "--data.init_args.images=100000")
PLAN = (
    Part("encoder", 1500, "encoder"),
    Part("stage1", 3800, "understanding"),
    Part("decoder", 1000, "decoder", ("encoder",)),
    Part("stage2", 8000, "generation", ("encoder", "stage1", "decoder"), MANY),
    Part("stage3", 3400, "generation", ("encoder", "stage1", "decoder", "stage2"), MANY),
)


EXAMPLES = """\
  triptych pretrain --status
  triptych pretrain --runs runs/pretrain

What is done is not done again, and an interrupted part resumes from its last checkpoint."""


def pretrain(arguments: list[str]) -> None:
    """Train all weights of the tiny preset from nothing."""
    parser = command_parser(
        "pretrain", "Train all weights of the tiny preset from nothing.", EXAMPLES, model=False
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
        help="number of steps to cut every part to, for tests; default each part's own",
    )
    parser.add_argument(
        "--status", action="store_true", help="print what is done, and train nothing"
    )
    parsed = parse(parser, arguments)
    run(parsed.runs, parsed.steps, parsed.status)


def run(runs: Path, steps: int | None = None, status_only: bool = False) -> None:
    """Train the unfinished parts of `PLAN` in the folder `runs`, each cut to `steps` if given.

    Raises:
        UserError: a part failed; finished parts stay, the same command resumes.
    """
    print(overview(runs))
    if status_only:
        return
    make_tokenizer(runs)
    for part in PLAN:
        if weights_of(part, runs) is None:
            train(part, runs, steps)
            print(overview(runs))
    folder = collect(runs)
    print(f"weights and provenance.json are in {folder}; copy them over src/triptych/assets/tiny.")


def weights_of(part: Part, runs: Path) -> Path | None:
    """Weights from the last finished run of a part."""
    found = atomic_checkpoint.in_runs(runs / part.name, "weights.safetensors")
    return found[-1] if found else None


def overview(runs: Path) -> str:
    """A table of finished and remaining parts."""
    lines = [f"{'part':10} {'steps':>6}  state"]
    for part in PLAN:
        if weights := weights_of(part, runs):
            state = f"done: {weights}"
        elif checkpoint := atomic_checkpoint.newest([runs / part.name]):
            state = f"interrupted: goes on from {checkpoint}"
        else:
            state = "to do"
        lines.append(f"{part.name:10} {part.steps:6}  {state}")
    return "\n".join(lines)


def command(part: Part, runs: Path, steps: int | None) -> list[str]:
    """The `triptych fit` arguments of a part."""
    flags = [f"--trainer.max_steps={steps or part.steps}"]
    for logger_flag in ("=CSVLogger", f".save_dir={runs}", f".name={part.name}"):
        flags.append(f"--trainer.logger{logger_flag}")
    flags.append(f"--{TOKENIZER_FLAG}={tokenizer_folder(runs)}")
    for other in PLAN:
        if other.name in part.needs:
            flags.append(f"--model.weights.{other.label}={weights_of(other, runs)}")
    flags.append("--ckpt_path=auto")
    return ["fit", "--preset", "tiny", "--stage", part.name, *flags, *part.flags]


TOKENIZER_FLAG = "model.understanding.init_args.understander.init_args.tokenizer"


def tokenizer_folder(runs: Path) -> Path:
    """Folder of the tokenizer."""
    return runs / "tokenizer"


def make_tokenizer(runs: Path) -> None:
    """Train the tokenizer, in seconds, unless it is there."""
    if not (tokenizer_folder(runs) / "tokenizer.json").exists():
        from triptych.shapes_world.tokenizer import train_tokenizer

        train_tokenizer(tokenizer_folder(runs))


def train(part: Part, runs: Path, steps: int | None) -> None:
    """Run one part and note its command and time beside its weights."""
    arguments = command(part, runs, steps)
    print("triptych " + shlex.join(arguments), flush=True)
    started = time.time()
    result = subprocess.run([sys.executable, "-P", "-m", "triptych", *arguments], check=False)
    seconds = round(time.time() - started)
    log = runs / part.name / "attempts.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        entry = {"command": "triptych " + shlex.join(arguments), "seconds": seconds}
        entry |= {"commit": commit(), "status": result.returncode}
        file.write(json.dumps(entry) + "\n")
    if result.returncode:
        raise UserError(
            f"{part.name} stopped with status {result.returncode} after {seconds} s; "
            "`make pretrain-tiny` goes on where it stopped."
        )


def collect(runs: Path) -> Path:
    """Cast the last weights of each label to float16, score them, and write provenance.json."""
    import torch
    from safetensors.torch import load_file

    from triptych.checkpoints import read_metadata, save_weights

    folder = runs / "assets"
    for part in PLAN:
        source = weights_of(part, runs)
        target = folder / f"{part.label}.safetensors"
        save_weights(load_file(source), target, read_metadata(source), torch.float16)
    files = sorted(folder.glob("*.safetensors"))
    record = {
        "seed": SEED,
        "parts": {part.name: attempts(part, runs) for part in PLAN},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU used",
        "versions": versions(),
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "scores": scores(runs, folder),
    }
    (folder / "provenance.json").write_text(json.dumps(record, indent=1))
    return folder


def attempts(part: Part, runs: Path) -> list[dict]:
    """Attempts at a part that `train` recorded: several if it was interrupted."""
    path = runs / part.name / "attempts.jsonl"
    return [line for _, line in read_json_lines(read_text(path), path)]


def scores(runs: Path, folder: Path) -> dict:
    """ShapeEval, reconstructions and questions of the collected weights."""
    from triptych.evaluation import evaluate_all
    from triptych.inference.loading import load_model

    labels = sorted({part.label for part in PLAN})
    flags = [f"--model.weights.{label}={folder / label}.safetensors" for label in labels]
    flags.append(f"--{TOKENIZER_FLAG}={tokenizer_folder(runs)}")
    return evaluate_all(load_model([presets()["tiny"]], flags), num_images=600)


def versions() -> dict[str, str]:
    """The packages that decide numbers."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "diffusers", "timm")}


def commit() -> str:
    """The commit of the working tree, or "unknown" outside of git."""
    result = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "unknown"
