"""Is there any plan? The program without an objective, closed by the placement blocks: a plan, or a proof of none."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from solver.search.explain.constraints import Case
from solver.search.incumbent import Scores, first_feasible
from solver.search.loop import MAX_TURNS, Loop
from solver.search.program import SearchLimits
from solver.search.realise import Realised
from solver.specs.problem import Objective, Problem

MOST_SCORED = 60
"""Strategies that are scored before the program is asked: a plan that is easy to find is found so."""


@dataclass(frozen=True)
class Verdict:
    """The answer to one such question."""

    plan: Realised | None
    proved: bool
    """Without a plan: whether it is proved that there is none. A plan is its own proof."""

    @property
    def is_none(self) -> bool:
        """Proved: no strategy with any placement satisfies everything."""
        return self.plan is None and self.proved

    @property
    def is_open(self) -> bool:
        """Neither a plan nor a proof: the time was over."""
        return self.plan is None and not self.proved


class AnyPlan(Loop):
    """The loop, content with any plan."""

    def __init__(self, case: Case, limits: SearchLimits) -> None:
        # Every objective has the same plans; the latency needs no utopia values, and its bounds order the heuristic.
        problem = case.problem.model_copy(update={"objective": Objective(name="latency")})
        self.waived = case.waived
        super().__init__(problem, limits, lambda _progress: None, None)

    def _start(self, shapes: list[tuple[int, int, int, int]]) -> None:
        """A plan by luck: a few strategies scored, none improved."""
        scores = Scores(self.leaves, self.outcome.domains, self.bounds, None, None, self.waived)
        strategy = first_feasible(scores, shapes, MOST_SCORED)
        if strategy is not None:
            self._keep(self.realise(strategy))

    def _prove(self) -> None:
        outcome = self.outcome
        for _ in range(MAX_TURNS):
            if outcome.best is not None or time.monotonic() > self.deadline:
                break
            program = self._program()
            result = self._timed(lambda p=program: p.solve_any(self._limits()))  # type: ignore[misc]
            if result.status == "INFEASIBLE":
                self._excluded()
                return
            self._note_interrupt(result)
            if result.strategy is None:
                break
            realised = self.realise(result.strategy)
            self._keep(realised)
            if outcome.best is None and not self.learn(realised):
                break
        outcome.status = "FEASIBLE" if outcome.best is not None else "UNKNOWN"


@dataclass
class Clock:
    """When everything must end."""

    limits: SearchLimits
    """Workers, seed, and the seconds for all questions together (None: as long as it takes)."""
    begun: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float | None:
        """Seconds that are left; None without a limit."""
        return None if self.limits.time_s is None else self.limits.time_s - (time.monotonic() - self.begun)

    @property
    def is_over(self) -> bool:
        """Whether no question may be asked any more."""
        return self.left_s is not None and self.left_s <= 0

    def next(self) -> SearchLimits:
        """Limits of the next question."""
        left = self.left_s
        return self.limits if left is None else replace(self.limits, time_s=max(0.01, left))


class Decider:
    """Answers such questions within a clock, each once."""

    def __init__(self, clock: Clock, on_question: Callable[[str], None] = lambda _words: None) -> None:
        self.clock, self.on_question = clock, on_question
        self.asked = 0
        self.interrupted = False
        self._known: dict[tuple[str, frozenset[str]], Verdict] = {}

    def ask(self, case: Case, words: str = "") -> Verdict:
        """Whether a case has a plan; open when the time is over or the caller interrupts."""
        key = (case.problem.model_copy(update={"objective": Objective()}).digest, case.waived)
        if key in self._known:
            return self._known[key]
        if self.clock.is_over or self.interrupted:
            return Verdict(None, proved=False)
        self.on_question(words)
        self.asked += 1
        outcome = AnyPlan(case, self.clock.next()).run()
        self.interrupted = self.interrupted or outcome.interrupted
        verdict = Verdict(outcome.best, proved=outcome.best is not None or outcome.status == "INFEASIBLE")
        if not verdict.is_open:
            self._known[key] = verdict
        return verdict

    def interrupt(self) -> None:
        """Ask nothing more."""
        self.interrupted = True

    def ask_problem(self, problem: Problem, words: str = "") -> Verdict:
        """Whether a problem has a plan."""
        return self.ask(Case(problem), words)
