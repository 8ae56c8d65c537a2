"""A budget of redundant slots over the layers: curves of every layer, then the exact best way to spend it.

A layer's curve is its busiest rank's load against its redundant slots, with a proved lower bound at every point; the
ranks of a layer differ by at most one slot. Curves need not be convex (nor fall everywhere), so the budget is dealt by
dynamic programming over all layers. The same programme over the bounds is a lower bound for every way to spend the
budget. Shape suffixes: L layers, K windows, E logical experts, N slots, P points of a curve.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from solver.place import clock
from solver.place.bounds import layer_bound
from solver.place.exact import Rules, is_small, least_load
from solver.place.finish import place_parallel, robust_parallel
from solver.place.robust import Aim
from solver.place.state import Floats, Ints, Shelf, State
from solver.place.static import Effort

CLOSED_GAP = 5e-4
"""Share above the mean rank load within which more slots buy nothing."""
EXACT_GAP = 1e-6
"""The same for layers that CP-SAT closes."""
SAFE = 1e-9
"""Relative allowance for rounding where bounds are added up."""


def slots_of_rank(slots: int, ranks: int) -> tuple[int, ...]:
    """Slots of every rank, the fuller ones first."""
    return tuple(slots // ranks + (rank < slots % ranks) for rank in range(ranks))


@dataclass
class Curves:
    """Points of all layers: redundant slots of every point, what was found there (infinite: nothing), and bounds."""

    redundant_p: Ints
    value_lp: Floats
    bound_lp: Floats
    slots: dict[tuple[int, int], Ints] = field(default_factory=dict)
    """Logical expert of every slot, by (layer, point)."""


@dataclass(frozen=True)
class Budget:
    """How a budget may be spent: ranks, slots of a layer at least and at most, whole slots per rank or single ones."""

    ranks: int
    num_experts: int
    least: int
    most: int
    whole: bool

    @property
    def redundant_p(self) -> Ints:
        """Redundant slots of every point of a curve, ascending."""
        step = self.ranks if self.whole else 1
        return np.arange(self.least, self.most + 1, step, dtype=np.int64) - self.num_experts

    def shelf(self, redundant: int) -> Shelf:
        """Slots of a layer with so many redundant ones."""
        return Shelf.of(slots_of_rank(self.num_experts + redundant, self.ranks))

    def is_uniform(self, redundant: int) -> bool:
        """Whether all ranks of the layer have equally many slots then."""
        return (self.num_experts + redundant) % self.ranks == 0


def layer_curves(load_lke: Floats, budget: Budget, aim: Aim, effort: Effort) -> Curves:
    """Curves of all layers; every window's loads sum to the number of ranks.

    A layer that is within :data:`CLOSED_GAP` of the mean needs no further slots; of the others the points are searched
    in an order that spreads over the curve, so that a time limit leaves none of its parts unknown.
    """
    redundant_p = budget.redundant_p
    layers, points = len(load_lke), len(redundant_p)
    bound_lp = _bounds(load_lke, budget, aim)
    curves = Curves(redundant_p, np.full((layers, points), np.inf), bound_lp)
    goal = aim.value_l(np.ones((1, load_lke.shape[1])))[0] * (1 + (EXACT_GAP if _small(budget) else CLOSED_GAP))
    order = list(_order(points, [at for at in range(points) if budget.is_uniform(int(redundant_p[at]))]))
    whole = {at for at in range(points) if budget.is_uniform(int(redundant_p[at]))} | {0}
    for turn, at in enumerate(order):
        left = effort.deadline - clock.monotonic()
        if turn and left <= 0:
            break
        closed = (curves.value_lp[:, : at + 1] <= goal).any(axis=1)
        open_l = np.arange(layers) if at in whole else np.flatnonzero(~closed)
        if len(open_l):
            effort.enter(f"{int(redundant_p[at])} redundant slots per layer", len(open_l))
            own = replace(effort, seconds=left / (len(order) - turn), begun=clock.monotonic())
            _search(load_lke, budget, aim, own, curves, (at, open_l))
    return curves


def _small(budget: Budget) -> bool:
    """Whether CP-SAT closes every point."""
    return is_small(budget.num_experts, budget.shelf(budget.most - budget.num_experts))


def _order(points: int, whole: list[int]) -> Iterator[int]:
    """Points of a curve: the first, those with equal ranks, then 1, 2, 4, ..., then the rest from the front."""
    first = [0, *whole]
    power = 1
    while power < points:
        first.append(power)
        power *= 2
    yield from dict.fromkeys([*first, *range(points)])


def _bounds(load_lke: Floats, budget: Budget, aim: Aim) -> Floats:
    """Closed-form bounds of all points; from the first that is the mean on, the mean."""
    layers, windows, _ = load_lke.shape
    bound_lp = np.empty((layers, len(budget.redundant_p)))
    floor = 1 - 1e-9  # below the mean rank load by more than any rounding
    for layer in range(layers):
        reached = False
        for at, redundant in enumerate(budget.redundant_p):
            found = np.full(windows, floor)
            if not reached:
                shelf = budget.shelf(int(redundant))
                found = np.array([layer_bound(load_lke[layer, k], shelf) for k in range(windows)])
                # Later points have bounds of their own, but none is below the mean.
                reached = bool((found <= 1 + 1e-9).all())
            bound_lp[layer, at] = aim.value_l(np.maximum(found, floor)[None])[0]
    return bound_lp


def _search(
    load_lke: Floats, budget: Budget, aim: Aim, effort: Effort, curves: Curves, where: tuple[int, Ints]
) -> None:
    """Place some layers with the slots of one point and note what was found."""
    at, layers = where
    shelf, load = budget.shelf(int(curves.redundant_p[at])), load_lke[layers]
    if load.shape[1] == 1:
        found = place_parallel(load[:, 0], shelf, effort)
        slot_ln, bound_l = found.slot_ln, found.bound_l
    else:
        robust = robust_parallel(load, shelf, aim, effort)
        slot_ln, bound_l = robust.slot_ln, robust.bound_l
    value_l = _value_l(load, slot_ln, shelf, aim)
    if is_small(load.shape[2], shelf) and aim.name != "quantile":
        for index in np.flatnonzero(value_l > bound_l * (1 + EXACT_GAP)).tolist():
            left = effort.deadline - clock.monotonic()
            solved = least_load(load[index], slot_ln[index], Rules(shelf), aim, left)
            value = float(_value_l(load[[index]], solved.slot_n[None], shelf, aim)[0])
            if value <= value_l[index]:
                slot_ln[index], value_l[index] = solved.slot_n, value
            bound_l[index] = min(max(bound_l[index], solved.bound), value_l[index])
    for index, layer in enumerate(layers.tolist()):
        curves.value_lp[layer, at] = value_l[index]
        curves.bound_lp[layer, at] = min(max(curves.bound_lp[layer, at], bound_l[index]), value_l[index])
        curves.slots[layer, at] = slot_ln[index]


def _value_l(load_lke: Floats, slot_ln: Ints, shelf: Shelf, aim: Aim) -> Floats:
    state = State(shelf, load_lke, np.zeros((len(load_lke), load_lke.shape[2])), slot_ln)
    return aim.value_l(state.rank_load_lkr().max(axis=2))


@dataclass(frozen=True)
class Allocation:
    """Point of every layer, the sum of the layers' values, and the fewest slots for nearly the same sum."""

    point_l: Ints
    total: float
    enough: int
    """Fewest redundant slots that stay within :data:`CLOSED_GAP` of the sum."""
    spent_b: Ints
    """Redundant slots over all layers, from the fewest on, ..."""
    least_b: Floats
    """... and the least sum of values for at most so many."""


def best_allocation(value_lp: Floats, redundant_p: Ints, budget: int) -> Allocation:
    """Points whose redundant slots sum to at most `budget` with the least sum of values; fewest slots among equals.

    Exact: dynamic programming over the layers and the slots spent beyond every layer's first point, in units of the
    points' common divisor. Infinite values are never chosen. The budget must pay for the first point of every layer.
    """
    layers = len(value_lp)
    extra_p = redundant_p - redundant_p[0]
    unit = int(np.gcd.reduce(extra_p)) or 1
    cost_p = extra_p // unit
    width = min((budget - layers * int(redundant_p[0])) // unit, layers * int(cost_p[-1])) + 1
    best = np.zeros(width)
    choice = np.zeros((layers, width), dtype=np.int32)
    for layer in range(layers):
        now = np.full(width, np.inf)
        for point, cost in enumerate(cost_p.tolist()):
            if cost >= width or not np.isfinite(value_lp[layer, point]):
                continue
            trial = np.full(width, np.inf)
            trial[cost:] = best[: width - cost] + value_lp[layer, point]
            better = trial < now - 1e-12
            now[better], choice[layer, better] = trial[better], point
        best = now
    least = float(best.min())
    spent = int(np.flatnonzero(best <= least + 1e-12)[0])
    point_l = np.zeros(layers, dtype=np.int64)
    left = spent
    for layer in range(layers - 1, -1, -1):
        point = int(choice[layer, left])
        point_l[layer], left = point, left - int(cost_p[point])
    total = float(value_lp[np.arange(layers), point_l].sum())
    enough = int(np.flatnonzero(best <= total * (1 + CLOSED_GAP))[0]) * unit + layers * int(redundant_p[0])
    spent_b = layers * int(redundant_p[0]) + unit * np.arange(width)
    return Allocation(point_l, total, enough, spent_b, np.minimum.accumulate(best))


def offsets(redundant_l: Ints, ranks: int, num_experts: int) -> Ints:
    """First rank of every layer that has one slot more, such that all GPUs hold equally many slots up to one.

    Layers hand the place on: where one layer's fuller ranks end, the next one's begin.
    """
    more_l = (num_experts + redundant_l) % ranks
    starts = np.concatenate([[0], np.cumsum(more_l)[:-1]]) % ranks
    return starts.astype(np.int64)


def turned(slot_n: Ints, sizes: tuple[int, ...], first: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A layer's (slots of every rank, experts) after its ranks were renumbered to start at `first`."""
    ranks = len(sizes)
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    held = [sorted(slot_n[start:end].tolist()) for start, end in pairwise(bounds)]
    order = [(rank - first) % ranks for rank in range(ranks)]
    return tuple(sizes[rank] for rank in order), tuple(expert for rank in order for expert in held[rank])
