"""Several windows: one placement for all of them, and what it will do tomorrow.

Minimises the weighted mean (or the worst, or a quantile) over the windows of the busiest rank's load. What is minimised
is a smooth maximum over the ranks, of the windows themselves and of windows that drift further the same way: the mean
of all windows plus and minus each principal direction of their differences. That is the regularisation toward the
mixture: a placement that is balanced for the mixture and for every direction in which traffic was seen to move stays
balanced for mixtures and mild extrapolations of the windows. How far to extrapolate is chosen by leaving one window out
(see docs/expert-placement.md). Shape suffixes: L layers, K windows, E logical experts, N slots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from solver.place import clock as time
from solver.place.bounds import layer_bound
from solver.place.descent import Smooth, busiest_lk, descend
from solver.place.pack import greedy_counts, pack
from solver.place.state import Floats, Ints, Shelf, State
from solver.place.static import Effort

DRIFT_ENERGY = 0.005
"""Squared length of an added drift window's deviation, relative to the mixture's; chosen by leave-one-window-out."""
SPREAD_WEIGHT = 1.0
"""Standard deviations over the windows that are added to an expert's mean load when replicas are dealt."""
LEAST_SECONDS = 2.0
"""Time that the swaps get at least: without them a placement is not worth having."""
BETA = 100.0
"""Sharpness of the smooth maximum, per mean rank load."""


@dataclass(frozen=True)
class Aim:
    """What is minimised over the windows: `name` is mean, worst or quantile; weights sum to 1."""

    weight_k: Floats
    name: str = "mean"
    quantile: float = 1.0

    def value_l(self, busiest_lk: Floats) -> Floats:
        """Objective of every layer from the busiest rank's load of every window."""
        if self.name == "mean":
            mean: Floats = busiest_lk @ self.weight_k
            return mean
        if self.name == "worst":
            worst: Floats = busiest_lk.max(axis=1)
            return worst
        order = np.argsort(busiest_lk, axis=1, kind="stable")
        reached = np.cumsum(self.weight_k[order], axis=1) >= self.quantile - 1e-12
        first = reached.argmax(axis=1)
        at: Floats = np.take_along_axis(np.take_along_axis(busiest_lk, order, 1), first[:, None], 1)[:, 0]
        return at


@dataclass(frozen=True)
class RobustFound:
    """Placements, busiest load of every window, objective and its proved lower bound, per layer."""

    slot_ln: Ints
    busiest_lk: Floats
    objective_l: Floats
    bound_l: Floats


def place_robust(load_lke: Floats, shelf: Shelf, aim: Aim, effort: Effort) -> RobustFound:
    """Placement of every layer for several windows; every window's loads sum to the number of ranks."""
    layers, windows, _ = load_lke.shape
    least = 2 if shelf.spread else 1
    padded, weight_k = drift_windows(load_lke, aim)
    key_le = np.average(load_lke, axis=1, weights=aim.weight_k) + SPREAD_WEIGHT * load_lke.std(axis=1)
    count_le = greedy_counts(key_le, shelf, least)
    state = pack(padded, np.zeros_like(key_le), count_le, shelf)
    bound_lk = np.array(
        [[layer_bound(load_lke[layer, k], shelf, least) for k in range(windows)] for layer in range(layers)]
    )
    plain = State(shelf, load_lke, np.zeros_like(key_le), state.slot_ln)

    def report() -> None:
        if effort.watch is not None and effort.watch.is_due:
            effort.tell(aim.value_l(busiest_lk(plain)), aim.value_l(bound_lk))

    improve(state, Smooth(BETA, weight_k), effort, least, report)
    busiest = busiest_lk(plain)
    objective_l = aim.value_l(busiest)
    return RobustFound(state.slot_ln, busiest, objective_l, np.minimum(aim.value_l(bound_lk), objective_l))


def drift_windows(load_lke: Floats, aim: Aim, energy: float = DRIFT_ENERGY) -> tuple[Floats, Floats]:
    """The windows and the drift windows, with their weights: half of the weight is on either."""
    windows = load_lke.shape[1]
    weight_k = np.full(windows, 1 / windows) if aim.name != "mean" else aim.weight_k
    if windows < 2:
        return load_lke, weight_k
    mean = np.average(load_lke, axis=1, weights=aim.weight_k)[:, None, :]
    _, _, direction = np.linalg.svd(load_lke - mean, full_matrices=False)
    directions = direction[:, : windows - 1, :]
    length = np.sqrt(energy * (mean**2).sum(axis=2, keepdims=True))
    # Far drift may make an unused expert's load negative: it stays linear on purpose, as all mixtures are.
    padded = np.concatenate([load_lke, mean + length * directions, mean - length * directions], axis=1)
    added = 2 * directions.shape[1]
    return padded, np.concatenate([weight_k / 2, np.full(added, 0.5 / added)])


def improve(
    state: State, smooth: Smooth, effort: Effort, least: int, report: Callable[[], None] = lambda: None
) -> None:
    """Swaps to a local optimum; then trades of replicas, each repaired by swaps and kept where the objective fell."""
    descend(state, smooth, deadline=max(effort.deadline, effort.begun + LEAST_SECONDS))
    if state.shelf.num_slots <= least * state.num_experts:
        return
    rng = np.random.default_rng(effort.seed)
    value = smooth.value_l(state.rank_load_lkr())
    idle = np.zeros(len(value), dtype=np.int64)
    while time.monotonic() < effort.deadline and (idle < PATIENCE).any():
        report()
        active = np.flatnonzero(idle < PATIENCE)
        trial = state.take(active)
        trade(trial, smooth, rng, least)
        descend(trial, smooth, 12)
        now = smooth.value_l(trial.rank_load_lkr())
        better = now < value[active] - 1e-7
        state.slot_ln[active[better]] = trial.slot_ln[better]
        value[active[better]] = now[better]
        idle[active] += 1
        idle[active[better]] = 0


PATIENCE = 40
"""Trades without success after which a layer is left alone."""


def trade(state: State, smooth: Smooth, rng: np.random.Generator, least: int) -> None:
    """Every layer moves one replica to another expert, the best of an estimate with some noise; in place."""
    layers, slots = state.slot_ln.shape
    at = np.arange(layers)
    count = state.count_le()
    load = state.rank_load_lkr()
    rank = state.shelf.rank_n
    weight = np.exp(smooth.beta * (load - load.max(axis=2, keepdims=True)))
    weight *= (smooth.weight_k / weight.sum(axis=2))[:, :, None]
    own = weight[:, :, rank]
    share, more, fewer = (state.load_lke / n[:, None, :] for n in (count, count + 1, np.maximum(count - 1, 1)))

    def of_slot(value_lke: Floats) -> Floats:
        index = np.broadcast_to(state.slot_ln[:, None, :], (layers, value_lke.shape[1], slots))
        return np.take_along_axis(value_lke, index, 2)

    def by_expert(value_ln: Floats) -> Floats:
        flat = (state.slot_ln + at[:, None] * state.num_experts).ravel()
        sums: Floats = np.bincount(flat, value_ln.ravel(), layers * state.num_experts).astype(np.float64)
        return sums.reshape(layers, state.num_experts)

    rise = (own * np.expm1(np.clip(smooth.beta * of_slot(fewer - share), -50, 50))).sum(axis=1)
    fall = (own * np.expm1(np.clip(smooth.beta * of_slot(more - share), -50, 50))).sum(axis=1)
    siblings = np.take_along_axis(by_expert(rise), state.slot_ln, 1) - rise
    spare = np.take_along_axis(count, state.slot_ln, 1) > least
    if state.shelf.spread:
        spare &= _stays_spread(state)
    scale = 0.3 * np.abs(by_expert(fall)).max(axis=1)
    score = np.where(spare, siblings + scale[:, None] * rng.exponential(size=siblings.shape), np.inf)
    giver = score.argmin(axis=1)
    left = own[at, :, giver] * np.exp(np.clip(-smooth.beta * of_slot(share)[at, :, giver], -300, 50))
    come = (left[:, :, None] * np.exp(np.clip(smooth.beta * more, -50, 300))).sum(axis=1) + by_expert(fall)
    moved = rank[giver]
    held = np.zeros((layers, state.num_experts), dtype=bool)
    for slot in range(slots):
        same = rank[slot] == moved
        held[at[same], state.slot_ln[same, slot]] = True
    full = count >= state.shelf.num_ranks
    come = np.where(held | full, np.inf, come + scale[:, None] * rng.exponential(size=come.shape))
    taker = come.argmin(axis=1)
    go = np.isfinite(score[at, giver]) & np.isfinite(come[at, taker])
    state.slot_ln[at[go], giver[go]] = taker[go]


def _stays_spread(state: State) -> np.ndarray:
    """Whether an expert's replicas stay in two domains when the one in a slot goes."""
    domain = state.shelf.domain_r[state.shelf.rank_n]
    same = state.slot_ln[:, :, None] == state.slot_ln[:, None, :]
    others = same & ~np.eye(len(domain), dtype=bool)[None, :, :]
    first = np.where(others, domain[None, None, :], domain.max() + 1).min(axis=2)
    last = np.where(others, domain[None, None, :], -1).max(axis=2)
    stays: np.ndarray = first < last
    return stays
