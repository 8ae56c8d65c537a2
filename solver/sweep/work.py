"""One problem solved and judged, in whatever process an engine runs it."""

from __future__ import annotations

import hashlib
import signal
import time
from dataclasses import dataclass

from solver.certificate import Parameters, Versions
from solver.errors import SolverError
from solver.plan import NoPlan, Plan
from solver.specs.problem import Problem
from solver.swept import Answer, Outcome

GRACE_FACTOR, GRACE_SECONDS = 3.0, 60.0
"""A process that does not answer within so many times its limit, plus so many seconds, is ended by the system."""


@dataclass(frozen=True)
class Task:
    """A problem, and how hard to look. With one thread, equal tasks have equal results, byte for byte."""

    problem: Problem
    versions: Versions
    parameters: Parameters


@dataclass(frozen=True)
class Solved:
    """What a process sends back."""

    outcome: Outcome
    plan_json: str | None
    wall_s: float
    """Solve and judge; never part of the outcome."""


def solve_task(task: Task) -> Solved:
    """Solve, judge; a problem that cannot be solved is an outcome, too."""
    started = time.monotonic()
    limit_s = task.parameters.time_limit_s
    end_in(None if limit_s is None else GRACE_FACTOR * limit_s + GRACE_SECONDS)
    try:
        outcome, text = _solved(task)
    except SolverError as error:
        outcome, text = outcome_without(task, str(error)), None
    finally:
        end_in(None)
    return Solved(outcome, text, time.monotonic() - started)


def outcome_without(task: Task, reason: str) -> Outcome:
    """The outcome of a problem whose solve raised an error."""
    return Outcome(
        digest=task.problem.digest, status="FAILED", reasons=(reason,), versions=task.versions,
        parameters=task.parameters,
    )  # fmt: skip


def _solved(task: Task) -> tuple[Outcome, str | None]:
    from solver import api

    here = Versions.here()
    if (here.shardwright, here.ortools) != (task.versions.shardwright, task.versions.ortools):
        return outcome_without(task, f"this process has {here!r}, the sweep was started with {task.versions!r}"), None
    p = task.parameters
    answer = api.solve(task.problem, api.SolveOptions(workers=p.workers, seed=p.seed, time_limit_s=p.time_limit_s))
    if isinstance(answer, NoPlan):
        told = Outcome(
            digest=task.problem.digest, status=answer.status, reasons=answer.reasons, versions=here, parameters=p
        )
        return told, None
    plan = answer.model_copy(update={"certificate": answer.certificate.model_copy(update={"wall_s": None})})
    verdict = api.verify(plan)
    if not verdict.ok:
        return outcome_without(task, f"the judge convicts the plan: {verdict.findings[0]}; please report"), None
    text = plan.model_dump_json(indent=2) + "\n"
    return _with_plan(plan, text, here, p), text


def _with_plan(plan: Plan, text: str, versions: Versions, parameters: Parameters) -> Outcome:
    return Outcome(
        digest=plan.problem.digest,
        status=plan.status,
        answer=Answer.of(plan),
        plan_sha256=hashlib.sha256(text.encode()).hexdigest(),
        versions=versions,
        parameters=parameters,
    )


def end_in(seconds: float | None) -> None:
    """Let the system end this process after so many seconds, also within native code; None lets it live."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds or 0.0)
