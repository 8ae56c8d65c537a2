"""The exhaustive check of a claim: no strategy of the space is better than its bound."""

from __future__ import annotations

from dataclasses import dataclass

from solver.cost.metrics import objective_value
from solver.verify.evidence import Evidence
from solver.verify.exhaustive import Enumeration
from solver.verify.finding import Finding


@dataclass(frozen=True)
class Confirmation:
    """What the enumeration found, and how much it covered."""

    findings: tuple[Finding, ...]
    configurations: int


def confirm(evidence: Evidence) -> Confirmation:
    """Enumerate the space of the plan's problem and compare it with the certificate's bound."""
    problem, claim = evidence.problem, evidence.plan.certificate
    name = problem.objective.name
    space = Enumeration(problem)
    findings: list[Finding] = []
    weights = (0, 0)
    if name == "weighted":
        utopia = space.utopia()
        if utopia is None:
            findings.append(Finding("exhaustive-open", "no strategy of the space could be placed"))
            return Confirmation(tuple(findings), space.configurations)
        weights = utopia.weights(problem.objective.latency_weight)
        if evidence.is_complete:
            true = objective_value(name, evidence.figures, weights)
            if true != claim.value:
                sentence = f"the certificate's value is {claim.value}, recomputed {true}"
                findings.append(Finding("certificate-value", sentence))
    outcome = space.below(name, claim.bound, weights, first=True)
    if outcome.best is not None:
        better = outcome.best.strategy
        findings.append(
            Finding(
                "exhaustive-optimum",
                f"{better.full_label} with batch = {better.batch}, micro_batches = {better.micro_batches}, "
                f"prefill_batch = {better.prefill_batch} has the objective integer {outcome.best.upper}, below the "
                f"claimed {claim.bound}",
            )
        )
    elif outcome.open_bound < claim.bound:
        label = "a strategy" if outcome.open is None else outcome.open.full_label
        findings.append(
            Finding(
                "exhaustive-open",
                f"{label} has a lower bound of {outcome.open_bound}, below the claimed {claim.bound}, and no placement "
                "was found that decides it",
            )
        )
    return Confirmation(tuple(findings), space.configurations)
