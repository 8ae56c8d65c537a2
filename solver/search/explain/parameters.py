"""The parameters of a what-if: the problem at every value, and which of them only widen or narrow the choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from solver.errors import SpecError
from solver.search.explain.axes import with_gpus
from solver.search.explain.constraints import (
    allowed_size,
    with_concurrency,
    with_fields,
    with_memory,
    with_output,
    with_slo,
)
from solver.specs.hardware import Cluster
from solver.specs.problem import Problem
from solver.specs.vary import Vary
from solver.specs.workload import Workload


@dataclass(frozen=True)
class Parameter:
    """One parameter of one problem."""

    values: Sequence[int]
    """Ascending."""
    at: Callable[[int], Problem]
    is_nested: bool
    """Whether a value only decides which strategies are allowed (the larger the more), never what one costs."""


def parameter_of(problem: Problem, vary: Vary) -> Parameter:
    """The parameter that a caller varies.

    Raises
    ------
    SpecError
        A value contradicts the problem (beyond the context of the LLM, a list of lengths for another concurrency).
    """
    found = _parameter(problem, vary)
    for value in (found.values[0], found.values[-1]) if found.values else ():
        changed = found.at(value)
        Problem.read({name: getattr(changed, name) for name in Problem.model_fields}, f"{vary.parameter} = {value}")
    if len(found.values) < 2:
        raise SpecError(
            f"--vary {vary.parameter}: no cluster of this hardware lies between {vary.first} and {vary.last}"
        )
    return found


def _parameter(problem: Problem, vary: Vary) -> Parameter:
    name, scale = vary.parameter, vary.unit.scale
    values = range(vary.first, vary.last + 1, vary.step)
    workload, cluster = problem.workload, problem.cluster
    if name == "gpus":
        return _gpus(problem, values)
    if name == "memory":
        return Parameter(
            values, lambda v: problem.model_copy(update={"cluster": with_memory(cluster, v * scale)}), is_nested=True
        )
    if name in ("ttft", "tpot", "latency"):
        slo = "request_latency" if name == "latency" else name
        return Parameter(
            values,
            lambda v: problem.model_copy(update={"workload": with_slo(workload, slo, v * scale)}),
            is_nested=True,
        )
    if name in ("bandwidth", "scale-up-bandwidth", "scale-out-bandwidth"):
        return Parameter(
            values,
            lambda v: problem.model_copy(update={"cluster": _with_bandwidth(cluster, name, v * scale)}),
            is_nested=False,
        )
    if name == "concurrency" and workload.isl_list is not None and vary.last > len(workload.isl_list):
        raise SpecError(f"--vary concurrency --to {vary.last}: the workload lists {len(workload.isl_list)} prompts")
    changes: dict[str, Callable[[int], Workload]] = {
        "concurrency": lambda v: with_concurrency(workload, v),
        "isl": lambda v: with_fields(workload, {"isl": v, "isl_range": None, "isl_list": None}),
        "osl": lambda v: with_output(workload, v),
        "hit-rate": lambda v: with_fields(workload, {"prefix_hit_rate": v / 100}),
    }
    change = changes[name]
    return Parameter(values, lambda v: problem.model_copy(update={"workload": change(v)}), is_nested=False)


def _gpus(problem: Problem, values: range) -> Parameter:
    """Every number up to the cluster's, then the sizes that a cluster of this hardware may have."""
    cluster = problem.cluster
    allowed = [v for v in values if v <= cluster.num_gpus or allowed_size(cluster, v) == v]
    alike = allowed and (allowed[-1] <= cluster.num_gpus or cluster.domain_gpus == cluster.levels[0].gpus)
    nested = problem.gpus_exact is None and bool(alike)
    return Parameter(allowed, lambda v: with_gpus(problem, v), is_nested=nested)


def _with_bandwidth(
    cluster: Cluster, name: Literal["bandwidth", "scale-up-bandwidth", "scale-out-bandwidth"], bytes_per_s: int
) -> Cluster:
    if name == "bandwidth":
        return cluster.model_copy(update={"gpu": cluster.gpu.model_copy(update={"memory_bandwidth": bytes_per_s})})
    index = 0 if name == "scale-up-bandwidth" else len(cluster.levels) - 1
    levels = list(cluster.levels)
    levels[index] = levels[index].model_copy(update={"bandwidth": bytes_per_s})
    return cluster.model_copy(update={"levels": tuple(levels)})
