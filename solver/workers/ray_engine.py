"""Work on a Ray cluster, or on a Ray of this machine's own (extra ``ray``).

Ray's own scheduler, resources (one CPU per thread of a solve), object store and retries are used. A process or node
that dies is retried :data:`RETRIES` times by Ray before its task counts as died.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from solver.errors import EngineError
from solver.workers.engine import Done, described

if TYPE_CHECKING:
    import ray

T = TypeVar("T")
R = TypeVar("R")

RETRIES = 3
"""Ray's retries of a task whose process or node died."""
KNOCK_SECONDS = 5.0
QUEUED_PER_SLOT = 4
"""Tasks that wait in Ray per one that runs."""


class RayEngine:
    """Tasks of Ray. A connection that exists already is used and left open; else one is made and closed.

    Parameters
    ----------
    address : ``local`` (a Ray of its own on this machine), ``auto`` (the running cluster of this machine or of
        RAY_ADDRESS), ``host:port``, or ``ray://host:port``
    processes : CPUs of a ``local`` Ray in units of `threads`; absent means the cores
    threads : CPUs that one task takes
    """

    name = "ray"

    def __init__(self, address: str = "local", processes: int | None = None, threads: int = 1) -> None:
        self.threads = threads
        self.ray = _imported()
        self.mine = not self.ray.is_initialized()
        if self.mine:
            _connect(self.ray, address, None if processes is None else processes * threads)
        self.slots = max(1, int(self.ray.cluster_resources().get("CPU", 1)) // threads)

    def run(self, work: Callable[[T], R], tasks: Iterable[T]) -> Generator[Done[R], None, None]:
        """See :class:`~solver.workers.engine.Engine`."""
        remote = self.ray.remote(num_cpus=self.threads, max_retries=RETRIES)(work)
        numbered = enumerate(tasks)
        running: dict[ray.ObjectRef[R], int] = {}
        try:
            while True:
                for index, task in islice(numbered, (1 + QUEUED_PER_SLOT) * self.slots - len(running)):
                    running[remote.remote(task)] = index
                if not running:
                    return
                ended, _ = self.ray.wait(list(running), num_returns=1)
                for reference in ended:
                    yield self._done(running.pop(reference), reference)
        finally:
            for reference in running:
                self.ray.cancel(reference, force=True)

    def close(self) -> None:
        """End the Ray, or the connection, that this engine made."""
        if self.mine:
            self.ray.shutdown()

    def _done(self, index: int, reference: ray.ObjectRef[R]) -> Done[R]:
        """What became of a task that has ended."""
        errors = self.ray.exceptions
        try:
            return Done(index, self.ray.get(reference))
        except errors.RayTaskError as error:
            return Done(index, error=described(error.cause))
        except (
            errors.WorkerCrashedError,
            errors.OutOfMemoryError,
            errors.NodeDiedError,
            errors.ObjectLostError,
        ) as death:
            return Done(index, died=True, detail=f"{described(death)[:300]}, after {RETRIES} retries of Ray")


def _imported() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise EngineError("the engine ray needs Ray: install shardwright[ray], or use the engine local") from error
    return ray


def _connect(ray: ModuleType, address: str, cpus: int | None) -> None:
    """Start a local Ray, or connect to a cluster.

    Raises
    ------
    EngineError
        There is none at that address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if address == "local":
            ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="error")
        else:
            _knock(os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address)
            ray.init(address, log_to_driver=False, logging_level="error")
    except (OSError, RuntimeError, ValueError) as error:
        told = " ".join(str(error).split())[:200]
        raise EngineError(
            f"no Ray cluster can be used at {address[:80]!r} ({told}); start one (`ray start --head`), or use local"
        ) from error


def _knock(address: str) -> None:
    """Refuse an address where nobody listens at once; Ray itself would try for minutes.

    Raises
    ------
    OSError
        Nobody listens.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), KNOCK_SECONDS).close()
