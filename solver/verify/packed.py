"""What instances serve that must fit scale-up domains: dynamic programming over domains, as far as it stays small."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from solver.cost.machine import Floats, Ints
from solver.deployment import ROLES, InstanceSize, shares_domain
from solver.specs.deploying import Mode
from solver.specs.problem import Problem

MAX_STEPS = 2**12
"""Domains that the walk to a target passes."""
MAX_POINTS = 2**14
"""Pareto points that it keeps at one step."""
MAX_TABLE = 2**23
"""Entries (domains times GPUs) of the table of one pool."""
MAX_FOUND = 2**10
"""Offers of one or several domains (GPUs, prefill, decode) that are compared with one another."""
MAX_CHOICES = 2**8
"""Choices of sizes that are tried one by one where the number of sizes is limited."""
SLACK = 1e-9


@dataclass(frozen=True, order=True)
class Item:
    """An instance, or several that share a domain: what it takes, and what it offers to either pool, in units."""

    domains: int
    gpus: int
    prefill: int
    decode: int

    def beats(self, other: Item) -> bool:
        """Whether it takes no more and offers no less."""
        return (
            self.domains <= other.domains
            and self.gpus <= other.gpus
            and self.prefill >= other.prefill
            and self.decode >= other.decode
        )


def packed_curve(
    problem: Problem, mode: Mode, rates: Mapping[InstanceSize, int], max_shapes: int | None
) -> Ints | None:
    """Most units on at most 0, 1, ..., budget GPUs of one cluster; None where that is too large to compute."""
    choices = list(_choices(mode, rates, max_shapes))
    if len(choices) > MAX_CHOICES:
        return None
    served = np.zeros(problem.gpu_budget + 1, dtype=np.int64)
    for choice in choices:
        items = _items(choice, problem.cluster.domain_gpus, mode, counts_gpus=True)
        curve = None
        if items is not None:
            curve = (_one_pool if mode == "aggregated" else _two_pools)(problem, items)
        if curve is None:
            return None
        served = np.maximum(served, curve)
    return served


def _choices(
    mode: Mode, rates: Mapping[InstanceSize, int], max_shapes: int | None
) -> Iterator[dict[InstanceSize, int]]:
    """The sizes that may be used together: all, or so many of every pool."""
    if max_shapes is None:
        yield dict(rates)
        return
    pools = [[size for size in rates if size.role == role] for role in ROLES[mode]]
    for found, parts in enumerate(product(*(combinations(pool, min(max_shapes, len(pool))) for pool in pools))):
        if found > MAX_CHOICES:
            return
        yield {size: rates[size] for part in parts for size in part}


def _one_pool(problem: Problem, items: list[Item]) -> Ints | None:
    """A table [domains, GPUs] of the most that one pool serves; its last row."""
    domains, budget = problem.cluster.num_domains, problem.gpu_budget
    if domains * (budget + 1) > MAX_TABLE or domains * len(items) > MAX_STEPS * 16:
        return None
    best = np.zeros((domains + 1, budget + 1), dtype=np.int64)
    for used in range(1, domains + 1):
        best[used] = best[used - 1]
        for item in items:
            if item.domains <= used and item.gpus <= budget:
                more = best[used - item.domains, : budget + 1 - item.gpus] + item.decode
                np.maximum(best[used, item.gpus :], more, out=best[used, item.gpus :])
    return np.asarray(best[-1])


def _two_pools(problem: Problem, items: list[Item]) -> Ints | None:
    """Points (GPUs, prefill, decode) that no other one beats, domain by domain."""
    domains, budget = problem.cluster.num_domains, problem.gpu_budget
    points: list[list[Item]] = [[Item(0, 0, 0, 0)]]
    for used in range(1, domains + 1):
        found = set(points[used - 1])
        for item in items:
            if item.domains <= used:
                found |= {
                    Item(0, p.gpus + item.gpus, p.prefill + item.prefill, p.decode + item.decode)
                    for p in points[used - item.domains]
                    if p.gpus + item.gpus <= budget
                }
        if len(found) > MAX_FOUND:
            return None
        points.append(_undominated(found))
    served = np.zeros(budget + 1, dtype=np.int64)
    for point in points[-1]:
        served[point.gpus] = max(int(served[point.gpus]), min(point.prefill, point.decode))
    return np.maximum.accumulate(served)


def reaches(problem: Problem, mode: Mode, rates: Mapping[InstanceSize, int], target: int) -> bool | None:
    """Whether some mix on a whole cluster could serve `target` units; None where it is too large to say.

    Pareto points of what both pools offer, cut off where even the best use of the rest could not reach the target.
    """
    room = problem.cluster.num_domains
    items = _items(rates, problem.cluster.domain_gpus, mode, counts_gpus=False)
    if target <= 0:
        return True
    if items is None:
        return None
    items = [item for item in items if item.domains <= room]
    if not items:
        return False
    per_prefill = max(item.prefill / item.domains for item in items)
    per_decode = max(item.decode / item.domains for item in items)
    if per_prefill == 0 or per_decode == 0:
        return False
    # The weights at which a unit of room is worth as much in either pool bound every mix best.
    weight = per_decode / (per_prefill + per_decode)
    worth = max((weight * item.prefill + (1 - weight) * item.decode) / item.domains for item in items)
    if worth * room * (1 + SLACK) < target:
        return False
    return None if room > MAX_STEPS else _walk(items, room, target, weight, worth)


def _walk(items: list[Item], room: int, target: int, weight: float, worth: float) -> bool | None:
    """Pareto points of (prefill, decode) for every number of domains, cut off where the target is out of reach."""
    points: list[Floats] = [np.zeros((1, 2))]
    for used in range(1, room + 1):
        parts = [points[used - 1]]
        parts += [points[used - i.domains] + np.array([i.prefill, i.decode]) for i in items if i.domains <= used]
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


def _items(rates: Mapping[InstanceSize, int], domain_gpus: int, mode: Mode, *, counts_gpus: bool) -> list[Item] | None:
    """Instances that take whole domains, and what smaller ones in one domain can offer; None where these are many."""
    roles, items = ROLES[mode], []
    small: list[tuple[int, Item]] = []
    for size, rate in rates.items():
        prefill, decode = (rate if size.role == role else 0 for role in (roles[0], roles[-1]))
        item = Item(size.domains, size.gpus if counts_gpus else 0, prefill, decode)
        if shares_domain(size, domain_gpus):
            small.append((size.gpus, item))
        else:
            items.append(item)
    fills: list[list[Item]] = [[Item(1, 0, 0, 0)]]
    for used in range(1, domain_gpus + 1):
        found = set(fills[used - 1])
        for gpus, item in small:
            if gpus <= used:
                found |= {
                    Item(1, f.gpus + item.gpus, f.prefill + item.prefill, f.decode + item.decode)
                    for f in fills[used - gpus]
                }
        if len(found) > MAX_FOUND:
            return None
        fills.append(_undominated(found))
    return _undominated(item for item in (*items, *fills[-1]) if item.prefill + item.decode > 0)


def _undominated(items: Iterable[Item]) -> list[Item]:
    """Items without those that another one outdoes."""
    kept: list[Item] = []
    for item in sorted(set(items), key=lambda i: (i.domains, i.gpus, -i.prefill, -i.decode)):
        if not any(other.beats(item) for other in kept):
            kept.append(item)
    return kept
