"""Search on the replica counts: one expert gives a replica, another takes it; a packing of sorted replicas scores it.

The packing deals the replicas in descending order, one per rank and round, the heaviest to the least loaded rank; with
two slots per rank this is optimal up to distinctness. Shape suffixes: L layers, E experts, R ranks, N slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solver.place import clock as time
from solver.place.state import Floats, Ints, Shelf

CANDIDATES = 16
"""Changes of the counts that are tried in one round, of every layer."""
ID_MASK = (1 << 12) - 1
"""Bits of a float's mantissa that carry an expert's number."""
TWIN_COST = 0.02
"""Overload that an expert that sits twice on a rank counts as, relative to the target."""
PATIENCE = 150
"""Rounds without success after which a target is eased."""


@dataclass(frozen=True)
class Folded:
    """Rank loads of the packing and how often an expert sits on a rank that has it already, per layer."""

    load_lr: Floats
    twins_l: Ints


def fold_loads(load_le: Floats, count_le: Ints, shelf: Shelf) -> Folded:
    """Rank loads of the packing; slots per rank must be even."""
    layers, experts = load_le.shape
    ranks, each = shelf.num_ranks, int(shelf.slots_r[0])
    # The expert rides in the lowest bits of the mantissa: sorting then needs no second array (relative error 2**-40).
    share = (load_le / count_le).view(np.int64) & ~np.int64(ID_MASK) | np.arange(experts)
    items = np.repeat(share.ravel(), count_le.ravel()).reshape(layers, shelf.num_slots)
    items.sort(axis=1)  # the bits of positive floats sort as the floats do
    items = items[:, ::-1]
    value, expert = items.view(np.float64), items & ID_MASK
    load, held = value[:, :ranks].copy(), expert[:, None, :ranks].copy()
    twins = np.zeros(layers, dtype=np.int64)
    for turn in range(1, each):
        order = np.argsort(load, axis=1)
        piece = slice(turn * ranks, (turn + 1) * ranks)
        held = np.take_along_axis(held, order[:, None, :], 2)
        twins += (held == expert[:, None, piece]).sum(axis=(1, 2))
        held = np.concatenate([held, expert[:, None, piece]], axis=1)
        load = np.take_along_axis(load, order, 1) + value[:, piece]
    return Folded(load, twins)


def fold(load_le: Floats, count_le: Ints, shelf: Shelf) -> Ints:
    """The packing itself: expert of every slot; an expert may sit twice on a rank (see :func:`part_twins`)."""
    layers, ranks, each = len(load_le), shelf.num_ranks, int(shelf.slots_r[0])
    rows = np.arange(layers)[:, None]
    experts = np.broadcast_to(np.arange(load_le.shape[1]), load_le.shape)
    item = np.repeat(experts.ravel(), count_le.ravel()).reshape(layers, shelf.num_slots)
    share = np.take_along_axis(load_le / count_le, item, 1)
    order = np.argsort(-share, axis=1, kind="stable")
    item, share = np.take_along_axis(item, order, 1), np.take_along_axis(share, order, 1)
    slot = np.zeros((layers, ranks, each), dtype=np.int64)
    load = np.zeros((layers, ranks))
    for turn in range(each):
        rank = np.argsort(load, axis=1, kind="stable")
        piece = slice(turn * ranks, (turn + 1) * ranks)
        slot[rows, rank, turn] = item[:, piece]
        load[rows, rank] += share[:, piece]
    return slot.reshape(layers, shelf.num_slots)


def part_twins(slot_n: Ints, share_e: Floats, shelf: Shelf) -> bool:
    """Swap second replicas of an expert on one rank away, to where loads stay lowest; False where none may."""
    rank = shelf.rank_n
    for _ in range(len(slot_n)):
        keys = rank * (len(share_e) + 1) + slot_n
        order = np.argsort(keys, kind="stable")
        twins = order[1:][keys[order][1:] == keys[order][:-1]]
        if not len(twins):
            return True
        i = int(twins[0])
        held = np.zeros((shelf.num_ranks, len(share_e)), dtype=bool)
        held[rank, slot_n] = True
        legal = ~held[rank, slot_n[i]] & ~held[rank[i], slot_n]
        if not legal.any():
            return False
        load = np.bincount(rank, weights=share_e[slot_n], minlength=shelf.num_ranks)
        delta = share_e[slot_n] - share_e[slot_n[i]]
        after = np.maximum(load[rank[i]] + delta, load[rank] - delta)
        j = int(np.where(legal, after, np.inf).argmin())
        slot_n[i], slot_n[j] = slot_n[j], slot_n[i]
    return False


@dataclass
class CountSearch:
    """Counts of several layers under search; `goal_l` is the maximum that ends it, `best_l` the best so far."""

    load_le: Floats
    count_le: Ints
    shelf: Shelf
    goal_l: Floats
    best_l: Floats
    rng: np.random.Generator
    least: int = 1

    def __post_init__(self) -> None:
        layers = len(self.load_le)
        self.load_le = np.maximum(self.load_le, 1e-9 * self.load_le.max(axis=1, keepdims=True))
        self.best_le = self.count_le.copy()
        self.step_l = np.full(layers, 0.02)
        self.failed_l = np.zeros(layers, dtype=np.int64)
        self.target_l = np.zeros(layers)
        self.penalty_l = np.zeros(layers)
        self._aim(np.arange(layers))

    def _aim(self, layers: Ints) -> None:
        """Set new targets below the best maxima and start from the best counts."""
        self.target_l[layers] = np.maximum(self.goal_l[layers], self.best_l[layers] * (1 - self.step_l[layers]))
        self.count_le[layers] = self.best_le[layers]
        folded = fold_loads(self.load_le[layers], self.count_le[layers], self.shelf)
        self.penalty_l[layers] = _penalty(folded, self.target_l[layers])

    def run(self, layers: Ints, deadline: float, rounds: int) -> None:
        """Try changes until the deadline (``time.monotonic``), the rounds are over, or the layers are done."""
        for _ in range(rounds):
            active = layers[self.best_l[layers] > self.goal_l[layers]]
            if not len(active) or time.monotonic() >= deadline:
                return
            self._round(active)

    def _round(self, active: Ints) -> None:
        rows = np.arange(len(active))
        tried = np.repeat(self.count_le[active], CANDIDATES, axis=0)
        load = np.repeat(self.load_le[active], CANDIDATES, axis=0)
        changed = self._change(tried, load)
        folded = fold_loads(load, tried, self.shelf)
        penalty = np.where(changed, _penalty(folded, np.repeat(self.target_l[active], CANDIDATES)), np.inf)
        penalty = penalty.reshape(len(active), CANDIDATES)
        best = penalty.argmin(axis=1)
        value = penalty[rows, best]
        top = np.where(folded.twins_l > 0, np.inf, folded.load_lr.max(axis=1))
        top = top.reshape(len(active), CANDIDATES)[rows, best]
        good = value <= self.penalty_l[active]
        taken = active[good]
        self.count_le[taken] = tried.reshape(len(active), CANDIDATES, -1)[rows[good], best[good]]
        self.penalty_l[taken] = value[good]
        better = good & (top < self.best_l[active] * (1 - 1e-12))
        self.best_l[active[better]] = top[better]
        self.best_le[active[better]] = self.count_le[active[better]]
        self.failed_l[active] += 1
        self.failed_l[active[better]] = 0
        met = active[good & (value <= 0)]
        self.step_l[met] = np.minimum(self.step_l[met] * 1.5, 0.05)
        stale = active[self.failed_l[active] >= PATIENCE]
        self.step_l[stale] = np.maximum(self.step_l[stale] * 0.5, 3e-4)
        self.failed_l[stale] = 0
        again = np.union1d(met, stale)
        if len(again):
            self._aim(again)

    def _change(self, count: Ints, load: Floats) -> np.ndarray:
        """Move one replica in every row: from a random replica that can be spared, half the time to a heavy expert."""
        rows, experts = np.arange(len(count)), count.shape[1]
        spare = np.cumsum(np.maximum(count - self.least, 0) > 0, axis=1)
        draw = self.rng.random((3, len(count)))
        giver = (spare <= (draw[0] * spare[:, -1])[:, None]).sum(axis=1)
        weight = np.cumsum(load / count, axis=1)
        heavy = (weight <= (draw[1] * weight[:, -1])[:, None]).sum(axis=1)
        taker = np.where(draw[2] < 0.5, heavy, (draw[1] * experts).astype(np.int64))
        giver, taker = np.minimum(giver, experts - 1), np.minimum(taker, experts - 1)
        legal = (count[rows, taker] < self.shelf.num_ranks) & (count[rows, giver] > self.least) & (giver != taker)
        count[rows[legal], giver[legal]] -= 1
        count[rows[legal], taker[legal]] += 1
        result: np.ndarray = legal
        return result


def _penalty(folded: Folded, target_l: Floats) -> Floats:
    """Squared overload of the ranks, and of the experts that sit twice on one."""
    over = np.maximum(folded.load_lr - target_l[:, None], 0.0)
    penalty: Floats = (over * over).sum(axis=1) + folded.twins_l * (TWIN_COST * target_l) ** 2
    return penalty
