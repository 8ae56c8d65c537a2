"""What a person sees while experts are placed: one live line on a terminal, an occasional line otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from solver.report.progress import PIPED_SECONDS, REFRESH_PER_SECOND
from solver.report.terminal import terminal

if TYPE_CHECKING:
    from solver.place.progress import PlaceProgress


def place_text(progress: PlaceProgress | None, elapsed_s: float) -> str:
    """Stage, settled layers, objective, bound, gap and elapsed time in one line."""
    clock = f"{elapsed_s:.1f} s"
    if progress is None:
        return f"placing, {clock}"
    others = "" if progress.shown == progress.layers else f" here, {progress.layers} in all"
    return (
        f"{progress.stage}: {progress.settled}/{progress.shown} layers settled{others}  busiest rank "
        f"{progress.objective:.4f}  bound {progress.bound:.4f}  gap {progress.gap:.2%}  {clock}"
    )


class _Line:
    """A live line whose clock runs between two reports."""

    def __init__(self) -> None:
        self.progress: PlaceProgress | None = None
        self.begun = time.monotonic()
        self.spinner = Spinner("line")

    def take(self, progress: PlaceProgress) -> None:
        """Show another report."""
        self.progress = progress

    def __rich__(self) -> Spinner:
        words = place_text(self.progress, time.monotonic() - self.begun)
        self.spinner.update(text=Text(words, overflow="ellipsis", no_wrap=True))
        return self.spinner


@contextmanager
def watch_place(*, silent: bool) -> Iterator[Callable[[PlaceProgress], None] | None]:
    """A function to report progress to; what it shows disappears when the search ends. None when silent."""
    if silent:
        yield None
        return
    console = terminal(err=True)
    line = _Line()
    begun = last = line.begun
    if console.is_terminal:
        with Live(line, console=console, refresh_per_second=REFRESH_PER_SECOND, transient=True, redirect_stdout=False):
            yield line.take
        return

    def report(progress: PlaceProgress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PIPED_SECONDS:
            last = now
            print(place_text(progress, now - begun), file=console.file, flush=True)

    yield report
