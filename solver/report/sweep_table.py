"""A sweep on the terminal: a line per point, what has no plan, which strategies win."""

from __future__ import annotations

from collections import Counter

from rich.console import Console

from solver.report.terminal import bullets, grid, headed, heading, plural
from solver.swept import Row, Swept
from solver.units import gap_text, short_ns

MAX_LINES = 60
"""Points that are listed; all of them are in results.jsonl."""
MAX_REASONS = 8


def header_of(swept: Swept) -> tuple[str, ...]:
    """Titles of the columns of :func:`line_of`; a gap only where one is left."""
    gap = ("gap",) if _any_gap(swept) else ()
    return ("#", *(axis.name for axis in swept.axes), "answer", "GPUs", _common_unit(swept) or "objective", *gap)


def line_of(swept: Swept, row: Row) -> tuple[str, ...]:
    """One point as texts: where it is on the axes, and the strategy that came out, or why none did."""
    places = tuple(axis.labels[at] for axis, at in zip(swept.axes, row.at, strict=True))
    answer = row.outcome.answer
    if answer is None:
        return (str(row.index), *places, row.outcome.status, "", "", *([""] if _any_gap(swept) else []))
    value = short_ns(answer.value) if answer.unit == "ns" else f"{answer.value:,.6g}"
    if answer.unit != "ns" and _common_unit(swept) is None:
        value += f" {answer.unit}"
    gap = [gap_text(answer.gap) if answer.gap else ""] if _any_gap(swept) else []
    return (str(row.index), *places, answer.strategy.full_label, f"{answer.metrics.gpus_used:,}", value, *gap)


def _any_gap(swept: Swept) -> bool:
    return any(row.outcome.answer is not None and row.outcome.answer.gap for row in swept.rows)


def _common_unit(swept: Swept) -> str | None:
    """The unit of all objectives, if they are rates of one kind."""
    units = {row.outcome.answer.unit for row in swept.rows if row.outcome.answer is not None} - {"ns"}
    return units.pop() if len(units) == 1 and len({row.objective for row in swept.rows}) == 1 else None


def show_swept(console: Console, swept: Swept) -> None:
    """The whole summary."""
    reused = f", {swept.reused} of them from earlier runs" if swept.reused else ""
    console.print(f"Sweep {swept.name}: {plural(len(swept.rows), 'question')}{reused}")
    console.print()
    header = header_of(swept)
    numbers = (0, *range(header.index("GPUs"), len(header)))
    table = headed([(title, "r" if at in numbers else "l") for at, title in enumerate(header)])
    for row in swept.rows[:MAX_LINES]:
        table.add_row("", *line_of(swept, row))
    console.print(table)
    if len(swept.rows) > MAX_LINES:
        console.print(f"  ... and {len(swept.rows) - MAX_LINES:,} more in results.jsonl")
    _reasons(console, swept)
    heading(console, "Outcomes", ", ".join(f"{count:,} {status}" for status, count in swept.counts.items()))
    wins = Counter(row.outcome.answer.shape for row in swept.rows if row.outcome.answer is not None)
    if len(wins) > 1:
        heading(console, "Winners", "degrees of an instance, and how often they are best")
        tally = grid("l", "r")
        for shape, count in wins.most_common(MAX_REASONS):
            tally.add_row("", shape, f"{count:,}")
        console.print(tally)
    heading(console, "Written", f"to {swept.folder}")
    bullets(console, [", ".join(swept.files) + ", plans/", *swept.notes])


def _reasons(console: Console, swept: Swept) -> None:
    """Why points have no plan, equal reasons together."""
    told: dict[str, list[int]] = {}
    for row in swept.rows:
        if row.outcome.answer is None:
            told.setdefault(f"{row.outcome.status}: {'; '.join(row.outcome.reasons)}", []).append(row.index)
    if not told:
        return
    heading(console, "Without a plan")
    lines = [f"#{', #'.join(map(str, at[:5]))}{', ...' if len(at) > 5 else ''}: {why}" for why, at in told.items()]
    left = len(lines) - MAX_REASONS
    bullets(console, [*lines[:MAX_REASONS], *([f"{left} more reasons in report.md"] if left > 0 else [])])
