"""Commands that put a plan or a deployment to work: export, bench-script, report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from solver.cli.documents import read_either, read_front, read_plan
from solver.cli.files import STANDARD, check_folder, check_out, read_text, write_folder, write_out
from solver.errors import ExportError, PlanError, ReportError

if TYPE_CHECKING:
    from solver.front import Front
    from solver.plan import Plan

MAX_HOSTS_BYTES = 8 * 2**20

Document = Annotated[
    str, typer.Argument(metavar="PLAN.json", help="Plan or deployment document; - is stdin.", show_default=False)
]
PlanFile = Annotated[str, typer.Argument(metavar="PLAN.json", help="Plan document; - is stdin.", show_default=False)]


def export(
    plan: Document,
    to: Annotated[
        str,
        typer.Option(
            metavar="TARGET",
            help="vllm, sglang, trtllm, megatron, torchrun, slurm, mpi, ray, kubernetes, dynamo, llm-d, csv, jsonl.",
            show_default=False,
        ),
    ],
    out: Annotated[str, typer.Option(metavar="DIR", help="Write the files to this folder.", show_default=False)],
    hosts: Annotated[
        str | None, typer.Option(metavar="FILE", help="Host names, one a line: node 0 first. Default node0, node1, ...")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="PATH|NAME", help="Weights: a folder or a Hugging Face name.")
    ] = None,
    port: Annotated[int, typer.Option(metavar="N", help="HTTP port of a node's first instance.")] = 30000,
    engine: Annotated[
        str | None, typer.Option(metavar="NAME", help="Engine, for targets that are none; default the plan's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder if it exists.")] = False,
) -> None:
    """Files that launch a plan or a deployment: commands per node, expert maps, manifests, rank tables.

    Every file names its document by the digest. What a target cannot express is refused, with the alternative.
    """
    check_folder(out, force=force)
    from solver.export import ExportOptions
    from solver.export import export as export_plan
    from solver.plan import Plan
    from solver.specs.problem import ENGINES

    if engine is not None and engine not in ENGINES:
        raise ExportError(f"--engine {engine[:60]!r}: give one of {', '.join(ENGINES)}")
    names = () if hosts is None else read_hosts(read_text(hosts, MAX_HOSTS_BYTES), hosts)
    options = ExportOptions(hosts=names, weights=weights, port=_port(port), engine=engine)  # type: ignore[arg-type]
    document = read_either(plan)
    result = export_plan(document, to, options)
    write_folder(out, ((file.path, file.text, file.executable) for file in result.files), force=force)
    kind = "plan" if isinstance(document, Plan) else "deployment"
    typer.echo(f"{len(result.files)} files of {kind} {result.digest[:12]} written to {out}", err=True)
    for note in result.notes:
        typer.echo(f"note: {note}", err=True)


def bench_script(
    plan: PlanFile,
    out: Annotated[str, typer.Option(metavar="DIR", help="Write the files to this folder.", show_default=False)],
    hosts: Annotated[str | None, typer.Option(metavar="FILE", help="Host names, one a line: node 0 first.")] = None,
    weights: Annotated[str | None, typer.Option(metavar="PATH|NAME", help="As given to export.")] = None,
    port: Annotated[int, typer.Option(metavar="N", help="As given to export.")] = 30000,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder if it exists.")] = False,
) -> None:
    """Scripts that measure the deployed plan and append a row of the CSV that calibrate reads.

    They run the engine's own serving benchmark against the first instance that export started.
    """
    check_folder(out, force=force)
    from solver.export import ExportOptions
    from solver.export import bench_script as make

    names = () if hosts is None else read_hosts(read_text(hosts, MAX_HOSTS_BYTES), hosts)
    result = make(read_plan(plan), ExportOptions(hosts=names, weights=weights, port=_port(port)))
    write_folder(out, ((file.path, file.text, file.executable) for file in result.files), force=force)
    typer.echo(f"{len(result.files)} files of plan {result.digest[:12]} written to {out}", err=True)


def report(
    plan: Document,
    out: Annotated[
        str, typer.Option(metavar="FILE", help="report.html or report.md; - is Markdown on stdout.", show_default=False)
    ],
    compare: Annotated[
        str | None, typer.Option(metavar="LABEL", help="A strategy to compare with, as EP64-TP8-PP2-DP2.")
    ] = None,
    front: Annotated[
        str | None, typer.Option(metavar="FILE", help="Front document of the same service, drawn beside it.")
    ] = None,
    loads: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Loads of an expert placement that is reported.", show_default=False),
    ] = None,
    current: Annotated[
        str | None, typer.Option(metavar="FILE", help="Map that an expert placement is set beside.")
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Routing that a placement's traffic was counted by."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """A plan, a deployment or an expert placement as a report: one HTML page that needs no network, or Markdown."""
    check_out(out, force=force)
    if loads or current:
        from solver.cli.placed import report_map

        report_map(plan, loads or [], current, out, pairs=pairs, force=force)
        return
    from solver import api
    from solver.deployment import DeploymentPlan
    from solver.export import TARGETS
    from solver.report.deployment_page import deployment_document, deployment_html
    from solver.report.html import html_page
    from solver.report.markdown import markdown
    from solver.report.sections import document_of

    if out != STANDARD and not out.lower().endswith((".html", ".md")):
        raise ReportError(f"--out {out[:80]!r}: end it with .html or .md")
    document, in_html = read_either(plan), out.lower().endswith(".html")
    if isinstance(document, DeploymentPlan):
        if compare is not None:
            raise ReportError("--compare sets a strategy beside a plan; a deployment has several: report their plans")
        if front is not None:
            raise ReportError("--front is drawn beside one plan, not beside a deployment")
        pages = deployment_document(document, api.verify_deployment(document), tuple(TARGETS))
        write_out(out, [deployment_html(pages, document) if in_html else markdown(pages)], force=force)
        return
    reference = None if compare is None else api.evaluate(document.problem, compare)
    drawn = None if front is None else _front_of(front, document)
    pages = document_of(document, api.verify(document), tuple(TARGETS), reference, drawn)
    write_out(out, [html_page(pages, document) if in_html else markdown(pages)], force=force)


def _front_of(path: str, plan: Plan) -> Front:
    """The front of a file, if it is about the plan's LLM, cluster and calibration, and the judge passes it.

    Raises
    ------
    PlanError
        It is about another service, or convicted.
    """
    from solver import api

    front = read_front(path)
    theirs, ours = front.problem, plan.problem
    if (theirs.llm, theirs.cluster, theirs.calibration) != (ours.llm, ours.cluster, ours.calibration):
        raise PlanError(
            f"{path} is a front of {theirs.llm.name} on {theirs.cluster.name}, the plan is of {ours.llm.name} on "
            f"{ours.cluster.name}, or with another calibration"
        )
    verdict = api.verify_front(front)
    if not verdict.ok:
        raise PlanError(f"{path} is not drawn, because verify convicts the front: {verdict.findings[0]}")
    return front


def _port(port: int) -> int:
    """A port with room for the further ports of instances."""
    if not 1024 <= port <= 60000:
        raise ExportError(f"--port {port}: give a port from 1024 to 60000")
    return port


def read_hosts(text: str, where: str) -> tuple[str, ...]:
    """Host names, one a line; empty lines and comments are skipped.

    Raises
    ------
    ExportError
        A line is no host name, or a name is given twice.
    """
    import re

    names = [line.split("#")[0].strip() for line in text.splitlines()]
    names = [name for name in names if name]
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", name):
            raise ExportError(f"{where}: {name[:60]!r} is not a host name")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ExportError(f"{where}: host {twice!r} is named twice")
    return tuple(names)
