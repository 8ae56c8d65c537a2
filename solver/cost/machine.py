"""Resolved rates of one problem's hardware and calibration, and the roofline of one operator (DESIGN 5.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from solver.specs.calibration import Arithmetic
from solver.specs.dtypes import NATIVE, WEIGHT_ONLY, num_bytes
from solver.specs.problem import Phase as Phase
from solver.specs.problem import Problem

if TYPE_CHECKING:
    from solver.cost.operators import Measured

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]
Numbers = Ints | Floats

SLACK = 1e-6
"""Leaves are rounded up after taking off this much (a millionth of a ns or KiB), so that two machines whose last
floating-point bit differs agree on the integer."""

LARGEST_LEAF = 2**50
"""Beyond the horizon as a time and beyond any memory in KiB, and a thousand of them still add up within 64 bits."""

BYTES_PER_KIB = 1024
UNIT_ARITHMETIC: dict[str, Arithmetic] = {"bf16": "bf16", "fp8": "fp8", "int8": "int8", "fp4": "fp4"}
"""The arithmetic of each unit where weights carry one scale per tensor or channel."""


def ceil_int(value: Floats | float) -> Ints:
    """Round up to integers, once per leaf; `LARGEST_LEAF` is the most."""
    if isinstance(value, float):  # numpy's scalars too: most leaves that are asked one by one
        one = float(value) - SLACK
        return np.int64(math.ceil(one) if one < LARGEST_LEAF else LARGEST_LEAF)  # type: ignore[return-value]
    return np.ceil(np.minimum(np.asarray(value, dtype=np.float64) - SLACK, LARGEST_LEAF)).astype(np.int64)


def some(condition: npt.NDArray[np.bool_]) -> bool:
    """Whether it holds anywhere; numpy's ``any`` takes fifteen times longer for one element."""
    return bool(condition.any() if condition.ndim else condition)


@dataclass(frozen=True)
class Link:
    """One link level after calibration."""

    bytes_per_ns: float
    latency_ns: float


@dataclass(frozen=True)
class Gemm:
    """One GEMM, or the grouped GEMMs of a layer's experts, on one rank."""

    dtype: str
    """Storage format of the weights."""
    blocks: bool
    """Whether the weights are scaled in blocks."""
    rows: Numbers
    """Token rows that one weight matrix multiplies (per expert that is touched when grouped)."""
    flop: Floats
    weight_bytes: Floats
    activation_bytes: Floats
    kernels: int
    is_grouped: bool = False


class Machine:
    """Rates in FLOP/ns and bytes/ns after efficiencies, and the measured operators that go before them."""

    def __init__(self, problem: Problem, measured: Measured | None = None) -> None:
        self.measured = measured
        self._peak: dict[str, float] = {unit: rate / 1e9 for unit, rate in problem.cluster.gpu.peak.items()}
        calibration = problem.calibration
        self.calibration = calibration
        bandwidth = problem.cluster.gpu.memory_bandwidth / 1e9
        self.bytes_per_ns = bandwidth * calibration.memory_efficiency
        self.cache_bytes_per_ns = bandwidth * calibration.cache_efficiency
        self.launch_ns = calibration.launch
        self.domain_gpus = problem.cluster.domain_gpus
        self.links = tuple(
            Link(level.bandwidth * calibration.link_efficiency / 1e9, float(level.latency))
            for level in problem.cluster.levels
        )
        inner = self.links[0]
        self._inside = np.asarray(inner.bytes_per_ns)[()], np.asarray(inner.latency_ns)[()]
        self.level_gpus = tuple(level.gpus for level in problem.cluster.levels)

    def peak_flop_per_ns(self, dtype: str) -> float:
        """Peak rate of the unit that multiplies this format (16-bit where it is expanded on the fly)."""
        unit = NATIVE[dtype]
        if unit not in self._peak:
            unit = WEIGHT_ONLY.get(dtype, "bf16")
        return self._peak[unit]

    def expands(self, dtype: str) -> bool:
        """Whether weights of this format are expanded on the fly and multiplied on the 16-bit unit."""
        return NATIVE[dtype] not in self._peak or (num_bytes(dtype) < 1 and NATIVE[dtype] == "bf16")

    def quantises(self, dtype: str, *, blocks: bool) -> bool:
        """Whether kernels of their own quantise the activations that multiply weights of this format.

        Scales per block or group depend on the activations. Scales per tensor are known beforehand: the kernel that
        writes the activations (norm, attention, activation function) applies them.
        """
        return (blocks or num_bytes(dtype) < 1) and num_bytes(dtype) < 2 and not self.expands(dtype)

    def gemm_flop_per_ns(self, dtype: str, *, blocks: bool) -> float:
        """Rate of a GEMM with many rows; `blocks` says that its weights are scaled in blocks."""
        calibration, unit = self.calibration, NATIVE[dtype]
        if self.expands(dtype):
            rate = self.peak_flop_per_ns(dtype) * calibration.gemm_efficiency["bf16"]
            return rate * calibration.weight_only_compute
        arithmetic: Arithmetic = "fp8_block" if unit == "fp8" and blocks else UNIT_ARITHMETIC[unit]
        efficiency = calibration.gemm_efficiency.get(arithmetic, calibration.gemm_efficiency["bf16"])
        return self.peak_flop_per_ns(dtype) * efficiency

    def weight_bytes_per_ns(self, dtype: str) -> float:
        """Rate at which a GEMM reads weights of this format."""
        return self.bytes_per_ns * (self.calibration.weight_only_memory if self.expands(dtype) else 1.0)

    def gemm_ns(self, gemm: Gemm) -> Ints:
        """Roofline of a GEMM, and the kernels around it.

        Its rate grows with its rows, its weights are read whatever the rows.
        """
        half = self.calibration.grouped_gemm_half_rows if gemm.is_grouped else self.calibration.gemm_half_rows
        share = self._grouped_share(gemm) if gemm.is_grouped else 1.0
        rate = self.gemm_flop_per_ns(gemm.dtype, blocks=gemm.blocks) * share * gemm.rows / (gemm.rows + half)
        activations = gemm.activation_bytes / self.bytes_per_ns
        roofline = self._roofline(
            gemm.flop / rate, gemm.weight_bytes / self.weight_bytes_per_ns(gemm.dtype) + activations
        )
        around = self.calibration.elementwise_passes * activations
        return ceil_int(roofline + around) + gemm.kernels * self.launch_ns

    def _grouped_share(self, gemm: Gemm) -> float:
        """Rate of grouped GEMMs as a share of plain ones of the same arithmetic."""
        share = self.calibration.grouped_gemm_share
        blocks = gemm.blocks and NATIVE[gemm.dtype] == "fp8" and not self.expands(gemm.dtype)
        return share * self.calibration.grouped_block_share if blocks else share

    def _roofline(self, compute: Floats, memory: Floats) -> Floats:
        """The larger of the two, or a smooth maximum above it: near the ridge they overlap only in part."""
        power = self.calibration.roofline_power
        if power is None:
            return np.maximum(compute, memory)
        larger = np.maximum(np.maximum(compute, memory), 1e-300)
        smooth: Floats = larger * ((compute / larger) ** power + (memory / larger) ** power) ** (1 / power)
        return smooth

    def operator_ns(self, flop: Floats, num_bytes: Floats, flop_per_ns: Floats | float, kernels: int) -> Ints:
        """``max(flop / rate, bytes / bandwidth) + kernels * launch``, rounded up to ns."""
        return ceil_int(np.maximum(flop / flop_per_ns, num_bytes / self.bytes_per_ns)) + kernels * self.launch_ns

    def outer_link(self, num_domains: Ints) -> tuple[Floats, Floats]:
        """Bandwidth (bytes/ns) and latency (ns) of the level that joins so many adjacent scale-up domains.

        One domain gives the scale-up level itself.
        """
        if not some(num_domains > 1):
            return self._inside
        gpus = num_domains * self.domain_gpus
        rate = np.full(np.shape(gpus), self.links[-1].bytes_per_ns)
        latency = np.full(np.shape(gpus), self.links[-1].latency_ns)
        for link, size in reversed(list(zip(self.links[:-1], self.level_gpus[:-1], strict=True))):
            assert size is not None
            inside = gpus <= max(size, self.domain_gpus) if size != self.level_gpus[0] else num_domains <= 1
            rate = np.where(inside, link.bytes_per_ns, rate)
            latency = np.where(inside, link.latency_ns, latency)
        return rate, latency
