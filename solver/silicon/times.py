"""Measured times of the operators that the cost model is made of, vectorised; NaN where nothing was measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
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
EXCHANGES = {
    "sglang": ("deepep_ht", "deepep_ll"),
    "vllm": ("deepep_ht", "deepep_ll"),
    "trtllm": ("trtllm_deepep_ht", "trtllm_deepep_ll"),
}
"""The expert exchange of an engine, as the package names it: high throughput, low latency."""
LOW_LATENCY_TOKENS = 128
"""Tokens of one rank up to which the low-latency exchange is run: the default buffer of DeepEP's users."""
EXCHANGE_DTYPES = ("default", "fp8", "bfloat16")
"""What dispatched tokens are measured in, the preferred first; some engines' tables do not say (``default``)."""
MESSAGE_BYTES, COLLECTIVE_ELEMENT_BYTES = 1024, 2
"""Payloads are looked up in whole KiB of 16-bit elements."""


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
        wiring = self._tables.wiring
        self._node = wiring.gpus_per_node
        inner, outer = cluster.levels[0].bandwidth, cluster.levels[-1].bandwidth
        near = abs(inner / wiring.scale_up_bytes_per_s - 1) <= LINK_TOLERANCE
        self._inside = min(self._node, cluster.domain_gpus) if near else 1
        across = near and abs(outer / wiring.network_bytes_per_s - 1) <= LINK_TOLERANCE
        self._across = across and cluster.scale_up_gpus == self._node

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

    def prefill_core_ns(self, kind: AttentionKind, attn_tp: Ints, prompts: Ints, new: Ints, cached: Ints) -> Floats:
        """Attention core of `prompts` prompts of `new` tokens each, on top of `cached` ones; 0 for no prompt."""

        def price(attn_tp: int, prompts: int, new: int, cached: int) -> float:
            if prompts == 0:
                return 0.0
            shape = Shape(prefill=True, batch=prompts, length=new, cached=cached)
            return self._first(self._prefill_cores(kind, attn_tp), shape)

        return _each(price, attn_tp, prompts, new, cached)

    def decode_core_ns(self, kind: AttentionKind, attn_tp: Ints, batch: Ints, context: Ints) -> Floats:
        """Attention core of one new token of `batch` sequences with `context` cached tokens each."""

        def price(attn_tp: int, batch: int, context: int) -> float:
            shape = Shape(prefill=False, batch=batch, length=context)
            return self._first(self._decode_cores(kind, attn_tp), shape)

        return _each(price, attn_tp, batch, context)

    def _first(self, operators: Iterable[Operator], shape: Shape) -> float:
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

    def collective_ns(self, collective: Collective, ranks: Ints, payload_bytes: Ints) -> Floats:
        """A collective inside a node; the payload is what every rank ends (or starts) with. 0 for one rank."""

        def price(ranks: int, payload_bytes: int) -> float:
            if ranks == 1:
                return 0.0
            if ranks > self._inside:
                return math.nan  # the package scales these from one node by bandwidth: that is a model, not a row
            shape = Shape(prefill=True, tokens=-(-payload_bytes // MESSAGE_BYTES))
            return _between(lambda n: self._tables.ns(_collective(collective, n), shape), ranks)

        return _each(price, ranks, payload_bytes)

    def exchange_ns(self, moe_ep: Ints, rank_tokens: Ints) -> Floats:
        """Dispatch and combine of one MoE layer over `moe_ep` ranks that fill their nodes; tokens of one rank.

        By the low-latency kernels as far as their buffers reach, by the high-throughput ones beyond.
        """
        names = EXCHANGES.get(self.operators.backend or "")

        def price(moe_ep: int, rank_tokens: int) -> float:
            if moe_ep == 1 or names is None or not (moe_ep <= self._inside or self._across):
                return math.nan
            low_latency = rank_tokens <= LOW_LATENCY_TOKENS
            shape = Shape(prefill=not low_latency, tokens=rank_tokens)
            dispatch, combine = (
                _between(lambda n, step=step: self._exchange(names[low_latency], step, n, shape), moe_ep)
                for step in ("dispatch", "combine")
            )
            return dispatch + combine

        return _each(price, moe_ep, rank_tokens)

    def _exchange(self, name: str, step: str, ranks: int, shape: Shape) -> float:
        assert self.llm.moe is not None
        kinds = (
            Operator.of(
                "MoEAllToAll", phase=step, comm_backend=name, comm_dtype=dtype, hidden_size=self.llm.hidden_size,
                topk=self.llm.moe.top_k, num_experts=self.llm.moe.num_experts, moe_ep_size=ranks,
                node_num=-(-ranks // self._node),
            )
            for dtype in EXCHANGE_DTYPES
        )  # fmt: skip
        return self._first(kinds, shape)


def _collective(collective: Collective, ranks: int) -> Operator:
    columns = MESSAGE_BYTES // COLLECTIVE_ELEMENT_BYTES
    if collective == "all_reduce":
        return Operator.of("CustomAllReduce", h=columns, tp_size=ranks)
    return Operator.of(
        "NCCL", nccl_op=collective, num_elements_per_token=columns, num_gpus=ranks, comm_quant_mode="half"
    )


def _each(price: Callable[..., float], *values: Ints) -> Floats:
    """`price` at every combination of broadcast integers, each distinct one once; the broadcast shape."""
    given = [np.asarray(value, dtype=np.int64) for value in values]
    if all(value.ndim == 0 for value in given):  # one number, as evaluation asks for: spare it the sorting
        return np.asarray(price(*(int(value) for value in given)))
    arrays = np.broadcast_arrays(*given)
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
