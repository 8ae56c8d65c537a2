"""Plans as files that launchers accept. What a launcher cannot express is refused by name, with the alternative."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from solver.errors import ExportError
from solver.export import bench, kubernetes, megatron, mpi, ranks, ray, sglang, slurm, torchrun, trtllm, vllm
from solver.export.deployment import Deployment, Pool, instances_of
from solver.export.files import ExportFile
from solver.export.weights import weights_of
from solver.plan import Plan
from solver.specs.problem import Engine
from solver.strategy import violations
from solver.verify import verify

__all__ = [
    "ENGINE_OF_TARGET",
    "TARGETS",
    "Export",
    "ExportFile",
    "ExportOptions",
    "bench_script",
    "deployment_of",
    "export",
]

TARGETS: Mapping[str, Callable[[Deployment], list[ExportFile]]] = {
    "vllm": vllm.files,
    "sglang": sglang.files,
    "trtllm": trtllm.files,
    "megatron": megatron.files,
    "torchrun": torchrun.files,
    "slurm": slurm.files,
    "mpi": mpi.files,
    "ray": ray.files,
    "kubernetes": kubernetes.lws_files,
    "dynamo": kubernetes.dynamo_files,
    "llm-d": kubernetes.llmd_files,
    "csv": ranks.csv_files,
    "jsonl": ranks.jsonl_files,
}
BENCH = "bench"
"""Not a launcher: the scripts of :func:`bench_script`."""
ENGINE_OF_TARGET: Mapping[str, Engine] = {
    "vllm": "vllm",
    "sglang": "sglang",
    "trtllm": "trtllm",
    "megatron": "megatron",
    "llm-d": "vllm",
}
"""Targets that are an engine; the others number ranks as the plan's engine does."""


@dataclass(frozen=True)
class ExportOptions:
    """What the plan does not know."""

    hosts: tuple[str, ...] = ()
    """Name of every node of the cluster, in order; absent means node0, node1, ..."""
    weights: str | None = None
    """Folder or Hugging Face name of the weights; absent means what the LLM's source names."""
    port: int = 30000
    """HTTP port of a node's first instance."""
    engine: Engine | None = None
    """Engine for targets that are none (kubernetes, dynamo, rank tables); absent means the plan's."""


@dataclass(frozen=True)
class Export:
    """The files of one target, and what the target leaves to the engine."""

    target: str
    digest: str
    files: tuple[ExportFile, ...]
    notes: tuple[str, ...]


def export(plan: Plan, target: str, options: ExportOptions | None = None) -> Export:
    """Files that launch a plan with one target.

    Raises
    ------
    ExportError
        The target is unknown, cannot express the plan (the sentence names what and the alternative), or the plan is one
        that verify convicts.
    """
    if target not in TARGETS:
        raise ExportError(f"unknown target {target[:60]!r}; known: {', '.join(TARGETS)}")
    return _export(plan, target, TARGETS[target], options or ExportOptions())


def bench_script(plan: Plan, options: ExportOptions | None = None) -> Export:
    """Scripts that measure the deployed plan with the engine's own benchmark and append a row for ``calibrate``.

    Raises
    ------
    ExportError
        The plan's engine has no serving benchmark, or verify convicts the plan.
    """
    return _export(plan, BENCH, bench.bench_files, options or ExportOptions())


def _export(
    plan: Plan, target: str, files_of: Callable[[Deployment], list[ExportFile]], options: ExportOptions
) -> Export:
    verdict = verify(plan)
    if not verdict.ok:
        raise ExportError(f"the plan is not exported, because verify convicts it: {verdict.findings[0]}")
    deployment = deployment_of(plan, target, options)
    files = files_of(deployment)
    notes = _notes(deployment)
    readme = _readme(deployment, target, files, notes)
    return Export(target, deployment.digest, (*files, ExportFile("README.md", readme)), notes)


def deployment_of(plan: Plan, target: str, options: ExportOptions) -> Deployment:
    """The plan made ready for one target.

    Raises
    ------
    ExportError
        The target's engine cannot launch the strategy.
    """
    engine = ENGINE_OF_TARGET.get(target, options.engine or plan.problem.engine)
    strategy = plan.strategy.strategy()
    if engine != plan.problem.engine and engine != "any":
        broken = violations(plan.problem.model_copy(update={"engine": engine}), strategy)
        if broken:
            raise ExportError(f"{engine} cannot launch this plan: {broken[0]}; solve again with --engine {engine}")
    count = plan.problem.cluster.num_nodes
    hosts = options.hosts or tuple(f"node{node}" for node in range(count))
    if len(hosts) < count:
        raise ExportError(f"{len(hosts)} host names are given, the cluster has {count} nodes; name every node in order")
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
        pools=(Pool("both", plan.problem, strategy, plan.placement, _work_kib(plan)),),
        instances=instances,
        hosts=hosts,
        weights=options.weights or weights_of(plan.problem.llm),
        port=options.port,
    )


WORK = ("activations", "logits", "exchange_buffers", "cuda_graphs", "framework", "communicators")
"""Ledger items that are neither weights nor KV cache."""


def _work_kib(plan: Plan) -> int:
    return max(sum(stage.items_kib.get(item, 0) for item in WORK) for stage in plan.memory)


def _notes(deployment: Deployment) -> tuple[str, ...]:
    """What no launch option decides, so that the engine will."""
    pool, strategy = deployment.pool, deployment.pool.strategy
    notes = []
    if deployment.weights == pool.problem.llm.name and deployment.engine != "any":
        notes.append(
            f"No weights are known for {deployment.weights!r}; name a folder or a Hugging Face name (--weights)."
        )
    if strategy.attn_tp > 1:
        kinds = sorted({strategy.decode_allreduce, strategy.prefill_allreduce})
        notes.append(
            f"The plan times all-reduces as {' and '.join(kinds)}; the engine and NCCL choose the algorithm themselves."
        )
    if pool.placement.bins is not None:
        notes.append(
            "Which sequence goes to which attention-DP rank is decided per request by the engine's or router's load "
            "balancer; the plan's assignment is in the jsonl form of the command placement."
        )
    if deployment.engine == "vllm" and vllm.needs_map(pool):
        notes.append(
            f"vLLM applies the expert map after {vllm.STEP_INTERVAL // 4} steps; until then experts sit in order."
        )
    if len(deployment.instances) > 1:
        notes.append(f"Requests must be spread evenly over the {len(deployment.instances)} instances by a router.")
    return tuple(notes)


def _readme(deployment: Deployment, target: str, files: list[ExportFile], notes: tuple[str, ...]) -> str:
    strategy = deployment.pool.strategy
    shown = [f"- `{file.path}`" for file in files[:40]]
    if len(files) > 40:
        shown.append(f"- ... {len(files)} files in all")
    left = [f"- {note}" for note in notes] or ["- nothing"]
    return "\n".join([
        f"# {deployment.label} on {strategy.gpus} GPUs, for {target}",
        "",
        f"From shardwright plan `{deployment.digest}`.",
        f"Weights: `{deployment.weights}`. Nodes: {', '.join(deployment.host(n) for n in deployment.nodes[:8])}"
        f"{', ...' if len(deployment.nodes) > 8 else ''}.",
        "",
        "## Files",
        "",
        *shown,
        "",
        "## Left to the engine",
        "",
        *left,
        "",
    ])  # fmt: skip
