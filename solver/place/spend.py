"""``place --redundant-slots``: from load windows and a budget to its document."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from solver.expertmap import Status, WindowReport
from solver.place import clock
from solver.place.budget import (
    SAFE,
    Allocation,
    Budget,
    Curves,
    best_allocation,
    layer_curves,
    offsets,
    slots_of_rank,
    turned,
)
from solver.place.run import OPTIMAL_GAP, SEARCH_SHARE, Task
from solver.place.state import Floats, Shelf, State
from solver.place.static import Effort
from solver.slotbudget import BudgetLayer, BudgetPoint, SlotBudget, TradeoffPoint, UniformSlots
from solver.specs.placing import Placing
from solver.specs.slots import Spending
from solver.specs.windows import LoadWindow


def run_budget(placing: Placing, windows: tuple[LoadWindow, ...], effort: Effort, spending: Spending) -> SlotBudget:
    """Answer of a budget of redundant slots; `placing` names the most slots per rank of a layer.

    Raises
    ------
    SpecError
        The question makes no sense.
    NoPlacementError
        The budget is below what any placement needs, proved by counting.
    """
    placing.check(windows)
    spending.check(placing, windows)
    begun = time.monotonic()
    task = Task.of(placing, windows, replace(effort, seconds=SEARCH_SHARE * effort.seconds))
    layers, _, experts = task.load_lke.shape
    most = placing.slots_of_rank[0] * placing.ranks
    budget = Budget(placing.ranks, experts, spending.least_slots(placing.ranks, experts), most, spending.whole)
    curves = layer_curves(task.load_lke, budget, task.aim, task.effort)
    chosen = best_allocation(curves.value_lp, curves.redundant_p, spending.redundant)
    least = best_allocation(curves.bound_lp, curves.redundant_p, spending.redundant)
    objective = chosen.total / layers
    bound = min(least.total / layers * (1 - SAFE), objective)
    gap = (objective - bound) / objective
    spent_l = curves.redundant_p[chosen.point_l]
    maps = _maps(budget, curves, chosen)
    balance_lk = _balance(task, maps)
    document = SlotBudget(
        status=_status(gap),
        interrupted=clock.stopped(),
        num_layers=layers,
        num_experts=experts,
        ranks=placing.ranks,
        budget=spending.redundant,
        spent=int(spent_l.sum()),
        enough=chosen.enough,
        whole_slots=spending.whole,
        most_slots_per_rank=placing.slots_of_rank[0],
        aim=placing.aim,
        objective=objective,
        bound=bound,
        gap=gap,
        balancedness=float((balance_lk @ task.aim.weight_k).mean()),
        slots_of_gpu=tuple(int(total) for total in np.sum([sizes for sizes, _ in maps], axis=0)),
        uniform=_uniform(budget, curves, spending.redundant),
        tradeoff=_tradeoff(chosen, least, layers),
        layers=_layers(task, curves, chosen, maps, balance_lk),
        windows=tuple(
            WindowReport(name=window.name, weight=window.weight, balancedness=float(balance_lk[:, k].mean()))
            for k, window in enumerate(windows)
        ),
        seed=effort.seed,
        wall_s=time.monotonic() - begun,
    )
    return document.model_copy(update={"advice": _advice(document)})


def _status(gap: float) -> Status:
    return "OPTIMAL" if gap <= OPTIMAL_GAP else "FEASIBLE"


TRADEOFF_POINTS = 24
"""Smaller budgets that the document tells of, at most."""

Maps = list[tuple[tuple[int, ...], tuple[int, ...]]]
"""(Slots of every rank, experts of every slot) of every layer."""


def _maps(budget: Budget, curves: Curves, chosen: Allocation) -> Maps:
    """The chosen maps, renumbered so that every GPU holds equally many slots over all layers, up to one."""
    redundant_l = curves.redundant_p[chosen.point_l]
    first_l = offsets(redundant_l, budget.ranks, budget.num_experts)
    return [
        turned(
            curves.slots[layer, int(point)],
            slots_of_rank(budget.num_experts + int(redundant_l[layer]), budget.ranks),
            int(first_l[layer]),
        )
        for layer, point in enumerate(chosen.point_l)
    ]


def _balance(task: Task, maps: Maps) -> Floats:
    """Balancedness of every layer and window."""
    rows = []
    for layer, (sizes, experts) in enumerate(maps):
        load = task.load_lke[[layer]]
        state = State(Shelf.of(sizes), load, np.zeros_like(load[:, 0]), np.array([experts]))
        rows.append(1 / state.rank_load_lkr().max(axis=2)[0])
    return np.array(rows)


def _layers(task: Task, curves: Curves, chosen: Allocation, maps: Maps, balance_lk: Floats) -> tuple[BudgetLayer, ...]:
    objective_l = task.aim.value_l(1 / balance_lk)
    reports = []
    for layer, (sizes, experts) in enumerate(maps):
        point = int(chosen.point_l[layer])
        objective = float(objective_l[layer])
        bound = min(float(curves.bound_lp[layer, point]), objective)
        gap = (objective - bound) / objective
        reports.append(
            BudgetLayer(
                status=_status(gap),
                redundant=int(curves.redundant_p[point]),
                slots_of_rank=sizes,
                experts=experts,
                objective=objective,
                bound=bound,
                gap=gap,
                balancedness=float(balance_lk[layer] @ task.aim.weight_k),
                curve=_points(curves, layer),
            )
        )
    return tuple(reports)


def _points(curves: Curves, layer: int) -> tuple[BudgetPoint, ...]:
    return tuple(
        BudgetPoint(
            redundant=int(redundant),
            bound=float(curves.bound_lp[layer, at]),
            objective=float(curves.value_lp[layer, at]) if np.isfinite(curves.value_lp[layer, at]) else None,
        )
        for at, redundant in enumerate(curves.redundant_p)
    )


def _tradeoff(chosen: Allocation, least: Allocation, layers: int) -> tuple[TradeoffPoint, ...]:
    """The least objective of smaller budgets: few of them, denser where slots are few."""
    last = len(chosen.spent_b) - 1
    steps = np.unique(np.round(last * np.linspace(0, 1, TRADEOFF_POINTS) ** 2).astype(int))
    return tuple(
        TradeoffPoint(
            redundant=int(chosen.spent_b[at]),
            objective=float(chosen.least_b[at] / layers),
            bound=float(min(least.least_b[at] * (1 - SAFE), chosen.least_b[at]) / layers),
        )
        for at in steps.tolist()
    )


def _uniform(budget: Budget, curves: Curves, most: int) -> tuple[UniformSlots, ...]:
    """The same slots on every rank of every layer, as far as they were placed."""
    found = []
    for at, redundant in enumerate(curves.redundant_p.tolist()):
        value_l = curves.value_lp[:, at]
        if budget.is_uniform(redundant) and np.isfinite(value_l).all():
            total = redundant * len(value_l)
            each = (budget.num_experts + redundant) // budget.ranks
            found.append(
                UniformSlots(slots_per_rank=each, redundant=total, fits=total <= most, objective=float(value_l.mean()))
            )
    return tuple(found)


def _advice(placed: SlotBudget) -> tuple[str, ...]:
    """Sentences for people; each names its numbers."""
    each = placed.spent / placed.num_layers / placed.ranks
    said = [
        f"{placed.spent} of {placed.budget} redundant slots are spent, {each:.3f} per rank and layer: the busiest "
        f"rank has {placed.objective:.4f} of the mean load; no way to spend them gets below {placed.bound:.4f}."
    ]
    if placed.enough < placed.spent:
        said.append(
            f"{placed.enough} redundant slots, spent as well, are within 0.05 % of that: the others have no "
            f"operational value. Ask for --redundant-slots {placed.enough}."
        )
    if placed.spent < placed.budget:
        said.append(
            f"{placed.budget - placed.spent} redundant slots are left over: no layer gains as much as 0.05 % from more."
        )
    said += [
        f"{uniform.slots_per_rank} slots on every rank of every layer ({uniform.redundant} redundant) give "
        f"{uniform.objective:.4f}{'' if uniform.fits else ', above this budget'}: that is what engines accept."
        for uniform in placed.uniform
    ]
    if any(layer.redundant != placed.layers[0].redundant for layer in placed.layers):
        said.append(
            "No engine that is known here reads a different number of slots per layer: take this as what such support "
            "would be worth, and deploy a uniform one."
        )
    return tuple(said)
