"""Work over all cores, results in order."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor


def each(work: Callable, items: Sequence, workers: int | None = None) -> Iterator:
    """work(item) of each item, in order, by several processes.

    Args:
        work: picklable; it goes to each process once, at its start.
        workers: processes; None takes all cores. One works in this process.
    """
    workers = min(workers or len(os.sched_getaffinity(0)), len(items))
    if workers <= 1:
        yield from map(work, items)
        return
    # Forked processes need not import torch again; they run nothing of it.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    with ProcessPoolExecutor(workers, context, _hold, (work,)) as pool:
        try:
            yield from pool.map(_work, items)
        finally:
            pool.shutdown(cancel_futures=True)


_held: list[Callable] = []


def _hold(work: Callable) -> None:
    _held[:] = [work]


def _work(item):
    return _held[0](item)
