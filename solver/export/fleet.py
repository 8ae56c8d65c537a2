"""Deployments as files: every group's instances on their own nodes and GPUs, the pools' roles, a router in front.

Engines get one script per node, which starts the instances that sit there. Launchers of ranks get one job of all
instances, whose program reads from its environment which instance, rank and role it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain

from solver.errors import ExportError
from solver.export import kubernetes, megatron, mpi, ranks, ray, sglang, slurm, torchrun, trtllm, vllm
from solver.export.deployment import Deployment, Fleet
from solver.export.files import Command, ExportFile, Yaml, comment_head, listens, node_script, yaml_text
from solver.export.nodes import node_files
from solver.specs.problem import Role

DISAGGREGATED = "disaggregated.yaml"
LAST_PORT = 65535


def vllm_files(fleet: Fleet) -> list[ExportFile]:
    """Scripts, maps and the plugin, and vLLM's router."""
    last = max(fleet.port_of(instance) for instance in fleet.instances) - fleet.port
    if fleet.is_disaggregated and fleet.port + vllm.SIDE_CHANNEL_PORT + vllm.SIDE_CHANNELS * (last + 10) > LAST_PORT:
        raise ExportError(
            f"{last // 10 + 1} instances on a node need ports above {LAST_PORT} for their side channels; give a lower "
            f"--port than {fleet.port}"
        )
    maps = {file.path: file for part in fleet.parts for file in vllm.map_files(part)}
    shell = ("vllm-router", "--policy", "round_robin", *listens(fleet.router_port))
    if fleet.is_disaggregated:
        urls = [*_listed(fleet, "prefill", "--prefill"), *_listed(fleet, "decode", "--decode")]
        shell = (*shell, "--vllm-pd-disaggregation", "--kv-connector", "nixl", *urls)
    else:
        shell = (*shell, "--worker-urls", *_urls(fleet, "aggregated"))
    return [*_scripts(fleet, vllm.commands), *maps.values(), *_router(fleet, shell)]


def sglang_files(fleet: Fleet) -> list[ExportFile]:
    """Scripts, expert locations, and SGLang's router."""
    sglang.check_pools([part.pool for part in fleet.parts])
    maps = [file for part in fleet.parts for file in sglang.map_files(part)]
    shell = ("python3", "-m", "sglang_router.launch_router", *listens(fleet.router_port))
    if fleet.is_disaggregated:
        prefill = [
            ("--prefill", f"http://{fleet.address(instance)}", str(fleet.port_of(instance, sglang.BOOTSTRAP_PORT)))
            for instance in fleet.serving("prefill")
        ]
        shell = (*shell, "--pd-disaggregation", *chain(*prefill), *_listed(fleet, "decode", "--decode"))
    else:
        shell = (*shell, "--worker-urls", *_urls(fleet, "aggregated"))
    return [*_scripts(fleet, sglang.commands), *maps, *_router(fleet, shell)]


def trtllm_files(fleet: Fleet) -> list[ExportFile]:
    """Scripts and configurations; of two pools the server in front of them, else the addresses."""
    made = [*_scripts(fleet, trtllm.commands), *(file for part in fleet.parts for file in trtllm.config_files(part))]
    head = comment_head(fleet.origin)
    if not fleet.is_disaggregated:
        addresses = "".join(f"{fleet.address(instance)}\n" for instance in fleet.instances)
        note = comment_head(fleet.origin, "addresses of all instances, for the load balancer in front of them")
        return [*made, ExportFile("endpoints.txt", note + addresses)]
    front: dict[str, Yaml] = {"hostname": "0.0.0.0", "port": fleet.router_port, "backend": "pytorch"}
    for key, served in (("context_servers", fleet.serving("prefill")), ("generation_servers", fleet.serving("decode"))):
        front[key] = {"num_instances": len(served), "urls": [fleet.address(instance) for instance in served]}
    shell = ("trtllm-serve", "disaggregated", "-c", DISAGGREGATED)
    return [*made, ExportFile(DISAGGREGATED, head + yaml_text(front) + "\n"), *_router(fleet, shell)]


def megatron_files(fleet: Fleet) -> list[ExportFile]:
    """Scripts; one pool only."""
    if fleet.is_disaggregated:
        raise ExportError(
            "Megatron has no disaggregated serving; export to vllm, sglang or trtllm, or deploy with --mode aggregated"
        )
    for part in fleet.parts:
        megatron.check(part)
    return _scripts(fleet, megatron.commands)


def _scripts(fleet: Fleet, commands: Callable[[Deployment], list[Command]]) -> list[ExportFile]:
    return node_files(fleet.origin, fleet.hosts, [command for part in fleet.parts for command in commands(part)])


def _listed(fleet: Fleet, role: Role, flag: str) -> list[str]:
    return [word for url in _urls(fleet, role) for word in (flag, url)]


def _urls(fleet: Fleet, role: Role) -> list[str]:
    return [f"http://{fleet.address(instance)}" for instance in fleet.serving(role)]


def _router(fleet: Fleet, words: tuple[str, ...]) -> list[ExportFile]:
    """The script of the one address for all instances; none where there is one instance."""
    if len(fleet.instances) == 1:
        return []
    command = Command(fleet.instances[0].shares[0].node, 0, (), words)
    script = node_script(fleet.origin, "one address for all instances; start it when they answer", [command])
    return [ExportFile("router.sh", script, executable=True)]


# --- launchers of ranks -----------------------------------------------------------------------------------------------

TASK = """set -euo pipefail
here="$(dirname "$0")"
read -r REPLICA RANK WORLD_SIZE ROLE MASTER_ADDR MASTER_PORT CUDA_VISIBLE_DEVICES \\
    < <(sed -n "$((@TASK@ + 1))p" "$here/@TASKS@")
export REPLICA RANK WORLD_SIZE ROLE MASTER_ADDR MASTER_PORT CUDA_VISIBLE_DEVICES LOCAL_RANK=0
exec "$@"
"""
"""Run by every task: line k of the table is task k."""


def _tasks(fleet: Fleet) -> tuple[str, ExportFile]:
    """Name and text of the table of tasks."""
    name, lines = f"tasks.{fleet.short_digest}.txt", []
    for part in fleet.parts:
        for instance in part.instances:
            master = f"{fleet.lead(instance)} {fleet.port_of(instance, torchrun.MASTER_PORT)}"
            lines += [
                f"{instance.replica} {seat.rank} {len(instance.seats)} {part.pool.role} {master} "
                f"{seat.record.local_gpu}\n"
                for seat in instance.seats
            ]
    return name, ExportFile(name, "".join(lines))


def slurm_files(fleet: Fleet) -> list[ExportFile]:
    """One job of all instances, and the table of its tasks."""
    name, table = _tasks(fleet)
    return [*slurm.job_files(fleet, TASK.replace("@TASK@", "SLURM_PROCID").replace("@TASKS@", name)), table]


def mpi_files(fleet: Fleet) -> list[ExportFile]:
    """One job of all instances, and the table of its ranks."""
    name, table = _tasks(fleet)
    return [*mpi.job_files(fleet, TASK.replace("@TASK@", "OMPI_COMM_WORLD_RANK").replace("@TASKS@", name)), table]


def torchrun_files(fleet: Fleet) -> list[ExportFile]:
    """Scripts that tell the program its instance and role."""
    return torchrun.files(fleet, {i.replica: part.pool.role for part in fleet.parts for i in part.instances})


def ray_files(fleet: Fleet) -> list[ExportFile]:
    """One placement group of all instances.

    Raises
    ------
    ExportError
        A node's GPUs are not used from the first one on: Ray hands them out in that order.
    """
    for node in fleet.nodes:
        used = sorted(gpu for _, share in fleet.shares_of(node) for gpu in share.local_gpus)
        if used != list(range(len(used))):
            raise ExportError(
                f"Ray hands out the GPUs of a node from the first one on, and {fleet.host(node)} uses "
                f"{', '.join(map(str, used))}; export to slurm or mpi"
            )
    return ray.files(fleet)


def csv_files(fleet: Fleet) -> list[ExportFile]:
    """The table of GPUs with role and group."""
    return [ranks.csv_file([_told(part, row) for part in fleet.parts for row in ranks.rows(part)], fleet)]


def jsonl_files(fleet: Fleet) -> list[ExportFile]:
    """The table of GPUs with role, group and experts."""
    return [
        ranks.jsonl_file(
            [(_told(part, row), experts) for part in fleet.parts for row, experts in ranks.expert_rows(part)], fleet
        )
    ]


def _told(part: Deployment, row: ranks.Row) -> ranks.Row:
    return {"role": part.pool.role, "group": part.name, **row}


# --- clusters of containers -------------------------------------------------------------------------------------------


def lws_files(fleet: Fleet) -> list[ExportFile]:
    """A folder with LeaderWorkerSet, service and config map for each group.

    Raises
    ------
    ExportError
        TensorRT-LLM in two pools: its server in front needs the address of every instance.
    """
    if fleet.is_disaggregated and fleet.engine == "trtllm":
        raise ExportError(
            "trtllm's disaggregated server wants the address of every instance, which pods of a LeaderWorkerSet get "
            "late; export to dynamo, or to trtllm on fixed nodes"
        )
    _check_engines(fleet)
    return [
        ExportFile(f"{part.name}/{file.path}", file.text) for part in fleet.parts for file in kubernetes.lws_files(part)
    ]


def dynamo_files(fleet: Fleet) -> list[ExportFile]:
    """One graph with a component for each group, and a config map for each."""
    _check_engines(fleet)
    head = comment_head(fleet.origin)
    graph = kubernetes.dynamo_graph(f"plan-{fleet.short_digest}", fleet.parts)
    maps = [
        ExportFile(f"configmap.{part.name}.yaml", head + yaml_text(kubernetes.config_map(part)) + "\n")
        for part in fleet.parts
    ]
    return [ExportFile("dynamo.yaml", head + yaml_text(graph) + "\n"), *maps]


def llmd_files(fleet: Fleet) -> list[ExportFile]:
    """Values with a pool for each role.

    Raises
    ------
    ExportError
        A pool has instances of several sizes, or one that the chart cannot express.
    """
    parts: dict[str, Deployment] = {}
    for part in fleet.parts:
        role = "prefill" if part.pool.role == "prefill" else "decode"
        if role in parts:
            raise ExportError(
                f"llm-d values have one size of instances for each pool, the {part.pool.role} pool has {part.name} "
                f"beside {parts[role].name}; export to dynamo, or deploy with --max-shapes 1"
            )
        parts[role] = part
    _check_engines(fleet)
    values = kubernetes.llmd_values(parts)
    return [ExportFile("llm-d-values.yaml", comment_head(fleet.origin) + yaml_text(values) + "\n")]


def _check_engines(fleet: Fleet) -> None:
    """What the engine refuses whatever starts it."""
    if fleet.engine == "sglang":
        sglang.check_pools([part.pool for part in fleet.parts])
    if fleet.engine == "vllm":
        for part in fleet.parts:
            vllm.check(part)


FLEET_TARGETS: Mapping[str, Callable[[Fleet], list[ExportFile]]] = {
    "vllm": vllm_files,
    "sglang": sglang_files,
    "trtllm": trtllm_files,
    "megatron": megatron_files,
    "torchrun": torchrun_files,
    "slurm": slurm_files,
    "mpi": mpi_files,
    "ray": ray_files,
    "kubernetes": lws_files,
    "dynamo": dynamo_files,
    "llm-d": llmd_files,
    "csv": csv_files,
    "jsonl": jsonl_files,
}
