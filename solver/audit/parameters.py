"""Rules P: parameters and weights; and the inputs that are missing."""

from __future__ import annotations

from collections.abc import Iterator

from solver.audit.case import TOLERANCE, Case, either, size
from solver.audit.finding import Finding
from solver.specs.dtypes import num_bytes
from solver.specs.llm import DECLARED_TOLERANCE


def findings(case: Case) -> Iterator[Finding]:
    """Declared against derived parameters and bytes, and what the document leaves open."""
    if case.claims.missing_inputs:
        yield _inputs(case)
    yield from _parameters(case)
    yield from _weights(case)


def _inputs(case: Case) -> Finding:
    names = ", ".join(case.claims.missing_inputs)
    assumed = " ".join(case.problem.assumptions) or "no assumption is recorded"
    sentence = f"A cost needs inputs that are not stated: {names}; named defaults stand in for them."
    return case.find("inputs", "warning", sentence, assumed)


def _parameters(case: Case) -> Iterator[Finding]:
    llm, variants = case.llm, case.dimensioned_variants
    declared = case.claims.declared_parameters if case.is_stated else llm.declared_parameters
    if declared is None:
        return
    bodies = [case.body_parameters(variant) for variant in variants]
    vocabulary = case.vocabulary_parameters
    lowest = min(bodies) + (0 if case.lacks("vocab_size") else vocabulary)
    if (1 - DECLARED_TOLERANCE) * lowest <= declared <= (1 + DECLARED_TOLERANCE) * (max(bodies) + vocabulary):
        return
    parts = []
    if llm.moe is not None:
        m = "m" if len(variants) > 1 else str(llm.moe.matrices_per_expert)
        values = [f"{case.routed_experts * v.expert_parameters / 1e9:.3f} B ({v.name})" for v in variants]
        parts.append(
            f"experts {llm.num_moe_layers} layers x {llm.moe.num_experts} experts x {m} matrices x {llm.hidden_size} x "
            f"{llm.moe.expert_width} = {either(values)}"
        )
    parts.append(f"attention {case.attention_parameters / 1e9:.3f} B")
    if case.dense_parameters:
        parts.append(f"dense FFN and shared experts {case.dense_parameters / 1e9:.3f} B")
    sums = either([f"{body / 1e9:.2f} B" for body in bodies])
    factors = either([f"{declared / body:.1f}" for body in bodies])
    parts.append(f"sum {sums} (embedding and head {vocabulary / 1e9:.2f} B more with {llm.vocab_size} tokens)")
    parts.append(f"{declared / 1e9:.4g} B declared / sum = {factors}")
    parts += _repairs(case, declared)
    yield case.find(
        "P1",
        "error" if case.is_stated else "note",
        f"{declared / 1e9:.4g} B parameters are declared, but the stated dimensions give {sums}: a factor of "
        f"{factors}.",
        "; ".join(parts),
    )


def _repairs(case: Case, declared: int) -> Iterator[str]:
    """What each dimension would have to be for the declared count."""
    llm, moe = case.llm, case.llm.moe
    if moe is None or not llm.num_moe_layers:
        return
    widths, experts, layers = [], [], []
    for variant in case.dimensioned_variants:
        body, routed = case.body_parameters(variant), case.routed_experts * variant.expert_parameters
        missing = declared - (body - routed)
        widths.append(f"{missing * moe.expert_width / routed:.0f}")
        experts.append(f"{missing * moe.num_experts / routed:.0f}")
        layers.append(f"{declared * llm.num_layers / body:.0f}")
    yield (f"it would need expert width {either(widths)}, or {either(experts)} experts, or {either(layers)} layers")


def _weights(case: Case) -> Iterator[Finding]:
    stated = case.claims.weight_bytes
    if stated is None:
        return
    bodies = [case.body_bytes(variant) for variant in case.variants]
    vocabulary = case.vocabulary_bytes
    lowest = min(bodies) + (0 if case.lacks("vocab_size") else vocabulary)
    if (1 - TOLERANCE) * lowest <= stated <= (1 + TOLERANCE) * (max(bodies) + vocabulary):
        return
    sums = either([size(body) for body in bodies])
    memory = case.problem.cluster.gpu.memory
    whole = max(bodies) + vocabulary
    gpus = -int(-whole // memory)
    fits = f"they fit one GPU of {size(memory)}" if gpus == 1 else f"they fill {gpus} GPUs of {size(memory)}"
    matrix = case.llm.vocabulary_parameters * num_bytes(case.llm.dtypes.embedding)
    counts = [f"{case.body_parameters(v) / 1e9:.2f} B parameters = {size(case.body_bytes(v))}" for v in case.variants]
    yield case.find(
        "P2",
        "error",
        f"{size(stated)} of weights are declared, but the stated dimensions give {sums}; {fits}.",
        f"{either(counts)}, plus {size(matrix)} per vocabulary matrix of {case.llm.vocab_size} tokens",
    )
