"""The answer for several scenarios: one deployment, what it does in each, and what each could have had alone."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from solver.certificate import Iteration, Parameters, Status, Versions, WallTimes
from solver.plan import Evaluation, Natural, Plan, PlannedStrategy
from solver.specs.document import Document
from solver.specs.problem import Problem
from solver.specs.scenarios import Over, Scenarios
from solver.specs.spec import Spec

COMMON = (
    "attn_tp", "attn_dp", "moe_tp", "moe_ep", "pp", "replicas", "micro_batches", "mesh_order", "decode_dispatch",
    "prefill_dispatch", "decode_overlap", "prefill_overlap",
)  # fmt: skip
"""Decisions of a strategy that an engine fixes when it starts; one layout of stages and one expert map besides.

The others a running engine adapts: residents up to the launched most, prompts by its chunk budget, all-reduce
algorithms by message size. The assignment of sequences to ranks follows the sequences.
"""


class ScenarioResult(Spec):
    """One scenario under the common deployment."""

    name: str
    part: Annotated[int, Field(ge=1)]
    """Weight, of the sum of all parts."""
    value: Natural
    """Objective integer of the deployment here."""
    own_value: Natural
    """Objective integer of the scenario's own optimum."""
    own_bound: Natural
    """What is proved of it; equal to `own_value` where it is proved."""
    regret: Natural
    """``ceil(scale * (value - own_bound) / own_bound)``."""
    natural: float
    """`value` in the unit of the metric."""
    own_natural: float
    plan: Evaluation
    """The deployment in this scenario: metrics, memory, placement, the scenario's problem."""
    own: Plan
    """The plan that this scenario would have had alone, with its certificate."""


class ScenarioClaim(Spec):
    """What is claimed of the whole: no deployment of the space has a smaller total than the bound."""

    over: Over
    value: Natural
    """Sum of parts times objective integers, or the largest regret integer."""
    bound: Natural
    gap: float
    """``(value - bound) / value``."""
    scale: Annotated[int, Field(ge=1)]
    """Regret integers per 100 %."""
    unit: str
    natural: float
    """Mean objective in `unit`, or the largest regret as a share."""
    iterations: tuple[Iteration, ...]
    program_digest: str
    versions: Versions
    parameters: Parameters
    wall_s: WallTimes


class ScenarioPlan(Document):
    """One deployment for all scenarios: proved (OPTIMAL), or the best found with its gap (FEASIBLE)."""

    noun: ClassVar[str] = "a scenario plan"

    kind: Literal["scenario-plan"] = "scenario-plan"
    schema_version: Literal["1.0"] = "1.0"
    status: Status
    claim: ScenarioClaim
    launched: PlannedStrategy
    """The deployment as it is started: the common decisions, with the largest batches of all scenarios."""
    scenarios: tuple[ScenarioResult, ...]
    problem: Problem
    """The question before any scenario replaced its workload."""
    asked: Scenarios
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        return (
            f"ScenarioPlan({self.status}, {self.launched.label}, {len(self.scenarios)} scenarios, "
            f"{self.claim.over} = {self.claim.natural:g} {self.claim.unit}, gap {self.claim.gap:.2%})"
        )

    __str__ = __repr__
