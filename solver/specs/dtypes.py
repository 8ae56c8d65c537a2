"""Data types of weights, activations and caches: their size and the arithmetic unit that multiplies them."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, get_args

DType = Literal["fp32", "bf16", "fp16", "fp8", "int8", "nvfp4", "mxfp4", "int4"]
"""Storage formats. `bf16` and `fp16` share the 16-bit unit of a GPU."""

ComputeType = Literal["bf16", "fp8", "int8", "fp4"]
"""Arithmetic units a GPU spec may list a peak for."""

BITS: dict[str, Fraction] = {
    "fp32": Fraction(32),
    "bf16": Fraction(16),
    "fp16": Fraction(16),
    "fp8": Fraction(8),
    "int8": Fraction(8),
    # 4-bit element plus its share of the block scale: OCP MX (one 8-bit scale per 32), NVFP4 (one 8-bit per 16),
    # AWQ/GPTQ with groups of 128 (one 16-bit scale per 128).
    "mxfp4": Fraction(17, 4),
    "nvfp4": Fraction(9, 2),
    "int4": Fraction(33, 8),
}

NATIVE: dict[str, str] = {
    "fp32": "bf16",
    "bf16": "bf16",
    "fp16": "bf16",
    "fp8": "fp8",
    "int8": "int8",
    "nvfp4": "fp4",
    "mxfp4": "fp4",
    "int4": "bf16",
}
"""The unit each format multiplies on. 32-bit weights are charged at the 16-bit rate (TF32 is slower;
no shipped LLM serves in 32 bit)."""

WEIGHT_ONLY: dict[str, str] = {"mxfp4": "bf16"}
"""Formats that engines also serve without the native unit, by expanding weights on the fly (vLLM and SGLang run
gpt-oss MXFP4 on Hopper and CDNA3 that way)."""

BYTES: dict[str, float] = {dtype: float(bits / 8) for dtype, bits in BITS.items()}

DTYPES: tuple[str, ...] = get_args(DType)


def num_bytes(dtype: str) -> float:
    """Bytes per element, block scales included."""
    return BYTES[dtype]
