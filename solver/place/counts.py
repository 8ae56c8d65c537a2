"""Search on the replica counts: one expert gives a replica, another takes it; a packing from scratch scores every try.

Several walkers per layer, each trying some changes a round and taking the best of them where it lowers the penalty, or
raises it by little: annealing. The penalty of counts is ``sum_r max(0, load_r - target)**2`` of their packing; the
target stays a step below the best maximum so far. Shape suffixes: L layers, A walkers, B tries, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solver.place import clock as time
from solver.place.stack import Words, scores, shares, units_of
from solver.place.state import Floats, Ints, Shelf

TRIES = 8
"""Changes of the counts that a walker tries in one round."""
AT_ONCE = 1024
"""Tries of all walkers in one round: numpy's price per call is paid once for all of them."""
MOST_WALKERS = 16
"""Walkers of one layer."""
SECOND = 0.3
"""Share of the tries that make two changes."""
STEP = 0.02
"""Distance of the target below the best maximum, relative."""
FRESH = 0.5
"""Part of that distance below which the target is lowered."""
HEAT = 0.03
"""Overload of one rank, relative to the target, that a walker takes upon itself at first."""
LIGHTEST = 1e-9
"""Least load of an expert, relative to the heaviest: those without load can have replicas, too."""


@dataclass(frozen=True)
class Start:
    """Counts that an annealing starts from, and the best maxima so far, of the layers that it is for."""

    count_le: Ints
    best_l: Floats


@dataclass
class CountSearch:
    """Counts of several layers under search; `goal_l` is the maximum that ends it."""

    load_le: Floats
    shelf: Shelf
    goal_l: Floats
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.load_le = np.maximum(self.load_le, LIGHTEST * self.load_le.max(axis=1, keepdims=True))
        self.units = units_of(self.load_le.shape[1], self.shelf)
        self.found_le = np.zeros(self.load_le.shape, dtype=np.int64)
        self.found_l, self.target_l = np.zeros(len(self.load_le)), np.zeros(len(self.load_le))

    def run(self, layers: Ints, start: Start, deadline: float, rounds: int) -> Ints:
        """One annealing of some layers, for so many rounds or until the deadline; the best counts that it met.

        The deadline is a time of ``time.monotonic``; the walkers cool down as either comes closer.
        """
        self.found_le[layers], self.found_l[layers] = start.count_le, np.inf
        self._aim(layers, start.best_l)
        layer_a = np.repeat(layers, max(1, min(MOST_WALKERS, AT_ONCE // (TRIES * len(layers)))))
        count_ae = self.found_le[layer_a]
        penalty_a = self._penalty(layer_a, count_ae)
        begun = time.monotonic()
        for number in range(rounds):
            now = time.monotonic()
            open_a = self.found_l[layer_a] > self.goal_l[layer_a]
            if not open_a.all():
                layer_a, count_ae, penalty_a = layer_a[open_a], count_ae[open_a], penalty_a[open_a]
            if not len(layer_a) or now >= deadline:
                break
            done = max(number / rounds, (now - begun) / (deadline - begun))
            self._round(layer_a, count_ae, penalty_a, HEAT * (1 - done) ** 2)
            met = layers[self.found_l[layers] * (1 - FRESH * STEP) < self.target_l[layers]]
            met = met[self.target_l[met] > self.goal_l[met]]
            if len(met):
                self._aim(met, self.found_l[met])
                again = np.isin(layer_a, met)
                penalty_a[again] = self._penalty(layer_a[again], count_ae[again])
        return self.found_le[layers]

    def _aim(self, layers: Ints, best_l: Floats) -> None:
        """Targets a step below the best maxima."""
        self.target_l[layers] = np.maximum(self.goal_l[layers], best_l * (1 - STEP))

    def _penalty(self, layer_a: Ints, count_ae: Ints) -> Floats:
        share_ae = shares(self.load_le[layer_a] / self.target_l[layer_a, None], count_ae, self.units)
        return scores(share_ae, count_ae, np.full(len(layer_a), np.inf), self.shelf).penalty_b

    def _round(self, layer_a: Ints, count_ae: Ints, penalty_a: Floats, heat: float) -> None:
        """Every walker's tries; counts and penalties change in place."""
        limit_a = penalty_a + heat * heat * self.rng.exponential(size=len(layer_a))
        tried, share = self._tries(layer_a, count_ae)
        found = scores(share, tried, np.repeat(limit_a, TRIES), self.shelf)
        penalty = found.penalty_b.reshape(-1, TRIES)
        best = penalty.argmin(axis=1)
        value = penalty[np.arange(len(layer_a)), best]
        went = np.flatnonzero(np.isfinite(value))
        chosen = went * TRIES + best[went]
        count_ae[went], penalty_a[went] = tried[chosen], value[went]
        top = found.top_b[chosen] * self.target_l[layer_a[went]]
        better = np.flatnonzero(top < self.found_l[layer_a[went]])
        better = better[np.argsort(-top[better], kind="stable")]  # the best of a layer is written last
        layers = layer_a[went[better]]
        self.found_le[layers], self.found_l[layers] = tried[chosen[better]], top[better]

    def _tries(self, layer_a: Ints, count_ae: Ints) -> tuple[Ints, Words]:
        """Counts of every walker with one or two replicas moved, and the shares, ``[A x TRIES, E]``.

        Any expert with replicas to spare gives one; heavy replicas are the likeliest to be made lighter by another.
        """
        load_ae = self.load_le[layer_a] / self.target_l[layer_a, None]
        spare = np.cumsum(count_ae > 1, axis=1).astype(np.float64)
        weight = np.cumsum(load_ae / count_ae, axis=1)
        tried = np.repeat(count_ae, TRIES, axis=0)
        share = np.repeat(shares(load_ae, count_ae, self.units), TRIES, axis=0)
        rows = np.arange(len(tried))
        for part in (1.0, SECOND):
            draw = self.rng.random((3, len(tried)))
            giver, taker = _drawn(spare, draw[0]), _drawn(weight, draw[1])
            legal = (tried[rows, taker] < self.shelf.num_ranks) & (tried[rows, giver] > 1) & (draw[2] < part)
            row, giver, taker = rows[legal], giver[legal], taker[legal]
            tried[row, giver] -= 1
            tried[row, taker] += 1
            for expert in (giver, taker):
                share[row, expert] = shares(load_ae[row // TRIES, expert], tried[row, expert], self.units)
        return tried, share


def _drawn(sum_ae: Floats, draw_b: Floats) -> Ints:
    """Experts drawn in proportion to weights, from their running sums; TRIES draws of every walker."""
    walkers, experts = sum_ae.shape
    base = np.concatenate([[0.0], np.cumsum(sum_ae[:-1, -1])])
    walker = np.arange(walkers * TRIES) // TRIES
    value = base[walker] + draw_b * sum_ae[walker, -1]
    at: Ints = np.searchsorted((sum_ae + base[:, None]).ravel(), value, side="right") - walker * experts
    return np.clip(at, 0, experts - 1)
