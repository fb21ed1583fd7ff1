"""Fits in one process of several, and a function that starts two.

Use `run_ranks` for tests of two ranks; this file, as a program, is one of them:

RANK=0 LOCAL_RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... \\
    python tests/helpers/ranks.py plan.json
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from builders import ROOT, data, needed, unified
from lightning import Callback, Trainer
from processes import started
from split_batches import cut, described, validated
from split_batches import fit as fit_batches
from torch import distributed
from torch.distributed.tensor import DTensor

from triptych.callbacks import Checkpoint
from triptych.checkpoints import WeightFiles
from triptych.interfaces import batches_in
from triptych.loss import FlowConfig
from triptych.training import muon
from triptych.training.execution import Execution
from triptych.training.fsdp import gather_state_dict
from triptych.training.strategies import LeanDDPStrategy, ShardedStrategy

STRATEGIES = {
    "auto": lambda: "auto",
    "ddp": lambda: LeanDDPStrategy(process_group_backend="gloo"),
    "fsdp2": ShardedStrategy,
    "fsdp2_files": lambda: ShardedStrategy(save_sharded=True),
}


class Watch(Callback):
    """Records losses, samples, the first gradients before clipping, and this rank's parameters."""

    def __init__(self) -> None:
        self.samples: list[list[Any]] = []
        self.losses: list[float] = []
        self.gradients: dict[str, Any] = {}
        self.facts: dict[str, Any] = {}

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if not self.gradients:
            grads = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
            self.gradients = gather_state_dict({name: g.clone() for name, g in grads.items()})

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        ids = [each for part in batches_in(batch) for each in part.sample_ids.tolist()]
        keys = [each for part in batches_in(batch) for each in part.keys]
        ranks = [None] * trainer.world_size
        if trainer.world_size > 1:
            distributed.all_gather_object(ranks, list(zip(ids, keys, strict=True)))
        else:
            ranks = [list(zip(ids, keys, strict=True))]
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.samples.append([])
        self.samples[-1] += [each for rank in ranks for each in rank]

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.losses.append(trainer.callback_metrics["train/loss"].item())

    def on_train_start(self, trainer, module):
        parameters = dict(module.named_parameters())
        self.facts = {
            "sharded": sum(isinstance(p, DTensor) for p in parameters.values()),
            "replicated": sum(not isinstance(p, DTensor) for p in parameters.values()),
            "here": sum(_local(p).numel() for p in parameters.values()),
            "all": sum(p.numel() for p in parameters.values()),
        }

    def on_train_end(self, trainer, module):
        if isinstance(trainer.strategy, LeanDDPStrategy):
            known = trainer.strategy.model._get_ddp_logging_data()
            sizes = [int(size) for size in known["bucket_sizes"].split(", ")]
            self.facts["bucket_bytes"] = sum(sizes)
        trained = [p for p in module.parameters() if p.requires_grad]
        self.facts["trained_bytes"] = sum(4 * p.numel() for p in trained)


def _local(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def fit(
    shapes: Path,
    out: Path,
    name: str,
    weights: dict[str, str],
    strategy: str = "auto",
    stage: str = "stage2",
    steps: int = 3,
    batch: int = 4,
    accumulate: int = 1,
    buckets: int = 4,
    every: int = 1000,
    resume: str | None = None,
    execution: dict[str, Any] | None = None,
    shift: float | str = 1.0,
    optimizer: str | None = None,
) -> dict[str, Any]:
    """Fit once; the first rank writes out/NAME.pt with the trained state, losses and facts."""
    watch = Watch()
    trainer = Trainer(
        accelerator="cpu",
        devices=1 if strategy == "auto" else int(os.environ["WORLD_SIZE"]),
        strategy=STRATEGIES[strategy](),
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        default_root_dir=out / name,
        logger=False,
        callbacks=[Checkpoint(every_n_train_steps=every, save_top_k=-1), watch],
        enable_progress_bar=False,
        enable_model_summary=False,
        val_check_interval=2 * accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
        log_every_n_steps=1,
    )
    model = unified(
        stage,
        weights=needed(WeightFiles(**weights), stage),
        build_decoder=False,
        execution=Execution(**(execution or {})),
    )
    model.generation.flow = FlowConfig(shift=shift)
    model.optimization = replace(model.optimization, optimizer=optimizer)
    if shift == "auto":
        type(model.encoder).feature_std = None  # measured, as of an encoder that standardizes not
    module = data(shapes, stage, batch_size=batch, length_bucket_batches=buckets)
    with patch.object(muon, "orthogonalized", side_effect=muon.orthogonalized) as orthogonalized:
        trainer.fit(model, module, ckpt_path=resume and out / resume, weights_only=True)
    watch.facts["orthogonalized"] = orthogonalized.call_count
    names = model.trained_state().keys()
    whole = trainer.strategy.lightning_module_state_dict()
    state = gather_state_dict({name: tensor for name, tensor in whole.items() if name in names})
    result = {
        "state": state,
        "losses": watch.losses,
        "samples": watch.samples,
        "gradients": watch.gradients,
        "facts": watch.facts,
    }
    if trainer.is_global_zero:
        torch.save(result, out / f"{name}.pt")
    return result


def run_ranks(script: str, plan: Path) -> list[str]:
    """Run a helper script with its plan as two ranks; returns their outputs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    command = [sys.executable, ROOT / "tests" / "helpers" / script, plan]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                started(
                    command,
                    seconds=800,
                    env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    **output,
                )
            )
            for rank in range(2)
        ]
        said = [process.communicate()[0] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(said)[-6000:]
    return said


def settings_of(case: dict[str, Any]) -> dict[str, Any]:
    """Settings of the model of a case, which comes from a JSON file."""
    settings = dict(case.get("settings", {}))
    if "execution" in settings:
        settings["execution"] = Execution(**settings["execution"])
    return settings


def run_case(case: dict[str, Any], models: dict[Any, Any], plan: dict[str, Any]) -> Any:
    """Train or validate on this rank's pieces of a batch, see `split_batches.cut`."""
    strategy, stage, pieces = (
        case["strategy"],
        case["stage"],
        case["pieces"][int(os.environ["RANK"])],
    )
    name = (strategy, stage, json.dumps(case.get("settings")))
    if name not in models:
        models[name] = described(stage, WeightFiles(**plan["weights"]), **settings_of(case))
    model = models[name]
    shapes, talks = Path(plan["shapes"]), Path(plan["talks"])
    tasks = case.get("tasks") and [case["tasks"][int(os.environ["RANK"])]]
    batches = cut(model, stage, shapes, talks, pieces, case.get("silent", []), tasks)
    options = {"devices": 2, "strategy": STRATEGIES[strategy]()}
    if case.get("validate"):
        return validated(model, batches, **options)
    accumulate = case.get("accumulate", len(pieces))
    seen, _ = fit_batches(model, batches, accumulate, -(-len(pieces) // accumulate), **options)
    return {"gradients": seen.gradients, "losses": seen.losses}


if __name__ == "__main__":
    plan = json.loads(Path(sys.argv[1]).read_text())
    for each in plan["fits"]:
        fit(Path(plan["shapes"]), Path(plan["out"]), weights=plan["weights"], **each)
    models: dict[Any, Any] = {}
    found = [run_case(case, models, plan) for case in plan["cut"]]
    if os.environ["RANK"] == "0":
        torch.save(found, Path(plan["out"]) / "cut.pt")
