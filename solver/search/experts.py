"""Experts block: which replica of which expert sits on which expert-parallel rank, per MoE layer.

Minimise the busiest rank's load. A constructive heuristic with swaps gives the placement, closed-form bounds certify
it, and CP-SAT closes what remains where the layer is small enough. Both are imported for the layers that need them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from solver.cost.balance import (
    UNITS,
    expert_counts,
    expert_share,
    load_factor_ppm,
    mean_ppm,
    rank_loads,
    slots_per_rank,
)
from solver.place.bounds import MOST_LARGE, is_crowded
from solver.place.state import Shelf
from solver.specs.problem import Problem
from solver.strategy import num_slots

PPM_PERFECT = 10**6
"""Load factor of perfect balance."""
CLOSE_SECONDS = 5.0
"""CP-SAT on all layers of a placement together: tiny layers take milliseconds, and large ones seldom close."""
ENGINE_TURNS = 1
"""Turns of the heuristic search per layer: what it leaves open, CP-SAT closes where the layer is small."""


@dataclass(frozen=True)
class LayerPlacement:
    """Placement of one layer: slots of every rank, busiest load and its proved lower bound (billionths)."""

    slots_of_rank: tuple[tuple[int, ...], ...]
    busiest: int
    bound: int


@dataclass(frozen=True)
class ExpertsResult:
    """Placement of the distinct layers and their mean load factors, parts per million."""

    layers: tuple[LayerPlacement, ...]
    lambda_ppm: int
    bound_ppm: int


def expert_bound_ppm(problem: Problem, moe_ep: int) -> int:
    """Lower bound on the mean load factor over MoE layers for `moe_ep` ranks; closed form."""
    capacities = slots_per_rank(num_slots(problem.llm, problem.redundant_experts), moe_ep)
    factors = [load_factor_ppm(layer_bound(counts, capacities), moe_ep) for counts in expert_counts(problem)]
    return mean_ppm(factors)


def layer_bound(counts_e: Sequence[int], capacities: Sequence[int]) -> int:
    """Lower bound on the busiest rank's load, in billionths.

    The mean; the hottest expert over its most replicas; without redundancy, the t heaviest experts on the q ranks
    that hold them together with those ranks' lightest possible company (EXPERTS 2); with redundancy, the replicas that
    small shares need (EXPERTS 1), and that few large ones fit on a rank; the fullest rank's slots.
    """
    ranks, slots, total = len(capacities), sum(capacities), sum(counts_e)
    most = min(ranks, 1 + slots - len(counts_e))
    bound = max(-(-UNITS // ranks), max(expert_share(count, total, most) for count in counts_e))
    shares_e = np.array([expert_share(count, total, 1) for count in counts_e])
    if slots == len(counts_e):
        bound = max(bound, _partition_bound(shares_e, capacities))
    else:
        bound = _crowding_bound(shares_e, capacities, _counting_bound(shares_e, capacities, bound))
    # A rank fills all its slots with different experts: at least the lightest ones, each cut as often as possible.
    lightest = sorted(expert_share(count, total, most) for count in counts_e)
    return max(bound, sum(lightest[: max(capacities)]))


def _counting_bound(shares_e: np.ndarray, capacities: Sequence[int], known: int) -> int:
    """Replicas of at most theta each need ``sum ceil(share / theta)`` slots: the least theta for which they suffice."""

    def suffice(theta: int) -> bool:
        replicas = -(-shares_e // theta)
        return bool(replicas.max() <= len(capacities) and np.maximum(replicas, 1).sum() <= sum(capacities))

    low, high = max(known, 1) - 1, int(shares_e.max())
    if high <= low + 1 or suffice(low + 1):
        return known
    while high > low + 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffice(middle) else (middle, high)
    return high


def _crowding_bound(shares_e: np.ndarray, capacities: Sequence[int], known: int) -> int:
    """A rank holds at most ``k - 1`` replicas above ``theta / k``: the least theta for which they are not too many."""
    slots_r = np.array(capacities)

    def suffice(theta: int) -> bool:
        first_e = np.maximum(-(-shares_e // theta), 1)
        return not any(
            is_crowded(first_e, np.maximum(-(-shares_e // (theta // k)), 1), slots_r, k)
            for k in range(2, min(max(capacities), MOST_LARGE + 1) + 1)
        )

    low, high = max(known, 1) - 1, int(shares_e.max()) * max(capacities)
    if high <= low + 1 or low + 1 < max(capacities) or suffice(low + 1):
        return known
    while high > low + 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffice(middle) else (middle, high)
    return high


def _in_units(bound: float, counts_e: Sequence[int]) -> int:
    """A bound in tokens, in billionths of the layer's tokens, rounded down with an allowance for its own rounding."""
    return int(bound / sum(counts_e) * (1 - 1e-9) * UNITS)


def _partition_bound(shares_e: np.ndarray, capacities: Sequence[int]) -> int:
    heavy = np.sort(shares_e)[::-1]
    top = np.concatenate([[0], np.cumsum(heavy)])
    light = np.concatenate([[0], np.cumsum(heavy[::-1])])
    most = np.cumsum(sorted(capacities, reverse=True))
    fewest = np.cumsum(sorted(capacities))
    t = np.arange(1, len(heavy) + 1)[:, None]
    q = np.arange(1, len(capacities) + 1)[None, :]
    possible = (most[None, :] >= t) & (q <= t)
    # q ranks hold the t heaviest; their least company fills the q smallest capacities with the lightest experts.
    company = light[np.clip(fewest[None, :] - t, 0, len(heavy))]
    mean = -(-(top[t] + company) // q)
    return int(np.where(possible, mean, np.iinfo(np.int64).max).min(axis=1).max())


def solve_experts(problem: Problem, moe_ep: int, deadline: float) -> ExpertsResult:
    """Placement of every distinct MoE layer on `moe_ep` ranks; stops at the deadline (``time.monotonic``)."""
    capacities = slots_per_rank(num_slots(problem.llm, problem.redundant_experts), moe_ep)
    layers = solve_layers(expert_counts(problem), capacities, deadline)
    return ExpertsResult(
        layers,
        mean_ppm([load_factor_ppm(layer.busiest, moe_ep) for layer in layers]),
        mean_ppm([load_factor_ppm(layer.bound, moe_ep) for layer in layers]),
    )


def solve_layers(
    counts_le: Sequence[Sequence[int]], capacities: Sequence[int], deadline: float
) -> tuple[LayerPlacement, ...]:
    """Placements: the heuristic for all layers at once, bounds, and CP-SAT where they differ and the layer is small."""
    uneven = [counts for counts in counts_le if len(set(counts)) > 1 or sum(capacities) > len(counts)]
    engine = iter(_engine(uneven, capacities, deadline) if uneven else ())
    deadline = min(deadline, time.monotonic() + CLOSE_SECONDS)
    layers = []
    for counts_e in counts_le:
        if len(set(counts_e)) == 1 and sum(capacities) == len(counts_e):
            # Equal experts without redundancy: the rank with most slots is as busy in any order.
            busiest = max(capacities) * expert_share(counts_e[0], sum(counts_e), 1)
            layers.append(LayerPlacement(_linear(capacities), busiest, busiest))
            continue
        slots, bound = next(engine)
        layers.append(_closed(counts_e, capacities, slots, max(bound, layer_bound(counts_e, capacities)), deadline))
    return tuple(layers)


def _closed(
    counts_e: Sequence[int], capacities: Sequence[int], slots: list[list[int]], bound: int, deadline: float
) -> LayerPlacement:
    """A placement, and what CP-SAT makes of it and of its bound where they differ."""
    from solver.place.close import Closed, close_layer

    best = Closed(slots, max(rank_loads(counts_e, slots)), bound)
    if best.busiest > best.bound:
        best = close_layer(counts_e, capacities, best, deadline - time.monotonic())
    return LayerPlacement(tuple(tuple(sorted(rank)) for rank in best.slots), best.busiest, best.bound)


def _linear(capacities: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Experts in order, rank after rank."""
    ends = list(accumulate(capacities))
    return tuple(tuple(range(end - capacity, end)) for end, capacity in zip(ends, capacities, strict=True))


def _engine(
    counts_le: Sequence[Sequence[int]], capacities: Sequence[int], deadline: float
) -> list[tuple[list[list[int]], int]]:
    """Placements and bounds (billionths) by the engine of ``solver place``; turns bound its effort: reproducible."""
    from solver.place.static import Effort, place_static

    shelf = Shelf.of(tuple(capacities))
    left = max(0.0, deadline - time.monotonic())
    found = place_static(np.array(counts_le, dtype=np.float64), shelf, Effort(left, gap=0.0, turns=ENGINE_TURNS))
    ends = np.cumsum(shelf.slots_r)[:-1]
    return [
        ([rank.tolist() for rank in np.split(slot_n, ends)], _in_units(float(bound), counts_e))
        for slot_n, bound, counts_e in zip(found.slot_ln, found.bound_l, counts_le, strict=True)
    ]
