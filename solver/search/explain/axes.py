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
    if workload.concurrency is not None and workload.concurrency > 1:
        axes.append(
            Axis(
                "concurrency", "sequences", 1, workload.concurrency,
                lambda value: problem.model_copy(update={"workload": with_concurrency(workload, value)}),
            )
        )  # fmt: skip
    if workload.longest_isl > 1:
        axes.append(
            Axis(
                "isl", "tokens", 1, workload.longest_isl,
                lambda value: problem.model_copy(update={"workload": with_prompts(workload, value)}),
            )
        )  # fmt: skip
    if workload.osl > 1:
        axes.append(
            Axis(
                "osl", "tokens", 1, workload.osl,
                lambda value: problem.model_copy(update={"workload": with_output(workload, value)}),
            )
        )  # fmt: skip
    return {axis.name: axis for axis in axes}


def with_gpus(problem: Problem, gpus: int) -> Problem:
    """The problem with another number of GPUs (exactly, where it asks so), on the smallest cluster that has them.

    The cluster grows only when it must, by whole nodes and scale-up domains; then all of it may be used.
    """
    grown = problem.cluster if gpus <= problem.cluster.num_gpus else sized(problem.cluster, gpus)
    exactly = gpus if problem.gpus_exact is not None else None
    most = gpus if exactly is None and grown is problem.cluster else None
    return problem.model_copy(update={"cluster": grown, "gpus_exact": exactly, "gpus_at_most": most})


def _slo_at(problem: Problem, name: AxisName) -> Callable[[int], Problem]:
    assert name in SLO_RULES
    return lambda value: problem.model_copy(update={"workload": with_slo(problem.workload, name, value)})
