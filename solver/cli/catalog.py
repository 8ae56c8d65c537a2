"""Commands that show what is in the catalog."""

from __future__ import annotations

import json
from typing import Annotated

import typer

catalog_app = typer.Typer(
    help="LLMs, GPUs, clusters, workloads and calibrations that are known by name.", no_args_is_help=True
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
KINDS = "llm|gpu|cluster|workload|calibration"


@catalog_app.command("list")
def list_entries(
    kind: Annotated[
        str | None, typer.Argument(metavar=f"[{KINDS}]", help="Only this kind.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the entries, one line each."""
    from solver.report.catalog import show_entries
    from solver.report.terminal import terminal
    from solver.specs.catalog import KINDS, describe, names

    kinds = KINDS if kind is None else (kind,)
    entries = [describe(each, name) for each in kinds for name in names(each)]
    if as_json:
        rows = [{"kind": e.kind, "name": e.name, "summary": e.summary, "source": e.source} for e in entries]
        typer.echo(json.dumps(rows, indent=2))
    else:
        show_entries(terminal(), entries)


@catalog_app.command("show")
def show_entry(
    kind: Annotated[str, typer.Argument(metavar=KINDS, help="Kind of the entry.", show_default=False)],
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name as listed; clusters also NAMExN.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Show one entry: its numbers, their sources, and what it assumes."""
    from solver.report import catalog as report
    from solver.report.terminal import terminal
    from solver.specs.catalog import describe

    entry = describe(kind, name)
    if as_json:
        shown = {
            "kind": entry.kind,
            "name": entry.name,
            "summary": entry.summary,
            "source": entry.source,
            "assumptions": entry.assumptions,
            "record": entry.record.model_dump(mode="json"),
        }
        typer.echo(json.dumps(shown, indent=2))
    else:
        report.show_entry(terminal(), entry)
