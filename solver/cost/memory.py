"""The memory ledger of a rank, item by item, in KiB (DESIGN 5)."""

from __future__ import annotations

import numpy as np

from solver.cost.attention import Attention
from solver.cost.comm import Comm
from solver.cost.experts import Experts
from solver.cost.ffn import LOGIT_BYTES, Ffn
from solver.cost.machine import BYTES_PER_KIB, Ints, ceil_int
from solver.specs.dtypes import num_bytes
from solver.specs.llm import LayerKind
from solver.specs.problem import Problem

RESIDUAL_COPIES = 6
"""Hidden-size activations alive at the peak of a layer: residual, normed input, QKV (about three), output."""
FFN_COPIES = 2
"""Gate and up outputs of the widest FFN."""
ROUTER_BYTES = 4
"""Routers are kept in fp32 by the engines."""


class Memory:
    """Leaf sizes. A stage's total is the sum over its layers, its embedding or head, and the constants."""

    def __init__(self, problem: Problem, attention: Attention, ffn: Ffn, comm: Comm, experts: Experts | None) -> None:
        self.problem, self.llm = problem, problem.llm
        self.attention, self.ffn, self.comm, self.experts = attention, ffn, comm, experts
        calibration = problem.calibration
        self.capacity_kib = int(problem.cluster.gpu.memory * calibration.usable_memory) // BYTES_PER_KIB
        self.framework_kib = -(-calibration.framework_reserve // BYTES_PER_KIB)
        self.communicator_kib = -(-calibration.communicator_reserve // BYTES_PER_KIB)
        self.graphs_kib = -(-calibration.graph_reserve // BYTES_PER_KIB)

    @property
    def constant_kib(self) -> int:
        """Reserves that every rank pays."""
        return self.framework_kib + self.communicator_kib + self.graphs_kib

    def attention_kib(self, kind: LayerKind, attn_tp: Ints) -> Ints:
        """Attention projections of one layer on one rank, surplus KV heads replicated."""
        weights = self.attention.weights(kind.attention, attn_tp)
        return ceil_int(weights * num_bytes(self.llm.dtypes.attention) / BYTES_PER_KIB)

    def kv_replication_kib(self, kind: LayerKind, attn_tp: Ints) -> Ints:
        """Part of :meth:`attention_kib` that exists only because KV heads or latents are replicated over TP."""
        ideal = self.llm.attention_parameters(kind.attention) / attn_tp
        held = self.attention.weights(kind.attention, attn_tp)
        return np.maximum(0, ceil_int((held - ideal) * num_bytes(self.llm.dtypes.attention) / BYTES_PER_KIB))

    def norm_router_kib(self, kind: LayerKind) -> int:
        """Norms and router of one layer; every rank holds them whole."""
        norms = 2 * self.llm.hidden_size * num_bytes(self.llm.dtypes.activation)
        router = self.llm.router_parameters * ROUTER_BYTES if kind.ffn == "moe" else 0
        return int(ceil_int((norms + router) / BYTES_PER_KIB))

    def ffn_kib(self, kind: LayerKind, attn_tp: Ints) -> Ints:
        """Dense FFN or shared experts of one layer on one rank."""
        return self.ffn.dense_kib(attn_tp) if kind.ffn == "dense" else self.ffn.shared_kib(attn_tp)

    def experts_kib(self, kind: LayerKind, moe_tp: Ints, moe_ep: Ints) -> Ints:
        """Routed experts of one layer on the fullest rank, replicas included."""
        if kind.ffn == "dense" or self.experts is None:
            return np.zeros(np.broadcast_shapes(np.shape(moe_tp), np.shape(moe_ep)), dtype=np.int64)
        return self.experts.weights_kib(moe_tp, moe_ep)

    def activation_kib(self, attn_tp: Ints, prompts: Ints) -> Ints:
        """Peak activations of a prefill pass of `prompts` prompts per attention group."""
        moe = self.llm.moe
        routed = 0 if moe is None else moe.shared_width + moe.top_k * moe.expert_width
        widest = max(self.llm.dense_width, routed)
        per_token = RESIDUAL_COPIES * self.llm.hidden_size + FFN_COPIES * widest / attn_tp
        tokens = prompts * self.attention.lengths.chunk
        return ceil_int(tokens * per_token * num_bytes(self.llm.dtypes.activation) / BYTES_PER_KIB)

    def logits_kib(self, rows: Ints) -> Ints:
        """Full fp32 logits of `rows` rows after the gather."""
        return ceil_int(rows * float(self.llm.vocab_size) * LOGIT_BYTES / BYTES_PER_KIB)

    def buffers_kib(self, attn_tp: Ints, tokens: Ints) -> Ints:
        """Send and receive buffers of dispatch and combine for `tokens` tokens of an attention group."""
        if self.llm.moe is None:
            return np.zeros(np.broadcast_shapes(np.shape(attn_tp), np.shape(tokens)), dtype=np.int64)
        own = -(-tokens // attn_tp)
        per_token = self.llm.moe.top_k * (self.comm.dispatch_bytes + self.comm.token_bytes)
        return ceil_int(own * per_token / BYTES_PER_KIB)

    def decode_workspace_kib(self, attn_tp: Ints, batch: Ints) -> Ints:
        """Logits and exchange buffers of a decode step of `batch` sequences; none where nothing is decoded."""
        rows = (batch if self.problem.runs("decode") else 0 * batch) * self.attention.lengths.step_tokens
        return self.logits_kib(rows) + self.buffers_kib(attn_tp, rows)

    def prefill_workspace_kib(self, attn_tp: Ints, prompts: Ints) -> Ints:
        """Activations, logits and exchange buffers of a prefill pass of `prompts` prompts; none without prefill."""
        prompts = prompts if self.problem.runs("prefill") else 0 * prompts
        tokens = prompts * self.attention.lengths.chunk
        return self.activation_kib(attn_tp, prompts) + self.logits_kib(prompts) + self.buffers_kib(attn_tp, tokens)
