"""The hard limits of a problem, each as the largest objective integer that its metric may have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from solver.cost.metrics import NATURAL_UNITS, THROUGHPUT_SCALE, Figures, natural_value, objective_value
from solver.legality import Violation
from solver.specs.problem import ObjectiveName, Problem


@dataclass(frozen=True)
class Limit:
    """One limit on a metric. What meets it has an objective integer (:func:`solver.cost.metrics.objective_value`) of at
    most `at_most`; :meth:`holds` decides exactly, which differs for a rate between two integers only."""

    rule: str
    metric: ObjectiveName
    exact: Fraction

    @property
    def at_most(self) -> int:
        """The limit as an objective integer, rounded up."""
        return math.ceil(self.exact)

    def holds(self, figures: Figures) -> bool:
        """Whether the metrics meet the limit."""
        if self.metric == "throughput":
            return figures.cycle_ns * THROUGHPUT_SCALE <= self.exact * figures.active
        if self.metric == "efficiency":
            return figures.cycle_ns * figures.gpus <= self.exact * figures.active
        return objective_value(self.metric, figures) <= self.exact

    @property
    def is_rate(self) -> bool:
        """Whether the metric is a rate, of which the limit is the least."""
        return self.metric in ("throughput", "efficiency")

    @property
    def words(self) -> str:
        """The metric's name in a sentence."""
        return {"ttft": "TTFT", "tpot": "TPOT", "latency": "request latency"}.get(self.metric, self.metric)

    def text(self, integer: int, osl: int) -> str:
        """An objective integer of the metric in its unit."""
        if self.is_rate:
            return f"{natural_value(self.metric, integer, osl):,.6g} {NATURAL_UNITS[self.metric]}"
        return f"{integer / 1e6:.3f} ms"

    def asked(self, osl: int) -> str:
        """What the limit demands."""
        return f"{'at least' if self.is_rate else 'the SLO is'} {self.text(self.at_most, osl)}"


def limits_of(problem: Problem) -> tuple[Limit, ...]:
    """Every SLO that is given; of a rate of at least X tokens/s, the time ``osl / X`` per request."""
    slo, osl = problem.workload.slo, problem.workload.osl
    given: list[Limit] = []
    if slo.ttft is not None:
        given.append(Limit("slo-ttft", "ttft", Fraction(slo.ttft)))
    if slo.tpot is not None:
        given.append(Limit("slo-tpot", "tpot", Fraction(slo.tpot)))
    if slo.request_latency is not None:
        given.append(Limit("slo-request-latency", "latency", Fraction(slo.request_latency)))
    if slo.min_throughput is not None:
        given.append(Limit("slo-throughput", "throughput", osl * 10**9 * THROUGHPUT_SCALE / slo.min_throughput))
    if slo.min_efficiency is not None:
        given.append(Limit("slo-efficiency", "efficiency", osl * 10**9 / slo.min_efficiency))
    return tuple(given)


def is_within(limits: tuple[Limit, ...], figures: Figures) -> bool:
    """Whether every limit holds."""
    return all(limit.holds(figures) for limit in limits)


def limit_violations(problem: Problem, figures: Figures) -> list[Violation]:
    """Limits that the metrics miss, with the numbers."""
    osl, found = problem.workload.osl, []
    for limit in limits_of(problem):
        if not limit.holds(figures):
            value = objective_value(limit.metric, figures)
            sentence = f"{limit.words} is {limit.text(value, osl)}, {limit.asked(osl)}"
            found.append(Violation(limit.rule, sentence))
    return found


def limited(problem: Problem, metric: ObjectiveName, at_most: int) -> Problem:
    """The problem with a metric's objective integer limited, in the words that a caller would use.

    Times become SLOs, rates least rates (an exact fraction), GPUs a budget. `at_most` must not loosen what is asked.
    """
    osl, workload = problem.workload.osl, problem.workload
    if metric == "gpus":
        return problem.model_copy(update={"gpus_at_most": at_most})
    changes: dict[str, dict[str, object]] = {
        "latency": {"request_latency": at_most},
        "ttft": {"ttft": at_most},
        "tpot": {"tpot": at_most},
        "throughput": {"min_throughput": Fraction(osl * 10**9 * THROUGHPUT_SCALE, max(1, at_most))},
        "efficiency": {"min_efficiency": Fraction(osl * 10**9, max(1, at_most))},
    }
    slo = workload.slo.model_copy(update=changes[metric])
    return problem.model_copy(update={"workload": workload.model_copy(update={"slo": slo})})
