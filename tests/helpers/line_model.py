"""A model of two lines with known batches, and a fit that logs to CSV.

Use it for callbacks that follow the numbers of a training and do not need a real model.
"""

import csv
from pathlib import Path

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from triptych.callbacks import (
    EMA,
    Checkpoint,
)


class Samples:
    """Stand-in for a Batch: numbers [B], and the names of their samples."""

    def __init__(self, numbers):
        self.keys = [f"sample-{n}" for n in numbers]
        self.numbers = torch.tensor(numbers, dtype=torch.float32)

    def __len__(self):
        return len(self.keys)


class Loader:
    """Batches of two of the numbers 0 to 39, in order; goes on where a checkpoint was made."""

    def __init__(self):
        self.next = 0

    def __len__(self):
        return 20

    def __iter__(self):
        while self.next < len(self):
            self.next += 1
            yield Samples([2 * self.next - 2, 2 * self.next - 1])

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


class Numbers(LightningDataModule):
    def train_dataloader(self):
        return Loader()

    def val_dataloader(self):
        return DataLoader(range(2), batch_size=2, collate_fn=Samples)


class Line(LightningModule):
    """Two layers that train, one that is frozen; `value` times the loss in the steps `bad`.

    Steps are counted from 1. `of_gradient`: not the loss is bad in these steps, but its gradient.
    """

    def __init__(self, bad=(), value=float("nan"), fused=True, of_gradient=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(1, 4), nn.Linear(4, 1)
        self.frozen = nn.Linear(1, 1).requires_grad_(False)
        self.trained = {n for n, p in self.named_parameters() if p.requires_grad}
        self.bad, self.value, self.fused, self.of_gradient = set(bad), value, fused, of_gradient
        self.losses = []

    def trained_state(self):
        return {n: p for n, p in self.named_parameters() if n in self.trained}

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch

    def training_step(self, batch, batch_idx):
        x = batch.numbers[:, None] / 40
        loss = (self.second(torch.tanh(self.first(x))) - self.frozen(x)).square().mean()
        if batch_idx + 1 in self.bad and self.of_gradient:  # sqrt at 0: the loss is finite
            loss = loss + (self.second.bias - self.second.bias.detach()).sqrt().sum()
        elif batch_idx + 1 in self.bad:
            loss = loss * self.value
        self.log("train/loss", loss, prog_bar=True)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.AdamW(
            [p for p in self.parameters() if p.requires_grad], lr=0.05, fused=self.fused
        )


class Snapshots(Callback):
    """Everything that a step may change, after each of them."""

    def __init__(self):
        self.weights, self.optimizer, self.average = [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.weights.append(snapshot(module))
        states = trainer.optimizers[0].state_dict()["state"]
        self.optimizer.append({(n, k): v.clone() for n, s in states.items() for k, v in s.items()})
        for callback in trainer.callbacks:
            if isinstance(callback, EMA):
                self.average.append({n: t.clone() for n, t in callback.average.items()})


def snapshot(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def fit(model, folder, *callbacks, steps=6, every=1, datamodule=None, ckpt_path=None, **options):
    options = {"enable_progress_bar": False, **options}
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        log_every_n_steps=every,
        logger=CSVLogger(folder, None, "run"),
        callbacks=list(callbacks),
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        num_sanity_val_steps=0,
        **options,
    )
    datamodule = datamodule or Numbers()
    trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def logged(folder, name):
    """step -> value of a column of the run's metrics.csv."""
    rows = csv.DictReader((Path(folder) / "run/metrics.csv").open())
    return {int(row["step"]): float(row[name]) for row in rows if row.get(name)}
