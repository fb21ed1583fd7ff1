"""A fit with callbacks in one process of two, started by tests/callbacks/test_callbacks_ranks.py.

RANK=0 LOCAL_RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python FILE plan.json
"""

import json
import logging
import sys
from pathlib import Path

import torch
from builders import data, needed, unified
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from ranks import STRATEGIES

from triptych.callbacks import (
    EMA,
    Checkpoint,
    FrozenCheck,
    GradientNorms,
    NonFiniteGuard,
    RunSummary,
    Throughput,
)
from triptych.checkpoints import WeightFiles
from triptych.training.fsdp import gather_state_dict


class Spoils(Callback):
    """One rank's loss is not a number in one step."""

    def __init__(self, step, rank):
        self.step, self.rank = step, rank

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        here = trainer.global_rank == self.rank and trainer.global_step + 1 == self.step
        plain = type(module).step

        def step(batch):
            loss, metrics = plain(module, batch)
            return loss * (float("nan") if here else 1.0), metrics

        module.step = step


class Follows(Callback):
    """Records weights, average and gradient norm after every step, unsharded."""

    def __init__(self):
        self.weights, self.average, self.norms = [], [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gather_state_dict(grads)])
        self.norms.append(flat.double().norm().item())

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        ema = next(callback for callback in trainer.callbacks if isinstance(callback, EMA))
        trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
        for kept, tensors in ((self.weights, trained), (self.average, ema.average)):
            kept.append({name: t.clone() for name, t in gather_state_dict(tensors).items()})


def fit(shapes, out, name, weights, strategy, steps, counting=True, spoilt=None, resume=None):
    follows, guard = Follows(), NonFiniteGuard()
    callbacks = [EMA(decay=0.9), guard, GradientNorms(), FrozenCheck(every_n_steps=2)]
    callbacks += [Throughput(), RunSummary()] if counting else []
    callbacks += [Spoils(spoilt, rank=1)] if spoilt else []
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=STRATEGIES[strategy](),
        max_steps=steps,
        logger=CSVLogger(out, None, name),
        callbacks=[*callbacks, follows, Checkpoint(every_n_train_steps=2, save_top_k=-1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        gradient_clip_val=1.0,
        log_every_n_steps=1,
    )
    model = unified("stage2", weights=needed(WeightFiles(**weights), "stage2"), build_decoder=False)
    trainer.fit(model, data(shapes, batch_size=2), ckpt_path=resume and out / resume)
    if trainer.is_global_zero:
        known = {"weights": follows.weights, "average": follows.average, "norms": follows.norms}
        torch.save({**known, "skipped": guard.skipped}, out / f"{name}.pt")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    plan = json.loads(Path(sys.argv[1]).read_text())
    for each in plan["fits"]:
        fit(Path(plan["shapes"]), Path(plan["out"]), weights=plan["weights"], **each)
