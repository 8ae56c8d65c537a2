"""The question: an LLM on a cluster under a workload, an objective, pins and the space that is searched."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from solver.errors import SpecError
from solver.specs.calibration import Calibration
from solver.specs.hardware import Cluster
from solver.specs.llm import Llm
from solver.specs.operators import Operators
from solver.specs.spec import Spec
from solver.specs.workload import Workload

ObjectiveName = Literal["latency", "ttft", "tpot", "throughput", "efficiency", "gpus", "weighted"]
OBJECTIVES: tuple[str, ...] = get_args(ObjectiveName)
Role = Literal["aggregated", "prefill", "decode"]
"""What the instances of a deployment do: both phases, or one of them as a pool of a disaggregated deployment."""
Phase = Literal["prefill", "decode"]
Engine = Literal["any", "vllm", "sglang", "trtllm", "megatron"]
ENGINES: tuple[str, ...] = get_args(Engine)
MeshOrder = Literal["tp-dp-pp", "tp-pp-dp"]
"""Dimensions of an instance from fastest-varying rank to slowest, as Megatron writes them. TP is always innermost: a TP
group must stay inside its scale-up domain, and orders that start with dp or pp are then illegal or cost the same."""
MESH_ORDERS: tuple[MeshOrder, ...] = get_args(MeshOrder)
AllReduce = Literal["ring", "tree", "hierarchical", "direct"]
ALL_REDUCES: tuple[AllReduce, ...] = get_args(AllReduce)
Dispatch = Literal["gather", "all_to_all"]
"""How tokens reach experts: sent to each distinct destination rank, or gathered everywhere and reduced back."""
DISPATCHES: tuple[Dispatch, ...] = get_args(Dispatch)


class Objective(Spec):
    """What is minimised (or maximised: throughput, efficiency)."""

    name: ObjectiveName = "latency"
    latency_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the latency in the objective `weighted`; ignored by the others."""


class Pins(Spec):
    """Decisions the caller has taken; absent means free."""

    attn_tp: Annotated[int, Field(ge=1)] | None = None
    attn_dp: Annotated[int, Field(ge=1)] | None = None
    moe_tp: Annotated[int, Field(ge=1)] | None = None
    moe_ep: Annotated[int, Field(ge=1)] | None = None
    pp: Annotated[int, Field(ge=1)] | None = None
    replicas: Annotated[int, Field(ge=1)] | None = None
    micro_batches: Annotated[int, Field(ge=1)] | None = None
    batch: Annotated[int, Field(ge=1)] | None = None
    prefill_batch: Annotated[int, Field(ge=1)] | None = None
    mesh_order: MeshOrder | None = None
    decode_allreduce: AllReduce | None = None
    prefill_allreduce: AllReduce | None = None
    decode_dispatch: Dispatch | None = None
    prefill_dispatch: Dispatch | None = None
    decode_overlap: bool | None = None
    prefill_overlap: bool | None = None

    def given(self) -> dict[str, int | str | bool]:
        """The pinned decisions by name."""
        return {name: value for name, value in self.model_dump().items() if value is not None}

    @classmethod
    def parse(cls, texts: tuple[str, ...]) -> Self:
        """Pins from ``name=value`` texts (``--fix attn_tp=8``).

        Raises
        ------
        SpecError
            An unknown name, a malformed value, or a name given twice.
        """
        values: dict[str, str] = {}
        for text in texts:
            name, equals, value = (part.strip() for part in text.partition("="))
            if not equals or not name or not value:
                raise SpecError(f"--fix {text!r}: expected name=value, for example attn_tp=8")
            if name not in cls.model_fields:
                raise SpecError(f"--fix {text!r}: unknown decision {name!r}; known: {', '.join(cls.model_fields)}")
            if name in values:
                raise SpecError(f"--fix gives {name!r} twice: {values[name]} and {value}")
            values[name] = value
        return cls.read(values, "--fix")


class Space(Spec):
    """The degrees that are searched; the certificate names it and states its size.

    ``standard``: moe_ep over the divisors of the experts, of experts plus redundancy, and grid multiples of the
    scale-up domain; pp and batch over the grid 1 to 8, then four values an octave (10, 12, 14, 16, 20, ...), as
    engines pad batches to captured sizes. ``all``: every integer (small problems). Attention and expert TP and replicas
    always take every legal value, so degrees need not be powers of two.
    """

    name: Literal["standard", "all"] = "standard"
    max_pp: Annotated[int, Field(ge=1, le=128)] = 16
    max_batch: Annotated[int, Field(ge=1, le=2**20)] = 1024
    """Largest number of sequences per attention-DP rank and micro-batch."""
    max_prefill_batch: Annotated[int, Field(ge=1, le=64)] = 8
    """Most prompts one attention-DP rank prefills in one step."""
    tp_across_domains: bool = False
    """Whether a TP group may leave its scale-up domain."""


class Problem(Spec):
    """One question; its digest names it."""

    llm: Llm
    cluster: Cluster
    workload: Workload
    calibration: Calibration
    operators: Operators = Operators()
    """Where operator times come from: the formulas with that calibration, or measured kernels first."""
    objective: Objective = Objective()
    role: Role = "aggregated"
    """A pool (``prefill`` or ``decode``) runs one phase: the other costs neither time nor memory. Its limits are those
    of its phase, its concurrency is free."""
    engine: Engine = "any"
    gpus_exact: Annotated[int, Field(ge=1)] | None = None
    """Use exactly so many GPUs; absent means at most `gpus_at_most`."""
    gpus_at_most: Annotated[int, Field(ge=1)] | None = None
    """Use at most so many GPUs; absent means ``cluster.num_gpus``."""
    redundant_experts: Annotated[int, Field(ge=0, le=10**5)] = 0
    """Expert replicas per MoE layer beyond one of each."""
    pins: Pins = Pins()
    space: Space = Space()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for word, gpus in (("exactly", self.gpus_exact), ("at most", self.gpus_at_most)):
            if gpus is not None and gpus > self.cluster.num_gpus:
                raise ValueError(
                    f"{word} {gpus} GPUs are asked for, but cluster {self.cluster.name!r} has {self.cluster.num_gpus}"
                )
        if self.gpus_exact is not None and self.gpus_at_most is not None:
            raise ValueError(f"give gpus_exact = {self.gpus_exact} or gpus_at_most = {self.gpus_at_most}, not both")
        if self.role != "aggregated":
            self._check_pool()
        if self.redundant_experts and not self.llm.is_moe:
            raise ValueError(f"redundant_experts = {self.redundant_experts}, but {self.llm.name} has no experts")
        loads = self.workload.expert_loads
        if loads is not None:
            if self.llm.moe is None:
                raise ValueError(f"expert loads are given, but {self.llm.name} has no experts")
            rows, columns = len(loads.counts), len(loads.counts[0])
            if (rows, columns) != (self.llm.num_moe_layers, self.llm.moe.num_experts):
                raise ValueError(
                    f"expert loads have the shape [{rows}, {columns}], but {self.llm.name} has "
                    f"{self.llm.num_moe_layers} MoE layers of {self.llm.moe.num_experts} experts"
                )
        longest = self.workload.longest_isl + self.workload.osl
        if self.llm.max_context is not None and longest > self.llm.max_context:
            raise ValueError(
                f"the longest sequence has {longest} tokens ({self.workload.longest_isl} in + {self.workload.osl} out)"
                f", but {self.llm.name} is limited to max_context = {self.llm.max_context}; shorten it or raise that"
            )
        return self

    def _check_pool(self) -> None:
        slo, name = self.workload.slo, self.objective.name
        if self.workload.concurrency is not None:
            raise ValueError(
                f"a {self.role} pool has free concurrency, but {self.workload.concurrency} sequences are asked for"
            )
        limits = {"ttft": slo.ttft, "tpot": slo.tpot, "request_latency": slo.request_latency}
        own = "ttft" if self.role == "prefill" else "tpot"
        wrong = [limit for limit, value in limits.items() if value is not None and limit != own]
        if wrong:
            raise ValueError(f"a {self.role} pool has no {wrong[0]}: it can be limited by {own} alone")
        if name not in (own, "throughput", "efficiency", "gpus"):
            raise ValueError(
                f"a {self.role} pool has no {name} to optimise; take {own}, throughput, efficiency or gpus"
            )

    def runs(self, phase: Phase) -> bool:
        """Whether the instances run a phase."""
        return self.role in ("aggregated", phase)

    @property
    def gpu_budget(self) -> int:
        """Most GPUs a plan may use."""
        return self.gpus_exact or self.gpus_at_most or self.cluster.num_gpus

    @property
    def assumptions(self) -> tuple[str, ...]:
        """Everything the catalog entries decided for the caller, LLM first."""
        return (*self.llm.assumptions, *self.cluster.assumptions, *self.workload.assumptions)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of the question."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
