"""What a sweep finds, as data: the outcome of each problem, the points that were asked, and the two together."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from solver.certificate import Parameters, Versions
from solver.plan import Metrics, Plan, PlannedStrategy
from solver.specs.problem import ObjectiveName
from solver.specs.spec import Spec

OutcomeStatus = Literal["OPTIMAL", "FEASIBLE", "INFEASIBLE", "UNKNOWN", "REFUSED", "FAILED", "CRASHED"]
"""CP-SAT's four, and three ways to have no answer: the words make no problem, the solve raised an error, its process
died."""
PROVED: tuple[OutcomeStatus, ...] = ("OPTIMAL", "INFEASIBLE")
BROKEN: tuple[OutcomeStatus, ...] = ("FAILED", "CRASHED")

Scalar = str | int | float | bool | None


class Answer(Spec):
    """The plan of a problem in the few numbers that one compares; the whole document is the file of its digest."""

    objective: ObjectiveName
    value: float
    """Objective in `unit`."""
    bound: float
    gap: float
    unit: str
    strategy: PlannedStrategy
    metrics: Metrics
    memory_kib: int
    """Ledger of the fullest rank."""

    @classmethod
    def of(cls, plan: Plan) -> Answer:
        """The numbers of a plan."""
        claim = plan.objective
        return cls(
            objective=claim.name,
            value=claim.value,
            bound=claim.bound,
            gap=claim.gap,
            unit=claim.unit,
            strategy=plan.strategy,
            metrics=plan.metrics,
            memory_kib=max(stage.total_kib for stage in plan.memory),
        )

    @property
    def shape(self) -> str:
        """Degrees of one instance, without its replicas: what "the same strategy" means across cluster sizes."""
        return self.strategy.full_label.rpartition("-")[0]


class Outcome(Spec):
    """What one problem came to; one file, which names the problem by its digest."""

    schema_version: Literal["1.0"] = "1.0"
    digest: str
    status: OutcomeStatus
    reasons: tuple[str, ...] = ()
    """Why there is no plan."""
    answer: Answer | None = None
    plan_sha256: str | None = None
    """Of the plan's file."""
    versions: Versions
    parameters: Parameters


@dataclass(frozen=True)
class Axis:
    """One direction of a sweep: what varies along it, and its values in the order of the file."""

    name: str
    """A field, or several joined by ``+`` where they vary together."""
    labels: tuple[str, ...]

    @property
    def numbers(self) -> tuple[float, ...] | None:
        """The values as numbers, if all of them are."""
        try:
            return tuple(float(label) for label in self.labels)
        except ValueError:
            return None


@dataclass(frozen=True)
class Row:
    """One point of a sweep and its outcome."""

    index: int
    at: tuple[int, ...]
    """Position on every axis."""
    words: dict[str, Scalar | tuple[str, ...]]
    """The fields of the question that the sweep file gives."""
    objective: ObjectiveName
    outcome: Outcome


@dataclass(frozen=True)
class Swept:
    """A finished sweep. A file of the folder is named where it was written."""

    name: str
    axes: tuple[Axis, ...]
    rows: tuple[Row, ...]
    folder: str
    reused: int = 0
    """Problems whose outcome was in the folder already."""
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    """What was not written, and the extra to install for it."""

    @property
    def counts(self) -> dict[OutcomeStatus, int]:
        """Points by status, in the order of :data:`OutcomeStatus`."""
        counted = Counter(row.outcome.status for row in self.rows)
        order: tuple[OutcomeStatus, ...] = (
            "OPTIMAL", "FEASIBLE", "INFEASIBLE", "UNKNOWN", "REFUSED", "FAILED", "CRASHED",
        )  # fmt: skip
        return {status: counted[status] for status in order if counted[status]}

    @property
    def proved(self) -> bool:
        """Whether every point has its proved answer: an optimal plan, or that there is none."""
        return all(row.outcome.status in PROVED for row in self.rows)
