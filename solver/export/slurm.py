"""Slurm: one job step with a task per GPU, each on the node that the plan names (``--distribution=arbitrary``).

Line k of the host file is the node of task k. Tasks are numbered replica after replica. The wrapper gives each task its
GPU and, within its replica, RANK and WORLD_SIZE.
"""

from __future__ import annotations

from solver.export.deployment import Deployment, Launch
from solver.export.files import ExportFile, comment_head

WRAPPER = """set -euo pipefail
here="$(dirname "$0")"
line() { sed -n "$(($2 + 1))p" "$here/$1"; }
export WORLD_SIZE=@WORLD@
export REPLICA=$((SLURM_PROCID / WORLD_SIZE))
export RANK=$((SLURM_PROCID % WORLD_SIZE))
export LOCAL_RANK=0
export CUDA_VISIBLE_DEVICES="$(line @DEVICES@ "$SLURM_PROCID")"
export MASTER_ADDR="$(line @HOSTS@ $((REPLICA * WORLD_SIZE)))"
export MASTER_PORT=$((@PORT@ + REPLICA % 20000))
exec "$@"
"""


def files(deployment: Deployment) -> list[ExportFile]:
    """Host file, device of every task, task wrapper, batch script."""
    wrapper = WRAPPER
    for word, value in (
        ("@WORLD@", str(deployment.pool.strategy.instance_gpus)),
        ("@DEVICES@", f"devices.{deployment.short_digest}.txt"),
        ("@HOSTS@", f"hosts.{deployment.short_digest}.txt"),
        ("@PORT@", str(deployment.port)),
    ):
        wrapper = wrapper.replace(word, value)
    return job_files(deployment, wrapper)


def job_files(deployment: Launch, wrapper: str) -> list[ExportFile]:
    """The job of all instances; `wrapper` is what a task runs before the program."""
    seats = [seat for instance in deployment.instances for seat in instance.seats]
    hosts_file = f"hosts.{deployment.short_digest}.txt"
    devices_file = f"devices.{deployment.short_digest}.txt"
    per_node = max(sum(len(share.seats) for _, share in deployment.shares_of(node)) for node in deployment.nodes)
    nodelist = ",".join(deployment.host(node) for node in deployment.nodes)
    batch = (
        f"#!/bin/bash\n#SBATCH --job-name=shardwright-{deployment.short_digest}\n"
        f"#SBATCH --nodes={len(deployment.nodes)}\n"
        f"#SBATCH --ntasks={len(seats)}\n#SBATCH --nodelist={nodelist}\n#SBATCH --gpus-per-node={per_node}\n"
        f"#SBATCH --exclusive\n"
        f"{comment_head(deployment.origin, 'usage: sbatch job.sbatch PROGRAM [ARGUMENT...], from this folder')}"
        'set -euo pipefail\ncd "${SLURM_SUBMIT_DIR:-$(dirname "$0")}"\n'
        f'SLURM_HOSTFILE="$PWD/{hosts_file}" exec srun --nodes={len(deployment.nodes)} --ntasks={len(seats)} '
        '--distribution=arbitrary ./task.sh "$@"\n'
    )
    head = comment_head(deployment.origin, "one task: its GPU and its rank, then the program")
    return [
        ExportFile(hosts_file, "".join(f"{deployment.host(seat.record.node)}\n" for seat in seats)),
        ExportFile(devices_file, "".join(f"{seat.record.local_gpu}\n" for seat in seats)),
        ExportFile("task.sh", f"#!/usr/bin/env bash\n{head}{wrapper}", executable=True),
        ExportFile("job.sbatch", batch, executable=True),
    ]
