"""The time that searches look at: once Ctrl-C was pressed every limit is over, and what was found so far is kept.

A search compares :func:`monotonic` with its deadline, as it would the function of :mod:`time` (and imports this module
under that name). Signals belong to the process, and so does this. CP-SAT must be told to leave the signal alone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

AGE_S = 1e7
"""Seconds that every look at a stopped clock takes: longer than any time limit."""


class _Stop:
    """How often the stopped clock was looked at; 0 while it runs."""

    looks = 0


def monotonic() -> float:
    """Seconds, as :func:`time.monotonic`; after a stop every limit that is set is over at the next look."""
    if _Stop.looks:
        _Stop.looks += 1
    return time.monotonic() + AGE_S * _Stop.looks


def stopped() -> bool:
    """Whether the search was asked to end."""
    return bool(_Stop.looks)


def stop() -> None:
    """Ask it to."""
    _Stop.looks = max(1, _Stop.looks)


@contextmanager
def stopping() -> Iterator[None]:
    """Ctrl-C inside ends searches with what they have, in forked processes too; a second one ends the process.

    Outside the main thread Ctrl-C is left to whoever has it.
    """
    _Stop.looks = 0
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a fork: the parent decides when it ends
            stop()
            return
        if stopped():
            raise KeyboardInterrupt
        stop()
        for child in multiprocessing.active_children():
            if child.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGINT)

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)
        _Stop.looks = 0
