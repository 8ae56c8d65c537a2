"""The judge of expert placements: every rule and every figure again, plainly, from the map and the loads.

It shares no code with the search. Loads are taken as the caller gives them; figures may differ by rounding only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from solver.expertmap import ExpertPlacement
from solver.specs.coactivation import CoActivation
from solver.specs.windows import LoadWindow
from solver.verify.expert_traffic import TRAFFIC_RULES, judge_topology
from solver.verify.finding import Finding
from solver.verify.slot_curve import judge_slots

MAP_RULES: dict[str, str] = {
    "map-shape": "one row per layer, one entry per slot, domains for every rank",
    "map-range": "a slot of a living rank holds a logical expert, a slot of a dead rank -1",
    "map-missing": "every expert has a replica",
    "map-twice": "a rank holds at most one replica of an expert",
    "map-survival": "every expert survives the loss of any one of the units that the document says it survives",
    "map-split": "shares of an expert's replicas are from 0 to 1 and sum to 1",
    "map-windows": "the loads have the layers and experts of the map, and the windows of the document",
    "map-balance": "balancedness is what the map and the loads give",
    "map-objective": "the objective is what the map and the loads give",
    "map-bound": "no bound exceeds its objective, the gap follows from both, and OPTIMAL means that they are equal",
    "map-moves": "the moves lead from the current map to this one, keep every expert served, and are as many as stated",
    "map-traffic": "traffic is the share of token copies that leave their node, and no less than its bound",
    "map-curve": "more moves never give less balance, nor more than the bound",
    **TRAFFIC_RULES,
}
"""Rules of the judge of expert maps, in its own words."""

ROUNDING = 1e-7
"""Relative difference of two sums of the same doubles in another order."""
EQUAL = 1e-6
"""Relative gap below which objective and bound count as equal: integer proofs round to billionths of a layer."""


@dataclass(frozen=True)
class MapVerdict:
    """What is wrong with a placement; nothing is when `findings` is empty."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether the judge found nothing."""
        return not self.findings


def judge_placement(
    placed: ExpertPlacement,
    windows: Sequence[LoadWindow],
    current: Sequence[Sequence[int]] | None = None,
    known: CoActivation | None = None,
) -> MapVerdict:
    """Judge a placement against the loads it was made for, the current map and the co-activation, where there were."""
    shape = list(_shape(placed, windows))
    if shape:
        return MapVerdict(tuple(shape))
    strange = [finding for finding in _holds(placed) if finding.rule == "map-range"]
    if strange:
        return MapVerdict(tuple(strange))
    rules = [*_holds(placed), *_survives(placed), *_split(placed)]
    if not rules:
        rules += [*_figures(placed, windows), *_claims(placed), *_curve(placed), *_traffic(placed, windows)]
        rules += judge_slots(placed, windows)
        rules += judge_topology(placed, windows, known)
        if current is not None:
            rules += _moves(placed, current)
    return MapVerdict(tuple(rules))


def _near(one: float, two: float, tolerance: float = ROUNDING) -> bool:
    return math.isclose(one, two, rel_tol=tolerance, abs_tol=1e-12)


def _shape(placed: ExpertPlacement, windows: Sequence[LoadWindow]) -> Iterator[Finding]:
    slots = sum(placed.slots_of_rank)
    rows = placed.physical_to_logical_map
    if len(placed.slots_of_rank) != placed.ranks or len(placed.domain_of_rank) != placed.ranks:
        yield Finding("map-shape", f"{placed.ranks} ranks, but slots of {len(placed.slots_of_rank)}")
    if len(rows) != placed.num_layers or len(placed.layers) != placed.num_layers:
        yield Finding("map-shape", f"{placed.num_layers} layers, but {len(rows)} rows and {len(placed.layers)} reports")
    for layer, row in enumerate(rows):
        if len(row) != slots:
            yield Finding("map-shape", f"layer {layer} has {len(row)} slots, the ranks have {slots}")
    if placed.split is not None and [len(row) for row in placed.split] != [len(row) for row in rows]:
        yield Finding("map-shape", "the split has another shape than the map")
    if placed.survives == "rack" and len(placed.rack_of_rank) != placed.ranks:
        yield Finding("map-shape", "survival of racks is claimed, but the racks of the ranks are not given")
    named = [window.name for window in placed.windows]
    if named != [window.name for window in windows]:
        yield Finding("map-windows", f"the document has the windows {named}, given {[w.name for w in windows]}")
    for window in windows:
        if window.count_le.shape != (placed.num_layers, placed.num_experts):
            yield Finding("map-windows", f"window {window.name} has the shape {list(window.count_le.shape)}")


def _holds(placed: ExpertPlacement) -> Iterator[Finding]:
    rank_of_slot, dead = placed.rank_of_slot, set(placed.dead_ranks)
    for layer, row in enumerate(placed.physical_to_logical_map):
        held: dict[int, set[int]] = {}
        for slot, expert in enumerate(row):
            rank = rank_of_slot[slot]
            if rank in dead:
                if expert != -1:
                    yield Finding("map-range", f"layer {layer}, slot {slot} of dead rank {rank} holds {expert}")
                continue
            if not 0 <= expert < placed.num_experts:
                yield Finding("map-range", f"layer {layer}, slot {slot} holds {expert} of {placed.num_experts}")
            elif rank in held.setdefault(expert, set()):
                yield Finding("map-twice", f"layer {layer}: rank {rank} holds expert {expert} twice")
            else:
                held[expert].add(rank)
        missing = [expert for expert in range(placed.num_experts) if expert not in held]
        if missing:
            yield Finding("map-missing", f"layer {layer} lacks {len(missing)} experts, the first is {missing[0]}")


def _survives(placed: ExpertPlacement) -> Iterator[Finding]:
    if placed.survives == "nothing":
        return
    unit_of_rank = {
        "rank": tuple(range(placed.ranks)), "node": placed.domain_of_rank, "rack": placed.rack_of_rank,
    }[placed.survives]  # fmt: skip
    rank_of_slot = placed.rank_of_slot
    for layer, row in enumerate(placed.physical_to_logical_map):
        units: dict[int, set[int]] = {}
        for slot, expert in enumerate(row):
            if expert >= 0:
                units.setdefault(expert, set()).add(unit_of_rank[rank_of_slot[slot]])
        for expert, where in units.items():
            if len(where) < 2:
                only = next(iter(where))
                yield Finding("map-survival", f"layer {layer}: expert {expert} is only on {placed.survives} {only}")
                break


def _split(placed: ExpertPlacement) -> Iterator[Finding]:
    if placed.split is None:
        return
    for layer, (row, shares) in enumerate(zip(placed.physical_to_logical_map, placed.split, strict=True)):
        total = [0.0] * placed.num_experts
        for expert, share in zip(row, shares, strict=True):
            if not -1e-9 <= share <= 1 + 1e-9 or (expert < 0 and share != 0):
                yield Finding("map-split", f"layer {layer}: a share of expert {expert} is {share:g}")
            if expert >= 0:
                total[expert] += share
        wrong = [expert for expert, share in enumerate(total) if abs(share - 1) > 1e-6]
        if wrong:
            yield Finding("map-split", f"layer {layer}: the shares of expert {wrong[0]} sum to {total[wrong[0]]:.9g}")


def layer_balance(placed: ExpertPlacement, layer: int, counts: Sequence[int]) -> tuple[float, float]:
    """(Busiest rank's load, mean load of the living ranks) of one layer, in tokens."""
    row, rank_of_slot = placed.physical_to_logical_map[layer], placed.rank_of_slot
    replicas = [0] * placed.num_experts
    for expert in row:
        if expert >= 0:
            replicas[expert] += 1
    loads = [0.0] * placed.ranks
    for slot, expert in enumerate(row):
        if expert >= 0:
            share = 1 / replicas[expert] if placed.split is None else placed.split[layer][slot]
            loads[rank_of_slot[slot]] += counts[expert] * share
    alive = placed.ranks - len(placed.dead_ranks)
    return max(loads), sum(counts) / alive


def objective_of(values: Sequence[float], weights: Sequence[float], aim: str) -> float:
    """Mean, worst or quantile of the windows' values; `aim` as the document words it."""
    if aim.startswith("worst"):
        return max(values)
    if aim.startswith("quantile"):
        wanted, reached = float(aim.split()[1]), 0.0
        for value, weight in sorted(zip(values, weights, strict=True)):
            reached += weight / sum(weights)
            if reached >= wanted - 1e-9:
                return value
        return max(values)
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def _figures(placed: ExpertPlacement, windows: Sequence[LoadWindow]) -> Iterator[Finding]:
    weights = [window.weight for window in windows]
    of_window = [0.0] * len(windows)
    for layer, report in enumerate(placed.layers):
        values, balances = [], []
        for at, window in enumerate(windows):
            busiest, mean = layer_balance(placed, layer, [int(count) for count in window.count_le[layer]])
            balances.append(mean / busiest)
            of_window[at] += mean / busiest / placed.num_layers
            values.append(busiest if placed.unit == "tokens" else busiest / mean)
        true = objective_of(values, weights, placed.aim)
        if not _near(true, report.objective):
            yield Finding("map-objective", f"layer {layer}: objective {report.objective:.9g}, the map gives {true:.9g}")
        true = sum(b * w for b, w in zip(balances, weights, strict=True)) / sum(weights)
        if not _near(true, report.balancedness):
            yield Finding("map-balance", f"layer {layer}: {report.balancedness:.9g}, the map gives {true:.9g}")
    for stated, true in zip(placed.windows, of_window, strict=True):
        if not _near(true, stated.balancedness):
            yield Finding("map-balance", f"window {stated.name}: {stated.balancedness:.9g}, the map gives {true:.9g}")


def _claims(placed: ExpertPlacement) -> Iterator[Finding]:
    for layer, report in enumerate(placed.layers):
        gap = (report.objective - report.bound) / report.objective
        if gap < -ROUNDING:
            yield Finding("map-bound", f"layer {layer}: bound {report.bound:.9g} above {report.objective:.9g}")
        if abs(gap - report.gap) > ROUNDING:
            yield Finding("map-bound", f"layer {layer}: gap {report.gap:.9g}, the figures give {gap:.9g}")
        if (report.status == "OPTIMAL") != (gap <= EQUAL):
            yield Finding("map-bound", f"layer {layer} is {report.status} with a gap of {gap:.3g}")
    mean = sum(report.balancedness for report in placed.layers) / placed.num_layers
    if not _near(mean, placed.balancedness):
        yield Finding("map-balance", f"mean balancedness {placed.balancedness:.9g}, the layers give {mean:.9g}")
    worst = min(report.balancedness for report in placed.layers)
    if not _near(worst, placed.worst_balancedness):
        yield Finding("map-balance", f"worst balancedness {placed.worst_balancedness:.9g}, the layers give {worst:.9g}")
    proved = all(report.status == "OPTIMAL" for report in placed.layers)
    if (placed.status == "OPTIMAL") != proved:
        yield Finding("map-bound", f"the placement is {placed.status}, but all layers OPTIMAL is {proved}")


def _curve(placed: ExpertPlacement) -> Iterator[Finding]:
    points = placed.curve or ()
    for before, after in pairwise(points):
        if after.moves <= before.moves or after.balancedness < before.balancedness - 1e-12:
            numbers = f"{after.balancedness:.6f} after {before.balancedness:.6f}"
            yield Finding("map-curve", f"{after.moves} moves give {numbers}")
    for point in points:
        if point.balancedness > point.bound * (1 + ROUNDING):
            yield Finding("map-curve", f"{point.moves} moves: {point.balancedness:.6f} above bound {point.bound:.6f}")
    # The map itself is a point of the curve, where both speak of the same load, split and moves.
    if placed.dead_ranks or placed.split is not None or len(placed.windows) != 1:
        return
    needed = max(report.moves or 0 for report in placed.layers)
    for point in points:
        if point.moves >= needed and point.balancedness < placed.balancedness * (1 - ROUNDING):
            numbers = f"{point.balancedness:.6f}, the map gives {placed.balancedness:.6f} with {needed}"
            yield Finding("map-curve", f"{point.moves} moves give {numbers}")


def _traffic(placed: ExpertPlacement, windows: Sequence[LoadWindow]) -> Iterator[Finding]:
    """Tokens come evenly from the nodes of the living ranks and stay where their expert has a replica."""
    dead = set(placed.dead_ranks)
    nodes = {placed.domain_of_rank[rank] for rank in range(placed.ranks) if rank not in dead}
    for layer, report in enumerate(placed.layers):
        if report.traffic is None:
            continue
        where: dict[int, set[int]] = {}
        for slot, expert in enumerate(placed.physical_to_logical_map[layer]):
            where.setdefault(expert, set()).add(placed.domain_of_rank[placed.rank_of_slot[slot]])
        stays, total = 0.0, sum(window.weight for window in windows)
        for window in windows:
            counts = [int(count) for count in window.count_le[layer]]
            held = sum(count * len(where[expert]) for expert, count in enumerate(counts))
            stays += window.weight / total * held / sum(counts) / len(nodes)
        if not math.isclose(1 - stays, report.traffic, rel_tol=ROUNDING, abs_tol=1e-9):
            yield Finding("map-traffic", f"layer {layer}: {report.traffic:.9g}, the map gives {1 - stays:.9g}")
        if report.traffic_bound is not None and report.traffic_bound > report.traffic + 1e-9:
            yield Finding("map-traffic", f"layer {layer}: bound {report.traffic_bound:.9g} above {report.traffic:.9g}")


def _moves(placed: ExpertPlacement, current: Sequence[Sequence[int]]) -> Iterator[Finding]:
    rank_of_slot, dead = placed.rank_of_slot, set(placed.dead_ranks)
    if [len(row) for row in current] != [len(row) for row in placed.physical_to_logical_map]:
        yield Finding("map-moves", "the current map has another shape")
        return
    total = 0
    for layer, (old, new) in enumerate(zip(current, placed.physical_to_logical_map, strict=True)):
        had = {(rank_of_slot[s], e) for s, e in enumerate(old) if rank_of_slot[s] not in dead}
        has = {(rank_of_slot[s], e) for s, e in enumerate(new) if rank_of_slot[s] not in dead}
        moves, total = len(has - had), total + len(has - had)
        if placed.layers[layer].moves != moves:
            yield Finding("map-moves", f"layer {layer}: {placed.layers[layer].moves} moves stated, {moves} needed")
        if placed.max_moves is not None and moves > placed.max_moves:
            yield Finding("map-moves", f"layer {layer}: {moves} moves, at most {placed.max_moves} were allowed")
    if placed.fewest_moves is not None and total < placed.fewest_moves:
        yield Finding("map-moves", f"{total} moves, fewer than the proved least, {placed.fewest_moves}")
    if placed.moves is not None:
        yield from _replay(placed, current)


def _replay(placed: ExpertPlacement, current: Sequence[Sequence[int]]) -> Iterator[Finding]:
    """Carry the moves out one after the other (a group at once) and compare."""
    dead, rank_of_slot = set(placed.dead_ranks), placed.rank_of_slot
    rows = [[-1 if rank_of_slot[s] in dead else e for s, e in enumerate(row)] for row in current]
    served = [set(row) - {-1} for row in rows]
    group: tuple[int, int] = (0, 0)
    assert placed.moves is not None
    for at, move in enumerate(placed.moves):
        row = rows[move.layer]
        if row[move.slot] != move.replaces or rank_of_slot[move.slot] != move.rank:
            yield Finding("map-moves", f"move {at}: slot {move.slot} of layer {move.layer} holds {row[move.slot]}")
            return
        holders = {rank_of_slot[s] for s, e in enumerate(row) if e == move.expert}
        if move.source_rank is not None and move.source_rank not in holders and move.group == 0:
            yield Finding("map-moves", f"move {at}: rank {move.source_rank} has no weights of expert {move.expert}")
        row[move.slot] = move.expert
        group = (move.layer, move.group)
        following = placed.moves[at + 1] if at + 1 < len(placed.moves) else None
        closed = move.group == 0 or following is None or (following.layer, following.group) != group
        if closed and not served[move.layer] <= set(row):
            lost = min(served[move.layer] - set(row))
            yield Finding("map-moves", f"move {at} leaves expert {lost} of layer {move.layer} without a replica")
        served[move.layer] |= {move.expert}
    for layer, (row, new) in enumerate(zip(rows, placed.physical_to_logical_map, strict=True)):
        if sorted(zip(rank_of_slot, row, strict=True)) != sorted(zip(rank_of_slot, new, strict=True)):
            yield Finding("map-moves", f"layer {layer}: the moves do not lead to the map")
