"""The bars of the main job, measured: wall time, solver time and peak memory of whole commands, medians of five.

Run it with the Python that has the package: ``.venv/bin/python benchmarks/main_job.py``. It prints a Markdown table
with bar, measurement and verdict, and takes a few minutes. POSIX only (memory is read from ``wait4``).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

GIB_IN_KIB = 2**20
MEMORY_BAR_GIB = 1.0


@dataclass(frozen=True)
class Case:
    """One command and its bars; absent bars are not asked."""

    name: str
    arguments: str
    wall_bar_s: float
    solver_bar_s: float | None = None
    is_solve: bool = False
    prepare: str | None = None
    """Command that is run once before, unmeasured."""


CASES = (
    Case(
        "reference, 2048 GPUs, latency",
        "solve --objective latency --json",
        wall_bar_s=5.0, solver_bar_s=2.0, is_solve=True,
    ),
    Case(
        "DeepSeek-V3, 256 H200, throughput, free concurrency, TPOT <= 50 ms",
        "solve --model deepseek-v3 --cluster h200x256 --workload batch --objective throughput --slo-tpot 50ms --json",
        wall_bar_s=10.0, is_solve=True,
    ),
    Case(
        "reference LLM, 131072 GPUs, 8192 sequences, latency",
        "solve --cluster referencex131072 --concurrency 8192 --objective latency --json",
        wall_bar_s=20.0, is_solve=True,
    ),
    Case(
        "verify --exhaustive, reference",
        "verify reference.plan.json --exhaustive",
        wall_bar_s=5.0, prepare="solve --objective latency --out reference.plan.json",
    ),
    Case("--help", "--help", wall_bar_s=0.7),
    Case("catalog list", "catalog list", wall_bar_s=0.7),
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One measured command."""

    wall_s: float
    peak_kib: int
    solver_s: float | None
    note: str


@dataclass(frozen=True)
class Row:
    """One line of the result."""

    case: str
    what: str
    bar: str
    measured: str
    passed: bool | None
    """Absent where there is no bar."""


def run(arguments: str, folder: Path, *, is_solve: bool) -> Run:
    """Run ``python -m solver`` once; its peak memory is that of the process alone.

    Raises
    ------
    RuntimeError
        The command failed; its last line on stderr is in the message.
    """
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        command = [sys.executable, "-m", "solver", *shlex.split(arguments)]
        begun = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        last = (folder / "stderr").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"solver {arguments}: exit {process.returncode}: {''.join(last)}")
    peak = usage.ru_maxrss // (1024 if sys.platform == "darwin" else 1)
    if not is_solve:
        return Run(wall, peak, None, "")
    plan = json.loads((folder / "stdout").read_text(encoding="utf-8"))
    note = f"{plan['status']}, {plan['strategy']['full_label']}, {plan['metrics']['gpus_used']} GPUs"
    return Run(wall, peak, float(plan["certificate"]["wall_s"]["total"]), note)


def rows_of(case: Case, runs: list[Run]) -> Iterator[Row]:
    """Wall time, solver time where it has a bar, and memory of a solve."""
    note = f" ({runs[0].note})" if runs[0].note else ""
    wall = statistics.median(r.wall_s for r in runs)
    yield Row(case.name + note, "whole command", f"{case.wall_bar_s:g} s", f"{wall:.2f} s", wall <= case.wall_bar_s)
    solver = [r.solver_s for r in runs if r.solver_s is not None]
    if solver:
        middle, bar = statistics.median(solver), case.solver_bar_s
        passed = None if bar is None else middle <= bar
        yield Row(case.name, "solver", "-" if bar is None else f"{bar:g} s", f"{middle:.2f} s", passed)
    if case.is_solve:
        peak = statistics.median(r.peak_kib for r in runs) / GIB_IN_KIB
        yield Row(case.name, "peak memory", f"{MEMORY_BAR_GIB:g} GiB", f"{peak:.2f} GiB", peak <= MEMORY_BAR_GIB)


def measure(case: Case, num_runs: int) -> list[Row]:
    """Rows of one case; a failed command is a row, too."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            if case.prepare is not None:
                run(case.prepare, folder, is_solve=False)
            runs = [run(case.arguments, folder, is_solve=case.is_solve) for _ in range(num_runs)]
        except RuntimeError as error:
            return [Row(case.name, "whole command", f"{case.wall_bar_s:g} s", str(error)[:120], False)]
        return list(rows_of(case, runs))


def machine() -> str:
    """What it was measured on, in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [line.split(":", 1)[1] for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = named[0].strip() if named else cpu
    return f"{cores} cores of {cpu}, Python {platform.python_version()}, OR-Tools {metadata.version('ortools')}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="runs per command; the median is shown")
    parser.add_argument("--cores", type=int, default=2, help="cores that the commands may use (Linux only)")
    parser.add_argument("--only", default="", help="measure only the cases whose name contains this text")
    chosen = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: chosen.cores])
    print(f"Medians of {chosen.runs} on {machine()}\n", flush=True)
    print("| command | what | bar | measured | |\n|---|---|---|---|---|", flush=True)
    for case in CASES:
        if chosen.only in case.name:
            for row in measure(case, chosen.runs):
                verdict = {True: "pass", False: "MISS", None: "-"}[row.passed]
                print(f"| {row.case} | {row.what} | {row.bar} | {row.measured} | {verdict} |", flush=True)


if __name__ == "__main__":
    main()
