"""The coefficients that are fitted, what is known of them beforehand, and how GPU and engine may shift them.

Every coefficient is positive; its logarithm is ``log(value) + spread * z_global + gpu_spread * z_gpu + ...`` with
standard normal `z` (a hierarchical model with shrinkage): few measurements move it little, an unseen GPU or engine
keeps the level above.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from solver.cost.machine import Floats
from solver.specs.calibration import Calibration
from solver.specs.hardware import Cluster

Key = tuple[str, str]
"""(calibration of the hardware, engine): what has coefficients of its own."""


@dataclass(frozen=True)
class Coefficient:
    """Prior of one coefficient. Spreads are standard deviations of the logarithm; 0 means no effect of that level."""

    name: str
    """Field of :class:`Calibration`, ``gemm_efficiency.<arithmetic>``, or one of the factors in `FACTORS`."""
    value: float
    spread: float
    gpu_spread: float = 0.0
    engine_spread: float = 0.0
    pair_spread: float = 0.0
    largest: float = math.inf


FACTORS: dict[str, tuple[str, ...]] = {
    "compute": (
        "gemm_efficiency.bf16",
        "gemm_efficiency.fp8",
        "gemm_efficiency.fp8_block",
        "gemm_efficiency.fp4",
        "attention_efficiency",
    ),
    "host": ("host_step", "host_sequence"),
}
"""Factors that a GPU or an engine applies to several coefficients at once."""

TIMES = frozenset(
    {
        "launch",
        "collective_base",
        "direct_sync",
        "host_step",
        "host_sequence",
        "draft_host_sequence",
        "host_prefill",
        "host_prefill_kernel",
        "host_prefill_linear",
        "request_overhead",
    }
)
"""Coefficients that are durations in ns."""
LARGEST_EFFICIENCY = 0.95
BEND = 6.0
"""How sharply a coefficient bends below its largest value: the power of a soft minimum."""

PRIORS: tuple[Coefficient, ...] = (
    Coefficient("gemm_efficiency.bf16", 0.6, 0.15, largest=LARGEST_EFFICIENCY),
    Coefficient("gemm_efficiency.fp8", 0.6, 0.15, largest=LARGEST_EFFICIENCY),
    Coefficient("gemm_efficiency.fp8_block", 0.55, 0.3, gpu_spread=0.4, engine_spread=0.3, largest=LARGEST_EFFICIENCY),
    Coefficient("gemm_efficiency.fp4", 0.5, 0.15, largest=LARGEST_EFFICIENCY),
    Coefficient("grouped_gemm_share", 0.8, 0.3, largest=1.0),
    Coefficient("grouped_block_share", 0.7, 0.4, engine_spread=0.4, largest=1.0),
    Coefficient("roofline_power", 2.0, 0.0),
    Coefficient("elementwise_passes", 1.5, 0.5),
    Coefficient("weight_only_compute", 0.7, 0.07, gpu_spread=0.3, largest=1.0),
    Coefficient("weight_only_memory", 0.83, 0.06, gpu_spread=0.1, largest=1.0),
    Coefficient("attention_efficiency", 0.7, 0.15, largest=LARGEST_EFFICIENCY),
    Coefficient("compute", 1.0, 0.0, gpu_spread=0.25, engine_spread=0.15),
    Coefficient("gemm_half_rows", 64.0, 0.4),
    Coefficient("grouped_gemm_half_rows", 16.0, 0.4),
    Coefficient("memory_efficiency", 0.8, 0.09, largest=LARGEST_EFFICIENCY),
    Coefficient("cache_efficiency", 0.7, 0.12, largest=LARGEST_EFFICIENCY),
    Coefficient("link_efficiency", 0.7, 0.07, largest=1.0),
    Coefficient("launch", 2_500.0, 0.3, engine_spread=0.2),
    Coefficient("collective_base", 4_200.0, 0.2),
    Coefficient("direct_sync", 7_700.0, 0.2),
    Coefficient("host_step", 1_000_000.0, 0.3),
    Coefficient("host_sequence", 12_000.0, 0.3),
    Coefficient("draft_host_sequence", 50_000.0, 0.6),
    Coefficient("host", 1.0, 0.0, engine_spread=0.2),
    Coefficient("host_prefill", 3_000_000.0, 0.6, engine_spread=0.4),
    Coefficient("host_prefill_kernel", 8_000.0, 0.5, engine_spread=0.3),
    Coefficient("host_prefill_linear", 1_000_000.0, 0.6),
    Coefficient("routing_noise", 0.4, 0.3, largest=1.0),
    Coefficient("routing_skew", 0.5, 0.7),
    Coefficient("request_overhead", 50_000_000.0, 1.2, engine_spread=1.2),
    Coefficient("queue_share", 0.2, 0.9, engine_spread=0.6, largest=1.0),
)
"""What is known before any deployment was measured: vendors' and engines' published kernel figures, generously wide.
Those of collectives are fitted to measured all-reduce kernels (docs/accuracy.md)."""


def key_of(cluster: Cluster, engine: str) -> Key:
    """What decides the coefficients of a deployment: the calibration of its hardware, and its engine."""
    return cluster.calibration, engine


@dataclass(frozen=True)
class Parameter:
    """One standard normal of the model: a coefficient on one level."""

    coefficient: Coefficient
    level: str
    """``global``, ``gpu``, ``engine`` or ``pair``."""
    key: Key
    """Empty strings where the level does not depend on the GPU or the engine."""
    spread: float

    def applies(self, key: Key) -> bool:
        """Whether it shifts the coefficients of an (hardware, engine)."""
        return all(own in ("", other) for own, other in zip(self.key, key, strict=True))


def parameters(priors: tuple[Coefficient, ...], keys: list[Key]) -> tuple[Parameter, ...]:
    """All parameters of a model that covers these (hardware, engine) pairs."""
    found = []
    for prior in priors:
        levels = {
            "global": (prior.spread, [("", "")]),
            "gpu": (prior.gpu_spread, sorted({(gpu, "") for gpu, _ in keys})),
            "engine": (prior.engine_spread, sorted({("", engine) for _, engine in keys})),
            "pair": (prior.pair_spread, sorted(set(keys))),
        }
        for level, (spread, owners) in levels.items():
            if spread > 0:
                found += [Parameter(prior, level, owner, spread) for owner in owners]
    return tuple(found)


def values(priors: tuple[Coefficient, ...], model: tuple[Parameter, ...], z: Floats, key: Key) -> dict[str, float]:
    """Coefficients of one (hardware, engine), factors applied, below their largest values."""
    shift = dict.fromkeys((prior.name for prior in priors), 0.0)
    for parameter, amount in zip(model, z, strict=True):
        if parameter.applies(key):
            shift[parameter.coefficient.name] += parameter.spread * float(amount)
    for factor, members in FACTORS.items():
        common = shift.pop(factor, 0.0)
        for member in members:
            if member in shift:
                shift[member] += common
    return {prior.name: _shifted(prior, shift[prior.name]) for prior in priors if prior.name in shift}


def _shifted(prior: Coefficient, shift: float) -> float:
    """``value * exp(shift)`` near the value, bent smoothly below the largest one (a kink would stop a fit)."""
    if not math.isfinite(prior.largest):
        return prior.value * math.exp(shift)
    free = prior.value / (1 - (prior.value / prior.largest) ** BEND) ** (1 / BEND) * math.exp(shift)
    return float(free / (1 + (free / prior.largest) ** BEND) ** (1 / BEND))


def calibrated(base: Calibration, found: Mapping[str, float]) -> Calibration:
    """The calibration with these coefficients in place of its own; times are rounded to whole ns."""
    fields: dict[str, object] = {}
    efficiency: dict[str, float] = {str(known): value for known, value in base.gemm_efficiency.items()}
    for name, value in found.items():
        head, _, arithmetic = name.partition(".")
        if head == "gemm_efficiency":
            efficiency[arithmetic] = value
        else:
            fields[name] = round(value) if name in TIMES else value
    return base.model_copy(update={**fields, "gemm_efficiency": efficiency})
