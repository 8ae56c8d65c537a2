"""The command that solves many problems."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from solver.cli.options import HOW
from solver.cli.plans import OUTPUT, NoProgress, Seed
from solver.errors import SpecError

if TYPE_CHECKING:
    from solver.sweep import SweepOptions

NOT_PROVED = 4
WHERE = "Where it runs"


def sweep(
    questions: Annotated[
        str, typer.Argument(metavar="SWEEP.toml", help="What is asked; see docs/sweep.md.", show_default=False)
    ],
    out: Annotated[
        str,
        typer.Option(
            metavar="DIR", help="Folder of the results; one that is there is taken up.", rich_help_panel=OUTPUT
        ),
    ],
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="local (processes) or ray (extra ray).", rich_help_panel=WHERE)
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="local|auto|HOST:PORT|ray://HOST:PORT", help="Ray cluster; default local.", rich_help_panel=WHERE
        ),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(metavar="N", help="Problems at once; default: cores / threads.", rich_help_panel=WHERE)
    ] = None,
    threads: Annotated[int, typer.Option(metavar="N", help="Threads of each solve.", rich_help_panel=HOW)] = 1,
    time_limit: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Of each problem.", rich_help_panel=HOW)
    ] = None,
    seed: Seed = 0,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed or crashed before.", rich_help_panel=HOW)
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Solve again what the folder has.", rich_help_panel=OUTPUT)
    ] = False,
    plot: Annotated[
        str | None,
        typer.Option(metavar="X[,Y]", help="Axes of the pictures; default: the first two.", rich_help_panel=OUTPUT),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print results.jsonl instead of the summary.", rich_help_panel=OUTPUT)
    ] = False,
    no_progress: NoProgress = False,
) -> None:
    """Solve many problems, each judged and stored; a sweep that was interrupted or killed goes on where it was.

    Exit codes: 0 every question has its proved answer (a plan, or that there is none), 2 bad input, 4 some are not
    proved, refused, failed or crashed, 130 interrupted (what is finished is kept).
    """
    options = _options(engine, address, processes, threads, time_limit, seed)
    from dataclasses import replace

    from solver.report.sweep_progress import watch_sweep
    from solver.report.sweep_table import show_swept
    from solver.report.terminal import terminal
    from solver.sweep import Sweep
    from solver.sweep import sweep as run_sweep
    from solver.sweep.tables import jsonl

    asked = Sweep.read(questions)
    fields = tuple(field.strip() for field in plot.split(",")) if plot else ()
    try:
        with watch_sweep(silent=no_progress) as on_progress:
            options = replace(options, retry_failed=retry_failed, afresh=force, plot=fields, on_progress=on_progress)
            swept = run_sweep(asked, out, options)
    except KeyboardInterrupt:
        typer.echo(f"what is finished is kept in {out}; the same command goes on from there", err=True)
        raise
    if as_json:
        typer.echo(jsonl(swept).decode(), nl=False)
    else:
        show_swept(terminal(), swept)
    raise typer.Exit(0 if swept.proved else NOT_PROVED)


def _options(
    engine: str, address: str | None, processes: int | None, threads: int, time_limit: float | None, seed: int
) -> SweepOptions:
    """Where and how hard, checked."""
    from solver.sweep import SweepOptions

    where = one_engine(engine)
    if address is not None and where != "ray":
        raise SpecError(f"--address {address[:60]!r} belongs to --engine ray")
    if processes is not None and not 1 <= processes <= 1024:
        raise SpecError(f"--processes {processes}: give a number from 1 to 1024")
    if not 1 <= threads <= 1024:
        raise SpecError(f"--threads {threads}: give a number from 1 to 1024")
    if time_limit is not None and not (math.isfinite(time_limit) and 0 < time_limit <= 10**7):
        raise SpecError(f"--time-limit {time_limit:g}: give seconds, more than 0 and at most 10,000,000")
    if not 0 <= seed < 2**31:
        raise SpecError(f"--seed {seed}: give a whole number from 0 to 2147483647")
    return SweepOptions(
        engine=where,
        address=address or "local",
        processes=processes,
        threads=threads,
        time_limit_s=time_limit,
        seed=seed,
    )


def one_engine(name: str) -> Literal["local", "ray"]:
    """An engine by its name.

    Raises
    ------
    SpecError
        There is none of that name.
    """
    if name == "local":
        return "local"
    if name == "ray":
        return "ray"
    raise SpecError(f"--engine {name[:60]!r}: give local or ray")
