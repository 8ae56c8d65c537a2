"""Commands that judge: check a proposed strategy and its claims, verify a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from solver.cli.documents import judge
from solver.cli.files import STANDARD, read_text
from solver.cli.options import asks
from solver.cli.plans import Json, one_strategy
from solver.errors import SpecError

if TYPE_CHECKING:
    from solver.ask import Ask
    from solver.audit import AuditReport, Claims

NOT_PROVED, HAS_ERRORS = 4, 3


@asks
def check(
    ask: Ask,
    label: Annotated[
        str | None,
        typer.Argument(
            metavar="[LABEL]", help="Strategy; default: the reference document's claims.", show_default=False
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(metavar="NAME=VALUE,...", help="Degrees instead of a label.", rich_help_panel="Strategy"),
    ] = None,
    document: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Markdown document that proposes a strategy and makes claims; - is stdin.",
            rich_help_panel="Strategy",
        ),
    ] = None,
    vllm: Annotated[
        str | None,
        typer.Option(metavar="COMMAND", help='A command that you run: "vllm serve ...".', rich_help_panel="Strategy"),
    ] = None,
    sglang: Annotated[
        str | None,
        typer.Option(metavar="COMMAND", help='"python -m sglang.launch_server ...".', rich_help_panel="Strategy"),
    ] = None,
    trtllm: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="YAML or JSON of trtllm-serve --config.", rich_help_panel="Strategy"),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 when a finding is an error.", rich_help_panel="Output")
    ] = False,
    as_json: Json = False,
) -> None:
    """Audit a proposed strategy and its claims: legality, memory, arithmetic.

    Without a strategy it audits the claims of the reference document. A finding is not a failure: the exit code is 0,
    or 3 with --strict when a finding is an error. What a document does not state is taken from the options below.
    A launch command is read, never run; its degrees are audited and evaluated, and compared with the optimum on as many
    GPUs.
    """
    from solver.report.audit import show_audit
    from solver.report.terminal import terminal

    launches = [
        (name, text) for name, text in (("vllm", vllm), ("sglang", sglang), ("trtllm", trtllm)) if text is not None
    ]
    if launches:
        if len(launches) > 1 or label is not None or strategy is not None or document is not None:
            raise SpecError("give one of: a label, --strategy, --document, --vllm, --sglang, --trtllm")
        from solver.cli.launches import check_launch

        raise typer.Exit(HAS_ERRORS if check_launch(ask, *launches[0], as_json=as_json) and strict else 0)
    if document is not None or (label is None and strategy is None):
        if label is not None or strategy is not None:
            raise SpecError("give a strategy or --document, not both: the document names its own strategy")
        report = _of_claims(ask, _claims(document))
    else:
        report = _of_strategy(ask, one_strategy(label, strategy))
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        show_audit(terminal(), report)
    raise typer.Exit(HAS_ERRORS if strict and report.errors else 0)


def _claims(document: str | None) -> Claims:
    """The claims of a document; of the reference document when none is named."""
    from solver.audit import read_claims, read_document, reference_claims
    from solver.audit.markdown import MAX_DOCUMENT_BYTES

    if document is None:
        return reference_claims()
    if document == STANDARD:
        return read_claims(read_text(document, MAX_DOCUMENT_BYTES), "stdin")
    return read_document(document)


def _of_claims(ask: Ask, claims: Claims) -> AuditReport:
    from solver import api
    from solver.audit import problem_of, proposed_strategy

    problem = problem_of(claims, ask.problem())
    return api.check(problem, proposed_strategy(problem, claims), claims)


def _of_strategy(ask: Ask, text: str) -> AuditReport:
    """Audit of a named strategy; a label gets batches large enough for the workload."""
    from solver import api
    from solver.audit import Claims, proposed_strategy

    problem, named = ask.problem(), ask.strategy(text)
    if isinstance(named, str):
        named = proposed_strategy(problem, Claims(label=named))
    return api.check(problem, named)


def verify(
    plan: Annotated[str, typer.Argument(metavar="PLAN.json", help="Plan document; - is stdin.", show_default=False)],
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Enumerate the degree space, too, and confirm the optimum.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Compare every rank's record with its class, not a sample of 4,096.")
    ] = False,
    loads: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Loads that an expert placement was made for.", show_default=False),
    ] = None,
    current: Annotated[
        str | None, typer.Option(metavar="FILE", help="Map that the moves of an expert placement start from.")
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(metavar="FILE", help="Routing trace or pair counts that its traffic was counted by.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON instead.")] = False,
) -> None:
    """Judge a plan, deployment, front, explanation or expert placement without the solver: every rule and claim again.

    Exit codes: 0 confirmed, 2 no plan document, 4 the judge convicts it.
    """
    import json
    from dataclasses import asdict

    from solver.report.terminal import terminal

    if loads or current:
        from solver.cli.placed import MAX_DOCUMENT_BYTES, verify_map

        verify_map(read_text(plan, MAX_DOCUMENT_BYTES), plan, loads or [], current, pairs, as_json=as_json)
    judged = judge(plan, exhaustive=exhaustive, full=full)
    if as_json:
        typer.echo(json.dumps(asdict(judged.verdict), indent=2))
    else:
        judged.show(terminal())
    raise typer.Exit(0 if judged.verdict.ok else NOT_PROVED)
