"""Balance of experts over ranks and of sequences over bins: the definitions that blocks and judge share.

Expert loads are integers in billionths of a layer's tokens (`UNITS`), so that rank loads add up exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

from solver.specs.problem import Problem

UNITS = 10**9
"""One layer's tokens."""


def expert_share(count: int, total: int, replicas: int) -> int:
    """Load of one replica of an expert, in billionths of the layer's tokens, rounded up; replicas share evenly."""
    return -(-count * UNITS // (total * replicas))


def rank_loads(counts_e: Sequence[int], slots_of_rank: Sequence[Sequence[int]]) -> list[int]:
    """Load of every rank for a map rank -> logical experts of its slots, in billionths of the layer's tokens."""
    total, replicas = sum(counts_e), [0] * len(counts_e)
    for slots in slots_of_rank:
        for expert in slots:
            replicas[expert] += 1
    return [sum(expert_share(counts_e[e], total, replicas[e]) for e in slots) for slots in slots_of_rank]


def load_factor_ppm(busiest_load: int, num_ranks: int) -> int:
    """Max / mean rank load in parts per million, rounded up, from the busiest rank's load in billionths."""
    return max(10**6, -(-busiest_load * num_ranks // 1000))


def mean_ppm(factors: Sequence[int]) -> int:
    """Mean load factor over MoE layers, rounded up."""
    return -(-sum(factors) // len(factors))


def slots_per_rank(num_slots: int, num_ranks: int) -> list[int]:
    """Slots of every rank: the first ``num_slots % num_ranks`` ranks hold one more (vLLM's linear placement)."""
    each, more = divmod(num_slots, num_ranks)
    return [each + (rank < more) for rank in range(num_ranks)]


def expert_counts(problem: Problem) -> tuple[tuple[int, ...], ...]:
    """Token counts of the distinct MoE layers: one row of ones for uniform routing, else a row per MoE layer."""
    loads = problem.workload.expert_loads
    if loads is not None:
        return loads.counts
    return () if problem.llm.moe is None else ((1,) * problem.llm.moe.num_experts,)


def sequence_tokens(problem: Problem) -> tuple[int, ...]:
    """Context of every concurrent sequence in the middle of its generation, ascending: ``isl + osl // 2``.

    In a prefill pool nothing is generated: the prompt.
    """
    workload = problem.workload
    return workload.context_tokens if problem.runs("decode") else workload.prompt_lengths


def batches_held(problem: Problem, micro_batches: int, pp: int) -> int:
    """Batches whose cache a rank keeps: its micro-batches; in a prefill pool one in every stage and one that leaves."""
    return micro_batches if problem.runs("decode") else pp + 1


def remaining_tokens(problem: Problem) -> int:
    """Tokens by which a sequence grows from the middle of its generation to its end."""
    return problem.workload.osl - problem.workload.osl // 2 if problem.runs("decode") else 0


def resident_tokens(problem: Problem, load: int, batch: int, held: int) -> int:
    """Tokens a rank reserves cache for in `held` batches, each as heavy as the heaviest, sequences at full length."""
    return held * (load + batch * remaining_tokens(problem))
