"""How far the model looks: times and products beyond which no strategy is considered, the same for search and judge.

They keep every sum and product of the search within 64 bits, and they are a rule of the space like any other, so that
"no plan is better" holds of a space that everyone means.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from solver.cost.machine import Ints
from solver.cost.metrics import OBJECTIVE_UNITS, THROUGHPUT_SCALE, Figures, objective_value
from solver.legality import Violation
from solver.specs.problem import ObjectiveName, Problem
from solver.strategy import num_chunks

MAX_TOKEN_NS = 10**11
"""Longest TPOT, 100 s."""
MAX_PASS_NS = 10**12
"""Longest prefill pass of a stage, 1,000 s."""
MAX_REQUEST_NS = 10**14
"""Longest request, 100,000 s (27.8 hours)."""
MAX_OBJECTIVE = 2**53
"""Integers up to here are exact in every number format that a plan passes through, doubles of CP-SAT included: of the
objective throughput 9,007 s of the deployment per request, of efficiency 104 GPU-days."""
LARGEST_PRODUCT = 2**61
"""Largest product of a cycle and a count (GPUs, sequences)."""
HORIZON = (
    "what the cost model looks at: a TPOT up to 100 s, prefill passes up to 1,000 s and requests up to 100,000 s (for "
    "the objective throughput, a request every 9,007 s)"
)
"""The rule in words."""
SHARED_PRODUCT = 2**55
"""The same where several programs share a model, because CP-SAT wants the sum of all domains within 64 bits."""


def horizon_violations(problem: Problem, figures: Figures, product: int = LARGEST_PRODUCT) -> Iterator[Violation]:
    """What a strategy exceeds, with the numbers; `product` is the largest product that the search counts with."""
    times = (
        ("TPOT", figures.tpot_ns, MAX_TOKEN_NS),
        ("a prefill pass", figures.round_ns // num_chunks(problem), MAX_PASS_NS),
        ("a request", figures.request_latency_ns, MAX_REQUEST_NS),
    )
    for words, ns, most in times:
        if ns > most:
            yield Violation("horizon", f"{words} takes {ns / 1e9:,.0f} s, the model ends at {most / 1e9:,.0f} s")
    if not is_counted(figures, product):
        sentence = f"a cycle of {figures.cycle_ns / 1e9:,.0f} s on {figures.gpus} GPUs is beyond 64-bit GPU time"
        yield Violation("horizon", sentence)
    name = problem.objective.name
    rate: ObjectiveName = "efficiency" if name == "weighted" else name
    if rate in ("throughput", "efficiency") and objective_value(rate, figures) > MAX_OBJECTIVE:
        sentence = f"{objective_value(rate, figures)} {OBJECTIVE_UNITS[rate]}: a plan states integers up to 2^53"
        yield Violation("horizon", sentence)


def beyond_times(tpot_ns: Ints, pass_ns: Ints, request_ns: Ints) -> npt.NDArray[np.bool_]:
    """Where one of the times is beyond the horizon; arrays that broadcast."""
    return (tpot_ns > MAX_TOKEN_NS) | (pass_ns > MAX_PASS_NS) | (request_ns > MAX_REQUEST_NS)


def is_counted(figures: Figures, product: int = LARGEST_PRODUCT) -> bool:
    """Whether the products of the cycle with GPUs and units stay within `product`, rounding included."""
    return figures.cycle_ns * max(figures.gpus, THROUGHPUT_SCALE) + figures.active <= product


def in_horizon(problem: Problem, figures: Figures, product: int = LARGEST_PRODUCT) -> bool:
    """Whether the model looks as far as this strategy."""
    return next(horizon_violations(problem, figures, product), None) is None
