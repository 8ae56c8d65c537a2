"""Time to proof as the problem grows: GPUs, sequences, experts, layers. Writes a CSV, and plots where matplotlib is.

Run it with the Python that has the package: ``.venv/bin/python benchmarks/growth.py --out growth``. A few minutes on a
quiet machine. User CPU time stands beside wall time, so that a busy machine shows.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from importlib import import_module, util
from pathlib import Path

from solver import Ask, Plan, Problem, SolveOptions, solve


@dataclass(frozen=True)
class Point:
    """One problem of a series."""

    series: str
    axis: str
    """What grows."""
    size: int
    problem: Problem


@dataclass(frozen=True)
class Measured:
    """Medians over the runs of one point."""

    series: str
    axis: str
    size: int
    status: str
    wall_s: float
    cpu_s: float
    tables_s: float
    program_s: float
    blocks_s: float
    iterations: int
    configurations: int
    plan_kb: float
    """Size of the plan document."""


def points(only: list[str]) -> Iterator[Point]:
    """Every series from its smallest problem to its largest."""
    gpus = (2048, 4096, 8192, 16384, 32768, 65536, 131072)
    for n in gpus if "gpus" in only else ():
        cluster = f"referencex{n}"
        yield Point("reference, 128 sequences, latency", "GPUs", n, Ask(cluster=cluster).problem())
        many = Ask(cluster=cluster, concurrency=str(n // 16)).problem()
        yield Point("reference, a sequence per 16 GPUs, latency", "GPUs", n, many)
        served = Ask(llm="deepseek-v3", cluster=f"h200x{n}", workload="batch", objective="throughput", slo_tpot="50 ms")
        yield Point("deepseek-v3, free concurrency, throughput", "GPUs", n, served.problem())
    for n in (128, 1024, 8192, 65536) if "sequences" in only else ():
        crowded = Ask(cluster="referencex131072", concurrency=str(n)).problem()
        yield Point("reference, 131,072 GPUs, latency", "sequences", n, crowded)
    base = Ask(llm="deepseek-v3", cluster="h200x256", workload="batch", objective="throughput").problem()
    moe = base.llm.moe
    assert moe is not None
    for experts in (32, 64, 128, 256, 512) if "experts" in only else ():
        wider = base.llm.model_copy(update={"moe": moe.model_copy(update={"num_experts": experts})})
        yield Point("deepseek-v3, 256 GPUs, throughput", "experts", experts, base.model_copy(update={"llm": wider}))
    dense = Ask(llm="llama-3.1-8b", cluster="h200x256", workload="batch", objective="throughput").problem()
    for layers in (8, 16, 32, 64, 128) if "layers" in only else ():
        deeper = dense.llm.model_copy(update={"num_layers": layers})
        yield Point("llama-3.1-8b, 256 GPUs, throughput", "layers", layers, dense.model_copy(update={"llm": deeper}))


def measure(point: Point, runs: int, limit_s: float) -> Measured:
    """Solve a point several times."""
    walls, cpus = [], []
    for _ in range(runs):
        wall, cpu = time.perf_counter(), time.process_time()
        answer = solve(point.problem, SolveOptions(time_limit_s=limit_s))
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    plan = answer if isinstance(answer, Plan) else None
    parts = None if plan is None else plan.certificate.wall_s
    return Measured(
        point.series, point.axis, point.size, answer.status, round(statistics.median(walls), 3),
        round(statistics.median(cpus), 3),
        tables_s=0.0 if parts is None else parts.tables,
        program_s=0.0 if parts is None else parts.program,
        blocks_s=0.0 if parts is None else parts.blocks,
        iterations=0 if plan is None else len(plan.certificate.iterations),
        configurations=0 if plan is None else plan.certificate.space.configurations,
        plan_kb=0.0 if plan is None else round(len(plan.model_dump_json()) / 1e3, 1),
    )  # fmt: skip


def plot(measured: list[Measured], out: Path) -> None:
    """One picture per axis, logarithmic both ways, as PNG and SVG."""
    matplotlib = import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = import_module("matplotlib.pyplot")
    for axis in dict.fromkeys(row.axis for row in measured):
        figure, axes = pyplot.subplots(figsize=(7, 4))
        for series in dict.fromkeys(row.series for row in measured if row.axis == axis):
            rows = [row for row in measured if (row.axis, row.series) == (axis, series)]
            axes.plot([row.size for row in rows], [row.cpu_s for row in rows], marker="o", label=series)
        axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="CPU seconds to proof")
        axes.grid(visible=True, which="both", alpha=0.3)
        axes.legend(fontsize=8)
        figure.tight_layout()
        for suffix in ("png", "svg"):
            figure.savefig(out / f"growth-{axis.lower()}.{suffix}", dpi=120)
        pyplot.close(figure)


def main() -> None:
    """Measure, write, plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="growth", help="folder for the CSV and the plots")
    parser.add_argument("--runs", type=int, default=3, help="runs per problem; medians are kept")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds per solve")
    parser.add_argument("--only", default="gpus,sequences,experts,layers", help="which axes, by comma")
    chosen = parser.parse_args()
    out = Path(chosen.out)
    out.mkdir(parents=True, exist_ok=True)
    measured = []
    with (out / "growth.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [field.name for field in fields(Measured)])
        table.writeheader()
        solve()  # the first solve of a process imports and warms what the others find ready
        for point in points(chosen.only.split(",")):
            row = measure(point, chosen.runs, chosen.limit)
            measured.append(row)
            table.writerow(asdict(row))
            file.flush()
            print(f"{row.series}: {row.size} {row.axis}: {row.status} in {row.cpu_s:.2f} s CPU ({row.wall_s:.2f} s)")
    if util.find_spec("matplotlib") is not None:
        plot(measured, out)


if __name__ == "__main__":
    main()
