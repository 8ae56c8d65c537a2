"""The served network, with the keys of its Hugging Face ``config.json`` and the arithmetic of its own dimensions."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from solver.specs.dtypes import DType
from solver.specs.spec import Spec

AttentionKind = Literal["full", "sliding", "sparse", "linear"]
FfnKind = Literal["dense", "moe"]

Count = Annotated[int, Field(strict=True, ge=1, le=10**9)]

DECLARED_TOLERANCE = 0.05
"""A declared parameter count may differ this much from the dimensions before the package asks (DESIGN 5)."""


class Mla(Spec):
    """Multi-head latent attention: one compressed KV vector per token, shared by all heads and not split by TP."""

    kv_lora_rank: Count
    qk_rope_head_dim: Count
    qk_nope_head_dim: Count
    v_head_dim: Count
    q_lora_rank: Count | None = None


class Moe(Spec):
    """Routed experts of one MoE layer, and the shared expert beside them."""

    num_experts: Count
    top_k: Count
    expert_width: Count
    """Columns of one expert's FFN (``moe_intermediate_size``)."""
    matrices_per_expert: Literal[2, 3] = 3
    """3 for a gated FFN (gate, up, down), 2 otherwise."""
    shared_width: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Total columns of the always-active shared experts; 0 means none."""
    num_groups: Count = 1
    """Router groups (``n_group``)."""
    groups_per_token: Count = 1
    """Groups a token may use (``topk_group``); with node-limited routing it bounds the nodes a token goes to."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k = {self.top_k} exceeds num_experts = {self.num_experts}")
        if self.groups_per_token > self.num_groups:
            raise ValueError(f"groups_per_token = {self.groups_per_token} exceeds num_groups = {self.num_groups}")
        if self.num_experts % self.num_groups:
            raise ValueError(f"num_groups = {self.num_groups} does not divide num_experts = {self.num_experts}")
        return self


class Linear(Spec):
    """Linear-attention layer (gated delta rule): a recurrent state per sequence instead of a growing cache."""

    num_key_heads: Count
    num_value_heads: Count
    key_head_dim: Count
    value_head_dim: Count
    conv_kernel: Count = 4


class Indexer(Spec):
    """Sparse-attention indexer (DeepSeek sparse attention): scores every cached token, then attends to `top_k`."""

    top_k: Count
    num_heads: Count
    head_dim: Count


class Dtypes(Spec):
    """Storage formats by part of the network."""

    attention: DType = "bf16"
    dense: DType = "bf16"
    """Dense FFN layers and shared experts."""
    experts: DType = "bf16"
    embedding: DType = "bf16"
    """Embedding and LM head."""
    kv: DType = "bf16"
    activation: DType = "bf16"
    dispatch: DType = "bf16"
    """Token vectors sent to the experts; with an 8-bit type the block scales (one fp32 per 128) travel too."""


class LayerKind(Spec):
    """What one decoder layer is made of; layers of one kind cost the same."""

    attention: AttentionKind
    ffn: FfnKind


class Llm(Spec):
    """A decoder-only network. ``moe`` absent means every layer is dense: the special case without experts."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    source: Annotated[str, Field(min_length=1)]
    """Where the dimensions come from."""
    assumptions: tuple[str, ...] = ()
    """What the source does not state and this entry decided; shown in every report."""
    num_layers: Annotated[int, Field(strict=True, ge=1, le=2000)]
    hidden_size: Count
    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    vocab_size: Count
    tie_embeddings: bool = False
    attention_output_gate: bool = False
    dense_width: Annotated[int, Field(ge=0, le=10**9)] = 0
    """FFN columns of the dense layers; 0 where every layer is MoE."""
    ffn_matrices: Literal[2, 3] = 3
    mla: Mla | None = None
    indexer: Indexer | None = None
    linear: Linear | None = None
    moe: Moe | None = None
    moe_layers: tuple[int, ...] | None = None
    """0-based indices of the MoE layers; absent means all of them when `moe` is given."""
    attention_kinds: tuple[AttentionKind, ...] = ()
    """Per layer, repeated as a pattern when shorter than `num_layers`; empty means full attention everywhere."""
    sliding_window: Count | None = None
    max_context: Count | None = None
    """``max_position_embeddings``; absent means unlimited."""
    num_mtp_layers: Annotated[int, Field(ge=0, le=64)] = 0
    """Multi-token-prediction layers shipped with the checkpoint (not counted in `num_layers`, not loaded unless
    speculative decoding is declared)."""
    dtypes: Dtypes = Dtypes()
    quant_block: Count | None = None
    """Edge of a square weight-quantisation block; a TP slice must hold whole blocks."""
    declared_parameters: Annotated[int, Field(ge=1, le=10**16)] | None = None
    """Parameter count that the source claims."""
    reading: Literal["as-dimensioned", "as-declared"] | None = None
    """Which one is believed when the claim and the dimensions differ by more than 5 %."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads = {self.num_kv_heads} does not divide num_heads = {self.num_heads}")
        if self.moe is None and self.moe_layers:
            raise ValueError("moe_layers is given but the table [moe] is missing")
        for layer in self.moe_layers or ():
            if not 0 <= layer < self.num_layers:
                raise ValueError(f"moe_layers names layer {layer}, but layers run from 0 to {self.num_layers - 1}")
        if self.moe_layers is not None and list(self.moe_layers) != sorted(set(self.moe_layers)):
            raise ValueError("moe_layers must be strictly increasing")
        if len(self.moe_layer_indices) < self.num_layers and self.dense_width == 0:
            raise ValueError(
                f"{self.num_layers - len(self.moe_layer_indices)} of {self.num_layers} layers are dense, "
                "but dense_width is 0"
            )
        if len(self.attention_kinds) > self.num_layers:
            raise ValueError(f"attention_kinds has {len(self.attention_kinds)} entries for {self.num_layers} layers")
        kinds = set(self.attention_kinds)
        if "sliding" in kinds and self.sliding_window is None:
            raise ValueError("attention_kinds has sliding layers, but sliding_window is missing")
        if "sparse" in kinds and (self.indexer is None or self.mla is None):
            raise ValueError("attention_kinds has sparse layers, but the table [indexer] or [mla] is missing")
        if "linear" in kinds and self.linear is None:
            raise ValueError("attention_kinds has linear layers, but the table [linear] is missing")
        if self.declared_parameters is not None and self.reading is None and self.declared_gap > DECLARED_TOLERANCE:
            raise ValueError(self.declared_sentence() + "; choose reading = 'as-dimensioned' or 'as-declared'")
        if self.reading == "as-declared":
            if self.declared_parameters is None:
                raise ValueError("reading = 'as-declared' needs declared_parameters")
            if not self.num_moe_layers:
                raise ValueError("reading = 'as-declared' spreads the surplus over routed experts, but there are none")
            if self.expert_parameters <= 0:
                raise ValueError(
                    f"declared_parameters = {self.declared_parameters} is below what the dimensions need without "
                    "any routed expert"
                )
        return self

    # --- layers ---------------------------------------------------------------------------------------------------

    @cached_property
    def moe_layer_indices(self) -> tuple[int, ...]:
        """0-based indices of the MoE layers."""
        if self.moe is None:
            return ()
        return tuple(range(self.num_layers)) if self.moe_layers is None else self.moe_layers

    @property
    def num_moe_layers(self) -> int:
        """Number of MoE layers (``L_m``)."""
        return len(self.moe_layer_indices)

    @property
    def is_moe(self) -> bool:
        """Whether any layer routes tokens to experts."""
        return self.num_moe_layers > 0

    @cached_property
    def layers(self) -> tuple[LayerKind, ...]:
        """The kind of every decoder layer, first to last."""
        pattern = self.attention_kinds or ("full",)
        moe = set(self.moe_layer_indices)
        return tuple(
            LayerKind(attention=pattern[i % len(pattern)], ffn="moe" if i in moe else "dense")
            for i in range(self.num_layers)
        )

    @cached_property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The distinct kinds, in order of first appearance."""
        return tuple(dict.fromkeys(self.layers))

    @cached_property
    def kind_of_layer(self) -> tuple[int, ...]:
        """Position in :attr:`kinds` of every decoder layer's kind."""
        place = {kind: i for i, kind in enumerate(self.kinds)}
        return tuple(place[layer] for layer in self.layers)

    @cached_property
    def layers_of_kind(self) -> dict[LayerKind, int]:
        """How many layers there are of every kind."""
        return {kind: self.layers.count(kind) for kind in self.kinds}

    # --- parameters -----------------------------------------------------------------------------------------------

    def attention_parameters(self, kind: AttentionKind = "full") -> int:
        """Weights of one layer's attention (projections only; norms are counted in :attr:`norm_parameters`)."""
        h = self.hidden_size
        if kind == "linear":
            assert self.linear is not None
            lin = self.linear
            keys, values = lin.num_key_heads * lin.key_head_dim, lin.num_value_heads * lin.value_head_dim
            return h * (2 * keys + 2 * values + 2 * lin.num_value_heads) + values * h
        if self.mla is not None:
            m = self.mla
            qk = m.qk_nope_head_dim + m.qk_rope_head_dim
            q = h * self.num_heads * qk if m.q_lora_rank is None else m.q_lora_rank * (h + self.num_heads * qk)
            kv_down = h * (m.kv_lora_rank + m.qk_rope_head_dim)
            kv_up = m.kv_lora_rank * self.num_heads * (m.qk_nope_head_dim + m.v_head_dim)
            out = self.num_heads * m.v_head_dim * h
            index = 0
            if kind == "sparse" and self.indexer is not None:
                heads = self.indexer.num_heads * self.indexer.head_dim
                index = (m.q_lora_rank or h) * heads + h * (self.indexer.head_dim + self.indexer.num_heads)
            return q + kv_down + kv_up + out + index
        q_heads = self.num_heads * (2 if self.attention_output_gate else 1)
        return h * self.head_dim * (q_heads + self.num_heads + 2 * self.num_kv_heads)

    @property
    def router_parameters(self) -> int:
        """Weights of one MoE layer's router; every rank holds them whole."""
        return 0 if self.moe is None else self.hidden_size * self.moe.num_experts

    @property
    def dense_parameters(self) -> int:
        """Weights of one dense layer's FFN."""
        return self.ffn_matrices * self.hidden_size * self.dense_width

    @property
    def shared_parameters(self) -> int:
        """Weights of one MoE layer's shared experts."""
        return 0 if self.moe is None else self.moe.matrices_per_expert * self.hidden_size * self.moe.shared_width

    @property
    def dimensioned_expert_parameters(self) -> int:
        """Weights of one routed expert from its dimensions, ``M h f``."""
        return 0 if self.moe is None else self.moe.matrices_per_expert * self.hidden_size * self.moe.expert_width

    @property
    def expert_parameters(self) -> int:
        """Weights of one routed expert in the chosen reading, rounded up to whole parameters."""
        if self.reading != "as-declared" or self.moe is None or self.declared_parameters is None:
            return self.dimensioned_expert_parameters
        routed = self.num_moe_layers * self.moe.num_experts
        rest = self.dimensioned_parameters - routed * self.dimensioned_expert_parameters
        return -(-(self.declared_parameters - rest) // routed)

    @property
    def vocabulary_parameters(self) -> int:
        """Weights of the embedding (and of the LM head, which is as large)."""
        return self.vocab_size * self.hidden_size

    @property
    def norm_parameters(self) -> int:
        """Two RMS norms a layer and the final one."""
        return self.hidden_size * (2 * self.num_layers + 1)

    @cached_property
    def dimensioned_parameters(self) -> int:
        """Parameters of the whole network, from its dimensions."""
        total = self.vocabulary_parameters * (1 if self.tie_embeddings else 2) + self.norm_parameters
        for layer in self.layers:
            total += self.attention_parameters(layer.attention)
            if layer.ffn == "dense":
                total += self.dense_parameters
            else:
                assert self.moe is not None
                total += self.router_parameters + self.shared_parameters
                total += self.moe.num_experts * self.dimensioned_expert_parameters
        return total

    @property
    def total_parameters(self) -> int:
        """Parameters in the chosen reading."""
        if self.moe is None:
            return self.dimensioned_parameters
        surplus = self.expert_parameters - self.dimensioned_expert_parameters
        return self.dimensioned_parameters + self.num_moe_layers * self.moe.num_experts * surplus

    @property
    def declared_gap(self) -> float:
        """``|declared / dimensioned - 1|``; 0 when nothing is declared."""
        if self.declared_parameters is None:
            return 0.0
        return abs(self.declared_parameters / self.dimensioned_parameters - 1)

    def declared_sentence(self) -> str:
        """The contradiction between declared and derived parameters, with its arithmetic."""
        moe = ""
        if self.moe is not None:
            moe = (
                f"{self.num_moe_layers} layers x {self.moe.num_experts} experts x {self.moe.matrices_per_expert} "
                f"matrices x {self.hidden_size} x {self.moe.expert_width} = "
                f"{self.num_moe_layers * self.moe.num_experts * self.dimensioned_expert_parameters / 1e9:.3f} B, "
            )
        attention = sum(self.attention_parameters(layer.attention) for layer in self.layers)
        declared = self.declared_parameters or 0
        return (
            f"{self.name} declares {declared / 1e9:.2f} B parameters, but its dimensions give "
            f"{self.dimensioned_parameters / 1e9:.2f} B ({moe}attention {attention / 1e9:.3f} B, embedding and head "
            f"{self.vocabulary_parameters * (1 if self.tie_embeddings else 2) / 1e9:.3f} B): "
            f"a factor of {declared / self.dimensioned_parameters:.2f}"
        )
