"""Whether a placement exists at all, and the fewest moves that repair a current one; both are proved by counting.

Shape suffixes: L layers, E logical experts, R ranks, N slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solver.errors import NoPlacementError, SpecError
from solver.place.state import Floats, Ints, Shelf
from solver.specs.placing import Placing


@dataclass(frozen=True)
class Fewest:
    """Least number of moves of every layer: no repair loads fewer replicas."""

    moves_l: Ints

    def require(self, allowed: int) -> None:
        """Raise :class:`NoPlacementError` where a layer needs more moves than are allowed."""
        layer = int(self.moves_l.argmax())
        if int(self.moves_l[layer]) > allowed:
            raise NoPlacementError(
                f"layer {layer} needs at least {int(self.moves_l[layer])} moves (replicas that no living rank "
                f"holds, or that all sit in one failure unit), but {allowed} are allowed; allow more with --moves"
            )


def require_feasible(num_experts: int, shelf: Shelf, placing: Placing) -> None:
    """Raise :class:`NoPlacementError` where counting proves that no placement exists."""
    ranks, slots = shelf.num_ranks, shelf.num_slots
    copies = 2 if shelf.spread else 1
    of_living = f"{slots} slots on {ranks} ranks" + (" that are alive" if placing.dead else "")
    least = -(-copies * num_experts // ranks)
    if slots < copies * num_experts:
        why = f", because every expert needs replicas in two {placing.survive}s" if shelf.spread else ""
        raise NoPlacementError(
            f"no placement exists: {num_experts} experts need {copies * num_experts} slots{why}, there are "
            f"{of_living}; at least {least} slots per rank are needed"
        )
    if int(shelf.slots_r.max()) > num_experts or slots > ranks * num_experts:
        raise NoPlacementError(
            f"no placement exists: a rank holds an expert at most once, so it fills at most {num_experts} slots, "
            f"but one has {int(shelf.slots_r.max())}; give fewer slots per rank"
        )
    if not shelf.spread:
        return
    per_unit = np.bincount(shelf.domain_r, weights=shelf.slots_r)
    if len(per_unit) < 2 or slots - int(per_unit.max()) < num_experts:
        left = slots - int(per_unit.max()) if len(per_unit) > 1 else 0
        raise NoPlacementError(
            f"no placement exists: when the largest {placing.survive} is lost, {left} slots are left for {num_experts} "
            f"experts; give more slots per rank or more {placing.survive}s"
        )


def refill(load_le: Floats, before_ln: Ints, shelf: Shelf, room_r: Ints | None = None) -> tuple[Ints, Fewest]:
    """The current placement with every lost expert loaded again, and the fewest moves that any repair needs.

    A lost expert takes an empty slot, or one of an expert that has another replica: the one whose rank and siblings
    suffer least. `room_r` are the replicas that every rank may load over all layers; it is used up.
    """
    slot_ln = before_ln.copy()
    fewest = np.zeros(len(before_ln), dtype=np.int64)
    for layer, row in enumerate(slot_ln):
        fewest[layer] = _fewest(row, load_le.shape[1], shelf)
    if room_r is not None and int(fewest.sum()) > int(room_r.sum()):
        raise NoPlacementError(
            f"no placement exists: the repair loads at least {int(fewest.sum())} experts, but the ranks may receive "
            f"{int(room_r.sum())} together; allow more with --receive-bytes"
        )
    for row, load_e in zip(slot_ln, load_le, strict=True):
        _refill(row, load_e, shelf, room_r)
    return slot_ln, Fewest(fewest)


def _fewest(row_n: Ints, experts: int, shelf: Shelf) -> int:
    """Every expert needs one replica (in each of two units, where it must survive); an empty slot needs a load."""
    units = [set() for _ in range(experts)]  # type: list[set[int]]
    for slot, expert in enumerate(row_n):
        if expert >= 0:
            units[expert].add(int(shelf.domain_r[shelf.rank_n[slot]]))
    copies = 2 if shelf.spread else 1
    missing = sum(max(0, copies - len(held)) for held in units)
    return max(missing, int((row_n < 0).sum()))


def _refill(row_n: Ints, load_e: Floats, shelf: Shelf, room_r: Ints | None) -> None:
    rank_n, experts = shelf.rank_n, len(load_e)
    domain_n = shelf.domain_r[rank_n]
    copies = 2 if shelf.spread else 1

    def units_of(expert: int) -> set[int]:
        return set(domain_n[row_n == expert].tolist())

    while True:
        held = [units_of(expert) for expert in range(experts)]
        wanting = sorted((e for e in range(experts) if len(held[e]) < copies), key=lambda e: -load_e[e])
        empty = np.flatnonzero(row_n < 0)
        if not wanting and not len(empty):
            return
        count = np.bincount(row_n[row_n >= 0], minlength=experts)
        share = load_e / np.maximum(count, 1)
        load = np.bincount(rank_n, weights=np.where(row_n >= 0, share[row_n], 0.0), minlength=shelf.num_ranks)
        expert = wanting[0] if wanting else int(np.argmax(share))
        best, best_cost = -1, np.inf
        for slot in range(len(row_n)):
            rank, old = int(rank_n[slot]), int(row_n[slot])
            if room_r is not None and room_r[rank] <= 0:
                continue
            if (row_n[rank_n == rank] == expert).any() or (copies == 2 and int(domain_n[slot]) in held[expert]):
                continue
            if old >= 0 and (len(empty) or not _spare(row_n, slot, domain_n, copies)):
                continue
            rise = 0.0 if old < 0 else load_e[old] / (count[old] - 1) - share[old]
            cost = load[rank] + load_e[expert] / (count[expert] + 1) - (share[old] if old >= 0 else 0.0) + rise
            if cost < best_cost:
                best, best_cost = slot, cost
        if best < 0 and room_r is not None:
            raise SpecError(
                f"no repair was found with what the ranks may receive (that is no proof that none exists): expert "
                f"{expert} found no slot; allow more with --receive-bytes"
            )
        if best < 0:
            raise NoPlacementError(
                f"no repair was found: expert {expert} cannot be loaded without losing another one; place anew "
                "without --current"
            )
        row_n[best] = expert
        if room_r is not None:
            room_r[rank_n[best]] -= 1


def _spare(row_n: Ints, slot: int, domain_n: Ints, copies: int) -> bool:
    """Whether the expert of a slot does without this replica."""
    others = np.flatnonzero(row_n == row_n[slot])
    others = others[others != slot]
    return len(set(domain_n[others].tolist())) >= copies if copies == 2 else len(others) >= 1
