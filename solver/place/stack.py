"""Rank loads of many packings at once: the replicas longest first, all of an expert onto the least loaded ranks.

A rank is one integer: its load in units, then how far it is filled, so that one sort finds the least loaded ranks with
room, of equal ones those with most room. Full ranks sort last. Which rank is which does not matter until a packing is
wanted. With two slots per rank the packing is that of sorted replicas, paired from both ends. Shape suffixes:
B packings, E experts, R ranks, N slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from solver.place.state import Bools, Floats, Ints, Shelf

Words = npt.NDArray[np.int32]
FULL_BIT = 30
"""Bit of an integer that says that a rank is full."""
MOST_UNITS = 1 << 16
"""Parts of the target that loads are counted in, if the integers are long enough."""
HIGHEST = 4
"""Share of one replica, in targets, beyond which it is not counted."""
CHECKS = 8
"""Steps after which packings above their limits are dropped."""
DEAL = 8
"""Part of the ranks (one in so many) that get a replica in one step; experts with fewer replicas need not be apart."""


@dataclass(frozen=True)
class Scores:
    """Busiest rank's load and squared overload of every packing, relative to its target; infinite above its limit."""

    top_b: Floats
    penalty_b: Floats


def units_of(num_experts: int, shelf: Shelf) -> int:
    """Parts of the target that loads are counted in: a rank's load and fill, or a share and its expert, fit in one."""
    most_slots = int(shelf.slots_r.max())
    longest = (1 << FULL_BIT) // (HIGHEST * max(most_slots << most_slots.bit_length(), 1 << num_experts.bit_length()))
    return min(MOST_UNITS, 1 << longest.bit_length() - 1)


def shares(load: Floats, count: Ints, units: int) -> Words:
    """Shares of one replica in units, rounded; loads relative to their targets."""
    share: Words = np.minimum(load / count * units + 0.5, HIGHEST * units).astype(np.int32)
    return share


def scores(share_be: Words, count_be: Ints, limit_b: Floats, shelf: Shelf) -> Scores:
    """Scores of packings of replicas with the given shares; a penalty above the limit is not computed further.

    From three slots per rank on, an expert with few replicas may meet itself on a rank, which is not seen.
    """
    if bool((shelf.slots_r == 2).all()):
        return _paired(share_be, count_be, limit_b, shelf)
    return _Stacks(share_be, count_be, limit_b, shelf).run()


def _paired(share_be: Words, count_be: Ints, limit_b: Floats, shelf: Shelf) -> Scores:
    """The heaviest replica with the lightest, and so on; see :func:`lone` for an expert that would meet itself."""
    packings, experts = share_be.shape
    bits, units, ranks = experts.bit_length(), units_of(experts, shelf), shelf.num_ranks
    item = share_be << bits | np.arange(experts, dtype=np.int32)
    item = repeated(item, count_be)
    item.sort(axis=1)
    expert_bn = item & ((1 << bits) - 1)
    item >>= bits
    load = np.empty((packings, ranks + 1), dtype=np.int32)
    np.add(item[:, :ranks], item[:, : ranks - 1 : -1], out=load[:, :ranks])
    load[:, ranks] = lone(item, expert_bn, count_be)
    penalty = _penalty(load, units)
    out = penalty > limit_b
    return Scores(np.where(out, np.inf, load.max(axis=1) / units), np.where(out, np.inf, penalty))


def repeated(item_be: Words, count_be: Ints) -> Words:
    """Every item as often as it counts, in any order; few count more than once, so only those are repeated."""
    several = np.flatnonzero(count_be > 1)
    further = np.repeat(item_be.ravel()[several], count_be.ravel()[several] - 1)
    items: Words = np.concatenate([item_be, further.reshape(len(item_be), -1)], axis=1)
    return items


def lone(size_bn: np.ndarray, expert_bn: Ints | Words, count_be: Ints) -> np.ndarray:
    """Load of the pair that keeps the expert in the middle of sorted replicas from meeting itself; 0 where it does not.

    Its c replicas are a run in the middle, so c others around it must take them: the highest is c places above the
    middle of the lighter half. Lower ones would leave two beyond it to each other, which is worse, since the run is at
    most half of the target: this is optimal.
    """
    rows, middle = np.arange(len(size_bn)), size_bn.shape[1] // 2
    expert = expert_bn[:, middle]
    above = size_bn[rows, middle - 1 + count_be[rows, expert]]
    return np.where(expert_bn[:, middle - 1] == expert, size_bn[:, middle] + above, 0)


def _penalty(load_br: Words, units: int) -> Floats:
    """Squared overload of the ranks."""
    over = np.maximum(load_br - units, 0).astype(np.float32)
    penalty: Floats = np.einsum("br,br->b", over, over).astype(np.float64) / units**2
    return penalty


class _Stacks:
    """Half-filled ranks of the packings that are within their limits."""

    def __init__(self, share_be: Words, count_be: Ints, limit_b: Floats, shelf: Shelf) -> None:
        self.ranks, self.fill_bits = shelf.num_ranks, int(shelf.slots_r.max()).bit_length()
        self.units = units_of(share_be.shape[1], shelf)
        self.full, self.filled = np.int32(1 << FULL_BIT), np.int32((1 << self.fill_bits) - 1)
        self.limit_b, self.alive = limit_b, np.arange(len(share_be))
        self.slots_of_step = max(1, self.ranks // DEAL)
        empty_r = self.filled - np.sort(shelf.slots_r)[::-1].astype(np.int32)
        self.key_br = np.repeat(empty_r[None, :], len(share_be), axis=0)
        count_bits = self.ranks.bit_length()
        item = share_be << count_bits | count_be.astype(np.int32)
        item.sort(axis=1)
        item = item[:, ::-1]
        self.count_be = item & ((1 << count_bits) - 1)
        self.add_be = (item >> count_bits << self.fill_bits) + 1

    def run(self) -> Scores:
        """Fill all slots: experts with many replicas one by one, then the replicas of all others."""
        top, penalty = np.full(len(self.limit_b), np.inf), np.full(len(self.limit_b), np.inf)
        several_e = self.count_be.max(axis=0)
        wide = np.flatnonzero(several_e >= max(2, self.slots_of_step))
        first = int(wide[-1]) + 1 if len(wide) else 0
        self._put_experts(several_e[:first].tolist())
        if len(self.alive):
            self._deal(first)
        if len(self.alive):
            self._drop()
            # Where too few ranks had room for an expert, others are left with some.
            filled = ((self.key_br & self.filled) == self.filled).all(axis=1)
            load = (self.key_br[filled] & ~self.full) >> self.fill_bits
            top[self.alive[filled]] = load.max(axis=1) / self.units
            penalty[self.alive[filled]] = _penalty(load, self.units)
        return Scores(top, penalty)

    def _put_experts(self, several: list[int]) -> None:
        """The experts with the largest shares, all replicas of one at a time on different ranks."""
        count_eb, add_eb = (np.ascontiguousarray(x[:, : len(several)].T) for x in (self.count_be, self.add_be))
        at = np.arange(self.ranks, dtype=np.int32)[None, :]
        for expert, most in enumerate(several):
            count, add = count_eb[expert, self.alive, None], add_eb[expert, self.alive, None]
            self._add(np.where(at[:, :most] < count, add, np.int32(0)))
            if expert % CHECKS == CHECKS - 1:
                self._drop()
                if not len(self.alive):
                    return

    def _deal(self, first: int) -> None:
        """The replicas of the others, some at a time on different ranks; packings that have fewer get nothing last."""
        count, add = self.count_be[self.alive, first:], self.add_be[self.alive, first:]
        missing = count.sum(axis=1)
        missing = missing.max() - missing
        if missing.any():
            count, add = np.c_[count, missing], np.pad(add, ((0, 0), (0, 1)))
        item_bn = np.repeat(add.ravel(), count.ravel()).reshape(len(count), -1)
        done, step = 0, 0
        while done < item_bn.shape[1]:
            number = min(self.slots_of_step, item_bn.shape[1] - done)
            while number > 1 and (self.key_br[:, number - 1] >= self.full).any():
                number //= 2
            self._add(item_bn[:, done : done + number])
            done, step = done + number, step + 1
            if step % CHECKS == 0:
                good = self._drop()
                item_bn = item_bn if good is None else item_bn[good]
                if not len(item_bn):
                    return

    def _add(self, item: Words) -> None:
        """Items onto the least loaded ranks; those that get full are marked."""
        part = self.key_br[:, : item.shape[1]]
        part += item
        part |= ((part & self.filled) + 1) >> self.fill_bits << FULL_BIT
        self.key_br.sort(axis=1)

    def _drop(self) -> Bools | None:
        """Leave out packings whose penalty is above the limit: loads only grow. Returns who stays, if not all."""
        penalty = _penalty((self.key_br & ~self.full) >> self.fill_bits, self.units)
        good: Bools = penalty <= self.limit_b[self.alive]
        if good.all():
            return None
        self.key_br, self.alive = self.key_br[good], self.alive[good]
        return good
