"""The judge of alternatives: each one a plan that holds, with the value and the reasons that are stated."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pydantic import ValidationError

from solver.cost.metrics import Utopia, natural_value, objective_value
from solver.cost.terms import differences, objective_terms
from solver.plan import Alternative, Plan
from solver.specs.spec import one_sentence
from solver.verify import claimed
from solver.verify.evidence import Evidence, evidence_of
from solver.verify.exhaustive import Enumeration
from solver.verify.finding import Finding
from solver.verify.rules import DEPLOYED, Rule

TOLERANCE = 1e-9
"""Relative: shares are divisions of exact integers."""
COSTED: tuple[Rule, ...] = (
    claimed.memory,
    claimed.metrics,
    claimed.breakdown,
    claimed.slos,
)


def utopia_of(plan: Plan) -> Utopia | None:
    """Utopia values that the certificate states."""
    stated = plan.certificate.utopia
    return None if stated is None else Utopia(stated.latency_ns, stated.inverse_efficiency_ns)


def alternatives(evidence: Evidence) -> Iterator[Finding]:
    """Every rule on the alternatives that a plan states."""
    plan = evidence.plan
    if plan.alternatives is None:
        return
    ranked = plan.alternatives.ranked
    if len(ranked) > plan.alternatives.asked:
        yield Finding("alternatives", f"{len(ranked)} are ranked, {plan.alternatives.asked} were asked for")
    seen, least = {evidence.strategy.degrees: 1}, plan.certificate.value
    for rank, other in enumerate(ranked, start=2):
        if other.rank != rank:
            yield Finding("alternatives", f"place {rank} states rank {other.rank}")
        if other.value < least:
            yield Finding("alternatives", f"rank {rank} has {other.value}, below the rank before with {least}")
        try:
            strategy = other.strategy.strategy()
        except ValidationError as error:
            yield Finding("alternatives", f"rank {rank}: {one_sentence(error)}")
            continue
        twin = seen.setdefault(strategy.degrees, rank)
        if twin != rank:
            yield Finding("alternatives", f"ranks {twin} and {rank} have the same degrees {strategy.full_label}")
        least = max(least, other.value)
        yield from _one(plan, other)


def _one(plan: Plan, other: Alternative) -> Iterator[Finding]:
    """The alternative judged as the plan would be."""
    changes = {name: getattr(other, name) for name in ("strategy", "metrics", "breakdown", "memory", "placement")}
    evidence = evidence_of(plan.model_copy(update=changes), other.strategy.strategy())
    findings = [finding for rule in DEPLOYED for finding in rule(evidence)]
    costed = evidence.is_complete and not findings
    findings += [finding for rule in COSTED if costed for finding in rule(evidence)]
    yield from (Finding("alternatives", f"rank {other.rank}: {finding}") for finding in findings)
    if findings or not costed:
        return
    utopia, problem = utopia_of(plan), plan.problem
    weights = (0, 0) if utopia is None else utopia.weights(problem.objective.latency_weight)
    value, best = objective_value(problem.objective.name, evidence.figures, weights), max(1, plan.certificate.value)
    terms = [objective_terms(problem, each.metrics, each.breakdown, utopia) for each in (plan, other)]
    why = [(name, more / best) for name, more in differences(terms[0], terms[1])]
    stated = [(each.term, each.share) for each in other.why]
    natural = natural_value(problem.objective.name, value, problem.workload.osl)
    if other.value != value:
        yield Finding("alternatives", f"rank {other.rank} states {other.value}, recomputed {value}")
    if not math.isclose(other.objective, natural, rel_tol=TOLERANCE):
        yield Finding("alternatives", f"rank {other.rank} states {other.objective}, recomputed {natural}")
    if not math.isclose(other.distance, value / best - 1, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        yield Finding("alternatives", f"rank {other.rank} states a distance of {other.distance}, {value / best - 1}")
    same = len(why) == len(stated) and all(
        a == b and math.isclose(x, y, rel_tol=1e-6, abs_tol=TOLERANCE)
        for (a, x), (b, y) in zip(why, stated, strict=True)
    )
    if not same:
        yield Finding("alternatives", f"rank {other.rank} states the terms {stated}, recomputed {why}")


def confirm_alternatives(evidence: Evidence) -> Iterator[Finding]:
    """Enumerate the space without the degrees of better ranks: nothing there may be better than the next rank."""
    plan = evidence.plan
    stated, utopia = plan.alternatives, utopia_of(plan)
    if stated is None:
        return
    weights = (0, 0) if utopia is None else utopia.weights(plan.problem.objective.latency_weight)
    taken = [evidence.strategy.degrees]
    for other in stated.ranked:
        space = Enumeration(plan.problem, tuple(taken))
        outcome = space.below(plan.problem.objective.name, other.value, weights, first=True)
        if outcome.best is not None:
            better = f"{outcome.best.strategy.full_label} has {outcome.best.upper}"
            yield Finding("alternatives", f"{better}, below the {other.value} of rank {other.rank}")
        elif outcome.open_bound < other.value:
            yield Finding("exhaustive-open", f"rank {other.rank}: a strategy's bound of {outcome.open_bound} is open")
        taken.append(other.strategy.strategy().degrees)
    if stated.complete:
        best = Enumeration(plan.problem, tuple(taken)).minimum(plan.problem.objective.name, weights)
        if best is not None:
            yield Finding("alternatives", f"the ranks are called complete, but {best.strategy.full_label} is a plan")
