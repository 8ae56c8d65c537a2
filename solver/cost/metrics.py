"""From stage times to the metrics of DESIGN 4, in exact integers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from solver.cost.layers import Blocks, PhaseTimes
from solver.cost.leaves import PPM, Leaves
from solver.packing import Packing
from solver.specs.problem import ObjectiveName, Problem
from solver.strategy import Strategy

THROUGHPUT_SCALE = 1000
"""Inverse throughput is kept in picoseconds of the deployment per request, so that its integer is fine enough."""
WEIGHTED_SCALE = 2**46
"""Scale of the two normalised terms of the objective ``weighted``."""

UNFITTED_BAND_PERCENT = 25.0
"""Error that is assumed of a calibration that was never compared with measurements: that of planners in the field."""


@dataclass(frozen=True)
class Figures:
    """The exact integers behind the metrics."""

    ttft_ns: int
    tpot_ns: int
    request_latency_ns: int
    cycle_ns: int
    """Time in which an idle-free slot serves one request: ``osl * t_decode + rounds * round`` (DESIGN 5.10)."""
    decode_ns: int
    """Time per token of a decode step, host work included."""
    round_ns: int
    """Time of one round of prefills (one pass per attention-DP rank, all chunks)."""
    rounds: int
    """Rounds per cycle: ``ceil(batch * micro_batches / prefill_batch)``."""
    active: int
    """Sequences in flight."""
    gpus: int

    @property
    def inverse_throughput_ps(self) -> int:
        """Picoseconds of the whole deployment per request, rounded up."""
        return -(-self.cycle_ns * THROUGHPUT_SCALE // self.active)

    @property
    def inverse_efficiency_ns(self) -> int:
        """GPU-nanoseconds per request, rounded up."""
        return -(-self.cycle_ns * self.gpus // self.active)

    def throughput_tokens_per_s(self, osl: int) -> float:
        """Output tokens per second of the deployment."""
        return self.active * osl * 1e9 / self.cycle_ns


@dataclass(frozen=True)
class Utopia:
    """Best value of each part of the objective ``weighted``, proved first."""

    latency_ns: int
    inverse_efficiency_ns: int

    def weights(self, latency_weight: float) -> tuple[int, int]:
        """Integer weights of (latency_ns, inverse_efficiency_ns), normalised by the utopia values."""
        return (
            round(latency_weight * WEIGHTED_SCALE / self.latency_ns),
            round((1 - latency_weight) * WEIGHTED_SCALE / self.inverse_efficiency_ns),
        )


def figures_of(problem: Problem, strategy: Strategy, decode: PhaseTimes, prefill: PhaseTimes) -> Figures:
    """Metrics of a strategy from its two phases."""
    leaves, workload = decode.leaves, problem.workload
    stages = decode.stage_times()
    path = sum(stages) + (strategy.pp - 1) * decode.hop_ns + decode.return_ns
    step = max(path, strategy.micro_batches * max(stages)) + leaves.host_ns
    decode_ns = -(-step * PPM // leaves.kept_ppm)
    passes = prefill.stage_times()
    ttft = sum(passes) + (strategy.pp - 1) * prefill.hop_ns
    ttft += (leaves.chunks - 1) * max(passes) + leaves.chunks * leaves.prefill_host_ns + leaves.transfer_ns
    round_ns = leaves.chunks * (max(passes) + leaves.prefill_host_ns)
    rounds = -(-strategy.batch * strategy.micro_batches // strategy.prefill_batch)
    tpot = decode_ns - (-(rounds - 1) * round_ns // workload.osl)
    return Figures(
        ttft_ns=ttft,
        tpot_ns=tpot,
        request_latency_ns=ttft + (workload.osl - 1) * tpot,
        cycle_ns=workload.osl * decode_ns + rounds * round_ns,
        decode_ns=decode_ns,
        round_ns=round_ns,
        rounds=rounds,
        active=strategy.slots if workload.concurrency is None else min(workload.concurrency, strategy.slots),
        gpus=strategy.gpus,
    )


def evaluate_times(leaves: Leaves, strategy: Strategy, packing: Packing, blocks: Blocks) -> Figures:
    """Metrics of a strategy with given placement blocks."""
    decode = PhaseTimes(leaves, strategy, packing, "decode", blocks)
    prefill = PhaseTimes(leaves, strategy, packing, "prefill", blocks)
    return figures_of(leaves.problem, strategy, decode, prefill)


def objective_value(name: ObjectiveName, figures: Figures, weights: tuple[int, int] = (0, 0)) -> int:
    """The integer that is minimised. `weights` belongs to ``weighted``."""
    match name:
        case "latency":
            return figures.request_latency_ns
        case "ttft":
            return figures.ttft_ns
        case "tpot":
            return figures.tpot_ns
        case "throughput":
            return figures.inverse_throughput_ps
        case "efficiency":
            return figures.inverse_efficiency_ns
        case "gpus":
            return figures.gpus
        case "weighted":
            return weights[0] * figures.request_latency_ns + weights[1] * figures.inverse_efficiency_ns


OBJECTIVE_UNITS: dict[ObjectiveName, str] = {
    "latency": "ns",
    "ttft": "ns",
    "tpot": "ns",
    "throughput": "ps of the deployment per request",
    "efficiency": "GPU-ns per request",
    "gpus": "GPUs",
    "weighted": "weighted share of 2^46",
}

NATURAL_UNITS: dict[ObjectiveName, str] = {
    "latency": "ns",
    "ttft": "ns",
    "tpot": "ns",
    "throughput": "tokens/s",
    "efficiency": "tokens/s/GPU",
    "gpus": "GPUs",
    "weighted": "(1 is utopia)",
}


def natural_value(name: ObjectiveName, integer: int, osl: int) -> float:
    """The objective integer in the unit of its metric (rates are inverted)."""
    if name == "throughput":
        return osl * 1e9 * THROUGHPUT_SCALE / integer if integer else math.inf
    if name == "efficiency":
        return osl * 1e9 / integer if integer else math.inf
    if name == "weighted":
        return integer / WEIGHTED_SCALE
    return float(integer)


def error_band(problem: Problem, objective: ObjectiveName) -> tuple[float, str]:
    """Median error in percent that is expected of this objective, and where that number comes from.

    Half of the deployments that a calibration had not seen were predicted better than this, half worse. Times between
    tokens dominate every objective but `ttft`. The error is that of the formulas, not of measured operators.
    """
    if objective == "gpus":
        return 0.0, "a count of GPUs is exact where memory and SLOs hold"
    calibration = problem.calibration
    if problem.operators.source != "analytic":
        return UNFITTED_BAND_PERCENT, "assumed: sums of measured operators were not compared with measured deployments"
    error = calibration.error
    if error is not None:
        percent = error.unseen.ttft_median if objective == "ttft" else error.unseen.tpot_median
        if percent is not None:
            what = "TTFT" if objective == "ttft" else "TPOT"
            return percent, (
                f"median {what} error of calibration {calibration.name!r} on {error.rows:,} deployments, "
                f"cross-validated ({error.left_out} left out)"
            )
    return UNFITTED_BAND_PERCENT, (
        f"assumed: calibration {calibration.name!r} was never compared with measured deployments"
    )
