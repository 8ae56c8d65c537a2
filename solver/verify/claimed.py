"""Rules on what a plan claims: digest, labels, memory, metrics, SLOs, objective, bound, status."""

from __future__ import annotations

import math
from collections.abc import Iterator

from solver.cost.closed_loop import predict_strategy
from solver.cost.horizon import horizon_violations
from solver.cost.ledger import stage_ledgers
from solver.cost.metrics import (
    NATURAL_UNITS,
    OBJECTIVE_UNITS,
    THROUGHPUT_SCALE,
    WEIGHTED_SCALE,
    Utopia,
    objective_value,
)
from solver.cost.sources import operator_sources as sources_of
from solver.degrees import domains_of
from solver.legality import violations
from solver.plan import Breakdown, StageLedger
from solver.strategy import packing_of
from solver.verify.evidence import Evidence
from solver.verify.finding import Finding

FLOAT_TOLERANCE = 1e-9
"""Relative: rates are one division of exact integers, so only the last digits may differ."""


def digest(evidence: Evidence) -> Iterator[Finding]:
    """The certificate belongs to this problem."""
    stated, true = evidence.plan.certificate.digests.problem, evidence.problem.digest
    if stated != true:
        yield Finding("digest", f"the certificate is about problem {stated[:16]}, the embedded one is {true[:16]}")


def labels(evidence: Evidence) -> Iterator[Finding]:
    """Labels say the degrees."""
    planned, true = evidence.plan.strategy, evidence.strategy
    for name, stated, wanted in (
        ("label", planned.label, true.label),
        ("full_label", planned.full_label, true.full_label),
    ):
        if stated != wanted:
            yield Finding("labels", f"{name} is {stated!r}, the degrees make {wanted!r}")


def legality(evidence: Evidence) -> Iterator[Finding]:
    """Every rule of :data:`solver.strategy.RULES` but memory and SLOs."""
    for violation in violations(evidence.problem, evidence.strategy):
        yield Finding(violation.rule, violation.sentence)


def memory(evidence: Evidence) -> Iterator[Finding]:
    """The ledger is the recomputed one, and fits."""
    true, stated = stage_ledgers(evidence.leaves, evidence.strategy, evidence.blocks), evidence.plan.memory
    if len(stated) != len(true):
        yield Finding("ledger", f"the ledger has {len(stated)} stages, pp = {len(true)}")
    for ledger, claim in zip(true, stated, strict=False):
        yield from _compare(ledger, claim)
    for ledger in true:
        if ledger.total_kib > ledger.capacity_kib:
            yield Finding(
                "memory",
                f"stage {ledger.stage} needs {ledger.total_kib} KiB per GPU, {ledger.capacity_kib} KiB are usable",
            )


def _compare(true: StageLedger, stated: StageLedger) -> Iterator[Finding]:
    for name in ("stage", "first_layer", "num_layers", "capacity_kib"):
        if getattr(true, name) != getattr(stated, name):
            yield Finding(
                "ledger",
                f"stage {true.stage}: {name} is {getattr(stated, name)}, recomputed {getattr(true, name)}",
            )
    for item in sorted({*true.items_kib, *stated.items_kib}):
        held, claim = true.items_kib.get(item), stated.items_kib.get(item)
        if held != claim:
            yield Finding("ledger", f"stage {true.stage}: {item} is {claim} KiB, recomputed {held}")


def metrics(evidence: Evidence) -> Iterator[Finding]:
    """Every metric recomputed."""
    figures, stated = evidence.figures, evidence.plan.metrics
    rate = figures.throughput_tokens_per_s(evidence.problem.workload.osl)
    true: dict[str, int | float] = {
        "ttft_ns": figures.ttft_ns,
        "tpot_ns": figures.tpot_ns,
        "request_latency_ns": figures.request_latency_ns,
        "throughput_tokens_per_s": rate,
        "efficiency_tokens_per_s_per_gpu": rate / figures.gpus,
        "gpus_used": figures.gpus,
        "decode_step_ns": figures.decode_ns,
        "prefill_round_ns": figures.round_ns,
        "rounds_per_cycle": figures.rounds,
        "cycle_ns": figures.cycle_ns,
        "active_sequences": figures.active,
    }
    for name, value in true.items():
        claim = getattr(stated, name)
        same = math.isclose(claim, value, rel_tol=FLOAT_TOLERANCE) if isinstance(value, float) else claim == value
        if not same:
            yield Finding("metrics", f"{name} is {claim}, recomputed {value}")


def closed_loop(evidence: Evidence) -> Iterator[Finding]:
    """The closed-loop means recomputed, where the plan states them."""
    stated = evidence.plan.closed_loop
    if stated is None:
        return
    strategy, problem = evidence.strategy, evidence.problem
    packing = packing_of(problem, strategy)
    true = predict_strategy(evidence.leaves, strategy, packing, evidence.decode.blocks.lambda_ppm)
    free = problem.workload.concurrency
    for name, value in (
        ("concurrency", strategy.slots if free is None else free),
        ("ttft_ns", int(true.ttft_ns)),
        ("tpot_ns", int(true.tpot_ns)),
        ("wait_ns", int(true.wait_ns)),
        ("resident_per_replica", int(true.resident)),
    ):
        if getattr(stated, name) != value:
            yield Finding("closed-loop", f"{name} is {getattr(stated, name)}, recomputed {value}")


def operator_sources(evidence: Evidence) -> Iterator[Finding]:
    """What the times rest on, found again, where the plan states it."""
    stated = evidence.plan.operator_sources
    if not stated:
        return
    true = sources_of(evidence.problem, evidence.strategy, evidence.decode.blocks)
    for entry in sorted(set(stated) ^ set(true), key=str):
        words = "is stated, but does not enter" if entry in stated else "enters, but is not stated"
        yield Finding("operator-sources", f"{entry.operator} from {entry.source} {words}")


def breakdown(evidence: Evidence) -> Iterator[Finding]:
    """Components add up to the decode step (before speculation divides it) and to the TTFT."""
    decode, stages = evidence.decode, evidence.decode.stage_times()
    path = sum(stages) + (evidence.strategy.pp - 1) * decode.hop_ns + decode.return_ns
    step = max(path, evidence.strategy.micro_batches * max(stages)) + evidence.leaves.host_ns
    stated: Breakdown = evidence.plan.breakdown
    for name, parts, true in (
        ("decode step", stated.decode, step),
        ("prefill", stated.prefill, evidence.figures.ttft_ns),
    ):
        total = sum(part.ns for part in parts)
        if total != true:
            yield Finding("breakdown", f"the components of the {name} add up to {total} ns, its time is {true} ns")


def slos(evidence: Evidence) -> Iterator[Finding]:
    """Hard limits on the recomputed metrics, and the horizon of the model."""
    slo, figures = evidence.problem.workload.slo, evidence.figures
    for rule, name, value, limit in (
        ("slo-ttft", "TTFT", figures.ttft_ns, slo.ttft),
        ("slo-tpot", "TPOT", figures.tpot_ns, slo.tpot),
        ("slo-request-latency", "request latency", figures.request_latency_ns, slo.request_latency),
    ):
        if limit is not None and value > limit:
            yield Finding(rule, f"{name} is {value} ns, the SLO is {limit} ns")
    for beyond in horizon_violations(evidence.problem, figures):
        yield Finding(beyond.rule, beyond.sentence)
    tokens = figures.active * evidence.problem.workload.osl * 10**9  # output tokens of a cycle, times ns per second
    for rule, name, width, least in (
        ("slo-throughput", "throughput", 1, slo.min_throughput),
        ("slo-efficiency", "efficiency", figures.gpus, slo.min_efficiency),
    ):
        if least is not None and tokens < least * figures.cycle_ns * width:
            reached = tokens / (figures.cycle_ns * width)
            yield Finding(rule, f"{name} is {reached:.9g} tokens/s, at least {float(least):.9g} are asked")


# --- the claim itself -------------------------------------------------------------------------------------------------


def objective(evidence: Evidence) -> Iterator[Finding]:
    """One objective everywhere."""
    name, plan = evidence.problem.objective.name, evidence.plan
    sense = "maximise" if name in ("throughput", "efficiency") else "minimise"
    for what, stated, true in (
        ("the plan's objective", plan.objective.name, name),
        ("the certificate's objective", plan.certificate.objective_name, name),
        ("the certificate's unit", plan.certificate.objective_unit, OBJECTIVE_UNITS[name]),
        ("the unit of the plan's objective", plan.objective.unit, NATURAL_UNITS[name]),
        ("the sense", plan.objective.sense, sense),
    ):
        if stated != true:
            yield Finding("objective", f"{what} is {stated!r}, the problem asks for {true!r}")


def certificate_value(evidence: Evidence) -> Iterator[Finding]:
    """The objective integer; that of ``weighted`` with the utopia values that the certificate states.

    Whether those are the best values is the exhaustive check's to say.
    """
    objective, certificate = evidence.problem.objective, evidence.plan.certificate
    name, stated, weights = objective.name, certificate.value, (0, 0)
    if name == "weighted":
        if certificate.utopia is None:
            yield Finding("certificate-value", "the objective is weighted, but the certificate states no utopia values")
            return
        utopia = Utopia(certificate.utopia.latency_ns, certificate.utopia.inverse_efficiency_ns)
        weights = utopia.weights(objective.latency_weight)
    true = objective_value(name, evidence.figures, weights)
    if stated != true:
        yield Finding("certificate-value", f"the certificate's value is {stated}, recomputed {true}")


def objective_claim(evidence: Evidence) -> Iterator[Finding]:
    """Value and bound of the plan's objective in the unit of its metric."""
    name, claim, certificate = evidence.problem.objective.name, evidence.plan.objective, evidence.plan.certificate
    if name == "weighted":
        for what, natural, integer in (
            ("value", claim.value, certificate.value),
            ("bound", claim.bound, certificate.bound),
        ):
            if not math.isclose(natural * WEIGHTED_SCALE, integer, rel_tol=FLOAT_TOLERANCE):
                yield Finding("objective-value", f"the objective's {what} is {natural}, the certificate's is {integer}")
        return
    figures, osl = evidence.figures, evidence.problem.workload.osl
    rate = figures.throughput_tokens_per_s(osl)
    rates = {"throughput": rate, "efficiency": rate / figures.gpus}
    value = rates.get(name, float(objective_value(name, figures)))
    if not math.isclose(claim.value, value, rel_tol=FLOAT_TOLERANCE):
        yield Finding("objective-value", f"the objective {name} is stated as {claim.value}, recomputed {value}")
    bound = float(certificate.bound)
    slack = FLOAT_TOLERANCE
    if name in rates:
        scale = 10**9 * osl * (THROUGHPUT_SCALE if name == "throughput" else 1)
        bound = scale / max(1, certificate.bound)
        slack += 2 / max(1, certificate.bound)  # the inverse is an integer, rounded up
    if not math.isclose(claim.bound, bound, rel_tol=slack):
        yield Finding("objective-value", f"the objective's bound is {claim.bound}, the certificate's makes {bound}")


def bound(evidence: Evidence) -> Iterator[Finding]:
    """No bound above its value."""
    certificate, claim = evidence.plan.certificate, evidence.plan.objective
    if certificate.bound > certificate.value:
        yield Finding("bound", f"the bound {certificate.bound} is above the value {certificate.value}")
    better = claim.bound - claim.value if claim.sense == "minimise" else claim.value - claim.bound
    if better > abs(claim.value) * FLOAT_TOLERANCE and certificate.bound <= certificate.value:
        yield Finding("bound", f"the objective {claim.value} is better than its own bound {claim.bound}")


def gap(evidence: Evidence) -> Iterator[Finding]:
    """Both gaps follow from the integers."""
    certificate = evidence.plan.certificate
    true = (certificate.value - certificate.bound) / certificate.value if certificate.value else 0.0
    for what, stated in (("certificate", certificate.gap), ("objective", evidence.plan.objective.gap)):
        if not math.isclose(stated, true, rel_tol=FLOAT_TOLERANCE, abs_tol=FLOAT_TOLERANCE):
            yield Finding(
                "gap",
                f"the gap of the {what} is {stated}, ({certificate.value} - {certificate.bound}) / {certificate.value} "
                f"is {true}",
            )


def status(evidence: Evidence) -> Iterator[Finding]:
    """OPTIMAL exactly when the bound meets the value."""
    plan, certificate = evidence.plan, evidence.plan.certificate
    if plan.status != certificate.status:
        yield Finding("status", f"the plan says {plan.status}, its certificate {certificate.status}")
    wanted = "OPTIMAL" if certificate.bound == certificate.value else "FEASIBLE"
    for what, stated in (("plan", plan.status), ("certificate", certificate.status)):
        if stated != wanted and certificate.bound <= certificate.value:
            yield Finding(
                "status",
                f"the {what} says {stated}, bound {certificate.bound} and value {certificate.value} make {wanted}",
            )


def space(evidence: Evidence) -> Iterator[Finding]:
    """The space is the problem's, and a proved optimum is one of the values that were searched."""
    stated, known = evidence.plan.certificate.space, domains_of(evidence.problem)
    if stated.name != evidence.problem.space.name:
        yield Finding("space", f"the space is called {stated.name!r}, the problem's is {evidence.problem.space.name!r}")
    for name, values in stated.domains.items():
        if tuple(values) != tuple(getattr(known, name, ())):
            yield Finding("space", f"the certificate's values of {name} are not those of the problem's space")
    if evidence.plan.status != "OPTIMAL":
        return
    domains, s = known, evidence.strategy
    for name, chosen, values in (
        ("attn_tp", s.attn_tp, domains.attn_tp),
        ("moe_tp", s.moe_tp, domains.moe_tp),
        ("moe_ep", s.moe_ep, domains.moe_ep),
        ("pp", s.pp, domains.pp),
        ("batch", s.batch, domains.batch),
        ("micro_batches", s.micro_batches, domains.micro_batches),
        ("prefill_batch", s.prefill_batch, domains.prefill_batch),
    ):
        if chosen not in values:
            yield Finding("space", f"{name} = {chosen} is not among the {len(values)} values of the space")
