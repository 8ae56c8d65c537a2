"""Constructive heuristic: greedy replica counts, then the longest replicas first onto the least loaded rank.

Shape suffixes: L layers, K windows, E logical experts, R ranks, N slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solver.errors import SpecError
from solver.place.state import Bools, Floats, Ints, Shelf, State, by_domain, replica_shares


def greedy_counts(load_le: Floats, shelf: Shelf, least: int = 1) -> Ints:
    """Replicas of every expert: one more, as long as slots last, for the expert whose replicas are the heaviest.

    This minimises the heaviest replica, among counts from `least` to the number of ranks.

    Raises
    ------
    SpecError
        The slots cannot hold `least` replicas of every expert, or hold more than one of each per rank.
    """
    layers, experts = load_le.shape
    ranks, slots = shelf.num_ranks, shelf.num_slots
    if slots < least * experts:
        raise SpecError(
            f"{slots} slots on {ranks} ranks cannot hold {least} x {experts} replicas; give more slots per rank"
        )
    if slots > experts * ranks or int(shelf.slots_r.max()) > experts:
        raise SpecError(
            f"a rank holds at most one replica of an expert, so {experts} experts fill at most {experts} slots per "
            f"rank, got {int(shelf.slots_r.max())}; give fewer slots per rank"
        )
    count = np.full((layers, experts), least, dtype=np.int64)
    rows = np.arange(layers)
    for _ in range(slots - least * experts):
        share = np.where(count < ranks, load_le / count, -1.0)
        count[rows, share.argmax(axis=1)] += 1
    return count


def pack(load_lke: Floats, drift_le: Floats, count_le: Ints, shelf: Shelf, *, longest_first: bool = False) -> State:
    """Placement with the given replica counts: replicated experts first, then by share, onto the rank that minds least.

    The rank that minds least has the smallest increase of the squared loads over the windows. With `longest_first` the
    largest shares come first, replicated or not.
    """
    share_lke = replica_shares(load_lke, drift_le, count_le)
    layers = len(share_lke)
    size = share_lke.mean(axis=1)
    first = size if longest_first else np.where(count_le > 1, 1e6 * count_le + size, size)
    order = np.argsort(-first, axis=1, kind="stable")
    item_ln = np.stack([np.repeat(order[at], count_le[at][order[at]]) for at in range(layers)])
    fill = _Fill(share_lke, shelf)
    stuck = np.zeros(layers, dtype=bool)
    for n in range(shelf.num_slots):
        stuck |= ~fill.put(item_ln[:, n], ~stuck)
    for layer in np.flatnonzero(stuck):
        fill.slot_ln[layer] = _by_room(count_le[layer], shelf)
    return State(shelf, load_lke, drift_le, fill.slot_ln)


@dataclass
class _Fill:
    """Half-filled ranks of several layers."""

    share_lke: Floats
    shelf: Shelf

    def __post_init__(self) -> None:
        layers, windows, experts = self.share_lke.shape
        ranks = self.shelf.num_ranks
        self.load_lkr = np.zeros((layers, windows, ranks))
        self.room_lr = np.repeat(self.shelf.slots_r[None, :], layers, axis=0)
        self.held_lre = np.zeros((layers, ranks, experts), dtype=bool)
        self.slot_ln = np.full((layers, self.shelf.num_slots), -1, dtype=np.int64)

    def put(self, expert_l: Ints, active_l: Bools) -> Bools:
        """Put one replica in every active layer; False where it found no place even with one tenant moved."""
        rows = np.arange(len(expert_l))
        share = self.share_lke[rows, :, expert_l][:, :, None]
        allowed = (self.room_lr > 0) & ~self.held_lre[rows, :, expert_l]
        if self.shelf.spread:
            allowed &= self._spread(expert_l)
        cost = np.where(allowed, (share * (2 * self.load_lkr + share)).sum(axis=1), np.inf)
        rank = cost.argmin(axis=1)
        good: Bools = np.isfinite(cost[rows, rank])
        now = np.flatnonzero(good & active_l)
        self._place(now, rank[now], expert_l[now])
        for layer in np.flatnonzero(~good & active_l):
            good[layer] = self._evict(int(layer), int(expert_l[layer]))
        return good

    def _spread(self, expert_l: Ints) -> Bools:
        """Ranks of domains without the expert; any rank once two domains have it."""
        rows = np.arange(len(expert_l))
        held = self.held_lre[rows, :, expert_l]
        has = by_domain(held, self.shelf.domain_r)
        result: Bools = ~(has > 0)[:, self.shelf.domain_r] | ((has > 0).sum(axis=1) > 1)[:, None]
        return result

    def _place(self, layers: Ints, ranks: Ints, experts: Ints) -> None:
        slot = self.shelf.start_r[ranks] + self.shelf.slots_r[ranks] - self.room_lr[layers, ranks]
        self.slot_ln[layers, slot] = experts
        self.load_lkr[layers, :, ranks] += self.share_lke[layers, :, experts]
        self.held_lre[layers, ranks, experts] = True
        self.room_lr[layers, ranks] -= 1

    def _evict(self, layer: int, expert: int) -> bool:
        """Put the expert in place of a tenant that moves to a rank with room."""
        held, rank_n = self.held_lre[layer], self.shelf.rank_n
        for spare in np.flatnonzero(self.room_lr[layer] > 0):
            for slot in np.flatnonzero(self.slot_ln[layer] >= 0):
                rank, tenant = int(rank_n[slot]), int(self.slot_ln[layer, slot])
                if rank == spare or held[rank, expert] or held[spare, tenant]:
                    continue
                if self.shelf.spread and not (
                    self._apart(layer, expert, rank, None) and self._apart(layer, tenant, int(spare), rank)
                ):
                    continue
                self.slot_ln[layer, slot] = expert
                held[rank, tenant], held[rank, expert] = False, True
                change = self.share_lke[layer, :, expert] - self.share_lke[layer, :, tenant]
                self.load_lkr[layer, :, rank] += change
                self._place(np.array([layer]), np.array([spare]), np.array([tenant]))
                return True
        return False

    def _apart(self, layer: int, expert: int, rank: int, leaves: int | None) -> bool:
        """Whether a replica on `rank` has a sibling in another domain (or none yet); `leaves` gives its one up."""
        siblings = [r for r in np.flatnonzero(self.held_lre[layer, :, expert]) if r != leaves]
        domain = self.shelf.domain_r
        return not siblings or any(domain[r] != domain[rank] for r in siblings)


def _by_room(count_e: Ints, shelf: Shelf) -> Ints:
    """Slots filled without a look at loads: most replicas first, onto the ranks (domains) with most room."""
    room = shelf.slots_r.copy()
    slots = np.full(shelf.num_slots, -1, dtype=np.int64)
    for expert in np.argsort(-count_e, kind="stable"):
        chosen: list[int] = []
        for _ in range(int(count_e[expert])):
            open_r = [r for r in np.argsort(-room, kind="stable") if room[r] > 0 and r not in chosen]
            if shelf.spread and len({int(shelf.domain_r[r]) for r in chosen}) == 1:
                totals = np.bincount(shelf.domain_r, weights=room)
                other = [r for r in open_r if shelf.domain_r[r] != shelf.domain_r[chosen[0]]]
                open_r = sorted(other, key=lambda r: (-totals[shelf.domain_r[r]], -room[r]))
            if not open_r:
                raise SpecError(
                    f"the slots per rank are too uneven to hold {int(count_e[expert])} replicas of an expert on "
                    "different ranks; give slots more evenly"
                )
            rank = int(open_r[0])
            slots[shelf.start_r[rank] + shelf.slots_r[rank] - room[rank]] = expert
            room[rank] -= 1
            chosen.append(rank)
    return slots
