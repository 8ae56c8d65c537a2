"""An expert placement on the terminal: figures, rank-load bars, a heat map before and after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.text import Text

from solver.expertmap import ExpertPlacement, SlotCurve
from solver.report.placed_traffic import show_traffic, show_update
from solver.report.terminal import STYLE_OF_STATUS, bar, bullets, grid, headed, heading
from solver.specs.windows import LoadWindow
from solver.units import short_bytes, short_ns

SHADES = " ░▒▓█"
ASCII_SHADES = " .:*#"
MAX_CELLS = 64
MAX_LAYERS = 16
BAR_WIDTH = 22

Map = Sequence[Sequence[int]]
"""Logical expert of every slot, a row per layer."""


def show_placed(
    console: Console, placed: ExpertPlacement, windows: Sequence[LoadWindow], current: Map | None = None
) -> None:
    """The placement for people, beside the map in force (or the one that engines start with)."""
    verdict = Text.assemble(
        (placed.status, STYLE_OF_STATUS[placed.status]),
        "  interrupted" if placed.interrupted else "",
        f"  {placed.num_layers} layers x {placed.num_experts} experts on {placed.ranks} ranks, "
        f"{sum(placed.slots_of_rank)} slots: mean balancedness {placed.balancedness:.5f}, "
        f"worst layer {placed.worst_balancedness:.5f}",
    )
    console.print(verdict)
    _windows(console, placed)
    loads = rank_loads(placed, windows)
    before = rank_loads(before_of(placed, current), windows)
    _bars(console, placed, before, loads)
    _heat(console, before, loads, "in force" if current is not None else "dealt in order")
    _layers(console, placed)
    if placed.slot_curve is not None:
        _slots(console, placed.slot_curve)
    if placed.curve:
        heading(console, "Moves", "most replicas loaded per layer")
        table = headed([("moves", "r"), ("balancedness", "r"), ("at most", "r")])
        for point in placed.curve:
            table.add_row("", str(point.moves), f"{point.balancedness:.5f}", f"{point.bound:.5f}")
        console.print(table)
    show_traffic(console, placed)
    show_update(console, placed)
    if placed.advice:
        heading(console, "What to make of it")
        bullets(console, placed.advice)


def rank_loads(placed: ExpertPlacement, windows: Sequence[LoadWindow]) -> np.ndarray:
    """Load of every layer and rank for the mixture of the windows, mean 1 over the living ranks."""
    alive = placed.ranks - len(placed.dead_ranks)
    total = sum(window.weight for window in windows)
    mixture = sum(
        window.weight / total * window.count_le / window.count_le.sum(axis=1, keepdims=True) for window in windows
    )
    loads = np.zeros((placed.num_layers, placed.ranks))
    ranks = np.array(placed.rank_of_slot)
    for layer, row in enumerate(placed.physical_to_logical_map):
        slot_n = np.array(row)
        used = slot_n >= 0
        count = np.bincount(slot_n[used], minlength=placed.num_experts)
        share = 1 / count[slot_n[used]] if placed.split is None else np.array(placed.split[layer])[used]
        np.add.at(loads[layer], ranks[used], np.asarray(mixture)[layer][slot_n[used]] * share * alive)
    return loads


def _windows(console: Console, placed: ExpertPlacement) -> None:
    heading(console, "Windows", "mean balancedness; held out: placed from the other windows")
    table = headed([("window", "l"), ("weight", "r"), ("here", "r"), ("held out", "r"), ("split anew", "r")])
    for window in placed.windows:
        held = ["-" if value is None else f"{value:.4f}" for value in (window.held_out, window.held_out_split)]
        table.add_row("", window.name, f"{window.weight:g}", f"{window.balancedness:.5f}", *held)
    console.print(table)


def _bars(console: Console, placed: ExpertPlacement, before: np.ndarray, loads: np.ndarray) -> None:
    """Ranks of the worst layer, by load, before and after."""
    layer = min(range(placed.num_layers), key=lambda at: placed.layers[at].balancedness)
    heading(console, "Ranks", f"of layer {layer}, the worst one: load relative to the mean, before and as placed")
    order = np.argsort(-loads[layer], kind="stable")
    shown = [*order[:4], *order[-4:]] if len(order) > 8 else list(order)
    most = max(1.0, float(loads[layer].max()), float(before[layer].max()))
    table = grid("r", "r", "l", "r", "l")
    for rank in shown:
        old, new = float(before[layer, rank]), float(loads[layer, rank])
        bars = [bar(load / most, BAR_WIDTH, console).ljust(BAR_WIDTH) for load in (old, new)]
        table.add_row("", str(rank), f"{old:.3f}", bars[0], f"{new:.3f}", bars[1].rstrip())
    console.print(table)


def _heat(console: Console, before: np.ndarray, loads: np.ndarray, origin: str) -> None:
    """Layers x ranks before and after, of the layers that were worst; darker where a rank is above the mean."""
    shades = ASCII_SHADES if console.options.ascii_only else SHADES
    rows = np.sort(np.argsort(-before.max(axis=1), kind="stable")[:MAX_LAYERS])
    which = f"the {len(rows)} layers that were worst" if len(rows) < len(loads) else "all layers"
    heading(console, "Heat", f"{which}; left {origin}, right as placed; a cell per rank, full from 1.5 x mean")
    width = min(MAX_CELLS // 2, loads.shape[1])
    table = grid("r", "l", "l")
    for layer in rows:
        cells = [
            "".join(_shade(float(part.max()), shades) for part in np.array_split(of[layer], width))
            for of in (before, loads)
        ]
        table.add_row("", str(layer), *cells)
    console.print(table)


def _slots(console: Console, curve: SlotCurve) -> None:
    """Balance against slots per rank; columns that no point fills are left out."""
    heading(console, "Slots per rank", f"the fewest within {curve.tolerance:.2%} of the best are marked")
    header, rows = slot_rows(curve)
    table = headed([("", "l"), *((name, "r") for name in header)])
    for point, row in zip(curve.points, rows, strict=True):
        table.add_row("", "*" if point.slots_per_rank == curve.recommended else "", *row)
    console.print(table)


def slot_rows(curve: SlotCurve) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Header and rows of a table of the curve, as far as its points say something."""
    columns: list[tuple[str, list[str]]] = [("slots", [str(point.slots_per_rank) for point in curve.points])]
    for name, values, words in (
        ("balancedness", [point.balancedness for point in curve.points], "{:.4f}"),
        ("held out", [point.held_out for point in curve.points], "{:.4f}"),
        ("in a step", [point.step_balancedness for point in curve.points], "{:.4f}"),
    ):
        if any(value is not None for value in values):
            columns.append((name, ["-" if value is None else words.format(value) for value in values]))
    times = [point.layer_ns for point in curve.points]
    if any(time is not None for time in times):
        columns.append(("layer", ["-" if time is None else short_ns(time) for time in times]))
    memory = [point.memory_bytes for point in curve.points]
    if any(size is not None for size in memory):
        columns.append(("per GPU", ["-" if size is None else short_bytes(size) for size in memory]))
    return tuple(name for name, _ in columns), tuple(zip(*(cells for _, cells in columns), strict=True))


def _shade(load: float, shades: str) -> str:
    """Shade of a load: blank up to 0.9 of the mean, full from 1.5."""
    step = int((load - 0.9) / 0.6 * (len(shades) - 1) + 0.5)
    return shades[max(0, min(len(shades) - 1, step))]


def before_of(placed: ExpertPlacement, current: Map | None) -> ExpertPlacement:
    """The map in force; without one, what engines start with: slot n holds expert n modulo the experts."""
    slots = sum(placed.slots_of_rank)
    row = tuple(slot % placed.num_experts for slot in range(slots))
    rows = (row,) * placed.num_layers if current is None else tuple(tuple(row) for row in current)
    return placed.model_copy(update={"physical_to_logical_map": rows, "split": None, "dead_ranks": ()})


def balances(placed: ExpertPlacement, windows: Sequence[LoadWindow]) -> np.ndarray:
    """Balancedness of every layer, weighted mean over the windows."""
    of_window = [1 / rank_loads(placed, [window]).max(axis=1) for window in windows]
    mean: np.ndarray = np.average(of_window, axis=0, weights=[window.weight for window in windows])
    return mean


def _layers(console: Console, placed: ExpertPlacement) -> None:
    heading(console, "Layers", "the widest gaps")
    table = headed([("layer", "r"), ("status", "l"), ("balancedness", "r"), ("gap", "r"), ("bound by", "w")])
    for at in sorted(range(placed.num_layers), key=lambda at: -placed.layers[at].gap)[:5]:
        layer = placed.layers[at]
        table.add_row("", str(at), layer.status, f"{layer.balancedness:.5f}", f"{layer.gap:.3%}", layer.binding)
    console.print(table)
