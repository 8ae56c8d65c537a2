"""Weighted scenarios: the request shapes that one deployment serves, and the workload of each.

A scenario replaces lengths, concurrency, prefix hit rate and limits of a base workload; what an engine fixes at start
(chunk budget, speculation, expert loads) stays that of the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from math import gcd, lcm
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from solver.errors import SpecError
from solver.specs.files import decode, parse_toml, read_bytes, shown
from solver.specs.problem import Problem
from solver.specs.spec import Spec
from solver.specs.workload import MAX_SEQUENCES, LengthRange, Slo, Tokens, Workload

MAX_SCENARIOS = 32
MAX_PARTS = 10_000
"""Weights are whole parts; finer ones are rounded to so many in all."""
LENGTHS = ("isl", "isl_range", "isl_list")

Over = Literal["expected", "regret"]
"""What is minimised over the scenarios: the weighted mean of the objective, or the largest relative regret."""


class Scenario(Spec):
    """One request shape with its weight. What is absent is that of the base workload."""

    name: Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[^\s].*$")]
    weight: Annotated[float, Field(gt=0, le=10**9)] = 1
    """Share of the requests, in any unit: only ratios count."""
    isl: Tokens | None = None
    isl_range: LengthRange | None = None
    isl_list: Annotated[tuple[Tokens, ...], Field(min_length=1, max_length=MAX_SEQUENCES)] | None = None
    osl: Tokens | None = None
    concurrency: Annotated[int, Field(strict=True, ge=1, le=MAX_SEQUENCES)] | Literal["free"] | None = None
    prefix_hit_rate: Annotated[float, Field(ge=0, lt=1)] | None = None
    slo: Slo | None = None
    """Replaces all limits of the base workload."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        given = [name for name in LENGTHS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"scenario {self.name!r}: give one of isl, isl_range and isl_list, not {given}")
        return self

    def workload(self, base: Workload) -> Workload:
        """The base workload as it is in this scenario.

        Raises
        ------
        SpecError
            Lengths and concurrency contradict one another.
        """
        given = self.model_dump(exclude={"name", "weight"}, exclude_none=True)
        changes: dict[str, object] = {
            "name": f"{base.name}: {self.name}"[:100],
            "source": f"{base.source}; scenario {self.name!r} replaces {', '.join(given) or 'nothing'}",
        }
        if any(name in given for name in LENGTHS):
            changes |= dict.fromkeys(LENGTHS)
        if self.isl_list is not None and self.concurrency is None:
            changes["concurrency"] = len(self.isl_list)
        changes |= {**given, "concurrency": None} if self.concurrency == "free" else given
        if given and base.assumptions:
            told = f"What workload {base.name!r} assumes about {', '.join(given)} no longer holds here."
            changes["assumptions"] = (*base.assumptions, told)
        return Workload.read({**base.model_dump(), **changes}, f"scenario {self.name!r}")


class Cell(Spec):
    """The requests that one scenario stands for."""

    name: str
    requests: int
    isl: int
    """Mean prompt, rounded up: the scenario's."""
    osl: int
    tokens_in: int
    """Exact total of the requests' prompts."""
    tokens_out: int
    isl_min: int
    isl_max: int
    osl_min: int
    osl_max: int


class Reduction(Spec):
    """What became of a trace: the cells, and what is lost by them."""

    source: str
    requests: int
    tokens_in: int
    tokens_out: int
    cells: tuple[Cell, ...]
    isl_spread: float
    """Mean distance of a prompt from its scenario's, relative to the mean prompt: 0 when every one is that long."""
    osl_spread: float
    extra_in: int
    """Tokens that the scenarios have more than the trace, because means are rounded up: fewer than one per request."""
    extra_out: int

    def __str__(self) -> str:
        return (
            f"{self.requests:,} requests in {len(self.cells)} scenarios; prompts differ from their scenario's by "
            f"{self.isl_spread:.1%} of the mean prompt, outputs by {self.osl_spread:.1%} of the mean output; "
            f"rounding adds {self.extra_in:,} of {self.tokens_in:,} input and {self.extra_out:,} of "
            f"{self.tokens_out:,} output tokens"
        )


class Scenarios(Spec):
    """The scenarios of one deployment."""

    source: Annotated[str, Field(min_length=1, max_length=400)] = "the caller"
    scenario: Annotated[tuple[Scenario, ...], Field(min_length=1, max_length=MAX_SCENARIOS)]
    reduction: Reduction | None = None
    """Where the scenarios stand for a trace."""

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        names = [scenario.name for scenario in self.scenario]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two scenarios have the name {twice!r}")
        return self

    @property
    def parts(self) -> tuple[int, ...]:
        """Weights as whole parts with the same ratios; rounded to 10,000 parts in all where they would be finer."""
        return whole_parts([scenario.weight for scenario in self.scenario])

    @property
    def is_rounded(self) -> bool:
        """Whether :attr:`parts` had to round the weights."""
        exact = [Fraction(Decimal(repr(scenario.weight))) for scenario in self.scenario]
        parts = self.parts
        return any(weight * parts[0] != exact[0] * part for weight, part in zip(exact, parts, strict=True))

    def problems(self, base: Problem) -> tuple[Problem, ...]:
        """The base problem in every scenario.

        Raises
        ------
        SpecError
            A scenario contradicts itself, the LLM's longest context, or the objective cannot be taken over scenarios.
        """
        if base.objective.name == "weighted":
            raise SpecError(
                "the objective weighted has an optimum of its own to be measured by in every scenario; over several "
                "scenarios ask for latency, ttft, tpot, throughput, efficiency or gpus"
            )
        fields = {name: getattr(base, name) for name in Problem.model_fields}
        return tuple(
            Problem.read({**fields, "workload": scenario.workload(base.workload)}, f"scenario {scenario.name!r}")
            for scenario in self.scenario
        )


def whole_parts(weights: Sequence[float]) -> tuple[int, ...]:
    """Coprime whole numbers in the ratio of the weights, taken as the decimals that they print as.

    Above :data:`MAX_PARTS` in all, they are rounded to that sum by largest remainders, at least one part each.
    """
    exact = [Fraction(Decimal(repr(weight))) for weight in weights]
    scale = lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    common = gcd(*whole)
    whole = [weight // common for weight in whole]
    total = sum(whole)
    if total <= MAX_PARTS:
        return tuple(whole)
    parts = [max(1, weight * MAX_PARTS // total) for weight in whole]
    by_remainder = sorted(range(len(whole)), key=lambda i: (-(whole[i] * MAX_PARTS % total), i))
    for i in by_remainder[: max(0, MAX_PARTS - sum(parts))]:
        parts[i] += 1
    return tuple(parts)


def read_scenarios(path: str | Path) -> Scenarios:
    """Scenarios of a TOML file: one table ``[[scenario]]`` each (docs/scenarios.md).

    Raises
    ------
    SpecError
        Missing, too large, not TOML, or a scenario that makes no sense; one sentence.
    """
    where = shown(str(path), 200)
    table = parse_toml(decode(read_bytes(path), where), where)
    return Scenarios.read({"source": f"file {Path(path).name[:200]}", **table}, where)
