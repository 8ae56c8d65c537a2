"""Resolved rates of one problem's hardware and calibration, and the roofline of one operator (DESIGN 5.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from solver.specs.dtypes import NATIVE, WEIGHT_ONLY
from solver.specs.problem import Problem

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]
IntLike = int | np.int64 | Ints
Phase = Literal["prefill", "decode"]

SLACK = 1e-6
"""Leaves are rounded up after taking off this much (a millionth of a ns or KiB), so that two machines whose last
floating-point bit differs agree on the integer."""

BYTES_PER_KIB = 1024


def ceil_int(value: Floats | float) -> Ints:
    """Round up to integers, once per leaf."""
    return np.ceil(np.asarray(value, dtype=np.float64) - SLACK).astype(np.int64)


@dataclass(frozen=True)
class Link:
    """One link level after calibration."""

    bytes_per_ns: float
    latency_ns: float


class Machine:
    """Rates in FLOP/ns and bytes/ns after efficiencies."""

    def __init__(self, problem: Problem) -> None:
        self._peak: dict[str, float] = {unit: rate / 1e9 for unit, rate in problem.cluster.gpu.peak.items()}
        calibration = problem.calibration
        self.calibration = calibration
        self.bytes_per_ns = problem.cluster.gpu.memory_bandwidth * calibration.memory_efficiency / 1e9
        self.launch_ns = calibration.launch
        self.domain_gpus = problem.cluster.domain_gpus
        self.links = tuple(
            Link(level.bandwidth * calibration.link_efficiency / 1e9, float(level.latency))
            for level in problem.cluster.levels
        )
        self.level_gpus = tuple(level.gpus for level in problem.cluster.levels)

    def peak_flop_per_ns(self, dtype: str) -> float:
        """Peak rate of the unit that multiplies this format (16-bit where it is expanded on the fly)."""
        unit = NATIVE[dtype]
        if unit not in self._peak:
            unit = WEIGHT_ONLY.get(dtype, "bf16")
        return self._peak[unit]

    def gemm_efficiency(self, phase: Phase) -> float:
        """Achieved / peak of dense GEMMs in a phase."""
        calibration = self.calibration
        return calibration.compute_efficiency_prefill if phase == "prefill" else calibration.compute_efficiency_decode

    def operator_ns(self, flop: Floats, num_bytes: Floats, flop_per_ns: Floats | float, kernels: int) -> Ints:
        """``max(flop / rate, bytes / bandwidth) + kernels * launch``, rounded up to ns."""
        return ceil_int(np.maximum(flop / flop_per_ns, num_bytes / self.bytes_per_ns)) + kernels * self.launch_ns

    def outer_link(self, num_domains: Ints) -> tuple[Floats, Floats]:
        """Bandwidth (bytes/ns) and latency (ns) of the level that joins so many adjacent scale-up domains.

        One domain gives the scale-up level itself.
        """
        gpus = num_domains * self.domain_gpus
        rate = np.full(np.shape(gpus), self.links[-1].bytes_per_ns)
        latency = np.full(np.shape(gpus), self.links[-1].latency_ns)
        for link, size in reversed(list(zip(self.links[:-1], self.level_gpus[:-1], strict=True))):
            assert size is not None
            inside = gpus <= max(size, self.domain_gpus) if size != self.level_gpus[0] else num_domains <= 1
            rate = np.where(inside, link.bytes_per_ns, rate)
            latency = np.where(inside, link.latency_ns, latency)
        return rate, latency
