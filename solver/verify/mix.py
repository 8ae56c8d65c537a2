"""The judge's own answer to the mix: could instances at their claimed bounds serve more?

No integer program: dynamic programming over domains (or GPUs) that keeps the Pareto points of what both pools offer,
cut off where even the best use of the rest could not reach the claim. Where the budget leaves GPUs of the cluster
out, packing is not modelled: that can only make the judge's bound larger.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from solver.cost.machine import Floats
from solver.deployment import ROLES, InstanceSize, shares_domain, whole_rate
from solver.specs.deploying import Mode
from solver.specs.problem import Problem

MAX_STEPS = 2**12
"""Domains or GPUs of a cluster that the dynamic programme walks over."""
MAX_POINTS = 2**14
"""Pareto points that it keeps at one step."""
SLACK = 1e-9


@dataclass(frozen=True)
class Item:
    """An instance, or several that fill one domain: what it takes, and what it offers to either pool, in units."""

    taken: int
    prefill: int
    decode: int


def reaches(
    problem: Problem, mode: Mode, bounds: Mapping[InstanceSize, int], unit_nhz: int, budget: int, target_units: int
) -> bool | None:
    """Whether some mix within `budget` GPUs of one cluster could serve `target_units`; None where it is too large.

    Parameters
    ----------
    problem : the deployment's question for the cluster
    bounds : nHz that no instance of a size exceeds, by size; sizes of other modes and clusters left out
    unit_nhz : rates are whole multiples of it per GPU
    """
    rates = {size: whole_rate(bound, size, unit_nhz) for size, bound in bounds.items()}
    domain = problem.cluster.domain_gpus
    if budget >= problem.cluster.num_domains * domain:
        room, items = problem.cluster.num_domains, _domain_items(rates, domain, mode)
    else:
        room, items = budget, [_item(size, rate, size.gpus, mode) for size, rate in rates.items()]
    items = _undominated(item for item in items if item.taken <= room and item.prefill + item.decode > 0)
    if target_units <= 0:
        return True
    if not items:
        return False
    per_prefill = max(item.prefill / item.taken for item in items)
    per_decode = max(item.decode / item.taken for item in items)
    if per_prefill == 0 or per_decode == 0:
        return False
    # The weights at which a unit of room is worth as much in either pool bound every mix best.
    weight = per_decode / (per_prefill + per_decode)
    worth = max((weight * item.prefill + (1 - weight) * item.decode) / item.taken for item in items)
    if worth * room * (1 + SLACK) < target_units:
        return False
    if room > MAX_STEPS:
        return None
    return _walk(items, room, target_units, weight, worth)


def _walk(items: list[Item], room: int, target: int, weight: float, worth: float) -> bool | None:
    """Pareto points of (prefill, decode) for every amount of room, cut off where the target is out of reach."""
    points: list[Floats] = [np.zeros((1, 2))]
    for used in range(1, room + 1):
        parts = [points[used - 1]]
        parts += [points[used - i.taken] + np.array([i.prefill, i.decode]) for i in items if i.taken <= used]
        found = np.concatenate(parts)
        rest = (room - used) * worth
        found = found[(weight * found[:, 0] + (1 - weight) * found[:, 1] + rest) * (1 + SLACK) >= target]
        found = np.minimum(found, target)
        order = np.lexsort((-found[:, 1], -found[:, 0]))
        found = found[order]
        best = np.maximum.accumulate(found[:, 1]) if len(found) else found[:, 1]
        keep = np.ones(len(found), dtype=np.bool_)
        keep[1:] = found[1:, 1] > best[:-1]
        found = found[keep]
        if len(found) and bool((found.min(axis=1) >= target).any()):
            return True
        if len(found) > MAX_POINTS:
            return None
        points.append(found)
    return False


def _item(size: InstanceSize, rate: int, taken: int, mode: Mode) -> Item:
    """One instance; an aggregated one offers the same to both."""
    roles = ROLES[mode]
    return Item(taken, rate if size.role == roles[0] else 0, rate if size.role == roles[-1] else 0)


def _domain_items(rates: Mapping[InstanceSize, int], domain_gpus: int, mode: Mode) -> list[Item]:
    """Instances that take whole domains, and what one domain full of smaller ones can offer."""
    items = [_item(s, r, s.domains, mode) for s, r in rates.items() if not shares_domain(s, domain_gpus)]
    small = [_item(s, r, s.gpus, mode) for s, r in rates.items() if shares_domain(s, domain_gpus)]
    fills: list[set[tuple[int, int]]] = [{(0, 0)}]
    for used in range(1, domain_gpus + 1):
        found = set(fills[used - 1])
        for item in small:
            if item.taken <= used:
                found |= {(p + item.prefill, d + item.decode) for p, d in fills[used - item.taken]}
        fills.append({point for point in found if not any(_beats(other, point) for other in found)})
    return items + [Item(1, prefill, decode) for prefill, decode in fills[-1] if prefill + decode]


def _beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one != other and one[0] >= other[0] and one[1] >= other[1]


def _undominated(items: Iterable[Item]) -> list[Item]:
    """Items without those that another one of at most the same room outdoes."""
    distinct = sorted(set(items), key=lambda i: (i.taken, -i.prefill, -i.decode))
    kept: list[Item] = []
    for item in distinct:
        if not any(other.prefill >= item.prefill and other.decode >= item.decode for other in kept):
            kept.append(item)
    return kept
