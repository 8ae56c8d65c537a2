"""TensorRT-LLM: one YAML with every setting, the load-balancer YAML, and how each instance is started.

Ranks: ``pp * TP + tp`` where TP is the whole stage; attention DP is all of it or nothing; among the experts EP is the
fast axis, ``tp = moe_tp * EP + moe_ep``. A rank takes device ``rank % gpus_per_node``. Keys are those of release 1.2.
"""

from __future__ import annotations

from solver.export.deployment import Deployment, Instance, Pool
from solver.export.files import Command, ExportFile, Yaml, comment_head, flags, yaml_text
from solver.export.nodes import node_files

TRANSFER = "UCX"
"""Backend that moves the KV cache from context to generation servers."""
TOKENS_PER_BLOCK = 32
"""KV tokens are allocated in blocks of this size (the release's default)."""


def needs_map(pool: Pool) -> bool:
    """Whether the placement must be given (TensorRT-LLM itself places experts in order, without replicas)."""
    return not pool.has_linear_map


def config_file(deployment: Deployment) -> str:
    """Name of the file with the settings."""
    return f"trtllm.{deployment.name}.yaml" if deployment.name else "trtllm.yaml"


def balancer_file(deployment: Deployment) -> str:
    """Name of the file with the placement of experts."""
    return f"moe_load_balancer.{deployment.name}.yaml" if deployment.name else "moe_load_balancer.yaml"


def settings(deployment: Deployment) -> dict[str, Yaml]:
    """Everything the server is told; nothing is left to the command line, where precedence differs by version."""
    pool = deployment.pool
    strategy, problem = pool.strategy, pool.problem
    blocks = _in_blocks(pool.longest_sequence)
    kv_cache: dict[str, Yaml] = {
        "max_tokens": pool.cached_sequences * blocks,
        "free_gpu_memory_fraction": 0.95,
        "dtype": "fp8" if problem.llm.dtypes.kv == "fp8" else "auto",
    }
    table: dict[str, Yaml] = {
        "backend": "pytorch",
        "tensor_parallel_size": strategy.stage_gpus,
        "pipeline_parallel_size": strategy.pp,
        "gpus_per_node": len(deployment.instances[0].shares[0].seats),
        "enable_attention_dp": strategy.attn_dp > 1,
        "max_batch_size": strategy.batch,
        "max_num_tokens": pool.step_tokens,
        "max_seq_len": pool.longest_sequence,
        "enable_chunked_prefill": True,
        "kv_cache_config": kv_cache,
    }
    if strategy.pp > 1:
        table["pp_partition"] = list(pool.placement.stage_layers)
    if problem.llm.is_moe:
        table["moe_expert_parallel_size"] = strategy.moe_ep
        table["moe_tensor_parallel_size"] = strategy.moe_tp
        moe: dict[str, Yaml] = {"backend": "WIDEEP" if pool.uses_all_to_all or needs_map(pool) else "AUTO"}
        if needs_map(pool):
            moe["load_balancer"] = balancer_file(deployment)
        table["moe_config"] = moe
    if pool.role == "prefill":
        table["disable_overlap_scheduler"] = True  # context servers refuse the overlap scheduler
    if pool.role != "aggregated":
        longest = _in_blocks(problem.workload.longest_isl)
        table["cache_transceiver_config"] = {"backend": TRANSFER, "max_tokens_in_buffer": longest}
    return table


def _in_blocks(tokens: int) -> int:
    return -(-tokens // TOKENS_PER_BLOCK) * TOKENS_PER_BLOCK


def balancer(pool: Pool) -> dict[str, Yaml]:
    """Slots of every MoE layer, by decoder layer; static (no updates while serving)."""
    layers = pool.problem.llm.moe_layer_indices
    return {
        "num_slots": pool.num_slots,
        "layer_updates_per_iter": 0,
        "initial_global_assignments": {layer: list(pool.slots_of_layer(i)) for i, layer in enumerate(layers)},
    }


def commands(deployment: Deployment) -> list[Command]:
    """One command per instance, on its first node: alone on one node, else through Slurm over its nodes."""
    return [_command(deployment, instance) for instance in deployment.instances]


def _command(deployment: Deployment, instance: Instance) -> Command:
    first = instance.shares[0]
    port = flags([("--host", "0.0.0.0"), ("--port", deployment.port_of(instance))])
    serve = ("trtllm-serve", deployment.weights, "--config", config_file(deployment), *port)
    env: tuple[tuple[str, str], ...] = (("CUDA_VISIBLE_DEVICES", ",".join(map(str, first.local_gpus))),)
    if len(instance.shares) == 1:
        return Command(first.node, instance.replica, env, serve)
    hosts = f"hosts-{instance.replica}.{deployment.short_digest}.txt"
    launch = ("srun", "--mpi=pmix", "-N", str(len(instance.shares)), "-n", str(len(instance.seats)))
    env = (*env, ("SLURM_HOSTFILE", hosts))
    return Command(
        first.node, instance.replica, env, (*launch, "--distribution=arbitrary", "trtllm-llmapi-launch", *serve)
    )


def files(deployment: Deployment) -> list[ExportFile]:
    """Configuration, load balancer, host files and start scripts."""
    urls = [f"{deployment.lead(i)}:{deployment.port_of(i)}" for i in deployment.instances]
    note = comment_head(deployment.origin, "addresses of all instances, for the load balancer in front of them")
    return [
        *config_files(deployment),
        ExportFile("endpoints.txt", note + "\n".join(urls) + "\n"),
        *node_files(deployment.origin, deployment.hosts, commands(deployment)),
    ]


def config_files(deployment: Deployment) -> list[ExportFile]:
    """What the servers read: configuration, load balancer, host files."""
    pool, head = deployment.pool, comment_head(deployment.origin)
    result = [ExportFile(config_file(deployment), head + yaml_text(settings(deployment)) + "\n")]
    if needs_map(pool):
        result.append(ExportFile(balancer_file(deployment), head + yaml_text(balancer(pool)) + "\n"))
    for instance in deployment.instances:
        if len(instance.shares) > 1:
            lines = [deployment.host(seat.record.node) for seat in instance.seats]
            name = f"hosts-{instance.replica}.{deployment.short_digest}.txt"
            result.append(ExportFile(name, "\n".join(lines) + "\n"))
            ranks = [
                f"rank {seat.rank}={deployment.host(seat.record.node)} slot={seat.record.local_gpu}\n"
                for seat in instance.seats
            ]
            result.append(ExportFile(f"rankfile-{instance.replica}.txt", head + "".join(ranks)))
    return result
