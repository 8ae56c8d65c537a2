"""Search on the packing of given replicas: two of them change places; many walkers per layer, annealed.

A step draws one swap for every walker and takes it where it lowers the penalty ``sum_r max(0, load_r - target)**2`` or
raises it by little. Shape suffixes: L layers, A walkers, R ranks, E experts, N slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solver.place import clock as time
from solver.place.state import Floats, Ints, Shelf, counts_of

AT_ONCE = 1024
"""Walkers of all layers: numpy's price per call is paid once for all of them."""
MOST_WALKERS = 64
"""Walkers of one layer."""
LOOK = 8
"""Steps after which maxima are looked at."""
BLOCK = 64
"""Steps after which targets are lowered and the clock is looked at."""
STEP = 0.002
"""Distance of the target below the best maximum, relative."""
HEAT = 0.02
"""Overload of one rank, relative to the target, that a walker takes upon itself at first."""


@dataclass(frozen=True)
class Packed:
    """Slots of some layers and their busiest ranks' loads."""

    slot_ln: Ints
    top_l: Floats


@dataclass(frozen=True)
class SwapSearch:
    """Packings of several layers under search; `goal_l` is the maximum that ends it."""

    load_le: Floats
    shelf: Shelf
    goal_l: Floats
    rng: np.random.Generator

    def run(self, start: Packed, deadline: float, steps: int) -> Packed:
        """Best packings met within so many steps or until the deadline (``time.monotonic``); the walkers cool down."""
        walkers = max(1, min(MOST_WALKERS, AT_ONCE // len(self.load_le)))
        crowd = _Crowd(self.load_le, start, self.shelf, walkers)
        best = Packed(start.slot_ln.copy(), start.top_l.copy())
        begun, rank_n = time.monotonic(), self.shelf.rank_n
        for first in range(0, steps, BLOCK):
            now = time.monotonic()
            if now >= deadline or not (best.top_l > self.goal_l).any():
                break
            heat = HEAT * (1 - max(first / steps, (now - begun) / (deadline - begun))) ** 2
            target_a = np.repeat(np.maximum(self.goal_l, best.top_l * (1 - STEP)), walkers)
            drawn = self.rng.integers(0, self.shelf.num_slots, (2, BLOCK, len(target_a)))
            allowed = (heat * target_a) ** 2 * self.rng.exponential(size=(BLOCK, len(target_a)))
            for at in range(BLOCK):
                crowd.swap(drawn[:, at], rank_n[drawn[:, at]], target_a, allowed[at])
                if at % LOOK == LOOK - 1:
                    crowd.keep(best, walkers)
        return best


class _Crowd:
    """Walkers, all from one packing of their layer."""

    def __init__(self, load_le: Floats, start: Packed, shelf: Shelf, walkers: int) -> None:
        experts = load_le.shape[1]
        share_ln = np.take_along_axis(load_le / counts_of(start.slot_ln, experts), start.slot_ln, 1)
        self.slot_an = np.repeat(start.slot_ln, walkers, axis=0)
        self.share_an = np.repeat(share_ln, walkers, axis=0)
        self.load_ar = np.repeat(np.add.reduceat(share_ln, shelf.start_r, axis=1), walkers, axis=0)
        self.walker_a = np.arange(len(self.slot_an))
        self.held_are = None
        if shelf.num_slots > experts:
            self.held_are = np.zeros((len(self.slot_an), shelf.num_ranks, experts), dtype=bool)
            self.held_are[self.walker_a[:, None], shelf.rank_n[None, :], self.slot_an] = True

    def swap(self, slot_2a: Ints, rank_2a: Ints, target_a: Floats, allowed_a: Floats) -> None:
        """One swap of every walker, where its penalty does not rise by more than allowed and no expert meets itself."""
        walker, (one, two), (a, b) = self.walker_a, slot_2a, rank_2a
        load_a, load_b = self.load_ar[walker, a], self.load_ar[walker, b]
        delta = self.share_an[walker, one] - self.share_an[walker, two]
        change = np.maximum(load_a - delta - target_a, 0.0) ** 2 + np.maximum(load_b + delta - target_a, 0.0) ** 2
        change -= np.maximum(load_a - target_a, 0.0) ** 2 + np.maximum(load_b - target_a, 0.0) ** 2
        go = np.flatnonzero((change <= allowed_a) & (a != b))
        if self.held_are is not None:
            e, f = self.slot_an[go, one[go]], self.slot_an[go, two[go]]
            go = go[~(self.held_are[go, b[go], e] | self.held_are[go, a[go], f])]
        one, two, a, b = one[go], two[go], a[go], b[go]
        e, f = self.slot_an[go, one], self.slot_an[go, two]
        self.load_ar[go, a] -= delta[go]
        self.load_ar[go, b] += delta[go]
        self.share_an[go, one], self.share_an[go, two] = self.share_an[go, two], self.share_an[go, one]
        self.slot_an[go, one], self.slot_an[go, two] = f, e
        if self.held_are is not None:
            self.held_are[go, a, e] = self.held_are[go, b, f] = False
            self.held_are[go, a, f] = self.held_are[go, b, e] = True

    def keep(self, best: Packed, walkers: int) -> None:
        """Record packings that are better than the best of their layers."""
        top = self.load_ar.max(axis=1).reshape(-1, walkers)
        chosen = top.argmin(axis=1)
        value = top[np.arange(len(top)), chosen]
        better = np.flatnonzero(value < best.top_l * (1 - 1e-12))
        best.top_l[better], best.slot_ln[better] = value[better], self.slot_an[better * walkers + chosen[better]]
