"""Which measured tables answer a question: from GPU, engine and data types to system, backend and kernels."""

from __future__ import annotations

import math

from solver.errors import OperatorsError
from solver.silicon.package import (
    REPAIR,
    Operator,
    Shape,
    Tables,
    current_version,
    installed_package,
    tables_of,
    unknown_tables,
)
from solver.specs.hardware import Cluster
from solver.specs.llm import Llm
from solver.specs.operators import Operators
from solver.specs.problem import Engine

SYSTEM_OF_GPU = {
    "a100": "a100_sxm",
    "b200": "b200_sxm",
    "b300": "b300_sxm",
    "gb200": "gb200",
    "gb300": "gb300",
    "h100": "h100_sxm",
    "h200": "h200_sxm",
    "l40s": "l40s",
    "rtx-pro-6000": "rtx_pro_6000_server",
}
"""Catalog GPU -> measured system. The H800 is absent on purpose: it shares the H100's kernels but not its NVLink."""
BACKENDS = ("trtllm", "sglang", "vllm")
"""Measured engines; the first that a system has answers for the profiles ``any`` and ``megatron``. TensorRT-LLM leads:
its grouped GEMMs fall with expert parallelism as their bytes and FLOP do, those of the others hardly do."""
FORM = "analytic, silicon, or silicon:SYSTEM[/BACKEND[/VERSION]]"

GEMM_OF_DTYPE = {
    "bf16": ("bfloat16",),
    "fp16": ("bfloat16",),
    "fp8": ("fp8_block", "fp8"),
    "int8": ("sq",),
    "int4": ("int4_wo",),
    "nvfp4": ("nvfp4", "nvfp4_wo"),
}
EXPERTS_OF_DTYPE = {
    "bf16": ("bfloat16",),
    "fp16": ("bfloat16",),
    "fp8": ("fp8_block", "fp8"),
    "int4": ("int4_wo",),
    "nvfp4": ("nvfp4", "nvfp4_wo"),
    "mxfp4": ("w4a16_mxfp4", "w4a8_mxfp4_mxfp8"),
}
CACHE_OF_DTYPE = {"bf16": "bfloat16", "fp16": "bfloat16", "fp8": "fp8", "int8": "int8"}
"""Our data types -> kernels of the package, the preferred first. Block-scaled fp8 is preferred only for an LLM that
quantises in blocks."""
PROBE = 128
"""Rows, columns and inner dimension of the GEMM that tells whether a data type was measured."""


def choose_operators(text: str, cluster: Cluster, engine: Engine, llm: Llm) -> Operators:
    """The source that the words of ``--operators`` name, completed for this question.

    Raises
    ------
    OperatorsError
        Malformed words; the package is absent; it has no such system, backend, version or data type. One sentence
        that names what it has.
    """
    source, colon, place = text.strip().partition(":")
    if source == "analytic" and not colon:
        return Operators()
    parts = place.split("/")
    if source != "silicon" or (colon and not place) or len(parts) > 3 or (colon and not all(parts)):
        raise OperatorsError(f"--operators {text[:60]!r}: expected {FORM}")
    package = installed_package()
    system = parts[0] or _system_of(cluster.gpu.name)
    asked = parts[1] if len(parts) > 1 else engine if engine in BACKENDS else None
    backend, current = _backend(system, asked)
    version = parts[2] if len(parts) > 2 else current
    chosen = Operators(source="silicon", package=package, system=system, backend=backend, version=version)
    _check_dtypes(tables_of(chosen), chosen, llm)
    return chosen


def _system_of(gpu: str) -> str:
    if gpu not in SYSTEM_OF_GPU:
        raise OperatorsError(
            f"{installed_package()} has no measured operators for the GPU {gpu[:60]!r}; it has "
            f"{', '.join(sorted(SYSTEM_OF_GPU))}; name a system with --operators silicon:SYSTEM, {REPAIR}"
        )
    return SYSTEM_OF_GPU[gpu]


def _backend(system: str, asked: str | None) -> tuple[str, str]:
    """Backend and its current version on a system."""
    for backend in (asked,) if asked else BACKENDS:
        version = current_version(system, backend)
        if version is not None:
            return backend, version
    raise unknown_tables(system, asked)


def gemm_kernel(tables: Tables, llm: Llm, dtype: str) -> str | None:
    """Name of the measured GEMM of a data type; None where it has none."""
    for kernel in _in_order(GEMM_OF_DTYPE.get(dtype, ()), llm):
        if not math.isnan(tables.ns(gemm(kernel, PROBE, PROBE), Shape(prefill=True, tokens=PROBE))):
            return kernel
    return None


def experts_kernel(tables: Tables, llm: Llm) -> str | None:
    """Name of the measured grouped GEMM of the routed experts; None where none has their shape."""
    if llm.moe is None or llm.expert_parameters != llm.dimensioned_expert_parameters:
        return None  # a surplus spread over the experts belongs to no measured shape
    for kernel in _in_order(EXPERTS_OF_DTYPE.get(llm.dtypes.experts, ()), llm):
        if not math.isnan(tables.ns(experts(llm, kernel, 1, 1), Shape(prefill=True, tokens=PROBE))):
            return kernel
    return None


def _in_order(kernels: tuple[str, ...], llm: Llm) -> tuple[str, ...]:
    if kernels == ("fp8_block", "fp8") and llm.quant_block is None:
        return tuple(reversed(kernels))
    return kernels


def gemm(kernel: str, columns: int, inner: int) -> Operator:
    """A dense GEMM ``[tokens, inner] x [inner, columns]``."""
    return Operator.of("GEMM", n=columns, k=inner, quant_mode=kernel)


def experts(llm: Llm, kernel: str, moe_tp: int, moe_ep: int) -> Operator:
    """The grouped GEMMs of one MoE layer on one rank, permutations included, with the rows spread evenly.

    Even, because the imbalance of ranks is a factor of this package's own cost model.
    """
    assert llm.moe is not None
    return Operator.of(
        "MoE",
        hidden_size=llm.hidden_size,
        inter_size=llm.moe.expert_width,
        topk=llm.moe.top_k,
        num_experts=llm.moe.num_experts,
        moe_tp_size=moe_tp,
        moe_ep_size=moe_ep,
        quant_mode=kernel,
        workload_distribution="balanced",
        attention_dp_size=1,
        is_gated=llm.moe.matrices_per_expert == 3,
    )


def _check_dtypes(tables: Tables, chosen: Operators, llm: Llm) -> None:
    """Refuse a data type of the LLM's projections that no GEMM was measured in.

    Missing shapes and operators are no error: the formulas answer for them, and the plan says so.
    """
    for part, dtype in (("attention", llm.dtypes.attention), ("dense", llm.dtypes.dense)):
        used = part == "attention" or llm.dense_width or llm.shared_parameters
        if used and gemm_kernel(tables, llm, dtype) is None:
            had = [name for name in GEMM_OF_DTYPE if gemm_kernel(tables, llm, name) is not None]
            raise OperatorsError(
                f"{chosen.system} ({chosen.backend} {chosen.version}) has no measured GEMM in {dtype}, the data type "
                f"of {llm.name}'s {part} weights; {chosen.package} has {', '.join(had)} there; use --operators analytic"
            )
