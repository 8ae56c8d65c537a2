"""Efficiencies and floors that turn peaks into times, each with its provenance (DESIGN 6)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from solver.specs.spec import Spec
from solver.units import Bytes, Nanoseconds

Provenance = Literal["measured", "fitted", "vendor", "assumed"]
LONGEST_OVERHEAD_S = 10


def _bounded(ns: int) -> int:
    if ns > LONGEST_OVERHEAD_S * 10**9:
        raise ValueError(f"{ns / 1e9:,.6g} s is longer than the {LONGEST_OVERHEAD_S} s that a fixed time may take")
    return ns


Overhead = Annotated[Nanoseconds, AfterValidator(_bounded)]
"""Fixed time of something that an engine does."""
Share = Annotated[float, Field(ge=1e-3, le=1)]
Rows = Annotated[float, Field(ge=0, le=10**6)]
Arithmetic = Literal["bf16", "fp8", "fp8_block", "int8", "fp4"]
"""What a GEMM multiplies. ``fp8_block`` is 8-bit floating point with a scale per block of weights."""


class Origin(Spec):
    """Where a coefficient comes from, and how well it fitted there."""

    provenance: Provenance
    source: Annotated[str, Field(min_length=1)]


class Errors(Spec):
    """Absolute relative errors in percent; absent where nothing was measured."""

    tpot_mean: float | None = None
    tpot_median: float | None = None
    ttft_mean: float | None = None
    ttft_median: float | None = None


class FitError(Spec):
    """How well a fitted calibration predicts deployments that it was not fitted to."""

    rows: Annotated[int, Field(ge=1)]
    pairs: Annotated[int, Field(ge=1)]
    """Distinct (LLM, GPU) pairs among them."""
    left_out: Annotated[str, Field(min_length=1)]
    """What the cross-validation left out at a time."""
    unseen: Errors


class Calibration(Spec):
    """Coefficients of the cost model for one kind of hardware and engine."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    source: Annotated[str, Field(min_length=1)]
    gemm_efficiency: dict[Arithmetic, Share]
    """Achieved / peak FLOP/s of GEMMs with many rows, by arithmetic; one that is not listed takes that of ``bf16``."""
    gemm_half_rows: Rows
    """Rows at which a GEMM reaches half of its efficiency; 0 switches the effect off."""
    grouped_gemm_half_rows: Rows
    """The same for a grouped GEMM, in rows per expert."""
    grouped_gemm_share: Share = 1.0
    """Rate of the experts' grouped GEMMs as a share of a plain GEMM of the same arithmetic."""
    grouped_block_share: Share = 1.0
    """The same again for weights that are scaled in blocks."""
    roofline_power: Annotated[float, Field(ge=1, le=64)] | None = None
    """``p`` of a GEMM's time ``(compute^p + memory^p)^(1/p)``: 1 adds the two; absent takes the larger one."""
    elementwise_passes: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Times that a GEMM's activations pass through memory again in the kernels around it, which nothing overlaps."""
    weight_only_compute: Share = 1.0
    """Rate of a GEMM that expands 4-bit weights on the fly, as a share of the 16-bit rate."""
    weight_only_memory: Share = 1.0
    """Bandwidth at which such a GEMM reads its weights, as a share of what other operators reach."""
    attention_efficiency: Share
    """Achieved / peak FLOP/s of the attention core."""
    memory_efficiency: Share
    """Achieved / peak memory bandwidth when weights and activations are read."""
    cache_efficiency: Share
    """Achieved / peak memory bandwidth when the KV cache is read."""
    link_efficiency: Share
    """Achieved / stated link bandwidth."""
    launch: Overhead
    """Fixed time of one kernel inside a captured graph."""
    collective_base: Overhead
    """Fixed time of one collective beyond its link latencies (kernel, synchronisation)."""
    direct_sync: Overhead | None = None
    """Time of a direct all-reduce between its two steps: every rank waits until all ranks of its domain have reduced
    their shares. Absent where the engine has no direct all-reduce."""
    host_step: Overhead
    """Host work per decode step (scheduler, sampler, input preparation) that the GPU waits for."""
    host_sequence: Overhead = 0
    """Host and sampling work per sequence of a decode step."""
    host_prefill: Overhead
    """Host work per prefill pass."""
    host_prefill_kernel: Overhead = 0
    """Host work per kernel of a prefill pass: they are launched one by one, outside a captured graph."""
    host_prefill_linear: Overhead = 0
    """Host work per linear-attention layer of a prefill pass beyond that: its kernels are launched from Python."""
    routing_noise: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the sampling noise of routing that reaches the time of the experts."""
    routing_skew: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Squared coefficient of variation of the experts' popularity where no loads are declared; 0 is uniform."""
    draft_host_steps: Annotated[int, Field(ge=0, le=16)] = 0
    """Times that a decode step repeats its host work when tokens are drafted: 2 where an engine plans the draft, the
    verification and the extension one after another instead of while the GPU works."""
    draft_host_sequence: Overhead = 0
    """Host work per sequence of each of those repetitions: all of it is visible where nothing overlaps it."""
    mixed_batches: bool = False
    """Whether the engine computes prompt chunks and decode tokens in one step; if not, decoding waits for prefills."""
    request_overhead: Overhead = 0
    """Time from a request's arrival to its first scheduling and back to the client, outside the model."""
    queue_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the other requests' prefills in a cycle that delays a first token in bursts, beyond proportion."""
    overlap_sm_share: Annotated[float, Field(ge=0, lt=1)]
    """Share of the SMs that communication takes from computation during two-batch overlap."""
    overlap_sync: Overhead
    """Time per layer that two-batch overlap cannot hide (DESIGN 5.9, eps)."""
    usable_memory: Share
    """Share of the GPU's memory that a process may plan with."""
    framework_reserve: Bytes
    """CUDA context, framework and allocator fragmentation."""
    communicator_reserve: Bytes
    """Collective library buffers."""
    graph_reserve: Bytes
    """Captured CUDA graphs."""
    error: FitError | None = None
    """Absent unless fitted."""
    origins: dict[str, Origin]
    """Provenance by coefficient name; the key ``*`` covers the coefficients not listed."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if "bf16" not in self.gemm_efficiency:
            raise ValueError("gemm_efficiency needs bf16, which every arithmetic that is not listed falls back on")
        return self

    @property
    def assumed(self) -> tuple[str, ...]:
        """Coefficients that were neither measured, nor fitted, nor stated by a vendor."""
        names = set(type(self).model_fields) - {"name", "source", "error", "origins"}
        return tuple(sorted(name for name in names if self.origin_of(name).provenance == "assumed"))

    def origin_of(self, coefficient: str) -> Origin:
        """Provenance of one coefficient.

        Raises
        ------
        KeyError
            Neither the coefficient nor ``*`` is listed.
        """
        return self.origins[coefficient if coefficient in self.origins else "*"]
