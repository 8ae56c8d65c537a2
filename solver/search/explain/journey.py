"""``explain`` from the question to the document."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from solver.cost.horizon import HORIZON
from solver.cost.metrics import Utopia
from solver.explanation import Attempt, Explanation, Member, Relaxation, WhyNot
from solver.plan import NoPlan, Plan
from solver.search.explain.attempt import Corrector, nearest, realised_attempt
from solver.search.explain.axes import Axis, axes_of
from solver.search.explain.conflict import Conflict, Shrinker
from solver.search.explain.constraints import constraints_of, without
from solver.search.explain.decide import Clock, Decider
from solver.search.explain.relax import Found, Relaxer
from solver.search.explain.why_not import Against
from solver.search.loop import Progress
from solver.search.program import SearchLimits
from solver.search.run import DEFAULT_WORKERS, SearchOptions, search
from solver.specs.problem import Problem
from solver.strategy import Strategy


@dataclass(frozen=True)
class Watcher:
    """Where progress goes: words for every question, and the search's own reports."""

    on_question: Callable[[str], None]
    on_progress: Callable[[Progress], None]


class Journey:
    """One explanation."""

    def __init__(self, problem: Problem, options: SearchOptions, watcher: Watcher) -> None:
        limits = SearchLimits(options.workers or DEFAULT_WORKERS, options.seed, options.time_limit_s)
        self.problem, self.options, self.watcher = problem, options, watcher
        self.started = time.monotonic()
        self.decider = Decider(Clock(limits), watcher.on_question)
        self.solved = 0

    def explain(self, named: Strategy | str | None) -> Explanation:
        """Why there is no plan; where there is one, why not the strategy that is named."""
        first = self.decider.ask_problem(self.problem, "is there a plan")
        if first.is_none:
            return self._infeasible(named)
        winner = None if self.decider.clock.is_over else self.solve(self.problem)
        why_not: WhyNot | None = None
        if isinstance(winner, Plan) and named is not None:
            why_not = Against(self.decider, winner, self.solve).explain(named)
        remarks = (
            () if named is not None else ("there is a plan: name a strategy (--why-not) to hear why it is not it",)
        )
        plan = winner if isinstance(winner, Plan) else None
        proved = plan is not None and plan.status == "OPTIMAL"
        settled = why_not is None or (
            why_not.verdict != "open" and (why_not.named is None or why_not.named.status == "OPTIMAL")
        )
        return self._document(
            status="UNKNOWN" if plan is None else "OPTIMAL" if proved else "FEASIBLE",
            complete=proved and settled,
            winner=plan,
            why_not=why_not,
            remarks=remarks if plan is not None else ("the time was over before a plan was found or excluded",),
        )

    def solve(self, problem: Problem, utopia: Utopia | None = None) -> Plan | NoPlan:
        """The best plan of a problem in the time that is left; `utopia` as in :class:`SearchOptions`."""
        self.solved += 1
        self.watcher.on_question("the best plan")
        left = self.decider.clock.next().time_s
        options = replace(
            self.options, time_limit_s=left, reasons=False, utopia=utopia, on_interrupt=self.decider.interrupt
        )
        return search(problem, options, self.watcher.on_progress)

    # --- infeasible -------------------------------------------------------------------------------------------------

    def _infeasible(self, named: Strategy | str | None) -> Explanation:
        problem = self.problem
        shrinker = Shrinker(self.decider, problem, constraints_of(problem))
        conflict = shrinker.shrink()
        relaxer = Relaxer(self.decider, problem, [member.constraint.name for member in conflict.members])
        relaxations = tuple(self._relaxation(relaxer, axis) for axis in axes_of(problem).values())
        attempt = nearest(problem, relaxations) or self._together(shrinker)
        members = self._members(conflict)
        complete = (
            conflict.is_minimal
            and all(relaxation.status != "OPEN" for relaxation in relaxations)
            and all(member.alone is not None for member in members)
        )
        remarks = [] if members else [f"whatever is dropped, no strategy keeps within {HORIZON}"]
        if named is not None:
            remarks.append("no strategy is a plan, so none was compared with the one that was named")
        return self._document(
            status="INFEASIBLE", complete=complete, members=members, attempt=attempt, relaxations=relaxations,
            remarks=tuple(remarks),
        )  # fmt: skip

    def _members(self, conflict: Conflict) -> tuple[Member, ...]:
        members = []
        for needed in conflict.members:
            constraint = needed.constraint
            alone = self.decider.ask(without(self.problem, [constraint]), f"all but {constraint.name}")
            members.append(
                Member(
                    name=constraint.name,
                    sentence=constraint.demand,
                    needed=needed.plan is not None,
                    plan_without=None if needed.plan is None else needed.plan.strategy.full_label,
                    alone=None if alone.is_open else alone.plan is not None,
                )
            )
        return tuple(members)

    def _relaxation(self, relaxer: Relaxer, axis: Axis) -> Relaxation:
        found = relaxer.relax(axis) if not self._is_over else Found(None, None, "the time was over", is_open=True)
        plan = None
        if found.value is not None and not self._is_over:
            answer = self.solve(axis.at(found.value))
            plan = answer if isinstance(answer, Plan) else None
        status = "IMPOSSIBLE" if found.is_impossible else "OPEN" if found.is_open or found.value is None else "PROVED"
        return Relaxation(
            axis=axis.name, unit=axis.unit, step=axis.step, asked=axis.asked, status=status, value=found.value,
            excluded=found.excluded, argument=found.argument, plan=plan,
        )  # fmt: skip

    @property
    def _is_over(self) -> bool:
        return self.decider.clock.is_over or self.decider.interrupted

    def _together(self, shrinker: Shrinker) -> Attempt | None:
        """Where no single number helps: the plan that gives up a smallest group of constraints."""
        corrector = Corrector(shrinker)
        group = corrector.correct()
        if corrector.plan is None or corrector.is_open:
            return None
        served = without(self.problem, group).problem
        return realised_attempt(self.problem, corrector.plan, tuple(c.name for c in group), served)

    def _document(self, **parts: object) -> Explanation:
        return Explanation.model_validate(
            {
                **parts,
                "problem": self.problem,
                "problem_digest": self.problem.digest,
                "questions": self.decider.asked + self.solved,
                "wall_s": round(time.monotonic() - self.started, 4),
            }
        )


def run_explain(
    problem: Problem, named: Strategy | str | None, options: SearchOptions, watcher: Watcher
) -> Explanation:
    """The whole explanation of a problem; `named` is a strategy, a label, or decisions ``name=value,...``."""
    return Journey(problem, options, watcher).explain(named)
