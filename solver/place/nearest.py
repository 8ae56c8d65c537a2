"""To which replica a token goes, and the units (racks, nodes, ranks) between which it travels.

A token goes to the nearest replica of an expert: on its own rank, else in its own node, its own rack, elsewhere; among
equally near ones to the next node after its own and the next place after its own there, counted around. Tokens come
evenly from all nodes and, in a node, from its ranks. Shape suffixes: E logical experts, R and Q ranks, S sources,
U units, N slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from solver.place.state import Bools, Floats, Ints

UnitName = Literal["rack", "node", "rank"]


@dataclass(frozen=True)
class Level:
    """One kind of unit, and the sources that see it alike: nodes for racks and nodes, ranks for ranks."""

    name: UnitName
    unit_r: Ints
    parent_r: Ints
    """Unit of the level above of every rank; slots trade places inside it only."""
    rank_s: Ints
    """A rank of every source."""
    weight_s: Floats
    """Share of the tokens that come from a source."""
    order_su: Ints
    """Units from the nearest to the farthest."""

    @property
    def units(self) -> int:
        """Number of units."""
        return int(self.unit_r.max()) + 1

    @cached_property
    def own_s(self) -> Ints:
        """Unit of every source."""
        return self.unit_r[self.rank_s]

    @cached_property
    def place_su(self) -> Ints:
        """How many units are nearer to a source than a unit."""
        return np.argsort(self.order_su, axis=1)

    def held_ue(self, slot_n: Ints, rank_n: Ints, experts: int) -> Bools:
        """Which unit holds which expert."""
        held = np.zeros((self.units, experts), dtype=bool)
        held[self.unit_r[rank_n], slot_n] = True
        return held

    def goal_se(self, held_ue: Bools) -> Ints:
        """Unit to which tokens of a source go for an expert."""
        first = held_ue[self.order_su].argmax(axis=1)
        goal: Ints = np.take_along_axis(self.order_su, first, 1)
        return goal


def levels_of(node_of_rank: Sequence[int], rack_of_rank: Sequence[int], alive: Sequence[int]) -> tuple[Level, ...]:
    """Levels from racks to ranks, over the living ranks; a level of one unit, or of the units above, is left out.

    `node_of_rank` and `rack_of_rank` are those of all ranks. Racks hold whole nodes.
    """
    ranks = len(node_of_rank)
    nodes, racks = max(node_of_rank) + 1, max(rack_of_rank) + 1
    if nodes == 1:
        node_of_rank, nodes = rack_of_rank, racks
    width = ranks // nodes
    node, rack = (np.array([units[rank] for rank in alive]) for units in (node_of_rank, rack_of_rank))
    local = np.array([rank % width for rank in alive])
    far_rq = (rack[:, None] != rack[None, :]).astype(np.int64)
    node_rq = (node[None, :] - node[:, None]) % nodes
    local_rq = (local[None, :] - local[:, None]) % width
    key_rq = (far_rq * nodes + node_rq) * width + local_rq
    order_rq = np.argsort(key_rq, axis=1, kind="stable")
    rank_weight_r = 1 / (len(set(node.tolist())) * np.bincount(node)[node])
    whole = np.zeros(len(alive), dtype=np.int64)
    found = []
    above = whole
    for name, unit in (("rack", rack), ("node", node), ("rank", np.arange(len(alive)))):
        unit_r = np.unique(unit, return_inverse=True)[1]
        if (name, racks) == ("node", nodes) or (name, nodes) == ("rank", ranks):
            continue  # the same units as above
        if unit_r.max() > 0:
            source_r = np.arange(len(alive)) if name == "rank" else np.unique(node, return_inverse=True)[1]
            found.append(_level(name, unit_r, above, source_r, (order_rq, rank_weight_r)))  # type: ignore[arg-type]
            above = unit_r
    return tuple(found)


def _level(name: UnitName, unit_r: Ints, parent_r: Ints, source_r: Ints, of_rank: tuple[Ints, Floats]) -> Level:
    order_rq, weight_r = of_rank
    sources = int(source_r.max()) + 1
    rank_s = np.array([int(np.flatnonzero(source_r == source)[0]) for source in range(sources)])
    order_su = np.array([list(dict.fromkeys(unit_r[order_rq[rank]].tolist())) for rank in rank_s])
    weight_s = np.bincount(source_r, weights=weight_r).astype(np.float64)
    return Level(name, unit_r, parent_r, rank_s, weight_s, order_su)
