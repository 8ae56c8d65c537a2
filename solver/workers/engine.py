"""Where work is done: an engine takes tasks and gives back what became of each, in any order.

A task that raises, or whose process dies, costs only itself. The engine of this module is local processes; Ray is in
:mod:`solver.workers.ray_engine`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from typing import Generic, Protocol, TypeVar

from solver.errors import EngineError, SpecError

T = TypeVar("T")
R = TypeVar("R")

DIED = "the process that solved it died (killed, out of memory, or a crash of native code)"


@dataclass(frozen=True)
class Done(Generic[R]):
    """What became of one task: its value, or an error, or a process that died."""

    index: int
    value: R | None = None
    error: str = ""
    """Type and message of the exception that the work raised."""
    died: bool = False
    detail: str = ""
    """What the engine knows of the death; engines differ in this."""


class Engine(Protocol):
    """Runs tasks somewhere."""

    name: str
    slots: int
    """Tasks that run at once, for the estimate of the time that is left."""

    def run(self, work: Callable[[T], R], tasks: Iterable[T]) -> Generator[Done[R], None, None]:
        """What became of every task, as they end; `tasks` is read as slots become free.

        `work` is a function of a module and is imported where it runs. Closing the iterator stops what still runs.

        Raises
        ------
        EngineError
            No process can be started at all.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...


def engine_of(name: str, address: str, processes: int | None, threads: int) -> Engine:
    """The engine of a name, ``local`` or ``ray``; Ray is imported only when it is asked for.

    Raises
    ------
    SpecError
        The name is another one, or a number is out of range.
    EngineError
        Ray is not installed, or there is no cluster at that address.
    """
    if name == "local":
        return LocalEngine(processes, threads)
    if name != "ray":
        raise SpecError(f"engine {name[:60]!r}: give local or ray")
    from solver.workers.ray_engine import RayEngine

    return RayEngine(address, processes, threads)


def described(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class LocalEngine:
    """Processes of this machine. Each serves one thread of a pool, so that a death is blamed on the right task."""

    name = "local"

    def __init__(self, processes: int | None = None, threads: int = 1) -> None:
        if processes is not None and not 1 <= processes <= 1024:
            raise SpecError(f"processes = {processes}: give a number from 1 to 1024")
        self.slots = processes or max(1, usable_cores() // threads)

    def close(self) -> None:
        """Nothing is held between two runs."""

    def run(self, work: Callable[[T], R], tasks: Iterable[T]) -> Generator[Done[R], None, None]:
        """See :class:`Engine`."""
        numbered = enumerate(tasks)
        crew = _Crew()
        pool = ThreadPoolExecutor(self.slots, thread_name_prefix="sweep")
        pending: set[Future[Done[R]]] = set()
        try:
            while True:
                for index, task in islice(numbered, 2 * self.slots - len(pending)):
                    pending.add(pool.submit(crew.do, work, index, task))
                if not pending:
                    return
                ended, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in ended:
                    yield future.result()
        finally:
            crew.stop()
            pool.shutdown(cancel_futures=True)


class _Crew:
    """One process for each thread that asks, replaced when it dies."""

    def __init__(self) -> None:
        self.mine = threading.local()
        self.lock = threading.Lock()
        self.members: set[_Member] = set()
        self.stopped = False

    def do(self, work: Callable[[T], R], index: int, task: T) -> Done[R]:
        """The task in the process of this thread."""
        member = getattr(self.mine, "member", None) or self._start()
        try:
            future = member.pool.submit(work, task)
        except BrokenProcessPool:  # it died between two tasks: this one is not to blame
            self._bury(member)
            member = self._start()
            future = member.pool.submit(work, task)
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            self._bury(member)
            return Done(index, died=True, detail=member.last_words)
        return Done(index, future.result()) if error is None else Done(index, error=described(error))

    def stop(self) -> None:
        """End the processes, at once: nobody waits for what they do."""
        with self.lock:
            self.stopped = True
            members, self.members = self.members, set()
        for member in members:
            member.end()

    def _start(self) -> _Member:
        member = _Member()
        with self.lock:
            stopped = self.stopped
            self.members.add(member)
        if stopped:
            member.end()
        self.mine.member = member
        return member

    def _bury(self, member: _Member) -> None:
        self.mine.member = None
        with self.lock:
            unburied = member in self.members  # else somebody stops the crew and ends it
            self.members.discard(member)
        if unburied:
            member.end()


class _Member:
    """A pool of one process that has proved to start."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin)
        try:
            number = self.pool.submit(os.getpid).result()
        except BrokenProcessPool:
            self.pool.shutdown()
            raise EngineError(
                "worker processes do not start: a script that sweeps must do so below `if __name__ == '__main__':`"
            ) from None
        alive = multiprocessing.active_children()
        self.process: BaseProcess | None = next((child for child in alive if child.pid == number), None)

    @property
    def last_words(self) -> str:
        """How the process ended."""
        code = None if self.process is None else self.process.exitcode
        if code is None:
            return "ended without an exit code"
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def end(self) -> None:
        """Kill the process, if it lives, and wait until it is gone."""
        if self.process is not None:
            self.process.kill()
        self.pool.shutdown()


def _begin() -> None:
    """In a new process: Ctrl-C is the parent's business, and an orphan ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)
