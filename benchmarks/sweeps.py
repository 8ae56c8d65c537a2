"""The bars of sweeps, measured: throughput of two processes, SIGKILL and resume, a crash that costs only itself; and a
Ray cluster of two nodes on this machine that gives the same bytes, also when one node is killed.

``.venv/bin/python benchmarks/sweeps.py throughput|kill|crash|ray``. POSIX only. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from solver import Sweep, SweepOptions, Swept, sweep

THROUGHPUT_BAR = 1.7
NOTICE_SECONDS = 60.0
"""Until Ray has noticed a dead node by its missed heartbeats."""
COMPARED = ("results", "plans")
TABLES = ("manifest.json", "results.jsonl", "results.parquet", "report.md", "objective.svg", "winners.svg")


def questions(number: int) -> str:
    """A sweep file of so many small problems."""
    lengths = [256 * (1 + step) for step in range(max(1, number // 4))]
    return (
        'name = "bars"\n[problem]\nllm = "qwen3-30b-a3b"\ncluster = "h200x8"\nosl = 64\nfix = ["pp=1"]\n'
        f'[grid]\nisl = {lengths}\nconcurrency = ["4", "8", "16", "32"]\n'
    )


@dataclass(frozen=True)
class Cost:
    """What one run took."""

    wall_s: float
    cpu_s: float
    """User and system time of this process and all that it started."""


def timed(run: Callable[[], object]) -> Cost:
    """Wall and CPU time of a call."""

    def cpu() -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    wall, used = time.monotonic(), cpu()
    run()
    return Cost(time.monotonic() - wall, cpu() - used)


def contents(folder: Path) -> dict[str, bytes]:
    """Everything that must be equal between two runs, by name."""
    files = [file for name in COMPARED for file in sorted((folder / name).iterdir())]
    files += [folder / name for name in TABLES if (folder / name).exists()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def differences(one: Path, other: Path) -> list[str]:
    """Names of files that are missing on a side or differ."""
    left, right = contents(one), contents(other)
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def throughput(folder: Path, number: int) -> bool:
    """One process against two."""
    asked = Sweep.read(str(written(folder, number)))
    costs = {}
    for processes in (1, 2):
        print(f"load before: {os.getloadavg()[0]:.2f}")
        options = SweepOptions(processes=processes)
        cost = timed(lambda options=options: sweep(asked, str(folder / f"p{options.processes}"), options))  # type: ignore[misc]
        costs[processes] = cost
        own = resource.getrusage(resource.RUSAGE_SELF)
        print(f"CPU of this process so far, start and pictures included: {own.ru_utime + own.ru_stime:.1f} s")
        rate = number / cost.wall_s
        print(f"{processes} processes: {cost.wall_s:.1f} s wall, {cost.cpu_s:.1f} s CPU, {rate:.2f} problems/s")
    gain = costs[1].wall_s / costs[2].wall_s
    print(f"throughput of two processes: {gain:.2f} x (bar {THROUGHPUT_BAR})")
    print(f"CPU of two over one: {costs[2].cpu_s / costs[1].cpu_s:.3f}")
    unequal = differences(folder / "p1", folder / "p2")
    print(f"files that differ: {len(unequal)}")
    return gain >= THROUGHPUT_BAR and not unequal


def written(folder: Path, number: int) -> Path:
    """The sweep file."""
    file = folder / "sweep.toml"
    file.write_text(questions(number), encoding="utf-8")
    return file


def start(file: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    """The command line of a sweep, running."""
    command = [sys.executable, "-m", "solver", "sweep", str(file), "--out", str(out), "--no-progress", "--json", *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def found_in(folder: Path) -> int:
    """Outcomes that a folder holds."""
    return len(list(folder.glob("results/[!.]*")))


def kill(folder: Path, number: int, times: int = 10) -> bool:
    """SIGKILL at random moments of the whole sweep (so many results, and a while), each followed by a new start."""
    file, chance = written(folder, number), random.Random(0)
    start(file, folder / "undisturbed").wait()
    out, killed = folder / "killed", 0
    for turn in range(times):
        enough = found_in(out) + chance.randrange(number // times)
        process = start(file, out)
        while found_in(out) < enough and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.5))
        if process.poll() is None:
            killed += 1
            process.send_signal(signal.SIGKILL)
            process.wait()
        print(f"kill {turn + 1}: {found_in(out)} of {number} results")
    before = found_in(out)
    code = start(file, out).wait()
    unequal = differences(folder / "undisturbed", out)
    print(f"killed {killed} times, the last with {before} of {number} results; the last run ended with {code}; "
          f"files that differ: {len(unequal)} {unequal[:3]}")  # fmt: skip
    return code == 0 and killed == times and not unequal


def crash(folder: Path, number: int) -> bool:
    """SIGSEGV to a worker in the middle of a problem."""
    file = written(folder, number)
    start(file, folder / "undisturbed").wait()
    process = start(file, folder / "crashed", "--processes", "2")
    while len(list((folder / "crashed").glob("results/[!.]*"))) < number // 3:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    children += [
        child
        for task in Path(f"/proc/{process.pid}/task").iterdir()
        for child in (task / "children").read_text().split()
        if child not in children
    ]
    workers = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(int(workers[0]), signal.SIGSEGV)
    code = process.wait()
    unequal = [name for name in differences(folder / "undisturbed", folder / "crashed") if name.startswith("results/")]
    print(f"one worker killed by SIGSEGV: exit code {code}, {len(unequal)} of {number} outcomes differ")
    again = start(file, folder / "crashed", "--retry-failed").wait()
    left = differences(folder / "undisturbed", folder / "crashed")
    print(f"with --retry-failed: exit code {again}, files that differ: {len(left)}")
    return code == 4 and len(unequal) == 1 and again == 0 and not left


def ray_cluster(folder: Path, number: int) -> bool:
    """Two raylets on this machine; the same sweep as with local processes, then again while one node dies."""
    import ray
    from ray.cluster_utils import Cluster

    asked = Sweep.read(str(written(folder, number)))
    sweep(asked, str(folder / "local"), SweepOptions())
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()

        def on_ray(name: str) -> Swept:
            return sweep(asked, str(folder / name), SweepOptions(engine="ray", address=cluster.address))

        calm = timed(lambda: on_ray("ray"))
        unequal = differences(folder / "local", folder / "ray")
        print(f"two nodes: {calm.wall_s:.1f} s, files that differ from local: {len(unequal)} {unequal[:3]}")
        killed_at: list[int] = []

        def kill_node() -> None:
            results = folder / "wounded" / "results"
            while not results.exists() or len(list(results.glob("[!.]*"))) < number // 4:
                time.sleep(0.02)
            killed_at.append(len(list(results.glob("[!.]*"))))
            cluster.remove_node(second, allow_graceful=False)

        assassin = threading.Thread(target=kill_node)
        assassin.start()
        swept = on_ray("wounded")
        assassin.join()
        ray.init(cluster.address, log_to_driver=False, logging_level="error")
        patience = time.monotonic() + NOTICE_SECONDS
        while (alive := sum(bool(node["Alive"]) for node in ray.nodes())) > 1 and time.monotonic() < patience:
            time.sleep(0.2)
        ray.shutdown()
        wounded = differences(folder / "local", folder / "wounded")
        print(f"a node killed after {killed_at[0]} of {number} results: {swept.counts}, nodes alive {alive}, "
              f"files that differ from local: {len(wounded)} {wounded[:3]}")  # fmt: skip
        return not unequal and not wounded and alive == 1 and killed_at[0] < number
    finally:
        cluster.shutdown()


BARS: dict[str, tuple[Callable[[Path, int], bool], int]] = {
    "throughput": (throughput, 200),
    "kill": (kill, 200),
    "crash": (crash, 24),
    "ray": (ray_cluster, 48),
}


def main() -> None:
    """Measure one bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bar", choices=BARS)
    parser.add_argument("--number", type=int, help="problems of the sweep")
    arguments = parser.parse_args()
    measure, number = BARS[arguments.bar]
    folder = Path(tempfile.mkdtemp(prefix="shardwright-sweeps-"))
    try:
        passed = measure(folder, arguments.number or number)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("pass" if passed else "MISSED")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
