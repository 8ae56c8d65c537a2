"""What serving engines can express, as facts with a source; :mod:`solver.legality` makes rules of them.

Sources: the argument parsers, configuration code and model classes of vLLM 0.33, SGLang 0.5.23 and megatron-core 0.16,
and the argument reference of TensorRT-LLM 1.2.
"""

from __future__ import annotations

from solver.specs.llm import Llm
from solver.specs.problem import MESH_ORDERS, Dispatch, Engine, MeshOrder, Problem

ENGINE_MESH: dict[Engine, tuple[MeshOrder, ...]] = {
    "any": MESH_ORDERS,
    "vllm": ("tp-pp-dp",),
    "sglang": ("tp-dp-pp",),
    "trtllm": ("tp-dp-pp",),
    "megatron": ("tp-dp-pp",),
}
"""Rank orders an engine can launch (vLLM: ``dp*(PP*TP) + pp*TP + tp``; SGLang and TensorRT-LLM: ``pp*TP + tp`` with
attention DP inside TP; Megatron: ``tp-cp-ep-dp-pp``. Megatron's other order, ``--use-tp-pp-dp-mapping``, demands equal
data parallelism of attention and experts, which an instance with attention DP does not have)."""

FAMILIES_WITHOUT_MAPS: dict[Engine, tuple[str, ...]] = {
    "vllm": ("gpt-oss", "minimax-m2", "olmoe", "dbrx", "qwen2"),
    "sglang": ("mixtral", "llama-4", "olmoe", "dbrx"),
    "trtllm": (),
    "megatron": ("",),
}
"""LLMs, by the beginning of their name, whose experts an engine holds in order and once, whatever it is told: their
model class has no hook for load balancing (Megatron has none at all)."""


def can_place_experts(engine: Engine, llm: Llm) -> bool:
    """Whether the engine takes an explicit map of expert replicas for this LLM. Unknown LLMs are given the benefit."""
    name = llm.name.rsplit("/", 1)[-1].lower()
    return not any(name.startswith(family) for family in FAMILIES_WITHOUT_MAPS.get(engine, ()))


def wants_map(problem: Problem) -> bool:
    """Whether experts may be placed otherwise than in order and once: replicas, or measured loads."""
    return problem.redundant_experts > 0 or problem.workload.expert_loads is not None


def exchange_switch(engine: Engine, dispatch: Dispatch, overlap: bool) -> tuple[str | bool, ...]:
    """What must be equal in decode and prefill, because the engine has one switch for both.

    One expert backend everywhere; in SGLang one two-batch-overlap switch, too (vLLM has a threshold per phase).
    """
    if engine == "any":
        return ()
    return (dispatch, overlap) if engine == "sglang" else (dispatch,)


def sends_without_attention_dp(engine: Engine) -> bool:
    """Whether all-to-all dispatch works with attn_dp = 1 (vLLM and TensorRT-LLM then all-reduce instead)."""
    return engine not in ("vllm", "trtllm")


def pairs_stages(engine: Engine) -> bool:
    """Whether KV cache moves between pools whose instances have pipeline stages (vLLM's NIXL connector refuses)."""
    return engine != "vllm"


def can_speculate(engine: Engine, llm: Llm) -> bool:
    """Whether the engine drafts tokens for this LLM out of its own multi-token-prediction layers."""
    return engine in ("vllm", "sglang") and llm.num_mtp_layers > 0
