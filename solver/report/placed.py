"""An expert placement on the terminal: figures, rank-load bars, a heat map before and after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.text import Text

from solver.expertmap import ExpertPlacement
from solver.report.placed_traffic import show_traffic, show_update
from solver.report.terminal import STYLE_OF_STATUS, bar, bullets, grid, headed, heading
from solver.specs.windows import LoadWindow

SHADES = " ░▒▓█"
ASCII_SHADES = " .:*#"
MAX_CELLS = 64
MAX_LAYERS = 16
BAR_WIDTH = 36


def show_placed(console: Console, placed: ExpertPlacement, windows: Sequence[LoadWindow]) -> None:
    """The placement for people."""
    verdict = Text.assemble(
        (placed.status, STYLE_OF_STATUS[placed.status]),
        f"  {placed.num_layers} layers x {placed.num_experts} experts on {placed.ranks} ranks, "
        f"{sum(placed.slots_of_rank)} slots: mean balancedness {placed.balancedness:.5f}, "
        f"worst layer {placed.worst_balancedness:.5f}",
    )
    console.print(verdict)
    _windows(console, placed)
    loads = rank_loads(placed, windows)
    _bars(console, placed, loads)
    _heat(console, placed, loads, windows)
    _layers(console, placed)
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


def _bars(console: Console, placed: ExpertPlacement, loads: np.ndarray) -> None:
    """Ranks of the worst layer, by load."""
    layer = min(range(placed.num_layers), key=lambda at: placed.layers[at].balancedness)
    heading(console, "Ranks", f"of layer {layer}, the worst one; load relative to the mean")
    order = np.argsort(-loads[layer], kind="stable")
    shown = [*order[:4], *order[-4:]] if len(order) > 8 else list(order)
    table = grid("r", "r", "l")
    for rank in shown:
        load = float(loads[layer, rank])
        table.add_row("", str(rank), f"{load:.4f}", bar(load / max(1.0, float(loads[layer].max())), BAR_WIDTH, console))
    console.print(table)


def _heat(console: Console, placed: ExpertPlacement, loads: np.ndarray, windows: Sequence[LoadWindow]) -> None:
    """Layers x ranks: before (experts dealt in order) and after, darker where a rank is above the mean."""
    before = linear_loads(placed, windows)
    shades = ASCII_SHADES if console.options.ascii_only else SHADES
    heading(console, "Heat", "a row per layer, a cell per rank; left in order, right as placed; full is 1.5 x mean")
    rows = np.unique(np.linspace(0, placed.num_layers - 1, min(MAX_LAYERS, placed.num_layers)).astype(int))
    width = min(MAX_CELLS // 2, placed.ranks)
    table = grid("r", "l", "l")
    for layer in rows:
        cells = [
            "".join(_shade(float(part.max()), shades) for part in np.array_split(of[layer], width))
            for of in (before, loads)
        ]
        table.add_row("", str(layer), *cells)
    console.print(table)


def _shade(load: float, shades: str) -> str:
    """Shade of a load: blank up to 0.9 of the mean, full from 1.5."""
    step = int((load - 0.9) / 0.6 * (len(shades) - 1) + 0.5)
    return shades[max(0, min(len(shades) - 1, step))]


def linear_loads(placed: ExpertPlacement, windows: Sequence[LoadWindow]) -> np.ndarray:
    """Loads of the map that engines start with: slot n holds expert n modulo the experts."""
    slots = sum(placed.slots_of_rank)
    row = tuple(slot % placed.num_experts for slot in range(slots))
    start = placed.model_copy(
        update={"physical_to_logical_map": (row,) * placed.num_layers, "split": None, "dead_ranks": ()}
    )
    return rank_loads(start, windows)


def _layers(console: Console, placed: ExpertPlacement) -> None:
    heading(console, "Layers", "the widest gaps")
    table = headed([("layer", "r"), ("status", "l"), ("balancedness", "r"), ("gap", "r"), ("bound by", "l")])
    for at in sorted(range(placed.num_layers), key=lambda at: -placed.layers[at].gap)[:5]:
        layer = placed.layers[at]
        table.add_row("", str(at), layer.status, f"{layer.balancedness:.5f}", f"{layer.gap:.3%}", layer.binding)
    console.print(table)
