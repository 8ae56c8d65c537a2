"""The named constraints of a problem, each with what it demands and what the problem is without it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from solver.degrees import domains_of
from solver.legality import RULES, all_reduce_violations, dtype_violations
from solver.specs.hardware import Cluster
from solver.specs.problem import Pins, Problem
from solver.specs.workload import LengthRange, Workload
from solver.units import bytes_text

UNLIMITED_GPUS = 2**20
"""GPUs of a cluster whose size is no constraint: more than any deployment has."""
UNLIMITED_MEMORY_BYTES = 2**50
"""Memory per GPU that is no constraint: 1 PiB, a thousand times what any GPU has."""
MOST_BATCH, MOST_PREFILL_BATCH, MOST_STAGES = 2**20, 64, 128
"""Ends of the fields of a :class:`~solver.specs.problem.Space`."""
DIVISIBILITY = ("heads", "kv-heads", "linear-heads", "dense-width", "expert-width")
"""Rules that a TP degree divides something. Without one of them, TP may also be a power of two, or the value that the
caller fixed, that does not; the formulas of the cost model round up what does not divide."""
SLO_RULES = {"ttft": "slo-ttft", "tpot": "slo-tpot", "request_latency": "slo-request-latency"}
"""Field of an :class:`~solver.specs.workload.Slo` -> its rule."""
WORDS_OF_SLO = {"ttft": "TTFT", "tpot": "TPOT", "request_latency": "request latency"}


@dataclass(frozen=True)
class Case:
    """A problem, and the rules of legality that are not asked of its degrees."""

    problem: Problem
    waived: frozenset[str] = frozenset()

    def replaced(self, **changes: object) -> Case:
        """The case with other fields of the problem."""
        return Case(self.problem.model_copy(update=changes), self.waived)


@dataclass(frozen=True)
class Constraint:
    """One constraint that a person named, or that the hardware, the LLM or the engine imposes."""

    name: str
    """Rule id, or the pin: unique in its problem."""
    demand: str
    """What it demands, with its numbers."""
    drop: Callable[[Case], Case] = field(compare=False)
    """The case without it."""


def without(problem: Problem, constraints: Collection[Constraint]) -> Case:
    """The problem without these constraints."""
    case = Case(problem)
    for constraint in constraints:
        case = constraint.drop(case)
    return case


def constraints_of(problem: Problem, given: Collection[str] = ()) -> tuple[Constraint, ...]:
    """Every constraint of a problem but the pins named in `given`.

    Those that a caller can do least about come first: a minimal set is looked for by deleting in this order, so it
    keeps what comes last where there is a choice.
    """
    return (
        *_space(problem),
        *_software(problem),
        *_widths(problem),
        *_pins(problem, given),
        *_demand(problem),
        *_hardware(problem),
        *_slos(problem),
    )


def _space(problem: Problem) -> Iterator[Constraint]:
    space = problem.space
    if problem.llm.num_layers > space.max_pp:
        deep = min(MOST_STAGES, problem.llm.num_layers)
        yield Constraint(
            "space-depth",
            f"at most {space.max_pp} pipeline stages are searched (--max-pp)",
            lambda case: case.replaced(space=case.problem.space.model_copy(update={"max_pp": deep})),
        )
    if space.name == "standard":  # with every integer a value, there would be a million of them
        most = {"max_batch": MOST_BATCH, "max_prefill_batch": MOST_PREFILL_BATCH}
        yield Constraint(
            "space-batch",
            f"at most {space.max_batch} sequences per rank and micro-batch, and {space.max_prefill_batch} prompts per "
            "prefill, are searched",
            lambda case: case.replaced(space=case.problem.space.model_copy(update=most)),
        )
    if not space.tp_across_domains:
        yield Constraint(
            "tp-domain",
            f"a TP group lies inside one scale-up domain of {problem.cluster.domain_gpus} GPUs",
            lambda case: case.replaced(space=case.problem.space.model_copy(update={"tp_across_domains": True})),
        )


def _software(problem: Problem) -> Iterator[Constraint]:
    if problem.redundant_experts:
        yield Constraint(
            "redundancy",
            f"{problem.redundant_experts} expert replicas per MoE layer beyond one of each (--redundant-experts)",
            lambda case: case.replaced(redundant_experts=0),
        )
    if problem.engine != "any":
        yield Constraint(
            "engine", f"{problem.engine} can launch it (--engine)", lambda case: case.replaced(engine="any")
        )
    missing = list(dtype_violations(problem))
    if missing:
        yield Constraint("dtype", "; ".join(violation.sentence for violation in missing), _waive("dtype"))


def _waive(rule: str) -> Callable[[Case], Case]:
    return lambda case: Case(case.problem, case.waived | {rule})


def _widths(problem: Problem) -> Iterator[Constraint]:
    llm = problem.llm
    shared = 0 if llm.moe is None else llm.moe.shared_width
    numbers = {
        "heads": f"{llm.num_heads} query heads",
        "kv-heads": f"{llm.num_kv_heads} KV heads" if llm.mla is None else "",
        "linear-heads": f"{llm.linear.num_value_heads} value heads" if llm.linear is not None else "",
        "dense-width": " and ".join(
            f"{what} width {width}" for what, width in (("dense", llm.dense_width), ("shared", shared)) if width
        ),
        "expert-width": f"expert width {llm.moe.expert_width}" if llm.moe is not None else "",
    }
    for rule in reversed(DIVISIBILITY):  # the heads say most, so they are the last to go
        if numbers[rule]:
            yield Constraint(rule, f"{RULES[rule]} ({numbers[rule]})", _waive(rule))


def _pins(problem: Problem, given: Collection[str]) -> Iterator[Constraint]:
    rejected = {(r.degree, r.value): r.violation for r in domains_of(problem).rejections}
    pins = problem.pins
    untimed = list(all_reduce_violations(problem, pins.decode_allreduce, pins.prefill_allreduce))
    for name, value in pins.given().items():
        if name in given:
            continue
        rule = rejected.get((name, value)) if isinstance(value, int) else None
        rule = next((violation for violation in untimed if violation.sentence.startswith(name)), rule)
        words = "" if rule is None else f": {rule}"
        yield Constraint(f"pin {name}", f"{name} = {value} (--fix){words}", _unpin(name))


def _unpin(name: str) -> Callable[[Case], Case]:
    def drop(case: Case) -> Case:
        rest = {other: value for other, value in case.problem.pins.given().items() if other != name}
        return case.replaced(pins=Pins(**rest))

    return drop


def _demand(problem: Problem) -> Iterator[Constraint]:
    workload = problem.workload
    if workload.longest_isl > 1:
        yield Constraint(
            "prompt-length",
            f"prompts of up to {workload.longest_isl} tokens",
            lambda case: case.replaced(workload=with_prompts(case.problem.workload, 1)),
        )
    if workload.concurrency is not None:
        yield Constraint(
            "concurrency",
            f"{workload.concurrency} sequences at once",
            lambda case: case.replaced(workload=with_concurrency(case.problem.workload, None)),
        )


def _hardware(problem: Problem) -> Iterator[Constraint]:
    gpus, gpu = problem.gpus_exact or problem.gpus_at_most, problem.cluster.gpu
    if gpus is not None:
        words = f"exactly {gpus} GPUs (--gpus-exact)" if problem.gpus_exact else f"at most {gpus} GPUs (--gpus)"
        yield Constraint("gpu-count", words, lambda case: case.replaced(gpus_exact=None, gpus_at_most=None))
    yield Constraint(
        "cluster-size",
        f"{problem.cluster.num_gpus} GPUs in the cluster",
        lambda case: case.replaced(cluster=sized(case.problem.cluster, UNLIMITED_GPUS)),
    )
    usable = int(gpu.memory * problem.calibration.usable_memory)
    yield Constraint(
        "memory",
        f"{usable / 2**30:.1f} GiB usable of the {bytes_text(gpu.memory)} of a GPU",
        lambda case: case.replaced(cluster=with_memory(case.problem.cluster, UNLIMITED_MEMORY_BYTES)),
    )


def _slos(problem: Problem) -> Iterator[Constraint]:
    for name, rule in SLO_RULES.items():
        limit = getattr(problem.workload.slo, name)
        if limit is not None:
            yield Constraint(rule, f"{WORDS_OF_SLO[name]} of at most {limit / 1e6:.3f} ms", _without_slo(name))
    for name, rule, unit in (
        ("min_throughput", "slo-throughput", "tokens/s"),
        ("min_efficiency", "slo-efficiency", "tokens/s per GPU"),
    ):
        least = getattr(problem.workload.slo, name)
        if least is not None:
            yield Constraint(rule, f"at least {float(least):,.6g} {unit}", _without_slo(name))


def _without_slo(name: str) -> Callable[[Case], Case]:
    return lambda case: case.replaced(workload=with_slo(case.problem.workload, name, None))


# --- one field changed --------------------------------------------------------------------------------------------


def with_slo(workload: Workload, name: str, limit_ns: int | None) -> Workload:
    """The workload with another limit on `name` (a field of :class:`~solver.specs.workload.Slo`)."""
    return workload.model_copy(update={"slo": workload.slo.model_copy(update={name: limit_ns})})


def with_prompts(workload: Workload, longest: int) -> Workload:
    """The workload with every prompt cut to at most `longest` tokens."""
    if workload.isl is not None:
        changes: dict[str, object] = {"isl": min(workload.isl, longest)}
    elif workload.isl_range is not None:
        low, high = workload.isl_range.min, workload.isl_range.max
        changes = {"isl_range": LengthRange(min=min(low, longest), max=min(high, longest))}
    else:
        changes = {"isl_list": tuple(min(length, longest) for length in workload.isl_list or ())}
    return with_fields(workload, changes)


def with_concurrency(workload: Workload, concurrency: int | None) -> Workload:
    """The workload with fewer sequences at once; None leaves their number free.

    Of listed prompts the shortest stay; where the number is free, all are as long as their mean.
    """
    changes: dict[str, object] = {"concurrency": concurrency}
    if workload.isl_list is not None and concurrency is None:
        changes |= {"isl_list": None, "isl": workload.mean_isl}
    elif workload.isl_list is not None:
        changes["isl_list"] = workload.prompt_lengths[:concurrency]
    return with_fields(workload, changes)


def with_output(workload: Workload, osl: int) -> Workload:
    """The workload with another number of output tokens."""
    return with_fields(workload, {"osl": osl})


def with_fields(workload: Workload, changes: dict[str, object]) -> Workload:
    """A copy whose derived values are computed anew (a plain copy would keep those of the original)."""
    fields = {name: getattr(workload, name) for name in Workload.model_fields}
    return Workload.model_validate({**fields, **changes})


def with_memory(cluster: Cluster, memory_bytes: int) -> Cluster:
    """The cluster with another memory per GPU."""
    return cluster.model_copy(update={"gpu": cluster.gpu.model_copy(update={"memory": memory_bytes})})


def sized(cluster: Cluster, at_least: int) -> Cluster:
    """The smallest cluster of this hardware with so many GPUs: whole nodes, and whole scale-up domains beyond one."""
    return cluster if cluster.num_gpus == at_least else cluster.resized(allowed_size(cluster, at_least))


def allowed_size(cluster: Cluster, at_least: int) -> int:
    """GPUs of the smallest cluster of this hardware with at least so many."""
    domain, node = cluster.levels[0].gpus, cluster.gpus_per_node
    if domain is not None and at_least > domain:
        return -(-at_least // domain) * domain
    return at_least if at_least <= node else -(-at_least // node) * node
