"""`--devices N`: the items of a command shared out over devices, see `triptych.cli.predict`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from triptych.utils.signals import is_first_rank


def is_distributed(parsed: argparse.Namespace) -> bool:
    """Whether the work is shared out, by Lightning or by what started this process."""
    started = max(int(os.environ.get(name) or 1) for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))
    return parsed.devices * parsed.num_nodes > 1 or started > 1


def for_each(
    parsed: argparse.Namespace,
    number: int,
    load: Callable[[Any], Any],
    perform: Callable[[Any, int], Any],
    stdin: str | None = None,
) -> list[Any]:
    """Compute `perform(load(device), n)` for every n below `number`; returns the results in order.

    With several devices each takes every N-th item, and `perform` runs in its process.

    Args:
        load: loads what `perform` needs, on a torch device; None is that of --device.
        stdin: text that was read from standard input, for the processes that read it again.

    Raises:
        SystemExit: in every process but the first, when all items are done.
        UserError: there are no such devices, or an item failed.
    """
    results: list[Any] | None = []
    if number and is_distributed(parsed):
        from triptych.cli.predict import predict

        results = predict(parsed, number, load, perform, stdin)
    elif number:
        state = load(None)
        results = [perform(state, n) for n in range(number)]
    if results is None or (is_distributed(parsed) and not is_first_rank()):
        raise SystemExit(0)
    return results
