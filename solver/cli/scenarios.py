"""The command solve-scenarios: one deployment for several request shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from solver.cli.answers import Output
from solver.cli.files import check_out
from solver.cli.options import asks
from solver.cli.plans import (
    EXIT_OF_STATUS,
    Force,
    Json,
    NoProgress,
    Out,
    Seed,
    TimeLimit,
    Workers,
    search_options,
)
from solver.errors import SpecError

if TYPE_CHECKING:
    from solver.ask import Ask
    from solver.specs.scenarios import Over, Scenarios

WHICH = "Scenarios"


@asks
def solve_scenarios(
    ask: Ask,
    scenarios: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="TOML file of weighted scenarios.", rich_help_panel=WHICH),
    ] = None,
    scenarios_from_trace: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="CSV or JSON lines of request lengths (isl, osl), reduced to scenarios.",
            rich_help_panel=WHICH,
        ),
    ] = None,
    num_scenarios: Annotated[
        int | None,
        typer.Option(metavar="K", help="Scenarios that a trace is reduced to; default 4.", rich_help_panel=WHICH),
    ] = None,
    over: Annotated[
        str,
        typer.Option(
            metavar="expected|regret",
            help="Minimise the weighted mean of the objective (default), or the largest relative regret.",
            rich_help_panel=WHICH,
            show_default=False,
        ),
    ] = "expected",
    time_limit: TimeLimit = None,
    workers: Workers = None,
    seed: Seed = 0,
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
    no_progress: NoProgress = False,
) -> None:
    """Find the provably best single deployment for several scenarios of requests.

    Degrees, replicas, stages and launch switches are common to all scenarios; batches follow each one. Memory and
    limits hold in every scenario. Exit codes are those of solve.
    """
    check_out(out, force=force)
    options = search_options(time_limit, workers, seed)
    asked, way = _asked(scenarios, scenarios_from_trace, num_scenarios), _over(over)
    problem = ask.problem()
    from dataclasses import replace
    from functools import partial

    from solver import api
    from solver.cli import program
    from solver.report.progress import watch
    from solver.report.scenarios import show_scenarios
    from solver.scenarioplan import ScenarioPlan

    with watch(problem.objective.name, silent=no_progress) as on_progress:
        answer = api.solve_scenarios(problem, asked, way, replace(options, on_progress=on_progress))
    output = Output(out, force, as_json, no_progress)
    if isinstance(answer, ScenarioPlan):
        output.deliver(answer, "scenario plan", partial(show_scenarios, plan=answer, program=program(), out=out))
    else:
        output.deliver_none(answer, "plan")
    raise typer.Exit(EXIT_OF_STATUS[answer.status])


def _asked(scenarios: str | None, trace: str | None, count: int | None) -> Scenarios:
    """The scenarios of exactly one of the two files."""
    from solver.specs.scenarios import read_scenarios
    from solver.specs.traces import read_trace, scenarios_of_trace

    if (scenarios is None) == (trace is None):
        raise SpecError("give --scenarios FILE or --scenarios-from-trace FILE, one of the two")
    if scenarios is not None:
        if count is not None:
            raise SpecError(f"--num-scenarios {count} belongs to --scenarios-from-trace")
        return read_scenarios(scenarios)
    assert trace is not None
    return scenarios_of_trace(read_trace(trace), 4 if count is None else count)


def _over(text: str) -> Over:
    if text == "expected":
        return "expected"
    if text == "regret":
        return "regret"
    raise SpecError(f"--over {text[:60]!r}: give expected or regret")
