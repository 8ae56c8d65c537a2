"""The bar of the Pareto front, measured: at least 12 points on 64 GPUs in at most 60 s, whole commands, medians.

Run it with the Python that has the package: ``.venv/bin/python benchmarks/pareto.py``. Every front is judged afterwards
(``verify``), outside the measured time. It prints a Markdown table. POSIX only (processor time is read from ``wait4``).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from main_job import machine

POINTS_BAR, WALL_BAR_S = 12, 60.0


@dataclass(frozen=True)
class Case:
    """One front."""

    name: str
    arguments: str


CASES = (
    Case(
        "DeepSeek-V3, 64 H200, latency and throughput, free concurrency, 12 points",
        "--model deepseek-v3 --cluster h200x64 --workload batch --metrics latency,throughput --points 12",
    ),
    Case(
        "Llama-3.1-70B, 64 H200, latency and throughput, free concurrency, 16 points",
        "--model llama-3.1-70b --cluster h200x64 --workload batch --metrics latency,throughput --points 16",
    ),
    Case(
        "Llama-3.1-70B, 64 H200, TPOT and GPUs, 64 sequences, all points",
        "--model llama-3.1-70b --cluster h200x64 --workload chat --concurrency 64 --metrics tpot,gpus",
    ),
)


@dataclass(frozen=True)
class Run:
    """One measured command."""

    wall_s: float
    cpu_s: float
    points: int
    status: str
    solves: int


def measure(case: Case, folder: Path) -> Run:
    """One front, and the judge's word on it.

    Raises
    ------
    RuntimeError
        The command failed, or the judge convicts the front.
    """
    out = folder / "front.json"
    solver = [sys.executable, "-m", "solver"]
    command = [*solver, "pareto", *shlex.split(case.arguments), "--out", str(out), "--force", "--no-progress"]
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit {process.returncode}")
    verdict = subprocess.run([*solver, "verify", str(out)], capture_output=True, text=True, check=False)
    if verdict.returncode != 0:
        raise RuntimeError(f"the judge convicts the front: {verdict.stdout[:300]}")
    front = json.loads(out.read_text(encoding="utf-8"))
    points = front["points"]
    return Run(wall, usage.ru_utime + usage.ru_stime, len(points), front["status"], len(front["steps"]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="runs per command; the median is shown")
    parser.add_argument("--cores", type=int, default=2, help="cores that the commands may use (Linux only)")
    parser.add_argument("--only", default="", help="measure only the cases whose name contains this text")
    chosen = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: chosen.cores])
    load = f"; load average before {os.getloadavg()[0]:.1f}"
    print(f"Medians of {chosen.runs} on {machine()}{load}\n", flush=True)
    print("| front | points | solves | bar | wall | processor | |\n|---|---|---|---|---|---|---|", flush=True)
    for case in CASES:
        if chosen.only not in case.name:
            continue
        with tempfile.TemporaryDirectory() as name:
            runs = [measure(case, Path(name)) for _ in range(chosen.runs)]
        wall, cpu = statistics.median(run.wall_s for run in runs), statistics.median(run.cpu_s for run in runs)
        points = min(run.points for run in runs)
        whole = all(run.status == "COMPLETE" for run in runs)  # a front has as many points as it has
        passed = wall <= WALL_BAR_S and (points >= POINTS_BAR or whole)
        print(
            f"| {case.name} | {points} ({runs[0].status}) | {runs[0].solves} | >= {POINTS_BAR} in {WALL_BAR_S:g} s | "
            f"{wall:.1f} s | {cpu:.1f} s | {'pass' if passed else 'MISS'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
