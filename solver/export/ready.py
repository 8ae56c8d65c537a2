"""Documents made ready for one target: what can launch them, with which ranks, under which names and ports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from solver.deployment import DeploymentPlan, InstanceGroup
from solver.errors import ExportError
from solver.export.deployment import AGAIN, PORTS, Deployment, Fleet, Instance, Pool, instances_of
from solver.export.weights import weights_of
from solver.legality import violations
from solver.plan import Plan
from solver.specs.problem import Engine, Problem
from solver.strategy import Strategy

ENGINE_OF_TARGET: Mapping[str, Engine] = {
    "vllm": "vllm",
    "sglang": "sglang",
    "trtllm": "trtllm",
    "megatron": "megatron",
    "llm-d": "vllm",
}
"""Targets that are an engine; the others number ranks as the plan's engine does."""
POD_TARGETS = ("kubernetes", "dynamo", "llm-d")
"""Targets whose instances have an address of their own, hence the same ports everywhere."""
WORK = ("activations", "logits", "exchange_buffers", "cuda_graphs", "framework", "communicators")
"""Ledger items that are neither weights nor KV cache."""


@dataclass(frozen=True)
class ExportOptions:
    """What the plan does not know."""

    hosts: tuple[str, ...] = ()
    """Name of every node of the cluster (of a deployment on several clusters: of one after the other), in order; absent
    means node0, node1, ..."""
    weights: str | None = None
    """Folder or Hugging Face name of the weights; absent means what the LLM's source names."""
    port: int = 30000
    """HTTP port of a node's first instance."""
    engine: Engine | None = None
    """Engine for targets that are none (kubernetes, dynamo, rank tables); absent means the plan's."""


def deployment_of(plan: Plan, target: str, options: ExportOptions) -> Deployment:
    """The plan made ready for one target.

    Raises
    ------
    ExportError
        The target's engine cannot launch the strategy.
    """
    strategy = plan.strategy.strategy()
    engine = _engine(plan.problem, strategy, target, options)
    hosts = _hosts([plan.problem], options)[0]
    instances = tuple(instances_of(plan, engine))
    if engine != "any" and not all(instance.is_contiguous for instance in instances):
        raise ExportError(
            f"{engine} puts equally many consecutive ranks on every node, the plan does not (mesh order "
            f"{strategy.mesh_order}, instances of {strategy.instance_gpus} GPUs); solve again with --engine {engine}, "
            "or export to slurm or mpi"
        )
    return Deployment(
        engine=engine,
        digest=plan.digest,
        label=plan.strategy.full_label,
        pool=_pool(plan),
        instances=instances,
        hosts=hosts,
        weights=options.weights or weights_of(plan.problem.llm),
        port=options.port,
    )


def fleets_of(plan: DeploymentPlan, target: str, options: ExportOptions) -> Iterator[Fleet]:
    """The deployment made ready for one target, cluster by cluster; clusters without an instance are left out.

    Raises
    ------
    ExportError
        The target's engine cannot launch a group, or sees an instance's place otherwise than the plan.
    """
    hosts = _hosts(plan.problems, options)
    names = [problem.cluster.name for problem in plan.problems]
    for site, name in enumerate(names):
        groups = [group for group in plan.groups if group.size.site == site]
        if groups:
            parts = list(_parts(plan, groups, target, replace(options, hosts=hosts[site])))
            folder = name if names.count(name) == 1 else f"{name}-{site}"
            yield _fleet(parts, folder, plan.mode, tuple(group.rate_nhz for group in groups), target in POD_TARGETS)


def _parts(
    plan: DeploymentPlan, groups: Sequence[InstanceGroup], target: str, options: ExportOptions
) -> Iterator[Deployment]:
    """The groups of one cluster, their instances numbered from the first to the last."""
    number = 0
    for group in groups:
        problem, strategy = plan.problems[group.size.site], group.plan.strategy.strategy()
        engine = _engine(group.plan.problem, strategy, target, options)
        yield Deployment(
            engine=engine,
            digest=plan.digest,
            label=f"{group.size.role} {strategy.full_label}",
            instances=tuple(_placed(group, problem, engine, number)),
            hosts=options.hosts,
            weights=options.weights or weights_of(problem.llm),
            port=options.port,
            pool=_pool(group.plan),
            name=_name(group, groups),
        )
        number += group.count


def _fleet(parts: Sequence[Deployment], cluster: str, mode: str, rates: tuple[int, ...], in_pods: bool) -> Fleet:
    """The groups together, their ports told apart."""
    first = parts[0]
    every = tuple(instance for part in parts for instance in part.instances)
    ports = dict.fromkeys((i.replica for i in every), first.port) if in_pods else _ports(every, first.port)
    return Fleet(
        engine=first.engine,
        digest=first.digest,
        label=f"{mode}, " + " + ".join(f"{len(part.instances)} x {part.label}" for part in parts),
        instances=every,
        hosts=first.hosts,
        weights=first.weights,
        port=first.port,
        ports=ports,
        cluster=cluster,
        parts=tuple(replace(part, ports=ports) for part in parts),
        rates_nhz=rates,
    )


def _engine(problem: Problem, strategy: Strategy, target: str, options: ExportOptions) -> Engine:
    """The engine whose ranks are exported, which can launch the strategy."""
    engine = ENGINE_OF_TARGET.get(target, options.engine or problem.engine)
    if engine != problem.engine and engine != "any":
        broken = violations(problem.model_copy(update={"engine": engine}), strategy)
        if broken:
            raise ExportError(f"{engine} cannot launch this plan: {broken[0]}; {AGAIN[problem.role]} --engine {engine}")
    return engine


def _hosts(problems: Sequence[Problem], options: ExportOptions) -> list[tuple[str, ...]]:
    """Names of the nodes of each cluster."""
    counts = [problem.cluster.num_nodes for problem in problems]
    if options.hosts and len(options.hosts) < sum(counts):
        raise ExportError(
            f"{len(options.hosts)} host names are given, the cluster has {sum(counts)} nodes; name every node in order"
        )
    names = options.hosts or tuple(f"node{node}" for count in counts for node in range(count))
    starts = [sum(counts[:site]) for site in range(len(counts))]
    return [names[start : start + count] for start, count in zip(starts, counts, strict=True)]


def _pool(plan: Plan) -> Pool:
    work = max(sum(stage.items_kib.get(item, 0) for item in WORK) for stage in plan.memory)
    return Pool(plan.problem, plan.strategy.strategy(), plan.placement, work)


def _placed(group: InstanceGroup, problem: Problem, engine: Engine, number: int) -> Iterator[Instance]:
    """The group's instances where they sit, numbered from `number` on."""
    (pattern,) = instances_of(group.plan, engine)
    per_node = problem.cluster.gpus_per_node
    for index, first in enumerate(group.first_gpus()):
        seats = []
        for seat in pattern.seats:
            gpu = first + seat.record.gpu
            record = replace(
                seat.record, gpu=gpu, node=gpu // per_node, local_gpu=gpu % per_node, replica=number + index
            )
            seats.append(replace(seat, record=record))
        instance = Instance(number + index, tuple(seats))
        if engine != "any" and not instance.is_contiguous:
            raise ExportError(
                f"{engine} puts equally many consecutive ranks on every node, the {group.size.role} instance of "
                f"{group.size.gpus} GPUs that begins at GPU {first} does not (nodes of {per_node}); export to slurm, "
                "mpi, ray or torchrun with --engine any"
            )
        yield instance


def _ports(instances: Sequence[Instance], port: int) -> dict[int, int]:
    """First port of every instance: the lowest block that none has with which it shares a node."""
    taken: dict[int, set[int]] = {}
    found = {}
    for instance in instances:
        nodes = [share.node for share in instance.shares]
        used = set[int]().union(*(taken.setdefault(node, set()) for node in nodes))
        block = next(number for number in range(len(used) + 1) if number not in used)
        for node in nodes:
            taken[node].add(block)
        found[instance.replica] = port + PORTS * block
    return found


def _name(group: InstanceGroup, groups: Sequence[InstanceGroup]) -> str:
    """Role and GPUs; the domains, too, where another group has both in common."""
    size = group.size
    alike = [g for g in groups if (g.size.role, g.size.gpus) == (size.role, size.gpus)]
    return f"{size.role}-{size.gpus}" + (f"x{size.domains}" if len(alike) > 1 else "")
