"""A training step of a stage, by Lightning's Trainer, and a run that is resumed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor
from torch.utils.data import IterableDataset

from rehearse import cut
from triptych.callbacks import Checkpoint, FrozenCheck
from triptych.checkpoints.training_checkpoint import read_trained
from triptych.inference.loading import describe_stage
from triptych.modules import UnifiedModule
from triptych.modules.base import target_features
from triptych.training.synthetic_batches import caption_batch, stage_batches
from triptych.utils.documents import read_yaml

STEPS = 2  # of the run that is resumed
FEATURES, CACHED_LOSS = "features.pt", "live_loss.pt"


class Batches(IterableDataset):
    """Batches of one sample from step `start` on, as the stage's losses take them."""

    def __init__(self, model: UnifiedModule, stage: str, features: Tensor | None, start: int = 0):
        self.model, self.stage, self.features, self.start = model, stage, features, start

    def __iter__(self):
        for step in range(self.start, STEPS):
            yield self.batch(step)

    def batch(self, step: int) -> Any:
        """The batch of a step, or one for each objective of the losses."""
        if self.features is not None:
            return caption_batch(self.model, 1, step=step, features=self.features, pixels=False)
        return stage_batches(self.model, 1, step=step, edits=self.stage == "edits")


class Watch(Callback):
    """Losses of the steps, and norms of the gradients that the optimizer gets."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.without: list[str] = []
        """Trained parameters without a gradient."""

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))
        # the gradients of the step, clipped: the next step makes them zero
        trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.without = [name for name, p in trained.items() if p.grad is None]
        squares = [float(p.grad.norm()) ** 2 for p in trained.values() if p.grad is not None]
        self.norms.append(math.sqrt(sum(squares)))


def described(
    preset: str, stage: str, layers: int, folder: Path
) -> tuple[UnifiedModule, dict[str, Any]]:
    """The cut model of a stage, not built, and what was cut."""
    flags, cuts, expected = cut.stage_flags(preset, stage, layers)
    flags = [*flags, *cut.weight_flags(preset, stage, flags, folder)]
    model = describe_stage(cut.stage_files(preset, stage), flags)
    return model, {"cut": cuts, "expected_gb": round(expected, 1)}


def trainer_of(preset: str, stage: str, folder: Path, steps: int, *callbacks: Any) -> Trainer:
    """A Trainer with the recipe's precision and clipping."""
    recipe = cut.stage_files(preset, stage)[-1]
    return Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        max_steps=steps,
        max_epochs=-1,
        precision=cut.precision(stage, recipe),
        gradient_clip_val=read_yaml(recipe)["trainer"].get("gradient_clip_val", 1.0),
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def loader(model: UnifiedModule, stage: str, features: Tensor | None = None, start: int = 0):
    """A loader of `Batches`, which come whole."""
    batches = Batches(model, stage, features, start)
    return torch.utils.data.DataLoader(batches, batch_size=None)


def step(preset: str, stage: str, layers: int, folder: Path) -> dict[str, Any]:
    """One step of a stage; stage 2 leaves its features and its loss for `cached`."""
    model, facts = described(preset, stage, layers, folder)
    watch = Watch()
    trainer = trainer_of(preset, stage, folder, 1, watch, FrozenCheck())
    trainer.fit(model, loader(model, stage))
    if stage == "stage2":
        batch = caption_batch(model, 1)
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in str(trainer.precision)):
            torch.save(target_features(batch, model.target_encoder), folder / FEATURES)
        torch.save(torch.tensor(watch.losses[0]), folder / CACHED_LOSS)
    return facts | figures(watch, trainer)


def cached(preset: str, layers: int, folder: Path) -> dict[str, Any]:
    """Two steps of stage 2 on features that `step` left, with a checkpoint after each."""
    model, facts = described(preset, "stage2", layers, folder)
    features = torch.load(folder / FEATURES, weights_only=True)
    watch, save = Watch(), Checkpoint(every_n_train_steps=1, save_top_k=-1)
    save.dirpath = str(folder / "checkpoints")
    trainer = trainer_of(preset, "stage2", folder, STEPS, watch, FrozenCheck(), save)
    trainer.fit(model, loader(model, "stage2", features))
    live = float(torch.load(folder / CACHED_LOSS, weights_only=True))
    found = facts | figures(watch, trainer)
    found["match"]["loss on cached features against live ones"] = [
        abs(watch.losses[0] - live) / abs(live),
        1e-5,
    ]
    return found


def resumed(preset: str, layers: int, folder: Path) -> dict[str, Any]:
    """The second step again, from the checkpoint after the first: the same bits."""
    model, facts = described(preset, "stage2", layers, folder)
    first, last = (checkpoint(folder, number) for number in (1, STEPS))
    watch = Watch()
    trainer = trainer_of(preset, "stage2", folder, STEPS, watch, FrozenCheck())
    features = torch.load(folder / FEATURES, weights_only=True)
    trainer.fit(model, loader(model, "stage2", features, start=1), ckpt_path=first)
    expected = read_trained(last, average=False)[0]
    own = model.trained_state()
    different = [n for n in expected if n not in own or not torch.equal(own[n], expected[n])]
    found = facts | figures(watch, trainer)
    found["match"]["tensors that differ from the run that went on"] = [len(different), 0]
    found["match"]["tensors of one of the two alone"] = [len(own.keys() ^ expected.keys()), 0]
    return found


def checkpoint(folder: Path, step: int) -> Path:
    """The training checkpoint after a step of `cached`."""
    (found,) = (folder / "checkpoints").glob(f"*{step:08d}.ckpt")
    return found


def figures(watch: Watch, trainer: Trainer) -> dict[str, Any]:
    """Losses, norms, and the numbers that must match."""
    most = trainer.gradient_clip_val or math.inf
    finite = all(math.isfinite(each) for each in [*watch.losses, *watch.norms])
    return {
        "loss": [round(each, 5) for each in watch.losses],
        "precision": str(trainer.precision),
        "without_gradient": watch.without[:5],
        "match": {
            "losses and gradients that are not finite": [0 if finite else 1, 0],
            "gradient norm above the clipping": [max(0.0, max(watch.norms) / most - 1), 1e-3],
            "gradients that are zero as a whole": [int(min(watch.norms) == 0), 0],
        },
    }
