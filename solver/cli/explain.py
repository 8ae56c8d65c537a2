"""Commands that explain: explain (why no plan, why not this one), what-if (where the winner changes)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from solver.cli.answers import Output
from solver.cli.files import STANDARD, check_out, write_bytes, write_out
from solver.cli.options import HOW, asks
from solver.cli.plans import OUTPUT, Force, Json, NoProgress, Out, Seed, Workers, search_options
from solver.errors import SpecError

if TYPE_CHECKING:
    from solver.api import ExplainOptions
    from solver.ask import Ask

PROVED, INFEASIBLE, NOT_PROVED = 0, 3, 4

Limit = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS", help="Stop then; what is not proved by then is reported as open.", rich_help_panel=HOW
    ),
]


@asks
def explain(
    ask: Ask,
    why_not: Annotated[
        str | None,
        typer.Option(
            metavar="STRATEGY",
            help="Why is this not the answer: a label (EP64-TP8-PP2-DP2, A8x64-E8x64-PP2-R2) or decisions "
            "(attn_tp=4,pp=2); what it leaves open is set to the best.",
            rich_help_panel="Strategy",
        ),
    ] = None,
    time_limit: Limit = None,
    workers: Workers = None,
    seed: Seed = 0,
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
    no_progress: NoProgress = False,
) -> None:
    """Why there is no plan, and the least that must give; or why a strategy that you name is not the best.

    Infeasible: a minimal set of constraints that excludes every plan, the plan that comes nearest, and along every axis
    (GPUs, memory, limits, concurrency, lengths) the least change that alone admits a plan.

    Exit codes: 0 explained and proved, 2 bad input, 3 infeasible (proved) and explained, 4 neither a plan nor a proof,
    or a named strategy that is not proved to lose.
    """
    check_out(out, force=force)
    options = _options(time_limit, workers, seed)
    problem = ask.problem()
    from dataclasses import replace
    from functools import partial

    from solver import api
    from solver.report.explained import show_explanation
    from solver.report.progress import asking

    with asking(silent=no_progress) as on_question:
        answer = api.explain(problem, why_not, replace(options, on_question=on_question))
    Output(out, force, as_json, no_progress).deliver(
        answer, "explanation", partial(show_explanation, explanation=answer)
    )
    raise typer.Exit(INFEASIBLE if answer.status == "INFEASIBLE" else PROVED if answer.complete else NOT_PROVED)


def _options(time_limit: float | None, workers: int | None, seed: int) -> ExplainOptions:
    """How hard to look, checked."""
    from solver.api import ExplainOptions

    how = search_options(time_limit, workers, seed)
    return ExplainOptions(how.workers, how.seed, how.time_limit_s)


@asks
def what_if(
    ask: Ask,
    vary: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="concurrency, isl, osl, hit-rate (%), gpus, memory, bandwidth, scale-up-bandwidth, "
            "scale-out-bandwidth, ttft, tpot or latency (limits).",
            rich_help_panel="Parameter",
        ),
    ],
    first: Annotated[
        str, typer.Option("--from", metavar="VALUE", help='As in 1, "40 GiB", "20 ms".', rich_help_panel="Parameter")
    ],
    last: Annotated[str, typer.Option("--to", metavar="VALUE", help="Included.", rich_help_panel="Parameter")],
    step: Annotated[
        str | None,
        typer.Option(
            metavar="VALUE", help="Distance of two values; default: one of the unit.", rich_help_panel="Parameter"
        ),
    ] = None,
    points: Annotated[
        int,
        typer.Option(metavar="N", help="Values solved before the bisection; default 9.", rich_help_panel="Parameter"),
    ] = 9,
    time_limit: Limit = None,
    workers: Workers = None,
    seed: Seed = 0,
    out: Out = None,
    csv: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write every solved value as CSV.", rich_help_panel=OUTPUT)
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Draw it: .svg or .png (extra report).", rich_help_panel=OUTPUT),
    ] = None,
    force: Force = False,
    as_json: Json = False,
    no_progress: NoProgress = False,
) -> None:
    """Where the best strategy changes along one parameter, by exact solves and bisection to one step.

    Exit codes: 0 every breakpoint narrowed to one step, every value proved, 2 bad input, 4 the time limit or Ctrl-C
    ended it before.
    """
    for file in (out, csv, plot):
        check_out(file, force=force)
    if plot is not None and not plot.lower().endswith((".svg", ".png")):
        raise SpecError(f"--plot {plot[:60]!r}: give a file that ends in .svg or .png")
    options = _options(time_limit, workers, seed)
    from solver.specs.vary import Vary

    asked = Vary.parse(vary, first, last, step, points)
    problem = ask.problem()
    from dataclasses import replace

    from solver import api
    from solver.report.progress import asking
    from solver.report.terminal import terminal
    from solver.report.what_if import check_matplotlib, csv_lines, picture, show_what_if

    if plot is not None:
        check_matplotlib()
    with asking(silent=no_progress) as on_question:
        answer = api.what_if(problem, asked, replace(options, on_question=on_question))
    if out is not None:
        write_out(out, [answer.model_dump_json(indent=2), "\n"], force=force)
    if csv is not None:
        write_out(csv, csv_lines(answer), force=force)
    if plot is not None:
        write_bytes(plot, [picture(answer, plot.lower().rsplit(".", 1)[1])], force=force)
    if as_json and out != STANDARD:
        typer.echo(answer.model_dump_json(indent=2))
    elif STANDARD not in (out, csv):
        show_what_if(terminal(), answer)
    raise typer.Exit(PROVED if answer.complete else NOT_PROVED)
