"""The judge of budgets of redundant slots: every rule and every figure again, from the document and the loads.

It shares no code with the search. Figures may differ by rounding only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from solver.slotbudget import BudgetLayer, SlotBudget
from solver.specs.windows import LoadWindow
from solver.verify.expert_map import EQUAL, ROUNDING, MapVerdict, objective_of
from solver.verify.finding import Finding

BUDGET_RULES: dict[str, str] = {
    "budget-shape": "slots for every rank of every layer, at most as stated, and equal up to one (whole: equal)",
    "budget-map": "every slot holds a logical expert, every expert has a replica, no rank two of one expert",
    "budget-windows": "the loads have the layers and experts of the document, and its windows",
    "budget-objective": "objective and balancedness are what the maps and the loads give",
    "budget-total": "redundant slots are counted rightly, within the budget, and dealt evenly over the GPUs",
    "budget-bound": "no bound exceeds what was found, gaps follow from both, OPTIMAL means that they are equal",
    "budget-choice": "no other way to spend the budget on the curves is better, and their bounds prove what is stated",
    "budget-uniform": "equal slots everywhere give what the curves say, and fit the budget or not",
}
"""Rules of the judge of slot budgets, in its own words."""

ENOUGH = 5e-4
"""Share above the objective that `enough` may cost."""


def judge_budget(placed: SlotBudget, windows: Sequence[LoadWindow]) -> MapVerdict:
    """Judge a budget of slots against the loads it was made for."""
    shape = [*_shape(placed), *_windows(placed, windows)]
    if shape:
        return MapVerdict(tuple(shape))
    held = list(_maps(placed))
    if held:
        return MapVerdict(tuple(held))
    rules = (_figures(placed, windows), _totals(placed), _bounds(placed), _choice(placed), _uniform(placed))
    return MapVerdict(tuple(finding for rule in rules for finding in rule))


def _near(one: float, two: float) -> bool:
    return abs(one - two) <= ROUNDING * max(1.0, abs(two))


def _shape(placed: SlotBudget) -> Iterator[Finding]:
    if len(placed.layers) != placed.num_layers:
        yield Finding("budget-shape", f"{placed.num_layers} layers, but {len(placed.layers)} reports")
    if len(placed.slots_of_gpu) != placed.ranks:
        yield Finding("budget-shape", f"{placed.ranks} ranks, but slots of {len(placed.slots_of_gpu)} GPUs")
    step = 0 if placed.whole_slots else 1
    points = [point.redundant for point in placed.layers[0].curve] if placed.layers else []
    for at, layer in enumerate(placed.layers):
        slots = layer.slots_of_rank
        if len(slots) != placed.ranks or sum(slots) != len(layer.experts):
            yield Finding("budget-shape", f"layer {at}: {len(slots)} ranks with {len(layer.experts)} slots in the map")
        elif max(slots) - min(slots) > step or not 1 <= min(slots) <= max(slots) <= placed.most_slots_per_rank:
            yield Finding("budget-shape", f"layer {at}: ranks have {min(slots)} to {max(slots)} slots")
        if not points or [point.redundant for point in layer.curve] != points or points != sorted(set(points)):
            yield Finding("budget-shape", f"layer {at}: the curve has other points than the first layer's, or none")


def _windows(placed: SlotBudget, windows: Sequence[LoadWindow]) -> Iterator[Finding]:
    named, given = [window.name for window in placed.windows], [window.name for window in windows]
    if named != given:
        yield Finding("budget-windows", f"the document has the windows {named}, given {given}")
    for window in windows:
        if window.count_le.shape != (placed.num_layers, placed.num_experts):
            yield Finding("budget-windows", f"window {window.name} has the shape {list(window.count_le.shape)}")


def _ranks(layer: BudgetLayer) -> list[tuple[int, ...]]:
    """Experts of every rank."""
    held, start = [], 0
    for slots in layer.slots_of_rank:
        held.append(layer.experts[start : start + slots])
        start += slots
    return held


def _maps(placed: SlotBudget) -> Iterator[Finding]:
    everyone = set(range(placed.num_experts))
    for at, layer in enumerate(placed.layers):
        strange = set(layer.experts) - everyone
        if strange:
            yield Finding("budget-map", f"layer {at} holds expert {min(strange)} of {placed.num_experts}")
        missing = everyone - set(layer.experts)
        if missing:
            yield Finding("budget-map", f"layer {at} lacks {len(missing)} experts, the first is {min(missing)}")
        for rank, experts in enumerate(_ranks(layer)):
            if len(set(experts)) < len(experts):
                yield Finding("budget-map", f"layer {at}: rank {rank} holds an expert twice")


def _busiest(layer: BudgetLayer, counts: Sequence[int]) -> float:
    """Busiest rank's load in mean rank loads, even split."""
    replicas = [0] * len(counts)
    for expert in layer.experts:
        replicas[expert] += 1
    loads = [sum(counts[expert] / replicas[expert] for expert in experts) for experts in _ranks(layer)]
    return max(loads) * len(loads) / sum(counts)


def _figures(placed: SlotBudget, windows: Sequence[LoadWindow]) -> Iterator[Finding]:
    weights = [window.weight for window in windows]
    of_window = [0.0] * len(windows)
    for at, layer in enumerate(placed.layers):
        tops = [_busiest(layer, [int(count) for count in window.count_le[at]]) for window in windows]
        for k, top in enumerate(tops):
            of_window[k] += 1 / top / placed.num_layers
        true = objective_of(tops, weights, placed.aim)
        if not _near(layer.objective, true):
            yield Finding("budget-objective", f"layer {at}: {layer.objective:.9g}, the map gives {true:.9g}")
        true = sum(weight / top for weight, top in zip(weights, tops, strict=True)) / sum(weights)
        if not _near(layer.balancedness, true):
            yield Finding("budget-objective", f"layer {at}: {layer.balancedness:.9g}, the map gives {true:.9g}")
    for stated, true in zip(placed.windows, of_window, strict=True):
        if not _near(stated.balancedness, true):
            yield Finding("budget-objective", f"window {stated.name}: {stated.balancedness:.9g}, it is {true:.9g}")
    for name, stated_value, values in (
        ("objective", placed.objective, [layer.objective for layer in placed.layers]),
        ("balancedness", placed.balancedness, [layer.balancedness for layer in placed.layers]),
    ):
        true = sum(values) / len(values)
        if not _near(stated_value, true):
            yield Finding("budget-objective", f"{name} {stated_value:.9g}, the layers give {true:.9g}")


def _totals(placed: SlotBudget) -> Iterator[Finding]:
    for at, layer in enumerate(placed.layers):
        if len(layer.experts) - placed.num_experts != layer.redundant:
            yield Finding(
                "budget-total", f"layer {at}: {layer.redundant} redundant slots stated, {len(layer.experts)} in all"
            )
    spent = sum(layer.redundant for layer in placed.layers)
    if spent != placed.spent or spent > placed.budget:
        yield Finding("budget-total", f"{placed.spent} slots of {placed.budget} are stated, the layers have {spent}")
    of_gpu = [sum(layer.slots_of_rank[rank] for layer in placed.layers) for rank in range(placed.ranks)]
    if tuple(of_gpu) != placed.slots_of_gpu or max(of_gpu) - min(of_gpu) > 1:
        yield Finding("budget-total", f"GPUs hold {min(of_gpu)} to {max(of_gpu)} slots, stated otherwise")


def _gap(name: str, objective: float, bound: float, gap: float, status: str) -> Iterator[Finding]:
    true = (objective - bound) / objective
    if true < -ROUNDING:
        yield Finding("budget-bound", f"{name}: bound {bound:.9g} above {objective:.9g}")
    if abs(true - gap) > ROUNDING:
        yield Finding("budget-bound", f"{name}: gap {gap:.9g}, the figures give {true:.9g}")
    if (status == "OPTIMAL") != (true <= EQUAL):
        yield Finding("budget-bound", f"{name} is {status} with a gap of {true:.3g}")


def _bounds(placed: SlotBudget) -> Iterator[Finding]:
    yield from _gap("the budget", placed.objective, placed.bound, placed.gap, placed.status)
    for at, layer in enumerate(placed.layers):
        yield from _gap(f"layer {at}", layer.objective, layer.bound, layer.gap, layer.status)
        for point in layer.curve:
            if point.objective is not None and point.bound > point.objective * (1 + ROUNDING):
                yield Finding(
                    "budget-bound",
                    f"layer {at}, {point.redundant} more: {point.bound:.9g} above {point.objective:.9g}",
                )
        chosen = [point for point in layer.curve if point.redundant == layer.redundant]
        if not chosen or chosen[0].objective is None or not _near(chosen[0].objective, layer.objective):
            yield Finding("budget-bound", f"layer {at}: the curve does not have its {layer.redundant} redundant slots")
        elif not _near(min(chosen[0].bound, layer.objective), layer.bound):
            yield Finding("budget-bound", f"layer {at}: bound {layer.bound:.9g}, its curve has {chosen[0].bound:.9g}")


def _least_of_budget(costs: Sequence[int], values: Sequence[Sequence[float | None]], budget: int) -> list[float]:
    """Least sum of values for every budget from 0 up, one value per layer; infinite where none is affordable."""
    width = budget + 1
    least = np.zeros(width)
    for row in values:
        after = np.full(width, np.inf)
        for cost, value in zip(costs, row, strict=True):
            if value is not None and cost < width:
                after[cost:] = np.minimum(after[cost:], least[: width - cost] + value)
        least = after
    return [float(value) for value in np.minimum.accumulate(least)]


def _choice(placed: SlotBudget) -> Iterator[Finding]:
    costs = [point.redundant for point in placed.layers[0].curve]
    most = min(placed.budget, len(placed.layers) * costs[-1])
    layers = placed.num_layers
    found = _least_of_budget(costs, [[point.objective for point in layer.curve] for layer in placed.layers], most)
    proved = _least_of_budget(costs, [[point.bound for point in layer.curve] for layer in placed.layers], most)
    if found[-1] / layers < placed.objective * (1 - ROUNDING):
        yield Finding("budget-choice", f"the curves allow {found[-1] / layers:.9g}, not {placed.objective:.9g}")
    if placed.bound > proved[-1] / layers * (1 + ROUNDING):
        yield Finding("budget-choice", f"bound {placed.bound:.9g}, the layers' bounds give {proved[-1] / layers:.9g}")
    for point in placed.tradeoff:
        at = min(max(point.redundant, 0), most)
        if not _near(point.objective, found[at] / layers) or point.bound > proved[at] / layers * (1 + ROUNDING):
            yield Finding("budget-choice", f"{point.redundant} redundant slots do not give {point.objective:.9g}")
    limit = placed.objective * layers * (1 + ENOUGH)
    enough = next((cost for cost, value in enumerate(found) if value <= limit * (1 + 1e-12)), -1)
    slack = 0 <= placed.enough <= most and found[placed.enough] <= limit * (1 + ROUNDING)
    if not slack or (placed.enough > enough and found[placed.enough - 1] <= limit * (1 - ROUNDING)):
        yield Finding("budget-choice", f"{placed.enough} slots are said to be enough, the curves say {enough}")


def _uniform(placed: SlotBudget) -> Iterator[Finding]:
    for uniform in placed.uniform:
        each = uniform.slots_per_rank * placed.ranks - placed.num_experts
        total = each * placed.num_layers
        if total != uniform.redundant or uniform.fits != (total <= placed.budget):
            yield Finding("budget-uniform", f"{uniform.slots_per_rank} slots everywhere are {total} redundant ones")
        values = [
            point.objective for layer in placed.layers for point in layer.curve
            if point.redundant == each and point.objective is not None
        ]  # fmt: skip
        if len(values) != placed.num_layers or not _near(uniform.objective, sum(values) / placed.num_layers):
            yield Finding("budget-uniform", f"{uniform.slots_per_rank} slots everywhere: not {uniform.objective:.9g}")
