"""What a document says about a strategy, as data: the facts it states and the claims it makes."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import Field, model_validator

from solver.specs.dtypes import DType
from solver.specs.problem import Engine
from solver.specs.spec import Spec

Count = Annotated[int, Field(ge=1, le=2**24)]
Amount = Annotated[float, Field(ge=0, le=1e18)]
Share = Annotated[float, Field(gt=0, le=1)]

PRODUCT_PART = re.compile(r"(EP|TP|PP|DP)([0-9]{1,7})", re.IGNORECASE)


class Facts(Spec):
    """Dimensions that a document states; absent means it does not."""

    num_layers: Annotated[int, Field(ge=1, le=2000)] | None = None
    num_experts: Count | None = None
    top_k: Count | None = None
    expert_width: Count | None = None
    matrices_per_expert: Annotated[int, Field(ge=2, le=3)] | None = None
    dense_width: Count | None = None
    hidden_size: Count | None = None
    num_heads: Count | None = None
    num_kv_heads: Count | None = None
    head_dim: Count | None = None
    vocab_size: Count | None = None
    dtype: DType | None = None
    num_gpus: Count | None = None
    """GPUs of the cluster, whether the strategy uses them or not."""
    gpus_per_node: Count | None = None
    peak_flop_per_s: Amount | None = None
    memory_bandwidth_bytes_per_s: Amount | None = None
    bandwidth_utilization: Share | None = None
    gpu_memory_bytes: Amount | None = None
    scale_up_bytes_per_s: Amount | None = None
    """Link inside a node or rack, per GPU and direction."""
    network_bytes_per_s: Amount | None = None
    """Link between nodes, per GPU and direction."""
    batch_size: Annotated[int, Field(ge=1, le=2**20)] | None = None
    sequence_min: Count | None = None
    sequence_max: Count | None = None
    output_length: Count | None = None
    is_moe: bool | None = None
    """False when the document mentions no experts at all."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sequence_min is not None and self.sequence_max is not None and self.sequence_min > self.sequence_max:
            raise ValueError(f"sequences of {self.sequence_min} to {self.sequence_max} tokens: the range is reversed")
        return self


class Claims(Spec):
    """Claims of a document; absent means it makes none."""

    source: str = "the claims"
    label: str | None = None
    num_gpus: Count | None = None
    """GPUs the strategy is said to use."""
    product_equation: bool | None = None
    """Whether GPUs are computed as ``EP x TP x PP x DP``."""
    unlimited_gpus: bool | None = None
    declared_parameters: Annotated[int, Field(ge=1, le=10**16)] | None = None
    weight_bytes: Amount | None = None
    memory_per_gpu_bytes: Amount | None = None
    memory_utilization: Annotated[float, Field(ge=0, le=10)] | None = None
    kv_cache_counted: bool | None = None
    embedding_counted: bool | None = None
    sequences_per_gpu: Amount | None = None
    experts_per_gpu: Amount | None = None
    layers_per_stage: Amount | None = None
    expert_balanced: bool | None = None
    layer_balanced: bool | None = None
    batch_balanced: bool | None = None
    memory_balanced: bool | None = None
    all_to_all_count: Annotated[int, Field(ge=0, le=10**12)] | None = None
    all_reduce_count: Annotated[int, Field(ge=0, le=10**12)] | None = None
    all_reduce_folded: bool | None = None
    """Whether the reduction over expert TP is said to be part of the combine."""
    send_recv_count: Annotated[int, Field(ge=0, le=10**12)] | None = None
    communication_factor: Annotated[float, Field(ge=0, le=1e12)] | None = None
    latency_reduction: Annotated[float, Field(ge=0, le=1e9)] | None = None
    throughput_increase: Annotated[float, Field(ge=0, le=1e9)] | None = None
    baseline_stated: bool | None = None
    """Whether the latency and throughput claims say against what."""
    pipeline_cuts_latency: bool | None = None
    pipeline_removes_bubbles: bool | None = None
    tensor_parallel_cuts_latency: bool | None = None
    mfu: Share | None = None
    mfu_prefill_only: bool | None = None
    ready: bool | None = None
    engines: tuple[Engine, ...] = ()
    """Engines the document names as targets."""
    micro_batches: Count | None = None
    recommendations: tuple[str, ...] = ()
    missing_inputs: tuple[str, ...] = ()
    """What a cost needs and the document does not state."""
    facts: Facts = Facts()

    @property
    def product_degrees(self) -> dict[str, int] | None:
        """Sizes by name (EP, TP, PP, DP; absent ones 1) of a product label; None for another form or no label."""
        parts = [PRODUCT_PART.fullmatch(part) for part in (self.label or "").split("-")]
        if any(part is None for part in parts):
            return None
        return {"EP": 1, "TP": 1, "PP": 1, "DP": 1, **{part[1].upper(): int(part[2]) for part in parts if part}}
