"""SGLang: one ``sglang.launch_server`` per node and instance, the expert-location file, and the router.

Ranks: ``pp * TP + tp`` where TP is the whole stage; attention DP lies inside it, ``tp = attn_dp * ATTN_TP + attn_tp``,
and so do the experts, ``tp = moe_ep * MOE_TP + moe_tp``. Flags are those of SGLang 0.5.23.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from solver.errors import ExportError
from solver.export.deployment import Deployment, Instance, NodeShare, Pool
from solver.export.files import Command, ExportFile, flags, listens, node_script
from solver.export.nodes import node_files

INIT_PORT, BOOTSTRAP_PORT = 1, 8
"""Offsets of an instance's further ports from its HTTP port; SGLang itself takes those from 2 to 7 above the former."""
TRANSFER = "mooncake"
"""Backend that moves the KV cache from prefill to decode (the engine's default)."""
DEEPEP_TOKENS = 128
"""Tokens per rank that DeepEP's low-latency buffers hold unless told otherwise."""
PAGE = 64
"""Prefill chunks are rounded to whole pages of this many tokens (a multiple of every page size SGLang picks)."""


def needs_map(pool: Pool) -> bool:
    """Whether the placement must be given (SGLang itself places experts in order, without replicas)."""
    return not pool.has_linear_map


def location_rows(pool: Pool) -> list[list[int]]:
    """Logical expert of every slot, one row per decoder layer, dense layers included (their row is never read)."""
    llm = pool.problem.llm
    experts = 0 if llm.moe is None else llm.moe.num_experts
    index = {layer: i for i, layer in enumerate(llm.moe_layer_indices)}
    return [
        list(pool.slots_of_layer(index[layer]))
        if layer in index
        else [slot % experts for slot in range(pool.num_slots)]
        for layer in range(llm.num_layers)
    ]


def static_fraction(pool: Pool) -> float:
    """Share of the GPU for weights and KV pool: the usable share less what the ledger keeps for work and reserves.

    The stage that needs most for them decides, because SGLang has one fraction for all ranks; rounded down.
    """
    memory_kib = pool.problem.cluster.gpu.memory / 1024
    return int(max(0.1, pool.problem.calibration.usable_memory - pool.work_kib / memory_kib) * 100) / 100


def serve_options(deployment: Deployment, pool: Pool) -> list[str]:
    """The words of the launch command that are equal on every node."""
    strategy, problem = pool.strategy, pool.problem
    moe, attn_dp = problem.llm.is_moe, strategy.attn_dp
    overlap = strategy.decode_overlap or strategy.prefill_overlap
    chunk = -(-problem.workload.prefill_chunk_tokens // PAGE) * PAGE * attn_dp
    options: list[tuple[str, str | int | float | bool | None]] = [
        ("--model-path", deployment.weights),
        ("--tp-size", strategy.stage_gpus),
        ("--pp-size", strategy.pp),
        ("--attn-dp-size", attn_dp if attn_dp > 1 else None),
        ("--ep-size", strategy.moe_ep if moe else None),
        ("--moe-a2a-backend", "deepep" if pool.uses_all_to_all else None),
        ("--deepep-mode", {"aggregated": "auto", "prefill": "normal", "decode": "low_latency"}[pool.role]
         if pool.uses_all_to_all else None),
        ("--enable-two-batch-overlap", overlap),
        ("--max-running-requests", pool.sequences_per_rank * attn_dp),
        ("--pp-max-micro-batch-size", strategy.batch if strategy.pp > 1 else None),
        ("--chunked-prefill-size", None if pool.role == "decode" else chunk),
        ("--context-length", pool.longest_sequence),
        ("--mem-fraction-static", f"{static_fraction(pool):.2f}"),
        ("--kv-cache-dtype", "fp8_e4m3" if problem.llm.dtypes.kv == "fp8" else None),
    ]  # fmt: skip
    if needs_map(pool):
        options += [
            ("--ep-num-redundant-experts", problem.redundant_experts or None),
            ("--init-expert-location", location_file(deployment)),
        ]
    if problem.workload.speculative is not None:
        draft = problem.workload.speculative.draft
        options += [
            ("--speculative-algorithm", "EAGLE"),
            ("--speculative-num-steps", draft),
            ("--speculative-eagle-topk", 1),
            ("--speculative-num-draft-tokens", draft + 1),
        ]
    if pool.role != "aggregated":
        options += [("--disaggregation-mode", pool.role), ("--disaggregation-transfer-backend", TRANSFER)]
    return flags(options)


def location_file(deployment: Deployment) -> str:
    """Name of the expert-location file; SGLang accepts no key beside the map, so the digest is in the name."""
    return f"expert-location.{deployment.tag}.json"


def node_options(deployment: Deployment, instance: Instance, share: NodeShare) -> list[str]:
    """The words that differ between the nodes of an instance."""
    http: list[tuple[str, str | int | float | bool | None]] = [
        ("--host", "0.0.0.0"),
        ("--port", deployment.port_of(instance)),
    ]
    if deployment.pool.role == "prefill":
        http.append(("--disaggregation-bootstrap-port", deployment.port_of(instance, BOOTSTRAP_PORT)))
    if len(instance.shares) == 1:
        return flags(http)
    return flags([
        *http,
        ("--nnodes", len(instance.shares)),
        ("--node-rank", share.index),
        ("--dist-init-addr", f"{deployment.lead(instance)}:{deployment.port_of(instance, INIT_PORT)}"),
    ])  # fmt: skip


def environment(deployment: Deployment, share: NodeShare) -> list[tuple[str, str]]:
    """Environment of an instance's processes on one node."""
    pool = deployment.pool
    env = [("CUDA_VISIBLE_DEVICES", ",".join(map(str, share.local_gpus)))]
    if pool.strategy.pp > 1:
        env.append(("SGLANG_PP_LAYER_PARTITION", ",".join(map(str, pool.placement.stage_layers))))
    tokens = pool.strategy.batch * pool.decode_tokens
    if pool.uses_all_to_all and pool.role != "prefill" and tokens > DEEPEP_TOKENS:
        env.append(("SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK", str(tokens)))
    return env


def commands(deployment: Deployment) -> list[Command]:
    """One command per node and instance."""
    common = serve_options(deployment, deployment.pool)
    return [
        Command(
            share.node,
            instance.replica,
            tuple(environment(deployment, share)),
            ("python3", "-m", "sglang.launch_server", *common, *node_options(deployment, instance, share)),
        )
        for instance in deployment.instances
        for share in instance.shares
    ]


def router(deployment: Deployment) -> Command:
    """The router in front of all instances."""
    urls = [f"http://{deployment.lead(i)}:{deployment.port_of(i)}" for i in deployment.instances]
    words = ("python3", "-m", "sglang_router.launch_router", "--worker-urls", *urls, *listens(deployment.router_port))
    return Command(deployment.instances[0].shares[0].node, 0, (), words)


def files(deployment: Deployment) -> list[ExportFile]:
    """Scripts per node, the expert-location file where experts are not placed in order, the router script."""
    result = [*node_files(deployment.origin, deployment.hosts, commands(deployment)), *map_files(deployment)]
    if len(deployment.instances) > 1:
        script = node_script(deployment.origin, "one address for all instances", [router(deployment)])
        result.append(ExportFile("router.sh", script, executable=True))
    return result


def map_files(deployment: Deployment) -> list[ExportFile]:
    """The expert-location file where experts are not placed in order."""
    if not needs_map(deployment.pool):
        return []
    text = json.dumps({"physical_to_logical_map": location_rows(deployment.pool)}) + "\n"
    return [ExportFile(location_file(deployment), text)]


def check_pools(pools: Sequence[Pool]) -> None:
    """What prefill and decode servers find out about one another when they meet.

    Raises
    ------
    ExportError
        Decode instances have pipeline stages, but not as many as all prefill instances.
    """
    prefill = {pool.strategy.pp for pool in pools if pool.role == "prefill"}
    for pool in pools:
        if pool.role == "decode" and pool.strategy.pp > 1 and prefill != {pool.strategy.pp}:
            raise ExportError(
                f"SGLang's decode servers have one pipeline stage or as many as the prefill servers, the deployment "
                f"has {pool.strategy.pp} and {', '.join(map(str, sorted(prefill)))}; deploy with --max-pp 1, or "
                "with --engine trtllm"
            )
