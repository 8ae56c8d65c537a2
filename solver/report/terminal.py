"""The terminal: a console that is plain when piped, and a few phrases that every view uses."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

MAX_WIDTH = 120
"""Widest layout; longer lines are hard to read."""
EIGHTHS = " ▏▎▍▌▋▊▉█"
STYLE_OF_STATUS = {
    "OPTIMAL": "bold green",
    "FEASIBLE": "bold yellow",
    "INFEASIBLE": "bold red",
    "UNKNOWN": "bold yellow",
}


def terminal(*, err: bool = False) -> Console:
    """Console on stdout (or stderr): colours only on a terminal and without NO_COLOR, at most 120 columns."""
    console = Console(
        file=sys.stderr if err else sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=False
    )
    if console.width > MAX_WIDTH:
        console.width = MAX_WIDTH
    return console


def heading(console: Console, title: str, note: str = "") -> None:
    """An empty line, then the title of a part with an optional remark."""
    console.print()
    console.print(Text.assemble((title, "bold"), (f"  {note}" if note else "", "dim")))


def grid(*widths_and_aligns: str) -> Table:
    """A borderless table, indented by two; one letter per column: l, r, or w (takes the remaining width)."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(width=0)
    for letter in widths_and_aligns:
        if letter == "r":
            table.add_column(justify="right", no_wrap=True)
        elif letter == "w":
            table.add_column(ratio=1, overflow="fold")
        else:
            table.add_column(no_wrap=True)
    return table


def headed(columns: Sequence[tuple[str, str]]) -> Table:
    """A borderless table with a dim header; columns as (title, letter) with the letters of :func:`grid`."""
    table = Table(box=None, show_header=True, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", width=0)
    for title, letter in columns:
        if letter == "w":
            table.add_column(title, ratio=1, overflow="fold")
        else:
            table.add_column(title, justify="right" if letter == "r" else "left", no_wrap=True)
    return table


def bullets(console: Console, sentences: Iterable[str], style: str = "") -> None:
    """Sentences as a list, wrapped with a hanging indent."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(width=1)
    table.add_column(width=1)
    table.add_column(ratio=1, overflow="fold")
    for sentence in sentences:
        table.add_row("", "-", Text(sentence, style=style))
    console.print(table)


def bar(share: float, width: int, console: Console) -> str:
    """A bar of `share` of `width` cells, in steps of an eighth; anything above nothing has one step."""
    if share <= 0:
        return ""
    if console.options.ascii_only:
        return "#" * max(1, round(min(1.0, share) * width))
    whole, eighths = divmod(max(1, round(min(1.0, share) * width * 8)), 8)
    return EIGHTHS[8] * whole + (EIGHTHS[eighths] if eighths else "")


def rate(value: float, unit: str) -> str:
    """A rate with thousands separators and four significant digits where it is small."""
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.4g} {unit}"


def plural(count: int, noun: str) -> str:
    """``1 stage``, ``2 stages``."""
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith(('s', 'x', 'h')) else 's'}"


def compact(numbers: Sequence[int]) -> str:
    """Numbers with ascending runs joined, in the given order: ``0-3 7 5``."""
    parts: list[str] = []
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            first, last = numbers[start], numbers[i - 1]
            parts.append(str(first) if i - start == 1 else f"{first}-{last}" if i - start > 2 else f"{first} {last}")
            start = i
    return " ".join(parts)
