"""The command pareto, and reading and judging the documents that it writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from solver.cli.documents import read_front
from solver.cli.files import STANDARD, check_out, write_bytes, write_out
from solver.cli.options import HOW, asks
from solver.cli.plans import OUTPUT, Force, Json, NoProgress, Out, Seed, TimeLimit, Workers, search_options
from solver.errors import OutputError, SpecError

if TYPE_CHECKING:
    from solver.api import ParetoOptions
    from solver.ask import Ask
    from solver.front import Front
    from solver.search.front import FrontProgress
    from solver.specs.problem import ObjectiveName

MAX_POINTS = 1000
NOT_PROVED, INFEASIBLE = 4, 3
SAVE_SECONDS = 10.0
"""Least time between two copies of an unfinished front on the disk."""


@asks
def pareto(
    ask: Ask,
    metrics: Annotated[
        str,
        typer.Option(
            metavar="FIRST,SECOND",
            help="Two of latency, ttft, tpot, throughput, efficiency, gpus.",
            rich_help_panel="Limits and decisions",
        ),
    ] = "latency,throughput",
    points: Annotated[
        int | None,
        typer.Option(metavar="N", help="So many points, evenly spread, instead of all.", rich_help_panel=HOW),
    ] = None,
    time_limit: TimeLimit = None,
    workers: Workers = None,
    seed: Seed = 0,
    out: Out = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the front in the --out file, if it exists.", rich_help_panel=OUTPUT),
    ] = False,
    csv: Annotated[
        str | None, typer.Option("--csv", metavar="FILE", help="Also as a table.", rich_help_panel=OUTPUT)
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Also as a picture: .png or .svg (extra report).", rich_help_panel=OUTPUT),
    ] = None,
    force: Force = False,
    as_json: Json = False,
    no_progress: NoProgress = False,
) -> None:
    """The exact Pareto front of two metrics, each point a proved plan.

    The objective among the options is ignored. With --points the front has gaps, and says where. A time limit or Ctrl-C
    ends it with the points so far, which --resume takes up again. Exit codes: 0 the whole front, or as many points as
    asked; 2 bad input, 3 infeasible (proved), 4 cut short.
    """
    from solver import api
    from solver.report.fronts import csv_lines, picture, show_front
    from solver.report.terminal import terminal

    known = _known(out) if resume else None
    for path in (None if known is not None else out, csv, plot):
        check_out(path, force=force)
    if plot is not None and Path(plot).suffix.lower() not in (".png", ".svg"):
        raise OutputError(f"--plot {plot[:80]!r}: end it with .png or .svg")
    names = _metrics(metrics)
    if points is not None and not 2 <= points <= MAX_POINTS:
        raise SpecError(f"--points {points}: give a number of points from 2 to {MAX_POINTS}")
    how = search_options(time_limit, workers, seed)
    options = api.ParetoOptions(points, how.workers, how.seed, how.time_limit_s, known)
    problem = ask.problem()
    saver = _Saver(out, force=force or known is not None)
    with _watch(saver, silent=no_progress) as on_progress:
        front = api.pareto(problem, names, replace(options, on_progress=on_progress))
    saver.save(front)
    if out not in (None, STANDARD) and not no_progress:
        typer.echo(f"front written to {out}", err=True)
    if csv is not None:
        write_out(csv, csv_lines(front), force=force)
    if plot is not None and front.points:
        write_bytes(plot, [picture(front, Path(plot).suffix.lower()[1:])], force=force)
    if as_json and out != STANDARD:
        typer.echo(front.model_dump_json(indent=2))
    elif out != STANDARD:
        show_front(terminal(), front)
    raise typer.Exit(_exit_code(front, options))


def _exit_code(front: Front, options: ParetoOptions) -> int:
    if front.status == "INFEASIBLE":
        return INFEASIBLE
    enough = options.points is not None and len(front.points) >= options.points
    return 0 if front.status == "COMPLETE" or enough else NOT_PROVED


def _metrics(text: str) -> tuple[ObjectiveName, ObjectiveName]:
    from solver.front import metric_pair

    names = [name.strip() for name in text.split(",")]
    if len(names) != 2:
        raise SpecError(f"--metrics {text[:60]!r}: give two, as in latency,throughput")
    return metric_pair(names[0], names[1])


def _known(out: str | None) -> Front | None:
    """The front to go on from."""
    if out is None or out == STANDARD:
        raise SpecError("--resume goes on from the file of --out; name one")
    return read_front(out) if Path(out).exists() else None


class _Saver:
    """Writes the front to its file, while it grows not too often: whatever ends the process loses little."""

    def __init__(self, out: str | None, *, force: bool) -> None:
        self.out, self.force = out, force
        self.last = time.monotonic()

    def save(self, front: Front) -> None:
        """Replace the file by this front."""
        if self.out is None:
            return
        write_out(self.out, [front.model_dump_json(indent=2), "\n"], force=self.force)
        self.force, self.last = True, time.monotonic()

    def now_and_then(self, progress: FrontProgress) -> None:
        """Save a front that is not finished."""
        if self.out not in (None, STANDARD) and time.monotonic() - self.last >= SAVE_SECONDS:
            self.save(progress.snapshot())


@contextmanager
def _watch(saver: _Saver, *, silent: bool) -> Iterator[Callable[[FrontProgress], None]]:
    """A function to report progress to, which saves and shows."""
    from solver.report.progress import watch_front

    with watch_front(silent=silent) as show:

        def report(progress: FrontProgress) -> None:
            show(progress)
            saver.now_and_then(progress)

        yield report
