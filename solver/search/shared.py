"""What solves of one service share when only objective and limits differ: leaf costs, blocks, bounds, priced plans.

None of it depends on what is asked: leaf costs and placement blocks follow from LLM, cluster, workload and calibration,
the load bounds are proved whatever the objective, and a priced strategy is a starting point, never a claim. Cuts that
belong to one objective are left behind.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

from solver.cost.horizon import in_horizon
from solver.cost.leaves import Leaves
from solver.cost.limits import is_within, limits_of
from solver.cost.metrics import Figures, Utopia, objective_value
from solver.search.bounds import Bounds
from solver.search.realise import BlockCache
from solver.specs.problem import Problem
from solver.strategy import Strategy


@dataclass(frozen=True)
class Known:
    """What one solve begins with."""

    leaves: Leaves
    cache: BlockCache
    bounds: Bounds
    at_least: int
    """Proved: no plan has a smaller objective integer."""
    priced: dict[Strategy, Figures | None]
    """Strategies with their metrics at the bounds of the blocks; None where a rule or the memory forbids them."""
    base: Problem
    """The problem whose rules the priced strategies were held against: this one, with a larger budget or no limit."""

    def start(self, utopia: Utopia | None, admits: Callable[[Strategy, int], bool] | None) -> Strategy | None:
        """The best priced strategy that meets the limits."""
        problem = self.leaves.problem
        weights = utopia.weights(problem.objective.latency_weight) if utopia else (0, 0)
        limits, best = limits_of(problem), None
        for strategy, figures in self.priced.items():
            if figures is None or figures.gpus > problem.gpu_budget or not is_within(limits, figures):
                continue
            if not in_horizon(problem, figures):
                continue
            value = objective_value(problem.objective.name, figures, weights)
            if admits is not None and not admits(strategy, value):
                continue
            found = (value, strategy.sort_key, strategy)
            if best is None or found[:2] < best[:2]:
                best = found
        return None if best is None else best[2]


class Shared:
    """Grows with every solve that begins with it."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.leaves = problem, Leaves(problem)
        self.cache, self.bounds = BlockCache(self.leaves), Bounds(problem)
        self.priced: dict[Strategy, Figures | None] = {}

    def known(self, problem: Problem, at_least: int = 0) -> Known:
        """For a problem that differs from the first one in its objective and in tighter limits only."""
        leaves, cache, bounds = copy.copy(self.leaves), copy.copy(self.cache), copy.copy(self.bounds)
        leaves.problem = cache.problem = problem
        cache.leaves = leaves
        bounds.strategy_cuts = []
        return Known(leaves, cache, bounds, at_least, self.priced, self.problem)
