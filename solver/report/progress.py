"""What a person sees while the search runs: one live line on a terminal, an occasional line otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from solver.cost.metrics import NATURAL_UNITS, natural_value
from solver.report.terminal import plural, terminal
from solver.specs.problem import ObjectiveName
from solver.units import gap_text, short_ns

if TYPE_CHECKING:
    from solver.search.front import FrontProgress
    from solver.search.loop import Progress

P = TypeVar("P")

PIPED_SECONDS = 5.0
"""Least time between two lines when stderr is no terminal."""
REFRESH_PER_SECOND = 5.0


def progress_text(objective: str, progress: Progress | None, elapsed_s: float) -> str:
    """Objective, bound, gap and elapsed time in one line."""
    clock = f"{elapsed_s:.1f} s"
    if progress is None:
        return f"{objective}: building tables, {clock}"
    if progress.value is None or progress.gap is None:
        return f"{objective}: no plan yet, {clock}"
    bound = _value(progress, progress.bound) if progress.bound > 0 else "none yet"
    return f"{objective}: best {_value(progress, progress.value)}  bound {bound}  gap {gap_text(progress.gap)}  {clock}"


def _value(progress: Progress, integer: int) -> str:
    """An objective integer in the unit of its metric."""
    value = progress.natural(integer)
    if progress.objective in ("latency", "ttft", "tpot"):
        return short_ns(value)
    return f"{value:,.6g}{progress.unit}"


class _Line(Generic[P]):
    """A live line whose clock runs between two reports."""

    def __init__(self, words: Callable[[P | None, float], str]) -> None:
        self.words = words
        self.progress: P | None = None
        self.begun = time.monotonic()
        self.spinner = Spinner("line")

    def take(self, progress: P) -> None:
        """Show another report."""
        self.progress = progress

    def __rich__(self) -> Spinner:
        words = self.words(self.progress, time.monotonic() - self.begun)
        self.spinner.update(text=Text(words, overflow="ellipsis", no_wrap=True))
        return self.spinner


@contextmanager
def lines_of(
    words: Callable[[P | None, float], str], plain: Callable[[P, float], str]
) -> Iterator[Callable[[P], None]]:
    """A function to report progress to: a live line on a terminal, which disappears at the end, else plain ones.

    `words` are those of the last report (None: there was none yet) and of the seconds since the beginning; `plain` is
    the same for a single report.
    """
    console = terminal(err=True)
    if not console.is_terminal:
        yield _occasional(console, plain)
        return
    line = _Line(words)
    with Live(line, console=console, refresh_per_second=REFRESH_PER_SECOND, transient=True, redirect_stdout=False):
        yield line.take


def _occasional(console: Console, plain: Callable[[P, float], str]) -> Callable[[P], None]:
    """Plain lines, the first after a while and then never too often."""
    begun = last = time.monotonic()

    def report(progress: P) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PIPED_SECONDS:
            last = now
            print(plain(progress, now - begun), file=console.file, flush=True)

    return report


@contextmanager
def watch(objective: str, *, silent: bool) -> Iterator[Callable[[Progress], None]]:
    """A function to report progress to; what it shows disappears when the search ends."""
    if silent:
        yield lambda _progress: None
        return
    words = partial(progress_text, objective)
    with lines_of(words, lambda progress, _elapsed_s: words(progress, progress.elapsed_s)) as report:
        yield report


def front_text(progress: FrontProgress | None, elapsed_s: float) -> str:
    """Points, gaps, solves and the point found last in one line."""
    if progress is None:
        return f"front: the first end, {elapsed_s:.1f} s"
    latest = ""
    if progress.latest is not None:
        pairs = ((progress.first, progress.latest.first), (progress.second, progress.latest.second))
        latest = ", ".join(_metric(metric, integer, progress.osl) for metric, integer in pairs)
        latest = f"  latest {latest}"
    return (
        f"front: {plural(progress.points, 'point')}, {plural(progress.gaps, 'gap')}, "
        f"{plural(progress.solves, 'solve')}{latest}  {elapsed_s:.1f} s"
    )


def _metric(metric: ObjectiveName, integer: int, osl: int) -> str:
    natural = natural_value(metric, integer, osl)
    return short_ns(natural) if NATURAL_UNITS[metric] == "ns" else f"{natural:,.5g} {NATURAL_UNITS[metric]}"


@contextmanager
def watch_front(*, silent: bool) -> Iterator[Callable[[FrontProgress], None]]:
    """The same for a front."""
    if silent:
        yield lambda _progress: None
        return

    def plain(progress: FrontProgress, _elapsed_s: float) -> str:
        return front_text(progress, progress.elapsed_s)

    with lines_of(front_text, plain) as report:
        yield report


@contextmanager
def asking(*, silent: bool) -> Iterator[Callable[[str], None]]:
    """A function to say which question is being answered; a live line on a terminal, else an occasional one."""
    if silent:
        yield lambda _words: None
        return
    console = terminal(err=True)
    begun = time.monotonic()
    if console.is_terminal:
        with console.status("") as status:
            yield lambda words: status.update(f"{words}, {time.monotonic() - begun:.1f} s")
        return
    yield _occasional(console, lambda words, elapsed_s: f"{words}, {elapsed_s:.1f} s")
