"""Bounded migration: from a current placement, at most K replicas loaded per layer; the curve balance against moves.

A move loads a replica onto a rank that lacked it. Shape suffixes: L layers, E logical experts, R ranks, N slots.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import monotonic

import numpy as np

from solver.expertmap import Move
from solver.place.exchange import Search
from solver.place.state import Bools, Floats, Ints, Shelf, counts_of
from solver.place.static import Effort, busiest


@dataclass(frozen=True)
class Budget:
    """What an update may load: moves of a layer from `current_ln`, replicas onto a rank; and when it is good."""

    current_ln: Ints
    moves_l: Ints
    receive_lr: Ints | None = None
    goal_l: Floats | None = None
    """Busiest rank's load at which the search ends; absent: the mean."""


def migrate(load_le: Floats, start_ln: Ints, shelf: Shelf, budget: Budget, effort: Effort) -> Ints:
    """Best placement found within the budget of every layer, searched from `start_ln`, which is within it."""
    home = home_lre(budget.current_ln, shelf, load_le.shape[1])
    moves_l = budget.moves_l
    goal_l = load_le.sum(axis=1) / shelf.num_ranks * (1 + effort.gap)
    if budget.goal_l is not None:
        goal_l = np.maximum(goal_l, budget.goal_l)
    least = 2 if shelf.spread else 1
    rng = np.random.default_rng(effort.seed)
    search = Search(shelf, load_le, start_ln.copy(), goal_l.copy(), least, home, moves_l, budget.receive_lr)
    best_ln, best_l = search.slot_ln.copy(), search.rank_load_lr.max(axis=1)
    if not moves_l.any():
        return best_ln
    step_l, idle = np.full(len(load_le), 0.02), np.zeros(len(load_le), dtype=np.int64)
    for _ in range(effort.turns):
        active = np.flatnonzero((best_l > goal_l) & (idle < IDLE))
        if not len(active) or monotonic() >= effort.deadline:
            break
        search.slot_ln[active] = best_ln[active]
        search.refresh(active)
        search.target_l[active] = np.maximum(goal_l[active], best_l[active] * (1 - step_l[active]))
        for _ in range(3):
            if search.shelf.num_slots > least * search.experts:
                search.trade(active, rng, 0.05)
            search.settle(active, rng, 20)
            now = search.rank_load_lr[active].max(axis=1)
            better = now < best_l[active] * (1 - 1e-12)
            best_l[active[better]] = now[better]
            best_ln[active[better]] = search.slot_ln[active[better]]
            idle[active[better]] = 0
        idle[active] += 1
        step_l[active] = np.where(idle[active] > 1, np.maximum(step_l[active] * 0.8, 1e-3), 0.02)
    return best_ln


def home_lre(current_ln: Ints, shelf: Shelf, num_experts: int) -> Bools:
    """Which rank holds which expert now; an empty slot (-1) holds none."""
    home = np.zeros((len(current_ln), shelf.num_ranks, num_experts), dtype=bool)
    layer, slot = np.nonzero(current_ln >= 0)
    home[layer, shelf.rank_n[slot], current_ln[layer, slot]] = True
    return home


IDLE = 40
"""Turns without success after which a layer is left alone."""


def moves_bound_l(load_le: Floats, current_ln: Ints, shelf: Shelf, moves: int) -> Floats:
    """Lower bound on the busiest rank's load of every layer after at most `moves` moves.

    For every h, the h fullest ranks: each move takes at most one replica off them (the heaviest ones), and adds one
    replica of some expert, which lightens its siblings there by at most the best marginal gains.
    """
    layers, experts = load_le.shape
    count = counts_of(current_ln, experts)
    share_n = np.take_along_axis(load_le / np.maximum(count, 1), current_ln, 1)
    loads = np.add.reduceat(share_n, shelf.start_r, axis=1)
    bound = np.zeros(layers)
    for layer in range(layers):
        order = np.argsort(-loads[layer], kind="stable")
        inside = np.zeros(shelf.num_ranks, dtype=bool)
        for size in range(1, shelf.num_ranks + 1):
            inside[order[size - 1]] = True
            slots = inside[shelf.rank_n]
            taken = np.sort(share_n[layer][slots])[::-1][:moves].sum()
            held = np.bincount(current_ln[layer][slots], minlength=experts)
            more = count[layer][:, None] + np.arange(moves + 1)[None, :]
            left = load_le[layer][:, None] / np.maximum(more, 1)
            gains = np.sort((held[:, None] * (left[:, :-1] - left[:, 1:])).ravel())[::-1][:moves].sum()
            bound[layer] = max(bound[layer], (loads[layer][inside].sum() - taken - gains) / size)
    mean: Floats = load_le.sum(axis=1) / shelf.num_ranks
    return np.maximum(bound, mean) * (1 - 1e-12)


def stay_in_place(current_ln: Ints, slot_ln: Ints, shelf: Shelf) -> Ints:
    """The same placement with every replica that stays on its rank in its current slot."""
    placed = slot_ln.copy()
    for layer in range(len(slot_ln)):
        for start, size in zip(shelf.start_r, shelf.slots_r, strict=True):
            old = current_ln[layer, start : start + size]
            new = slot_ln[layer, start : start + size]
            stays = np.isin(old, new)
            fresh = [expert for expert in new if expert not in old]
            row = old.copy()
            row[~stays] = fresh
            placed[layer, start : start + size] = row
    return placed


def ordered_moves(layer: int, old_n: Sequence[int], new_n: Sequence[int], rank_n: Sequence[int]) -> list[Move]:
    """Moves of one layer in an order that keeps every expert served; what cannot be ordered is one exchange group."""
    row = list(old_n)
    holders: defaultdict[int, set[int]] = defaultdict(set)
    for slot, expert in enumerate(row):
        if expert >= 0:
            holders[expert].add(slot)
    pending = [slot for slot, expert in enumerate(new_n) if expert != row[slot]]
    moves: list[Move] = []

    def load(slot: int, group: int, source: int | None) -> None:
        old, new = row[slot], new_n[slot]
        moves.append(
            Move(layer=layer, slot=slot, rank=rank_n[slot], expert=new, replaces=old, source_rank=source, group=group)
        )
        holders[old].discard(slot)
        holders[new].add(slot)
        row[slot] = new

    while pending:
        free = [slot for slot in pending if row[slot] < 0 or len(holders[row[slot]]) > 1]
        if free:
            slot = free[0]
            sources = [rank_n[s] for s in holders[new_n[slot]]]
            load(slot, 0, min(sources) if sources else None)
            pending.remove(slot)
            continue
        sources_of = {slot: [rank_n[s] for s in holders[new_n[slot]]] for slot in pending}
        for slot in pending:
            load(slot, 1, min(sources_of[slot]) if sources_of[slot] else None)
        pending = []
    return moves


@dataclass(frozen=True)
class Stage:
    """Best placement found within a number of moves per layer, its busiest rank's load and that load's bound."""

    moves: int
    slot_ln: Ints
    busiest_l: Floats
    bound_l: Floats

    def with_map(self, slot_ln: Ints, busiest_l: Floats, moves_l: Ints) -> Stage:
        """The stage with the layers of another placement that are better and within the moves."""
        better = (moves_l <= self.moves) & (busiest_l < self.busiest_l)
        return Stage(
            self.moves,
            np.where(better[:, None], slot_ln, self.slot_ln),
            np.where(better, busiest_l, self.busiest_l),
            np.minimum(self.bound_l, np.where(better, busiest_l, np.inf)),
        )


def stages(load_le: Floats, current_ln: Ints, shelf: Shelf, moves: Sequence[int], effort: Effort) -> tuple[Stage, ...]:
    """A stage for every number of moves, ascending; each starts from the one before, so none is worse."""
    found, start = [], current_ln
    share = effort.seconds / max(1, len(moves))
    for number in moves:
        moves_l = np.full(len(load_le), number, dtype=np.int64)
        budget = Budget(current_ln, moves_l)
        start = migrate(load_le, start, shelf, budget, replace(effort, seconds=share, begun=monotonic()))
        top = busiest(load_le, start, shelf)
        found.append(Stage(number, start, top, np.minimum(moves_bound_l(load_le, current_ln, shelf, number), top)))
    return tuple(found)
