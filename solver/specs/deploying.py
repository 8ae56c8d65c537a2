"""What is asked of a whole deployment: serving mode, goal, demand, prices."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from solver.specs.spec import Spec

Mode = Literal["aggregated", "disaggregated"]
"""Instances that prefill and decode, or a pool of instances for each."""
MODES: tuple[Mode, ...] = get_args(Mode)
Goal = Literal["throughput", "efficiency", "gpus", "cost"]
GOALS: tuple[Goal, ...] = get_args(Goal)
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
