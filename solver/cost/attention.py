"""Attention: projections and core, prefill and decode, for every attention kind (DESIGN 5.2, 5.3)."""

from __future__ import annotations

import numpy as np

from solver.cost.lengths import Lengths
from solver.cost.machine import BYTES_PER_KIB, Floats, Gemm, Ints, Machine, Numbers, ceil_int
from solver.specs.dtypes import num_bytes
from solver.specs.llm import AttentionKind, Llm
from solver.specs.problem import Problem

PROJECTION_KERNELS = 4
"""Norm, QKV projection, rotary embedding with cache write, output projection."""
LATENT_KERNELS = 9
"""The same for MLA: norm, joint down-projection, two norms, query up-projection, rotary embedding, absorption into the
latent space and back, output projection."""
QUANTISATION_KERNELS = 2
"""Before the QKV and the output projection, where activations are quantised by kernels of their own."""
LATENT_QUANTISATION_KERNELS = 3
"""The same for MLA: before the joint down-projection, the query up-projection and the output projection."""
MORE_KERNELS: dict[AttentionKind, int] = {"sparse": 4, "linear": 4}
"""Sparse: index projection, its cache write, scoring, top-k. Linear: convolution, gates, state read-out, gated norm."""
CORE_KERNELS = 1
STATE_BYTES = 4
"""Recurrent states of linear attention are kept in fp32."""
INDEX_BYTES_EXTRA = 4
"""An index key is stored as fp8 (one byte per dimension) plus one fp32 scale (DeepSeek sparse attention)."""


class Attention:
    """Leaf costs of one layer's attention."""

    def __init__(self, problem: Problem, machine: Machine, lengths: Lengths) -> None:
        self.machine, self.llm, self.lengths = machine, problem.llm, lengths
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

    def projection_kernels(self, kind: AttentionKind) -> int:
        """Kernels of one layer's attention besides its core."""
        kernels = PROJECTION_KERNELS if self.llm.mla is None else LATENT_KERNELS
        kernels += MORE_KERNELS.get(kind, 0)
        if self.machine.quantises(self.llm.dtypes.attention, blocks=self.llm.quant_block is not None):
            kernels += QUANTISATION_KERNELS if self.llm.mla is None else LATENT_QUANTISATION_KERNELS
        return kernels

    def projection_ns(self, kind: AttentionKind, attn_tp: Ints, tokens: Ints) -> Ints:
        """Projections of `tokens` tokens of one attention group; weights are read whatever the batch."""
        weights = self.weights(kind, attn_tp).astype(np.float64)
        formula = self.machine.gemm_ns(
            Gemm(
                dtype=self.llm.dtypes.attention,
                blocks=self.llm.quant_block is not None,
                rows=tokens,
                flop=2.0 * tokens * weights,
                weight_bytes=weights * self._weight_bytes,
                activation_bytes=2.0 * tokens * self.llm.hidden_size * self._activation_bytes,
                kernels=self.projection_kernels(kind),
            )
        )
        measured = self.machine.measured
        if measured is None:
            return formula
        shapes = self.projection_shapes(kind, attn_tp)
        rest = (self.projection_kernels(kind) - len(shapes)) * self.machine.launch_ns
        ns = measured.gemms_ns(tokens, shapes, self.llm.dtypes.attention) + rest
        return measured.choose("attention projections", ns, formula)

    def projection_shapes(self, kind: AttentionKind, attn_tp: Ints) -> tuple[tuple[Ints, Ints], ...]:
        """The GEMMs of :meth:`weights` as ``(columns, inner)``, split as there.

        Absorbing the KV up-projection of MLA in decode is taken as the GEMM of the same weights that prefill runs.
        """
        llm, hidden = self.llm, np.asarray(self.llm.hidden_size)
        if kind == "linear":
            assert llm.linear is not None
            lin = llm.linear
            values = lin.num_value_heads * lin.value_head_dim
            joint = 2 * (lin.num_key_heads * lin.key_head_dim + values + lin.num_value_heads)
            return (-(-joint // attn_tp), hidden), (hidden, -(-values // attn_tp))
        heads = -(-llm.num_heads // attn_tp)
        if llm.mla is None:
            kv_heads = -(-llm.num_kv_heads // np.minimum(attn_tp, llm.num_kv_heads))
            joint = heads * (2 if llm.attention_output_gate else 1) + 2 * kv_heads
            return (joint * llm.head_dim, hidden), (hidden, heads * llm.head_dim)
        mla = llm.mla
        query = mla.qk_nope_head_dim + mla.qk_rope_head_dim
        latent = mla.kv_lora_rank + mla.qk_rope_head_dim
        up = (heads * (mla.qk_nope_head_dim + mla.v_head_dim), np.asarray(mla.kv_lora_rank))
        out = (hidden, heads * mla.v_head_dim)
        shapes: tuple[tuple[Ints, Ints], ...]
        if mla.q_lora_rank is None:
            shapes = ((heads * query + latent, hidden), up, out)
        else:
            rank = np.asarray(mla.q_lora_rank)
            shapes = ((rank + latent, hidden), (heads * query, rank), up, out)
        if kind == "sparse" and llm.indexer is not None:
            index = llm.indexer
            rank = np.asarray(mla.q_lora_rank or llm.hidden_size)
            keys = np.asarray(index.head_dim + index.num_heads)
            shapes = (*shapes, (np.asarray(index.num_heads * index.head_dim), rank), (keys, hidden))
        return shapes

    # --- decode -----------------------------------------------------------------------------------------------

    def decode_core_ps(self, kind: AttentionKind, attn_tp: Ints) -> tuple[Ints, Ints]:
        """Decode core as integers: picoseconds per token of context, and per sequence.

        Full attention reads every cached token. Sliding layers read at most their window, sparse layers score every
        token with the indexer and read `top_k`, linear layers read and write their state: those parts are charged
        per sequence at the longest context. A measured core is the line through its measurements.
        """
        token_ps, sequence_ps = self._formula_core_ps(kind, attn_tp)
        lines = self._lines(kind, attn_tp)
        if lines is None:
            return token_ps, sequence_ps
        known = lines[..., 0] >= 0
        return np.where(known, lines[..., 1], token_ps), np.where(known, lines[..., 2], sequence_ps)

    def _formula_core_ps(self, kind: AttentionKind, attn_tp: Ints) -> tuple[Ints, Ints]:
        longest = self.lengths.longest
        zero = np.zeros(np.broadcast_shapes(np.shape(attn_tp), np.shape(longest)), dtype=np.int64)
        token_ps = self._cached_token_ps(attn_tp)
        if kind == "full":
            return token_ps, zero
        if kind == "sliding":
            assert self.llm.sliding_window is not None
            return zero, token_ps * np.minimum(self.llm.sliding_window, longest)
        if kind == "sparse":
            assert self.llm.indexer is not None
            index = self.llm.indexer
            flop = 2.0 * index.num_heads * index.head_dim * self.lengths.step_tokens
            moved = float(index.head_dim + INDEX_BYTES_EXTRA)
            index_ps = ceil_int(1000 * max(flop / self._core_flop_per_ns, moved / self.machine.cache_bytes_per_ns))
            return index_ps + zero, token_ps * np.minimum(index.top_k, longest)
        # Read once, and written after every token of the step: which of them are kept is known only after it.
        state = (1.0 + self.lengths.step_tokens) * self._state_bytes(attn_tp)
        return zero, ceil_int(1000 * state / self.machine.cache_bytes_per_ns)

    def _cached_token_ps(self, attn_tp: Ints) -> Ints:
        """Picoseconds to attend to one cached token of one sequence: the roofline of its bytes and FLOP."""
        llm = self.llm
        heads = llm.num_heads / attn_tp
        if llm.mla is None:
            flop = 4.0 * heads * llm.head_dim
        else:
            flop = 2.0 * heads * (2 * llm.mla.kv_lora_rank + llm.mla.qk_rope_head_dim)
        flop = flop * self.lengths.step_tokens
        moved = self._kv_token_bytes(attn_tp)
        return ceil_int(1000 * np.maximum(flop / self._core_flop_per_ns, moved / self.machine.cache_bytes_per_ns))

    def decode_core_ns(self, kind: AttentionKind, attn_tp: Ints, load: Ints, batch: Ints) -> Ints:
        """Decode core of the heaviest rank: `load` tokens of context over `batch` sequences."""
        token_ps, sequence_ps = self.decode_core_ps(kind, attn_tp)
        return (token_ps * load + sequence_ps * batch + 999) // 1000 + self.core_base_ns(kind, attn_tp)

    def core_base_ns(self, kind: AttentionKind, attn_tp: Ints) -> Ints:
        """Decode core without any load: its launches, or the base of its measured line."""
        launches = np.full(np.shape(attn_tp), self.core_launch_ns)
        lines = self._lines(kind, attn_tp)
        return launches if lines is None else np.where(lines[..., 0] >= 0, lines[..., 0], launches)

    def _lines(self, kind: AttentionKind, attn_tp: Ints) -> Ints | None:
        """Base, token and sequence terms of measured decode cores on a last axis, -1 where a degree has none.

        Measurements are of one new token per sequence, so speculative verification stays with the formula.
        """
        measured = self.machine.measured
        if measured is None or kind not in ("full", "sliding") or self.lengths.step_tokens != 1:
            return None
        distinct, where = np.unique(attn_tp, return_inverse=True)
        lines = [measured.core_line(kind, tp, self.lengths) for tp in distinct.tolist()]
        terms = [(-1, 0, 0) if line is None else (line.base_ns, line.token_ps, line.sequence_ps) for line in lines]
        return np.array(terms, dtype=np.int64)[where.ravel()].reshape((*np.shape(attn_tp), 3))

    @property
    def core_launch_ns(self) -> int:
        """Launches of one core."""
        return CORE_KERNELS * self.machine.launch_ns

    # --- prefill ----------------------------------------------------------------------------------------------

    def prefill_core_ns(self, kind: AttentionKind, attn_tp: Ints, prompts: Numbers) -> Ints:
        """Core of one prefill pass of `prompts` mean prompts: the mean over the chunks of a prompt."""
        llm = self.llm
        new, chunks = self.lengths.new, self.lengths.chunks
        cached = self.lengths.prompt - new
        heads = llm.num_heads / attn_tp
        width = (
            llm.mla.qk_nope_head_dim + llm.mla.qk_rope_head_dim + llm.mla.v_head_dim if llm.mla else 2 * llm.head_dim
        )
        extra: Floats | float = 0.0
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
        num_flop = prompts * (flop + extra)
        formula = self.machine.operator_ns(num_flop, prompts * moved, self._core_flop_per_ns, CORE_KERNELS)
        measured = self.machine.measured
        if measured is None:
            return formula
        whole: Ints = np.ceil(prompts).astype(np.int64)
        ns = measured.prefill_core_ns(kind, attn_tp, whole, self.lengths)
        return measured.choose("prefill attention core", ns, formula)

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
            assert self.llm.sliding_window is not None
            return zero, token * np.minimum(self.llm.sliding_window, self.lengths.longest)
        if kind == "sparse":
            assert self.llm.indexer is not None
            return token + self.llm.indexer.head_dim + INDEX_BYTES_EXTRA, zero
        return zero, self._state_bytes(attn_tp) + zero

    def cache_whole_bytes(self, kind: AttentionKind, attn_tp: Ints, tokens: Ints, sequences: Ints) -> Ints:
        """Cache of one layer on one rank for its resident tokens and sequences, in bytes."""
        per_token, per_sequence = self.cache_bytes(kind, attn_tp)
        return per_token * tokens + per_sequence * sequences

    def cache_kib(self, kind: AttentionKind, attn_tp: Ints, tokens: Ints, sequences: Ints) -> Ints:
        """The same in KiB."""
        return -(-self.cache_whole_bytes(kind, attn_tp, tokens, sequences) // BYTES_PER_KIB)


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


def attended_pairs(new: Ints, cached: Ints, window: int | None) -> Floats:
    """Query-key pairs of `new` causal tokens on top of `cached` ones, each attending to at most `window` keys."""
    growing = new if window is None else np.clip(window - cached, 0, new)
    limited = 0.0 if window is None else (new - growing) * float(window)
    pairs: Floats = growing * cached + growing * (growing + 1) / 2 + limited
    return pairs
