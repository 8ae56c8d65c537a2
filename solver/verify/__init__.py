"""The judge: every rule of a plan again, plainly, without the solver.

Reading order: :mod:`finding` (the rules), :mod:`evidence`, :mod:`placed`, :mod:`ranks`, :mod:`claimed`; then, for the
exhaustive check, :mod:`confirm`, :mod:`legal`, :mod:`tables`, :mod:`blocks`, :mod:`stages`, :mod:`exhaustive`,
:mod:`realise`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from pydantic import ValidationError

from solver.plan import Plan
from solver.scenarioplan import ScenarioPlan
from solver.specs.spec import one_sentence
from solver.verify import claimed, ranks
from solver.verify.alternatives import alternatives, confirm_alternatives
from solver.verify.confirm import confirm
from solver.verify.evidence import evidence_of
from solver.verify.finding import VERIFY_RULES, Finding
from solver.verify.joint import confirm_joint
from solver.verify.rules import COSTED, DEPLOYED, UNCOSTED, Rule
from solver.verify.scenarios import judge_scenarios

__all__ = ["VERIFY_RULES", "Finding", "Verification", "verify"]

SHAPE_RULES: tuple[Rule, ...] = (
    claimed.digest,
    *DEPLOYED,
    claimed.objective,
    claimed.bound,
    claimed.gap,
    claimed.status,
    claimed.space,
)
"""Rules that every plan can be asked."""
COST_RULES: tuple[Rule, ...] = (
    *COSTED,
    claimed.certificate_value,
    claimed.objective_claim,
    alternatives,
)
"""Rules that need stages which cover the layers."""


@dataclass(frozen=True)
class Verification:
    """The judge's answer."""

    ok: bool
    findings: tuple[Finding, ...]
    checks: tuple[str, ...]
    """Names of the rules that were examined, in order."""
    configurations: int | None
    """Joint configurations that the exhaustive check covered; absent without it."""
    seconds: float
    records: int = 0
    """Ranks whose expanded records were compared with what their class holds."""
    unjudged: tuple[str, ...] = ()
    """Claims that are too large for the judge's own arithmetic: neither confirmed nor refuted."""


def verify(plan: Plan | ScenarioPlan, *, exhaustive: bool = False, full: bool = False) -> Verification:
    """Judge a plan without the solver.

    Every rule of :data:`VERIFY_RULES` is examined on the plan itself: times, memory and balance are recomputed from
    the placement. With `exhaustive`, the whole degree space is enumerated by independent vectorised arithmetic, and
    the plan is acquitted only if no strategy in it is better than the claimed bound.

    Parameters
    ----------
    plan : the document; nothing in it is believed but the problem
    exhaustive : enumerate the degree space, too (seconds instead of milliseconds)
    full : compare the expanded record of every rank, not of a sample of 4,096, with what its symmetry class holds
    """
    begun = time.monotonic()
    if isinstance(plan, ScenarioPlan):
        return _verify_scenarios(plan, begun, exhaustive=exhaustive)
    findings: list[Finding] = []
    checks: list[str] = []
    configurations: int | None = None
    try:
        strategy = plan.strategy.strategy()
    except ValidationError as error:
        findings.append(Finding("identity", one_sentence(error)))
        return Verification(False, tuple(findings), ("identity",), None, time.monotonic() - begun)
    evidence = evidence_of(plan, strategy, full=full)
    rules = [*SHAPE_RULES, *(COST_RULES if evidence.is_complete else ())]
    for rule in rules:
        if rule in COST_RULES and any(finding.rule in UNCOSTED for finding in findings):
            continue
        checks.append(rule.__name__)
        findings += rule(evidence)
    compared = 0
    if not findings:
        checks.append("records")
        compared, wrong = ranks.records(evidence)
        findings += wrong
    if exhaustive:
        confirmation = confirm(evidence)
        checks.append("exhaustive")
        findings += [*confirmation.findings, *confirm_alternatives(evidence)]
        configurations = confirmation.configurations
    seconds = time.monotonic() - begun
    return Verification(not findings, tuple(findings), tuple(checks), configurations, seconds, compared)


def _verify_scenarios(plan: ScenarioPlan, begun: float, *, exhaustive: bool) -> Verification:
    """A plan for several scenarios: the deployment in each, the whole, and every own optimum as a plan of its own."""
    found, checks = judge_scenarios(plan)
    findings, configurations = list(found), 0
    for result in plan.scenarios:
        own = verify(result.own, exhaustive=exhaustive)
        findings += [Finding(f.rule, f"{result.name} alone: {f.sentence}") for f in own.findings]
        configurations += own.configurations or 0
    if exhaustive and not findings:
        findings += confirm_joint(plan)
    names = (*checks, "own plans", *(["exhaustive"] if exhaustive else []))
    covered = configurations if exhaustive else None
    return Verification(not findings, tuple(findings), names, covered, time.monotonic() - begun)
