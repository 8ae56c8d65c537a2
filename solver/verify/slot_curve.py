"""The judge of what a placement says about slots per rank and about single steps, plainly and with draws of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from solver.expertmap import ExpertPlacement
from solver.specs.windows import LoadWindow
from solver.verify.finding import Finding

SLOT_RULES: dict[str, str] = {
    "slots-curve": "slots per rank ascend, memory with them, and the placement's own point is what the placement says",
    "slots-choice": "the recommended slots are the fewest whose figure is within the tolerance of the best",
    "slots-worth": "a single step's balancedness is what independent draws give, and no better than without imbalance",
}
"""Rules of this judge, in its own words."""

DRAWS = 40
"""Simulated steps of a layer, over all windows."""
DRAWN_WITHIN = 0.02
"""Difference that two simulations may have."""


def judge_slots(placed: ExpertPlacement, windows: Sequence[LoadWindow]) -> Iterator[Finding]:
    """What is wrong with the slot curve and with the worth of balance; nothing where neither is stated."""
    yield from _curve(placed)
    yield from _choice(placed)
    yield from _worth(placed, windows)


def _curve(placed: ExpertPlacement) -> Iterator[Finding]:
    curve = placed.slot_curve
    if curve is None:
        return
    numbers = [point.slots_per_rank for point in curve.points]
    if numbers != sorted(set(numbers)) or not numbers:
        yield Finding("slots-curve", f"slots per rank do not ascend: {numbers}")
    each = {point.memory_bytes / point.slots_per_rank for point in curve.points if point.memory_bytes is not None}
    if len(each) > 1:
        yield Finding("slots-curve", f"a slot has different memory: {sorted(each)[:3]}")
    own = [point for point in curve.points if {point.slots_per_rank} == set(placed.slots_of_rank)]
    if not own or abs(own[0].balancedness - placed.balancedness) > 1e-9:
        yield Finding(
            "slots-curve", f"the placement's own {placed.slots_of_rank[0]} slots per rank are not on the curve"
        )
    worth = placed.worth
    if (
        own
        and worth is not None
        and (own[0].step_balancedness, own[0].layer_ns) != (worth.balancedness, worth.layer_ns)
    ):
        yield Finding("slots-curve", "the placement's own point says another worth than the placement")


def _choice(placed: ExpertPlacement) -> Iterator[Finding]:
    curve = placed.slot_curve
    if curve is None:
        return
    figures = {point.slots_per_rank: getattr(point, curve.judged_by) for point in curve.points}
    if any(figure is None for figure in figures.values()):
        yield Finding("slots-choice", f"the curve is judged by {curve.judged_by}, which some point lacks")
        return
    if curve.judged_by == "layer_ns":
        limit = min(figures.values()) * (1 + curve.tolerance)
        good = [number for number, figure in figures.items() if figure <= limit]
    else:
        limit = max(figures.values()) * (1 - curve.tolerance)
        good = [number for number, figure in figures.items() if figure >= limit]
    if curve.recommended != min(good):
        yield Finding(
            "slots-choice", f"{curve.recommended} slots are recommended, {min(good)} are within the tolerance"
        )


def _worth(placed: ExpertPlacement, windows: Sequence[LoadWindow]) -> Iterator[Finding]:
    worth = placed.worth
    if worth is None:
        return
    if not 0 < worth.balancedness <= worth.perfect + DRAWN_WITHIN or worth.perfect > 1 + 1e-9:
        yield Finding("slots-worth", f"{worth.balancedness:.4f} in a step, {worth.perfect:.4f} without imbalance")
    found = _drawn(placed, windows, worth.tokens_per_step * worth.top_k)
    if abs(found - worth.balancedness) > DRAWN_WITHIN:
        yield Finding("slots-worth", f"{worth.balancedness:.4f} in a step, draws give {found:.4f}")


def _drawn(placed: ExpertPlacement, windows: Sequence[LoadWindow], rows: int) -> float:
    """Balancedness of drawn steps, each from one window, mean over the layers."""
    rng, alive = np.random.default_rng(1), placed.ranks - len(placed.dead_ranks)
    each = -(-DRAWS // len(windows))
    total = weight = 0.0
    for window in windows:
        for layer in range(placed.num_layers):
            chance = np.array(_chance(placed, window, layer))
            busiest = rng.multinomial(rows, chance / chance.sum(), size=each).max(axis=1)
            total += window.weight * rows / alive * float((1 / busiest).mean())
            weight += window.weight
    return total / weight


def _chance(placed: ExpertPlacement, window: LoadWindow, layer: int) -> list[float]:
    """Tokens of a layer that every rank gets in a window."""
    row, rank_of_slot = placed.physical_to_logical_map[layer], placed.rank_of_slot
    replicas, chance = Counter(row), [0.0] * placed.ranks
    counts = [int(count) for count in window.count_le[layer]]
    for slot, expert in enumerate(row):
        if expert >= 0:
            part = 1 / replicas[expert] if placed.split is None else placed.split[layer][slot]
            chance[rank_of_slot[slot]] += counts[expert] * part
    return chance
