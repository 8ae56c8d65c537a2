"""What is asked of a whole deployment: serving mode, goal, demand, prices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from solver.errors import SpecError
from solver.specs.problem import Problem
from solver.specs.spec import Spec

Mode = Literal["aggregated", "disaggregated"]
"""Instances that prefill and decode, or a pool of instances for each."""
MODES: tuple[Mode, ...] = get_args(Mode)
Goal = Literal["throughput", "efficiency", "gpus", "cost"]
UNITS: dict[Goal, str] = {
    "throughput": "requests per 10^9 s",
    "efficiency": "requests per 10^9 s and GPU",
    "gpus": "GPUs",
    "cost": "millionths of the price unit per hour",
}
"""Of the goal's integer."""
NHZ = 10**9
"""Request rates are counted in whole nanohertz (requests per 10^9 s), so that they add up exactly."""
MICRO = 10**6
"""Prices are counted in whole millionths of the currency per hour."""


class Deploying(Spec):
    """The question about a deployment, beside the LLM, the clusters, the workload and its limits."""

    mode: Literal["aggregated", "disaggregated", "auto"] = "auto"
    """``auto`` proves which one is better."""
    goal: Goal = "throughput"
    request_rate: Annotated[float, Field(gt=0, le=10**9)] | None = None
    """Requests per second that must be served; needed for the goals `gpus` and `cost`."""
    max_shapes: Annotated[int, Field(ge=1, le=64)] | None = None
    """Most different instance sizes of one pool; absent means any mix."""
    prices: tuple[Annotated[float, Field(ge=1e-3, le=10**6)], ...] = ()
    """Price of a GPU per hour in every cluster; needed for the goal `cost`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        sizing = self.goal in ("gpus", "cost")
        if sizing and self.request_rate is None:
            raise ValueError(f"the goal {self.goal} needs a request rate: how many requests a second must be served")
        if not sizing and self.request_rate is not None:
            raise ValueError(
                f"a request rate of {self.request_rate:g} belongs to the goals gpus and cost, not to {self.goal}"
            )
        if (self.goal == "cost") != bool(self.prices):
            raise ValueError("prices and the goal cost belong together: give both or neither")
        return self

    @property
    def demand_nhz(self) -> int:
        """The request rate in nanohertz, rounded up; 0 where none is asked for."""
        return 0 if self.request_rate is None else -int(-self.request_rate * NHZ // 1)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The serving modes that are compared."""
        return MODES if self.mode == "auto" else (self.mode,)

    def price_micro(self, site: int) -> int:
        """Price of a GPU of a cluster in millionths per hour."""
        return round(self.prices[site] * MICRO)

    @property
    def wants_more(self) -> bool:
        """Whether the goal's integer is better when it is larger."""
        return self.goal in ("throughput", "efficiency")


def check_question(problems: Sequence[Problem], asked: Deploying) -> None:
    """Refuse what a deployment cannot be asked.

    Raises
    ------
    SpecError
        No cluster, a price too few or too many, clusters whose questions differ in more than hardware, pins, an exact
        number of GPUs, limits of single deployments.
    """
    if not problems:
        raise SpecError("a deployment needs at least one cluster")
    if asked.prices and len(asked.prices) != len(problems):
        raise SpecError(f"{len(asked.prices)} prices are given for {len(problems)} clusters: one for each is needed")
    first = problems[0]
    for problem in problems:
        for name in ("llm", "workload", "engine", "redundant_experts"):
            if getattr(problem, name) != getattr(first, name):
                raise SpecError(
                    f"the questions for {first.cluster.name} and {problem.cluster.name} differ in {name}: one "
                    "deployment serves one stream of requests"
                )
        _check_one(problem)


def _check_one(problem: Problem) -> None:
    pins = problem.pins.given()
    if pins:
        name, value = next(iter(pins.items()))
        raise SpecError(f"a deployment decides every degree: leave out {name} = {value} (solve takes it)")
    if problem.gpus_exact is not None:
        raise SpecError(f"a deployment uses at most so many GPUs: give --gpus {problem.gpus_exact} instead of exactly")
    slo = problem.workload.slo
    if slo.min_throughput is not None or slo.min_efficiency is not None:
        raise SpecError(
            "a least throughput or efficiency is a limit of solve; a deployment is sized by the requests per second "
            "that it must serve"
        )
    if problem.role != "aggregated":
        raise SpecError(f"the role {problem.role} is one pool; a deployment decides the roles of its instances")
