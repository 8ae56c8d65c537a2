"""Attention: projections and core, prefill and decode, for every attention kind (DESIGN 5.2, 5.3)."""

from __future__ import annotations

import numpy as np

from solver.cost.machine import BYTES_PER_KIB, Ints, Machine, Phase, ceil_int
from solver.specs.dtypes import num_bytes
from solver.specs.llm import AttentionKind, Llm
from solver.specs.problem import Problem
from solver.strategy import new_prompt_tokens, num_chunks

PROJECTION_KERNELS = 4
"""Norm, QKV projection, rotary embedding with cache write, output projection."""
CORE_KERNELS = 1
STATE_BYTES = 4
"""Recurrent states of linear attention are kept in fp32."""
INDEX_BYTES_EXTRA = 4
"""An index key is stored as fp8 (one byte per dimension) plus one fp32 scale (DeepSeek sparse attention)."""


class Attention:
    """Leaf costs of one layer's attention."""

    def __init__(self, problem: Problem, machine: Machine) -> None:
        self.problem, self.machine, self.llm = problem, machine, problem.llm
        self._weight_bytes = num_bytes(self.llm.dtypes.attention)
        self._kv_bytes = num_bytes(self.llm.dtypes.kv)
        self._activation_bytes = num_bytes(self.llm.dtypes.activation)
        self._core_flop_per_ns = machine.peak_flop_per_ns("bf16") * machine.calibration.attention_efficiency

    def weights(self, kind: AttentionKind, attn_tp: Ints) -> Ints:
        """Projection weights that one rank holds.

        Query, output and MLA up-projections split over TP; KV heads are replicated once TP exceeds them; MLA
        down-projections and the sparse indexer are replicated.
        """
        llm = self.llm
        total = llm.attention_parameters(kind)
        replicated, kv = _unsplit_parameters(llm, kind)
        kv_shards = np.minimum(attn_tp, llm.num_kv_heads)
        return replicated + -(-kv // kv_shards) + -(-(total - replicated - kv) // attn_tp)

    def projection_ns(self, kind: AttentionKind, phase: Phase, attn_tp: Ints, tokens: Ints) -> Ints:
        """Projections of `tokens` tokens of one attention group; weights are read whatever the batch."""
        weights = self.weights(kind, attn_tp).astype(np.float64)
        rate = self.machine.peak_flop_per_ns(self.llm.dtypes.attention) * self.machine.gemm_efficiency(phase)
        moved = weights * self._weight_bytes + 2.0 * tokens * self.llm.hidden_size * self._activation_bytes
        return self.machine.operator_ns(2.0 * tokens * weights, moved, rate, PROJECTION_KERNELS)

    # --- decode -----------------------------------------------------------------------------------------------

    def decode_core_ps(self, kind: AttentionKind, attn_tp: Ints) -> tuple[Ints, Ints]:
        """Decode core as integers: picoseconds per token of context, and per sequence.

        Full attention reads every cached token. Sliding layers read at most their window, sparse layers score every
        token with the indexer and read `top_k`, linear layers read and write their state: those parts are charged
        per sequence at the longest context.
        """
        workload = self.problem.workload
        longest = workload.longest_isl + workload.osl
        zero = np.zeros(np.shape(attn_tp), dtype=np.int64)
        token_ps = self._cached_token_ps(attn_tp)
        if kind == "full":
            return token_ps, zero
        if kind == "sliding":
            assert self.llm.sliding_window is not None
            return zero, token_ps * min(self.llm.sliding_window, longest)
        if kind == "sparse":
            assert self.llm.indexer is not None
            index = self.llm.indexer
            flop = 2.0 * index.num_heads * index.head_dim * workload.tokens_per_step
            moved = float(index.head_dim + INDEX_BYTES_EXTRA)
            index_ps = ceil_int(1000 * max(flop / self._core_flop_per_ns, moved / self.machine.bytes_per_ns))
            return index_ps + zero, token_ps * min(index.top_k, longest)
        state = 2.0 * self._state_bytes(attn_tp)
        return zero, ceil_int(1000 * state / self.machine.bytes_per_ns)

    def _cached_token_ps(self, attn_tp: Ints) -> Ints:
        """Picoseconds to attend to one cached token of one sequence: the roofline of its bytes and FLOP."""
        llm = self.llm
        heads = llm.num_heads / attn_tp
        if llm.mla is None:
            flop = 4.0 * heads * llm.head_dim
        else:
            flop = 2.0 * heads * (2 * llm.mla.kv_lora_rank + llm.mla.qk_rope_head_dim)
        flop = flop * self.problem.workload.tokens_per_step
        moved = self._kv_token_bytes(attn_tp)
        return ceil_int(1000 * np.maximum(flop / self._core_flop_per_ns, moved / self.machine.bytes_per_ns))

    def decode_core_ns(self, kind: AttentionKind, attn_tp: Ints, load: Ints, batch: Ints) -> Ints:
        """Decode core of the heaviest rank: `load` tokens of context over `batch` sequences."""
        token_ps, sequence_ps = self.decode_core_ps(kind, attn_tp)
        return (token_ps * load + sequence_ps * batch + 999) // 1000 + CORE_KERNELS * self.machine.launch_ns

    # --- prefill ----------------------------------------------------------------------------------------------

    def prefill_core_ns(self, kind: AttentionKind, attn_tp: Ints, prompts: Ints) -> Ints:
        """Core of one prefill pass of `prompts` mean prompts: the mean over the chunks of a prompt."""
        llm = self.llm
        new, chunks = new_prompt_tokens(self.problem), num_chunks(self.problem)
        cached = self.problem.workload.mean_isl - new
        heads = llm.num_heads / attn_tp
        width = (
            llm.mla.qk_nope_head_dim + llm.mla.qk_rope_head_dim + llm.mla.v_head_dim if llm.mla else 2 * llm.head_dim
        )
        extra = 0.0
        if kind == "linear":
            assert llm.linear is not None
            lin = llm.linear
            flop = 6.0 * new * lin.num_value_heads / attn_tp * lin.key_head_dim * lin.value_head_dim
            moved = 2.0 * self._state_bytes(attn_tp)
        else:
            window = {"sliding": llm.sliding_window, "sparse": llm.indexer.top_k if llm.indexer else None}.get(kind)
            flop = 2.0 * heads * width * attended_pairs(new, cached, window) / chunks
            moved = self._kv_token_bytes(attn_tp) * (cached + new)
            if kind == "sparse":
                assert llm.indexer is not None
                pairs = attended_pairs(new, cached, None) / chunks
                extra = 2.0 * llm.indexer.num_heads * llm.indexer.head_dim * pairs
        return self.machine.operator_ns(prompts * (flop + extra), prompts * moved, self._core_flop_per_ns, CORE_KERNELS)

    # --- memory -----------------------------------------------------------------------------------------------

    def _kv_token_bytes(self, attn_tp: Ints) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """Bytes one rank caches per token and layer; MLA latents and surplus KV heads are not split by TP."""
        llm = self.llm
        if llm.mla is not None:
            per_token = (llm.mla.kv_lora_rank + llm.mla.qk_rope_head_dim) * self._kv_bytes
            return np.full(np.shape(attn_tp), per_token)
        heads = -(-llm.num_kv_heads // np.minimum(attn_tp, llm.num_kv_heads))
        return 2.0 * heads * llm.head_dim * self._kv_bytes

    def _state_bytes(self, attn_tp: Ints) -> Ints:
        assert self.llm.linear is not None
        lin = self.llm.linear
        heads = -(-lin.num_value_heads // attn_tp)
        conv = lin.conv_kernel * (2 * lin.num_key_heads * lin.key_head_dim // attn_tp + heads * lin.value_head_dim)
        return STATE_BYTES * (heads * lin.key_head_dim * lin.value_head_dim + conv)

    def cache_bytes(self, kind: AttentionKind, attn_tp: Ints) -> tuple[Ints, Ints]:
        """Cache of one layer on one rank: bytes per resident token, and bytes per resident sequence."""
        zero = np.zeros(np.shape(attn_tp), dtype=np.int64)
        token = ceil_int(self._kv_token_bytes(attn_tp))
        if kind == "full":
            return token, zero
        if kind == "sliding":
            workload = self.problem.workload
            assert self.llm.sliding_window is not None
            return zero, token * min(self.llm.sliding_window, workload.longest_isl + workload.osl)
        if kind == "sparse":
            assert self.llm.indexer is not None
            return token + self.llm.indexer.head_dim + INDEX_BYTES_EXTRA, zero
        return zero, self._state_bytes(attn_tp) + zero

    def cache_kib(self, kind: AttentionKind, attn_tp: Ints, tokens: Ints, sequences: Ints) -> Ints:
        """Cache of one layer on one rank for its resident tokens and sequences, in KiB."""
        per_token, per_sequence = self.cache_bytes(kind, attn_tp)
        return -(-(per_token * tokens + per_sequence * sequences) // BYTES_PER_KIB)


def _unsplit_parameters(llm: Llm, kind: AttentionKind) -> tuple[int, int]:
    """Weights of one layer that TP replicates, and those of the KV heads (split at most `num_kv_heads` ways)."""
    h = llm.hidden_size
    if kind == "linear":
        return 0, 0
    if llm.mla is not None:
        replicated = h * (llm.mla.kv_lora_rank + llm.mla.qk_rope_head_dim + (llm.mla.q_lora_rank or 0))
        if kind == "sparse":
            replicated += llm.attention_parameters("sparse") - llm.attention_parameters("full")
        return replicated, 0
    return 0, 2 * h * llm.num_kv_heads * llm.head_dim


def attended_pairs(new: int, cached: int, window: int | None) -> float:
    """Query-key pairs of `new` causal tokens on top of `cached` ones, each attending to at most `window` keys."""
    full = new * cached + new * (new + 1) / 2
    if window is None or window >= cached + new:
        return full
    growing = max(0, window - cached)
    return growing * cached + growing * (growing + 1) / 2 + (new - growing) * float(window)
