"""Parallel map over all cores, with results in order."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor


def parallel_map(work: Callable, items: Sequence, workers: int | None = None) -> Iterator:
    """Map `work` over `items` in several processes; results come in the order of the items.

    Args:
        work: picklable function; sent to each process once, at its start.
        items: picklable arguments.
        workers: number of processes; None takes all cores, 1 runs in this process.
    """
    workers = min(workers or len(os.sched_getaffinity(0)), len(items))
    if workers <= 1:
        yield from map(work, items)
        return
    # Forked processes need not import torch again, and do not call it.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    with ProcessPoolExecutor(workers, context, _set_work, (work,)) as pool:
        try:
            yield from pool.map(_call_work, items)
        finally:
            pool.shutdown(cancel_futures=True)


_work: list[Callable] = []  # of this worker process


def _set_work(work: Callable) -> None:
    _work[:] = [work]


def _call_work(item):
    return _work[0](item)
