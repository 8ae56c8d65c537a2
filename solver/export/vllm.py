"""vLLM: one ``vllm serve`` per node and instance, and a plugin that applies an explicit expert map.

Ranks: ``dp * (PP * TP) + pp * TP + tp``; expert parallelism spans the whole stage, ``ep_rank = dp * TP + tp``.
Flags are those of vLLM 0.33.
"""

from __future__ import annotations

import json

from solver.errors import ExportError
from solver.export.deployment import Deployment, Instance, NodeShare, Pool
from solver.export.files import Command, ExportFile, comment_head, flags
from solver.export.nodes import node_files

RPC_PORT, MASTER_PORT = 1, 2
"""Offsets of an instance's further ports from its HTTP port."""
SIDE_CHANNEL_PORT, SIDE_CHANNELS = 1000, 10
"""The NIXL side channels of an instance (one per data-parallel rank) begin so far above the first instance's HTTP port,
and so many times as far apart as the HTTP ports."""
NEVER = 2**30
"""A token threshold that no step reaches: switches dual-batch overlap off in one phase."""
STEP_INTERVAL, WINDOW = 3000, 1000
"""Steps between two rearrangements, and of load statistics (the engine's defaults). The first one, which applies the
map, comes after a quarter of the interval; later ones find nothing to move, so a short interval only costs time."""
PLUGIN = "shardwright_expert_map"

PLUGIN_CODE = '''"""vLLM general plugin: the expert map of a shardwright plan instead of the built-in policy.

Reads the file named by SHARDWRIGHT_EXPERT_MAP: {"physical_to_logical_map": [[...] per MoE layer]}, one logical expert
per slot. vLLM asks the policy at every rearrangement; the answer is always this map.
"""

import json
import os


def register():
    path = os.environ.get("SHARDWRIGHT_EXPERT_MAP")
    if not path:
        return
    import torch
    from vllm.distributed.eplb import policy
    from vllm.distributed.eplb.policy.default import DefaultEplbPolicy

    with open(path, encoding="utf-8") as file:
        planned = torch.tensor(json.load(file)["physical_to_logical_map"], dtype=torch.int64)

    class PlannedPolicy(DefaultEplbPolicy):
        @classmethod
        def rebalance_experts(
            cls, weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices=None
        ):
            needed = (weight.shape[0], num_replicas)
            if tuple(planned.shape) != needed:
                raise ValueError(f"{path} holds {tuple(planned.shape)} slots, the engine needs {needed}")
            return planned if old_global_expert_indices is None else planned.to(old_global_expert_indices.dtype)

    policy.EPLB_POLICIES["default"] = PlannedPolicy
'''
PLUGIN_PROJECT = f"""[build-system]
requires = ["setuptools>=61"]
build-backend = "setuptools.build_meta"

[project]
name = "shardwright-expert-map"
version = "0.1"
description = "Applies the expert map of a shardwright plan in vLLM"

[project.entry-points."vllm.general_plugins"]
{PLUGIN} = "{PLUGIN}:register"

[tool.setuptools]
py-modules = ["{PLUGIN}"]
"""


def needs_map(pool: Pool) -> bool:
    """Whether the experts must be placed by the plugin (vLLM itself places them in order, without replicas)."""
    return not pool.has_linear_map


def serve_options(deployment: Deployment, pool: Pool) -> list[str]:
    """The words of ``vllm serve`` that are equal on every node."""
    strategy, problem = pool.strategy, pool.problem
    expert_parallel = problem.llm.is_moe and strategy.moe_ep > 1
    options: list[tuple[str, str | int | float | bool | None]] = [
        ("--tensor-parallel-size", strategy.attn_tp),
        ("--pipeline-parallel-size", strategy.pp),
        ("--data-parallel-size", strategy.attn_dp if strategy.attn_dp > 1 else None),
        ("--enable-expert-parallel", expert_parallel),
        ("--all2all-backend", _backend(pool) if expert_parallel and strategy.attn_dp > 1 else None),
        ("--max-num-seqs", pool.sequences_per_rank),
        ("--max-num-batched-tokens", pool.step_tokens),
        ("--max-model-len", pool.longest_sequence),
        ("--gpu-memory-utilization", f"{problem.calibration.usable_memory:.4g}"),
        ("--kv-cache-dtype", "fp8" if problem.llm.dtypes.kv == "fp8" else None),
    ]
    if strategy.decode_overlap or strategy.prefill_overlap:
        options += [
            ("--enable-dbo", True),
            ("--dbo-decode-token-threshold", 2 if strategy.decode_overlap else NEVER),
            ("--dbo-prefill-token-threshold", 2 if strategy.prefill_overlap else NEVER),
        ]
    if needs_map(pool):
        eplb = {
            "num_redundant_experts": problem.redundant_experts,
            "window_size": WINDOW,
            "step_interval": STEP_INTERVAL,
            "use_async": False,
        }
        options += [("--enable-eplb", True), ("--eplb-config", json.dumps(eplb))]
    if problem.workload.speculative is not None:
        draft = {"method": "mtp", "num_speculative_tokens": problem.workload.speculative.draft}
        options.append(("--speculative-config", json.dumps(draft)))
    if pool.role != "aggregated":
        role = "kv_producer" if pool.role == "prefill" else "kv_consumer"
        options.append(("--kv-transfer-config", json.dumps({"kv_connector": "NixlConnector", "kv_role": role})))
    return [deployment.weights, *flags(options)]


def _backend(pool: Pool) -> str:
    """All-to-all backend: DeepEP's throughput kernels serve both phases of an aggregated instance."""
    if not pool.uses_all_to_all:
        return "allgather_reducescatter"
    return "deepep_low_latency" if pool.role == "decode" else "deepep_high_throughput"


def node_options(deployment: Deployment, instance: Instance, share: NodeShare) -> list[str]:
    """The words that differ between the nodes of an instance."""
    strategy, lead = deployment.pool.strategy, deployment.lead(instance)
    nodes, http = len(instance.shares), ("--port", deployment.port_of(instance))
    per_rank = strategy.attn_tp * strategy.pp
    local = len(share.seats) // per_rank
    data: list[tuple[str, str | int | float | bool | None]] = []
    if strategy.attn_dp > 1:
        data = [
            ("--data-parallel-address", lead),
            ("--data-parallel-rpc-port", deployment.port_of(instance, RPC_PORT)),
        ]
    if nodes == 1:
        return flags([http, *data])
    if local:  # whole data-parallel ranks on every node
        data.append(("--data-parallel-size-local", local))
        if share.index:
            data += [("--headless", True), ("--data-parallel-start-rank", share.index * local)]
            return flags(data)
        return flags([http, *data])
    data += [
        ("--nnodes", nodes),
        ("--node-rank", share.index),
        ("--master-addr", lead),
        ("--master-port", deployment.port_of(instance, MASTER_PORT)),
    ]
    return flags([*data, ("--headless", True)] if share.index else [http, *data])


def environment(deployment: Deployment, instance: Instance, share: NodeShare) -> list[tuple[str, str]]:
    """Environment of an instance's processes on one node."""
    pool = deployment.pool
    env = [("CUDA_VISIBLE_DEVICES", ",".join(map(str, share.local_gpus)))]
    if pool.strategy.pp > 1:
        env.append(("VLLM_PP_LAYER_PARTITION", ",".join(map(str, pool.placement.stage_layers))))
    if needs_map(pool):
        env.append(("SHARDWRIGHT_EXPERT_MAP", f"expert-map.{deployment.tag}.json"))
    if pool.role != "aggregated":
        above = deployment.port_of(instance) - deployment.port
        side_channel = deployment.port + SIDE_CHANNEL_PORT + SIDE_CHANNELS * above
        env += [
            ("VLLM_NIXL_SIDE_CHANNEL_HOST", deployment.host(share.node)),
            ("VLLM_NIXL_SIDE_CHANNEL_PORT", str(side_channel)),
        ]
    return env


def commands(deployment: Deployment) -> list[Command]:
    """One command per node and instance."""
    common = serve_options(deployment, deployment.pool)
    return [
        Command(
            share.node,
            instance.replica,
            tuple(environment(deployment, instance, share)),
            ("vllm", "serve", *common, *node_options(deployment, instance, share)),
        )
        for instance in deployment.instances
        for share in instance.shares
    ]


def check(deployment: Deployment) -> None:
    """What vLLM would find out late, or never.

    Raises
    ------
    ExportError
        One sentence with the alternative.
    """
    pool = deployment.pool
    if not needs_map(pool):
        return
    if pool.num_slots % pool.strategy.moe_ep:
        raise ExportError(
            f"vLLM moves experts only where experts + redundant = {pool.num_slots} divide by EP = "
            f"{pool.strategy.moe_ep}; solve with --engine vllm"
        )
    if pool.strategy.pp > 1:
        raise ExportError(
            f"vLLM applies an expert map only without pipeline stages, the plan has pp = {pool.strategy.pp}; solve "
            "with --engine vllm, or export to sglang"
        )


def files(deployment: Deployment) -> list[ExportFile]:
    """Scripts per node, and map and plugin where the experts are not placed in order."""
    return [*node_files(deployment.origin, deployment.hosts, commands(deployment)), *map_files(deployment)]


def map_files(deployment: Deployment) -> list[ExportFile]:
    """Map and plugin where the experts are not placed in order, after the check."""
    check(deployment)
    pool, result = deployment.pool, []
    if needs_map(pool):
        rows = [list(pool.slots_of_layer(i)) for i in range(pool.problem.llm.num_moe_layers)]
        head = comment_head(deployment.origin, "install on every node: pip install ./plugin")
        result += [
            ExportFile(
                f"expert-map.{deployment.tag}.json",
                json.dumps({"plan": deployment.digest, "physical_to_logical_map": rows}) + "\n",
            ),
            ExportFile(f"plugin/{PLUGIN}.py", f"# {deployment.origin}\n{PLUGIN_CODE}"),
            ExportFile("plugin/pyproject.toml", head + PLUGIN_PROJECT),
        ]
    return result
