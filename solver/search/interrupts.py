"""Ctrl-C between two solves: CP-SAT takes the signal for itself and leaves the platform's default behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def keeping_interrupts() -> Iterator[None]:
    """Put Python's handler of SIGINT back after CP-SAT ran; the next Ctrl-C would end the process."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
