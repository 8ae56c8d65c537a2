"""Efficiencies and floors that turn peaks into times, each with its provenance (DESIGN 6)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from solver.specs.spec import Spec
from solver.units import Bytes, Nanoseconds

Provenance = Literal["measured", "fitted", "vendor", "assumed"]
Share = Annotated[float, Field(gt=0, le=1)]


class Origin(Spec):
    """Where a coefficient comes from, and how well it fitted there."""

    provenance: Provenance
    source: Annotated[str, Field(min_length=1)]
    error: str | None = None
    """Error on the data it was fitted on, as text; absent unless fitted."""


class Calibration(Spec):
    """Coefficients of the cost model for one kind of hardware and engine."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    source: Annotated[str, Field(min_length=1)]
    compute_efficiency_prefill: Share
    """Achieved / peak FLOP/s of dense GEMMs with thousands of rows."""
    compute_efficiency_decode: Share
    """The same with few rows."""
    attention_efficiency: Share
    """Achieved / peak FLOP/s of the attention core."""
    grouped_gemm_half_rows: Annotated[float, Field(ge=0, le=10**6)]
    """Rows per expert at which a grouped GEMM reaches half of its compute efficiency; 0 switches the effect off."""
    memory_efficiency: Share
    """Achieved / peak memory bandwidth."""
    link_efficiency: Share
    """Achieved / stated link bandwidth."""
    launch: Nanoseconds
    """Fixed time of one kernel inside a captured graph."""
    host_step: Nanoseconds
    """Host work per model step (scheduler, sampler, input preparation) that the GPU waits for."""
    collective_base: Nanoseconds
    """Fixed time of one collective beyond its link latencies (kernel, synchronisation)."""
    overlap_sm_share: Annotated[float, Field(ge=0, lt=1)]
    """Share of the SMs that communication takes from computation during two-batch overlap."""
    overlap_sync: Nanoseconds
    """Time per layer that two-batch overlap cannot hide (DESIGN 5.9, eps)."""
    usable_memory: Share
    """Share of the GPU's memory that a process may plan with."""
    framework_reserve: Bytes
    """CUDA context, framework and allocator fragmentation."""
    communicator_reserve: Bytes
    """Collective library buffers."""
    graph_reserve: Bytes
    """Captured CUDA graphs."""
    origins: dict[str, Origin]
    """Provenance by coefficient name; the key ``*`` covers the coefficients not listed."""

    def origin_of(self, coefficient: str) -> Origin:
        """Provenance of one coefficient.

        Raises
        ------
        KeyError
            Neither the coefficient nor ``*`` is listed.
        """
        return self.origins[coefficient if coefficient in self.origins else "*"]
