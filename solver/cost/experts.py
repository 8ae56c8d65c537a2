"""Routed experts: distinct experts touched, rows, imbalance (DESIGN 5.4), and their weights."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from solver.cost.machine import BYTES_PER_KIB, Floats, Gemm, Ints, Machine, ceil_int
from solver.specs.dtypes import num_bytes
from solver.specs.problem import Problem
from solver.strategy import num_slots

EXPERT_KERNELS = 9
"""Norm, router GEMM, top-k, permutation, quantisation, two grouped GEMMs with an activation between, un-permutation."""
ROUTER_KERNELS = 3
"""Those of them that a measurement of the grouped GEMMs leaves out: norm, router GEMM, top-k."""
PPM = 10**6
"""Load factors are integers in parts per million: 1_000_000 is perfect balance."""
POISSON_LIMIT = 256.0
"""Mean rows per rank above which the maximum of the ranks is taken from the normal approximation."""


class Experts:
    """Leaf costs of one MoE layer's routed experts."""

    def __init__(self, problem: Problem, machine: Machine) -> None:
        assert problem.llm.moe is not None
        self.machine, self.llm, self.moe = machine, problem.llm, problem.llm.moe
        self.slots = num_slots(problem.llm, problem.redundant_experts)
        self._redundant = problem.redundant_experts
        self._weight_bytes = num_bytes(self.llm.dtypes.experts)
        self._activation_bytes = num_bytes(self.llm.dtypes.activation)
        loads = problem.workload.expert_loads
        self._skew = problem.calibration.routing_skew if loads is None else 0.0
        if loads is None:
            self._pick_le = np.full((1, self.moe.num_experts), self.moe.top_k / self.moe.num_experts)
        else:
            counts_le = np.array(loads.counts, dtype=np.float64)
            self._pick_le = np.minimum(1.0, self.moe.top_k * counts_le / counts_le.sum(axis=1, keepdims=True))
        self._touched: dict[int, float] = {}

    def rank_slots(self, moe_ep: Ints) -> Ints:
        """Expert replicas of the fullest rank (uneven where `moe_ep` does not divide the slots)."""
        return -(-self.slots // moe_ep)

    def touched(self, moe_ep: Ints, tokens: Ints) -> Floats:
        """Expected distinct experts that a full rank touches when the stage routes `tokens` tokens.

        ``slots_per_rank / slots * (sum_e 1 - (1 - p_e)^T + redundant)``, the mean over MoE layers; ``p_e`` is the
        probability that a token picks expert e. Where it is not known, it is drawn from a gamma distribution of mean
        ``k / E`` and squared coefficient of variation ``s = routing_skew``: ``E (1 - (1 + s T k / E)^(-1/s))``.
        Replicas of hot experts are taken as always touched.
        """
        distinct = np.unique(tokens)
        for value in distinct.tolist():
            if value not in self._touched:
                self._touched[value] = self._distinct(value)
        by_tokens = np.array([self._touched[value] for value in distinct.tolist()])
        everywhere = by_tokens[np.searchsorted(distinct, tokens)] + self._redundant
        share = self.rank_slots(moe_ep)
        touched: Floats = np.minimum(share, share / self.slots * everywhere)
        return touched

    def _distinct(self, tokens: int) -> float:
        """Expected distinct experts of a layer that so many tokens touch."""
        if self._skew > 0:
            mean = tokens * self.moe.top_k / self.moe.num_experts
            untouched: float = (1 + self._skew * mean) ** (-1 / self._skew)
            # The choices of one token are distinct, which independent popularities do not know.
            return max(self.moe.num_experts * (1 - untouched), float(min(tokens, 1) * self.moe.top_k))
        with np.errstate(under="ignore"):
            return float((1.0 - (1.0 - self._pick_le) ** tokens).sum(axis=1).mean())

    def load_factor(self, moe_ep: Ints, tokens: Ints, lambda_ppm: Ints) -> Floats:
        """Expected rows of the busiest rank / mean: placement imbalance times the sampling noise of routing.

        Experts of unknown popularity lie on the ranks in order: the rows of a rank of S experts then vary by
        ``1 / mean + routing_skew / S`` instead of ``1 / mean``, relative and squared. Replicas are there to remove it.
        """
        assignments = tokens * self.moe.top_k
        share = self.machine.calibration.routing_noise
        skew = 0.0 if self._redundant else self._skew
        means = assignments / moe_ep
        noise = 1 + share * (routing_noise(moe_ep, means / (1 + skew * means / self.rank_slots(moe_ep))) - 1)
        limit = moe_ep * np.minimum(self.moe.top_k, self.rank_slots(moe_ep)) / self.moe.top_k
        return np.minimum(lambda_ppm / PPM * noise, limit)

    def compute_ns(self, moe_tp: Ints, moe_ep: Ints, tokens: Ints, lambda_ppm: Ints) -> Ints:
        """Router and grouped GEMMs of `tokens` tokens of the stage on its busiest rank.

        That rank has more rows than the mean, and for the same reason touches more experts. Measured grouped GEMMs
        are of even load: what the busiest rank adds to them is the formula's.
        """
        formula = self._formula_ns(moe_tp, moe_ep, tokens, self.load_factor(moe_ep, tokens, lambda_ppm))
        measured = self.machine.measured
        if measured is None:
            return formula
        even = measured.times.experts_ns(tokens, moe_tp, moe_ep) + ROUTER_KERNELS * self.machine.launch_ns
        busiest = formula - self._formula_ns(moe_tp, moe_ep, tokens, np.asarray(1.0))
        return measured.choose("routed experts", even + busiest, formula)

    def _formula_ns(self, moe_tp: Ints, moe_ep: Ints, tokens: Ints, load_factor: Floats) -> Ints:
        parameters = float(self.llm.expert_parameters)
        rows = tokens * self.moe.top_k / moe_ep * load_factor
        mean = self.touched(moe_ep, tokens)
        touched = np.minimum(self.rank_slots(moe_ep), mean * load_factor)
        per_expert = tokens * self.moe.top_k / moe_ep / np.maximum(mean, 1e-9)
        return self.machine.gemm_ns(
            Gemm(
                dtype=self.llm.dtypes.experts,
                blocks=self.llm.quant_block is not None,
                rows=per_expert,
                flop=2.0 * rows * parameters / moe_tp,
                weight_bytes=touched * parameters * self._weight_bytes / moe_tp,
                activation_bytes=2.0 * rows * self.llm.hidden_size * self._activation_bytes,
                kernels=EXPERT_KERNELS,
                is_grouped=True,
            )
        )

    def weights_kib(self, moe_tp: Ints, moe_ep: Ints) -> Ints:
        """Expert weights of one MoE layer on its fullest rank, replicas included, in KiB."""
        held = self.rank_slots(moe_ep) * float(self.llm.expert_parameters) * self._weight_bytes / moe_tp
        return ceil_int(held / BYTES_PER_KIB)


def routing_noise(num_ranks: Ints, mean_rows: Floats) -> Floats:
    """Expected max / mean of the rows of `num_ranks` ranks when a uniform router draws them.

    Independent Poisson rows up to a mean of 256, the normal approximation above; the spread is scaled by
    ``sqrt(1 - 1/n)`` because the rows add up. With few tokens even a perfect placement is uneven.
    """
    ranks, means = np.broadcast_arrays(num_ranks, mean_rows)
    flat = [_noise(int(n), float(mu)) for n, mu in zip(ranks.ravel(), means.ravel(), strict=True)]
    return np.array(flat, dtype=np.float64).reshape(ranks.shape)


@lru_cache(maxsize=200_000)
def _noise(num_ranks: int, mean: float) -> float:
    if num_ranks <= 1 or mean <= 0:
        return 1.0
    shrink = math.sqrt(1 - 1 / num_ranks)
    if mean > POISSON_LIMIT:
        return 1 + shrink * normal_maximum(num_ranks) / math.sqrt(mean)
    top = int(mean + 12 * math.sqrt(mean) + 30)
    x = np.arange(top + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(x[1:]))])
    cdf = np.minimum(1.0, np.cumsum(np.exp(x * math.log(mean) - mean - log_factorial)))
    expected = float((1.0 - cdf**num_ranks).sum())
    return 1 + shrink * max(0.0, expected / mean - 1)


@lru_cache(maxsize=4096)
def normal_maximum(num: int) -> float:
    """Expected maximum of `num` independent standard normal variables, by numerical integration."""
    z = np.linspace(-9, 9, 4001)
    cdf = 0.5 * (1 + np.array([math.erf(v / math.sqrt(2)) for v in z]))
    return float(9 - np.trapezoid(cdf**num, z))
