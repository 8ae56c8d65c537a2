"""Dense layers, shared experts, embedding and LM head (DESIGN 5.5, 5.8)."""

from __future__ import annotations

import numpy as np

from solver.cost.comm import Comm
from solver.cost.machine import BYTES_PER_KIB, Gemm, Ints, Machine, Phase, ceil_int
from solver.specs.dtypes import num_bytes
from solver.specs.problem import Problem

DENSE_KERNELS = 4
"""Norm, up projection, activation, down projection."""
SHARED_KERNELS = 3
"""Up projection, activation, down projection."""
QUANTISATION_KERNELS = 1
"""More where activations are quantised by a kernel of their own: before the up projection; the activation function
quantises what it writes."""
HEAD_KERNELS = 6
"""Final norm, head GEMM, and four of sampling: penalties, softmax, top-k and top-p, draw."""
LOGIT_BYTES = 4
"""Logits are sampled in fp32."""


class Ffn:
    """Leaf costs of the parts that attention TP shards: dense FFN, shared experts, embedding, head."""

    def __init__(self, problem: Problem, machine: Machine, comm: Comm) -> None:
        self.llm, self.machine, self.comm = problem.llm, machine, comm
        self.step_tokens = problem.workload.tokens_per_step
        self._activation_bytes = num_bytes(self.llm.dtypes.activation)

    @property
    def dense_kernels(self) -> int:
        """Kernels of the FFN of a dense layer."""
        return DENSE_KERNELS + self._quantisation_kernels

    @property
    def shared_kernels(self) -> int:
        """Kernels of the shared experts of a MoE layer; 0 where there are none."""
        return SHARED_KERNELS + self._quantisation_kernels if self.llm.shared_parameters else 0

    @property
    def _quantisation_kernels(self) -> int:
        quantises = self.machine.quantises(self.llm.dtypes.dense, blocks=self.llm.quant_block is not None)
        return QUANTISATION_KERNELS if quantises else 0

    def _gemm_ns(self, width: int, matrices: int, attn_tp: Ints, tokens: Ints, kernels: int) -> Ints:
        """An FFN of `width` columns: up projection (gated: two matrices in one), activation, down projection."""
        hidden, dtype = self.llm.hidden_size, self.llm.dtypes.dense
        weights = matrices * hidden * width / attn_tp
        formula = self.machine.gemm_ns(
            Gemm(
                dtype=dtype,
                blocks=self.llm.quant_block is not None,
                rows=tokens,
                flop=2.0 * tokens * weights,
                weight_bytes=weights * num_bytes(dtype),
                activation_bytes=2.0 * tokens * hidden * self._activation_bytes,
                kernels=kernels,
            )
        )
        measured = self.machine.measured
        if measured is None:
            return formula
        columns = -(-width // attn_tp)
        shapes = (((matrices - 1) * columns, np.asarray(hidden)), (np.asarray(hidden), columns))
        rest = (kernels - len(shapes)) * self.machine.launch_ns
        return measured.choose("dense FFN, shared experts", measured.gemms_ns(tokens, shapes, dtype) + rest, formula)

    def dense_ns(self, attn_tp: Ints, tokens: Ints) -> Ints:
        """FFN of a dense layer for `tokens` tokens of one attention group."""
        return self._gemm_ns(self.llm.dense_width, self.llm.ffn_matrices, attn_tp, tokens, self.dense_kernels)

    def shared_ns(self, attn_tp: Ints, tokens: Ints) -> Ints:
        """Shared experts of a MoE layer; 0 where there are none."""
        moe = self.llm.moe
        if moe is None or moe.shared_width == 0:
            return np.zeros(np.broadcast_shapes(np.shape(attn_tp), np.shape(tokens)), dtype=np.int64)
        return self._gemm_ns(moe.shared_width, moe.matrices_per_expert, attn_tp, tokens, self.shared_kernels)

    def embedding_ns(self, attn_tp: Ints, tokens: Ints) -> Ints:
        """Vocabulary-parallel look-up and its all-reduce; the first stage pays it."""
        return self.lookup_ns(tokens) + self.comm.best_tp_allreduce_ns(attn_tp, tokens)

    def lookup_ns(self, tokens: Ints) -> Ints:
        """The look-up alone."""
        moved = 2.0 * tokens * self.llm.hidden_size * self._activation_bytes
        return self.machine.operator_ns(np.zeros_like(moved), moved, 1.0, 1)

    def head_ns(self, phase: Phase, attn_tp: Ints, rows: Ints) -> Ints:
        """LM head of `rows` rows, logits gathered over TP, and sampling; the last stage pays it.

        In decode, every sequence also costs its host and sampling work.
        """
        weights = self.llm.vocabulary_parameters / attn_tp
        dtype = self.llm.dtypes.embedding
        gemm = self.machine.gemm_ns(
            Gemm(
                dtype=dtype,
                blocks=False,
                rows=rows,
                flop=2.0 * rows * weights,
                weight_bytes=weights * num_bytes(dtype),
                activation_bytes=rows * (self.llm.vocab_size / attn_tp) * LOGIT_BYTES,
                kernels=HEAD_KERNELS,
            )
        )
        measured = self.machine.measured
        if measured is not None:
            shape = (-(-self.llm.vocab_size // attn_tp), np.asarray(self.llm.hidden_size))
            rest = (HEAD_KERNELS - 1) * self.machine.launch_ns
            gemm = measured.choose("LM head", measured.gemms_ns(rows, (shape,), dtype) + rest, gemm)
        if phase == "decode":
            gemm = gemm + self.sampling_ns(rows)
        return gemm + self.comm.tp_allgather_ns(attn_tp, rows * float(self.llm.vocab_size) * LOGIT_BYTES)

    def sampling_ns(self, rows: Ints) -> Ints:
        """Host and sampling work of the sequences that `rows` rows of a decode step belong to."""
        return -(-self.machine.calibration.host_sequence * rows // self.step_tokens)

    # --- memory -----------------------------------------------------------------------------------------------

    def dense_kib(self, attn_tp: Ints) -> Ints:
        """Weights of a dense layer's FFN on one rank, KiB."""
        return self._kib(self.llm.dense_parameters, self.llm.dtypes.dense, attn_tp)

    def shared_kib(self, attn_tp: Ints) -> Ints:
        """Weights of a MoE layer's shared experts on one rank, KiB."""
        return self._kib(self.llm.shared_parameters, self.llm.dtypes.dense, attn_tp)

    def vocabulary_kib(self, attn_tp: Ints) -> Ints:
        """Weights of the embedding, or of the head, on one rank, KiB."""
        return self._kib(self.llm.vocabulary_parameters, self.llm.dtypes.embedding, attn_tp)

    @staticmethod
    def _kib(parameters: int, dtype: str, attn_tp: Ints) -> Ints:
        return ceil_int(parameters * num_bytes(dtype) / attn_tp / BYTES_PER_KIB)
