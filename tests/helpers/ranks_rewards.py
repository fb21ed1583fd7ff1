"""Fits by rewards or pairs in one of several processes; its plan: {"out", "weights", "fits"}."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from preference_models import preference_model, preferences
from ranks import STRATEGIES, Watch
from reward_models import model_of, prompts

from triptych.callbacks import Checkpoint
from triptych.checkpoints import WeightFiles
from triptych.training.fsdp import gather_state_dict


def fit(
    out: Path,
    weights: dict[str, str],
    name: str,
    strategy: str = "auto",
    algorithm: str = "nft",
    steps: int = 3,
    batch: int = 4,
    resume: str | None = None,
    pairs: str | None = None,
) -> dict[str, Any]:
    """Fit once, by a reward or by `pairs`; the first rank writes out/NAME.pt and out/NAME.ckpt."""
    watch, together = Watch(), {"batch_size": batch, "shared_batch": True}
    trainer = Trainer(
        accelerator="cpu",
        devices=1 if strategy == "auto" else int(os.environ["WORLD_SIZE"]),
        strategy=STRATEGIES[strategy](),
        max_steps=steps,
        default_root_dir=out / name,
        logger=False,
        callbacks=[Checkpoint(every_n_train_steps=1000), watch],
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1,
    )
    files = WeightFiles(**weights)
    if pairs:
        model, module = preference_model(files), preferences(Path(pairs), **together)
    else:
        model, module = model_of(files, algorithm), prompts(**together)
    trainer.fit(model, module, ckpt_path=resume and out / f"{resume}.ckpt", weights_only=True)
    rewards = {
        key: value.item() for key, value in trainer.logged_metrics.items() if "reward" in key
    }
    names = model.trained_state().keys()
    whole = trainer.strategy.lightning_module_state_dict()
    state = gather_state_dict({key: tensor for key, tensor in whole.items() if key in names})
    trainer.save_checkpoint(out / f"{name}.ckpt")
    result = {
        "state": state,
        "losses": watch.losses,
        "gradients": watch.gradients,
        "samples": watch.samples,
        "rewards": rewards,
    }
    if trainer.is_global_zero:
        torch.save(result, out / f"{name}.pt")
    return result


if __name__ == "__main__":
    plan = json.loads(Path(sys.argv[1]).read_text())
    for settings in plan["fits"]:
        fit(Path(plan["out"]), plan["weights"], **settings)
