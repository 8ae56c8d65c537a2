"""The exact Pareto front of two metrics: one proved solve after the other, by the epsilon-constraint method.

A point takes two solves: the best first metric under a limit on the second, then the best second one under that first
(so that no other plan is as good in both and better in one). The next limit is one integer below the second metric of
the point before, so unsupported points are found like any other. What is proved is kept as intervals: a front that is
cut short says which parts of it were not searched, and is taken up again from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from solver.cost.limits import limited
from solver.cost.metrics import natural_value, objective_value
from solver.front import Front, FrontGap, FrontPoint, FrontStatus, FrontStep, gaps_between, metric_pair
from solver.search.assemble import assemble
from solver.search.explain.reasons import reasons_for_none
from solver.search.loop import Loop, Outcome
from solver.search.program import SearchLimits
from solver.search.shared import Shared
from solver.specs.problem import Objective, ObjectiveName, Problem


@dataclass(frozen=True)
class FrontProgress:
    """What a caller sees while it waits."""

    first: ObjectiveName
    second: ObjectiveName
    osl: int

    points: int
    gaps: int
    solves: int
    elapsed_s: float
    latest: FrontPoint | None
    """The point found now; absent where a gap was narrowed."""
    snapshot: Callable[[], Front]
    """What a run that ends now would return."""


@dataclass(frozen=True)
class FrontOptions:
    """How far to go."""

    limits: SearchLimits
    points: int | None = None
    """Stop at so many, evenly spread; absent means all."""


class _CutShortError(Exception):
    """A solve was ended by the time limit or by Ctrl-C."""


class FrontSearch:
    """One run; `known` is a front of the same question to go on from, its points judged by the caller."""

    def __init__(
        self,
        problem: Problem,
        metrics: tuple[ObjectiveName, ObjectiveName],
        options: FrontOptions,
        on_progress: Callable[[FrontProgress], None],
        known: Front | None = None,
    ) -> None:
        self.first, self.second = metric_pair(*metrics, problem)
        self.problem = problem.model_copy(update={"objective": Objective(name=self.first)})
        self.options, self.on_progress = options, on_progress
        self.shared = Shared(self.problem)
        self.points = [] if known is None else list(known.points)
        self.least_second = None if known is None else known.least_second
        self.steps = [] if known is None else list(known.steps)
        self._spent_s = 0.0 if known is None else known.wall_s
        self._begun = time.monotonic()
        self._tried: set[int] = set()
        self._excluded: Outcome | None = None

    def run(self) -> Front:
        """All points, or as many as the options allow; never an exception for a limit or Ctrl-C."""
        ended = f"{self.options.points} points were asked for"
        try:
            self._ends()
            self._fill()
        except _CutShortError as cut:
            ended = str(cut)
        except KeyboardInterrupt:
            ended = "interrupt"
        return self._front(ended)

    # --- walking ------------------------------------------------------------------------------------------------------

    def _ends(self) -> None:
        """The best plan of either metric."""
        if not self.points:
            best = self._solve(self.first, None, 0)
            if best is None:
                return
            self._add(best, None, at_least=0)
        if self.least_second is None:
            best = self._solve(self.second, None, 0)
            assert best is not None
            self.least_second = best
        if self.points[-1].second > self.least_second and not self._is_full():
            self._look(self.least_second)

    def _fill(self) -> None:
        """Points between the ends: all, from the first on; or evenly spread, then in the middle of the widest gap."""
        if self.options.points is None:
            while gaps := self._gaps():
                self._look(gaps[0].high)
            return
        for target in self._targets():
            gap = next((gap for gap in self._gaps() if gap.low <= target <= gap.high), None)
            if self._is_full():
                return
            if gap is not None:
                self._look(target)
        while (gaps := self._gaps()) and not self._is_full():
            widest = max(gaps, key=self._width)
            # A gap that was halved in vain is closed from its upper end: at most one solve per gap brings no point.
            self._look(widest.high if widest.low in self._tried else self._middle(widest))

    def _targets(self) -> list[int]:
        """Limits on the second metric, evenly spread between the ends in its own unit."""
        number = (self.options.points or 0) - 1
        if len(self.points) < 2:
            return []
        start, end = (self._natural(point.second) for point in (self.points[0], self.points[-1]))
        return [self._integer(start + (end - start) * i / number) for i in range(1, number)]

    def _look(self, at_most: int) -> None:
        """Whatever is best under this limit: a new point, or the proof that the next one is the next."""
        before = [point for point in self.points if point.second > at_most]
        after = [point for point in self.points if point.second <= at_most]
        at_least = before[-1].first + 1 if before else 0
        best = self._solve(self.first, at_most, at_least)
        assert best is not None  # the best plan of the second metric meets every limit that is tried
        self._tried.add(at_most + 1)
        if after and after[0].first == best:
            point = after[0].model_copy(update={"proved_to": at_most})
            self.points = [*before, point, *after[1:]]
            self._report(None)
            return
        self._add(best, at_most, at_least=after[0].second + 1 if after else self.least_second or 0)

    def _add(self, first: int, proved_to: int | None, at_least: int) -> None:
        """The point with this first metric: the best second one that goes with it."""
        problem = self._asking(self.second, first)
        outcome, wall_s = self._run(problem, at_least)
        best = outcome.best
        assert best is not None
        self.steps.append(self._step(self.second, self.first, first, outcome, wall_s))
        reached = objective_value(self.first, best.figures)
        if reached != first:
            raise RuntimeError(f"a plan has {self.first} {reached}, below the proved optimum {first}")
        plan = assemble(problem, outcome, self.options.limits, None, wall_s)
        point = FrontPoint(first=first, second=best.value, proved_to=proved_to, plan=plan)
        self.points = sorted([*self.points, point], key=lambda each: each.first)
        self._report(point)

    # --- solving ------------------------------------------------------------------------------------------------------

    def _asking(self, objective: ObjectiveName, at_most: int | None) -> Problem:
        """The problem with one metric as the objective and a limit on the other."""
        problem = self.problem.model_copy(update={"objective": Objective(name=objective)})
        other = self.second if objective == self.first else self.first
        return problem if at_most is None else limited(problem, other, at_most)

    def _solve(self, objective: ObjectiveName, at_most: int | None, at_least: int) -> int | None:
        """Proved optimum; None when there is no plan."""
        outcome, wall_s = self._run(self._asking(objective, at_most), at_least)
        other = self.second if objective == self.first else self.first
        self.steps.append(self._step(objective, None if at_most is None else other, at_most, outcome, wall_s))
        if outcome.best is None:
            self._excluded = outcome
            return None
        return outcome.best.value

    def _run(self, problem: Problem, at_least: int) -> tuple[Outcome, float]:
        begun, limits = time.monotonic(), self.options.limits
        if limits.time_s is not None:
            left = limits.time_s - (begun - self._begun)
            if left <= 0:
                raise _CutShortError("time limit")
            limits = replace(limits, time_s=left)
        known = self.shared.known(problem, at_least)
        outcome = Loop(problem, limits, lambda _progress: None, None, known=known).run()
        if outcome.status not in ("OPTIMAL", "INFEASIBLE"):
            most = self.options.limits.time_s  # CP-SAT answers Ctrl-C itself and says no more than that it stopped
            late = most is not None and time.monotonic() - self._begun >= most
            raise _CutShortError("time limit" if late and not outcome.interrupted else "interrupt")
        return outcome, time.monotonic() - begun

    @staticmethod
    def _step(
        objective: ObjectiveName, metric: ObjectiveName | None, at_most: int | None, outcome: Outcome, wall_s: float
    ) -> FrontStep:
        return FrontStep(
            objective=objective,
            limited=metric,
            at_most=at_most,
            value=None if outcome.best is None else outcome.best.value,
            program=outcome.program_digest,
            wall_s=round(wall_s, 4),
        )

    # --- what is known ------------------------------------------------------------------------------------------------

    def _gaps(self) -> tuple[FrontGap, ...]:
        return gaps_between(self.points, self.least_second)

    def _is_full(self) -> bool:
        return self.options.points is not None and len(self.points) >= self.options.points

    def _natural(self, integer: int) -> float:
        return natural_value(self.second, max(1, integer), self.problem.workload.osl)

    def _integer(self, natural: float) -> int:
        """Integer of the second metric for a value in its unit; rates are inverted."""
        if self.second in ("throughput", "efficiency"):
            return int(natural_value(self.second, 1, self.problem.workload.osl) / natural)
        return int(natural)

    def _width(self, gap: FrontGap) -> float:
        return abs(self._natural(gap.high) - self._natural(gap.low))

    def _middle(self, gap: FrontGap) -> int:
        """The limit halfway through a gap in the unit of the metric."""
        halfway = self._integer((self._natural(gap.low) + self._natural(gap.high)) / 2)
        return min(max(halfway, gap.low), gap.high)

    def _front(self, ended: str) -> Front:
        status: FrontStatus = "UNKNOWN"
        if self._excluded is not None:
            status = "INFEASIBLE"
        elif self.points:
            status = "COMPLETE" if self.least_second is not None and not self._gaps() else "PARTIAL"
        return Front(
            status=status,
            first=self.first,
            second=self.second,
            points=tuple(self.points),
            least_second=self.least_second,
            ended=ended if status in ("PARTIAL", "UNKNOWN") else "",
            reasons=() if self._excluded is None else reasons_for_none(self.problem, self.options.limits),
            problem=self.problem,
            problem_digest=self.problem.digest,
            steps=tuple(self.steps),
            wall_s=round(self._spent_s + time.monotonic() - self._begun, 4),
        )

    def _report(self, latest: FrontPoint | None) -> None:
        elapsed = time.monotonic() - self._begun
        self.on_progress(
            FrontProgress(
                first=self.first,
                second=self.second,
                osl=self.problem.workload.osl,
                points=len(self.points),
                gaps=len(self._gaps()),
                solves=len(self.steps),
                elapsed_s=elapsed,
                latest=latest,
                snapshot=lambda: self._front("a snapshot while it ran"),
            )
        )
