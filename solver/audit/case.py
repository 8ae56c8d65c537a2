"""One audit's inputs, and the sizes that several rules need."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from solver.audit.claims import Claims
from solver.audit.finding import Finding, Severity
from solver.cost.layers import Blocks
from solver.cost.leaves import Leaves, as_ints
from solver.legality import Violation, violations
from solver.specs.dtypes import num_bytes
from solver.specs.llm import Llm
from solver.specs.problem import Problem
from solver.strategy import Strategy

AUDIT_RULES: dict[str, str] = {
    "inputs": "Inputs that the document does not state",
    "P1": "Declared and derived parameters differ",
    "P2": "Declared and derived weight bytes differ",
    "M1": "Data parallelism counted as sharding",
    "M2": "Memory per GPU matches no sharding of the weights",
    "M3": "Embedding and LM head left out of the memory per GPU",
    "M4": "KV cache left out of the memory per GPU",
    "M5": "Memory per GPU is understated",
    "U1": "Memory is hardly used",
    "S1": "Degrees with two meanings",
    "S2": "Product reading against the engine identity",
    "S3": "Engines that refuse to launch it",
    "L1": "Experts per GPU in the wrong unit",
    "L2": "Count balance is not load balance",
    "L3": "Nothing to rebalance",
    "L4": "Equal counts of unequal sequences",
    "L5": "Equal layers are not equal stages",
    "C1": "Number of all-to-alls",
    "C2": "Number of all-reduces",
    "C3": "Number of pipeline transfers",
    "C4": "Sum of unlike collectives",
    "C5": "No link speeds",
    "T1": "Latency claim",
    "T2": "Throughput bought with GPUs",
    "T3": "MFU out of reach in decode",
    "T4": "Pipeline bubble in decode",
    "T5": "Over-sharded",
    "R1": "Recommendations that do not apply",
    "O1": "More GPUs than anything asks for",
}
"""Every rule about claims: id -> title. Rules of legality are in :data:`solver.strategy.RULES`."""

TOLERANCE = 0.05
"""A claimed number may differ this much from the computed one."""
COMMON_TOP_K = (1, 2, 8)
"""Values shown when a document does not state its top-k."""


@dataclass(frozen=True)
class Variant:
    """One reading of what the document leaves open about experts."""

    name: str
    expert_parameters: int


@dataclass(frozen=True)
class Case:
    """The problem, the strategy and the claims under audit."""

    problem: Problem
    strategy: Strategy
    claims: Claims
    is_stated: bool
    """Whether there are claims at all."""
    blocks: Blocks | None = None
    """The placement's blocks where it is known."""

    @property
    def llm(self) -> Llm:
        """The network."""
        return self.problem.llm

    @cached_property
    def leaves(self) -> Leaves:
        """Leaf costs of the problem."""
        return Leaves(self.problem)

    @cached_property
    def violations(self) -> tuple[Violation, ...]:
        """Broken rules of legality that need no cost."""
        return tuple(violations(self.problem, self.strategy))

    @property
    def has_times(self) -> bool:
        """Whether the strategy is whole enough to be costed."""
        fatal = {"dtype", "identity", "dense-degrees", "stages"}
        return not any(violation.rule in fatal for violation in self.violations)

    def find(self, rule: str, severity: Severity, sentence: str, arithmetic: str) -> Finding:
        """A finding under a rule's title."""
        return Finding(rule=rule, severity=severity, title=AUDIT_RULES[rule], sentence=sentence, arithmetic=arithmetic)

    def lacks(self, name: str) -> bool:
        """Whether the document leaves an input open."""
        return name in self.claims.missing_inputs

    # --- parameters and weights -----------------------------------------------------------------------------------

    @cached_property
    def variants(self) -> tuple[Variant, ...]:
        """Readings of the expert size: two and three matrices where the document does not say."""
        moe = self.llm.moe
        if moe is None:
            return (Variant("", 0),)
        if self.llm.reading == "as-declared":
            return (Variant("as declared", self.llm.expert_parameters),)
        return self.dimensioned_variants

    @cached_property
    def dimensioned_variants(self) -> tuple[Variant, ...]:
        """The same from the dimensions alone, whatever the reading."""
        moe = self.llm.moe
        if moe is None:
            return (Variant("", 0),)
        readings = (2, 3) if self.lacks("matrices_per_expert") else (moe.matrices_per_expert,)
        return tuple(Variant(f"m = {m}", m * self.llm.hidden_size * moe.expert_width) for m in readings)

    @property
    def routed_experts(self) -> int:
        """Logical experts of the whole network, all MoE layers."""
        return 0 if self.llm.moe is None else self.llm.num_moe_layers * self.llm.moe.num_experts

    @cached_property
    def attention_parameters(self) -> int:
        """Attention weights of all layers."""
        return sum(self.llm.attention_parameters(layer.attention) for layer in self.llm.layers)

    @cached_property
    def dense_parameters(self) -> int:
        """Dense FFN layers and shared experts."""
        llm = self.llm
        return (llm.num_layers - llm.num_moe_layers) * llm.dense_parameters + llm.num_moe_layers * llm.shared_parameters

    @property
    def small_parameters(self) -> int:
        """Routers and norms."""
        return self.llm.num_moe_layers * self.llm.router_parameters + self.llm.norm_parameters

    @property
    def vocabulary_parameters(self) -> int:
        """Embedding and LM head."""
        return self.llm.vocabulary_parameters * (1 if self.llm.tie_embeddings else 2)

    @property
    def vocabulary_bytes(self) -> float:
        """Bytes of embedding and LM head."""
        return self.vocabulary_parameters * num_bytes(self.llm.dtypes.embedding)

    def body_parameters(self, variant: Variant) -> int:
        """All parameters but the vocabulary's."""
        routed = self.routed_experts * variant.expert_parameters
        return routed + self.attention_parameters + self.dense_parameters + self.small_parameters

    def body_bytes(self, variant: Variant) -> float:
        """Weights but the vocabulary's, one copy."""
        dtypes = self.llm.dtypes
        return (
            self.routed_experts * variant.expert_parameters * num_bytes(dtypes.experts)
            + self.attention_parameters * num_bytes(dtypes.attention)
            + self.dense_parameters * num_bytes(dtypes.dense)
            + self.small_parameters * num_bytes(dtypes.activation)
        )

    # --- one GPU --------------------------------------------------------------------------------------------------

    @cached_property
    def attention_per_gpu(self) -> float:
        """Attention weights of a GPU of a mean stage: TP and PP shard them, EP and DP do not."""
        (tp,) = as_ints(self.strategy.attn_tp)
        held = sum(int(self.leaves.attention.weights(layer.attention, tp)) for layer in self.llm.layers)
        return held * num_bytes(self.llm.dtypes.attention) / self.strategy.pp

    def experts_per_gpu(self, variant: Variant) -> float:
        """Routed-expert weights of a GPU of a mean stage."""
        whole = self.routed_experts * variant.expert_parameters * num_bytes(self.llm.dtypes.experts)
        return whole / (self.strategy.moe_ep * self.strategy.moe_tp * self.strategy.pp)

    @property
    def dense_per_gpu(self) -> float:
        """Dense FFN and shared-expert weights of a GPU of a mean stage."""
        shards = self.strategy.attn_tp * self.strategy.pp
        return self.dense_parameters * num_bytes(self.llm.dtypes.dense) / shards

    def weights_per_gpu(self, variant: Variant) -> float:
        """Weights of a GPU of a mean stage without embedding and LM head (routers and norms left out as well)."""
        return self.attention_per_gpu + self.experts_per_gpu(variant) + self.dense_per_gpu

    @property
    def vocabulary_per_gpu(self) -> float:
        """One vocabulary matrix on a GPU of the first or the last stage."""
        return self.llm.vocabulary_parameters * num_bytes(self.llm.dtypes.embedding) / self.strategy.attn_tp

    # --- sequences and KV cache -----------------------------------------------------------------------------------

    @property
    def num_sequences(self) -> int:
        """Concurrent sequences."""
        return self.claims.facts.batch_size or self.problem.workload.concurrency or self.strategy.slots

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, prompt and output."""
        return self.claims.facts.sequence_max or self.problem.workload.longest_isl + self.problem.workload.osl

    @property
    def mean_length(self) -> float:
        """Tokens of the mean sequence at its end."""
        facts, workload = self.claims.facts, self.problem.workload
        if facts.sequence_min is not None and facts.sequence_max is not None:
            return (facts.sequence_min + facts.sequence_max) / 2
        return sum(workload.prompt_lengths) / len(workload.prompt_lengths) + workload.osl

    def cache_bytes(self, attn_tp: int, sequences: float, length: float) -> float:
        """KV cache (and recurrent states) of all layers for `sequences` sequences, on one rank of TP groups."""
        (tp,) = as_ints(attn_tp)
        total = 0.0
        for layer in self.llm.layers:
            token, sequence = self.leaves.attention.cache_bytes(layer.attention, tp)
            total += sequences * (float(token) * length + float(sequence))
        return total

    @property
    def sequences_per_group(self) -> float:
        """Sequences of an attention group."""
        return self.num_sequences / (self.strategy.replicas * self.strategy.attn_dp)

    @cached_property
    def sequence_readings(self) -> tuple[float, ...]:
        """Sequences per GPU: what the strategy means, and what the document says, where they differ."""
        stated = self.claims.sequences_per_gpu
        if stated is None or is_close(stated, self.sequences_per_group):
            return (self.sequences_per_group,)
        return (self.sequences_per_group, stated)

    def cache_per_gpu(self, sequences: float, length: float) -> float:
        """KV cache of a GPU of a mean stage that serves so many sequences."""
        return self.cache_bytes(self.strategy.attn_tp, sequences, length) / self.strategy.pp

    @cached_property
    def needed_bytes(self) -> float:
        """One copy of the weights (largest reading) and the KV cache of all sequences at the longest length."""
        weights = max(self.body_bytes(variant) for variant in self.variants) + self.vocabulary_bytes
        return weights + self.cache_bytes(1, self.num_sequences, self.longest)

    @property
    def gpus_needed(self) -> int:
        """GPUs whose memory holds :attr:`needed_bytes`."""
        return max(1, -int(-self.needed_bytes // self.problem.cluster.gpu.memory))

    @property
    def step_tokens(self) -> int:
        """Tokens that a stage routes in one decode step."""
        return self.strategy.attn_dp * self.strategy.batch * self.problem.workload.tokens_per_step

    @property
    def top_ks(self) -> tuple[int, ...]:
        """The router's top-k; common values as well where the document does not state it."""
        moe = self.llm.moe
        if moe is None:
            return ()
        others = COMMON_TOP_K if self.lacks("top_k") else ()
        return tuple(sorted({moe.top_k, *(k for k in others if k < moe.num_experts)}))


def is_close(value: float, target: float, tolerance: float = 0.01) -> bool:
    """Whether two numbers differ by at most a share of the second."""
    return abs(value - target) <= tolerance * abs(target)


def size(num: float) -> str:
    """Size for people: three significant digits, decimal units."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num >= 0.9995 * factor:
            digits = f"{num / factor:#.3g}".rstrip(".")
            return f"{digits} {unit}"
    return f"{num:.0f} B"


def either(texts: list[str]) -> str:
    """The values of several readings."""
    return " / ".join(dict.fromkeys(texts))
