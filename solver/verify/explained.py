"""The judge of an explanation: its plans are plans of what they claim to answer, and of nothing that was excluded.

That no plan exists is a proof of the search and cannot be read off a document; what can is refuted here: a plan that
would answer the question as asked, a relaxation that changes more than its axis, a value that is not tight.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from solver.explanation import AxisName, Explanation, Relaxation, Term
from solver.plan import Plan
from solver.specs.problem import Problem
from solver.verify import Verification, verify
from solver.verify.claimed import legality, memory, slos
from solver.verify.evidence import Evidence, evidence_of
from solver.verify.finding import Finding

EXPLANATION_RULES: dict[str, str] = {
    "digest": "the document is about the problem that it embeds",
    "explained-status": "INFEASIBLE names constraints and no winner; a winner is a plan of the problem",
    "relaxed-plan": "the plan of a relaxation is a plan: every rule of the judge",
    "relaxed-problem": "a relaxation changes its own axis to its value, and nothing else",
    "relaxed-asked": "the plan of a relaxation is no plan of the problem as asked",
    "relaxed-tight": "a PROVED relaxation names the excluded value one step before, and its plan is none there",
    "why-not": "the named strategy's plan is a plan, no better than the winner; the terms add up to the objective",
}
"""Rules of the judge on an explanation."""
FIELDS_OF_AXIS: dict[AxisName, tuple[str, ...]] = {
    "gpus": ("gpus_exact", "gpus_at_most", "cluster.num_gpus"),
    "memory": ("cluster.gpu.memory",),
    "ttft": ("workload.slo.ttft",),
    "tpot": ("workload.slo.tpot",),
    "request_latency": ("workload.slo.request_latency",),
    "concurrency": ("workload.concurrency", "workload.isl_list"),
    "isl": ("workload.isl", "workload.isl_range.min", "workload.isl_range.max", "workload.isl_list"),
    "osl": ("workload.osl",),
}
"""What a relaxation along an axis may change in a problem."""
TERM_TOLERANCE = 1e-6
"""Relative: terms are floats, and the objective's integer was rounded up."""


def verify_explanation(explanation: Explanation) -> Verification:
    """Judge an explanation without the solver."""
    begun = time.monotonic()
    findings = [
        *_status(explanation),
        *(finding for relaxation in explanation.relaxations for finding in _relaxation(explanation, relaxation)),
        *_why_not(explanation),
    ]
    return Verification(not findings, tuple(findings), tuple(EXPLANATION_RULES), None, time.monotonic() - begun)


def _status(explanation: Explanation) -> Iterator[Finding]:
    if explanation.problem_digest != explanation.problem.digest:
        yield Finding(
            "digest",
            f"the document is about problem {explanation.problem_digest[:16]}, the embedded one is "
            f"{explanation.problem.digest[:16]}",
        )
    winner = explanation.winner
    if explanation.status == "INFEASIBLE" and winner is not None:
        yield Finding("explained-status", "it calls the problem INFEASIBLE and names a winner")
    if explanation.status in ("OPTIMAL", "FEASIBLE"):
        if winner is None or winner.status != explanation.status:
            yield Finding("explained-status", f"it says {explanation.status}, but its winner is not")
        elif winner.problem != explanation.problem:
            yield Finding("explained-status", "the winner is a plan of another problem")
        else:
            yield from _of_plan("explained-status", winner)


def _of_plan(rule: str, plan: Plan) -> Iterator[Finding]:
    for finding in verify(plan).findings:
        yield Finding(rule, str(finding))


def _relaxation(explanation: Explanation, relaxation: Relaxation) -> Iterator[Finding]:
    plan, axis, value = relaxation.plan, relaxation.axis, relaxation.value
    if relaxation.status == "PROVED" and (value is None or relaxation.excluded is None):
        yield Finding("relaxed-tight", f"{axis}: PROVED without a value, or without the excluded one before it")
    if plan is None or value is None:
        return
    for finding in _of_plan("relaxed-plan", plan):
        yield Finding(finding.rule, f"{axis}: {finding.sentence}")
    asked = explanation.problem
    changed = sorted(_differences(_tree(asked), _tree(plan.problem)))
    foreign = [path for path in changed if path not in FIELDS_OF_AXIS[axis]]
    if foreign:
        yield Finding("relaxed-problem", f"{axis}: it changes {', '.join(foreign)}, too")
    if _value_of(axis, plan.problem) != value:
        yield Finding("relaxed-problem", f"{axis}: its plan is of {_value_of(axis, plan.problem)}, not of {value}")
    if foreign or (axis == "concurrency" and not asked.workload.is_uniform):
        return
    if not _broken(plan, asked):
        yield Finding("relaxed-asked", f"{axis}: {plan.strategy.full_label} is a plan of the problem as asked")
    if relaxation.status == "PROVED" and relaxation.excluded is not None:
        before = _at(axis, plan.problem, asked, relaxation.excluded)
        if before is not None and not _broken(plan, before):
            yield Finding(
                "relaxed-tight", f"{axis}: {plan.strategy.full_label} is a plan at {relaxation.excluded}, too"
            )


def _broken(plan: Plan, problem: Problem) -> bool:
    """Whether a plan breaks a rule, the memory or a limit of another problem."""
    evidence = evidence_of(plan.model_copy(update={"problem": problem}), plan.strategy.strategy())
    return any(True for rule in (legality, memory_fits, slos) for _ in rule(evidence))


def memory_fits(evidence: Evidence) -> Iterator[Finding]:
    """Of the memory rule only that every rank fits: a ledger of another problem may differ in its items."""
    yield from (finding for finding in memory(evidence) if finding.rule == "memory")


def _at(axis: AxisName, relaxed: Problem, asked: Problem, value: int) -> Problem | None:
    """The relaxed problem with another value, where that is one field; None where it takes more."""
    if axis == "memory":
        gpu = relaxed.cluster.gpu.model_copy(update={"memory": value})
        return relaxed.model_copy(update={"cluster": relaxed.cluster.model_copy(update={"gpu": gpu})})
    if axis in ("ttft", "tpot", "request_latency"):
        slo = relaxed.workload.slo.model_copy(update={axis: value})
        return relaxed.model_copy(update={"workload": relaxed.workload.model_copy(update={"slo": slo})})
    if axis == "gpus" and asked.gpus_exact is None and value <= asked.cluster.num_gpus:
        return asked.model_copy(update={"gpus_at_most": value})
    return None


def _value_of(axis: AxisName, problem: Problem) -> int | None:
    workload, slo = problem.workload, problem.workload.slo
    return {
        "gpus": problem.gpu_budget,
        "memory": problem.cluster.gpu.memory,
        "ttft": slo.ttft,
        "tpot": slo.tpot,
        "request_latency": slo.request_latency,
        "concurrency": workload.concurrency,
        "isl": workload.longest_isl,
        "osl": workload.osl,
    }[axis]


def _tree(problem: Problem) -> dict[str, object]:
    return problem.model_dump()


def _differences(one: object, other: object, path: str = "") -> Iterator[str]:
    """Paths of the leaves (lists count as leaves) in which two documents differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted({*one, *other}):
            yield from _differences(one.get(name), other.get(name), f"{path}.{name}" if path else str(name))
    elif one != other:
        yield path


def _why_not(explanation: Explanation) -> Iterator[Finding]:
    why, winner = explanation.why_not, explanation.winner
    if why is None or winner is None:
        return
    if why.named is not None:
        yield from _of_plan("why-not", why.named)
        if why.named.certificate.value < winner.certificate.value and winner.status == "OPTIMAL":
            yield Finding("why-not", f"{why.asked} is better than the winner, which is called OPTIMAL")
        pins = why.named.problem.model_copy(update={"pins": explanation.problem.pins})
        if pins != explanation.problem:
            yield Finding("why-not", f"the plan of {why.asked} answers another problem")
        if explanation.problem.objective.name not in ("weighted", "gpus"):
            yield from _sums(explanation, why.terms, why.named)


def _sums(explanation: Explanation, terms: tuple[Term, ...], named: Plan) -> Iterator[Finding]:
    """Throughput's integer is in ps, its terms in ns."""
    assert explanation.winner is not None
    scale = 1000 if explanation.problem.objective.name == "throughput" else 1
    for what, total, plan in (
        ("winner", sum(term.winner for term in terms), explanation.winner),
        ("named strategy", sum(term.named for term in terms), named),
    ):
        if not math.isclose(total * scale, plan.certificate.value, rel_tol=TERM_TOLERANCE, abs_tol=scale):
            yield Finding(
                "why-not",
                f"the terms of the {what} add up to {total * scale:.0f}, its objective is {plan.certificate.value}",
            )
