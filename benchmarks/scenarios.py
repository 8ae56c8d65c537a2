"""How the time of ``solve_scenarios`` grows with the number of scenarios.

Run it with the Python that has the package: ``.venv/bin/python benchmarks/scenarios.py``. Every run is a process of its
own; wall and user seconds are medians. The scenarios span 128 to 10240 tokens evenly in the logarithm.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from solver import Ask, Scenarios, SolveOptions, solve_scenarios
from solver.plan import NoPlan

COUNTS = (1, 2, 4, 8, 16)
SHORTEST, LONGEST, OSL = 128, 10240, 64


@dataclass(frozen=True)
class Case:
    """One question that scenarios are asked of."""

    name: str
    ask: Ask


CASES = (
    Case("reference, 2048 GPUs, latency", Ask()),
    Case(
        "DeepSeek-V3, 64 H200, latency, 64 concurrent",
        Ask(llm="deepseek-v3", cluster="h200x64", workload="chat", concurrency="64"),
    ),
    Case(
        "DeepSeek-V3, 64 H200, throughput, free concurrency, TPOT <= 50 ms",
        Ask(
            llm="deepseek-v3",
            cluster="h200x64",
            workload="chat",
            concurrency="free",
            objective="throughput",
            slo_tpot="50 ms",
        ),
    ),
)


def scenarios_of(count: int) -> Scenarios:
    """`count` prompt lengths from shortest to longest, short ones more often."""
    steps = max(1, count - 1)
    isl = [round((SHORTEST - OSL) * ((LONGEST - OSL) / (SHORTEST - OSL)) ** (i / steps)) for i in range(count)]
    rows = [{"name": f"{length}", "isl": length, "osl": OSL, "weight": count - i} for i, length in enumerate(isl)]
    return Scenarios.read({"scenario": rows}, "benchmark")


def one_run(case: Case, count: int, over: str, limit_s: float) -> str:
    """Wall seconds, user seconds, status, iterations and label of one run in this process."""
    problem = case.ask.problem()
    begun, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
    how = "regret" if over == "regret" else "expected"
    answer = solve_scenarios(problem, scenarios_of(count), how, SolveOptions(time_limit_s=limit_s))  # type: ignore[arg-type]
    wall, user = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_utime - used
    if isinstance(answer, NoPlan):
        return f"{wall}|{user}|{answer.status}|0|"
    return f"{wall}|{user}|{answer.status}|{len(answer.claim.iterations)}|{answer.launched.full_label}"


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--most", type=int, default=max(COUNTS), help="largest number of scenarios")
    parser.add_argument("--limit", type=float, default=120.0, help="time limit of a run, seconds")
    parser.add_argument("--one", nargs=3, metavar=("CASE", "COUNT", "OVER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        index, count, over = arguments.one
        print(one_run(CASES[int(index)], int(count), over, arguments.limit))
        return
    print(f"Medians of {arguments.runs}; {platform.processor() or platform.machine()}, Python "
          f"{platform.python_version()}, load average {os.getloadavg()[0]:.1f}\n")  # fmt: skip
    print("| case | scenarios | over | wall | user | status | turns | deployment |\n|---|---|---|---|---|---|---|---|")
    for index, case in enumerate(CASES):
        if arguments.only not in case.name:
            continue
        for count in (count for count in COUNTS if count <= arguments.most):
            for over in ("expected", "regret"):
                command = [
                    sys.executable,
                    __file__,
                    "--limit",
                    str(arguments.limit),
                    "--one",
                    str(index),
                    str(count),
                    over,
                ]
                lines = [
                    subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().split("|")
                    for _ in range(arguments.runs)
                ]
                wall, user = (statistics.median(float(line[i]) for line in lines) for i in (0, 1))
                status, turns, label = lines[0][2:]
                cells = (case.name, count, over, f"{wall:.1f} s", f"{user:.1f} s", status, turns, label)
                print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
