"""The deployment document: pools of instances of several sizes on one or more clusters, with the proof of the mix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from solver.certificate import Digests, Parameters, Status, Versions
from solver.errors import SpecError
from solver.expansion import GpuRecord, expand
from solver.plan import Natural, Plan
from solver.specs.deploying import NHZ, Deploying, Goal, Mode
from solver.specs.document import Document
from solver.specs.problem import Objective, Pins, Problem, Role
from solver.specs.spec import Spec

ROLES: dict[Mode, tuple[Role, ...]] = {"aggregated": ("aggregated",), "disaggregated": ("prefill", "decode")}
"""Pools of a mode."""

EFFICIENCY_STEP = 100
"""Efficiency is told apart to so many units per GPU, about a ten-thousandth: finer steps decide nothing, and mixes of
large budgets come arbitrarily close to one another."""


class InstanceSize(Spec):
    """GPUs of one instance, and the scale-up domains that it takes."""

    site: Natural = 0
    """Which cluster."""
    role: Role
    gpus: Annotated[int, Field(ge=1)]
    domains: Annotated[int, Field(ge=1)]
    """An instance that needs several domains has them to itself; smaller ones may share one."""

    @property
    def sort_key(self) -> tuple[int, str, int, int]:
        """Cluster, pool, then size."""
        return (self.site, self.role, self.gpus, self.domains)


class Run(Spec):
    """Arithmetic run of GPU indices: ``first, first + step, ...``, `count` of them."""

    first: Natural
    step: Natural
    count: Annotated[int, Field(ge=1)]


class InstanceGroup(Spec):
    """Equal instances: one plan, and where each of them begins."""

    size: InstanceSize
    count: Annotated[int, Field(ge=1)]
    rate_nhz: Natural
    """Requests that one instance serves, per 10^9 s, rounded down to whole units per GPU."""
    starts: tuple[Run, ...]
    """GPU of the cluster at which each instance's own GPU 0 sits."""
    plan: Plan
    """One instance: the best of its size, with its own proof."""

    def first_gpus(self) -> Iterator[int]:
        """Where every instance begins."""
        for run in self.starts:
            yield from (run.first + i * run.step for i in range(run.count))


class PoolMetrics(Spec):
    """What a pool's instances offer; times are worst and mean over its requests."""

    role: Role
    gpus: Natural
    instances: Natural
    rate_nhz: Natural
    """Requests per 10^9 s that the pool could serve."""
    utilisation: float
    """Share of that which the deployment uses."""
    ttft_ns: Natural
    tpot_ns: Natural
    mean_ttft_ns: Natural
    mean_tpot_ns: Natural


class DeploymentMetrics(Spec):
    """The whole deployment in the steady state (DESIGN 5.10, 5.11)."""

    rate_nhz: Natural
    requests_per_s: float
    throughput_tokens_per_s: float
    """Output tokens."""
    efficiency_tokens_per_s_per_gpu: float
    gpus_used: Natural
    gpus_idle: Natural
    cost_per_hour: float | None = None
    pools: tuple[PoolMetrics, ...]


class SizeClaim(Spec):
    """What is known of one instance size: it serves `rate_nhz`, and none of its plans serves more than `bound_nhz`."""

    size: InstanceSize
    rate_nhz: Natural
    bound_nhz: Natural
    proof: Literal["program", "tables", "infeasible"]
    """Searched to the end (or as far as the time went), bounded in closed form, or proved impossible."""


class ModeClaim(Spec):
    """What the best mix of a serving mode is proved to reach, in the goal's integer."""

    mode: Mode
    value: int | None
    """Absent where no mix was found."""
    bound: int | None
    """Absent where no mix can exist."""


class DeploymentCertificate(Spec):
    """The claim: no mix of instances within the clusters is better than `bound`."""

    status: Status
    goal: Goal
    unit: str
    unit_nhz: Annotated[int, Field(ge=1)]
    """Rates of instances are counted in so many nHz per GPU, rounded down."""
    value: int
    bound: int
    gap: float
    modes: tuple[ModeClaim, ...]
    sizes: tuple[SizeClaim, ...]
    one_fewer_nhz: int | None = None
    """For the goal `gpus`: requests that no mix with one GPU less exceeds; below the demand."""
    mixes: Natural
    """Integer programs that were solved."""
    digests: tuple[Digests, ...]
    """Of the programs of the sizes that are used."""
    versions: Versions
    parameters: Parameters
    wall_s: float


class DeploymentPlan(Document):
    """One answer: proved (OPTIMAL), or the best found with its gap (FEASIBLE)."""

    noun: ClassVar[str] = "a deployment"

    kind: Literal["deployment"] = "deployment"
    schema_version: Literal["1.0"] = "1.0"
    status: Status
    mode: Mode
    asked: Deploying
    problems: Annotated[tuple[Problem, ...], Field(min_length=1)]
    """The question for each cluster; equal but for cluster and calibration."""
    groups: tuple[InstanceGroup, ...]
    metrics: DeploymentMetrics
    idle: str
    """Why GPUs stay idle; empty when none does."""
    warnings: tuple[str, ...]
    certificate: DeploymentCertificate

    def __repr__(self) -> str:
        mix = " + ".join(f"{g.count} x {g.plan.strategy.full_label} ({g.size.role})" for g in self.groups)
        m = self.metrics
        return f"DeploymentPlan({self.status}, {mix}; {m.gpus_used} GPUs, {m.throughput_tokens_per_s:,.1f} tokens/s)"

    __str__ = __repr__


def instance_problem(problem: Problem, size: InstanceSize) -> Problem:
    """The question that the best instance of a size answers: one instance on domains of its own, most requests served.

    Parameters
    ----------
    problem : the deployment's question for the instance's cluster
    size : GPUs, domains and pool of the instance
    """
    cluster = problem.cluster
    return pool_problem(problem, size.role).model_copy(
        update={
            "cluster": cluster.resized(size.domains * cluster.domain_gpus),
            "objective": Objective(name="throughput"),
            "gpus_exact": size.gpus,
            "gpus_at_most": None,
            "pins": Pins(replicas=1),
        }
    )


def pool_problem(problem: Problem, role: Role) -> Problem:
    """The question of one pool on the whole cluster: free concurrency, the limits of its phase.

    Raises
    ------
    SpecError
        The workload lists a length for each of its sequences, or limits what couples two pools.
    """
    workload, slo = problem.workload, problem.workload.slo
    if workload.isl_list is not None:
        raise SpecError(
            "a deployment serves a stream of requests: give isl or isl_range instead of one length per sequence"
        )
    if role != "aggregated" and slo.request_latency is not None:
        raise SpecError(
            f"a request latency of at most {slo.request_latency / 1e6:g} ms couples the pools of a disaggregated "
            "deployment: limit ttft and tpot instead, or deploy aggregated"
        )
    foreign = {"aggregated": (), "prefill": ("tpot", "request_latency"), "decode": ("ttft", "request_latency")}[role]
    stream = {**workload.model_dump(), "concurrency": None, "slo": slo.model_copy(update=dict.fromkeys(foreign))}
    return Problem.model_validate(
        {
            **dict(problem),
            "workload": type(workload).model_validate(stream),
            "objective": Objective(name="efficiency"),
            "role": role,
            "pins": Pins(),
        }
    )


def rate_nhz(inverse_throughput_ps: int) -> int:
    """Requests per 10^9 s of an instance that needs so many picoseconds per request."""
    return 1000 * NHZ * 10**9 // inverse_throughput_ps


def least_value(bound_nhz: int) -> int:
    """Picoseconds per request that no instance undercuts which serves at most so many requests."""
    return 1000 * NHZ * 10**9 // (bound_nhz + 1)


def rate_unit(bounds: Mapping[InstanceSize, int]) -> int:
    """The unit of rates per GPU, nHz: a power of ten, about a millionth of what a GPU of the slowest pool serves best.

    Sums in a finer unit hardly ever tie, and integer programs that must tell sums apart that differ by 10^-12 do not
    close.
    """
    best: dict[tuple[int, str], int] = {}
    for size, bound in bounds.items():
        pool = (size.site, size.role)
        best[pool] = max(best.get(pool, 0), bound // size.gpus)
    slowest = min((rate for rate in best.values() if rate > 0), default=1)
    return int(10 ** max(0, len(str(slowest)) - 6))


def whole_rate(rate_nhz: int, size: InstanceSize, unit_nhz: int) -> int:
    """Rate of an instance in units, rounded down to whole units per GPU: instances of equal efficiency stay equal."""
    return size.gpus * (rate_nhz // (size.gpus * unit_nhz))


def shares_domain(size: InstanceSize, domain_gpus: int) -> bool:
    """Whether other instances may sit in the same scale-up domain."""
    return size.domains == 1 and size.gpus < domain_gpus


def replaces(one: InstanceSize, other: InstanceSize, domain_gpus: int) -> int:
    """How many instances of one size fit where an instance of the other sits."""
    copies = other.gpus // one.gpus
    if not shares_domain(one, domain_gpus):
        return min(copies, other.domains // one.domains)
    if not shares_domain(other, domain_gpus):
        copies = min(copies, other.domains * (domain_gpus // one.gpus))
    return copies


def idle_text(asked: Deploying, status: Status, idle: int, budget: int) -> str:
    """Why GPUs stay idle; empty when none does."""
    if idle == 0:
        return ""
    if asked.goal in ("throughput", "efficiency") and status != "OPTIMAL":
        return f"{idle} of {budget} GPUs stay idle in the best mix that was found"
    if asked.goal == "throughput":
        return f"{idle} of {budget} GPUs stay idle: no mix of instances serves more with them"
    if asked.goal == "efficiency":
        return f"{idle} of {budget} GPUs stay idle: with more of them each would serve no more"
    return f"{idle} of {budget} GPUs are not needed for {asked.request_rate:g} requests/s"


def deployment_warnings(problems: Sequence[Problem], groups: Sequence[InstanceGroup]) -> tuple[str, ...]:
    """What the plans of all instances warn of, once; and what a deployment leaves out."""
    found = list(dict.fromkeys(sentence for group in groups for sentence in group.plan.warnings))
    if any(problem.workload.concurrency is not None for problem in problems):
        found.append(
            "The workload's concurrency is not used: a deployment serves a stream of requests with every slot busy."
        )
    if any(group.size.role == "prefill" for group in groups):
        found.append("KV cache travels over one GPU's outermost link per request; several links would take less.")
    return tuple(found)


def expand_deployment(deployment: DeploymentPlan) -> Iterator[tuple[InstanceGroup, int, GpuRecord]]:
    """One record per used GPU: its group, the instance within the group, and what it holds; streams.

    GPU and node are those of the cluster; `replica` counts the instances of the group.
    """
    for group in deployment.groups:
        node = deployment.problems[group.size.site].cluster.gpus_per_node
        for instance, first in enumerate(group.first_gpus()):
            for record in expand(group.plan):
                gpu = first + record.gpu
                yield (
                    group,
                    instance,
                    replace(record, gpu=gpu, node=gpu // node, local_gpu=gpu % node, replica=instance),
                )
