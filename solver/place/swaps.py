"""Search on the packing: two replicas change places, or two experts all of theirs; many walkers per layer, annealed.

A step draws one swap for every walker and takes it where it lowers the penalty ``sum_r max(0, load_r - target)**2`` or
raises it by little. Close to the goal two experts of similar load change all their places now and then, on the same
terms: with few replicas each this moves loads by less than any other change of the counts, and no expert can meet
itself. Shape suffixes: L layers, A walkers, R ranks, E experts, N slots.
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
HEAT, MILD = 0.02, 0.01
"""Overload of one rank, relative to the target, that a walker takes upon itself at first; and where it renames, too."""
ENOUGH = 32
"""Walkers of a layer below which none renames: with so little time for each, counts from scratch gain more."""
CLOSE = 5e-3
"""Gap above which renaming is left: there the replica counts are wrong rather than who has them."""
RANKS_PER_STEP = 16
"""Ranks per step between two renamings: they look at all ranks, so they take about as long as the swaps between."""
CLOSER = 0.3
"""Chance that the second of two renamed experts is the next lighter one, else that it is the one after, and so on."""


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
        near_l = (start.top_l <= self.goal_l * (1 + CLOSE)) & (crowd.held_aer is not None) & (walkers >= ENOUGH)
        near_a = np.flatnonzero(np.repeat(near_l, walkers))
        hottest_a = np.repeat(np.where(near_l, MILD, HEAT), walkers)
        often = max(1, self.shelf.num_ranks // RANKS_PER_STEP)
        for first in range(0, steps, BLOCK):
            now = time.monotonic()
            if now >= deadline or not (best.top_l > self.goal_l).any():
                break
            heat_a = hottest_a * (1 - max(first / steps, (now - begun) / (deadline - begun))) ** 2
            target_a = np.repeat(np.maximum(self.goal_l, best.top_l * (1 - STEP)), walkers)
            drawn = self.rng.integers(0, self.shelf.num_slots, (2, BLOCK, len(target_a)))
            allowed = (heat_a * target_a) ** 2 * self.rng.exponential(size=(BLOCK, len(target_a)))
            for at in range(BLOCK):
                crowd.swap(drawn[:, at], rank_n[drawn[:, at]], target_a, allowed[at])
                if len(near_a) and at % often == 0:
                    crowd.rename(near_a, self.rng, target_a[near_a], allowed[at][near_a])
                if at % LOOK == LOOK - 1:
                    crowd.keep(best, walkers)
        return best


def _penalty(load_ar: Floats, target_a: Floats) -> Floats:
    """Squared overload of the ranks of every walker."""
    over = np.maximum(load_ar - target_a[:, None], 0.0)
    penalty: Floats = np.einsum("ar,ar->a", over, over)
    return penalty


class _Crowd:
    """Walkers, all from one packing of their layer."""

    def __init__(self, load_le: Floats, start: Packed, shelf: Shelf, walkers: int) -> None:
        experts = load_le.shape[1]
        share_ln = np.take_along_axis(load_le / counts_of(start.slot_ln, experts), start.slot_ln, 1)
        self.slot_an = np.repeat(start.slot_ln, walkers, axis=0)
        self.share_an = np.repeat(share_ln, walkers, axis=0)
        self.load_ar = np.repeat(np.add.reduceat(share_ln, shelf.start_r, axis=1), walkers, axis=0)
        self.walker_a = np.arange(len(self.slot_an))
        self.held_aer = None
        if shelf.num_slots > experts:
            self.held_aer = np.zeros((len(self.slot_an), experts, shelf.num_ranks), dtype=bool)
            self.held_aer[self.walker_a[:, None], self.slot_an, shelf.rank_n[None, :]] = True
            self.count_ae = counts_of(self.slot_an, experts)
            self.order_ae = np.repeat(np.argsort(-load_le, axis=1), walkers, axis=0)
            self.load_ae = np.repeat(load_le, walkers, axis=0)
            within = np.arange(int(shelf.slots_r.max()))
            # A rank with fewer slots names its first one again.
            self.slot_rs = shelf.start_r[:, None] + np.where(within < shelf.slots_r[:, None], within, 0)

    def rename(self, walker: Ints, rng: np.random.Generator, target_a: Floats, allowed_a: Floats) -> None:
        """Two experts of some walkers, close to each other by load, change all their places, on the terms of a swap."""
        assert self.held_aer is not None
        first = rng.integers(0, self.order_ae.shape[1] - 1, len(walker))
        second = np.minimum(first + rng.geometric(CLOSER, len(walker)), self.order_ae.shape[1] - 1)
        e, f = self.order_ae[walker, first], self.order_ae[walker, second]
        less = self.load_ae[walker, e] - self.load_ae[walker, f]
        less_e, less_f = less / self.count_ae[walker, e], less / self.count_ae[walker, f]
        before = self.load_ar[walker]
        load = before - self.held_aer[walker, e] * less_e[:, None] + self.held_aer[walker, f] * less_f[:, None]
        good = np.flatnonzero(_penalty(load, target_a) - _penalty(before, target_a) <= allowed_a)
        go, e, f, less_e, less_f = walker[good], e[good], f[good], less_e[good], less_f[good]
        self.load_ar[go] = load[good]
        (at_e, slot_e), (at_f, slot_f) = self._places(go, e), self._places(go, f)
        self.slot_an[go[at_e], slot_e], self.slot_an[go[at_f], slot_f] = f[at_e], e[at_f]
        self.share_an[go[at_e], slot_e] -= less_e[at_e]
        self.share_an[go[at_f], slot_f] += less_f[at_f]
        self.held_aer[go, e], self.held_aer[go, f] = self.held_aer[go, f], self.held_aer[go, e]
        self.count_ae[go, e], self.count_ae[go, f] = self.count_ae[go, f], self.count_ae[go, e]

    def _places(self, walkers: Ints, expert: Ints) -> tuple[Ints, Ints]:
        """Which of some walkers has its expert in which slots."""
        assert self.held_aer is not None
        at, rank = np.nonzero(self.held_aer[walkers, expert])
        slots = self.slot_rs[rank]
        here = (self.slot_an[walkers[at, None], slots] == expert[at, None]).argmax(axis=1)
        return at, slots[np.arange(len(at)), here]

    def swap(self, slot_2a: Ints, rank_2a: Ints, target_a: Floats, allowed_a: Floats) -> None:
        """One swap of every walker, where its penalty does not rise by more than allowed and no expert meets itself."""
        walker, (one, two), (a, b) = self.walker_a, slot_2a, rank_2a
        load_a, load_b = self.load_ar[walker, a], self.load_ar[walker, b]
        delta = self.share_an[walker, one] - self.share_an[walker, two]
        change = np.maximum(load_a - delta - target_a, 0.0) ** 2 + np.maximum(load_b + delta - target_a, 0.0) ** 2
        change -= np.maximum(load_a - target_a, 0.0) ** 2 + np.maximum(load_b - target_a, 0.0) ** 2
        go = np.flatnonzero((change <= allowed_a) & (a != b))
        if self.held_aer is not None:
            e, f = self.slot_an[go, one[go]], self.slot_an[go, two[go]]
            go = go[~(self.held_aer[go, e, b[go]] | self.held_aer[go, f, a[go]])]
        one, two, a, b = one[go], two[go], a[go], b[go]
        e, f = self.slot_an[go, one], self.slot_an[go, two]
        self.load_ar[go, a] -= delta[go]
        self.load_ar[go, b] += delta[go]
        self.share_an[go, one], self.share_an[go, two] = self.share_an[go, two], self.share_an[go, one]
        self.slot_an[go, one], self.slot_an[go, two] = f, e
        if self.held_aer is not None:
            self.held_aer[go, e, a] = self.held_aer[go, f, b] = False
            self.held_aer[go, f, a] = self.held_aer[go, e, b] = True

    def keep(self, best: Packed, walkers: int) -> None:
        """Record packings that are better than the best of their layers."""
        top = self.load_ar.max(axis=1).reshape(-1, walkers)
        chosen = top.argmin(axis=1)
        value = top[np.arange(len(top)), chosen]
        better = np.flatnonzero(value < best.top_l * (1 - 1e-12))
        best.top_l[better], best.slot_ln[better] = value[better], self.slot_an[better * walkers + chosen[better]]
