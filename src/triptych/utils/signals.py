"""Termination signals, and the processes that a run consists of.

A handler only sets a flag. The work is done by a thread, which reads signals from
the file that Python's C handler writes them to: so a signal is answered also while the main thread
waits inside of a collective, where no Python code runs. Once training has begun, the flag is read
between two steps, by all ranks together (`triptych.callbacks.Checkpoint`), and a time limit ends
processes that still wait then. At any other time the process ends at once.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from subprocess import Popen
from typing import Any, NoReturn

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
PARENT = "TRIPTYCH_FIRST_RANK"  # environment: the process that started the ranks of its machine
POLL = 0.25  # seconds between looks at the other processes
GRACE = 5.0  # seconds for processes to end by themselves


class Terminated(SystemExit):
    """Raised between two steps after a signal; its code is 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Supervisor:
    """The signals of this process, and its relation to the other ranks of this machine."""

    def __init__(self) -> None:
        self.received: int | None = None
        """The first signal to end, of this process or of another rank."""
        self.deferred = False
        """Whether the main thread answers a signal, between two steps; else the process ends."""
        self.limit = 120.0
        """Seconds between a signal and the end, at the latest, of a process that defers it."""
        self.children: Sequence[Popen] = ()
        """The other ranks of this machine, where this process has started them."""
        self.resume = "--ckpt_path=auto resumes the run from the last whole checkpoint"
        """Part of the sentences about an early end: what goes on with the work."""
        self.announce: Callable[[int], object] | None = None
        """Function that sends the exit status of this rank to the others, if they are connected."""
        self._parent: int | None = None
        self._owner = False
        self._before: dict[int, Any] = {}
        self._noted, self._interrupts, self._flagged_interrupts = False, 0, 0
        self._ended: set[int] = set()
        self._timer: threading.Timer | None = None
        self._thread: threading.Thread | None = None
        self._exit = threading.Lock()  # held by the thread that ends the process

    # Signals ------------------------------------------------------------------------------------

    def install(self, owner: bool) -> bool:
        """Note signals from now on; what others handle or ignore is left to them.

        Args:
            owner: the process exists for this run, so it may end without unwinding.

        Returns:
            Whether this call installed the handlers: not if they were, nor outside of the main
            thread.
        """
        if self._before or threading.current_thread() is not threading.main_thread():
            return False
        self.received, self.deferred, self._owner = None, False, owner
        self._noted, self._interrupts, self._flagged_interrupts = False, 0, 0
        self._start()
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in ENDING:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                self._before[number] = signal.signal(number, self._flag)
        return True

    def restore(self) -> None:
        """Undo `install`."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        self._before, self.deferred = {}, False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @contextlib.contextmanager
    def handled(self, resume: str | None = None) -> Iterator[None]:
        """Note signals inside of the block, in a process that exists for it.

        Args:
            resume: what goes on with the work, in place of `resume`, inside of the block.
        """
        installed, before = self.install(owner=True), self.resume
        self.resume = resume or before
        try:
            yield
        finally:
            self.resume = before
            if installed:
                self.restore()

    def terminated(self, number: int, sentence: str | None) -> Terminated:
        """The exception for a signal, be it another rank's, that all ranks have agreed to end for.

        Says `sentence`, unless the process is ending already.
        """
        with self._exit:
            if sentence is not None:
                say(sentence)
        if not self._noted:
            self._begin(number, self.limit)
        return Terminated(number)

    def _flag(self, number: int, frame: Any) -> None:
        if self.received is None:
            self.received = number
        self._flagged_interrupts += number == signal.SIGINT
        if self._flagged_interrupts > 1 and not self._owner:
            raise KeyboardInterrupt  # a second Ctrl-C in somebody's own program

    def _note(self, number: int) -> None:
        """Act on a signal, in the thread."""
        if number not in self._before:
            return
        self._interrupts += number == signal.SIGINT
        if not self._noted:
            self._begin(number, self.limit)
            if number == signal.SIGINT and is_first_rank():
                say("the run ends after this step; Ctrl-C again ends it at once.")
        elif number == signal.SIGINT and self._interrupts == 2 and self._owner:
            self.leave(128 + number)

    def _begin(self, number: int, limit: float) -> None:
        """The first signal: pass it on, then end now or by the limit."""
        self._noted = True
        if self.received is None:
            self.received = number
        for child in self.children:  # as SIGTERM: a terminal's Ctrl-C has reached them already
            _send(child, signal.SIGTERM)
        if not self.deferred:
            sentence = f"ended by {signal.Signals(number).name}." if is_first_rank() else None
            self.leave(128 + number, sentence, announce=True)
        if self._owner or number != signal.SIGINT:
            limit += 0 if self._parent is None else GRACE  # the first rank ends its children
            self._timer = threading.Timer(limit, self._overdue, (number, limit))
            self._timer.daemon = True
            self._timer.start()

    def _overdue(self, number: int, limit: float) -> None:
        self.leave(
            128 + number,
            f"{signal.Signals(number).name}: still waiting after {limit:g} s, so this process ends "
            f"at once; {self.resume}.",
        )

    # Processes ----------------------------------------------------------------------------------

    def watch_parent(self) -> None:
        """Name this process to those that it starts; end with the one that started it."""
        started = os.environ.get(PARENT) == str(os.getppid())
        if started and os.environ.get("LOCAL_RANK", "0") != "0":
            self._parent = os.getppid()
            self._start()
        os.environ[PARENT] = str(os.getpid())

    def watch_children(self, children: Sequence[Popen]) -> None:
        """End when one of the ranks that this process has started fails."""
        self.children, self._ended = children, set()
        self._start()

    def stop_watching(self) -> None:
        """The ranks are done with each other: each ends when it likes."""
        self.children, self._parent = (), None
        os.environ.pop(PARENT, None)

    @property
    def is_family(self) -> bool:
        """Whether this process started other ranks, or was started by the first one."""
        return bool(self.children) or self._parent is not None

    def _start(self) -> None:
        if self._thread is None:
            self._reader, self._writer = socket.socketpair()
            self._reader.settimeout(POLL)
            self._writer.setblocking(False)
            self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                for number in self._reader.recv(64):
                    self._note(number)
            if not self._exit.locked():
                self._look()

    def _look(self) -> None:
        """See to it that no rank outlives another."""
        for place, child in enumerate(self.children, 1):
            code = child.poll()
            if code and place not in self._ended:
                self._ended.add(place)
                self._child_ended(place, code)
        if self._parent is not None and os.getppid() != self._parent:
            if self.received is not None:
                self.leave(128 + self.received)
            speaks = os.environ.get("LOCAL_RANK") == "1"
            self.leave(
                1, f"rank 0 has ended, so the others end; {self.resume}." if speaks else None
            )

    def _child_ended(self, place: int, code: int) -> None:
        if self.received is not None:
            return
        number = code - 128 if code > 128 else -code
        if number in ENDING:  # a signal to only that rank; this one may be about to end as well
            self._begin(number, GRACE)
            return
        rank = int(os.environ.get("NODE_RANK", 0)) * (len(self.children) + 1) + place
        if code in (1, 2):  # it has said why
            self.leave(code)
        try:
            how = f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            how = f"ended with status {code}"
        self.leave(1, f"rank {rank} {how}, so the others end; {self.resume}.")

    # Ending -------------------------------------------------------------------------------------

    def wait_for_children(self) -> None:
        """Wait until the ranks that this process has started are gone, at most for the limit."""
        with self._exit:  # whatever they end with
            self._wait(self.limit)

    def leave(self, status: int, sentence: str | None = None, announce: bool = False) -> NoReturn:
        """End this process and those that it has started, without unwinding.

        The first caller's status and sentence hold. With `announce` the other ranks are notified.
        """
        self._exit.acquire()
        if sentence is not None:
            say(sentence)
        if announce and self.announce is not None:
            self.announce(status)
        if self._noted:  # the signal was passed on
            self._wait(GRACE)
        for child in [*self.children, *multiprocessing.active_children()]:
            with contextlib.suppress(OSError):
                child.kill()
        self._wait(GRACE)
        flush = threading.Thread(target=_flush, daemon=True)  # the main thread may hold the streams
        flush.start()
        flush.join(1.0)
        os._exit(status)

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while any(child.poll() is None for child in self.children) and time.monotonic() < end:
            time.sleep(0.02)

    def _after_fork(self) -> None:
        """In a new process: signals are its own, and it watches nobody."""
        before = self._before
        self.__init__()
        if before:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)


def is_first_rank() -> bool:
    """Whether this process is the one that speaks; known before any connection to the others."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
    return all(os.environ.get(name, "0") == "0" for name in names)


def say(sentence: str) -> None:
    """A line on standard error, at once, from any thread."""
    start = "\n" if os.isatty(2) else ""  # a progress bar's line has no end
    with contextlib.suppress(OSError):
        os.write(2, f"{start}triptych: {sentence}\n".encode())


def ignore_in_worker(_: int = 0) -> None:
    """Let a data loader's process live through signals to the whole group: its parent ends it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    threading.Thread(target=_await_parent, daemon=True).start()


def _await_parent() -> None:
    while True:
        sent = signal.sigwaitinfo(ENDING)
        if sent.si_signo == signal.SIGTERM and sent.si_pid == os.getppid():
            os._exit(0)


def _send(child: Popen, number: int) -> None:
    with contextlib.suppress(OSError):
        child.send_signal(number)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


supervisor = Supervisor()
os.register_at_fork(after_in_child=supervisor._after_fork)
