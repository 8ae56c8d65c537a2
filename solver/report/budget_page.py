"""A budget of redundant slots as a page: what slots buy, where they go, and equal slots beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from solver.report.charts import INK, PALETTE, figure_svg
from solver.report.document import Block, Bullets, Document, Drawing, Grid, Section
from solver.report.html import page
from solver.report.terminal import plural
from solver.slotbudget import SlotBudget

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def budget_html(placed: SlotBudget) -> str:
    """The whole page, without scripts.

    Raises
    ------
    ReportError
        matplotlib is not installed.
    """
    return page(budget_document(placed), lambda _chart: "")


def budget_document(placed: SlotBudget) -> Document:
    """The page as data."""
    return Document(
        f"{placed.budget:,} redundant slots over {plural(placed.num_layers, 'MoE layer')}",
        f"{placed.num_experts} experts on {plural(placed.ranks, 'rank')}, seed {placed.seed}",
        (
            Section("Summary", (_summary(placed),)),
            Section("What to make of it", (Bullets(placed.advice),)),
            Section("What slots buy", tuple(_tradeoff(placed))),
            Section("Where they go", tuple(_layers(placed))),
            Section("Every layer", (_table(placed),)),
        ),
    )


def _summary(placed: SlotBudget) -> Block:
    each = placed.spent / placed.num_layers / placed.ranks
    kind = "equally many on the ranks of a layer" if placed.whole_slots else "a layer's ranks differ by at most one"
    rows = [
        ("Status", placed.status + (", interrupted" if placed.interrupted else "")),
        ("Spent", f"{placed.spent:,} of {placed.budget:,}, {each:.3f} per rank and layer; {kind}"),
        ("Busiest rank", f"{placed.objective:.5f} of the mean over the layers, no less than {placed.bound:.5f}"),
        ("Enough", f"{placed.enough:,} slots are within 0.05 % of that"),
        ("Balancedness", f"{placed.balancedness:.5f}"),
        ("Every GPU", f"{min(placed.slots_of_gpu):,} to {max(placed.slots_of_gpu):,} slots over all layers"),
        *((f"Window {window.name}", f"{window.balancedness:.5f}") for window in placed.windows),
    ]
    return Grid(("", ""), tuple(rows))


def _tradeoff(placed: SlotBudget) -> Iterator[Block]:
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        spent = [point.redundant for point in placed.tradeoff]
        axes.plot(
            spent, [p.objective for p in placed.tradeoff], color=PALETTE[0], marker=".", label="each layer its own"
        )
        axes.plot(spent, [p.bound for p in placed.tradeoff], color=INK, linestyle="--", linewidth=0.8, label="bound")
        uniform = [(each.redundant, each.objective) for each in placed.uniform]
        if uniform:
            axes.scatter(*zip(*uniform, strict=True), color=PALETTE[1], zorder=3, label="equal slots everywhere")
        axes.set_xlabel("redundant slots over all layers")
        axes.set_ylabel("busiest rank / mean")
        axes.legend(loc="upper right", fontsize=8)

    yield Drawing("Busiest rank against redundant slots", lambda: figure_svg("tradeoff", draw))
    rows = tuple(
        (
            str(each.slots_per_rank),
            f"{each.redundant:,}",
            f"{each.objective:.5f}",
            "within the budget" if each.fits else "above it",
        )
        for each in placed.uniform
    )
    note = "Engines accept the same slots on every rank of every layer."
    yield Grid(("slots per rank", "redundant", "busiest rank", ""), rows, note)


def _layers(placed: SlotBudget) -> Iterator[Block]:
    def draw(figure: Figure) -> None:
        top, low = figure.subplots(2, 1, sharex=True)
        layer = np.arange(placed.num_layers)
        before = [np.nan if part.curve[0].objective is None else part.curve[0].objective for part in placed.layers]
        top.plot(layer, before, color=PALETTE[1], marker=".", linewidth=0.8, label="fewest slots")
        after = [part.objective for part in placed.layers]
        top.plot(layer, after, color=PALETTE[0], marker=".", linewidth=0.8, label="as dealt")
        top.set_ylabel("busiest rank / mean")
        top.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, fontsize=8)
        low.bar(layer, [part.redundant for part in placed.layers], color=PALETTE[2])
        low.set_ylabel("redundant slots")
        low.set_xlabel("layer")

    yield Drawing("Busiest rank of every layer and its redundant slots", lambda: figure_svg("dealt", draw, 4.0))


def _table(placed: SlotBudget) -> Grid:
    rows = tuple(
        (
            str(at),
            str(layer.redundant),
            f"{min(layer.slots_of_rank)} to {max(layer.slots_of_rank)}",
            layer.status,
            f"{layer.objective:.5f}",
            f"{layer.bound:.5f}",
            f"{layer.gap:.3%}",
        )
        for at, layer in enumerate(placed.layers)
    )
    return Grid(("layer", "redundant", "slots per rank", "status", "busiest rank", "bound", "gap"), rows)
