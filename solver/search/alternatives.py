"""The next best plans of other degrees: one proved solve each, without the degrees that are ranked already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from solver.cost.horizon import MAX_OBJECTIVE
from solver.cost.metrics import Utopia, natural_value
from solver.cost.terms import differences, objective_terms
from solver.plan import Alternative, Alternatives, Difference, Plan, PlannedStrategy
from solver.search.assemble import breakdown_of, metrics_of, placement_of
from solver.search.loop import Beyond, Loop, Progress
from solver.search.program import SearchLimits
from solver.search.realise import Realised
from solver.search.shared import Shared
from solver.specs.problem import Problem
from solver.strategy import Strategy


@dataclass(frozen=True)
class Ranking:
    """Solves again and again, each time without the degrees ranked so far."""

    problem: Problem
    utopia: Utopia | None
    on_progress: Callable[[Progress], None]

    def find(self, winner: Plan, most: int, limits: Callable[[], SearchLimits]) -> Alternatives:
        """At most `most` plans, best first; `complete` when there are no more, proved."""
        shared = Shared(self.problem)
        ranked: list[Alternative] = []
        taken: list[Strategy] = [winner.strategy.strategy()]
        at_least, complete = winner.certificate.value, False
        while len(ranked) < most:
            beyond, known = Beyond(tuple(taken), MAX_OBJECTIVE), shared.known(self.problem, at_least)
            outcome = Loop(self.problem, limits(), self.on_progress, self.utopia, beyond, known).run()
            if outcome.status != "OPTIMAL" or outcome.best is None:
                complete = outcome.status == "INFEASIBLE"
                break
            at_least = outcome.best.value
            taken.append(outcome.best.strategy)
            ranked.append(self._alternative(winner, outcome.best, shared, len(taken)))
        return Alternatives(asked=most, ranked=tuple(ranked), complete=complete)

    def _alternative(self, winner: Plan, found: Realised, shared: Shared, rank: int) -> Alternative:
        metrics = metrics_of(self.problem, found.figures)
        breakdown = breakdown_of(shared.leaves, found.strategy, found.blocks)
        best = objective_terms(self.problem, winner.metrics, winner.breakdown, self.utopia)
        terms = objective_terms(self.problem, metrics, breakdown, self.utopia)
        return Alternative(
            rank=rank,
            value=found.value,
            objective=natural_value(self.problem.objective.name, found.value, self.problem.workload.osl),
            distance=found.value / winner.certificate.value - 1,
            why=tuple(
                Difference(term=name, share=more / winner.certificate.value) for name, more in differences(best, terms)
            ),
            strategy=PlannedStrategy.of(found.strategy),
            metrics=metrics,
            breakdown=breakdown,
            memory=found.ledgers,
            placement=placement_of(self.problem, found),
        )
