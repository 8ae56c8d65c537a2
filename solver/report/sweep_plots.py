"""Pictures of a sweep: the objective over one or two axes, and which strategy wins where. Drawn by matplotlib (extra
``report``)."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from string import ascii_uppercase
from typing import TYPE_CHECKING

from solver.errors import ReportError
from solver.report.charts import INK, PALETTE, STYLE
from solver.swept import Axis, Row, Swept

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 6
"""Panels of one picture: combinations of the axes that are neither x nor y."""
MAX_LINES = 10
MAX_NAMED = 11
"""Strategies with a colour of their own; the rarer ones share one."""
MAX_TICKS = 24
LOG_RATIO = 16.0
"""Largest over smallest value from which an axis is logarithmic."""
MARKS = {"INFEASIBLE": "-", "UNKNOWN": "?", "REFUSED": "x", "FAILED": "x", "CRASHED": "x"}
MEANING = {"-": "infeasible, proved", "?": "nothing found in time", "x": "refused, failed or crashed"}
REST, BLANK = "#c8c8c8", "#f2f2f2"


@dataclass(frozen=True)
class Picture:
    """One picture in two forms."""

    name: str
    """Name of its file, without ending."""
    title: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class _View:
    """The points of one objective, and the axes that span the picture."""

    rows: tuple[Row, ...]
    axes: tuple[Axis, ...]
    x: int
    y: int | None

    @property
    def others(self) -> list[int]:
        """Axes that make panels: those that vary beside x and y."""
        return [a for a in range(len(self.axes)) if a not in (self.x, self.y) and len({r.at[a] for r in self.rows}) > 1]

    def panels(self) -> list[tuple[str, list[Row]]]:
        """Title and points of every panel, in the order of the sweep."""
        found: dict[tuple[int, ...], list[Row]] = {}
        for row in self.rows:
            found.setdefault(tuple(row.at[a] for a in self.others), []).append(row)
        return [(self._title(place), rows) for place, rows in found.items()]

    def _title(self, place: tuple[int, ...]) -> str:
        """What is the same in all points of a panel."""
        chosen = ((self.axes[a], at) for a, at in zip(self.others, place, strict=True))
        return ", ".join(f"{axis.name} {axis.labels[at]}" for axis, at in chosen)


def pictures(swept: Swept, fields: Sequence[str] = ()) -> tuple[Picture, ...]:
    """The pictures of a sweep, two for every objective that has plans.

    Parameters
    ----------
    fields : axes for x and y; absent means the first that vary, numbers preferred for x

    Raises
    ------
    ReportError
        matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise ReportError("plots need matplotlib: install shardwright[report]") from error
    drawn: list[Picture] = []
    objectives = dict.fromkeys(row.objective for row in swept.rows)
    with rc_context(STYLE):  # type: ignore[arg-type]
        for objective in objectives:
            rows = tuple(row for row in swept.rows if row.objective == objective)
            if not swept.axes or not any(row.outcome.answer for row in rows):
                continue
            view = _view(swept, rows, fields)
            suffix = f"-{objective}" if len(objectives) > 1 else ""
            drawn.append(_picture(f"objective{suffix}", f"{swept.name}: {objective}", _objective(view)))
            drawn.append(_picture(f"winners{suffix}", f"{swept.name}: best strategy for {objective}", _winners(view)))
    return tuple(drawn)


def _view(swept: Swept, rows: tuple[Row, ...], fields: Sequence[str]) -> _View:
    names = [axis.name for axis in swept.axes]
    varying = [a for a in range(len(names)) if len({row.at[a] for row in rows}) > 1]
    chosen = [names.index(name) for name in fields]
    by_number = sorted(varying, key=lambda a: swept.axes[a].numbers is None)
    order = chosen + [a for a in by_number if a not in chosen]
    single = len(chosen) == 1 or len(order) < 2
    return _View(rows, swept.axes, order[0] if order else 0, None if single else order[1])


def _picture(name: str, title: str, figure: Figure) -> Picture:
    figure.suptitle(title, fontsize=12)
    text, image = io.StringIO(), io.BytesIO()
    figure.savefig(text, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    figure.savefig(image, format="png", facecolor="white", dpi=150, metadata={"Software": None})
    return Picture(name, title, text.getvalue(), image.getvalue())


def _grid(count: int, width: float, height: float, legend: float) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels of that size in inches, and room below for a legend."""
    from matplotlib.figure import Figure

    columns = min(count, 2 if width > 4 else 3)
    lines = ceil(count / columns)
    figure = Figure(figsize=(max(6.0, columns * width), lines * height + legend), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, axes[:count]


def _shown(view: _View) -> tuple[list[tuple[str, list[Row]]], str]:
    """The panels that are drawn, and a remark about those that are not."""
    panels = view.panels()
    left = len(panels) - MAX_PANELS
    return panels[:MAX_PANELS], f" ({left} more combinations of other axes are not drawn)" if left > 0 else ""


def _objective(view: _View) -> Figure:
    """Lines: the objective over x, one line per value of y; a gap where there is no plan."""
    panels, remark = _shown(view)
    figure, axes = _grid(len(panels), 5.2, 3.4, 0.6)
    answers = [row.outcome.answer for row in view.rows if row.outcome.answer is not None]
    unit, scale = ("ms", 1e-6) if answers[0].unit == "ns" else (answers[0].unit, 1.0)
    values = [answer.value * scale for answer in answers]
    x = view.axes[view.x]
    lines = sorted({row.at[view.y] for row in view.rows}) if view.y is not None else [None]
    for panel, (title, rows) in zip(axes, panels, strict=True):
        for number, line in enumerate(lines[:MAX_LINES]):
            found = {row.at[view.x]: row for row in rows if view.y is None or row.at[view.y] == line}
            at = sorted(found)
            heights = [
                answer.value * scale if (answer := found[place].outcome.answer) is not None else float("nan")
                for place in at
            ]
            label = None if view.y is None or line is None else view.axes[view.y].labels[line]
            panel.plot(
                [_place(x, place) for place in at], heights, marker="o", markersize=4,
                color=PALETTE[number % len(PALETTE)], label=label,
            )  # fmt: skip
        _scale_x(panel, x)
        if min(values) > 0 and max(values) / min(values) > LOG_RATIO:
            panel.set_yscale("log")
        panel.set_title(title, fontsize=9)
        panel.set_ylabel(f"{answers[0].objective}, {unit}")
    if view.y is not None:
        more = f" (first {MAX_LINES} of {len(lines)})" if len(lines) > MAX_LINES else ""
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            title=view.axes[view.y].name + more,
            loc="outside right upper",
            fontsize=8,
            title_fontsize=8,
        )
    _foot(figure, "A gap: no plan." if len(answers) < len(view.rows) else "", remark)
    return figure


def _foot(figure: Figure, sentence: str, remark: str) -> None:
    if sentence or remark:
        figure.supxlabel((sentence + remark).strip(), fontsize=8)


def _place(axis: Axis, at: int) -> float:
    """Where a value stands on the x axis: at its number, or at its turn."""
    return float(at) if axis.numbers is None else axis.numbers[at]


def _scale_x(panel: Axes, axis: Axis) -> None:
    numbers = axis.numbers
    panel.set_xlabel(axis.name)
    if numbers is None:
        _ticks(panel, axis)
    elif min(numbers) > 0 and max(numbers) / min(numbers) > LOG_RATIO:
        panel.set_xscale("log", base=2)
        panel.set_xticks(list(numbers), list(axis.labels), rotation=45 if len(numbers) > 6 else 0)
        panel.minorticks_off()


def _ticks(panel: Axes, axis: Axis) -> None:
    """The labels of an axis of words, turned when they are long."""
    step = ceil(len(axis.labels) / MAX_TICKS)
    places = list(range(0, len(axis.labels), step))
    labels = [axis.labels[place] for place in places]
    long = sum(map(len, labels)) > 36
    panel.set_xticks(places, labels, rotation=35 if long else 0, ha="right" if long else "center", fontsize=8)


def _winners(view: _View) -> Figure:
    """A coloured map: the winning degrees of an instance at every point, named by a letter."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    panels, remark = _shown(view)
    wins = Counter(row.outcome.answer.shape for row in view.rows if row.outcome.answer is not None)
    named = [shape for shape, _ in wins.most_common(MAX_NAMED)]
    tones = [_lighter(colour) for colour in PALETTE[:MAX_NAMED]]
    colours = ListedColormap([BLANK, REST, *tones])
    columns = len(view.axes[view.x].labels)
    lines = 1 if view.y is None else len(view.axes[view.y].labels)
    width, height = min(6.5, max(3.2, 1.6 + 0.55 * columns)), min(6.0, max(1.7, 1.2 + 0.42 * lines))
    figure, axes = _grid(len(panels), width, height, 0.35 * (len(named) + 3) ** 0.75)
    for panel, (title, rows) in zip(axes, panels, strict=True):
        grid = [[0] * columns for _ in range(lines)]
        for row in rows:
            across, up = row.at[view.x], 0 if view.y is None else row.at[view.y]
            text, grid[up][across] = _cell(row, named)
            if columns <= 16 and lines <= 24:
                panel.text(across, up, text, ha="center", va="center", fontsize=8, color=INK)
        panel.imshow(
            grid, cmap=colours, vmin=-0.5, vmax=MAX_NAMED + 1.5, origin="lower", aspect="auto", interpolation="nearest"
        )
        _ticks(panel, view.axes[view.x])
        panel.set_xlabel(view.axes[view.x].name)
        if view.y is None:
            panel.set_yticks([])
        else:
            panel.set_yticks(range(lines), view.axes[view.y].labels, fontsize=8)
            panel.set_ylabel(view.axes[view.y].name)
        panel.set_title(title, fontsize=9)
    keys = [
        Patch(facecolor=tones[i], label=f"{ascii_uppercase[i]}  {shape}, {wins[shape]} x")
        for i, shape in enumerate(named)
    ]
    if len(wins) > len(named):
        keys.append(Patch(facecolor=REST, label=f"+  {len(wins) - len(named)} others"))
    marks = dict.fromkeys(MARKS[row.outcome.status] for row in view.rows if row.outcome.status in MARKS)
    keys += [Patch(facecolor=BLANK, label=f"{mark}  {MEANING[mark]}") for mark in marks]
    starred = any(row.outcome.status == "FEASIBLE" for row in view.rows)
    told = "letter: degrees of an instance; number: GPUs" + ("; *: not proved" if starred else "") + remark
    figure.legend(
        handles=keys,
        title=told,
        loc="outside lower center",
        ncols=2 if len(keys) > 4 else 1,
        fontsize=8,
        title_fontsize=8,
    )
    return figure


def _lighter(colour: str) -> str:
    """A tone of a colour on which dark text is read well."""
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{part + (255 - part) * 2 // 5:02x}" for part in parts)


def _cell(row: Row, named: Sequence[str]) -> tuple[str, int]:
    """Text and colour of one point."""
    answer = row.outcome.answer
    if answer is None:
        return MARKS[row.outcome.status], 0
    star = "*" if row.outcome.status == "FEASIBLE" else ""
    if answer.shape not in named:
        return f"+{star}\n{answer.metrics.gpus_used:,}", 1
    number = named.index(answer.shape)
    return f"{ascii_uppercase[number]}{star}\n{answer.metrics.gpus_used:,}", number + 2
