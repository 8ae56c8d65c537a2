"""What an explanation says, as data: why there is no plan, why not this one, where the winner changes."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from solver.plan import Plan, PlannedStrategy
from solver.specs.document import Document
from solver.specs.problem import ObjectiveName, Problem
from solver.specs.spec import Spec

AxisName = Literal["gpus", "memory", "ttft", "tpot", "request_latency", "concurrency", "isl", "osl"]
"""What may give: the GPUs, the memory of each, a limit, the demand."""
RelaxationStatus = Literal["PROVED", "IMPOSSIBLE", "OPEN"]
"""PROVED: the least change; IMPOSSIBLE: proved that no value helps; OPEN: not decided (the argument says why)."""


class Demand(Spec):
    """A named constraint."""

    name: str
    sentence: str


class Member(Spec):
    """A constraint of the set that excludes every plan."""

    name: str
    sentence: str
    needed: bool
    """Proved: the other members alone admit a plan."""
    plan_without: str | None
    """Label of such a plan (every constraint outside the set dropped, too)."""
    alone: bool | None
    """Whether dropping this one, with all other constraints of the problem kept, admits a plan; None: not decided."""


class Excess(Spec):
    """One limit of the problem beside what a strategy needs of it."""

    name: str
    unit: str
    """``ns``, ``KiB per GPU``, ``GPUs``, ``sequences`` or ``tokens``."""
    asked: int
    needed: int
    kept: bool
    """Whether the limit is kept."""


class Attempt(Spec):
    """The plan that comes nearest."""

    strategy: PlannedStrategy
    gives: tuple[str, ...]
    """Names of the axes or constraints that it does not keep."""
    limits: tuple[Excess, ...]


class Relaxation(Spec):
    """The least change of one number that makes a plan possible, everything else as asked."""

    axis: AxisName
    unit: str
    step: int
    """In the unit; the next value nearer to what was asked is proved to have no plan."""
    asked: int
    status: RelaxationStatus
    value: int | None
    """Absent when nothing on this axis helps, or nothing is known."""
    excluded: int | None
    """The nearest value that is proved to have no plan: one step from `value` when PROVED."""
    argument: str
    """What is proved, and by what; what is assumed."""
    plan: Plan | None
    """A plan of the relaxed problem."""


class Term(Spec):
    """One part of the objective: of the winner, and of the strategy that was named."""

    name: str
    unit: str
    winner: float
    named: float


class WhyNot(Spec):
    """Why a strategy that the caller named is not the answer."""

    asked: str
    verdict: Literal["rule", "excluded", "loses", "ties", "wins", "open"]
    """rule: it breaks one; excluded: no plan has these decisions; loses or ties: against the winner; wins: it is the
    winner; open: the time was over."""
    sentence: str
    broken: tuple[Demand, ...] = ()
    """The first broken rule, or the minimal set that excludes every plan with these decisions."""
    terms: tuple[Term, ...] = ()
    """Parts of the objective, which they add up to."""
    named: Plan | None = None
    """The best plan with the named decisions; proved the best where its status is OPTIMAL."""


class Explanation(Document):
    """The answer of ``explain``."""

    noun: ClassVar[str] = "an explanation"

    kind: Literal["explanation"] = "explanation"
    schema_version: Literal["1.0"] = "1.0"
    status: Literal["INFEASIBLE", "FEASIBLE", "OPTIMAL", "UNKNOWN"]
    """INFEASIBLE is proved; OPTIMAL and FEASIBLE are the winner's status; UNKNOWN: neither a plan nor a proof."""
    complete: bool
    """Whether every step was proved: the set is minimal, every relaxation PROVED or IMPOSSIBLE, every plan OPTIMAL."""
    members: tuple[Member, ...] = ()
    attempt: Attempt | None = None
    relaxations: tuple[Relaxation, ...] = ()
    winner: Plan | None = None
    why_not: WhyNot | None = None
    remarks: tuple[str, ...] = ()
    problem: Problem
    problem_digest: str
    questions: Annotated[int, Field(ge=0)]
    """Problems that were solved or excluded on the way."""
    wall_s: float

    def __repr__(self) -> str:
        if self.status == "INFEASIBLE":
            names = ", ".join(member.name for member in self.members)
            return f"Explanation(INFEASIBLE: {names}; {len(self.relaxations)} relaxations)"
        if self.why_not is not None:
            return f"Explanation({self.why_not.asked} {self.why_not.verdict}: {self.why_not.sentence})"
        return f"Explanation({self.status})"

    __str__ = __repr__


class Probe(Spec):
    """One exact solve of a what-if."""

    value: int
    status: Literal["OPTIMAL", "FEASIBLE", "INFEASIBLE", "UNKNOWN"]
    label: str | None
    """Full label of the winner; absent without a plan."""
    signature: str | None
    """Its degrees without replicas and knobs: winners of equal signature count as the same."""
    gpus: int | None
    objective: float | None
    """In the unit of the objective."""
    wall_s: float


class Interval(Spec):
    """Values of the parameter between which the winner's degrees stay the same."""

    first: int
    last: int
    """Both inclusive, in steps of the parameter."""
    signature: str | None
    """Absent where there is no plan."""
    status: Literal["OPTIMAL", "FEASIBLE", "INFEASIBLE", "UNKNOWN"]
    """Of its probes: OPTIMAL (or INFEASIBLE) when all are proved."""
    objective_first: float | None
    objective_last: float | None
    proved: bool
    """Whether it is proved of every value in between, and not only of the probes."""


class WhatIf(Document):
    """The answer of ``what-if``: how the optimum moves along one parameter."""

    noun: ClassVar[str] = "a what-if"

    kind: Literal["what-if"] = "what-if"
    schema_version: Literal["1.0"] = "1.0"
    parameter: str
    unit: str
    step: int
    first: int
    last: int
    objective: ObjectiveName
    objective_unit: str
    probes: tuple[Probe, ...]
    intervals: tuple[Interval, ...]
    breakpoints: tuple[int, ...]
    """First value of every interval but the first; the winner changes between the step before and it."""
    complete: bool
    """Whether every probe was proved and every breakpoint is narrowed to one step."""
    remarks: tuple[str, ...]
    problem: Problem
    wall_s: float

    def __repr__(self) -> str:
        return f"WhatIf({self.parameter}: {len(self.intervals)} intervals, breakpoints {self.breakpoints})"

    __str__ = __repr__
