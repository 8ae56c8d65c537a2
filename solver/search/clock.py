"""What loops have in common: a deadline, and the time that programs take of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from solver.search.program import SearchLimits


class Spent(Protocol):
    """An outcome that counts the seconds of its programs."""

    program_s: float


Result = TypeVar("Result")
Counted = TypeVar("Counted", bound=Spent)


class Clocked(Generic[Counted]):
    """Base of a loop that solves programs until a deadline."""

    limits: SearchLimits
    deadline: float
    outcome: Counted

    def allow(self, limits: SearchLimits) -> None:
        """From now on look as long as this."""
        self.limits = limits
        self.deadline = time.monotonic() + (limits.time_s if limits.time_s is not None else 10**9)

    def _limits(self) -> SearchLimits:
        """The limits of a program that is solved now."""
        if self.limits.time_s is None:
            return self.limits
        return replace(self.limits, time_s=max(0.01, self.deadline - time.monotonic()))

    def _timed(self, call: Callable[[], Result]) -> Result:
        """The result of a program, its seconds counted."""
        begun = time.monotonic()
        result = call()
        self.outcome.program_s += time.monotonic() - begun
        return result
