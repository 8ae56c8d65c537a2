"""Stage shapes of a problem and the size of its degree space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from solver.cost.machine import Phase
from solver.degrees import Domains
from solver.engines import ENGINE_MESH, exchange_switch, sends_without_attention_dp
from solver.packing import Packing, canonical_mesh
from solver.search.tables import phase_modes
from solver.specs.problem import Dispatch, Problem
from solver.strategy import chunk_tokens


def stage_shapes(problem: Problem, domains: Domains) -> list[tuple[int, int, int, int]]:
    """Legal (attn_tp, moe_tp, moe_ep, attn_dp) of one stage: the identity, the GPU budget, the engine's own rules, and
    in both phases a way to run the layers."""
    if not _can_run(problem, domains, sends=problem.llm.is_moe):
        return []
    if not problem.llm.is_moe:
        return [(tp, 1, 1, 1) for tp in domains.attn_tp if domains.attn_dp in (None, 1) and _fits(problem, domains, tp)]
    gathers = _can_run(problem, domains, sends=False)
    shapes = []
    for tp in domains.attn_tp:
        for moe_tp in domains.moe_tp:
            for moe_ep in domains.moe_ep:
                dp, rest = divmod(moe_tp * moe_ep, tp)
                if rest or domains.attn_dp not in (None, dp) or not _fits(problem, domains, moe_tp * moe_ep):
                    continue
                if problem.engine == "vllm" and moe_tp > 1 and moe_ep > 1:
                    continue
                if problem.engine == "trtllm" and tp > 1 and dp > 1:
                    continue
                if not gathers and dp == 1 and not sends_without_attention_dp(problem.engine):
                    continue
                if not gathers and (moe_ep == 1 or (problem.engine == "sglang" and moe_tp > 1)):
                    continue
                shapes.append((tp, moe_tp, moe_ep, dp))
    return shapes


def _fits(problem: Problem, domains: Domains, stage_gpus: int) -> bool:
    """Whether instances of such stages can take as many GPUs as are asked for."""
    if problem.gpus_exact is None:
        return stage_gpus * (domains.replicas or 1) <= problem.gpu_budget
    wanted = [pp * stage_gpus for pp in domains.pp]
    if domains.replicas is None:
        return any(problem.gpus_exact % width == 0 for width in wanted)
    return any(problem.gpus_exact == width * domains.replicas for width in wanted)


def _can_run(problem: Problem, domains: Domains, *, sends: bool) -> bool:
    """Whether both phases have a mode that the pins leave, with or without all-to-all."""
    phases: tuple[tuple[Phase, int], ...] = (
        ("decode", max(domains.batch) * problem.workload.tokens_per_step),
        ("prefill", max(domains.prefill_batch) * chunk_tokens(problem)),
    )
    for phase, most_tokens in phases:
        if not problem.runs(phase):
            continue
        modes = set(phase_modes(problem, domains, phase))
        if not sends:
            modes -= {"send", "overlap"}
        if most_tokens < 2:
            modes -= {"overlap"}
        if not modes:
            return False
    return True


def legal_packings(
    problem: Problem, domains: Domains, attention: Sequence[tuple[int, int]], most_gpus: int
) -> Iterator[Packing]:
    """How instances of these (attn_tp, attn_dp) fill scale-up domains, by stages and mesh order: the legal ways."""
    cluster = problem.cluster
    for tp, dp in attention:
        for pp in domains.pp:
            if tp * dp * pp > most_gpus:
                continue
            launched = {canonical_mesh(order, tp, dp, pp) for order in ENGINE_MESH[problem.engine]}
            for order in dict.fromkeys(canonical_mesh(order, tp, dp, pp) for order in domains.mesh_order):
                packing = Packing(order, cluster.domain_gpus, tp, dp, pp)
                if order not in launched or packing.members("tp") < min(tp, cluster.domain_gpus):
                    continue
                if problem.engine == "any" or packing.is_launchable(cluster.gpus_per_node):
                    yield packing


def space_size(problem: Problem, domains: Domains) -> int:
    """Joint assignments of degrees and knobs that satisfy identity and GPU budget.

    Memory, packing and SLOs are not applied; placements are not counted.
    """
    decodes = _dispatch_knobs(domains.decode_dispatch, domains.decode_overlap)
    prefills = _dispatch_knobs(domains.prefill_dispatch, domains.prefill_overlap)
    if problem.role == "aggregated":
        knobs = len(domains.batch) * len(domains.prefill_batch)
        knobs *= len(domains.decode_allreduce) * len(domains.prefill_allreduce)
        exchange = sum(
            exchange_switch(problem.engine, *decode) == exchange_switch(problem.engine, *prefill)
            for decode in decodes
            for prefill in prefills
        )
    else:  # the other phase follows
        knobs, exchange = len(domains.batch) * len(domains.decode_allreduce), len(decodes)
    total = 0
    for tp, _, moe_ep, dp in stage_shapes(problem, domains):
        exchanges = exchange if moe_ep > 1 else 1
        for pp in domains.pp:
            instances = problem.gpu_budget // (tp * dp * pp)
            if domains.replicas is not None:
                instances = int(instances >= domains.replicas)
            orders = len(domains.mesh_order) if pp > 1 and dp > 1 else 1
            micro = sum(m <= pp for m in domains.micro_batches)
            total += instances * orders * micro * knobs * exchanges
    return total


def _dispatch_knobs(dispatches: tuple[Dispatch, ...], overlaps: tuple[bool, ...]) -> list[tuple[Dispatch, bool]]:
    """Combinations of dispatch and overlap (overlap needs all_to_all)."""
    return [(d, o) for d in dispatches for o in overlaps if not o or d == "all_to_all"]
