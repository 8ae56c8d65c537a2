"""Measured times of the operators that the cost model is made of, vectorised; NaN where nothing was measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from solver.silicon.choice import CACHE_OF_DTYPE, experts, experts_kernel, gemm, gemm_kernel
from solver.silicon.package import Operator, Shape, tables_of
from solver.specs.hardware import Cluster
from solver.specs.llm import AttentionKind, Llm
from solver.specs.operators import Operators

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Collective = Literal["all_reduce", "all_gather", "reduce_scatter"]

LINK_TOLERANCE = 0.1
"""Measured collectives hold for a cluster whose links differ by at most this share from the measured system's."""
EXCHANGE_BACKENDS = {
    ("sglang", "prefill"): "deepep_ht",
    ("sglang", "decode"): "deepep_ll",
    ("vllm", "prefill"): "deepep_ht",
    ("vllm", "decode"): "deepep_ll",
    ("trtllm", "prefill"): "trtllm_deepep_ht",
    ("trtllm", "decode"): "trtllm_deepep_ll",
}
"""The expert exchange that an engine runs: high throughput in prefill, low latency in decode."""
EXCHANGE_DTYPES = ("default", "fp8", "bfloat16")


class SiliconTimes:
    """Measured operators of one source, for one LLM on one cluster.

    All methods broadcast their arguments and return ns as float64, NaN where the package has no measurement. Between
    its rows the package interpolates; between measured degrees (powers of two) this class does, geometrically, so that
    a degree is not attractive merely because nobody measured it.

    Raises
    ------
    OperatorsError
        The package is absent or another version, or has no such tables.
    """

    def __init__(self, llm: Llm, cluster: Cluster, operators: Operators) -> None:
        self.llm, self.cluster, self.operators = llm, cluster, operators
        self._tables = tables_of(operators)
        self._experts = experts_kernel(self._tables, llm)
        self._gemm: dict[str, str | None] = {}
        self._exchange_dtype: dict[str, str | None] = {}
        wiring = self._tables.wiring
        inner, outer = cluster.levels[0].bandwidth, cluster.levels[-1].bandwidth
        near = abs(inner / wiring.scale_up_bytes_per_s - 1) <= LINK_TOLERANCE
        self._inside = min(wiring.gpus_per_node, cluster.domain_gpus) if near else 1
        across = near and abs(outer / wiring.network_bytes_per_s - 1) <= LINK_TOLERANCE
        self._across = across and cluster.scale_up_gpus == wiring.gpus_per_node

    # --- GEMMs ----------------------------------------------------------------------------------------------------

    def gemm_ns(self, rows: Ints, columns: Ints, inner: Ints, dtype: str) -> Floats:
        """A dense GEMM ``[rows, inner] x [inner, columns]`` with weights of a data type."""
        if dtype not in self._gemm:
            self._gemm[dtype] = gemm_kernel(self._tables, self.llm, dtype)
        kernel = self._gemm[dtype]

        def price(rows: int, columns: int, inner: int) -> float:
            if kernel is None:
                return math.nan
            return self._tables.ns(gemm(kernel, columns, inner), Shape(prefill=True, tokens=rows))

        return _each(price, rows, columns, inner)

    def absorbed_ns(self, rows: Ints, heads: Ints, dtype: str) -> Floats:
        """Both batched GEMMs that absorb the KV up-projection of MLA in decode, for `rows` tokens and local `heads`."""
        kernel = "fp8" if dtype == "fp8" else "bfloat16"

        def price(rows: int, heads: int) -> float:
            shape = Shape(prefill=False, tokens=rows)
            return sum(
                self._tables.ns(Operator.of("MLABmm", num_heads=heads, quant_mode=kernel, if_pre=before), shape)
                for before in (True, False)
            )

        return _each(price, rows, heads)

    def experts_ns(self, tokens: Ints, moe_tp: Ints, moe_ep: Ints) -> Floats:
        """Grouped GEMMs of one MoE layer on one rank, permutations included; `tokens` of the whole stage."""
        kernel = self._experts

        def price(tokens: int, moe_tp: int, moe_ep: int) -> float:
            if kernel is None:
                return math.nan

            def measured(tp: int, ep: int) -> float:
                return self._tables.ns(experts(self.llm, kernel, tp, ep), Shape(prefill=True, tokens=tokens))

            return _between(measured, moe_tp, moe_ep)

        return _each(price, tokens, moe_tp, moe_ep)

    # --- attention cores ------------------------------------------------------------------------------------------

    def prefill_core_ns(self, kind: AttentionKind, attn_tp: Ints, prompts: Ints, new: int, cached: int) -> Floats:
        """Attention core of `prompts` prompts of `new` tokens each, on top of `cached` ones."""

        def price(attn_tp: int, prompts: int) -> float:
            shape = Shape(prefill=True, batch=prompts, length=new, cached=cached)
            return self._first(self._prefill_cores(kind, attn_tp), shape)

        return _each(price, attn_tp, prompts)

    def decode_core_ns(self, kind: AttentionKind, attn_tp: Ints, batch: Ints, context: Ints) -> Floats:
        """Attention core of one new token of `batch` sequences with `context` cached tokens each."""

        def price(attn_tp: int, batch: int, context: int) -> float:
            shape = Shape(prefill=False, batch=batch, length=context)
            return self._first(self._decode_cores(kind, attn_tp), shape)

        return _each(price, attn_tp, batch, context)

    def _first(self, operators: tuple[Operator, ...], shape: Shape) -> float:
        """The first of some kernels that was measured at a shape."""
        found = (self._tables.ns(operator, shape) for operator in operators)
        return next((ns for ns in found if not math.isnan(ns)), math.nan)

    def _prefill_cores(self, kind: AttentionKind, attn_tp: int) -> tuple[Operator, ...]:
        llm, cache = self.llm, CACHE_OF_DTYPE.get(self.llm.dtypes.kv)
        if cache is None or kind not in ("full", "sliding"):
            return ()
        arithmetic = ("bfloat16",) if cache == "bfloat16" else ("bfloat16", cache)
        if llm.mla is not None:
            return tuple(
                Operator.of("ContextMLA", num_heads=heads, kvcache_quant_mode=cache, fmha_quant_mode=unit)
                for unit in arithmetic
                for heads in self._mla_heads(attn_tp)
            )
        query, kv = self._heads(attn_tp)
        return tuple(
            Operator.of(
                "ContextAttention", n=query, n_kv=kv, head_size=llm.head_dim, window_size=self._window(kind),
                kvcache_quant_mode=cache, fmha_quant_mode=unit,
            )
            for unit in arithmetic
        )  # fmt: skip

    def _decode_cores(self, kind: AttentionKind, attn_tp: int) -> tuple[Operator, ...]:
        llm, cache = self.llm, CACHE_OF_DTYPE.get(self.llm.dtypes.kv)
        if cache is None or kind not in ("full", "sliding"):
            return ()
        if llm.mla is not None:
            return tuple(
                Operator.of("GenerationMLA", num_heads=heads, kv_cache_dtype=cache)
                for heads in self._mla_heads(attn_tp)
            )
        query, kv = self._heads(attn_tp)
        core = Operator.of(
            "GenerationAttention", n=query, n_kv=kv, head_size=llm.head_dim, window_size=self._window(kind),
            kv_cache_dtype=cache,
        )  # fmt: skip
        return (core,)

    def _mla_heads(self, attn_tp: int) -> tuple[int, ...]:
        """Local heads of an MLA core: the tables hold DeepSeek's latent width only."""
        mla = self.llm.mla
        assert mla is not None
        same = (mla.kv_lora_rank, mla.qk_rope_head_dim, mla.qk_nope_head_dim, mla.v_head_dim) == (512, 64, 128, 128)
        return (-(-self.llm.num_heads // attn_tp),) if same else ()

    def _heads(self, attn_tp: int) -> tuple[int, int]:
        """Local query heads and KV heads of one rank."""
        kv = -(-self.llm.num_kv_heads // min(attn_tp, self.llm.num_kv_heads))
        return -(-self.llm.num_heads // attn_tp), kv

    def _window(self, kind: AttentionKind) -> int:
        return self.llm.sliding_window or 0 if kind == "sliding" else 0

    # --- collectives ----------------------------------------------------------------------------------------------

    def collective_ns(self, collective: Collective, ranks: Ints, tokens: Ints) -> Floats:
        """A collective of `tokens` token vectors (16-bit) in total, inside a node; 0 for one rank."""

        def price(ranks: int, tokens: int) -> float:
            if ranks == 1:
                return 0.0
            if ranks > self._inside:
                return math.nan  # the package scales these from one node by bandwidth: that is a model, not a row
            shape = Shape(prefill=True, tokens=tokens)
            return _between(lambda n: self._tables.ns(self._collective(collective, n), shape), ranks)

        return _each(price, ranks, tokens)

    def _collective(self, collective: Collective, ranks: int) -> Operator:
        hidden = self.llm.hidden_size
        if collective == "all_reduce":
            return Operator.of("CustomAllReduce", h=hidden, tp_size=ranks)
        return Operator.of(
            "NCCL", nccl_op=collective, num_elements_per_token=hidden, num_gpus=ranks, comm_quant_mode="half"
        )

    def exchange_ns(self, phase: Literal["prefill", "decode"], moe_ep: Ints, tokens: Ints) -> Floats:
        """Dispatch and combine of one MoE layer over `moe_ep` ranks that fill their nodes; `tokens` of one rank."""

        def price(moe_ep: int, tokens: int) -> float:
            measured = moe_ep <= self._inside or self._across
            if moe_ep == 1 or not measured or self.operators.backend is None:
                return math.nan
            backend = EXCHANGE_BACKENDS[self.operators.backend, phase]
            shape = Shape(prefill=phase == "prefill", tokens=tokens)
            return sum(
                _between(lambda n, step=step: self._exchange(backend, step, n, shape), moe_ep)
                for step in ("dispatch", "combine")
            )

        return _each(price, moe_ep, tokens)

    def _exchange(self, backend: str, step: str, ranks: int, shape: Shape) -> float:
        assert self.llm.moe is not None
        fixed = {
            "phase": step,
            "comm_backend": backend,
            "hidden_size": self.llm.hidden_size,
            "topk": self.llm.moe.top_k,
            "num_experts": self.llm.moe.num_experts,
            "moe_ep_size": ranks,
            "node_num": -(-ranks // self._tables.wiring.gpus_per_node),
        }
        kinds = tuple(Operator.of("MoEAllToAll", comm_dtype=dtype, **fixed) for dtype in EXCHANGE_DTYPES)
        return self._first(kinds, shape)


def _each(price: Callable[..., float], *values: Ints) -> Floats:
    """`price` at every combination of broadcast integers, each distinct one once; the broadcast shape."""
    arrays = np.broadcast_arrays(*(np.asarray(value, dtype=np.int64) for value in values))
    rows = np.stack([array.ravel() for array in arrays], axis=1)
    distinct, where = np.unique(rows, axis=0, return_inverse=True)
    times = np.array([price(*row) for row in distinct.tolist()], dtype=np.float64)
    return times[where.ravel()].reshape(arrays[0].shape)


def _between(measured: Callable[..., float], *degrees: int) -> float:
    """Time at some degrees, geometrically between the powers of two around each.

    The logarithm of the time is linear in the logarithm of each degree; NaN if any corner is.
    """
    corners = []
    for degree in degrees:
        low = 1 << (degree.bit_length() - 1)
        share = math.log2(degree / low)
        corners.append([(low, 1.0)] if degree == low else [(low, 1.0 - share), (2 * low, share)])
    log_ns = 0.0
    for corner in itertools.product(*corners):
        ns = measured(*(degree for degree, _ in corner))
        log_ns += math.prod(share for _, share in corner) * (math.log(ns) if ns > 0 else math.nan)
    return math.exp(log_ns)
