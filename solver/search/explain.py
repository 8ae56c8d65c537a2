"""Why there is no plan: the constraints whose removal, one at a time, lets a plan exist, with their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from solver.cost.limits import limits_of
from solver.cost.metrics import objective_value
from solver.degrees import Domains
from solver.plan import StageLedger
from solver.search.loop import Loop
from solver.search.program import SearchLimits
from solver.search.realise import Realised
from solver.search.shapes import stage_shapes
from solver.specs.problem import Objective, Pins, Problem

TRIAL_SECONDS = 20.0
"""Time limit of one relaxed search."""
MEMORY_FACTOR = 1000


@dataclass(frozen=True)
class Relaxation:
    """A problem with one constraint taken away."""

    rule: str
    problem: Problem


def reasons_for_none(problem: Problem, domains: Domains) -> tuple[str, ...]:
    """Sentences that name the excluding constraints; at least one."""
    empty = _empty_degrees(domains)
    if empty:
        return tuple(empty)
    found = []
    for relaxation in _relaxations(problem):
        realised = _first_plan(relaxation.problem)
        if realised is not None:
            found.append(_sentence(problem, relaxation.rule, realised))
    if found:
        return tuple(found)
    if not stage_shapes(problem, domains):
        return (
            f"[identity] no attn_tp in {domains.attn_tp}, moe_tp in {domains.moe_tp}, moe_ep in {domains.moe_ep[:12]} "
            f"gives attn_tp * attn_dp = moe_tp * moe_ep within {problem.gpu_budget} GPUs",
        )
    rules = ", ".join(relaxation.rule for relaxation in _relaxations(problem)) or "memory"
    return (f"several constraints exclude every plan together: no single one of {rules} can be dropped to admit one",)


def _empty_degrees(domains: Domains) -> list[str]:
    sentences = []
    for name in ("attn_tp", "moe_tp", "moe_ep", "pp", "batch", "micro_batches", "prefill_batch"):
        if getattr(domains, name):
            continue
        causes = [r for r in domains.rejections if r.degree == name]
        causes.sort(key=lambda r: r.violation.rule == "pin")
        shown = "; ".join(dict.fromkeys(str(r.violation) for r in causes[:3]))
        sentences.append(f"no legal value of {name}: {shown or 'the caller fixed one outside its range'}")
    return sentences


def _relaxations(problem: Problem) -> Iterator[Relaxation]:
    """The problem without each of its constraints in turn; the objective becomes what the constraint limits."""
    workload, slo = problem.workload, problem.workload.slo
    for field, rule, objective in (
        ("ttft", "slo-ttft", "ttft"),
        ("tpot", "slo-tpot", "tpot"),
        ("request_latency", "slo-request-latency", "latency"),
        ("min_throughput", "slo-throughput", "throughput"),
        ("min_efficiency", "slo-efficiency", "efficiency"),
    ):
        if getattr(slo, field) is not None:
            free = workload.model_copy(update={"slo": slo.model_copy(update={field: None})})
            changes = {"workload": free, "objective": Objective(name=objective)}
            yield Relaxation(rule, problem.model_copy(update=changes))
    cheap = {"objective": Objective(name="gpus")}
    gpu = problem.cluster.gpu
    larger = gpu.model_copy(update={"memory": gpu.memory * MEMORY_FACTOR})
    cluster = problem.cluster.model_copy(update={"gpu": larger})
    yield Relaxation("memory", problem.model_copy(update={**cheap, "cluster": cluster}))
    if problem.gpus_exact is not None:
        yield Relaxation("gpu-count", problem.model_copy(update={**cheap, "gpus_exact": None}))
    if problem.engine != "any":
        yield Relaxation(f"engine {problem.engine}", problem.model_copy(update={**cheap, "engine": "any"}))
    if workload.concurrency is not None and workload.isl_list is None:
        free = workload.__class__.model_validate({**workload.model_dump(), "concurrency": None})
        yield Relaxation("concurrency", problem.model_copy(update={**cheap, "workload": free}))
    for name, value in problem.pins.given().items():
        rest = {other: v for other, v in problem.pins.given().items() if other != name}
        yield Relaxation(f"pin {name} = {value}", problem.model_copy(update={**cheap, "pins": Pins(**rest)}))


def _first_plan(problem: Problem) -> Realised | None:
    return Loop(problem, SearchLimits(1, 0, TRIAL_SECONDS), lambda _progress: None, None).run().best


def _sentence(problem: Problem, rule: str, realised: Realised) -> str:
    figures = realised.figures
    label = realised.strategy.full_label
    osl = problem.workload.osl
    for limit in limits_of(problem):
        if rule == limit.rule:
            best = limit.text(objective_value(limit.metric, figures), osl)
            wanted = limit.text(limit.at_most, osl)
            asked = f"at least {wanted} is asked" if limit.is_rate else f"the limit is {wanted}"
            return f"[{rule}] {asked}, but the best of all strategies ({label}) reaches {best}: relax it to that"
    if rule == "memory":
        fullest: StageLedger = max(realised.ledgers, key=lambda ledger: ledger.total_kib)
        usable = int(problem.cluster.gpu.memory * problem.calibration.usable_memory)
        largest = sorted(fullest.items_kib.items(), key=lambda item: -item[1])[:3]
        parts = ", ".join(f"{name} {kib / 2**20:.1f} GiB" for name, kib in largest)
        return (
            f"[memory] {usable / 2**30:.1f} GiB per GPU are usable, but for example {label} needs "
            f"{fullest.total_kib / 2**20:.1f} GiB ({parts}): use more or larger GPUs, shorter or fewer sequences"
        )
    if rule == "gpu-count":
        return (
            f"[gpu-count] exactly {problem.gpus_exact} GPUs are asked for; the fewest that do are "
            f"{realised.strategy.gpus} ({label})"
        )
    if rule == "concurrency":
        return (
            f"[concurrency] {problem.workload.concurrency} sequences do not fit {problem.gpu_budget} GPUs with at most "
            f"{problem.space.max_batch} per rank and micro-batch: lower the concurrency or raise the GPU count"
        )
    return f"[{rule}] without it {label} on {realised.strategy.gpus} GPUs is a plan"
