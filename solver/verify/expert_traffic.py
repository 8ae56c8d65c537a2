"""The judge of an expert placement's traffic, pinned groups, tolerance, bytes and goals: plainly, from the document.

It shares no code with the search. A token goes to the nearest replica: on its rank, in its node, in its rack, else
anywhere; among equally near ones to the next node after its own and the next place after its own there, counted around.
Shape suffixes: T tokens, E logical experts, K experts of a token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from solver.expertmap import ExpertPlacement, Wires
from solver.specs.coactivation import CoActivation, of_groups
from solver.specs.windows import LoadWindow
from solver.verify.finding import Finding

TRAFFIC_RULES: dict[str, str] = {
    "map-levels": "shares and sends of every level are what the map, the loads and the co-activation give, and no less "
    "than their bounds; OPTIMAL means that they are equal",
    "map-tolerance": "the objective exceeds the one before traffic was lowered by no more than the tolerance",
    "map-pins": "a pinned group of experts is on one node, and every node has equally many groups",
    "map-bytes": "bytes are those of the moves, and within what may be moved and what a rank may receive",
    "map-goal": "the goal of the moves is the one asked for, and no layer reaches it with fewer moves than the least",
}
"""Rules of this judge, in its own words."""

ROUNDING = 1e-7
EQUAL = 1e-6
"""Relative difference up to which a value is its bound."""


def judge_topology(
    placed: ExpertPlacement, windows: Sequence[LoadWindow], known: CoActivation | None
) -> Iterator[Finding]:
    """Judge traffic, pins, bytes and goals of a document whose map is legal."""
    yield from _traffic(placed, windows, known)
    yield from _tolerance(placed)
    yield from _pins(placed)
    yield from _bytes(placed)
    yield from _goals(placed, windows)


def _mixture(windows: Sequence[LoadWindow], layer: int) -> np.ndarray:
    """Loads of a layer, every window a whole of its weight."""
    rows = [window.weight * window.count_le[layer] / window.count_le[layer].sum() for window in windows]
    mixture: np.ndarray = np.sum(rows, axis=0) / sum(window.weight for window in windows)
    return mixture


def _traffic(placed: ExpertPlacement, windows: Sequence[LoadWindow], known: CoActivation | None) -> Iterator[Finding]:
    wires = placed.wires
    if wires is None:
        if any(report.levels is not None for report in placed.layers):
            yield Finding("map-levels", "traffic of levels is stated, but not how it was counted")
        return
    if wires.counted == "groups" and placed.grouping is not None:
        every = np.stack([_mixture(windows, layer) for layer in range(placed.num_layers)])
        known = of_groups(every, placed.grouping.groups, placed.grouping.top_groups, wires.top_k)
    elif wires.counted == "copies":
        known = None
    if (None if known is None else known.kind) != (None if wires.counted == "copies" else wires.counted):
        yield Finding("map-levels", f"traffic was counted by {wires.counted}, which is not given (--pairs)")
        return
    sites = _Sites(placed, wires)
    for layer, report in enumerate(placed.layers):
        names = [level.unit for level in report.levels or ()]
        if names != sites.names(ranks=known is not None):
            yield Finding("map-levels", f"layer {layer} tells of {names}, but units are {sites.names(ranks=True)}")
            continue
        goal = sites.goals(placed.physical_to_logical_map[layer], placed.num_experts)
        load_e = _mixture(windows, layer)
        for level in report.levels or ():
            unit = sites.unit[level.unit]
            share = sites.mean(goal, unit, lambda units_e, own, load_e=load_e: float(load_e[units_e != own].sum()))
            pairs = [("share", level.share, share)]
            if known is not None:
                sends = sites.mean(goal, unit, _Sends(known, layer))
                pairs.append(("sends", -1.0 if level.sends is None else level.sends, sends))
            if known is not None and known.token_ltk is None:
                most = sites.mean(goal, unit, _Sends(known, layer, most=True))
                pairs.append(("most sends", -1.0 if level.sends_most is None else level.sends_most, most))
            for what, stated, true in pairs:
                if not math.isclose(stated, true, rel_tol=ROUNDING, abs_tol=1e-9):
                    yield Finding(
                        "map-levels", f"layer {layer}, {level.unit}s: {what} {stated:.9g}, the map gives {true:.9g}"
                    )
            if level.share_bound > level.share + 1e-9:
                yield Finding("map-levels", f"layer {layer}: bound {level.share_bound:.9g} above {level.share:.9g}")
            value, bound = (level.share, level.share_bound) if known is None else (level.sends, level.sends_bound)
            if value is None or bound is None or bound > value + 1e-9:
                yield Finding("map-levels", f"layer {layer}, {level.unit}s: bound {bound} above {value}")
            elif (level.status == "OPTIMAL") != (value - bound <= EQUAL * max(1.0, value)):
                yield Finding("map-levels", f"layer {layer}, {level.unit}s: {level.status}, but {bound} to {value}")


class _Sites:
    """Where ranks are, and to which rank the tokens of a rank go."""

    def __init__(self, placed: ExpertPlacement, wires: Wires) -> None:
        ranks = placed.ranks
        self.alive = [rank for rank in range(ranks) if rank not in set(placed.dead_ranks)]
        self.rank_of_slot = placed.rank_of_slot
        rack = [rank * wires.racks // ranks for rank in range(ranks)]
        self.nodes = wires.nodes if wires.nodes > 1 else wires.racks
        node = [rank * self.nodes // ranks for rank in range(ranks)]
        self.width = ranks // self.nodes
        self.unit = {"rack": np.array(rack), "node": np.array(node), "rank": np.arange(ranks)}
        peers = {one: sum(node[rank] == one for rank in self.alive) for one in {node[rank] for rank in self.alive}}
        self.weight = {rank: 1 / (len(peers) * peers[node[rank]]) for rank in self.alive}
        self.apart = (wires.racks != self.nodes, self.nodes != ranks)

    def names(self, *, ranks: bool) -> list[str]:
        """Levels that have several living units, each kind of unit once."""
        asked = ["rack", *(["node"] if self.apart[0] else []), *(["rank"] if ranks and self.apart[1] else [])]
        return [name for name in asked if len({int(self.unit[name][rank]) for rank in self.alive}) > 1]

    def goals(self, row: Sequence[int], experts: int) -> dict[int, np.ndarray]:
        """Rank to which the tokens of every living rank go, per expert."""
        holders: list[list[int]] = [[] for _ in range(experts)]
        for slot, expert in enumerate(row):
            if expert >= 0:
                holders[expert].append(self.rank_of_slot[slot])
        return {rank: np.array([self._nearest(rank, held) for held in holders]) for rank in self.alive}

    def _nearest(self, rank: int, held: Sequence[int]) -> int:
        if len(held) == 1:
            return held[0]
        rack, node = self.unit["rack"], self.unit["node"]

        def far(other: int) -> tuple[bool, int, int]:
            around = (int(node[other]) - int(node[rank])) % self.nodes
            return bool(rack[other] != rack[rank]), around, (other % self.width - rank % self.width) % self.width

        return min(held, key=far)

    def mean(self, goal: dict[int, np.ndarray], unit: np.ndarray, value: object) -> float:
        """Mean over the ranks of a function of the experts' units and the own unit; equal questions are asked once."""
        seen: dict[tuple[bytes, int], float] = {}
        total = 0.0
        for rank in self.alive:
            units_e, own = unit[goal[rank]], int(unit[rank])
            key = (units_e.tobytes(), own)
            if key not in seen:
                seen[key] = value(units_e, own)  # type: ignore[operator]
            total += self.weight[rank] * seen[key]
        return total


class _Sends:
    """Further units per token: counted on the tokens of a trace, or the least or most that pair counts allow."""

    def __init__(self, known: CoActivation, layer: int, *, most: bool = False) -> None:
        self.known, self.layer, self.most = known, layer, most

    def __call__(self, units_e: np.ndarray, own: int) -> float:
        if self.known.token_ltk is not None:
            units_tk = np.sort(units_e[self.known.token_ltk[self.layer]], axis=1)
            first = np.ones(units_tk.shape, dtype=bool)
            first[:, 1:] = units_tk[:, 1:] != units_tk[:, :-1]
            return float((first & (units_tk != own)).sum(axis=1).mean())
        pair_ef, load_e = self.known.pair_lef[self.layer], self.known.load_le[self.layer]
        tokens, k, sends = float(load_e.sum()) / self.known.top_k, self.known.top_k, 0.0
        for unit in sorted(set(units_e.tolist()) - {own}):
            here = np.flatnonzero(units_e == unit)
            met = pair_ef[np.ix_(here, here)].sum(axis=1)
            if self.most:
                sends += min(tokens, float((load_e[here] - met / k).sum()))
            else:
                sends += sum(
                    _pays(float(load), float(with_it), k) for load, with_it in zip(load_e[here], met, strict=True)
                )
        return sends / tokens


def _pays(load: float, met: float, k: int) -> float:
    """An expert's least part of its tokens' sends: 1 / m at m of their experts, straight between whole m."""
    if load <= 0:
        return 0.0
    low = min(1 + math.floor(met / load), k - 1) if k > 1 else 1
    return load * (1 / low + (1 + met / load - low) * (1 / (low + 1) - 1 / low))


def _tolerance(placed: ExpertPlacement) -> Iterator[Finding]:
    tolerance = None if placed.wires is None else placed.wires.tolerance
    for layer, report in enumerate(placed.layers):
        if report.plain_objective is None:
            continue
        most = report.plain_objective * (1 + (tolerance or 0.0))
        if report.objective > most * (1 + ROUNDING):
            yield Finding("map-tolerance", f"layer {layer}: {report.objective:.9g}, the tolerance allows {most:.9g}")


def _pins(placed: ExpertPlacement) -> Iterator[Finding]:
    if placed.grouping is None or not placed.grouping.pinned:
        return
    groups, nodes = placed.grouping.groups, max(placed.domain_of_rank) + 1
    node_of_slot = [placed.domain_of_rank[rank] for rank in placed.rank_of_slot]
    for layer, row in enumerate(placed.physical_to_logical_map):
        where: dict[int, set[int]] = {}
        for slot, expert in enumerate(row):
            group = expert * groups // placed.num_experts
            where.setdefault(group, set()).add(node_of_slot[slot])
        spread = [group for group, found in where.items() if len(found) > 1]
        if spread:
            yield Finding("map-pins", f"layer {layer}: group {spread[0]} is on nodes {sorted(where[spread[0]])}")
            continue
        held = [sum(found == {node} for found in where.values()) for node in range(nodes)]
        if len(set(held)) > 1:
            yield Finding("map-pins", f"layer {layer}: the nodes hold {held} groups")


def _bytes(placed: ExpertPlacement) -> Iterator[Finding]:
    stated = placed.moved_bytes
    if stated is None:
        return
    ranks = [move.rank for move in placed.moves or ()]
    moved = len(ranks) * stated.expert_bytes
    most = max((ranks.count(rank) for rank in set(ranks)), default=0) * stated.expert_bytes
    if (moved, most) != (stated.moved_bytes, stated.most_received_bytes):
        numbers = f"{stated.moved_bytes} and {stated.most_received_bytes}"
        yield Finding("map-bytes", f"{numbers} bytes are stated, the moves give {moved} and {most}")
    if stated.move_bytes is not None and moved > stated.move_bytes:
        yield Finding("map-bytes", f"{moved} bytes are moved, {stated.move_bytes} may be")
    if stated.receive_bytes is not None and most > stated.receive_bytes:
        yield Finding("map-bytes", f"a rank receives {most} bytes, {stated.receive_bytes} may be")


def _goals(placed: ExpertPlacement, windows: Sequence[LoadWindow]) -> Iterator[Finding]:
    kind, _, figure = (placed.moves_for or "").partition(" ")
    for layer, report in enumerate(placed.layers):
        least = report.moves_bound or 0
        reached = report.objective <= (report.moves_goal or 0.0) * (1 + ROUNDING)
        if reached and (report.moves is None or report.moves < least):
            yield Finding("map-goal", f"layer {layer}: {report.moves} moves, no fewer than {least} reach the goal")
        if kind != "balancedness":
            continue
        mean = 1.0
        if placed.unit == "tokens":
            mean = float(windows[0].count_le[layer].sum()) / (placed.ranks - len(placed.dead_ranks))
        goal = mean / float(figure)
        if report.moves_goal is None or not math.isclose(goal, report.moves_goal, rel_tol=ROUNDING):
            yield Finding("map-goal", f"layer {layer}: the goal is {report.moves_goal}, asked for is {goal:.9g}")
