"""What a person sees while experts are placed: one live line on a terminal, an occasional line otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from solver.report.progress import lines_of

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


@contextmanager
def watch_place(*, silent: bool) -> Iterator[Callable[[PlaceProgress], None] | None]:
    """A function to report progress to; what it shows disappears when the search ends. None when silent."""
    if silent:
        yield None
        return
    with lines_of(place_text, place_text) as report:
        yield report
