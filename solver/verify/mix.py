"""The judge's own answer to the mix: what could instances at their claimed bounds serve?

No integer program. For every cluster a curve says what is served at most on so many GPUs. Knapsacks give it, one for
each pool, where instances may sit anywhere: that is never too little, and exact where the sizes fill domains without a
rest. Elsewhere dynamic programming over domains is exact (:mod:`solver.verify.packed`), as far as it stays small.
Clusters are joined by adding their curves up, so no combination of them is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import pairwise

import numpy as np

from solver.cost.machine import Ints
from solver.deployment import ROLES, InstanceSize, shares_domain
from solver.specs.deploying import Mode
from solver.specs.problem import Problem
from solver.verify.packed import packed_curve, reaches

MAX_GPUS = 2**20
"""GPUs of a cluster whose curve is drawn."""
MAX_JOINED = 2**24
"""Sums of two curves that are looked at one by one."""
NEVER = -(2**60)


@dataclass(frozen=True)
class Mixes:
    """All mixes of one serving mode, every instance at a given rate.

    Attributes
    ----------
    problems : the deployment's question for each cluster
    rates : units of requests that an instance of a size serves, sizes of this mode only
    max_shapes : most sizes of one pool, over all clusters
    """

    problems: Sequence[Problem]
    mode: Mode
    rates: Mapping[InstanceSize, int]
    max_shapes: int | None = None

    def serve(self, target: int) -> bool | None:
        """Whether some mix within the budgets serves so many units; None where that is too large to say."""
        answer = self._judge(lambda curves: sum(int(curve[-1]) for curve in curves) >= target)
        full = all(problem.gpu_budget >= problem.cluster.num_gpus for problem in self.problems)
        if answer is None and full and len(self.problems) == 1 and self.max_shapes is None:
            return reaches(self.problems[0], self.mode, self.rates, target)
        return answer

    def serve_per_gpu(self, units: int) -> bool | None:
        """Whether some mix serves at least so many units for each of its GPUs. The best cluster alone does."""
        return self._judge(
            lambda curves: any(bool((curve[1:] >= units * np.arange(1, len(curve))).any()) for curve in curves)
        )

    def serve_within(self, target: int, weights: Sequence[int], most: int) -> bool | None:
        """Whether some mix serves `target` units on GPUs that weigh at most so much, with a weight for each cluster."""

        def cheap(curves: Sequence[Ints]) -> bool:
            if target <= 0:
                return most >= 0
            offers = [_offers(curve, weight) for curve, weight in zip(curves, weights, strict=True)]
            joined = reduce(_join, offers)
            enough = joined[0][joined[1] >= target]
            return bool(len(enough)) and int(enough.min()) <= most

        return self._judge(cheap)

    def _judge(self, holds: Callable[[Sequence[Ints]], bool]) -> bool | None:
        """A statement that more requests only make truer: False by curves that are never too low, True by exact ones.

        None where neither is at hand.
        """
        loose = self._loose
        if loose is None:
            return None
        try:
            if not holds([curve for curve, _ in loose]):
                return False
            tight = [curve if exact else self._exact(site) for site, (curve, exact) in enumerate(loose)]
            known = [curve for curve in tight if curve is not None]
            return holds(known) if len(known) == len(tight) else None
        except _TooLargeError:
            return None

    @cached_property
    def _loose(self) -> list[tuple[Ints, bool]] | None:
        """Curve of every cluster, and whether it is exact."""
        if any(problem.gpu_budget > MAX_GPUS for problem in self.problems):
            return None
        return [self._curve(site) for site in range(len(self.problems))]

    def _curve(self, site: int) -> tuple[Ints, bool]:
        problem = self.problems[site]
        pools, used = [], list[InstanceSize]()
        for role in ROLES[self.mode]:
            own = {size: rate for size, rate in self.rates.items() if (size.site, size.role) == (site, role)}
            best = undominated(own)
            used += best
            pools.append(knapsack(best, problem.gpu_budget, self.max_shapes))
        is_exact = _fills_domains(used, problem) and (self.max_shapes is None or len(self.problems) == 1)
        return (pools[0] if len(pools) == 1 else lesser(*pools)), is_exact

    def _exact(self, site: int) -> Ints | None:
        if self.max_shapes is not None and len(self.problems) > 1:
            return None
        rates = {size: rate for size, rate in self.rates.items() if size.site == site}
        return packed_curve(self.problems[site], self.mode, rates, self.max_shapes)


class _TooLargeError(Exception):
    """More combinations than the judge looks at."""


def undominated(rates: Mapping[InstanceSize, int]) -> dict[InstanceSize, int]:
    """Sizes of one pool without those that another one on at most as many GPUs outdoes."""
    kept: dict[InstanceSize, int] = {}
    for size, rate in sorted(rates.items(), key=lambda pair: (pair[0].gpus, -pair[1], pair[0].domains)):
        if rate > max(kept.values(), default=0):
            kept[size] = rate
    return kept


def knapsack(rates: Mapping[InstanceSize, int], budget: int, max_shapes: int | None) -> Ints:
    """Most units of one pool on at most 0, 1, ..., `budget` GPUs, whatever the domains; array [budget + 1]."""
    shapes = len(rates) if max_shapes is None else min(max_shapes, len(rates))
    best = [np.zeros(budget + 1, dtype=np.int64) for _ in range(shapes + 1)]
    if max_shapes is None or shapes == len(rates):
        for size, rate in rates.items():
            best[-1] = np.maximum(best[-1], _some_of(best[-1], size.gpus, rate))
        return best[-1]
    for size, rate in rates.items():
        for used in range(shapes, 0, -1):
            best[used] = np.maximum(best[used], _some_of(best[used - 1], size.gpus, rate))
    return best[-1]


def _some_of(best: Ints, gpus: int, rate: int) -> Ints:
    """The curve with at least one more instance of a size, any number of them."""
    rows = -(-len(best) // gpus)
    table = np.full(rows * gpus, NEVER, dtype=np.int64)
    table[: len(best)] = best
    gained = np.arange(rows, dtype=np.int64)[:, None] * rate
    before = np.maximum.accumulate(table.reshape(rows, gpus) - gained, axis=0)
    some = np.full((rows, gpus), NEVER, dtype=np.int64)
    some[1:] = before[:-1] + gained[1:]
    return some.ravel()[: len(best)]


def lesser(prefill: Ints, decode: Ints) -> Ints:
    """Most that both pools serve when they share so many GPUs: every rate at the fewest GPUs of either pool."""
    rates = np.unique(np.concatenate([prefill, decode]))
    rates = rates[rates <= min(prefill[-1], decode[-1])]
    gpus = np.searchsorted(prefill, rates) + np.searchsorted(decode, rates)
    served = np.zeros_like(prefill)
    fit = gpus < len(served)
    np.maximum.at(served, gpus[fit], rates[fit])
    return np.maximum.accumulate(served)


def _fills_domains(sizes: Iterable[InstanceSize], problem: Problem) -> bool:
    """Whether any numbers of these sizes that fit the GPUs also fit the domains: each size divides the next larger."""
    domain = problem.cluster.domain_gpus
    sizes = list(sizes)
    if any(size.gpus != size.domains * domain for size in sizes if not shares_domain(size, domain)):
        return False
    chain = sorted({size.gpus for size in sizes if shares_domain(size, domain)} | {domain})
    divides = all(large % small == 0 for small, large in pairwise(chain))
    return divides and problem.gpu_budget <= problem.cluster.num_domains * domain


def _offers(curve: Ints, weight: int) -> tuple[Ints, Ints]:
    """(weight, units) at every step of a curve."""
    steps = np.flatnonzero(np.diff(curve, prepend=-1))
    return steps * weight, curve[steps]


def _join(one: tuple[Ints, Ints], other: tuple[Ints, Ints]) -> tuple[Ints, Ints]:
    """All sums of two lists of offers, without those that are beaten."""
    if len(one[0]) * len(other[0]) > MAX_JOINED:
        raise _TooLargeError
    weights = (one[0][:, None] + other[0]).ravel()
    units = (one[1][:, None] + other[1]).ravel()
    order = np.lexsort((-units, weights))
    weights, units = weights[order], units[order]
    better = np.concatenate([[True], units[1:] > np.maximum.accumulate(units)[:-1]])
    return weights[better], units[better]
