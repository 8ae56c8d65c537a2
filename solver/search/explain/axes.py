"""The numbers of a problem that may give, one at a time: each an axis of integer steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from solver.explanation import AxisName
from solver.search.explain.constraints import (
    SLO_RULES,
    sized,
    with_concurrency,
    with_memory,
    with_output,
    with_prompts,
    with_slo,
)
from solver.specs.problem import Problem
from solver.specs.workload import Workload

MEMORY_STEP_BYTES = 2**20
"""One MiB: below the error of any ledger."""


@dataclass(frozen=True)
class Axis:
    """One number of a problem."""

    name: AxisName
    unit: str
    step: int
    asked: int
    at: Callable[[int], Problem] = field(compare=False)
    """The problem with another value; everything else as asked."""


def axes_of(problem: Problem) -> dict[AxisName, Axis]:
    """The axes that a problem has."""
    workload, cluster = problem.workload, problem.cluster
    axes = [
        Axis("gpus", "GPUs", 1, problem.gpu_budget, lambda value: with_gpus(problem, value)),
        Axis(
            "memory", "bytes per GPU", MEMORY_STEP_BYTES, cluster.gpu.memory,
            lambda value: problem.model_copy(update={"cluster": with_memory(cluster, value)}),
        ),
    ]  # fmt: skip
    names: tuple[AxisName, ...] = ("ttft", "tpot", "request_latency")
    for name in names:
        limit: int | None = getattr(workload.slo, name)
        if limit is not None:
            axes.append(Axis(name, "ns", 1, limit, _slo_at(problem, name)))
    lengths: tuple[tuple[AxisName, str, int, Callable[[Workload, int], Workload]], ...] = (
        ("concurrency", "sequences", workload.concurrency or 1, with_concurrency),
        ("isl", "tokens", workload.longest_isl, with_prompts),
        ("osl", "tokens", workload.osl, with_output),
    )
    for name, unit, asked, changed in lengths:
        if asked > 1:
            axes.append(Axis(name, unit, 1, asked, _workload_at(problem, changed)))
    return {axis.name: axis for axis in axes}


def with_gpus(problem: Problem, gpus: int) -> Problem:
    """The problem with another number of GPUs (exactly, where it asks so), on the smallest cluster that has them.

    The cluster grows only when it must, by whole nodes and scale-up domains; then all of it may be used.
    """
    grown = problem.cluster if gpus <= problem.cluster.num_gpus else sized(problem.cluster, gpus)
    exactly = gpus if problem.gpus_exact is not None else None
    most = gpus if exactly is None and grown is problem.cluster else None
    return problem.model_copy(update={"cluster": grown, "gpus_exact": exactly, "gpus_at_most": most})


def _workload_at(problem: Problem, changed: Callable[[Workload, int], Workload]) -> Callable[[int], Problem]:
    return lambda value: problem.model_copy(update={"workload": changed(problem.workload, value)})


def _slo_at(problem: Problem, name: AxisName) -> Callable[[int], Problem]:
    assert name in SLO_RULES
    return lambda value: problem.model_copy(update={"workload": with_slo(problem.workload, name, value)})
