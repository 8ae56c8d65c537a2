"""Less traffic by swaps: racks first, then nodes inside racks, then ranks inside nodes, within limits on the loads.

Shape suffixes: K windows, E logical experts, R ranks, N slots, S sources, U units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from solver.place import clock as time
from solver.place.nearest import Level
from solver.place.sends import Counter, Trace, goals
from solver.place.state import Bools, Floats, Ints, Shelf

TRIED = 400
"""Swaps that one pass weighs exactly, best estimate first."""
PASSES = 40
LEAST_GAIN = 1e-9
"""Traffic that a swap must save."""


@dataclass(frozen=True)
class Limits:
    """What a swap must keep: loads of every window, and moves from a current placement (absent: free)."""

    load_ke: Floats
    limit_k: Floats
    home_re: Bools | None = None
    moves: int = 0
    receive_r: Ints | None = None
    """Most replicas that a rank may load."""

    def allow(self, slot_n: Ints, shelf: Shelf) -> bool:
        """Whether a placement keeps the loads and the moves."""
        experts = self.load_ke.shape[1]
        share_ke = self.load_ke / np.bincount(slot_n, minlength=experts)
        load_kr = np.add.reduceat(share_ke[:, slot_n], shelf.start_r, axis=1)
        if (load_kr.max(axis=1) > self.limit_k).any():
            return False
        if self.home_re is None:
            return True
        held = np.zeros(self.home_re.shape, dtype=bool)
        held[shelf.rank_n, slot_n] = True
        new_r = (held & ~self.home_re).sum(axis=1)
        return int(new_r.sum()) <= self.moves and (self.receive_r is None or bool((new_r <= self.receive_r).all()))


class Swapper:
    """One layer under search."""

    def __init__(self, slot_n: Ints, shelf: Shelf, limits: Limits, deadline: float) -> None:
        self.slot_n, self.shelf, self.limits, self.deadline = slot_n.copy(), shelf, limits, deadline
        self.experts = limits.load_ke.shape[1]
        self.rank_n = shelf.rank_n

    def lower(self, counter: Counter, level: Level) -> None:
        """Swaps inside the units of the level above until none saves traffic."""
        if time.monotonic() > self.deadline:
            return
        exact, start_n = counter, self.slot_n.copy()
        if isinstance(counter, Trace):
            counter = counter.thinned()
        for _ in range(PASSES):
            if not self._pass(counter, level) or time.monotonic() > self.deadline:
                break
        if self._total(exact, level) > exact.total(goals(level, start_n, self.shelf, self.experts), level):
            self.slot_n = start_n

    def _total(self, counter: Counter, level: Level) -> float:
        return counter.total(goals(level, self.slot_n, self.shelf, self.experts), level)

    def _pass(self, counter: Counter, level: Level) -> bool:
        """Weigh the most promising swaps; whether one was kept."""
        kept = False
        gain_nn = self._gains(counter, level)
        goal_se = goals(level, self.slot_n, self.shelf, self.experts)
        size = len(self.slot_n)
        order = np.argpartition(-gain_nn, min(TRIED, gain_nn.size - 1), axis=None)[:TRIED]
        order = order[np.argsort(-gain_nn.ravel()[order], kind="stable")]
        for flat in order:
            one, two = divmod(int(flat), size)
            if gain_nn[one, two] <= LEAST_GAIN or time.monotonic() > self.deadline:
                break
            if not self._legal(one, two):
                continue
            self._swap(one, two)
            if self.limits.allow(self.slot_n, self.shelf):
                pair = [int(self.slot_n[one]), int(self.slot_n[two])]
                new_se = self._with(goal_se, pair, level)
                if counter.change(goal_se, new_se, pair, level) < -LEAST_GAIN:
                    goal_se, kept = new_se, True
                    continue
            self._swap(one, two)
        return kept

    def _with(self, goal_se: Ints, experts: Sequence[int], level: Level) -> Ints:
        """Goals with those of some experts anew."""
        new_se = goal_se.copy()
        for expert in experts:
            held_u = np.zeros(level.units, dtype=bool)
            held_u[level.unit_r[self.rank_n[self.slot_n == expert]]] = True
            first_s = held_u[level.order_su].argmax(axis=1)
            new_se[:, expert] = level.order_su[np.arange(len(first_s)), first_s]
        return new_se

    def _swap(self, one: int, two: int) -> None:
        self.slot_n[one], self.slot_n[two] = self.slot_n[two], self.slot_n[one]

    def _legal(self, one: int, two: int) -> bool:
        """Whether both ranks lack the expert that comes, and all replicas stay spread over the failure units."""
        slot_n, rank_n = self.slot_n, self.rank_n
        e, f, a, b = slot_n[one], slot_n[two], rank_n[one], rank_n[two]
        if e == f or (slot_n[rank_n == b] == e).any() or (slot_n[rank_n == a] == f).any():
            return False
        if not self.shelf.spread:
            return True
        for expert, leaves, comes in ((e, a, b), (f, b, a)):
            ranks = {int(rank) for rank in rank_n[slot_n == expert]} - {int(leaves)} | {int(comes)}
            if len({int(self.shelf.domain_r[rank]) for rank in ranks}) < 2:
                return False
        return True

    def _gains(self, counter: Counter, level: Level) -> Floats:
        """Estimate of what a swap of two slots saves: each of the two experts alone."""
        slot_n, unit_n = self.slot_n, level.unit_r[self.rank_n]
        held_ue = level.held_ue(slot_n, self.rank_n, self.experts)
        cost_seu = counter.cost_seu(level.goal_se(held_ue), level)
        in_unit = np.zeros((level.units, self.experts), dtype=np.int64)
        np.add.at(in_unit, (unit_n, slot_n), 1)
        sources = np.arange(len(level.own_s))[:, None]
        place_sue = np.where(held_ue[None], level.place_su[:, :, None], level.units)
        first_se = place_sue.min(axis=1)
        only = in_unit[unit_n, slot_n] == 1
        # The nearest unit once the replica of a slot has left.
        second_se = np.partition(place_sue, 1, axis=1)[:, 1] if level.units > 1 else np.full_like(first_se, level.units)
        gone = only[None, :] & (first_se[:, slot_n] == level.place_su[:, unit_n])
        left_sn = np.where(gone, second_se[:, slot_n], first_se[:, slot_n])
        now_sn = cost_seu[sources, slot_n[None, :], level.order_su[sources, first_se[:, slot_n]]]
        gain_nu = np.zeros((len(slot_n), level.units))
        for unit in range(level.units):
            nearest = np.minimum(left_sn, level.place_su[:, unit][:, None])
            then = cost_seu[sources, slot_n[None, :], level.order_su[sources, nearest]]
            gain_nu[:, unit] = (now_sn - then).sum(axis=0)
        moved = gain_nu[:, unit_n]
        gain_nn: Floats = moved + moved.T
        parent_n = level.parent_r[self.rank_n]
        apart = (unit_n[:, None] == unit_n[None, :]) | (parent_n[:, None] != parent_n[None, :])
        gain_nn[apart] = -1.0
        return np.triu(gain_nn, 1)
