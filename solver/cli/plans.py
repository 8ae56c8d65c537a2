"""Commands that make plans or read them: solve, evaluate, placement, schema."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from solver.cli.documents import read_either
from solver.cli.files import STANDARD, check_out, write_binary, write_out
from solver.cli.options import HOW, asks
from solver.errors import PlanError, SpecError, StrategyError

if TYPE_CHECKING:
    from solver.api import SolveOptions
    from solver.ask import Ask
    from solver.plan import Plan
    from solver.specs.spec import Spec

EXIT_OF_STATUS = {"OPTIMAL": 0, "INFEASIBLE": 3, "FEASIBLE": 4, "UNKNOWN": 4}
OUTPUT = "Output"

Json = Annotated[bool, typer.Option("--json", help="Print the JSON document instead.", rich_help_panel=OUTPUT)]
Out = Annotated[
    str | None, typer.Option(metavar="FILE", help="Write the JSON document to this file.", rich_help_panel=OUTPUT)
]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.", rich_help_panel=OUTPUT)]
TimeLimit = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="Stop then, with the best plan and its true gap.", rich_help_panel=HOW),
]
Workers = Annotated[int | None, typer.Option(metavar="N", help="Threads of CP-SAT; default 1.", rich_help_panel=HOW)]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of the search.", rich_help_panel=HOW, show_default=False)]
Ties = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="List N other strategies within the calibration's error of the winner, each proved the next best.",
        rich_help_panel=HOW,
        show_default=False,
    ),
]
Alternatives = Annotated[
    int,
    typer.Option(
        metavar="K",
        help="Rank the K best plans of other degrees, each with its best knobs and placement, proved.",
        rich_help_panel=HOW,
        show_default=False,
    ),
]
Gap = Annotated[
    float,
    typer.Option(
        metavar="RATIO", help="Stop at a plan proved within this of the optimum; 0.001 is 0.1 %.", rich_help_panel=HOW
    ),
]
MAX_TIES = 100
NoProgress = Annotated[bool, typer.Option("--no-progress", help="Be silent on stderr.", rich_help_panel=OUTPUT)]


@asks
def solve(
    ask: Ask,
    time_limit: TimeLimit = None,
    workers: Workers = None,
    seed: Seed = 0,
    gap: Gap = 0.0,
    ties: Ties = 0,
    alternatives: Alternatives = 0,
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
    no_progress: NoProgress = False,
) -> None:
    """Find the provably best plan (default: of the reference deployment).

    Exit codes: 0 proved optimal, or within --gap; 2 bad input; 3 infeasible (proved); 4 not proved: the best plan when
    the time limit or Ctrl-C ended the search, or where a placement stays open, with its true gap.
    """
    check_out(out, force=force)
    options = search_options(time_limit, workers, seed)
    for name, number in (("ties", ties), ("alternatives", alternatives)):
        if not 0 <= number <= MAX_TIES:
            raise SpecError(f"--{name} {number}: give a number of strategies from 0 to {MAX_TIES}")
        if number and gap:
            raise SpecError(f"--gap {gap:g} with --{name} {number}: they follow a proved optimum; leave one out")
    if not 0 <= gap < 1:
        raise SpecError(f"--gap {gap:g}: give a relative gap from 0 to below 1, such as 0.001 for 0.1 %")
    problem = ask.problem()
    from dataclasses import replace

    from solver import api
    from solver.plan import Plan
    from solver.report.progress import watch

    with watch(problem.objective.name, silent=no_progress) as on_progress:
        options = replace(options, gap=gap, ties=ties, alternatives=alternatives, on_progress=on_progress)
        answer = api.solve(problem, options)
    if isinstance(answer, Plan):
        _save(answer, out, force=force, silent=no_progress)
    elif out not in (None, STANDARD) and not no_progress:
        typer.echo(f"no plan, so {out} is not written", err=True)
    if as_json and out != STANDARD:
        from solver.specs.spec import document_text

        typer.echo(document_text(answer))
    elif out != STANDARD or not isinstance(answer, Plan):
        _show_answer(answer, out)
    within = isinstance(answer, Plan) and answer.objective.gap <= gap
    raise typer.Exit(0 if within else EXIT_OF_STATUS[answer.status])


def search_options(time_limit: float | None, workers: int | None, seed: int) -> SolveOptions:
    """How hard to look, checked.

    Raises
    ------
    SpecError
        A number is out of range.
    """
    from solver.api import SolveOptions

    if time_limit is not None and not (math.isfinite(time_limit) and 0 < time_limit <= 10**7):
        raise SpecError(f"--time-limit {time_limit:g}: give seconds, more than 0 and at most 10,000,000")
    if workers is not None and not 1 <= workers <= 1024:
        raise SpecError(f"--workers {workers}: give a number of threads from 1 to 1024")
    if not 0 <= seed < 2**31:
        raise SpecError(f"--seed {seed}: give a whole number from 0 to 2147483647")
    return SolveOptions(workers=workers, seed=seed, time_limit_s=time_limit)


def _save(plan: Plan, out: str | None, *, force: bool, silent: bool) -> None:
    if out is not None:
        from solver.specs.spec import document_text

        write_out(out, [document_text(plan), "\n"], force=force)
        if out != STANDARD and not silent:
            typer.echo(f"plan written to {out}", err=True)


def _show_answer(answer: object, out: str | None) -> None:
    """The answer for people on stdout."""
    from solver.cli import program
    from solver.plan import NoPlan, Plan
    from solver.report.alternatives import show_alternatives
    from solver.report.answer import show_no_plan, show_plan
    from solver.report.terminal import terminal

    console = terminal()
    if isinstance(answer, Plan):
        show_plan(console, answer, program(), out if out != STANDARD else None, show_alternatives)
    elif isinstance(answer, NoPlan):
        show_no_plan(console, answer)


@asks
def evaluate(
    ask: Ask,
    label: Annotated[
        str | None,
        typer.Argument(metavar="[LABEL]", help="EP64-TP8-PP2-DP2 or A8x64-E8x64-PP2-R2.", show_default=False),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=VALUE,...",
            help="Degrees instead of a label, as in attn_tp=8,attn_dp=64,moe_tp=8,moe_ep=64,pp=2,replicas=2. Degrees "
            "alone leave batch and the other knobs open; with any of those the strategy is taken exactly as given.",
            rich_help_panel="Strategy",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Metrics and memory ledger of a strategy that you name.

    Nothing is claimed about other strategies. Broken memory and SLO rules are reported, and the exit code is 0; a
    strategy that breaks a rule of legality is bad input (2).
    """
    named = ask.strategy(one_strategy(label, strategy))
    from solver import api
    from solver.report.answer import show_evaluation
    from solver.report.terminal import terminal
    from solver.specs.spec import document_text

    evaluation = api.evaluate(ask.problem(), named)
    if as_json:
        typer.echo(document_text(evaluation))
    else:
        show_evaluation(terminal(), evaluation)


def one_strategy(label: str | None, strategy: str | None) -> str:
    """The text that names the strategy: exactly one of the two ways.

    Raises
    ------
    StrategyError
        Both or neither are given.
    """
    if label is not None and strategy is not None:
        raise StrategyError(f"give the label {label[:60]!r} or --strategy {strategy[:60]!r}, not both")
    text = label if label is not None else strategy
    if text is None:
        raise StrategyError("name a strategy: a label such as EP64-TP8-PP2-DP2, or --strategy attn_tp=8,attn_dp=64,...")
    return text


def placement(
    plan: Annotated[str, typer.Argument(metavar="PLAN.json", help="Plan document; - is stdin.", show_default=False)],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="table|jsonl|csv|parquet|tree|heat",
            help="One record per GPU (default table), or a picture.",
            show_default=False,
        ),
    ] = "table",
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Write to this file instead of stdout.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """The GPU-to-shard map of a plan: one record per used GPU, streamed.

    Lists are compact in csv and table: "0-3 7" is 0, 1, 2, 3, 7. Experts read "layers:experts;layers:experts",
    sequences "of micro-batch 0|of micro-batch 1". parquet needs --out and the extra 'shardwright[parquet]'.
    """
    check_out(out, force=force)
    from solver import api
    from solver.deployment import expand_deployment
    from solver.plan import Plan
    from solver.report.parquet import check_parquet, write_parquet
    from solver.report.placement import FORMATS, deployed

    known = (*FORMATS, "parquet", "tree", "heat")
    if form not in known:
        raise SpecError(f"--format {form[:60]!r}: give one of {', '.join(known)}")
    if form == "parquet":
        if out is None or out == STANDARD:
            raise SpecError("--format parquet: a Parquet file is binary, so name one with --out FILE")
        check_parquet()
    document = read_either(plan)
    if isinstance(document, Plan):
        verdict = api.verify(document)
    elif form in FORMATS:
        verdict = api.verify_deployment(document)
    else:
        raise SpecError(f"--format {form} is for one plan; a deployment has {', '.join(FORMATS)}")
    if not verdict.ok:
        more = f" (and {len(verdict.findings) - 1} more findings)" if len(verdict.findings) > 1 else ""
        raise PlanError(f"the map is not expanded, because verify convicts the plan: {verdict.findings[0]}{more}")
    if not isinstance(document, Plan):
        write_out(out or STANDARD, deployed(form, expand_deployment(document)), force=force)
        return
    if form == "parquet" and out is not None:
        write_binary(out, lambda file: write_parquet(api.placement(document), file), force=force)
        return
    lines = _picture(form, document) if form in ("tree", "heat") else FORMATS[form](api.placement(document))
    write_out(out or STANDARD, lines, force=force)


def _picture(form: str, plan: Plan) -> Iterable[str]:
    """The tree of the deployment, or the heat map of the experts' loads as wide as the terminal."""
    from solver.report.pictures import heat_lines, tree_lines
    from solver.report.terminal import terminal

    return tree_lines(plan) if form == "tree" else heat_lines(plan, terminal().width)


def schema(
    document: Annotated[str, typer.Option(metavar="plan|deployment|front|scenarios", help="Which document.")] = "plan",
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Write to this file instead of stdout.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """JSON Schema of a document: plan, deployment, front, or scenarios."""
    check_out(out, force=force)
    import json

    from solver.deployment import DeploymentPlan
    from solver.front import Front
    from solver.plan import Plan
    from solver.scenarioplan import ScenarioPlan

    records: dict[str, type[Spec]] = {
        "plan": Plan,
        "deployment": DeploymentPlan,
        "front": Front,
        "scenarios": ScenarioPlan,
    }
    if document not in records:
        raise SpecError(f"--document {document[:60]!r}: give one of {', '.join(records)}")
    text = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **records[document].model_json_schema(mode="serialization"),
    }
    write_out(out or STANDARD, [json.dumps(text, indent=2), "\n"], force=force)
    if out is not None and out != STANDARD:
        print(f"schema written to {Path(out)}", file=sys.stderr)
