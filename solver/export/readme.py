"""The README.md of an export: the files, how the instances are started, what is left to the engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from solver.deployment import DeploymentPlan
from solver.export import vllm
from solver.export.deployment import Deployment, Fleet
from solver.export.files import ExportFile
from solver.specs.deploying import NHZ
from solver.specs.problem import Role

MAX_FILES, MAX_NODES = 40, 8
SCRIPTED = ("vllm", "sglang", "trtllm", "megatron")
"""Targets whose node scripts start servers."""


def plan_notes(deployment: Deployment) -> tuple[str, ...]:
    """What no launch option decides, so that the engine will."""
    notes = pool_notes(deployment)
    if len(deployment.instances) > 1:
        notes.append(f"Requests must be spread evenly over the {len(deployment.instances)} instances by a router.")
    return tuple(notes)


def pool_notes(deployment: Deployment) -> list[str]:
    """What no launch option decides about instances one by one."""
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
    return notes


def fleet_notes(fleets: Sequence[Fleet]) -> tuple[str, ...]:
    """What no launch option decides about a deployment."""
    notes = list(dict.fromkeys(note for fleet in fleets for part in fleet.parts for note in pool_notes(part)))
    if any(fleet.is_disaggregated for fleet in fleets):
        notes.append(
            "Which decode instance takes a prompt's KV cache is the router's choice, its way over the network "
            "(InfiniBand devices, UCX) the transfer library's."
        )
    if any(len(fleet.instances) > 1 for fleet in fleets):
        notes.append("Requests must reach the instances in the shares of the table; routers with equal turns do so "
                     "only where the instances of a role are of one size.")  # fmt: skip
    if len(fleets) > 1:
        notes.append("Each cluster has a router of its own; a balancer in front of them is yours.")
    return tuple(notes)


def plan_readme(deployment: Deployment, target: str, files: Sequence[ExportFile], notes: Sequence[str]) -> str:
    """The README of a plan."""
    return "\n".join([
        f"# {deployment.label} on {deployment.pool.strategy.gpus} GPUs, for {target}",
        "",
        f"From shardwright plan `{deployment.digest}`.",
        f"Weights: `{deployment.weights}`. Nodes: {_nodes(deployment)}.",
        "",
        *_files(files),
        *_left(notes),
    ])  # fmt: skip


def fleet_readme(
    plan: DeploymentPlan, fleets: Sequence[Fleet], target: str, files: Sequence[ExportFile], notes: Sequence[str]
) -> str:
    """The README of a deployment: its groups with their shares of the requests, and the order of starting."""
    m = plan.metrics
    lines = [
        f"# {plan.mode} deployment of {plan.problems[0].llm.name} on {m.gpus_used} GPUs, for {target}",
        "",
        f"From shardwright deployment `{plan.digest}`: {m.requests_per_s:.4g} requests/s.",
        f"Weights: `{fleets[0].weights}`.",
        "",
    ]
    for fleet in fleets:
        lines += [f"## Instances on {fleet.cluster}", "", f"Nodes: {_nodes(fleet)}.", "", *_table(fleet)]
    lines += ["## Start", "", *(f"{i}. {step}" for i, step in enumerate(_steps(fleets, target), 1)), ""]
    return "\n".join([*lines, *_files(files), *_left(notes)])


def _table(fleet: Fleet) -> list[str]:
    """A row per group; the share is that of all requests which pass through the role."""
    offered: dict[Role, int] = {}
    for part, rate in zip(fleet.parts, fleet.rates_nhz, strict=True):
        offered[part.pool.role] = offered.get(part.pool.role, 0) + rate * len(part.instances)
    rows = [
        f"| {part.name} | {part.pool.role} | {_numbers(part)} | {part.pool.strategy.gpus} | "
        f"{part.pool.strategy.full_label} | {rate / NHZ:.4g} | {rate / offered[part.pool.role]:.2%} |"
        for part, rate in zip(fleet.parts, fleet.rates_nhz, strict=True)
    ]
    return [
        "| group | role | instances | GPUs each | strategy | requests/s each | share each |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _numbers(part: Deployment) -> str:
    first, last = part.instances[0].replica, part.instances[-1].replica
    return str(first) if first == last else f"{first}-{last}"


def _steps(fleets: Sequence[Fleet], target: str) -> list[str]:
    """What is started in which order."""
    where = " of each cluster's folder" if len(fleets) > 1 else ""
    two = any(fleet.is_disaggregated for fleet in fleets)
    if target in SCRIPTED:
        steps = [f"On every node run its script{where} (`node-N.sh`), all nodes at once; prefill and decode instances "
                 "find each other only when requests come, so their order is free."
                 if two else f"On every node run its script{where} (`node-N.sh`), all nodes at once."]  # fmt: skip
        ready = "`/health`" if target != "megatron" else "requests"
        steps.append(f"Wait until every instance answers {ready}.")
        front = any(len(fleet.instances) > 1 for fleet in fleets)
        if target in ("vllm", "sglang") or (target == "trtllm" and two):
            steps += [f"On the first node{' of each cluster' if len(fleets) > 1 else ''} run `router.sh`."] * front
        elif front:
            steps.append("Put a load balancer in front of the instances.")
        return steps
    if target in ("slurm", "mpi", "ray", "torchrun"):
        start = {
            "slurm": "`sbatch job.sbatch PROGRAM`",
            "mpi": "`./launch.sh PROGRAM`",
            "ray": "`place.py`",
            "torchrun": "`node-N.sh PROGRAM` on every node",
        }[target]
        told = "" if target == "ray" else "; the program reads REPLICA (the instance), RANK, WORLD_SIZE and ROLE"
        return [f"Run {start}{where}{told}.", "Put a router in front of the instances' first ranks."]
    if target == "kubernetes":
        steps = ["`kubectl apply -f` every group's folder."]
        if two:
            selected = f"deployment=plan-{fleets[0].short_digest} role="
            steps.append(
                "Start a router that finds the pods by their labels: `python3 -m sglang_router.launch_router "
                f"--pd-disaggregation --service-discovery --service-discovery-port {fleets[0].port} --prefill-selector "
                f"{selected}prefill --decode-selector {selected}decode` for SGLang; vLLM's router has addresses only, "
                "which the pods get late: the targets dynamo and llm-d bring one along."
            )
        else:
            steps.append("Each group has a service; spread requests over them by the shares of the table.")
        return steps
    if target == "dynamo":
        return ["`kubectl apply -f` the config maps, then `dynamo.yaml`; its frontend is the router."]
    if target == "llm-d":
        return ["`helm install` the modelservice chart with the values; the gateway's scheduler is the router."]
    return ["Read the table: a row per GPU."]


def _nodes(launch: Deployment | Fleet) -> str:
    nodes = launch.nodes
    return ", ".join(launch.host(n) for n in nodes[:MAX_NODES]) + (", ..." if len(nodes) > MAX_NODES else "")


def _files(files: Sequence[ExportFile]) -> list[str]:
    shown = [f"- `{file.path}`" for file in files[:MAX_FILES]]
    if len(files) > MAX_FILES:
        shown.append(f"- ... {len(files)} files in all")
    return ["## Files", "", *shown, ""]


def _left(notes: Iterable[str]) -> list[str]:
    return ["## Left to the engine", "", *([f"- {note}" for note in notes] or ["- nothing"]), ""]
