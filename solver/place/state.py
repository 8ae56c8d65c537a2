"""Layers under search: the arrays that every move changes, many layers at once.

Shape suffixes: L layers, K windows, E logical experts, R ranks, N slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Shelf:
    """The slots to fill, the same for every layer: slots in the order of their ranks.

    `domain_r` numbers the failure domain of every rank. With `spread` no domain may hold all replicas of an expert.
    """

    slots_r: Ints
    domain_r: Ints
    spread: bool = False

    @staticmethod
    def of(slots_of_rank: tuple[int, ...], domain_of_rank: tuple[int, ...] | None = None) -> Shelf:
        """Shelf with the given slots per rank (each at least one); with domains, replicas must be spread over them."""
        slots = np.array(slots_of_rank, dtype=np.int64)
        domain = np.arange(len(slots)) if domain_of_rank is None else np.array(domain_of_rank, dtype=np.int64)
        return Shelf(slots, domain, domain_of_rank is not None)

    @property
    def num_ranks(self) -> int:
        """Ranks."""
        return len(self.slots_r)

    @property
    def num_slots(self) -> int:
        """Slots of all ranks."""
        return int(self.slots_r.sum())

    @property
    def rank_n(self) -> Ints:
        """Rank of every slot."""
        return np.repeat(np.arange(self.num_ranks), self.slots_r)

    @property
    def start_r(self) -> Ints:
        """First slot of every rank."""
        return np.concatenate([[0], np.cumsum(self.slots_r)[:-1]]).astype(np.int64)


@dataclass
class State:
    """Placements of several layers and what the search needs of them.

    A replica of expert e that has c of them brings ``load / c + drift / c**2`` to its rank in every window; `drift` is
    the regularisation toward placements that tolerate unseen loads, zero where yesterday's load is taken as it is.
    """

    shelf: Shelf
    load_lke: Floats
    drift_le: Floats
    slot_ln: Ints
    """Expert of every slot."""

    @property
    def num_experts(self) -> int:
        """Logical experts of a layer."""
        return int(self.load_lke.shape[2])

    def take(self, layers: Ints) -> State:
        """Copy of some layers."""
        return State(self.shelf, self.load_lke[layers], self.drift_le[layers], self.slot_ln[layers].copy())

    def count_le(self) -> Ints:
        """Replicas of every expert."""
        return counts_of(self.slot_ln, self.num_experts)

    def share_lkn(self) -> Floats:
        """What every slot brings to its rank."""
        return slot_values(replica_shares(self.load_lke, self.drift_le, self.count_le()), self.slot_ln)

    def rank_load_lkr(self) -> Floats:
        """Load of every rank, drift included."""
        loads: Floats = np.add.reduceat(self.share_lkn(), self.shelf.start_r, axis=2)
        return loads


def counts_of(slot_ln: Ints, num_experts: int) -> Ints:
    """Replicas of every expert, ``[layers, experts]``."""
    layers = len(slot_ln)
    flat = (slot_ln + np.arange(layers)[:, None] * num_experts).ravel()
    return np.bincount(flat, minlength=layers * num_experts).reshape(layers, num_experts).astype(np.int64)


def replica_shares(load_lke: Floats, drift_le: Floats, count_le: Ints) -> Floats:
    """Share of one replica of every expert; an expert without one counts as having one."""
    count = np.maximum(count_le, 1)[:, None, :]
    shares: Floats = load_lke / count + drift_le[:, None, :] / count**2
    return shares


def slot_values(value_lke: Floats, slot_ln: Ints) -> Floats:
    """Value of the expert in every slot, ``[layers, windows, slots]``."""
    layers, windows, _ = value_lke.shape
    index = np.broadcast_to(slot_ln[:, None, :], (layers, windows, slot_ln.shape[1]))
    return np.take_along_axis(value_lke, index, axis=2)


def held_lre(state: State) -> Bools:
    """Whether a rank holds a replica of an expert."""
    layers = len(state.slot_ln)
    held = np.zeros((layers, state.shelf.num_ranks, state.num_experts), dtype=bool)
    held[np.arange(layers)[:, None], state.shelf.rank_n[None, :], state.slot_ln] = True
    return held


def may_move_lnr(state: State) -> Bools:
    """Whether the replica of a slot may go to a rank: the rank lacks the expert, and its replicas stay spread."""
    shelf, slot = state.shelf, state.slot_ln
    held = held_lre(state)
    free = np.take_along_axis(~held, np.broadcast_to(slot[:, None, :], (len(slot), shelf.num_ranks, slot.shape[1])), 2)
    free = free.transpose(0, 2, 1)
    if not shelf.spread:
        return free
    domains = int(shelf.domain_r.max()) + 1
    in_domain = by_domain(held, shelf.domain_r)
    here = np.take_along_axis(in_domain, np.broadcast_to(slot[:, None, :], (len(slot), domains, slot.shape[1])), 2)
    count = np.take_along_axis(state.count_le(), slot, 1)
    own = shelf.domain_r[shelf.rank_n]
    # Replicas outside the domain it goes to, this one not counted.
    same = own[None, None, :] == np.arange(domains)[None, :, None]
    outside = (count[:, None, :] - 1) - (here - same)
    spread: Bools = free & (outside >= 1)[:, shelf.domain_r, :].transpose(0, 2, 1)
    return spread


def by_domain(held_lrx: Bools, domain_r: Ints) -> Ints:
    """Number of ranks of every domain that hold something, ``[layers, domains, ...]``."""
    of_domain = (np.arange(int(domain_r.max()) + 1)[:, None] == domain_r[None, :]).astype(np.int64)
    counts: Ints = np.einsum("dr,lr...->ld...", of_domain, held_lrx.astype(np.int64))
    return counts
