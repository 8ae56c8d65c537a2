"""Rules L: balance of counts against balance of work."""

from __future__ import annotations

from collections.abc import Iterator

from solver.audit.case import TOLERANCE, Case, is_close, size
from solver.audit.finding import Finding
from solver.audit.legality import heaviest_bin
from solver.audit.occupancy import idle_share, peak_to_mean
from solver.cost.layers import Blocks, PhaseTimes
from solver.strategy import num_slots, packing_of
from solver.units import short_ns

NOTABLE_NOISE = 1.5
"""Expected max / mean load from which a plan without claims gets a note."""


def findings(case: Case) -> Iterator[Finding]:
    """Experts, sequences and layers."""
    if case.llm.moe is not None and case.has_times:
        yield from _expert_counts(case)
        yield from _expert_load(case)
        yield from _rebalancing(case)
    yield from _sequences(case)
    yield from _stages(case)


def _expert_counts(case: Case) -> Iterator[Finding]:
    """L1: experts per GPU that ignore expert TP."""
    moe, stated, s = case.llm.moe, case.claims.experts_per_gpu, case.strategy
    assert moe is not None
    share = moe.num_experts / (s.moe_ep * s.moe_tp)
    if stated is None or is_close(stated, share):
        return
    layers = case.llm.num_moe_layers / s.pp
    yield case.find(
        "L1",
        "warning",
        f"{stated:g} experts per GPU is the wrong unit: per layer a GPU holds {share:g} of an expert, in each of "
        f"{layers:g} layers.",
        f"{moe.num_experts} experts / (EP {s.moe_ep} x TP {s.moe_tp}) = {share:g} per layer, x {layers:g} MoE layers "
        "per "
        f"stage; in all {case.llm.num_moe_layers} x {moe.num_experts} = {case.routed_experts} expert instances, "
        f"{case.routed_experts * s.replicas} with replicas, on {s.gpus} GPUs",
    )


def _expert_load(case: Case) -> Iterator[Finding]:
    """L2: as many experts per rank is not as many tokens per rank."""
    moe, s, tokens = case.llm.moe, case.strategy, case.step_tokens
    assert moe is not None
    claimed = case.claims.expert_balanced is True
    peak = peak_to_mean(tokens, moe.top_k, moe.num_experts, s.moe_ep)
    if s.moe_ep == 1 or peak < (1 + TOLERANCE if claimed else NOTABLE_NOISE):
        return
    parts = []
    for k in case.top_ks:
        factor = peak_to_mean(tokens, k, moe.num_experts, s.moe_ep)
        idle = idle_share(tokens, k, moe.num_experts)
        parts.append(
            f"top-{k}: {tokens * k / moe.num_experts:.1f} tokens per expert, {idle:.1%} of the experts idle, "
            f"E[max] / mean = {factor:.2f}"
        )
    yield case.find(
        "L2",
        "error" if claimed else "note",
        "Equal counts of experts are not equal loads: "
        f"with {tokens} tokens per step even a perfectly uniform router loads the busiest of {s.moe_ep} ranks "
        f"{peak:.2f} times the mean.",
        f"{tokens} tokens over {moe.num_experts} experts on {s.moe_ep} ranks, uniform router: {'; '.join(parts)}",
    )


def _rebalancing(case: Case) -> Iterator[Finding]:
    """L3: moving experts around when every rank has exactly one."""
    moe, s = case.llm.moe, case.strategy
    assert moe is not None
    slots = num_slots(case.llm, case.problem.redundant_experts)
    advice = [
        text for text in case.claims.recommendations
        if "rebalanc" in text.lower() or "eplb" in text.lower() or "dynamic load balanc" in text.lower()
    ]  # fmt: skip
    if not advice or slots != moe.num_experts or slots != s.moe_ep:
        return
    yield case.find(
        "L3",
        "warning",
        f"{advice[0].partition(':')[0]!r} is recommended, but there is nothing to replicate: only a permutation of "
        "equal "
        "ranks is left.",
        f"{slots} slots for {moe.num_experts} experts on {s.moe_ep} ranks: one expert each, no redundant slot",
    )


def _sequences(case: Case) -> Iterator[Finding]:
    """L4: equal numbers of sequences of different length."""
    lengths, s = case.problem.workload.prompt_lengths, case.strategy
    if not case.claims.batch_balanced or case.problem.workload.concurrency is None or lengths[0] == lengths[-1]:
        return
    final = [length + case.problem.workload.osl for length in lengths]
    groups = s.replicas * s.attn_dp * s.micro_batches
    mean = sum(final) / min(groups, len(final))
    heaviest = heaviest_bin(final, groups)
    if heaviest < (1 + TOLERANCE) * mean:
        return
    yield case.find(
        "L4",
        "warning",
        f"Equal counts of sequences are not equal loads: lengths differ by a factor of {final[-1] / final[0]:.0f}.",
        f"{len(final)} sequences of {final[0]} to {final[-1]} tokens on {groups} attention groups "
        f"({len(final) / groups:g} each), dealt longest first: max / mean = {heaviest} / {mean:.0f} = "
        f"{heaviest / mean:.2f}",
    )


def _stages(case: Case) -> Iterator[Finding]:
    """L5: equal layers per stage ignore the embedding and the LM head."""
    s, llm = case.strategy, case.llm
    if not case.claims.layer_balanced or s.pp == 1 or not case.has_times:
        return
    each, more = divmod(llm.num_layers, s.pp)
    split = tuple(each + (stage < more) for stage in range(s.pp))
    blocks = Blocks(case.longest * s.batch, 10**6, split)
    times = PhaseTimes(case.leaves, s, packing_of(case.problem, s), "decode", blocks)
    stages = times.stage_times()
    held = case.vocabulary_per_gpu
    weights = max(case.weights_per_gpu(variant) for variant in case.variants)
    if not more and max(stages) < (1 + TOLERANCE) * min(stages) and held < TOLERANCE * weights:
        return
    uneven = f" {llm.num_layers} layers do not divide by {s.pp}." if more else ""
    yield case.find(
        "L5",
        "warning",
        "Equal layers are not equal stages: the embedding and the LM head belong to the first and the last "
        f"one.{uneven}",
        f"layers {' + '.join(map(str, split))}; besides them the first stage holds {size(held)} of embedding per GPU "
        "and "
        f"spends {short_ns(times.embedding_ns)} per decode step, the last one {size(held)} of LM head and "
        f"{short_ns(times.head_ns)}; stages take {short_ns(min(stages))} to {short_ns(max(stages))} per decode step",
    )
