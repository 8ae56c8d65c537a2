"""CP-SAT on one small layer: which ranks hold which experts, even split, the busiest rank's load minimised.

Loads are integers in billionths of the layer's tokens, as everywhere in the package's proofs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ortools.sat.python import cp_model

from solver.cost.balance import expert_share, rank_loads

MAX_EXACT_VARIABLES = 2500
"""Largest model (experts x ranks x replica counts) that CP-SAT is asked to close."""
MAX_SECONDS = 10.0


@dataclass(frozen=True)
class Closed:
    """Slots of every rank, the busiest rank's load and its proved lower bound, in billionths."""

    slots: list[list[int]]
    busiest: int
    bound: int


def closable(counts_e: Sequence[int], capacities: Sequence[int]) -> bool:
    """Whether the model is small enough to be worth building."""
    most = min(len(capacities), 1 + sum(capacities) - len(counts_e))
    return len(counts_e) * len(capacities) * most <= MAX_EXACT_VARIABLES


def close_layer(counts_e: Sequence[int], capacities: Sequence[int], hint: Closed, seconds: float) -> Closed:
    """Exact model of one layer with a placement and a bound as hint; the best of both when time runs out."""
    if not closable(counts_e, capacities) or seconds <= 0:
        return hint
    model = cp_model.CpModel()
    x_er, makespan = _build(model, counts_e, capacities, hint)
    model.minimize(makespan)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = min(seconds, MAX_SECONDS)
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    if solver.status_name(solver.solve(model)) not in ("OPTIMAL", "FEASIBLE"):
        return hint
    ranks = range(len(capacities))
    found = [[e for e in range(len(counts_e)) if solver.boolean_value(x_er[e][r])] for r in ranks]
    proved = max(hint.bound, int(solver.response_proto.inner_objective_lower_bound))
    value = max(rank_loads(counts_e, found))
    return Closed(found, value, proved) if value <= hint.busiest else Closed(hint.slots, hint.busiest, proved)


def _build(
    model: cp_model.CpModel, counts_e: Sequence[int], capacities: Sequence[int], hint: Closed
) -> tuple[list[list[cp_model.IntVar]], cp_model.IntVar]:
    """Variables and rules; the placement literals ``x[expert][rank]`` and the maximum."""
    experts, ranks, total = len(counts_e), len(capacities), sum(counts_e)
    most = min(ranks, 1 + sum(capacities) - experts)
    x_er = [[model.new_bool_var(f"x_{e}_{r}") for r in range(ranks)] for e in range(experts)]
    makespan = model.new_int_var(hint.bound, hint.busiest, "makespan")
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
            model.add_hint(x_er[e][r], int(e in hint.slots[r]))
    for r in range(ranks):
        model.add(sum(x_er[e][r] for e in range(experts)) == capacities[r])
        model.add(sum(load_terms[r]) <= makespan)
    if most == 1 and len(set(capacities)) == 1:
        order = sorted(range(experts), key=lambda e: -counts_e[e])
        for position, e in enumerate(order[: ranks - 1]):
            for r in range(position + 1, ranks):
                model.add(x_er[e][r] == 0)
    return x_er, makespan
