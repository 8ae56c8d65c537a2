"""A what-if for people: intervals, a chart in characters, CSV, and a picture by matplotlib (extra ``report``)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from solver.errors import ReportError
from solver.explanation import Probe, WhatIf
from solver.report.charts import PALETTE
from solver.report.terminal import bullets, headed, heading, plural
from solver.units import short_ns

ROWS, COLUMNS = 12, 64
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
WIDE = 20
"""Ratio of the ends from which on an axis is logarithmic."""


def show_what_if(console: Console, answer: WhatIf) -> None:
    """Breakpoints, intervals, chart."""
    points = ", ".join(f"{value:,}" for value in answer.breakpoints) or "none"
    console.print(
        Text.assemble(
            ("PROVED" if answer.complete else "NOT COMPLETE", "bold green" if answer.complete else "bold yellow"),
            f"  {plural(len(answer.intervals), 'interval')} of {answer.parameter} from {answer.first:,} to "
            f"{answer.last:,} {answer.unit}; breakpoints: {points} ({plural(len(answer.probes), 'solve')}, "
            f"{answer.wall_s:.1f} s)",
        )
    )
    heading(console, "Intervals", f"of equal degrees, {answer.parameter} in {answer.unit}")
    columns = [("", "l"), ("from", "r"), ("to", "r"), ("winner", "l"), (answer.objective, "r"), ("", "r"), ("", "w")]
    table = headed(columns)
    letters = letter_of(answer)
    for interval in answer.intervals:
        sure = "every value proved" if interval.proved else "solved values proved, none other assumed between"
        table.add_row(
            "", letters[interval.signature], f"{interval.first:,}", f"{interval.last:,}",
            interval.signature or "no plan",
            *(_value(v, answer.objective_unit) for v in (interval.objective_first, interval.objective_last)),
            sure if interval.status in ("OPTIMAL", "INFEASIBLE") else interval.status,
        )  # fmt: skip
    console.print(table)
    lines = chart_lines(answer)
    if lines:
        heading(console, f"{answer.objective} ({answer.objective_unit}) by {answer.parameter} ({answer.unit})")
        for line in lines:
            console.print(Text(line))
    console.print()
    bullets(console, answer.remarks)


def letter_of(answer: WhatIf) -> dict[str | None, str]:
    """A letter for every winner, in order of appearance; no plan is a dash."""
    letters: dict[str | None, str] = {None: "-"}
    for interval in answer.intervals:
        letters.setdefault(interval.signature, LETTERS[(len(letters) - 1) % len(LETTERS)])
    return letters


def _value(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return short_ns(value) if unit == "ns" else f"{value:,.5g}"


def _solved(answer: WhatIf) -> list[tuple[Probe, float]]:
    return [(probe, probe.objective) for probe in answer.probes if probe.objective is not None]


def chart_lines(answer: WhatIf) -> list[str]:
    """A chart in characters: every solved value, drawn with the letter of its winner; nothing with fewer than two."""
    points = _solved(answer)
    if len(points) < 2:
        return []
    x_of = _Scale([float(probe.value) for probe in answer.probes], COLUMNS)
    y_of = _Scale([value for _, value in points], ROWS)
    letters = letter_of(answer)
    grid = [[" "] * COLUMNS for _ in range(ROWS)]
    for probe, value in points:
        grid[ROWS - 1 - y_of(value)][x_of(float(probe.value))] = letters[probe.signature]
    high, low = max(value for _, value in points), min(value for _, value in points)
    labels = {0: _value(high, answer.objective_unit), ROWS - 1: _value(low, answer.objective_unit)}
    width = max(len(text) for text in labels.values())
    lines = [f"  {labels.get(row, ''):>{width}} |{''.join(cells)}" for row, cells in enumerate(grid)]
    left, right = f"{answer.first:,}", f"{answer.last:,}"
    axis = f"  {'':>{width}} +{'-' * COLUMNS}"
    return [*lines, axis, f"  {'':>{width}}  {left}{right:>{COLUMNS - len(left)}}"]


class _Scale:
    """Position of a number among `cells` cells, linear or logarithmic."""

    def __init__(self, values: list[float], cells: int) -> None:
        self.low, self.high, self.cells = min(values), max(values), cells
        self.logarithmic = self.low > 0 and self.high / self.low >= WIDE

    def __call__(self, value: float) -> int:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return 0 if high <= low else round((value - low) / (high - low) * (self.cells - 1))


def csv_lines(answer: WhatIf) -> Iterator[str]:
    """Every solved value as one row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = (answer.parameter, "unit", "status", "signature", "label", "gpus", answer.objective, "objective_unit")
    writer.writerow(header)
    for probe in answer.probes:
        writer.writerow(
            (
                probe.value, answer.unit, probe.status, probe.signature or "", probe.label or "",
                "" if probe.gpus is None else probe.gpus, "" if probe.objective is None else repr(probe.objective),
                answer.objective_unit,
            )
        )  # fmt: skip
    yield text.getvalue()


def check_matplotlib() -> None:
    """Refuse a picture that could not be drawn, before any work is done for it.

    Raises
    ------
    ReportError
        matplotlib is not installed.
    """
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise ReportError("pictures need matplotlib: install shardwright[report], or write --csv FILE")


def picture(answer: WhatIf, form: str) -> bytes:
    """The objective over the parameter, a colour per winner, a line per breakpoint; `form` is svg or png.

    Raises
    ------
    ReportError
        matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "shardwright", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(8.6, 4.2), layout="constrained")
        axes = figure.add_subplot()
        colours: dict[str | None, str] = {}
        for probe, value in _solved(answer):
            if probe.signature not in colours:
                colours[probe.signature] = PALETTE[len(colours) % len(PALETTE)]
                axes.plot([], [], marker="o", linestyle="", color=colours[probe.signature], label=probe.signature)
            axes.plot(probe.value, value, marker="o", linestyle="", color=colours[probe.signature], markersize=5)
        for value in answer.breakpoints:
            axes.axvline(value, color="#999999", linewidth=0.8, linestyle="--")
        if answer.first > 0 and answer.last / answer.first >= WIDE:
            axes.set_xscale("log")
        axes.set_xlabel(f"{answer.parameter} ({answer.unit})")
        axes.set_ylabel(f"{answer.objective} ({answer.objective_unit})")
        if colours:
            axes.legend(frameon=False, fontsize=8)
        content = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
        figure.savefig(content, format=form, metadata=metadata, dpi=150)
    return content.getvalue()
