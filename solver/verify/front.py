"""The judge of a front: every point a plan that holds, none dominated, and what is claimed between them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from solver.cost.limits import limited
from solver.cost.metrics import THROUGHPUT_SCALE
from solver.errors import SpecError
from solver.front import Front, FrontPoint, metric_pair
from solver.plan import Plan
from solver.specs.problem import Objective, ObjectiveName, Problem
from solver.verify import verify
from solver.verify.exhaustive import Enumeration
from solver.verify.finding import Finding

FRONT_RULES: dict[str, str] = {
    "front-metrics": "the two metrics are different ones of those that a front may have",
    "front-digest": "the front's problem digest is that of the embedded problem, whose objective is the first metric",
    "front-question": "every point's plan answers the front's problem with the first metric limited to the point's",
    "front-plan": "every point's plan is OPTIMAL and passes the judge of plans",
    "front-values": "both integers of a point are those of its plan's metrics",
    "front-order": "from point to point the first integer rises and the second falls: none dominates another",
    "front-proved": "what a point is proved to is between its second integer and that of the point before",
    "front-status": "COMPLETE if and only if the points' claims leave no gap; without points INFEASIBLE or UNKNOWN",
    "front-missing": "no plan below what a point is proved to has a smaller first integer, none a smaller second one "
    "than the least",
    "front-open": "no strategy is left whose bound contradicts that and cannot be closed",
}
"""Every rule of the judge of fronts: id -> what it demands."""


@dataclass(frozen=True)
class FrontVerification:
    """The judge's answer."""

    ok: bool
    findings: tuple[Finding, ...]
    checks: tuple[str, ...] = field(default=tuple(FRONT_RULES))
    plans: int = 0
    """Plans that were judged."""
    enumerations: int | None = None
    """Degree spaces that the exhaustive check enumerated; absent without it."""
    seconds: float = 0.0


def integer_of(plan: Plan, metric: ObjectiveName) -> int:
    """A metric's integer from the exact integers that a plan states."""
    m = plan.metrics
    match metric:
        case "latency":
            return m.request_latency_ns
        case "ttft":
            return m.ttft_ns
        case "tpot":
            return m.tpot_ns
        case "throughput":
            return -(-m.cycle_ns * THROUGHPUT_SCALE // max(1, m.active_sequences))
        case "efficiency":
            return -(-m.cycle_ns * m.gpus_used // max(1, m.active_sequences))
        case _:
            return m.gpus_used


def verify_front(front: Front, *, exhaustive: bool = False) -> FrontVerification:
    """Judge a front without the solver.

    Parameters
    ----------
    front : the document; nothing in it is believed but the problem
    exhaustive : enumerate the degree space for every claim, too: each point's optimum, and that none is missing
        (two enumerations a point)
    """
    begun, enumerations = time.monotonic(), 0
    findings = [*_shape(front), *(finding for point in front.points for finding in _point(front, point))]
    if exhaustive and not findings:
        for index, point in enumerate(front.points):
            verdict = verify(point.plan, exhaustive=True)
            findings += [Finding("front-plan", f"point {index}: {found}") for found in verdict.findings]
        findings += _missing(front)
        enumerations = 2 * len(front.points) + 1
    return FrontVerification(
        not findings, tuple(findings), plans=len(front.points), enumerations=enumerations if exhaustive else None,
        seconds=time.monotonic() - begun,
    )  # fmt: skip


def _asking(front: Front, objective: ObjectiveName) -> Problem:
    return front.problem.model_copy(update={"objective": Objective(name=objective)})


def _shape(front: Front) -> Iterator[Finding]:
    """What can be said without looking at plans."""
    try:
        metric_pair(front.first, front.second, front.problem)
    except SpecError as error:
        yield Finding("front-metrics", str(error))
    true = front.problem.digest
    if front.problem_digest != true:
        yield Finding(
            "front-digest", f"the front is about problem {front.problem_digest[:16]}, embedded is {true[:16]}"
        )
    if front.problem.objective != Objective(name=front.first):
        name = front.problem.objective.name
        yield Finding("front-digest", f"the problem's objective is {name}, the first metric {front.first}")
    for index, (a, b) in enumerate(pairwise(front.points)):
        if a.first >= b.first or a.second <= b.second:
            yield Finding(
                "front-order", f"points {index} and {index + 1} are ({a.first}, {a.second}) and ({b.first}, {b.second})"
            )
    for index, point in enumerate(front.points):
        if point.proved_to is None:
            continue
        limit = front.points[index - 1].second if index else None
        if point.proved_to < point.second or (limit is not None and point.proved_to >= limit):
            yield Finding("front-proved", f"point {index} with {point.second} is proved to {point.proved_to}")
    if front.points and front.least_second is not None and front.least_second > front.points[-1].second:
        yield Finding("front-proved", f"a point has {front.points[-1].second}, below the least {front.least_second}")
    proper: tuple[str, ...] = ("INFEASIBLE", "UNKNOWN")
    if front.points:
        proper = ("COMPLETE",) if front.is_complete else ("PARTIAL",)
    if front.status not in proper:
        gaps = f"{len(front.points)} points with {len(front.gaps)} gaps"
        yield Finding("front-status", f"the front says {front.status}, {gaps} make {' or '.join(proper)}")


def _point(front: Front, point: FrontPoint) -> Iterator[Finding]:
    """The plan of one point, by the judge of plans, and that it is the plan of this point."""
    plan, where = point.plan, f"point ({point.first}, {point.second})"
    asked = limited(_asking(front, front.second), front.first, point.first)
    if plan.problem != asked:
        yield Finding("front-question", f"{where}: its plan answers problem {plan.problem.digest[:16]}")
        return
    if plan.status != "OPTIMAL":
        yield Finding("front-plan", f"{where}: its plan is {plan.status}, not proved")
    for finding in verify(plan).findings:
        yield Finding("front-plan", f"{where}: {finding}")
    for metric, stated in ((front.first, point.first), (front.second, point.second)):
        true = integer_of(plan, metric)
        if true != stated:
            yield Finding("front-values", f"{where}: the integer of {metric} is {true}")


def _missing(front: Front) -> Iterator[Finding]:
    """Enumerate what the points claim about all other plans."""
    claims = [(front.first, point.proved_to, point.first) for point in front.points]
    if front.least_second is not None:
        claims.append((front.second, None, front.least_second))
    for objective, at_most, least in claims:
        problem = _asking(front, objective)
        if at_most is not None:
            problem = limited(problem, front.second, at_most)
        outcome = Enumeration(problem).below(objective, least, (0, 0), first=True)
        under = "" if at_most is None else f" with {front.second} at most {at_most}"
        if outcome.best is not None:
            better = f"{outcome.best.strategy.full_label}{under} has {objective} {outcome.best.upper}"
            yield Finding("front-missing", f"{better}, below the claimed least {least}")
        elif outcome.open_bound < least:
            yield Finding("front-open", f"a strategy{under} has a lower bound of {outcome.open_bound}, below {least}")
