"""Work for the engines of sweeps: functions that worker processes import."""

from __future__ import annotations

import os
import signal
import time

from solver.sweep.work import end_in


def halve(number: int) -> int:
    """Half of an even number; odd ones raise, 13 kills its process."""
    if number == 13:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number % 2:
        raise ArithmeticError(f"{number} is odd")
    return number // 2


def sleep(seconds: float) -> float:
    """Far longer than any test waits."""
    time.sleep(seconds)
    return seconds


def hang(seconds: float) -> None:
    """Work that would never end, with a limit."""
    end_in(seconds)
    time.sleep(3600)
