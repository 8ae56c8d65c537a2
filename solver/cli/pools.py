"""The command deploy: whole clusters filled with the best mix of instances."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from solver.cli.answers import Output
from solver.cli.files import check_out
from solver.cli.options import LIMITS, asks
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
    from solver.specs.problem import Problem

DEMAND = "Demand"


@asks
def deploy(
    ask: Ask,
    mode: Annotated[
        str,
        typer.Option(
            metavar="MODE", help="aggregated, disaggregated (a prefill and a decode pool), or auto: the better one."
        ),
    ] = "auto",
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="throughput (default), efficiency, gpus: the fewest for --request-rate (default with it), or cost: "
            "the least money for it (default with --price).",
            rich_help_panel=LIMITS,
            show_default=False,
        ),
    ] = None,
    request_rate: Annotated[
        float | None,
        typer.Option(metavar="PER_S", help="Requests per second to serve.", rich_help_panel=DEMAND, show_default=False),
    ] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLUSTER=PRICE",
            help="Price of a GPU per hour, as in h200x64=2.5; repeatable, the clusters are those named: serve the "
            "request rate for the least money.",
            rich_help_panel=DEMAND,
        ),
    ] = None,
    max_shapes: Annotated[
        int | None,
        typer.Option(metavar="N", help="Most different instance sizes of a pool.", rich_help_panel=DEMAND),
    ] = None,
    time_limit: TimeLimit = None,
    workers: Workers = None,
    seed: Seed = 0,
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
    no_progress: NoProgress = False,
) -> None:
    """Fill a cluster with the provably best mix of instances, in one pool or in a prefill and a decode pool.

    Every slot is busy: the concurrency of the workload is not used. Exit codes as for solve.
    """
    check_out(out, force=force)
    options = search_options(time_limit, workers, seed)
    sites, prices = _sites(ask, price or [])
    from dataclasses import replace
    from functools import partial

    from solver import api
    from solver.plan import NoPlan
    from solver.report.deployment import show_deployment
    from solver.report.progress import watch
    from solver.specs.deploying import Deploying

    goal = _goal(objective, request_rate, prices)
    words = {"mode": mode, "goal": goal, "request_rate": request_rate, "max_shapes": max_shapes, "prices": prices}
    asked = Deploying.read({name: value for name, value in words.items() if value is not None}, "options")
    with watch(goal, silent=no_progress) as on_progress:
        answer = api.deploy(sites, asked, replace(options, on_progress=on_progress))
    output = Output(out, force, as_json, no_progress)
    if isinstance(answer, NoPlan):
        output.deliver_none(answer, "deployment")
    else:
        output.deliver(answer, "deployment", partial(show_deployment, deployment=answer))
    raise typer.Exit(EXIT_OF_STATUS[answer.status])


def _goal(objective: str | None, request_rate: float | None, prices: tuple[float, ...]) -> str:
    """The goal in the words of the question.

    Raises
    ------
    SpecError
        An objective that deployments do not have, or one that contradicts the demand.
    """
    known = ("throughput", "efficiency", "gpus", "cost")
    if objective is not None and objective not in known:
        raise SpecError(f"--objective {objective[:60]!r}: a deployment has {', '.join(known)}; solve has the others")
    if request_rate is not None and not (math.isfinite(request_rate) and request_rate > 0):
        raise SpecError(f"--request-rate {request_rate:g}: give requests per second, more than 0")
    if prices and objective not in (None, "cost"):
        raise SpecError(
            f"--price asks for the least money for a --request-rate, --objective {objective} for something else: leave "
            "one of them out"
        )
    if prices and request_rate is None:
        raise SpecError("--price asks for the least money for a --request-rate: give the requests per second, too")
    if objective == "cost" and not prices:
        raise SpecError("--objective cost needs the price of a GPU per hour: --price CLUSTER=PRICE")
    if prices:
        return "cost"
    return objective or ("throughput" if request_rate is None else "gpus")


def _sites(ask: Ask, texts: list[str]) -> tuple[list[Problem], tuple[float, ...]]:
    """The question for every priced cluster, and the prices; for the one of --cluster where none is priced."""
    if not texts:
        return [ask.problem()], ()
    names, prices = [], []
    for text in texts:
        name, equals, number = (part.strip() for part in text.partition("="))
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not equals or not name or not (1e-3 <= value <= 10**6):
            raise SpecError(
                f"--price {text[:60]!r}: expected CLUSTER=PRICE, a price per GPU and hour of at least 0.001"
            )
        if name in names:
            raise SpecError(f"--price gives the cluster {name!r} twice")
        names.append(name)
        prices.append(value)
    if ask.cluster not in ("reference", *names):
        raise SpecError(f"--cluster {ask.cluster!r} has no --price; the clusters are those that --price names")
    return [ask.model_copy(update={"cluster": name}).problem() for name in names], tuple(prices)
