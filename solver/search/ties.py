"""Honest ties: strategies of other degrees that the calibration's error does not tell from the winner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from solver.cost.closed_loop import predict_strategy
from solver.cost.leaves import Leaves
from solver.cost.metrics import Utopia, error_band, natural_value
from solver.plan import PlannedStrategy, Tie, Ties
from solver.search.loop import Beyond, Loop, Progress
from solver.search.program import SearchLimits
from solver.search.realise import Realised
from solver.specs.problem import Problem
from solver.strategy import packing_of


@dataclass(frozen=True)
class TieFinder:
    """Solves again and again, each time without the degrees found so far and with the band's edge as a bound."""

    problem: Problem
    utopia: Utopia | None
    on_progress: Callable[[Progress], None]

    def _uncertain(self, best: Realised) -> int:
        """What the error is a share of: the objective; of a TTFT, all that a client would measure of it."""
        if self.problem.objective.name != "ttft":
            return best.value
        packing = packing_of(self.problem, best.strategy)
        return int(predict_strategy(Leaves(self.problem), best.strategy, packing, best.blocks.lambda_ppm).ttft_ns)

    def find(self, best: Realised, most: int, limits: Callable[[], SearchLimits]) -> Ties:
        """At most `most` strategies within the band, best first."""
        objective = self.problem.objective.name
        percent, source = error_band(self.problem, objective)
        at_most = best.value + int(self._uncertain(best) * percent / 100)
        taken, tied = [best.strategy], list[Tie]()
        complete = False
        while len(tied) < most:
            beyond = Beyond(tuple(taken), at_most)
            outcome = Loop(self.problem, limits(), self.on_progress, self.utopia, beyond).run()
            if outcome.status != "OPTIMAL" or outcome.best is None:
                complete = outcome.status == "INFEASIBLE"
                break
            found = outcome.best
            taken.append(found.strategy)
            tied.append(
                Tie(
                    strategy=PlannedStrategy.of(found.strategy),
                    value=found.value,
                    objective=natural_value(objective, found.value, self.problem.workload.osl),
                    gpus=found.figures.gpus,
                )
            )
        return Ties(band_percent=percent, at_most=at_most, source=source, tied=tuple(tied), complete=complete)
