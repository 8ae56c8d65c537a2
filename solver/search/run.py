"""A whole search: utopia values where the objective needs them, the loop, the plan or the reasons for none."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from solver.cost.metrics import Utopia
from solver.plan import NoPlan, Plan
from solver.search.alternatives import Ranking
from solver.search.assemble import assemble
from solver.search.explain.reasons import reasons_for_none
from solver.search.loop import Loop, Outcome, Progress
from solver.search.program import SearchLimits
from solver.search.ties import TieFinder
from solver.specs.problem import Objective, Problem

DEFAULT_WORKERS = 1
"""One thread proves these programs as fast as two, and reproduces its run exactly."""


@dataclass(frozen=True)
class SearchOptions:
    """How hard to look. With equal options, versions and machine the plan is reproduced."""

    workers: int | None = None
    """Threads of CP-SAT; absent means 1."""
    seed: int = 0
    time_limit_s: float | None = None
    """Absent means until proved."""
    gap: float = 0.0
    """Relative gap that is close enough: the search stops there, FEASIBLE with its gap."""
    ties: int = 0
    """Look for so many strategies that the cost model cannot tell from the winner."""
    alternatives: int = 0
    """Rank so many plans of other degrees than the winner's."""
    reasons: bool = True
    """Whether an infeasible problem is asked for its reasons (seconds)."""
    on_interrupt: Callable[[], None] = lambda: None
    """Called when Ctrl-C ended the search, so that a caller with more to solve stops, too."""
    utopia: Utopia | None = None
    """Utopia values of the objective ``weighted``, where they are those of a larger problem; absent: of this one."""


def search(problem: Problem, options: SearchOptions, on_progress: Callable[[Progress], None]) -> Plan | NoPlan:
    """Find and prove the best plan of a problem."""
    started = time.monotonic()
    limits = SearchLimits(options.workers or DEFAULT_WORKERS, options.seed, options.time_limit_s, options.gap)
    utopia = options.utopia
    if problem.objective.name == "weighted" and utopia is None:
        parts = []
        for name in ("latency", "efficiency"):
            part = problem.model_copy(update={"objective": Objective(name=name)})
            outcome = Loop(part, _left(replace(limits, gap=0.0), started), on_progress, None).run()
            if outcome.interrupted:
                options.on_interrupt()
            if outcome.status != "OPTIMAL" or outcome.best is None:
                return _none(problem, outcome, started, options)
            parts.append(outcome.best.value)
        utopia = Utopia(latency_ns=parts[0], inverse_efficiency_ns=parts[1])
    outcome = Loop(problem, _left(limits, started), on_progress, utopia).run()
    if outcome.interrupted:
        options.on_interrupt()
    if outcome.best is None:
        return _none(problem, outcome, started, options)
    plan = assemble(problem, outcome, limits, utopia, time.monotonic() - started)
    if options.ties and plan.status == "OPTIMAL":
        finder = TieFinder(problem, utopia, on_progress)
        plan = plan.model_copy(update={"ties": finder.find(outcome.best, options.ties, lambda: _left(limits, started))})
    if options.alternatives and plan.status == "OPTIMAL":
        ranking = Ranking(problem, utopia, on_progress)
        ranked = ranking.find(plan, options.alternatives, lambda: _left(limits, started))
        plan = plan.model_copy(update={"alternatives": ranked})
    return plan


def _left(limits: SearchLimits, started: float) -> SearchLimits:
    if limits.time_s is None:
        return limits
    return replace(limits, time_s=max(0.01, limits.time_s - (time.monotonic() - started)))


def _none(problem: Problem, outcome: Outcome, started: float, options: SearchOptions) -> NoPlan:
    if outcome.status == "INFEASIBLE":
        limits = SearchLimits(options.workers or DEFAULT_WORKERS, options.seed, options.time_limit_s)
        reasons = reasons_for_none(problem, _left(limits, started)) if options.reasons else ("not asked",)
        return NoPlan(
            status="INFEASIBLE", reasons=reasons, problem_digest=problem.digest, wall_s=time.monotonic() - started
        )
    what = "an interrupt or the time limit ended the search"
    return NoPlan(
        status="UNKNOWN",
        reasons=(f"{what} before any plan was found or excluded; give it more time",),
        problem_digest=problem.digest,
        wall_s=time.monotonic() - started,
    )
