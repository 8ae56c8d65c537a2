"""Metrics of the program as variables, and the SLOs on them."""

from __future__ import annotations

from ortools.sat.python import cp_model

from solver.cost.horizon import MAX_OBJECTIVE, MAX_REQUEST_NS, MAX_TOKEN_NS
from solver.cost.leaves import PPM, Leaves
from solver.cost.limits import limits_of
from solver.search.choice import Expr


def weighed(model: cp_model.CpModel, part: Expr, weight: int, name: str) -> Expr:
    """``weight * part``, with the part bounded so that the product stays below :data:`MAX_OBJECTIVE`.

    The wide domains of metrics would overflow 64 bits otherwise, and the whole model would be invalid.
    """
    if weight == 0:
        return 0
    bounded = model.new_int_var(0, MAX_OBJECTIVE // weight, name)
    model.add(bounded >= part)
    return weight * bounded


class MetricVars:
    """Metrics of DESIGN 4 over given step, prefill and interference times; SLOs on times are constraints on them.

    Every variable is bounded below by its definition and pushed down by the objective or by an SLO; exact values are
    recomputed from the placement.
    """

    def __init__(
        self, model: cp_model.CpModel, leaves: Leaves, step: Expr, ttft: Expr, round_ns: Expr, others: Expr
    ) -> None:
        workload = leaves.problem.workload
        longest = min(MAX_TOKEN_NS, MAX_REQUEST_NS // max(1, workload.osl - 1))
        token = model.new_int_var(0, longest, "decode")
        model.add(leaves.kept_ppm * token >= PPM * step)
        self.ttft = ttft
        self.tpot = model.new_int_var(0, longest, "tpot")
        model.add(workload.osl * self.tpot >= workload.osl * token + others)
        self.latency = model.new_int_var(0, MAX_REQUEST_NS, "latency")
        model.add(self.latency >= self.ttft + (workload.osl - 1) * self.tpot)
        self.cycle: Expr = workload.osl * token + others + round_ns
        times = {"ttft": self.ttft, "tpot": self.tpot, "latency": self.latency}
        for limit in limits_of(leaves.problem):
            if limit.metric in times:
                model.add(times[limit.metric] <= limit.at_most)
