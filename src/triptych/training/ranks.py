"""Several ranks that end as one: decisions, failures, and what of Lightning's stands in the way."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import NoReturn

import torch
from lightning import Trainer
from lightning.pytorch.strategies.launchers import subprocess_script
from torch import distributed

from triptych.utils.errors import UserError
from triptych.utils.signals import GRACE, Terminated, say, supervisor

FAILED = "triptych/failed"  # key of the process group's store: status of the first that failed
POLL_STORE = 1.0  # seconds between looks at it
_heard: list[int] = []  # the status that another rank has announced


# In place of Lightning's --------------------------------------------------------------------------


def take_over(trainer: Trainer) -> None:
    """Keep Lightning (2.6) from answering signals.

    Its handler broadcasts, whatever collective the ranks are in; its training loop broadcasts
    before each batch and waits for the device; on SLURM, another handler saves.
    """
    trainer._signal_connector.register_signal_handlers = _nothing
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing


def watch_launched() -> None:
    """Let the supervisor watch the ranks that Lightning launches from now on.

    Lightning's own observer kills the first rank, without a word, when another has ended with any
    status but 0.
    """
    subprocess_script._launch_process_observer = supervisor.watch_children
    supervisor.watch_parent()


def _nothing() -> None:
    pass


# Decisions ----------------------------------------------------------------------------------------


class Agreement:
    """The largest of the ranks' numbers, the same on all of them, one call later.

    The ranks exchange their numbers on the host and in the background, so that a step waits
    neither for the device nor for the network. All ranks call it equally often.
    """

    def __init__(self) -> None:
        several = several_ranks()
        self._group = distributed.new_group(backend="gloo") if several else None
        self._pending: tuple[distributed.Work, torch.Tensor] | None = None

    def __call__(self, number: int) -> int:
        """The largest number of the call before; of this call in a single process."""
        if self._group is None:
            return number
        before = self._pending
        value = torch.tensor([number])
        work = distributed.all_reduce(
            value, distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        self._pending = work, value
        if before is None:
            return 0
        before[0].wait()
        return int(before[1])

    def close(self) -> None:
        """Free the connections; on all ranks."""
        if self._group is not None:
            if self._pending is not None:
                self._pending[0].wait()
            distributed.destroy_process_group(self._group)


def several_ranks() -> bool:
    """Whether this process is one of several that have found each other."""
    started = distributed.is_available() and distributed.is_initialized()
    return started and distributed.get_world_size() > 1


# Failures -----------------------------------------------------------------------------------------


def announce_failures() -> None:
    """Watch for failures of other ranks once the process group is up; end when one fails.

    So also those end that wait in a collective which does not notice, as NCCL's do not.
    """
    if not several_ranks() or any(t.name == FAILED for t in threading.enumerate()):
        return
    threading.Thread(target=_listen, args=(_store(),), name=FAILED, daemon=True).start()
    supervisor.announce = _announce_and_stay


def _store() -> distributed.Store:
    """A connection of its own to the process group's store.

    A thread that waits in the group's own one holds its lock: the main thread, while the ranks
    find each other.
    """
    return _connection(distributed.distributed_c10d._get_default_store())


@functools.lru_cache(1)  # of one process group at a time
def _connection(store: distributed.Store) -> distributed.Store:
    return store.clone()


def _listen(store: distributed.Store) -> None:
    with contextlib.suppress(RuntimeError):  # the store ends with the first rank
        while not store.check([FAILED]):
            time.sleep(POLL_STORE)
        _heard.append(int(store.get(FAILED)))
    if _heard:
        time.sleep(GRACE)  # this rank may be ending by itself
        supervisor.leave(_heard[0])


def _announce(status: int, sentence: str | None = None) -> int | None:
    """Print why this rank ends and send the others its status, unless another was first.

    Returns:
        The status of the one that was first, once it has said why; None if that is this one, or
        cannot be known.
    """
    if _heard:
        return _heard[0]
    if (before := _asked(_first_status)) is not None:
        return before
    if sentence is not None:
        say(sentence)
    _asked(lambda: _store().set(FAILED, str(status)))
    return None


def _first_status() -> int | None:
    """The status of the rank that failed before this one; None if this is the first."""
    if _store().add(FAILED + "/count", 1) == 1:
        return None
    _store().wait([FAILED], timedelta(seconds=GRACE))
    return int(_store().get(FAILED))


def _asked(question: Callable[[], int | None]) -> int | None:
    """The store's answer; None where it is gone, or does not answer in time."""
    answers = []

    def ask() -> None:
        with contextlib.suppress(RuntimeError, ValueError):
            answers.append(question())

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(GRACE + POLL_STORE)
    return answers[0] if answers else None


def _announce_and_stay(status: int) -> None:
    """Notify the other ranks, and stay until all can have heard of it."""
    if _announce(status) is None:
        _stay()


def _stay() -> None:
    if not supervisor.is_family:  # this process may be the one that holds the store
        time.sleep(2 * POLL_STORE)


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Run the block as one of several ranks: they all end, and one of them reports the reason.

    An exception ends the process here if there are other ranks. The sentence of a UserError is said
    once; a connection that broke because another rank died is one sentence; any other
    exception is a mistake in the program, and its traceback is shown by the rank that raised it.
    """
    try:
        yield
    except BaseException as raised:
        error = _plain(raised)
        if not several_ranks() and not supervisor.is_family:
            if error is raised:
                raise
            raise error from raised
        _end(error)
    supervisor.wait_for_children()
    supervisor.stop_watching()


def _plain(error: BaseException) -> BaseException:
    """A UserError in place of torch's error for a loader process that is gone."""
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid"):
        return UserError(
            "a process that loads data was killed, maybe for want of memory; lower "
            f"--data.num_workers or --data.batch_size; {supervisor.resume}."
        )
    return error


def _end(error: BaseException) -> NoReturn:
    received, lost = supervisor.received, lost_contact(error)
    if isinstance(error, Terminated) or (received is not None and lost):
        supervisor.wait_for_children()
        supervisor.leave(128 + received)
    if isinstance(error, SystemExit):
        supervisor.leave(error.code if isinstance(error.code, int) else 1)
    if isinstance(error, UserError):
        _fail(str(error))
    if lost:
        if supervisor.is_family:
            time.sleep(GRACE)  # the supervisor knows better who ended, and ends this one
        _fail(f"the connection to another rank broke, so this one ends; {supervisor.resume}.")
    say(f"rank {distributed.get_rank()} failed:" if several_ranks() else "a rank failed:")
    traceback.print_exception(error)
    _fail(None)


def _fail(sentence: str | None) -> NoReturn:
    """End with the first rank's status; only the first reports the reason."""
    status = _announce(1, sentence)
    if status is None:
        _stay()
    supervisor.leave(status or 1)


def lost_contact(error: BaseException | None) -> bool:
    """Whether an exception, or what it was raised from, says that another rank is gone."""
    while error is not None:
        if isinstance(error, distributed.DistError):
            return True
        if isinstance(error, RuntimeError) and "gloo/" in str(error):  # gloo has no type of its own
            return True
        error = error.__cause__ or error.__context__
    return False
