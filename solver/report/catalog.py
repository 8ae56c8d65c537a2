"""Catalog entries for people."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text

from solver.report.terminal import bullets, grid, heading
from solver.specs.catalog import CatalogEntry


def show_entries(console: Console, entries: Sequence[CatalogEntry]) -> None:
    """One line per entry, by kind."""
    names = max((len(entry.name) for entry in entries), default=0)
    for kind, group in groupby(entries, key=lambda entry: entry.kind):
        console.print(Text(kind, style="bold"))
        table = grid("l", "w")
        table.columns[1].min_width = names
        for entry in group:
            table.add_row("", entry.name, entry.summary)
        console.print(table)


def show_entry(console: Console, entry: CatalogEntry) -> None:
    """Summary, source, assumptions and the file itself."""
    console.print(Text.assemble((f"{entry.kind} {entry.name}", "bold"), f"  {entry.summary}"))
    console.print(Text(f"source: {entry.source}", style="dim"))
    if entry.assumptions:
        heading(console, "Assumptions")
        bullets(console, entry.assumptions)
    heading(console, "File")
    console.print(Text(entry.text.rstrip()), soft_wrap=True)
