"""torchrun and plain processes: static ranks, so that rank -> GPU is the plan's and not the order of arrival.

With the c10d rendezvous torchrun ignores ``--node-rank``; static rendezvous gives rank = node rank * processes + local.
Where the plan's ranks are not consecutive on nodes, every process is started by itself with its rank.
"""

from __future__ import annotations

from collections.abc import Mapping

from solver.export.deployment import Instance, Launch, NodeShare
from solver.export.files import ExportFile, comment_head

MASTER_PORT = 3


def torchrun_words(deployment: Launch, instance: Instance, share: NodeShare) -> tuple[str, ...]:
    """The torchrun command of one node, up to the program."""
    return (
        "torchrun",
        "--nnodes", str(len(instance.shares)),
        "--node-rank", str(share.index),
        "--nproc-per-node", str(len(share.seats)),
        "--master-addr", deployment.lead(instance),
        "--master-port", str(deployment.port_of(instance, MASTER_PORT)),
    )  # fmt: skip


def _started(deployment: Launch, instance: Instance, share: NodeShare, role: str | None) -> str:
    """Shell lines that start an instance's processes on one node; the program is the script's arguments."""
    env = f"REPLICA={instance.replica}" + (f" ROLE={role}" if role else "")
    if instance.is_contiguous:
        devices = ",".join(map(str, share.local_gpus))
        words = " ".join(torchrun_words(deployment, instance, share))
        return f'env {env} CUDA_VISIBLE_DEVICES={devices} {words} "$@" &\n'
    world = (
        f"{env} WORLD_SIZE={len(instance.seats)} MASTER_ADDR={deployment.lead(instance)} "
        f"MASTER_PORT={deployment.port_of(instance, MASTER_PORT)}"
    )
    return "".join(
        f'env {world} RANK={seat.rank} LOCAL_RANK=0 CUDA_VISIBLE_DEVICES={seat.record.local_gpu} python3 "$@" &\n'
        for seat in share.seats
    )


def files(deployment: Launch, roles: Mapping[int, str] | None = None) -> list[ExportFile]:
    """A script per node; its arguments are the program, as in ``node-0.sh serve.py --option``.

    Parameters
    ----------
    roles : what every instance does, by its number, where they differ; told to the program as ROLE
    """
    width = len(str(max(deployment.nodes)))
    result = []
    for node in deployment.nodes:
        head = comment_head(
            deployment.origin, f"node {node} ({deployment.host(node)}); usage: $0 PROGRAM [ARGUMENT...]"
        )
        lines = "".join(
            _started(deployment, instance, share, (roles or {}).get(instance.replica))
            for instance, share in deployment.shares_of(node)
        )
        text = (
            f"#!/usr/bin/env bash\n{head}set -euo pipefail\n"
            f"trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{lines}wait\n"
        )
        result.append(ExportFile(f"node-{node:0{width}d}.sh", text, executable=True))
    return result
