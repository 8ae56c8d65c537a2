"""Experts block: which replica of which expert sits on which expert-parallel rank, per MoE layer.

Minimise the busiest rank's load. A constructive heuristic with swaps gives the placement, closed-form bounds certify
it, and CP-SAT closes what remains where the layer is small enough.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ortools.sat.python import cp_model

from solver.cost.balance import (
    UNITS,
    expert_counts,
    expert_share,
    load_factor_ppm,
    mean_ppm,
    rank_loads,
    slots_per_rank,
)
from solver.specs.problem import Problem
from solver.strategy import num_slots

PPM_PERFECT = 10**6
"""Load factor of perfect balance."""
MAX_EXACT_VARIABLES = 2500
"""Largest model (experts x ranks x replica counts) that CP-SAT is asked to close."""


@dataclass(frozen=True)
class LayerPlacement:
    """Placement of one layer: slots of every rank, busiest load and its proved lower bound (billionths)."""

    slots_of_rank: tuple[tuple[int, ...], ...]
    busiest: int
    bound: int


@dataclass(frozen=True)
class ExpertsResult:
    """Placement of the distinct layers and their mean load factors, parts per million."""

    layers: tuple[LayerPlacement, ...]
    lambda_ppm: int
    bound_ppm: int


def expert_bound_ppm(problem: Problem, moe_ep: int) -> int:
    """Lower bound on the mean load factor over MoE layers for `moe_ep` ranks; closed form."""
    capacities = slots_per_rank(num_slots(problem.llm, problem.redundant_experts), moe_ep)
    factors = [load_factor_ppm(layer_bound(counts, capacities), moe_ep) for counts in expert_counts(problem)]
    return mean_ppm(factors)


def layer_bound(counts_e: Sequence[int], capacities: Sequence[int]) -> int:
    """Lower bound on the busiest rank's load, in billionths.

    The mean; the hottest expert over its most replicas; without redundancy, the t heaviest experts on the q ranks
    that hold them together with those ranks' lightest possible company (EXPERTS 2); the fullest rank's slots.
    """
    ranks, slots, total = len(capacities), sum(capacities), sum(counts_e)
    most = min(ranks, 1 + slots - len(counts_e))
    bound = max(-(-UNITS // ranks), max(expert_share(count, total, most) for count in counts_e))
    if slots == len(counts_e):
        bound = max(bound, _partition_bound(np.array([expert_share(c, total, 1) for c in counts_e]), capacities))
    # A rank fills all its slots with different experts: at least the lightest ones, each cut as often as possible.
    lightest = sorted(expert_share(count, total, most) for count in counts_e)
    return max(bound, sum(lightest[: max(capacities)]))


def _partition_bound(shares_e: np.ndarray, capacities: Sequence[int]) -> int:
    heavy = np.sort(shares_e)[::-1]
    top = np.concatenate([[0], np.cumsum(heavy)])
    light = np.concatenate([[0], np.cumsum(heavy[::-1])])
    most = np.cumsum(sorted(capacities, reverse=True))
    fewest = np.cumsum(sorted(capacities))
    t = np.arange(1, len(heavy) + 1)[:, None]
    q = np.arange(1, len(capacities) + 1)[None, :]
    possible = (most[None, :] >= t) & (q <= t)
    # q ranks hold the t heaviest; their least company fills the q smallest capacities with the lightest experts.
    company = light[np.clip(fewest[None, :] - t, 0, len(heavy))]
    mean = -(-(top[t] + company) // q)
    return int(np.where(possible, mean, np.iinfo(np.int64).max).min(axis=1).max())


def solve_experts(problem: Problem, moe_ep: int, deadline: float) -> ExpertsResult:
    """Placement of every distinct MoE layer on `moe_ep` ranks; stops at the deadline (``time.monotonic``)."""
    capacities = slots_per_rank(num_slots(problem.llm, problem.redundant_experts), moe_ep)
    layers = tuple(solve_layer(counts, capacities, deadline) for counts in expert_counts(problem))
    return ExpertsResult(
        layers,
        mean_ppm([load_factor_ppm(layer.busiest, moe_ep) for layer in layers]),
        mean_ppm([load_factor_ppm(layer.bound, moe_ep) for layer in layers]),
    )


def solve_layer(counts_e: Sequence[int], capacities: Sequence[int], deadline: float) -> LayerPlacement:
    """Placement of one layer: heuristic, bound, and CP-SAT where they differ and the layer is small."""
    bound = layer_bound(counts_e, capacities)
    if len(set(counts_e)) == 1 and sum(capacities) == len(counts_e):
        slots = _linear(capacities)
    else:
        slots = _heuristic(counts_e, capacities)
    busiest = max(rank_loads(counts_e, slots))
    if busiest > bound:
        slots, busiest, bound = _close(counts_e, capacities, slots, bound, deadline)
    return LayerPlacement(tuple(tuple(sorted(rank)) for rank in slots), busiest, bound)


def _linear(capacities: Sequence[int]) -> list[list[int]]:
    """Experts in order, rank after rank (optimal for equal loads without redundancy)."""
    slots, first = [], 0
    for capacity in capacities:
        slots.append(list(range(first, first + capacity)))
        first += capacity
    return slots


def _heuristic(counts_e: Sequence[int], capacities: Sequence[int]) -> list[list[int]]:
    """Greedy replica counts, longest first onto the least loaded rank with room, then swaps."""
    total, ranks = sum(counts_e), len(capacities)
    replicas = np.ones(len(counts_e), dtype=np.int64)
    weights = np.array(counts_e, dtype=np.float64)
    for _ in range(sum(capacities) - len(counts_e)):
        open_e = np.where(replicas < ranks, weights / replicas, -1.0)
        replicas[int(np.argmax(open_e))] += 1
    shares_e = [expert_share(c, total, int(r)) for c, r in zip(counts_e, replicas, strict=True)]
    items = sorted(
        ((shares_e[e], int(replicas[e]), e) for e in range(len(counts_e))), key=lambda i: (-i[1], -i[0], i[2])
    )
    # Experts with many replicas first (they need many distinct ranks), then by load.
    loads, room = np.zeros(ranks, dtype=np.int64), np.array(capacities, dtype=np.int64)
    slots: list[list[int]] = [[] for _ in range(ranks)]
    copies = [(share, e) for share, count, e in items if count > 1 for _ in range(count)]
    copies += sorted(((share, e) for share, count, e in items if count == 1), key=lambda i: (-i[0], i[1]))
    for share, expert in copies:
        _put(expert, share, slots, loads, room, shares_e)
    _swap(slots, loads, np.array(shares_e, dtype=np.int64))
    return slots


def _put(
    expert: int, share: int, slots: list[list[int]], loads: np.ndarray, room: np.ndarray, shares_e: list[int]
) -> None:
    """Put one replica on the least loaded rank with room that lacks the expert; swap a tenant out if none has room."""
    order = np.argsort(loads, kind="stable")
    for rank in order:
        if room[rank] and expert not in slots[rank]:
            slots[rank].append(expert)
            loads[rank] += share
            room[rank] -= 1
            return
    spare = next(rank for rank in order if room[rank])
    for rank in order:
        if expert in slots[rank]:
            continue
        for position, tenant in enumerate(slots[rank]):
            if tenant not in slots[spare]:
                slots[rank][position] = expert
                loads[rank] += share - shares_e[tenant]
                slots[spare].append(tenant)
                loads[spare] += shares_e[tenant]
                room[spare] -= 1
                return


def _swap(slots: list[list[int]], loads: np.ndarray, shares_e: np.ndarray) -> None:
    """Best swap between the busiest rank and any slot, while it lowers the larger of the two loads."""
    rank_s = np.repeat(np.arange(len(slots)), [len(rank) for rank in slots])
    expert_s = np.array([expert for rank in slots for expert in rank])
    held_re = np.zeros((len(slots), len(shares_e)), dtype=bool)
    held_re[rank_s, expert_s] = True
    for _ in range(20 * len(slots)):
        worst = int(np.argmax(loads))
        mine, others = np.flatnonzero(rank_s == worst), np.flatnonzero(rank_s != worst)
        if not len(mine) or not len(others):
            break
        delta = shares_e[expert_s[mine]][:, None] - shares_e[expert_s[others]][None, :]
        after = np.maximum(loads[worst] - delta, loads[rank_s[others]][None, :] + delta)
        legal = (delta > 0) & ~held_re[rank_s[others]][:, expert_s[mine]].T & ~held_re[worst, expert_s[others]][None, :]
        after = np.where(legal, after, np.iinfo(np.int64).max)
        row, column = np.unravel_index(int(np.argmin(after)), after.shape)
        if after[row, column] >= loads[worst]:
            break
        a, b = int(mine[row]), int(others[column])
        change = int(delta[row, column])
        loads[worst] -= change
        loads[rank_s[b]] += change
        held_re[worst, expert_s[a]] = held_re[rank_s[b], expert_s[b]] = False
        expert_s[a], expert_s[b] = expert_s[b], expert_s[a]
        held_re[worst, expert_s[a]] = held_re[rank_s[b], expert_s[b]] = True
    for rank in range(len(slots)):
        slots[rank][:] = expert_s[rank_s == rank].tolist()


def _close(
    counts_e: Sequence[int], capacities: Sequence[int], slots: list[list[int]], bound: int, deadline: float
) -> tuple[list[list[int]], int, int]:
    """Exact model of one layer with the heuristic as hint; returns (slots, busiest, proved bound)."""
    experts, ranks, total = len(counts_e), len(capacities), sum(counts_e)
    most = min(ranks, 1 + sum(capacities) - experts)
    busiest = max(rank_loads(counts_e, slots))
    left = deadline - time.monotonic()
    if experts * ranks * most > MAX_EXACT_VARIABLES or left <= 0:
        return slots, busiest, bound
    model = cp_model.CpModel()
    x_er = [[model.new_bool_var(f"x_{e}_{r}") for r in range(ranks)] for e in range(experts)]
    makespan = model.new_int_var(bound, busiest, "makespan")
    load_terms: list[list[cp_model.LinearExprT]] = [[] for _ in range(ranks)]
    for e in range(experts):
        counts = [model.new_bool_var(f"count_{e}_{c}") for c in range(1, most + 1)]
        model.add_exactly_one(counts)
        model.add(sum(x_er[e]) == sum((c + 1) * lit for c, lit in enumerate(counts)))
        for r in range(ranks):
            if most == 1:
                load_terms[r].append(expert_share(counts_e[e], total, 1) * x_er[e][r])
                continue
            parts = [model.new_bool_var(f"z_{e}_{r}_{c}") for c in range(1, most + 1)]
            model.add(sum(parts) == x_er[e][r])
            for part, count in zip(parts, counts, strict=True):
                model.add_implication(part, count)
            load_terms[r] += [expert_share(counts_e[e], total, c + 1) * part for c, part in enumerate(parts)]
            model.add_hint(x_er[e][r], int(e in slots[r]))
    for r in range(ranks):
        model.add(sum(x_er[e][r] for e in range(experts)) == capacities[r])
        model.add(sum(load_terms[r]) <= makespan)
    if most == 1 and len(set(capacities)) == 1:
        order = sorted(range(experts), key=lambda e: -counts_e[e])
        for position, e in enumerate(order[: ranks - 1]):
            for r in range(position + 1, ranks):
                model.add(x_er[e][r] == 0)
    model.minimize(makespan)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = min(left, 10.0)
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    if solver.status_name(solver.solve(model)) not in ("OPTIMAL", "FEASIBLE"):
        return slots, busiest, bound
    found = [[e for e in range(experts) if solver.boolean_value(x_er[e][r])] for r in range(ranks)]
    proved = max(bound, int(solver.response_proto.inner_objective_lower_bound))
    value = max(rank_loads(counts_e, found))
    return (found, value, proved) if value <= busiest else (slots, busiest, proved)
