"""Where the winner changes along one parameter: exact solves, bisection to one step, intervals with what is proved."""

from __future__ import annotations

import itertools
import time
from bisect import bisect_left
from dataclasses import dataclass, replace

from solver.cost.metrics import NATURAL_UNITS
from solver.explanation import Interval, Probe, WhatIf
from solver.plan import Plan
from solver.search.explain.decide import Clock
from solver.search.explain.journey import Watcher
from solver.search.explain.parameters import parameter_of
from solver.search.program import SearchLimits
from solver.search.run import DEFAULT_WORKERS, SearchOptions, search
from solver.specs.problem import Problem
from solver.specs.vary import Vary
from solver.strategy import Strategy

NESTED = (
    "between two solved values with the same winner it is the winner of every value: {name} only decides which "
    "strategies are allowed, so the smaller choice holds it and the larger one has none better"
)
SAMPLED = (
    "between two solved values with the same winner no other is assumed in between: {name} changes what strategies "
    "cost, and a winner that comes and goes unseen is not excluded"
)


@dataclass(frozen=True)
class Solved:
    """One probe, and the strategy behind it."""

    probe: Probe
    strategy: Strategy | None

    @property
    def is_proved(self) -> bool:
        """Whether the probe is an optimum, or excluded."""
        return self.probe.status in ("OPTIMAL", "INFEASIBLE")

    @property
    def winner(self) -> tuple[str, str | None]:
        """What must be equal for two probes to have the same winner."""
        return ("", self.probe.signature) if self.strategy is not None else (self.probe.status, None)


class Sweep:
    """Solves values of a parameter, each once, and bisects between those with different winners."""

    def __init__(self, problem: Problem, vary: Vary, options: SearchOptions, watcher: Watcher) -> None:
        self.problem, self.vary, self.options, self.watcher = problem, vary, options, watcher
        self.parameter = parameter_of(problem, vary)
        limits = SearchLimits(options.workers or DEFAULT_WORKERS, options.seed, options.time_limit_s)
        self.clock = Clock(limits)
        self.solved: dict[int, Solved] = {}
        self.interrupted = False

    def run(self) -> WhatIf:
        """The whole sweep; the time limit and Ctrl-C end it with what is known."""
        started = time.monotonic()
        try:
            for index in self._starts():
                self._solve(index)
            known = sorted(self.solved)
            for low, high in itertools.pairwise(known):
                self._bisect(low, high)
        except KeyboardInterrupt:
            self.interrupted = True
        intervals = self._intervals()
        order = sorted(self.solved)
        winners = [self.solved[index].winner for index in order]
        narrow = all(
            high - low == 1 or winners[i] == winners[i + 1] for i, (low, high) in enumerate(itertools.pairwise(order))
        )
        whole = len(order) >= 2 and order[0] == 0 and order[-1] == len(self.parameter.values) - 1
        words = NESTED if self.parameter.is_nested else SAMPLED
        remarks = [words.format(name=self.vary.parameter)]
        if self.interrupted or not (narrow and whole):
            remarks.append(
                "the time limit or an interrupt ended the sweep: some breakpoints are not narrowed to one step"
            )
        values = self.parameter.values
        return WhatIf(
            parameter=self.vary.parameter, unit=self.vary.unit.name, step=self.vary.step,
            first=values[0], last=values[-1],
            objective=self.problem.objective.name, objective_unit=NATURAL_UNITS[self.problem.objective.name],
            probes=tuple(self.solved[index].probe for index in order), intervals=intervals,
            breakpoints=tuple(interval.first for interval in intervals[1:]),
            complete=narrow and whole and not self.interrupted and all(s.is_proved for s in self.solved.values()),
            remarks=tuple(remarks), problem=self.problem, wall_s=round(time.monotonic() - started, 4),
        )  # fmt: skip

    def _starts(self) -> list[int]:
        """Positions of the first probes: evenly spaced in the logarithm of the value where the range is wide."""
        values, points = self.parameter.values, self.vary.points
        low, high = values[0], values[-1]
        if low > 0 and high / low >= 8:
            wanted = [low * (high / low) ** (k / (points - 1)) for k in range(points)]
        else:
            wanted = [low + (high - low) * k / (points - 1) for k in range(points)]
        positions = {min(bisect_left(values, value), len(values) - 1) for value in wanted}
        return sorted({0, len(values) - 1, *positions})

    def _solve(self, index: int) -> Solved | None:
        if index in self.solved:
            return self.solved[index]
        if self.clock.is_over or self.interrupted:
            return None
        value = self.parameter.values[index]
        self.watcher.on_question(f"{self.vary.parameter} = {value} ({len(self.solved)} solved)")
        begun = time.monotonic()
        left = self.clock.next().time_s
        options = replace(self.options, time_limit_s=left, reasons=False, on_interrupt=self._interrupt)
        answer = search(self.parameter.at(value), options, self.watcher.on_progress)
        plan = answer if isinstance(answer, Plan) else None
        strategy = None if plan is None else plan.strategy.strategy()
        probe = Probe(
            value=value, status=answer.status,
            label=None if plan is None else plan.strategy.full_label,
            signature=None if strategy is None else signature(strategy),
            gpus=None if plan is None else plan.metrics.gpus_used,
            objective=None if plan is None else plan.objective.value,
            wall_s=round(time.monotonic() - begun, 4),
        )  # fmt: skip
        self.solved[index] = Solved(probe, strategy)
        return self.solved[index]

    def _interrupt(self) -> None:
        self.interrupted = True

    def _bisect(self, low: int, high: int) -> None:
        if high - low <= 1 or self.solved[low].winner == self.solved[high].winner:
            return
        middle = (low + high) // 2
        if self._solve(middle) is None:
            return
        self._bisect(low, middle)
        self._bisect(middle, high)

    def _intervals(self) -> tuple[Interval, ...]:
        order = sorted(self.solved)
        groups: list[list[int]] = []
        for index in order:
            if groups and self.solved[groups[-1][-1]].winner == self.solved[index].winner:
                groups[-1].append(index)
            else:
                groups.append([index])
        return tuple(self._interval(group) for group in groups)

    def _interval(self, group: list[int]) -> Interval:
        first, last = self.solved[group[0]].probe, self.solved[group[-1]].probe
        statuses = {self.solved[index].probe.status for index in group}
        proved = all(self._is_sure(low, high) for low, high in itertools.pairwise(group))
        return Interval(
            first=first.value, last=last.value, signature=first.signature,
            status=first.status if len(statuses) == 1 else "FEASIBLE",
            objective_first=first.objective, objective_last=last.objective,
            proved=proved and all(self.solved[index].is_proved for index in group),
        )  # fmt: skip

    def _is_sure(self, low: int, high: int) -> bool:
        """Whether every value between two probes is proved to have their winner."""
        if high - low == 1:
            return True
        one, other = self.solved[low], self.solved[high]
        return self.parameter.is_nested and one.is_proved and other.is_proved and one.strategy == other.strategy


def signature(strategy: Strategy) -> str:
    """The degrees of an instance; replicas and knobs may differ."""
    return strategy.full_label.rsplit("-R", 1)[0]


def run_what_if(problem: Problem, vary: Vary, options: SearchOptions, watcher: Watcher) -> WhatIf:
    """The breakpoints of the optimum along one parameter."""
    return Sweep(problem, vary, options, watcher).run()
