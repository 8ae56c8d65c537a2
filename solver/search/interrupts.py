"""Ctrl-C between two solves."""

from __future__ import annotations

import signal
import threading


def hear_interrupts() -> None:
    """Give Ctrl-C back to Python: CP-SAT leaves the signal at its default when it returns, which kills the process."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)
