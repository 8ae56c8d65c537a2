"""Single window: swaps on the fullest ranks, and replicas that change their expert, toward a target for the maximum.

The penalty of a placement is ``sum_r max(0, load_r - target)**2``; when it is 0 the target has been met and is lowered.
An expert that gives a replica to another changes the loads of all ranks with the two experts, so such moves are chosen
by an estimate, repaired by swaps, and kept only if the penalty fell. Shape suffixes: L layers, E experts, R ranks,
N slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solver.place.state import Bools, Floats, Ints, Shelf, by_domain, counts_of

NEVER = 1e30
"""Cost of an illegal move."""
GIVERS = 8
"""Replicas that one trade considers giving up, of every layer."""


@dataclass
class Search:
    """Several layers of one window under search: slots, counts, rank loads, targets."""

    shelf: Shelf
    load_le: Floats
    slot_ln: Ints
    target_l: Floats
    least: int = 1
    """Fewest replicas of an expert."""
    home_lre: Bools | None = None
    """Replicas that are there already; with it, `budget_l` bounds the others (moves) of a layer."""
    budget_l: Ints | None = None
    receive_lr: Ints | None = None
    """Most replicas that a rank may load, beside the budget of its layer."""

    def __post_init__(self) -> None:
        self.rank_n, self.start_r, self.size_r = self.shelf.rank_n, self.shelf.start_r, self.shelf.slots_r
        self.layers, self.experts = self.load_le.shape
        self.ranks = self.shelf.num_ranks
        self.most_slots = int(self.size_r.max())
        within = np.arange(self.most_slots)[None, :]
        self.slot_of_rank_rs = np.where(within < self.size_r[:, None], self.start_r[:, None] + within, -1)
        self.refresh(np.arange(self.layers))

    def refresh(self, layers: Ints) -> None:
        """Compute counts, loads and membership of some layers anew."""
        if not hasattr(self, "count_le"):
            self.count_le = np.zeros((self.layers, self.experts), dtype=np.int64)
            self.share_le = np.zeros((self.layers, self.experts))
            self.rank_load_lr = np.zeros((self.layers, self.ranks))
            self.held_lre = np.zeros((self.layers, self.ranks, self.experts), dtype=bool)
            self.domain_n = self.shelf.domain_r[self.rank_n]
            self.moves_l = np.zeros(self.layers, dtype=np.int64)
        slot = self.slot_ln[layers]
        self.count_le[layers] = counts_of(slot, self.experts)
        self.share_le[layers] = self.load_le[layers] / np.maximum(self.count_le[layers], 1)
        share = np.take_along_axis(self.share_le[layers], slot, 1)
        self.rank_load_lr[layers] = np.add.reduceat(share, self.start_r, axis=1)
        held = np.zeros((len(layers), self.ranks, self.experts), dtype=bool)
        held[np.arange(len(layers))[:, None], self.rank_n[None, :], slot] = True
        self.held_lre[layers] = held
        if self.home_lre is not None:
            self.moves_l[layers] = (held & ~self.home_lre[layers]).sum(axis=(1, 2))

    def penalty_l(self, layers: Ints) -> Floats:
        """Penalty of some layers against their targets."""
        over = np.maximum(self.rank_load_lr[layers] - self.target_l[layers, None], 0.0)
        penalty: Floats = (over * over).sum(axis=1)
        return penalty

    def swap(self, layers: Ints, rank_a: Ints, temperature: Floats | None, rng: np.random.Generator) -> Bools:
        """Best swap of a slot of `rank_a` with any other, taken where it lowers the penalty (or by the temperature)."""
        at = np.arange(len(layers))
        mine = self.slot_of_rank_rs[rank_a]
        present = mine >= 0
        slot, share_e = self.slot_ln[layers], self.share_le[layers]
        expert_i = np.where(present, slot[at[:, None], np.maximum(mine, 0)], 0)
        share_i = share_e[at[:, None], expert_i]
        share_j = np.take_along_axis(share_e, slot, 1)
        load, target = self.rank_load_lr[layers], self.target_l[layers]
        load_a, load_b = load[at, rank_a], load[:, self.rank_n]
        over_a = np.maximum(load_a - target, 0.0) ** 2
        over_b = np.maximum(load_b - target[:, None], 0.0) ** 2
        delta = share_i[:, :, None] - share_j[:, None, :]
        after_a = np.maximum(load_a[:, None, None] - delta - target[:, None, None], 0.0)
        after_b = np.maximum(load_b[:, None, :] + delta - target[:, None, None], 0.0)
        change = after_a * after_a + after_b * after_b - over_b[:, None, :] - over_a[:, None, None]
        held = self.held_lre[layers]
        b_has_i = held[at[:, None, None], self.rank_n[None, None, :], expert_i[:, :, None]]
        a_has_j = np.take_along_axis(held[at, rank_a], slot, 1)
        illegal = b_has_i | a_has_j[:, None, :] | ~present[:, :, None]
        if self.shelf.spread:
            illegal |= self._herds(layers, rank_a, expert_i)
        if self.home_lre is not None:
            illegal |= self._too_many(layers, rank_a, expert_i)
        change[illegal] = NEVER
        if temperature is not None:
            change += temperature[:, None, None] * rng.exponential(size=change.shape)
        flat = change.reshape(len(layers), -1)
        best = flat.argmin(axis=1)
        value = flat[at, best]
        go: Bools = value < -1e-15 if temperature is None else value < NEVER / 2
        i, j = best // slot.shape[1], best % slot.shape[1]
        chosen = np.flatnonzero(go)
        self._apply(layers[chosen], mine[chosen, i[chosen]], j[chosen])
        return go

    def _herds(self, layers: Ints, rank_a: Ints, expert_i: Ints) -> Bools:
        """Whether a swap would herd all replicas of an expert into one domain, ``[layers, own slots, slots]``."""
        at = np.arange(len(layers))
        slot, count = self.slot_ln[layers], self.count_le[layers]
        inside = self._in_domain(layers)
        domain_a = self.shelf.domain_r[rank_a]
        here_i = inside[at[:, None, None], self.domain_n[None, None, :], expert_i[:, :, None]]
        stay = (self.domain_n[None, :] == domain_a[:, None]).astype(np.int64)
        alone_i = count[at[:, None], expert_i][:, :, None] - 1 - (here_i - stay[:, None, :]) < 1
        here_j = inside[at[:, None], domain_a[:, None], slot]
        alone_j = np.take_along_axis(count, slot, 1) - 1 - (here_j - stay) < 1
        result: Bools = alone_i | alone_j[:, None, :]
        return result

    def _too_many(self, layers: Ints, rank_a: Ints, expert_i: Ints) -> Bools:
        """Whether a swap would need more moves than the budget has, ``[layers, own slots, slots]``."""
        assert self.home_lre is not None
        assert self.budget_l is not None
        at = np.arange(len(layers))
        slot, home = self.slot_ln[layers], self.home_lre[layers]
        i_home = home[at[:, None], rank_a[:, None], expert_i]
        j_home = home[at[:, None], self.rank_n[None, :], slot]
        i_there = home[at[:, None, None], self.rank_n[None, None, :], expert_i[:, :, None]]
        j_there = home[at[:, None], rank_a[:, None], slot]
        # A replica that leaves its home becomes a move, one that comes home stops being one.
        added = i_home.astype(np.int64)[:, :, None] - i_there + (j_home.astype(np.int64) - j_there)[:, None, :]
        result: Bools = self.moves_l[layers][:, None, None] + added > self.budget_l[layers][:, None, None]
        if self.receive_lr is not None:
            room = self._room(layers)
            comes_a = i_home.astype(np.int64)[:, :, None] - j_there[:, None, :]
            comes_b = j_home.astype(np.int64)[:, None, :] - i_there
            result |= (comes_a > room[at, rank_a][:, None, None]) | (comes_b > room[:, self.rank_n][:, None, :])
        return result

    def _room(self, layers: Ints) -> Ints:
        """Replicas that every rank may still load."""
        assert self.home_lre is not None
        assert self.receive_lr is not None
        room: Ints = self.receive_lr[layers] - (self.held_lre[layers] & ~self.home_lre[layers]).sum(axis=2)
        return room

    def _in_domain(self, layers: Ints) -> Ints:
        """Replicas of every expert in every domain, ``[layers, domains, experts]``."""
        return by_domain(self.held_lre[layers], self.shelf.domain_r)

    def _spare(self, layers: Ints) -> Bools:
        """Whether the replica of a slot can be given up."""
        slot = self.slot_ln[layers]
        spare: Bools = np.take_along_axis(self.count_le[layers], slot, 1) > self.least
        if self.shelf.spread:
            at = np.arange(len(layers))[:, None]
            inside = self._in_domain(layers)
            here = inside[at, self.domain_n[None, :], slot]
            two = np.take_along_axis((inside > 0).sum(axis=1), slot, 1)
            spare &= (two > 2) | ((two == 2) & (here > 1))
        return spare

    def _apply(self, layers: Ints, one: Ints, two: Ints) -> None:
        slot = self.slot_ln
        e, f = slot[layers, one], slot[layers, two]
        a, b = self.rank_n[one], self.rank_n[two]
        delta = self.share_le[layers, e] - self.share_le[layers, f]
        self.rank_load_lr[layers, a] -= delta
        self.rank_load_lr[layers, b] += delta
        self.held_lre[layers, a, e] = False
        self.held_lre[layers, b, f] = False
        self.held_lre[layers, a, f] = True
        self.held_lre[layers, b, e] = True
        slot[layers, one], slot[layers, two] = f, e
        if self.home_lre is not None:
            home = self.home_lre
            self.moves_l[layers] += home[layers, a, e].astype(np.int64) - home[layers, b, e]
            self.moves_l[layers] += home[layers, b, f].astype(np.int64) - home[layers, a, f]

    def settle(self, layers: Ints, rng: np.random.Generator, rounds: int) -> None:
        """Swaps on overloaded ranks until none of a layer's two fullest ranks improves."""
        stuck = np.zeros(len(layers), dtype=np.int64)
        for _ in range(rounds):
            open_l = np.flatnonzero((stuck < 3) & (self.rank_load_lr[layers].max(axis=1) > self.target_l[layers]))
            if not len(open_l):
                return
            part = layers[open_l]
            order = np.argpartition(-self.rank_load_lr[part], min(2, self.ranks - 1), axis=1)
            worst = self.rank_load_lr[part].argmax(axis=1)
            depth = np.minimum(stuck[open_l], self.ranks - 1)
            rank = np.where(depth == 0, worst, order[np.arange(len(part)), depth])
            good = self.swap(part, rank, None, rng)
            stuck[open_l] = np.where(good, 0, stuck[open_l] + 1)

    def trade(self, layers: Ints, rng: np.random.Generator, noise: float) -> Bools:
        """One expert of every layer gives a replica to another, as an estimate suggests; False where none can."""
        at = np.arange(len(layers))
        slot, count, load_e = self.slot_ln[layers], self.count_le[layers], self.load_le[layers]
        load, target = self.rank_load_lr[layers], self.target_l[layers][:, None]
        share = self.share_le[layers]
        more, fewer = load_e / (count + 1), load_e / np.maximum(count - 1, 1)
        base = np.maximum(load - target, 0.0) ** 2
        scale = np.maximum(base.sum(axis=1), 1e-12)
        load_n, base_n, share_n = load[:, self.rank_n], base[:, self.rank_n], np.take_along_axis(share, slot, 1)
        # What the siblings of a replica would cost their ranks if it left, and save them if one more came.
        rise = np.maximum(load_n + np.take_along_axis(fewer, slot, 1) - share_n - target, 0.0) ** 2 - base_n
        fall = np.maximum(load_n + np.take_along_axis(more, slot, 1) - share_n - target, 0.0) ** 2 - base_n
        rise_e, fall_e = self._by_expert(rise, slot), self._by_expert(fall, slot)
        others = np.take_along_axis(rise_e, slot, 1) - rise
        others -= np.maximum(base_n - np.maximum(load_n - share_n - target, 0.0) ** 2, 0.0)
        give = self._spare(layers)
        score = np.where(give, others + noise * scale[:, None] * rng.exponential(size=give.shape), NEVER)
        picks = min(slot.shape[1], GIVERS)
        chosen = np.argpartition(score, picks - 1, axis=1)[:, :picks]
        rank = self.rank_n[chosen]
        after = np.take_along_axis(load_n - share_n, chosen, 1) - target
        change = np.maximum(after[:, :, None] + more[:, None, :], 0.0) ** 2 + fall_e[:, None, :]
        kept = np.where(give, np.take_along_axis(rise_e, slot, 1) - rise, NEVER)
        change += (np.take_along_axis(kept, chosen, 1) - np.take_along_axis(base, rank, 1))[:, :, None]
        change += (noise * scale)[:, None, None] * rng.exponential(size=change.shape)
        illegal = self.held_lre[layers][at[:, None], rank] | (count >= self.ranks)[:, None, :]
        if self.home_lre is not None and self.budget_l is not None:
            home = self.home_lre[layers]
            leaves = home[at[:, None], rank, np.take_along_axis(slot, chosen, 1)].astype(np.int64)
            added = leaves[:, :, None] - home[at[:, None], rank]
            illegal |= self.moves_l[layers][:, None, None] + added > self.budget_l[layers][:, None, None]
            if self.receive_lr is not None:
                illegal |= added > self._room(layers)[at[:, None], rank][:, :, None]
        change[illegal] = NEVER
        flat = change.reshape(len(layers), -1)
        best = flat.argmin(axis=1)
        good: Bools = flat[at, best] < NEVER / 2
        i, f = best // self.experts, best % self.experts
        go = np.flatnonzero(good)
        self.slot_ln[layers[go], chosen[go, i[go]]] = f[go]
        self.refresh(layers[go])
        return good

    def _by_expert(self, value_ln: Floats, slot_ln: Ints) -> Floats:
        """Sum over an expert's slots."""
        layers = len(slot_ln)
        flat = (slot_ln + np.arange(layers)[:, None] * self.experts).ravel()
        sums: Floats = np.bincount(flat, value_ln.ravel(), layers * self.experts).astype(np.float64)
        return sums.reshape(layers, self.experts)
