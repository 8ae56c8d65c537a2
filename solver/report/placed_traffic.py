"""Traffic, pinned groups and updates of an expert placement on the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from solver.expertmap import ExpertPlacement, TrafficLevel
from solver.report.terminal import bullets, headed, heading
from solver.units import short_bytes

NOTES = {
    "copies": "share of token copies that leave their unit; at least what the bound says",
    "trace": "further units that a token is sent to, counted on the trace",
    "pairs": "further units that a token is sent to, the least that the pair counts allow",
    "groups": "further units that a token is sent to, for routing limited to groups (an assumption)",
}


def show_traffic(console: Console, placed: ExpertPlacement) -> None:
    """Traffic of every level, mean over the layers, and what was given up for it."""
    if placed.wires is None:
        return
    heading(console, "Traffic", NOTES[placed.wires.counted])
    table = headed(
        [("between", "l"), ("copies", "r"), ("sends", "r"), ("at most", "r"), ("bound", "r"), ("proved", "r")]
    )
    columns = zip(*(layer.levels for layer in placed.layers if layer.levels is not None), strict=True)
    for levels in columns:
        counted = placed.wires.counted != "copies"
        table.add_row(
            "", f"{levels[0].unit}s", f"{_mean(level.share for level in levels):.4f}",
            _shown(level.sends for level in levels), _shown(level.sends_most for level in levels),
            _shown((level.sends_bound if counted else level.share_bound) for level in levels), _proved(levels),
        )  # fmt: skip
    console.print(table)
    said = []
    given_up = [
        layer.objective / layer.plain_objective - 1 for layer in placed.layers if layer.plain_objective is not None
    ]
    if given_up and placed.wires.tolerance is not None:
        said.append(
            f"{_mean(given_up):.2%} of the busiest rank's load was given up for less traffic, of "
            f"{placed.wires.tolerance:.2%} allowed."
        )
    grouping = placed.grouping
    if grouping is not None and grouping.pinned_balancedness is not None and not grouping.pinned:
        sends = (
            "" if grouping.pinned_sends is None else f" and sends a token to {grouping.pinned_sends:.3f} further nodes"
        )
        said.append(
            f"Every group pinned to one node has a balancedness of {grouping.pinned_balancedness:.4f}{sends}; this "
            f"placement has {placed.balancedness:.4f}."
        )
    bullets(console, said)


def show_update(console: Console, placed: ExpertPlacement) -> None:
    """Moves in bytes, and the fewest moves for a goal."""
    said = []
    bytes_of = placed.moved_bytes
    if bytes_of is not None:
        said.append(
            f"{len(placed.moves or ())} replicas are loaded, {short_bytes(bytes_of.moved_bytes)} in all, "
            f"{short_bytes(bytes_of.most_received_bytes)} onto the rank that loads most."
        )
    if placed.moves_for is not None:
        reached = [layer for layer in placed.layers if layer.objective <= (layer.moves_goal or 0.0) * (1 + 1e-7)]
        least = sum(layer.moves_bound or 0 for layer in reached)
        moves = sum(layer.moves or 0 for layer in reached)
        said.append(
            f"{placed.moves_for}: {len(reached)} of {placed.num_layers} layers reach it with {moves} moves, at least "
            f"{least} are needed."
        )
        impossible = sum(layer.moves_bound is None for layer in placed.layers)
        if impossible:
            said.append(f"In {impossible} layers no number of moves reaches it, proved.")
    if said:
        heading(console, "Update")
        bullets(console, said)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def _shown(values: Iterable[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    return f"{_mean(numbers):.4f}" if numbers else "-"


def _proved(levels: tuple[TrafficLevel, ...]) -> str:
    return f"{sum(level.status == 'OPTIMAL' for level in levels)} of {len(levels)}"
