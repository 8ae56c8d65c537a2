"""A Pareto front for people: table and plot on the terminal, CSV, pictures, and a section of a report."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from solver.cost.metrics import NATURAL_UNITS, natural_value
from solver.errors import ReportError
from solver.front import Front, FrontPoint
from solver.report.answer import limit_words
from solver.report.charts import INK, PALETTE, axes_svg
from solver.report.document import Block, Drawing, Grid, Paragraph, Section
from solver.report.terminal import bullets, headed, heading, plural, rate
from solver.specs.problem import ObjectiveName
from solver.units import short_ns

PLOT_ROWS = 14
STYLES = {"COMPLETE": "bold green", "PARTIAL": "bold yellow", "INFEASIBLE": "bold red", "UNKNOWN": "bold yellow"}
NAMES = {"latency": "request latency", "ttft": "TTFT", "tpot": "TPOT", "gpus": "GPUs"}
PICTURE_DPI = 160


def metric_text(metric: ObjectiveName, natural: float) -> str:
    """A metric's value in a readable unit."""
    unit = NATURAL_UNITS[metric]
    if unit == "ns":
        return short_ns(natural)
    return f"{natural:,.0f}" if metric == "gpus" else rate(natural, unit)


@dataclass(frozen=True)
class _Axis:
    """One metric of every point in a unit for axes."""

    values: tuple[float, ...]
    label: str


def _axis(front: Front, metric: ObjectiveName) -> _Axis:
    integers = [point.first if metric == front.first else point.second for point in front.points]
    natural = [natural_value(metric, integer, front.problem.workload.osl) for integer in integers]
    unit, scale = NATURAL_UNITS[metric], 1.0
    if unit == "ns":
        unit, scale = ("s", 1e-9) if max(natural, default=0.0) >= 1e9 else ("ms", 1e-6)
    name = NAMES.get(metric, metric)
    label = name if metric == "gpus" else f"{name}, {unit}"
    return _Axis(tuple(value * scale for value in natural), label)


def coverage(front: Front) -> str:
    """What is claimed about the front as a whole, in a sentence."""
    points = plural(len(front.points), "point")
    if front.status == "COMPLETE":
        return f"{points}: the whole front, proved; every other plan is as bad or worse in both metrics."
    if front.status == "PARTIAL":
        gaps = plural(len(front.gaps), "gap")
        return f"{points}, each proved nondominated; {gaps} between them not searched to the end ({front.ended})."
    if front.status == "INFEASIBLE":
        return "No plan at all, proved."
    return f"Nothing is proved ({front.ended})."


def show_front(console: Console, front: Front) -> None:
    """Status, plot, table, and what is proved."""
    names = " and ".join(NAMES.get(metric, metric) for metric in (front.first, front.second))
    console.print(Text.assemble((front.status, STYLES[front.status]), f"  {names}: {coverage(front)}"))
    problem = front.problem
    words = [f"{problem.llm.name} on {plural(problem.cluster.num_gpus, f'{problem.cluster.gpu.name} GPU')}"]
    console.print(Text("; ".join([*words, *limit_words(problem)]), style="dim"))
    if not front.points:
        console.print()
        bullets(console, front.reasons or ("give it more time",))
        return
    if len(front.points) > 1:
        console.print()
        for line in plot_lines(front, min(console.width - 2, 100), console.options.ascii_only):
            console.print(Text(line))
    heading(console, "Points", f"{len(front.steps)} proved solves in {front.wall_s:.1f} s")
    columns = [("", "r"), (front.first, "r"), (front.second, "r"), ("strategy", "l"), ("batch", "r"), ("GPUs", "r")]
    table = headed(columns)
    gaps = {gap.after for gap in front.gaps}
    for index, point in enumerate(front.points):
        strategy = point.plan.strategy
        cells = [*_values(front, point), strategy.full_label, str(strategy.batch), f"{point.plan.metrics.gpus_used:,}"]
        table.add_row("", str(index + 1), *cells)
        if index in gaps:
            table.add_row("", "", Text("...", style="dim"), "", Text("not searched", style="dim"), "", "")
    console.print(table)


def _values(front: Front, point: FrontPoint) -> tuple[str, str]:
    osl = front.problem.workload.osl
    return (
        metric_text(front.first, natural_value(front.first, point.first, osl)),
        metric_text(front.second, natural_value(front.second, point.second, osl)),
    )


def plot_lines(front: Front, width: int, ascii_only: bool) -> Iterator[str]:
    """Points in a frame of characters, the first metric to the right."""
    x, y = _axis(front, front.first), _axis(front, front.second)
    corner, bar, line, dot = ("+", "|", "-", "*") if ascii_only else ("└", "│", "─", "●")
    left = max(len(f"{value:,.4g}") for value in (min(y.values), max(y.values)))
    inner = max(10, width - left - 3)
    cells = [[" "] * inner for _ in range(PLOT_ROWS)]
    for a, b in zip(x.values, y.values, strict=True):
        column = _position(a, x.values, inner)
        cells[PLOT_ROWS - 1 - _position(b, y.values, PLOT_ROWS)][column] = dot
    yield f"  {y.label}"
    for row, content in enumerate(cells):
        mark = f"{max(y.values):,.4g}" if row == 0 else f"{min(y.values):,.4g}" if row == PLOT_ROWS - 1 else ""
        yield f"  {mark:>{left}} {bar}{''.join(content)}".rstrip()
    yield f"  {'':>{left}} {corner}{line * inner}"
    low, high = f"{min(x.values):,.4g}", f"{max(x.values):,.4g}"
    yield f"  {'':>{left}}  {low}{x.label:^{max(1, inner - len(low) - len(high))}}{high}"


def _position(value: float, values: tuple[float, ...], cells: int) -> int:
    low, high = min(values), max(values)
    return 0 if high == low else round((value - low) / (high - low) * (cells - 1))


def csv_lines(front: Front) -> Iterator[str]:
    """One row per point: both metrics, the others, and the strategy."""
    header = (
        "point", "latency_ns", "ttft_ns", "tpot_ns", "throughput_tokens_per_s", "efficiency_tokens_per_s_per_gpu",
        "gpus", "strategy", "micro_batches", "batch", "prefill_batch", "gap_after",
    )  # fmt: skip
    gaps = {gap.after for gap in front.gaps}
    yield _csv(header)
    for index, point in enumerate(front.points):
        m, s = point.plan.metrics, point.plan.strategy
        yield _csv((
            index + 1, m.request_latency_ns, m.ttft_ns, m.tpot_ns, m.throughput_tokens_per_s,
            m.efficiency_tokens_per_s_per_gpu, m.gpus_used, s.full_label, s.micro_batches, s.batch, s.prefill_batch,
            int(index in gaps),
        ))  # fmt: skip


def _csv(row: tuple[object, ...]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(row)
    return text.getvalue()


# --- pictures ---------------------------------------------------------------------------------------------------------


def picture(front: Front, kind: str) -> bytes:
    """The front as ``png`` or ``svg``.

    Raises
    ------
    ReportError
        matplotlib is not installed, or there are no points.
    """
    if not front.points:
        raise ReportError("the front has no points, so there is nothing to draw")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ReportError("a picture needs matplotlib: install shardwright[report], or write --csv") from error
    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    _draw(axes, front, "black")
    axes.set_title(f"{front.problem.llm.name} on {front.problem.cluster.name}: {front.status}")
    content = io.BytesIO()
    if kind == "svg":
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    else:
        figure.savefig(content, format="png", dpi=PICTURE_DPI)
    return content.getvalue()


def _draw(axes: object, front: Front, ink: str) -> None:
    """Points, joined by the staircase of what they dominate; dotted across what was not searched."""
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    x, y = _axis(front, front.first), _axis(front, front.second)
    gaps = {gap.after for gap in front.gaps}
    for i in range(len(front.points) - 1):
        style = ":" if i in gaps else "-"
        corner = (x.values[i + 1], y.values[i])
        columns, rows = zip((x.values[i], y.values[i]), corner, (x.values[i + 1], y.values[i + 1]), strict=True)
        axes.plot(columns, rows, style, color=PALETTE[0], linewidth=1)
    axes.scatter(x.values, y.values, color=PALETTE[1], s=24, zorder=3)
    axes.set_xlabel(x.label)
    axes.set_ylabel(y.label)
    axes.grid(color=ink, alpha=0.12)


def front_section(front: Front) -> Section:
    """The front as a section of a plan's report."""
    rows = [
        (str(index + 1), *_values(front, point), point.plan.strategy.full_label, f"{point.plan.metrics.gpus_used:,}")
        for index, point in enumerate(front.points)
    ]
    names = tuple(NAMES.get(metric, metric).capitalize() for metric in (front.first, front.second))
    blocks: list[Block] = [Paragraph(coverage(front))]
    if rows:
        blocks.append(Grid(("Point", *names, "Strategy", "GPUs"), tuple(rows)))
        title = f"{NAMES.get(front.first, front.first)} against {NAMES.get(front.second, front.second)}"
        blocks.append(Drawing(title, lambda: axes_svg("pareto", lambda axes: _draw(axes, front, INK))))
    return Section("Pareto Front", tuple(blocks), 3)
