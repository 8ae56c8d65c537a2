"""Open MPI: a process per GPU on the node that the plan names, by rankfile or in the order of a sequence file.

The rankfile binds a process to the core slot with the number of its GPU; the sequence file (``--map-by seq``) places
without binding and is what the script uses.
"""

from __future__ import annotations

from solver.export.deployment import Deployment, Launch
from solver.export.files import ExportFile, comment_head

WRAPPER = """set -euo pipefail
here="$(dirname "$0")"
export WORLD_SIZE=@WORLD@
export REPLICA=$((OMPI_COMM_WORLD_RANK / WORLD_SIZE))
export RANK=$((OMPI_COMM_WORLD_RANK % WORLD_SIZE))
export LOCAL_RANK=0
export CUDA_VISIBLE_DEVICES="$(sed -n "$((OMPI_COMM_WORLD_RANK + 1))p" "$here/@DEVICES@")"
exec "$@"
"""


def files(deployment: Deployment) -> list[ExportFile]:
    """Rankfile, sequence file, device of every rank, rank wrapper, start script."""
    world = str(deployment.pool.strategy.instance_gpus)
    devices_file = f"devices.{deployment.short_digest}.txt"
    return job_files(deployment, WRAPPER.replace("@WORLD@", world).replace("@DEVICES@", devices_file))


def job_files(deployment: Launch, wrapper: str) -> list[ExportFile]:
    """The job of all instances; `wrapper` is what a rank runs before the program."""
    seats = [seat for instance in deployment.instances for seat in instance.seats]
    devices_file = f"devices.{deployment.short_digest}.txt"
    head = comment_head(deployment.origin)
    ranks = "".join(
        f"rank {rank}={deployment.host(seat.record.node)} slot={seat.record.local_gpu}\n"
        for rank, seat in enumerate(seats)
    )
    sequence = "".join(f"{deployment.host(seat.record.node)}\n" for seat in seats)
    start = (
        f"#!/usr/bin/env bash\n{head}# usage: launch.sh PROGRAM [ARGUMENT...]; MPIRUN_OPTIONS are added\n"
        'set -euo pipefail\ncd "$(dirname "$0")"\n'
        f"exec mpirun ${{MPIRUN_OPTIONS:-}} --hostfile sequence.txt --map-by seq --bind-to none -np {len(seats)} "
        './rank.sh "$@"\n'
    )
    return [
        ExportFile("rankfile.txt", head + ranks),
        ExportFile("sequence.txt", head + sequence),
        ExportFile(devices_file, "".join(f"{seat.record.local_gpu}\n" for seat in seats)),
        ExportFile("rank.sh", f"#!/usr/bin/env bash\n{head}{wrapper}", executable=True),
        ExportFile("launch.sh", start, executable=True),
    ]
