"""Megatron-LM: parallel arguments, the pipeline layout and the rank order, started by torchrun with static ranks.

Ranks: ``tp-cp-ep-dp-pp``, leftmost fastest, so a rank is ``pp * G + dp * TP + tp``; the experts factor the same ranks
as ``etp-ep-edp-pp``. The other order (``tp-pp-dp``) demands equal attention and expert data parallelism, which an
instance with attention DP does not have. Arguments are those of megatron-core 0.16.
"""

from __future__ import annotations

from solver.errors import ExportError
from solver.export.deployment import Deployment, Pool
from solver.export.files import Command, ExportFile, flags
from solver.export.nodes import node_files
from solver.export.torchrun import torchrun_words

PROGRAM = "tools/run_text_generation_server.py"
"""The server of the Megatron-LM repository; its checkpoint arguments are the caller's."""


def layout(stage_layers: tuple[int, ...]) -> str:
    """Pipeline layout: E the embedding, t a decoder layer, L the loss or LM head, ``|`` between stages."""
    stages = ["t" * count for count in stage_layers]
    stages[0] = "E" + stages[0]
    stages[-1] += "L"
    return "|".join(stages)


def arguments(pool: Pool) -> list[str]:
    """The parallel arguments."""
    strategy, moe = pool.strategy, pool.problem.llm.is_moe
    return flags([
        ("--tensor-model-parallel-size", strategy.attn_tp),
        ("--pipeline-model-parallel-size", strategy.pp),
        ("--context-parallel-size", 1),
        ("--expert-model-parallel-size", strategy.moe_ep if moe else None),
        ("--expert-tensor-parallel-size", strategy.moe_tp if moe else None),
        ("--sequence-parallel", moe and strategy.attn_tp > 1 and strategy.moe_ep > 1),
        ("--moe-token-dispatcher-type", ("alltoall" if pool.uses_all_to_all else "allgather") if moe else None),
        ("--pipeline-model-parallel-layout", layout(pool.placement.stage_layers) if strategy.pp > 1 else None),
        ("--micro-batch-size", strategy.batch),
        ("--inference-max-requests", pool.sequences_per_rank),
        ("--inference-max-seq-length", pool.longest_sequence),
    ])  # fmt: skip


def check(deployment: Deployment) -> None:
    """Refuse what Megatron cannot express.

    Raises
    ------
    ExportError
        The experts are not in order, or replicated.
    """
    if not deployment.pool.has_linear_map:
        raise ExportError(
            "Megatron holds experts in order and once; the plan places or replicates them otherwise: solve with "
            "--engine megatron and without expert loads, or export to sglang"
        )


def commands(deployment: Deployment) -> list[Command]:
    """One torchrun per node and instance."""
    words = arguments(deployment.pool)
    return [
        Command(
            share.node,
            instance.replica,
            (("CUDA_VISIBLE_DEVICES", ",".join(map(str, share.local_gpus))),),
            (*torchrun_words(deployment, instance, share), PROGRAM, *words),
        )
        for instance in deployment.instances
        for share in instance.shares
    ]


def files(deployment: Deployment) -> list[ExportFile]:
    """Scripts per node."""
    check(deployment)
    return node_files(deployment.origin, deployment.hosts, commands(deployment))
