"""Charts of a report as inline SVG, drawn by matplotlib (extra ``report``); text takes the colour of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from solver.cost.balance import expert_counts, rank_loads
from solver.errors import ReportError
from solver.plan import Plan
from solver.report.shares import GROUPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"
"""Stands for the page's own text colour until the SVG is written."""
PALETTE = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#ee8866", "#44bb99", "#99ddff",
           "#bbcc33", "#aaaa00")  # fmt: skip
"""Paul Tol's colour-blind safe sets; readable on light and dark."""
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "shardwright", "text.color": INK, "axes.edgecolor": INK,
    "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "font.size": 10, "axes.spines.top": False,
    "axes.spines.right": False, "font.family": "sans-serif", "legend.frameon": False,
}  # fmt: skip
"""Settings of matplotlib for every chart; equal data give equal files."""
MAX_RANKS = 512
"""Most expert-parallel ranks drawn one by one."""


def chart_svg(kind: str, plan: Plan) -> str | None:
    """One chart as SVG text; None when the plan has nothing to draw.

    Raises
    ------
    ReportError
        matplotlib is not installed.
    """
    drawn = False

    def draw(axes: Axes) -> None:
        nonlocal drawn
        drawn = DRAWN[kind](axes, plan)

    svg = axes_svg(kind, draw)
    return svg if drawn else None


def axes_svg(kind: str, draw: Callable[[Axes], None]) -> str:
    """What `draw` puts on one pair of axes, as SVG text; `kind` keeps its ids apart from those of other charts.

    Raises
    ------
    ReportError
        matplotlib is not installed.
    """
    return figure_svg(kind, lambda figure: draw(figure.add_subplot()))


def figure_svg(kind: str, draw: Callable[[Figure], None], height: float = 3.0) -> str:
    """What `draw` puts on a figure of so many inches, likewise.

    Raises
    ------
    ReportError
        matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ReportError(
            "charts need matplotlib: install shardwright[report], or write the report as Markdown (--out report.md)"
        ) from error
    from matplotlib import rc_context

    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(8.6, height), layout="constrained")
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    ids = sorted(set(re.findall(r'id="([^"]+)"', svg)), key=len, reverse=True)
    for name in ids:  # ids are unique in a page, several charts share it
        svg = re.sub(rf'(id="|#){re.escape(name)}(?=["\')])', rf"\g<1>{kind}-{name}", svg)
    return re.sub(r'(<svg[^>]*?) height="[^"]*"([^>]*?) width="[^"]*"', r"\1\2", svg, count=1)


def _times(axes: Axes, plan: Plan) -> bool:
    """Stacked bars: share of each component in a decode step and in a prefill."""
    names = list(dict.fromkeys(c.name for c in (*plan.breakdown.decode, *plan.breakdown.prefill)))
    for row, parts in enumerate((plan.breakdown.prefill, plan.breakdown.decode)):
        values = {c.name: max(0, c.ns) for c in parts}
        total, left = sum(values.values()) or 1, 0.0
        for index, name in enumerate(names):
            share = values.get(name, 0) / total * 100
            axes.barh(
                row, share, left=left, color=PALETTE[index % len(PALETTE)], label=name if row else None, height=0.6
            )
            left += share
    axes.set_yticks([0, 1], ["prefill", "decode step"])
    axes.set_xlabel("share of the time, %")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=3, fontsize=8)
    return True


def _memory(axes: Axes, plan: Plan) -> bool:
    """Stacked bars: gigabytes of the fullest rank of every stage, and the usable memory as a line."""
    gigabyte = 1024 / 1e9
    owner = {item: index for index, (_, _, _, items) in enumerate(GROUPS) for item in items}
    for index, (name, _, _, _) in enumerate(GROUPS):
        heights = [
            sum(kib for item, kib in stage.items_kib.items() if owner.get(item, 2) == index) * gigabyte
            for stage in plan.memory
        ]
        below = [
            sum(kib for item, kib in stage.items_kib.items() if owner.get(item, 2) < index) * gigabyte
            for stage in plan.memory
        ]
        axes.barh([stage.stage for stage in plan.memory], heights, left=below, color=PALETTE[index], label=name)
    axes.axvline(plan.memory[0].capacity_kib * gigabyte, color=INK, linestyle="--", linewidth=1, label="usable")
    axes.set_yticks([stage.stage for stage in plan.memory], [f"stage {stage.stage}" for stage in plan.memory])
    axes.invert_yaxis()
    axes.set_xlabel("GB")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=5, fontsize=8)
    return True


def mean_rank_loads(plan: Plan) -> list[float]:
    """Load of every expert-parallel rank, mean over the MoE layers, 1 being the mean of all ranks."""
    placement, counts = plan.placement, expert_counts(plan.problem)
    if not placement.expert_maps:
        return []
    sums = [0.0] * plan.strategy.moe_ep
    for layer, index in enumerate(placement.map_of_layer):
        loads = rank_loads(counts[layer % len(counts)], placement.expert_maps[index])
        mean = sum(loads) / len(loads)
        sums = [total + load / mean for total, load in zip(sums, loads, strict=True)]
    return [total / len(placement.map_of_layer) for total in sums]


def _balance(axes: Axes, plan: Plan) -> bool:
    """Bars: load of the expert-parallel ranks relative to their mean."""
    loads = mean_rank_loads(plan)
    if len(loads) < 2:
        return False
    shown = loads[:MAX_RANKS]
    axes.bar(range(len(shown)), shown, color=PALETTE[0], width=0.9)
    axes.axhline(1.0, color=INK, linewidth=1, linestyle="--")
    axes.set_ylim(0, max(1.2, max(shown) * 1.1))
    axes.set_xlabel("expert-parallel rank" + (f" (first {MAX_RANKS})" if len(loads) > MAX_RANKS else ""))
    axes.set_ylabel("load / mean")
    return True


def _runners(axes: Axes, plan: Plan) -> bool:
    """Points: GPUs against the objective, of the plan and of the strategies scored beside it."""
    scale = 1e-6 if plan.objective.unit == "ns" else 1.0
    others = plan.runners_up
    axes.scatter([r.gpus for r in others], [r.objective * scale for r in others], color=PALETTE[0], label="runners-up")
    axes.scatter(
        [plan.metrics.gpus_used], [plan.objective.value * scale], color=PALETTE[1], s=90, marker="*", label="plan"
    )
    axes.set_xlabel("GPUs")
    axes.set_ylabel(f"{plan.objective.name}, {'ms' if plan.objective.unit == 'ns' else plan.objective.unit}")
    axes.legend(fontsize=8)
    return bool(others)


DRAWN: dict[str, Callable[[Axes, Plan], bool]] = {
    "times": _times,
    "memory": _memory,
    "balance": _balance,
    "runners": _runners,
}
