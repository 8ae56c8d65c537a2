"""The loop over scenarios: own optima, joint program, placement, cut, until the program's total is the realised one.

First every scenario is solved alone; its optimum is what regret is measured by, a bound of the whole, and its cuts stay
valid. Then the joint program is solved with all placement blocks at their lower bounds, its deployment is realised in
every scenario, and what the blocks prove is added until both agree, as in :mod:`solver.search.loop`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from solver.certificate import Iteration, Status
from solver.cost.metrics import natural_value
from solver.cost.scenarios import Yardstick
from solver.search.clock import Clocked
from solver.search.loop import MAX_TURNS, ContradictionError, Loop, Progress
from solver.search.program import SearchLimits
from solver.search.scenarios.deployed import Deployed, Least, deploy, least
from solver.search.scenarios.incumbent import JointScores, find_deployment
from solver.search.scenarios.program import JointProgram, Known
from solver.strategy import Strategy

ROUNDING = 1e-9
"""Relative slack by which a floating-point bound of a stage shape must exceed a total to exclude the shape."""


@dataclass(frozen=True)
class JointProgress(Progress):
    """Progress of the joint search: the integers are totals."""

    yardstick: Yardstick

    def natural(self, integer: int) -> float:
        """The mean objective, or the regret as a share."""
        if self.yardstick.over == "regret":
            return integer / self.yardstick.scale
        return natural_value(self.objective, round(integer / sum(self.yardstick.parts)), self.osl)


@dataclass
class JointOutcome:
    """Result of the loop over scenarios."""

    status: Status
    best: Deployed | None
    bound: int
    iterations: list[Iteration] = field(default_factory=list)
    program_digest: str = ""
    tables_s: float = 0.0
    program_s: float = 0.0
    blocks_s: float = 0.0


class JointLoop(Clocked[JointOutcome]):
    """One run on scenarios that each have a plan of their own (`loops` have run)."""

    def __init__(
        self,
        loops: Sequence[Loop],
        yardstick: Yardstick,
        limits: SearchLimits,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.started = time.monotonic()
        self.loops, self.yardstick, self.on_progress = tuple(loops), yardstick, on_progress
        self.allow(limits)
        for loop in self.loops:
            loop.deadline = self.deadline
        own = yardstick.expected([loop.outcome.bound for loop in self.loops])
        self.outcome = JointOutcome("UNKNOWN", None, own if yardstick.over == "expected" else 0)
        self.cuts: list[Least] = []
        self.dead_shapes: tuple[tuple[int, int, int, int], ...] = ()

    def run(self) -> JointOutcome:
        """Solve; Ctrl-C and the time limit end it with the best deployment so far and its true gap."""
        outcome = self.outcome
        try:
            self._start()
            self._prove()
        except KeyboardInterrupt:
            if outcome.status != "OPTIMAL":
                outcome.status = "UNKNOWN" if outcome.best is None else "FEASIBLE"
        if outcome.status == "FEASIBLE" and outcome.best is not None and outcome.bound >= (outcome.best.total or 0):
            outcome.status, outcome.bound = "OPTIMAL", outcome.best.total or 0
        return outcome

    # --- parts --------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        begun = time.monotonic()
        scores = JointScores(self.loops, self.yardstick)
        if not scores.shapes:
            return
        strategies = find_deployment(scores)
        self.outcome.tables_s += time.monotonic() - begun
        if strategies is None:
            return
        self._keep(self._deploy(strategies))
        best = self.outcome.best
        if best is not None and best.total is not None:
            over = np.nonzero(scores.shape_bounds > best.total * (1 + ROUNDING) + 1)[0].tolist()
            self.dead_shapes = tuple(scores.shapes[i] for i in over)

    def _prove(self) -> None:
        outcome = self.outcome
        for _ in range(MAX_TURNS):
            program = self._program()
            result = self._timed(lambda p=program: p.solve(self._limits(), self._report))  # type: ignore[misc]
            if result.status == "INFEASIBLE":
                if outcome.best is not None:
                    raise ContradictionError(
                        f"the joint program calls the total {outcome.best.total} impossible, but it is realised"
                    )
                outcome.status = "INFEASIBLE"
                return
            outcome.bound = max(outcome.bound, result.bound)
            if result.strategies is None:
                break
            deployed = self._deploy(result.strategies)
            self._keep(deployed)
            if result.status != "OPTIMAL":
                break
            agreed, cut = self._compare((result.value, None), deployed)
            if agreed:
                agreed, cut = self._settle(program, deployed)
            if agreed:
                outcome.status = "OPTIMAL"
                return
            if not cut:
                break
        outcome.status = "UNKNOWN" if outcome.best is None else "FEASIBLE"

    def _settle(self, program: JointProgram, agreed: Deployed) -> tuple[bool, str]:
        """With the total proved: the least weighted sum, then the rest of the tie-break.

        Returns whether nothing was contradicted on the way, and else the cut that was added.
        """
        assert agreed.total is not None
        total, winner = agreed.total, agreed
        if self.yardstick.over == "regret":
            program.hint(agreed.strategies)
            result = self._timed(lambda: program.solve_expected(total, agreed.expected, self._limits()))
            if result.status != "OPTIMAL" or result.strategies is None:
                return True, ""
            winner = self._deploy(result.strategies)
            self._keep(winner)
            same, cut = self._compare((total, result.value), winner)
            if not same:
                return not cut, cut
        program.hint(winner.strategies)
        expected = winner.expected
        result = self._timed(lambda: program.solve_ties(total, expected, self._limits()))
        if result.status == "OPTIMAL" and result.strategies is not None:
            tied = self._deploy(result.strategies)
            if tied.total != total or tied.expected != expected:
                same, cut = self._compare((total, expected), tied)
                return same or not cut, cut
            winner = tied
        self.outcome.best = winner
        return True, ""

    def _compare(self, claimed: tuple[int, int | None], deployed: Deployed) -> tuple[bool, str]:
        """Whether the realisation costs what the program claimed (total, weighted sum); if not, the cut added."""
        total, expected = claimed
        true = (deployed.total, deployed.expected if expected is not None else None)
        if deployed.total is not None and (deployed.total, true[1] or 0) < (total, expected or 0):
            raise ContradictionError(
                f"{deployed.strategies[0].full_label} has the total {deployed.total} and weighted sum "
                f"{deployed.expected}, below the joint program's optimum {claimed}"
            )
        agreed = true == claimed
        cut = "" if agreed else self._cut(deployed)
        self.outcome.iterations.append(
            Iteration(
                program_value=total,
                realised_value=deployed.total,
                label=deployed.strategies[0].full_label,
                cut=cut,
            )
        )
        return agreed, cut

    def _cut(self, deployed: Deployed) -> str:
        """What the blocks prove of single scenarios, and of these strategies together; empty when nothing is new."""
        said = []
        for loop, part in zip(self.loops, deployed.parts, strict=True):
            learned = loop.learn(part)
            if learned:
                said.append(learned)
        joint = least(self.loops, deployed, self.yardstick)
        if joint not in self.cuts:
            self.cuts.append(joint)
            verdict = "infeasible" if joint.total is None else f">= {joint.total}"
            said.append(f"{deployed.strategies[0].full_label} with these knobs {verdict} in all scenarios")
        return "; ".join(said)

    def _program(self) -> JointProgram:
        begun = time.monotonic()
        best = self.outcome.best
        known = Known(None if best is None else best.total, self.outcome.bound, tuple(self.cuts), self.dead_shapes)
        program = JointProgram(self.loops, self.yardstick, known)
        if best is not None:
            program.hint(best.strategies)
        self.outcome.program_digest = program.digest
        self.outcome.tables_s += time.monotonic() - begun
        return program

    def _deploy(self, strategies: tuple[Strategy, ...]) -> Deployed:
        begun = time.monotonic()
        deployed = deploy(self.loops, strategies, self.yardstick)
        self.outcome.blocks_s += time.monotonic() - begun
        return deployed

    def _keep(self, deployed: Deployed) -> None:
        best = self.outcome.best
        if deployed.total is not None and (best is None or deployed.key < best.key):
            self.outcome.best = deployed
            self._report(deployed.total, self.outcome.bound)

    def _report(self, value: int | None, bound: int) -> None:
        best = self.outcome.best
        totals = [total for total in (value, best.total if best else None) if total is not None]
        problem = self.loops[0].problem
        self.on_progress(
            JointProgress(
                "all scenarios",
                min(totals, default=None),
                max(bound, self.outcome.bound),
                time.monotonic() - self.started,
                "weighted" if self.yardstick.over == "regret" else problem.objective.name,
                problem.workload.osl,
                self.yardstick,
            )
        )
