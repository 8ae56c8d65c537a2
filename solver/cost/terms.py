"""Which terms an objective is made of: the components of both phases, weighted by what each adds to its integer."""

from __future__ import annotations

from solver.cost.metrics import THROUGHPUT_SCALE, Utopia
from solver.plan import Breakdown, Metrics
from solver.specs.problem import ObjectiveName, Problem

WAITING = "prefill of other requests"
"""Term of the time in which a slot waits for prefills that are not its own (of a rate: for all prefills of a cycle)."""


def objective_terms(
    problem: Problem, metrics: Metrics, breakdown: Breakdown, utopia: Utopia | None = None
) -> dict[str, float]:
    """Terms that add up to the objective integer, up to rounding; a count of GPUs has the single term ``GPUs``."""
    name, osl = problem.objective.name, problem.workload.osl
    if name == "weighted":
        by_latency, by_efficiency = (0, 0) if utopia is None else utopia.weights(problem.objective.latency_weight)
        parts = ((by_latency, "latency"), (by_efficiency, "efficiency"))
        total: dict[str, float] = {}
        for weight, part in parts:
            for term, value in _terms(part, metrics, breakdown, osl).items():  # type: ignore[arg-type]
                total[term] = total.get(term, 0.0) + weight * value
        return total
    return _terms(name, metrics, breakdown, osl)


def _terms(name: ObjectiveName, m: Metrics, breakdown: Breakdown, osl: int) -> dict[str, float]:
    if name == "gpus":
        return {"GPUs": float(m.gpus_used)}
    step = sum(component.ns for component in breakdown.decode)
    kept = m.decode_step_ns / step if step else 1.0  # speculative decoding keeps several tokens a step
    each = m.tpot_ns - m.decode_step_ns
    per_token, per_prefill, waiting = {
        "latency": (float(osl - 1), 1.0, float((osl - 1) * each)),
        "ttft": (0.0, 1.0, 0.0),
        "tpot": (1.0, 0.0, float(each)),
    }.get(name, (float(osl), 0.0, float(m.rounds_per_cycle * m.prefill_round_ns)))
    scale = {
        "throughput": THROUGHPUT_SCALE / max(1, m.active_sequences),
        "efficiency": m.gpus_used / max(1, m.active_sequences),
    }.get(name, 1.0)
    terms: dict[str, float] = {}
    for phase, components, weight in (
        ("decode", breakdown.decode, per_token * kept), ("prefill", breakdown.prefill, per_prefill)
    ):  # fmt: skip
        for component in components:
            if weight:
                terms[f"{phase}: {component.name}"] = component.ns * weight * scale
    if waiting:
        terms[WAITING] = waiting * scale
    return terms


MOST_TERMS = 4
"""Terms that say why one plan loses to another."""


def differences(winner: dict[str, float], other: dict[str, float]) -> tuple[tuple[str, float], ...]:
    """The terms that differ most, largest first: what `other` costs more (or less, negative) than `winner`."""
    names = dict.fromkeys((*winner, *other))
    found = [(name, other.get(name, 0.0) - winner.get(name, 0.0)) for name in names]
    found.sort(key=lambda pair: -abs(pair[1]))
    return tuple(pair for pair in found[:MOST_TERMS] if pair[1])
