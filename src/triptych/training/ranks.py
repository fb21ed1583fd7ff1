"""Joint decisions and failures of several ranks, and replacements of Lightning's handlers."""

from __future__ import annotations

import atexit
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

FAILED = "triptych/failed"  # key in the process group's store: status of the first failed rank
NOTICED = "triptych/noticed"  # keys, one a rank: it has lost contact with another one
POLL_STORE = 1.0  # seconds between reads of the key
_received: list[int] = []  # status announced by another rank


# In place of Lightning's --------------------------------------------------------------------------


def take_over(trainer: Trainer) -> None:
    """Disable the signal handling of Lightning (2.6).

    Its handler broadcasts even inside another collective; its training loop broadcasts before each
    batch, which synchronizes with the device; on SLURM, another handler saves.
    """
    trainer._signal_connector.register_signal_handlers = _nothing
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing


def watch_launched() -> None:
    """Let the supervisor watch the ranks that Lightning launches from now on.

    Lightning's own observer kills the first rank without a message when another one ends with a
    non-zero status.
    """
    subprocess_script._launch_process_observer = supervisor.watch_children
    supervisor.watch_parent()


def _nothing() -> None:
    pass


# Decisions ----------------------------------------------------------------------------------------


class Agreement:
    """Asynchronous maximum of a number over all ranks, available one call later.

    The ranks exchange their numbers on the host in the background, so that a step waits neither for
    the device nor for the network. All ranks must call it equally often.
    """

    def __init__(self) -> None:
        several = several_ranks()
        self._group = distributed.new_group(backend="gloo") if several else None
        self._pending: tuple[distributed.Work, torch.Tensor] | None = None

    def __call__(self, number: int) -> int:
        """Return the maximum of the previous call; in a single process, of this call."""
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
        """Free the connections; collective."""
        if self._group is not None:
            if self._pending is not None:
                self._pending[0].wait()
            distributed.destroy_process_group(self._group)


def several_ranks() -> bool:
    """Whether this process is in an initialized process group of several ranks."""
    started = distributed.is_available() and distributed.is_initialized()
    return started and distributed.get_world_size() > 1


# Failures -----------------------------------------------------------------------------------------


def announce_failures() -> None:
    """Watch for failures of other ranks in a background thread; end when one fails.

    This also ends ranks that wait in a collective which does not detect the failure, such as
    NCCL's.
    """
    if not several_ranks() or any(t.name == FAILED for t in threading.enumerate()):
        return
    ending = threading.Event()
    listener = threading.Thread(target=_listen, args=(_store(), ending), name=FAILED, daemon=True)
    listener.start()
    # The interpreter ends a daemon thread in the middle of a call: C++ code that comes back from
    # the store then aborts the process, and a finished run has failed.
    atexit.register(_end_listening, listener, ending)
    supervisor.announce = _announce_and_stay


def _end_listening(listener: threading.Thread, ending: threading.Event) -> None:
    ending.set()
    listener.join(GRACE + POLL_STORE)


def _store() -> distributed.Store:
    """Separate connection to the process group's store.

    A thread that waits on the group's own connection holds its lock, as the main thread does during
    initialization.
    """
    return _connection(distributed.distributed_c10d._get_default_store())


@functools.lru_cache(1)  # of one process group at a time
def _connection(store: distributed.Store) -> distributed.Store:
    return store.clone()


def _listen(store: distributed.Store, ending: threading.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the store ends with the first rank
        while not store.check([FAILED]):
            if ending.wait(POLL_STORE):
                return
        _received.append(int(store.get(FAILED)))
    if _received and not ending.wait(GRACE):  # this rank may be ending by itself
        supervisor.leave(_received[0])


def _announce(status: int, sentence: str | None = None) -> int | None:
    """Print why this rank ends and send its status to the others, unless another rank was first.

    Returns:
        The status of the rank that was first, after its message; None if this rank was, or if it
        is unknown.
    """
    if _received:
        return _received[0]
    if (before := _query(_first_status)) is not None:
        return before
    if sentence is not None:
        say(sentence)
    _query(lambda: _store().set(FAILED, str(status)))
    return None


def _first_status() -> int | None:
    """Status of the rank that failed before this one; None if this is the first."""
    if _store().add(FAILED + "/count", 1) == 1:
        return None
    _store().wait([FAILED], timedelta(seconds=GRACE))
    return int(_store().get(FAILED))


def _query(call: Callable[[], int | None]) -> int | None:
    """Result of a call to the store; None if the store is gone or does not respond in time."""
    results = []

    def run() -> None:
        with contextlib.suppress(RuntimeError, ValueError):
            results.append(call())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(GRACE + POLL_STORE)
    return results[0] if results else None


def _announce_and_stay(status: int, sentence: str | None = None) -> int | None:
    """Announce as `_announce`, and wait until all ranks can have read the status.

    The first rank, which holds the store, waits whoever announced: with the store gone, a rank that
    hangs would never learn of it.
    """
    before = _announce(status, sentence)
    holds_store = several_ranks() and distributed.get_rank() == 0
    if (before is None or holds_store) and not supervisor.is_family:
        time.sleep(5 * POLL_STORE)  # a busy machine may be late
    return before


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Run the block as one of several ranks that all end if one fails; one reports the reason.

    An exception ends the process here if there are other ranks. The message of a UserError is
    printed once; a connection that broke because another rank died is reported in one sentence; for
    any other exception, the rank that raised it prints its traceback.
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
    """UserError in place of torch's error for a dead loader process."""
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
        silent = _silent_ranks()  # meanwhile a supervisor, or torchrun, may end this process
        if supervisor.received is not None:
            supervisor.leave(128 + supervisor.received)
        who = f"rank {', '.join(map(str, silent))} does" if silent else "another rank does"
        _fail(f"{who} not respond, so the others end; {supervisor.resume}.")
    say(f"rank {distributed.get_rank()} failed:" if several_ranks() else "a rank failed:")
    traceback.print_exception(error)
    _fail(None)


def _silent_ranks() -> list[int]:
    """Ranks that are dead or hang, as they have not lost contact themselves; [] if unknown.

    Every other rank notices it within seconds: their connections close, or the same collective
    reaches its timeout.
    """
    _query(lambda: _store().set(f"{NOTICED}/{distributed.get_rank()}", ""))
    time.sleep(GRACE)
    silent: list[int] = []

    def check() -> None:
        found = [n for n in range(distributed.get_world_size()) if not _noticed(n)]
        silent.extend(found)

    _query(check)
    return silent


def _noticed(rank: int) -> bool:
    return _store().check([f"{NOTICED}/{rank}"])


def _fail(sentence: str | None) -> NoReturn:
    """End with the status of the first failed rank; only that one reports the reason."""
    supervisor.leave(_announce_and_stay(1, sentence) or 1)


def lost_contact(error: BaseException | None) -> bool:
    """Whether an exception, or one of its causes, means that another rank is gone."""
    while error is not None:
        if isinstance(error, distributed.DistError):
            return True
        if isinstance(error, RuntimeError) and "gloo/" in str(error):  # gloo has no type of its own
            return True
        error = error.__cause__ or error.__context__
    return False
