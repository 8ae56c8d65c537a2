"""What a person sees while a sweep runs: a bar with the estimate on a terminal, an occasional line otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from solver.report.terminal import terminal
from solver.swept import OutcomeStatus

PIPED_SECONDS = 5.0
"""Least time between two lines when stderr is no terminal."""


class Sweeping(Protocol):
    """What is shown of a sweep."""

    @property
    def done(self) -> int:
        """Problems with an outcome."""
        ...

    @property
    def total(self) -> int:
        """Problems in all."""
        ...

    @property
    def counts(self) -> Mapping[OutcomeStatus, int]:
        """Outcomes by status."""
        ...

    @property
    def elapsed_s(self) -> float:
        """Seconds of this run."""
        ...

    @property
    def left_s(self) -> float | None:
        """Estimate of the seconds that are left."""
        ...


def duration(seconds: float) -> str:
    """``42 s``, ``7 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def sweep_text(progress: Sweeping) -> str:
    """Outcomes so far, the time that has passed and the estimate of the rest."""
    counts = ", ".join(f"{count:,} {status}" for status, count in progress.counts.items())
    left = (
        ""
        if progress.left_s is None or progress.done == progress.total
        else f", about {duration(progress.left_s)} left"
    )
    return f"{counts or 'starting'}; {duration(progress.elapsed_s)}{left}"


@contextmanager
def watch_sweep(*, silent: bool) -> Iterator[Callable[[Sweeping], None]]:
    """A function to report progress to."""
    if silent:
        yield lambda _progress: None
        return
    console = terminal(err=True)
    if not console.is_terminal:
        yield _occasional()
        return
    columns = (MofNCompleteColumn(), BarColumn(24), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("starting", total=None)

        def report(progress: Sweeping) -> None:
            bar.update(task, completed=progress.done, total=progress.total, description=sweep_text(progress))

        yield report


def _occasional() -> Callable[[Sweeping], None]:
    """Plain lines: never too often, and the last."""
    console, last = terminal(err=True), float("-inf")

    def report(progress: Sweeping) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PIPED_SECONDS or progress.done == progress.total:
            last = now
            print(f"{progress.done:,} of {progress.total:,}: {sweep_text(progress)}", file=console.file, flush=True)

    return report
