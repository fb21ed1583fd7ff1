"""A step of Muon on the tiny preset's generator: torch's own against triptych's, on this machine.

    torch       torch.optim.Muon, which orthogonalizes in bfloat16 on any device
    triptych    `training.muon.Muon`, in float32 on a CPU

The same matrices and gradients, one thread as in a process of `--hardware cpu`. Where the processor
has no arithmetic in bfloat16 (`lscpu` names neither avx512_bf16 nor amx_bf16), torch emulates it.

    python benchmarks/muon.py --out benchmarks/results/muon.json

The last line is one line of JSON.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from reporting import machine, versions, write_result
from torch import nn

from triptych.inference.loading import describe_stage
from triptych.training.muon import Muon, block_matrices
from triptych.utils.paths import presets


def main() -> None:
    """Time the steps of both, and print their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    model = describe_stage([presets()["tiny"]])
    model.generation.build()
    names = block_matrices(model.generation.dit)
    shapes = [p.shape for name, p in model.generation.dit.named_parameters() if name in names]
    seconds = {
        "torch": seconds_of_a_step(shapes, parsed.steps, torch.optim.Muon),
        "triptych": seconds_of_a_step(shapes, parsed.steps, Muon),
    }
    figures = {
        "matrices": len(shapes),
        **{f"{name}_seconds": round(value, 4) for name, value in seconds.items()},
        "ratio": round(seconds["torch"] / seconds["triptych"], 2),
        "processor": torch.backends.cpu.get_cpu_capability(),
    }
    write_result(parsed.out, figures, machine=machine(), versions=versions("torch"))


def seconds_of_a_step(shapes: list[torch.Size], steps: int, optimizer: type) -> float:
    """Median over `steps` steps, after one that makes the state."""
    draws = torch.Generator().manual_seed(0)
    matrices = [nn.Parameter(torch.randn(shape, generator=draws)) for shape in shapes]
    for matrix in matrices:
        matrix.grad = torch.randn(matrix.shape, generator=draws)
    made, times = optimizer(matrices, lr=1e-3), []
    for _ in range(1 + steps):
        began = time.perf_counter()
        made.step()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
