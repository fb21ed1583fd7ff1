"""`--devices N`: items of a command shared over devices, see `triptych.cli.predict`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from triptych.utils.signals import is_first_rank


def is_distributed(parsed: argparse.Namespace) -> bool:
    """Whether several processes share the items, started by Lightning or by another launcher."""
    processes = max(
        int(os.environ.get(name) or 1) for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
    )
    return parsed.devices * parsed.num_nodes > 1 or processes > 1


def for_each(
    parsed: argparse.Namespace,
    number: int,
    load: Callable[[Any], Any],
    compute: Callable[[Any, int], Any],
    stdin: str | None = None,
) -> list[Any]:
    """Compute `compute(load(device), n)` for every n below `number`; return the results in order.

    With several devices, each one computes every N-th item in a process of its own.

    Args:
        load: function that loads the state of `compute` on a torch device; None is --device.
        stdin: text that was read from standard input, for processes that read it again.

    Raises:
        SystemExit: in every process but the first, after the last item.
        UserError: the devices do not exist, or an item failed.
    """
    results: list[Any] | None = []
    if number and is_distributed(parsed):
        from triptych.cli.predict import predict

        results = predict(parsed, number, load, compute, stdin)
    elif number:
        state = load(None)
        results = [compute(state, n) for n in range(number)]
    if results is None or (is_distributed(parsed) and not is_first_rank()):
        raise SystemExit(0)
    return results
