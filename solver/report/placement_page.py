"""An expert placement as a page: rank loads before and after, layers, windows, slots, moves, traffic, in pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from solver.errors import ReportError
from solver.expertmap import ExpertPlacement, SlotCurve
from solver.report.charts import INK, PALETTE, figure_svg
from solver.report.document import Block, Bullets, Document, Drawing, Grid, Paragraph, Section
from solver.report.html import page
from solver.report.placed import Map, balances, before_of, rank_loads, slot_rows
from solver.report.terminal import plural
from solver.specs.windows import LoadWindow
from solver.units import short_ns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_MOVES = 100
"""Most moves that the page lists."""
BAR_LAYERS = 3
"""Layers whose ranks are drawn as bars: those that were worst before."""
BEFORE, AFTER = PALETTE[1], PALETTE[0]
ABOVE, BELOW = (0.80, 0.16, 0.20), (0.16, 0.42, 0.72)
"""Red and blue of the heat map, as shares."""
HEAT_SPAN = 0.5
"""Loads below 1 minus and above 1 plus this have the colours of the ends."""


def check_page(path: str | None) -> None:
    """Refuse a name that is no page, before any work is done for it.

    Raises
    ------
    ReportError
        It does not end with .html.
    """
    if path is not None and not path.lower().endswith(".html"):
        raise ReportError(f"--report {path[:80]!r}: end it with .html")
    if path is not None:
        figure_svg("trial", lambda _figure: None)  # matplotlib is there, or the sentence says how to get it


def placement_html(placed: ExpertPlacement, windows: Sequence[LoadWindow], current: Map | None = None) -> str:
    """The whole page, without scripts.

    Parameters
    ----------
    current : the map in force, to compare with; absent means the one that engines start with

    Raises
    ------
    ReportError
        matplotlib is not installed.
    """
    return page(placement_document(placed, windows, current), lambda _chart: "")


def placement_document(placed: ExpertPlacement, windows: Sequence[LoadWindow], current: Map | None = None) -> Document:
    """The page as data."""
    start = before_of(placed, current)
    before, after = rank_loads(start, windows), rank_loads(placed, windows)
    balance = balances(start, windows)
    origin = "the map in force" if current is not None else "experts dealt in order, as engines start"
    sections = [
        Section("Summary", tuple(_summary(placed, balance, origin))),
        Section("What to make of it", (Bullets(placed.advice),)),
        Section("Ranks", tuple(_ranks(before, after, origin))),
        Section("Layers", tuple(_layers(placed, balance))),
        Section("Windows", tuple(_windows(placed))),
    ]
    if placed.slot_curve is not None:
        sections.append(Section("Slots per rank", tuple(_slots(placed.slot_curve))))
    if placed.moves is not None or placed.curve:
        sections.append(Section("Moves", tuple(_moves(placed))))
    if placed.layers[0].traffic is not None:
        sections.append(Section("Traffic between nodes", tuple(_traffic(placed))))
    sections.append(Section("Every layer", (_table(placed),)))
    return Document(
        f"Expert placement on {plural(placed.ranks, 'rank')}",
        f"{plural(placed.num_layers, 'MoE layer')}, {placed.num_experts} experts, seed {placed.seed}",
        tuple(sections),
    )


def _drawing(title: str, kind: str, draw: Callable[[Figure], None], height: float = 3.0) -> Drawing:
    return Drawing(title, lambda: figure_svg(kind, draw, height))


def _summary(placed: ExpertPlacement, balance: np.ndarray, origin: str) -> Iterator[Block]:
    slots = sorted(set(placed.slots_of_rank))
    each = f"{slots[0]}" if len(slots) == 1 else f"{slots[0]} to {slots[-1]}"
    redundant = sum(placed.slots_of_rank) - placed.num_experts
    gaps = [layer.gap for layer in placed.layers]
    rows = [
        ("Status", placed.status + (", interrupted" if placed.interrupted else "")),
        ("Slots", f"{each} per rank, {redundant} redundant of {sum(placed.slots_of_rank)}"),
        ("Balancedness", f"{placed.balancedness:.5f} mean, {placed.worst_balancedness:.5f} in the worst layer"),
        ("Before", f"{balance.mean():.5f} mean, {balance.min():.5f} worst: {origin}"),
        ("Proved gap", f"{sum(gaps) / len(gaps):.3%} mean, {max(gaps):.3%} widest"),
        ("Aim", placed.aim if len(placed.windows) > 1 else "the one window"),
    ]
    if placed.survives != "nothing":
        rows.append(("Survives", f"the loss of any one {placed.survives}"))
    if placed.dead_ranks:
        rows.append(("Dead ranks", ", ".join(map(str, placed.dead_ranks))))
    worth = placed.worth
    if worth is not None:
        rows.append(
            (
                "A single step",
                f"{worth.balancedness:.4f} at {worth.tokens_per_step:,} tokens of top-{worth.top_k}, "
                f"{worth.perfect:.4f} if the ranks were perfectly balanced",
            )
        )
        if worth.layer_ns is not None and worth.perfect_layer_ns is not None:
            rows.append(
                (
                    "Routed experts",
                    f"{short_ns(worth.layer_ns)} a layer, {short_ns(worth.perfect_layer_ns)} if balanced",
                )
            )
    yield Grid(("", ""), tuple(rows))


# --- ranks ------------------------------------------------------------------------------------------------------------


def _ranks(before: np.ndarray, after: np.ndarray, origin: str) -> Iterator[Block]:
    yield Paragraph(f"Load relative to the mean rank, for the mixture of the windows. Before: {origin}.")
    worst = np.argsort(-before.max(axis=1), kind="stable")[:BAR_LAYERS]
    words = ", ".join(str(layer) for layer in worst)
    yield _drawing(
        f"Ranks of the layers that were worst ({words})",
        "ranks",
        lambda figure: _bars(figure, before, after, worst.tolist()),
        0.6 + 1.4 * len(worst),
    )
    height = min(7.0, max(2.2, 1.2 + 0.09 * len(before)))
    yield _drawing("Every layer and rank", "heat", lambda figure: _heat(figure, before, after), height)


def _bars(figure: Figure, before: np.ndarray, after: np.ndarray, layers: list[int]) -> None:
    """A row per layer: before behind, after in front."""
    rows = figure.subplots(len(layers), 1, sharex=True, squeeze=False)[:, 0]
    rank = np.arange(before.shape[1])
    for axes, layer in zip(rows, layers, strict=True):
        axes.bar(rank - 0.2, before[layer], width=0.4, color=BEFORE, label="before")
        axes.bar(rank + 0.2, after[layer], width=0.4, color=AFTER, label="as placed")
        axes.axhline(1.0, color=INK, linewidth=0.8, linestyle="--")
        axes.set_ylabel(f"layer {layer}")
        axes.set_xlim(-0.8, len(rank) - 0.2)
    rows[0].legend(loc="upper right", ncols=2, fontsize=8)
    rows[-1].set_xlabel("rank")


def _heat(figure: Figure, before: np.ndarray, after: np.ndarray) -> None:
    """Two maps with one scale: red above the mean, blue below, the colour of the page at it."""
    from matplotlib.colors import LinearSegmentedColormap

    ends = [(*BELOW, 1.0), (*BELOW, 0.0), (*ABOVE, 0.0), (*ABOVE, 1.0)]
    colours = LinearSegmentedColormap.from_list("loads", list(zip((0.0, 0.5, 0.5, 1.0), ends, strict=True)))
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, loads, title in ((left, before, "before"), (right, after, "as placed")):
        drawn = axes.imshow(
            loads, cmap=colours, vmin=1 - HEAT_SPAN, vmax=1 + HEAT_SPAN, aspect="auto", interpolation="nearest"
        )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("rank")
        axes.spines[["top", "right"]].set_visible(True)
    left.set_ylabel("layer")
    figure.colorbar(drawn, ax=[left, right], extend="both", label="load / mean", fraction=0.04, pad=0.02)


# --- layers and windows -----------------------------------------------------------------------------------------------


def _layers(placed: ExpertPlacement, balance: np.ndarray) -> Iterator[Block]:
    def draw(figure: Figure) -> None:
        top, low = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        layer, after = np.arange(len(balance)), [part.balancedness for part in placed.layers]
        top.plot(layer, balance, color=BEFORE, marker=".", linewidth=0.8, label="before")
        top.plot(layer, after, color=AFTER, marker=".", linewidth=0.8, label="as placed")
        top.set_ylabel("balancedness")
        top.set_ylim(top=1.02)
        top.legend(loc="lower right", ncols=2, fontsize=8)
        low.bar(layer, [100 * part.gap for part in placed.layers], color=PALETTE[2])
        low.set_ylabel("gap, %")
        low.set_xlabel("layer")

    yield _drawing("Balancedness of every layer and the proved gap", "layers", draw, 4.0)
    hot = [(at, layer.binding) for at, layer in enumerate(placed.layers) if layer.binding.startswith("hottest")]
    if hot:
        names = ", ".join(f"{at} ({binding.removeprefix('hottest ')})" for at, binding in hot[:12])
        more = f" and {len(hot) - 12} more" if len(hot) > 12 else ""
        yield Paragraph(f"One expert alone binds the layers {names}{more}: no placement in these slots does better.")


def _windows(placed: ExpertPlacement) -> Iterator[Block]:
    rows = [
        (
            window.name,
            f"{window.weight:g}",
            f"{window.balancedness:.5f}",
            "-" if window.held_out is None else f"{window.held_out:.4f}",
            "-" if window.held_out_split is None else f"{window.held_out_split:.4f}",
        )
        for window in placed.windows
    ]
    note = (
        "Held out: placed from the other windows and judged in this one, which is what to expect of traffic not seen."
    )
    yield Grid(
        ("window", "weight", "balancedness", "held out", "split anew"), tuple(rows), note if len(rows) > 1 else ""
    )
    if len(rows) == 1:
        yield Paragraph("One window cannot say how balanced tomorrow is; give several.")


# --- slots, moves, traffic --------------------------------------------------------------------------------------------


def _slots(curve: SlotCurve) -> Iterator[Block]:
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        number = [point.slots_per_rank for point in curve.points]
        for colour, name, values in (
            (AFTER, "in the windows", [point.balancedness for point in curve.points]),
            (PALETTE[2], "held out", [point.held_out for point in curve.points]),
            (PALETTE[7], "in a single step", [point.step_balancedness for point in curve.points]),
        ):
            known = [(x, y) for x, y in zip(number, values, strict=True) if y is not None]
            if known:
                axes.plot(*zip(*known, strict=True), color=colour, marker="o", markersize=4, label=name)
        axes.axvline(curve.recommended, color=INK, linewidth=0.8, linestyle="--", label="recommended")
        axes.set_xticks(number)
        axes.set_xlabel("slots per rank")
        axes.set_ylabel("balancedness")
        axes.legend(loc="lower right", fontsize=8)
        _times(axes, curve)

    yield _drawing("Balance against slots per rank", "slots", draw)
    header, rows = slot_rows(curve)
    note = f"{curve.recommended} slots per rank are the fewest within {curve.tolerance:.2%} of the best."
    yield Grid(header, rows, note)


def _times(axes: Axes, curve: SlotCurve) -> None:
    """The layer's time on an axis of its own, where it is known."""
    known = [(point.slots_per_rank, point.layer_ns / 1e3) for point in curve.points if point.layer_ns is not None]
    if not known:
        return
    other = axes.twinx()
    other.plot(*zip(*known, strict=True), color=PALETTE[5], marker="s", markersize=4, linestyle=":")
    other.set_ylabel("routed experts of a layer, us (dotted)", color=PALETTE[5])
    other.spines["right"].set_visible(True)


def _moves(placed: ExpertPlacement) -> Iterator[Block]:
    if placed.curve:
        points = placed.curve

        def draw(figure: Figure) -> None:
            axes = figure.add_subplot()
            number = [point.moves for point in points]
            axes.plot(number, [point.balancedness for point in points], color=AFTER, marker="o", label="reached")
            axes.plot(
                number, [point.bound for point in points], color=INK, linestyle="--", linewidth=0.8, label="bound"
            )
            axes.set_xlabel("most replicas loaded per layer")
            axes.set_ylabel("balancedness")
            axes.legend(loc="lower right", fontsize=8)

        yield _drawing("Balance against moves", "moves", draw)
        rows = tuple((str(p.moves), f"{p.balancedness:.5f}", f"{p.bound:.5f}") for p in points)
        yield Grid(("moves per layer", "balancedness", "at most"), rows)
    if placed.moves is None:
        return
    shown = placed.moves[:MAX_MOVES]
    yield Paragraph(
        f"{plural(len(placed.moves), 'replica')} to load, in this order every expert stays served"
        + (f"; the first {MAX_MOVES} are listed." if len(placed.moves) > len(shown) else ".")
    )
    rows4 = tuple(
        (
            str(move.layer),
            str(move.rank),
            str(move.slot),
            str(move.replaces) if move.replaces >= 0 else "-",
            str(move.expert),
            "disk" if move.source_rank is None else f"rank {move.source_rank}",
        )
        for move in shown
    )
    if rows4:
        yield Grid(("layer", "rank", "slot", "out", "in", "from"), rows4)


def _traffic(placed: ExpertPlacement) -> Iterator[Block]:
    pairs = [(layer.traffic, layer.traffic_bound) for layer in placed.layers]
    leaves = [100 * (value or 0.0) for value, _ in pairs]
    least = [100 * (value or 0.0) for _, value in pairs]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.bar(range(len(leaves)), leaves, color=AFTER, label="as placed")
        axes.step(range(len(least)), least, where="mid", color=INK, linewidth=1, label="no placement has less")
        axes.set_xlabel("layer")
        axes.set_ylabel("% of token copies")
        axes.legend(loc="lower right", fontsize=8)

    yield _drawing("Token copies that leave their node", "traffic", draw)
    mean, bound = sum(leaves) / len(leaves), sum(least) / len(least)
    yield Paragraph(
        f"On average {mean:.1f} % of the token copies leave their node; no placement has less than {bound:.1f} %."
    )


def _table(placed: ExpertPlacement) -> Grid:
    moved = any(layer.moves is not None for layer in placed.layers)
    header = ("layer", "status", f"busiest rank, {placed.unit}", "bound", "gap", "balancedness", "bound by")
    rows = tuple(
        (
            str(at),
            layer.status,
            f"{layer.objective:,.6g}",
            f"{layer.bound:,.6g}",
            f"{layer.gap:.3%}",
            f"{layer.balancedness:.5f}",
            layer.binding,
            *((str(layer.moves),) if moved else ()),
        )
        for at, layer in enumerate(placed.layers)
    )
    return Grid((*header, *(("moves",) if moved else ())), rows)
