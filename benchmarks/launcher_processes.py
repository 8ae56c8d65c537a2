"""Start real processes on this machine by exported Slurm, MPI and Ray files, and see where each one lands.

usage: launcher_processes.py --checks DIR --plans DIR [--ray PYTHON]

DIR of ``--checks`` has ``mpi/fakersh.sh`` (runs "remote" commands here under a pretended node name), ``slurm/up.sh``
and ``down.sh`` (a controller and two nodes h0 and h1 of eight slots on the loopback). ``--plans`` holds plan documents;
those of at most two nodes and sixteen GPUs are started. ``--ray`` is a Python with ray.

A line per launcher: plans, processes, misplaced ones. The exit code is 1 when any is.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import launchers

from solver import Plan, export
from solver.expansion import expand
from solver.export import ExportOptions

HOSTS = ("h0", "h1")
RAY_TEST = """
import json, os, sys
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DISABLE_IMPORT_WARNING="1")
import ray
from ray.cluster_utils import Cluster
sys.path.insert(0, sys.argv[1])
import place
cluster = Cluster(initialize_head=False)
for node in place.PLAN["nodes"]:
    cluster.add_node(num_cpus=1, num_gpus=node["gpus"], labels={"host": node["name"]}, object_store_memory=80 * 2**20)
ray.init(address=cluster.address, log_to_driver=False)
names = {node["NodeID"]: node["Labels"].get("host") for node in ray.nodes()}
for rank, (node, gpus) in enumerate(ray.get([w.where.remote() for w in place.workers(place.create())], timeout=100)):
    print(rank, names[node], gpus[0])
"""


def small_plans(folder: Path) -> list[Plan]:
    """Plans that two nodes of eight hold, largest first, one per strategy."""
    found: dict[str, Plan] = {}
    for file in sorted(folder.glob("*.json")):
        plan = Plan.parse(file.read_text())
        if plan.metrics.gpus_used <= 16 and plan.problem.cluster.num_gpus <= 16:
            found.setdefault(f"{plan.problem.engine} {plan.strategy.full_label} {plan.placement.stage_layers}", plan)
    return sorted(found.values(), key=lambda plan: -plan.metrics.gpus_used)


def run(command: list[str], folder: Path, env: dict[str, str]) -> str:
    """Output of a command; its complaints when it fails."""
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **env}, capture_output=True, text=True, timeout=150, check=False
    )
    if done.returncode:
        print(f"{shlex.join(command)[:200]}: {done.stderr[-400:]}", file=sys.stderr)
    return done.stdout


def mpi(folder: Path, checks: Path, _ray: str | None) -> str:
    """Start by launch.sh; every "host" is this machine."""
    options = (
        f"--mca plm rsh --mca plm_rsh_agent {checks / 'mpi/fakersh.sh'} --mca btl self,tcp --mca oob_tcp_if_include lo "
        "--mca btl_tcp_if_include lo --oversubscribe"
    )
    env = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "MPIRUN_OPTIONS": options}
    show = 'echo "$OMPI_COMM_WORLD_RANK $MYNODE $CUDA_VISIBLE_DEVICES"'
    return run(["bash", "launch.sh", "bash", "-c", show], folder, env)


def slurm(folder: Path, checks: Path, _ray: str | None) -> str:
    """Start by the srun line of job.sbatch."""
    line = next(row for row in (folder / "job.sbatch").read_text().splitlines() if "srun" in row)
    show = 'echo "$SLURM_PROCID $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"'
    env = {"SLURM_CONF": str(checks / "slurm/slurm.conf")}
    return run(["bash", "-c", line, "job", "bash", "-c", show], folder, env)


def ray(folder: Path, _checks: Path, python: str | None) -> str:
    """Start by place.py on a loopback cluster with pretended GPUs."""
    assert python is not None
    return run([python, "-c", RAY_TEST, str(folder)], folder, {})


def wanted(plan: Plan, target: str, folder: Path) -> list[tuple[int, str, int]]:
    """(rank, host, GPU) of every process, by the plan's own map and the launcher arithmetic of the tests."""
    assert not launchers.misplaced(plan, target, folder)
    places = launchers.job_places(target, folder)
    node_gpus = plan.placement.gpus_per_node
    return [(rank, HOSTS[node], gpu % node_gpus) for rank, (node, gpu) in enumerate(places)]


def main() -> int:
    """Everything that is installed here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checks", type=Path, required=True)
    parser.add_argument("--plans", type=Path, required=True)
    parser.add_argument("--ray", default=None)
    given = parser.parse_args()
    checks, plans = given.checks.resolve(), small_plans(given.plans)
    starters: dict[str, Callable[[Path, Path, str | None], str]] = {}
    if shutil.which("mpirun"):
        starters["mpi"] = mpi
    if shutil.which("srun"):
        starters["slurm"] = slurm
        subprocess.run(["bash", str(checks / "slurm/up.sh")], capture_output=True, timeout=60, check=False)
    if given.ray:
        starters["ray"] = ray
    bad = 0
    print("| launcher | plans | processes | misplaced |\n|---|---|---|---|")
    for target, start in starters.items():
        chosen = plans if target != "ray" else plans[:4]  # a Ray cluster takes ten seconds to come up
        processes = misplaced = 0
        for plan in chosen:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                launchers.write(export(plan, target), folder)
                expected = wanted(plan, target, folder)
                launchers.write(export(plan, target, ExportOptions(hosts=HOSTS)), folder)
                for script in folder.glob("*.sh"):
                    script.chmod(0o755)
                lines = [row.split() for row in start(folder, checks, given.ray).splitlines() if len(row.split()) == 3]
                found = sorted((int(rank), host, int(float(gpu))) for rank, host, gpu in lines)
                assert len(expected) == len(list(expand(plan)))
                wrong = set(expected) ^ set(found)
                processes, misplaced = processes + len(found), misplaced + len(wrong)
                if wrong:
                    print(json.dumps([plan.strategy.full_label, sorted(wrong)[:6]]), file=sys.stderr)
        print(f"| {target} | {len(chosen)} | {processes} | {misplaced} |", flush=True)
        bad += misplaced
    if "slurm" in starters:
        subprocess.run(["bash", str(checks / "slurm/down.sh")], capture_output=True, timeout=60, check=False)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
