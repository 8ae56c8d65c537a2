"""The Pareto front of two metrics as a document: points with their plans, and how far between them all is proved."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from solver.errors import SpecError
from solver.plan import Natural, Plan
from solver.specs.document import Document
from solver.specs.problem import ObjectiveName, Problem
from solver.specs.spec import Spec

METRICS: tuple[ObjectiveName, ...] = ("latency", "ttft", "tpot", "throughput", "efficiency", "gpus")
"""Metrics that a front may have."""

FrontStatus = Literal["COMPLETE", "PARTIAL", "INFEASIBLE", "UNKNOWN"]
"""Every point is known, proved; some are; there is no plan at all, proved; nothing is known."""


def metric_pair(first: str, second: str, problem: Problem | None = None) -> tuple[ObjectiveName, ObjectiveName]:
    """The two metrics, checked.

    Raises
    ------
    SpecError
        A name is unknown, both are the same, or the problem fixes the one that counts GPUs.
    """
    known = {str(name): name for name in METRICS}
    for name in (first, second):
        if name not in known:
            raise SpecError(f"a front has no metric {name[:60]!r}; give two of {', '.join(METRICS)}")
    if first == second:
        raise SpecError(f"a front needs two different metrics, not {first} twice")
    if problem is not None and problem.gpus_exact is not None and "gpus" in (first, second):
        raise SpecError(
            f"the problem fixes the GPUs at {problem.gpus_exact}, so they are no metric of a front; give at most so "
            "many (--gpus) instead"
        )
    return known[first], known[second]


class FrontPoint(Spec):
    """One nondominated plan. Integers are those that are minimised, as in a certificate (rates are inverted).

    The plan's own certificate proves that no plan with a first integer of at most `first` has a smaller second one.
    """

    first: Natural
    second: Natural
    proved_to: Natural | None
    """Proved: of all plans whose second integer is at most this, none has a first one below `first`. Absent: of all
    plans whatsoever."""
    plan: Plan


class FrontGap(Spec):
    """A part of the front that was not searched: further points may have a second integer from `low` to `high`."""

    after: Natural
    """Index of the point before it."""
    low: Natural
    high: Natural


class FrontStep(Spec):
    """One solve on the way."""

    objective: ObjectiveName
    limited: ObjectiveName | None
    at_most: Natural | None
    """Limit on the integer of the other metric; absent where there was none."""
    value: Natural | None
    """The proved optimum; absent where the solve was cut short or found that nothing exists."""
    program: str
    """SHA-256 of the program that proved it."""
    wall_s: float


def gaps_between(points: Sequence[FrontPoint], least_second: int | None) -> tuple[FrontGap, ...]:
    """What the points' own claims leave open, first to last."""
    found = []
    for index, (before, after) in enumerate(pairwise(points)):
        reached = after.second if after.proved_to is None else after.proved_to
        if reached < before.second - 1:
            found.append(FrontGap(after=index, low=reached + 1, high=before.second - 1))
    last, least = len(points) - 1, least_second or 0
    if points and least < points[last].second:
        found.append(FrontGap(after=last, low=least, high=points[last].second - 1))
    return tuple(found)


class Front(Document):
    """The points known, by ascending `first` integer, thus descending `second`; and what is proved about the rest."""

    noun: ClassVar[str] = "a front"

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["front"] = "front"
    status: FrontStatus
    first: ObjectiveName
    second: ObjectiveName
    points: tuple[FrontPoint, ...]
    least_second: Natural | None
    """Proved: no plan has a smaller second integer than this."""
    ended: str
    """What ended a front that is not complete."""
    reasons: tuple[str, ...] = ()
    """Where there is no plan: the constraints that exclude every one."""
    problem: Problem
    """The question; its objective is the first metric."""
    problem_digest: str
    steps: tuple[FrontStep, ...] = ()
    wall_s: Annotated[float, Field(ge=0)]
    """Seconds of all runs that this document grew in."""

    @property
    def gaps(self) -> tuple[FrontGap, ...]:
        """Where further points may be; none where the front is complete."""
        return gaps_between(self.points, self.least_second)

    @property
    def is_complete(self) -> bool:
        """Whether every nondominated point is here, as the points' own claims have it."""
        whole = bool(self.points) and self.points[0].proved_to is None and self.least_second is not None
        return whole and not self.gaps

    def __repr__(self) -> str:
        return f"Front({self.status}, {self.first} and {self.second}, {len(self.points)} points, {len(self.gaps)} gaps)"

    __str__ = __repr__
