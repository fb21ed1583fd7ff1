"""A batch of eight samples split in any way, and fits of one Trainer on the pieces.

Use it to compare ways of splitting a batch: sizes, accumulation, ranks, tasks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from builders import builder, needed, unified
from lightning import Callback, Trainer
from PIL import Image

from triptych.checkpoints import WeightFiles
from triptych.data_modules import AccumulationLoader, ConversationFile, ShardFolder
from triptych.interfaces import (
    IMAGE_TO_IMAGE,
    IMAGE_TO_TEXT,
    TEXT_TO_IMAGE,
    Batch,
    batches_in,
    label_indices,
)
from triptych.prompts import IGNORED
from triptych.training.fsdp import gather_state_dict
from triptych.training.optimizer import Optimization

STILL = Optimization(
    lr=0.0, lr_scheduler="constant"
)  # steps change nothing: gradients stay comparable
TASKS = {
    "stage1": [IMAGE_TO_TEXT],
    "stage2": [TEXT_TO_IMAGE],
    "stage3": [IMAGE_TO_IMAGE],
    "decoder": [TEXT_TO_IMAGE],
    "joint": [TEXT_TO_IMAGE, IMAGE_TO_TEXT],
}


def write_conversations(folder: Path, number: int = 12, with_image: int | None = None) -> Path:
    """A LLaVA file whose answers are in turn one word, and ever more.

    Args:
        with_image: conversations with an image, the first ones; None is all.
    """
    talks = []
    for n in range(number):
        Image.new("RGB", (48, 48), (20 * n, 90, 200 - 10 * n)).save(folder / f"{n}.png")
        answer = "red" if n % 2 else "one blue square" + " and a red circle" * n
        about = with_image is None or n < with_image
        turns = [("human", "<image>\n" * about + "what is it?"), ("gpt", answer)]
        turns += [("human", "and now?"), ("gpt", "the same")] * (n % 3)
        shown = [{"from": who, "value": text} for who, text in turns]
        image = {"image": f"{n}.png"} if about else {}
        talks.append({**image, "conversations": shown})
    file = folder / "talks.jsonl"
    file.write_text("\n".join(map(json.dumps, talks)))
    return file


def described(stage: str, weights: WeightFiles, **settings: Any):
    """The model of a stage, not built; its decoder has no statistics of a batch."""
    known = "stage2" if stage == "stage3" else stage
    settings = {"weights": needed(weights, known), "build_decoder": False, **settings}
    model = unified(known, optimization=STILL, **settings)
    if stage == "decoder":
        model.trainable = ["decoding.decoder.unet"]
        model.decoding.decoder.baseline_width = 0
    return model


def cut(
    model: Any,
    stage: str,
    shapes: Path,
    talks: Path,
    pieces: list[list[int]],
    silent: tuple[int, ...] = (),
    tasks: list[str] | None = None,
) -> list[Any]:
    """The samples of each piece as a batch, in joint training a dict of two.

    Args:
        pieces: numbers of samples.
        silent: samples of which nothing is learned, though they are in text batches.
        tasks: of the samples, of one family, in place of those of the stage; other ranks may show
            images even if none of these does.
    """
    made: list[dict[str, Batch]] = [{} for _ in pieces]
    for task in tasks or TASKS[stage]:
        text = task == IMAGE_TO_TEXT
        source = ConversationFile(str(talks)) if text else ShardFolder(str(shapes / "train"))
        build = builder(source.open(), task, model.preprocessing())
        for step, numbers in enumerate(pieces):
            batch = build(step, numbers, numbers)
            if text:
                batch.labels[[n in silent for n in numbers]] = IGNORED
                batch.label_indices = label_indices(batch.labels)
            batch.may_show |= tasks is not None
            batch.may_have_source |= tasks is not None and model.generation.takes_source
            made[step][batch.objective] = batch
    return [each if len(each) > 1 else next(iter(each.values())) for each in made]


def sizes(*pieces: int, first: int = 0) -> list[list[int]]:
    """Consecutive samples, so many in each piece."""
    starts = [first + sum(pieces[:n]) for n in range(len(pieces))]
    return [list(range(start, start + size)) for start, size in zip(starts, pieces, strict=True)]


class Listed:
    """A loader of these batches from number `start` on; its length is that of the whole epoch."""

    def __init__(self, batches: list[Any], start: int = 0) -> None:
        self.batches, self.start = batches, start

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches[self.start :])


class Steps(Callback):
    """Notes gradients, and the loss that is logged, of each optimizer step."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.losses: list[float] = []
        self.taken = 0

    def on_train_start(self, trainer, module):
        self.taken = trainer.global_step

    def on_before_optimizer_step(self, trainer, module, optimizer):
        found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
        self.gradients.append(gather_state_dict(found))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step > self.taken:
            self.taken = trainer.global_step
            self.losses.append(trainer.callback_metrics["train/loss"].item())


def trainer(callbacks: tuple[Callback, ...] = (), **options: Any) -> Trainer:
    """A quiet one on the CPU."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "accelerator": "cpu"}
    quiet |= {"use_distributed_sampler": False, "log_every_n_steps": 1}
    return Trainer(**{**quiet, **options}, callbacks=list(callbacks))


def fit(
    model: Any,
    batches: list[Any],
    accumulate: int,
    steps: int = 1,
    callbacks: tuple[Callback, ...] = (),
    start: int = 0,
    resume: Path | None = None,
    **options: Any,
) -> tuple[Steps, Trainer]:
    """Steps of `accumulate` batches each, from batch `start` on, and the Trainer that took them."""
    seen = Steps()
    options = {"max_steps": steps, "accumulate_grad_batches": accumulate, **options}
    runner = trainer((seen, *callbacks), limit_val_batches=0, **options)
    loader = AccumulationLoader(Listed(batches, start), runner)
    runner.fit(model, loader, ckpt_path=resume, weights_only=True)
    return seen, runner


def validated(model: Any, batches: list[Any], **options: Any) -> dict[str, float]:
    """Metrics that a validation on these batches logs."""
    runner = trainer(**options)
    runner.validate(model, Listed(batches), verbose=False)
    return {name: value.item() for name, value in runner.callback_metrics.items()}


def apart(a, b):
    """Norm of the difference of two dicts of tensors over the norm of the second."""
    assert a.keys() == b.keys() and a
    squares = [((a[n] - b[n]).double().square().sum(), b[n].double().square().sum()) for n in b]
    return float((sum(d for d, _ in squares) / sum(s for _, s in squares)) ** 0.5)


def plain(model: Any, batch: Any) -> tuple[dict[str, torch.Tensor], float]:
    """Gradients and loss of one batch, without a Trainer."""
    model.configure_model()
    model.train().zero_grad()
    loss = torch.stack([model.step(each)[0] for each in batches_in(batch)]).sum()
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found, loss.item()
