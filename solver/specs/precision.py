"""The data types that a deployment serves an LLM with, from the one word people use for them (``fp8``, ``nvfp4``)."""

from __future__ import annotations

from solver.errors import SpecError
from solver.specs.dtypes import DType
from solver.specs.files import shown
from solver.specs.llm import Dtypes, Llm

PRECISIONS: dict[str, DType] = {
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "float16": "fp16",
    "fp8": "fp8",
    "fp8_block": "fp8",
    "int8": "int8",
    "int8_wo": "int8",
    "w8a8": "int8",
    "w8a16": "int8",
    "fp4": "nvfp4",
    "nvfp4": "nvfp4",
    "mxfp4": "mxfp4",
    "int4": "int4",
    "int4_wo": "int4",
    "w4a16": "int4",
    "awq": "int4",
    "gptq": "int4",
}
"""Words for a precision, and the weight format that each means."""

FP8_BLOCK = 128
"""Edge of a weight block of DeepSeek-style fp8."""
GROUPS: dict[str, int] = {"nvfp4": 16, "int4": 128}
"""Weights per scale where the LLM's own checkpoint does not say: NVFP4 by definition, AWQ and GPTQ by habit. MXFP4 is
absent: engines pad its groups, so they do not bind TP slices."""

_DECIDED_ANEW = ("The KV cache is ", "Tokens are dispatched ")
"""Beginnings of the assumptions of an entry that a choice of precision replaces."""


def storage_format(precision: str) -> DType:
    """The weight format that a word means.

    Raises
    ------
    SpecError
        The word is not known.
    """
    form = PRECISIONS.get(precision.strip().lower())
    if form is None:
        raise SpecError(f"the precision {shown(precision)} is not known; known: {', '.join(PRECISIONS)}")
    return form


def in_precision(llm: Llm, precision: str, *, kv: DType | None = None, fp8_blocks: bool = False) -> Llm:
    """`llm` with the data types of a deployment in `precision`; `llm` itself when those are its own already.

    ===================  ============================================  ================================
    precision            an LLM with experts                           a dense LLM
    ===================  ============================================  ================================
    bf16, fp16           everything                                    everything
    fp8, int8            attention, dense FFN and experts              attention and dense FFN
    fp4 (nvfp4)          experts; mxfp4 where they are published so    attention and dense FFN
    mxfp4, int4          experts                                       attention and dense FFN
    ===================  ============================================  ================================

    Everything else keeps 16 bits: with four bits an LLM with experts keeps attention, dense layers and shared experts
    in bf16, as NVIDIA's NVFP4 checkpoints of DeepSeek and Kimi, gpt-oss and Kimi's int4 checkpoints do.

    Parameters
    ----------
    llm : an entry as published; its own format decides the block size where `precision` is the same
    precision : one of :data:`PRECISIONS`
    kv : format of the KV cache; absent keeps the LLM's
    fp8_blocks : scales per block of 128 x 128 in fp8 even where the LLM is not published so

    Raises
    ------
    SpecError
        The precision is not known.
    """
    form = storage_format(precision)
    if form == "nvfp4" and llm.dtypes.experts == "mxfp4":
        form = "mxfp4"
    base: DType = "fp16" if form == "fp16" else "bf16"
    everywhere = form in ("bf16", "fp16", "fp8", "int8") or not llm.is_moe
    block = _block(llm, form, fp8_blocks)
    cache = kv or llm.dtypes.kv
    dtypes = Dtypes(
        attention=form if everywhere else base,
        dense=form if everywhere else base,
        experts=form if llm.is_moe else base,
        embedding=base,
        kv=cache,
        activation=base,
        dispatch="fp8" if llm.is_moe and form == "fp8" and block is not None else base,
    )
    if (dtypes, block) == (llm.dtypes, llm.quant_block):
        return llm
    stored = f"attention {dtypes.attention}, dense FFN {dtypes.dense}"
    if llm.is_moe:
        stored += f", experts {dtypes.experts} (tokens travel to them in {dtypes.dispatch})"
    blocks = "" if block is None else f", one scale per block of {block}"
    kept = tuple(note for note in llm.assumptions if not note.startswith(_DECIDED_ANEW))
    return llm.model_copy(
        update={
            "name": llm.name if _weights(dtypes) == _weights(llm.dtypes) else f"{llm.name}-{form}",
            "assumptions": (*kept, f"Served in {form}: {stored}{blocks}, KV cache {cache}."),
            "dtypes": dtypes,
            "quant_block": block,
        }
    )


def _block(llm: Llm, form: DType, fp8_blocks: bool) -> int | None:
    """Edge of the weight block that a TP slice must hold whole; None without blocks."""
    if form in ("bf16", "fp16"):
        return None
    if form in _weights(llm.dtypes) and llm.quant_block is not None:
        return llm.quant_block
    if form == "fp8":
        return FP8_BLOCK if fp8_blocks else None
    return GROUPS.get(form)


def _weights(dtypes: Dtypes) -> tuple[str, str, str]:
    return dtypes.attention, dtypes.dense, dtypes.experts
