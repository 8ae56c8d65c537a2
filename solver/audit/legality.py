"""Legality: broken rules of the strategy, the memory ledger, the SLOs."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from solver.audit.case import Case
from solver.audit.finding import Finding, Severity
from solver.cost.balance import UNITS, load_factor_ppm, sequence_tokens
from solver.cost.layers import Blocks, PhaseTimes
from solver.cost.leaves import PPM
from solver.cost.ledger import stage_ledgers
from solver.cost.limits import limits_of
from solver.cost.machine import BYTES_PER_KIB
from solver.cost.metrics import Figures, figures_of, objective_value
from solver.legality import RULES
from solver.strategy import num_slots, packing_of
from solver.units import short_bytes

KNOWN_ITEMS = 3
"""Largest ledger items that a sentence names."""


def findings(case: Case) -> Iterator[Finding]:
    """Every broken rule of legality; ``note`` where only the dealing of layers and sequences decides."""
    for violation in case.violations:
        yield Finding(
            rule=violation.rule,
            severity="error",
            title="Illegal strategy",
            sentence=f"The strategy breaks the rule {RULES[violation.rule]!r}.",
            arithmetic=violation.sentence,
        )
    if not case.has_times:
        return
    yield from _memory(case)
    yield from _slos(case)


# --- placement: the best conceivable one, and a plain dealing ---------------------------------------------------------


def heaviest_bin(lengths: Sequence[int], num_bins: int) -> int:
    """Tokens of the heaviest bin when sequences are dealt, longest first, to the lightest bin."""
    bins = [0] * min(num_bins, len(lengths))
    for length in sorted(lengths, reverse=True):
        heapq.heapreplace(bins, bins[0] + length)
    return max(bins)


def min_max_split(weights: Sequence[int], first: int, last: int, stages: int) -> tuple[int, ...]:
    """Layers of every stage such that the heaviest stage is as light as possible; the ends carry extras."""
    low, high = max(weights), sum(weights) + first + last
    best = _split_within(high, weights, first, last, stages) or tuple(
        len(weights) // stages + (stage < len(weights) % stages) for stage in range(stages)
    )
    while low < high:
        middle = (low + high) // 2
        split = _split_within(middle, weights, first, last, stages)
        if split is None:
            low = middle + 1
        else:
            best, high = split, middle
    return best


def _split_within(limit: int, weights: Sequence[int], first: int, last: int, stages: int) -> tuple[int, ...] | None:
    """A contiguous split whose stages stay within `limit`, each stage filled in turn; None when there is none."""
    counts, position = [], 0
    for stage in range(stages):
        remaining, load, count = stages - stage - 1, first if stage == 0 else 0, 0
        if remaining == 0:
            load += last
        while position + count < len(weights) - remaining and load + weights[position + count] <= limit:
            load += weights[position + count]
            count += 1
        if count == 0 or load > limit:
            return None
        counts.append(count)
        position += count
    return tuple(counts) if position == len(weights) else None


def _balance(case: Case, *, best: bool) -> tuple[int, int]:
    """(load tokens, lambda ppm): no placement does better (`best`), or those of a plain dealing."""
    strategy, lengths = case.strategy, sequence_tokens(case.problem)
    bins = strategy.replicas * strategy.attn_dp * strategy.micro_batches
    if case.problem.workload.is_uniform:
        load = lengths[-1] * strategy.batch
    elif best:
        load = max(lengths[-1], -(-sum(lengths) // bins))
    else:
        load = heaviest_bin(lengths, bins)
    if best or case.llm.moe is None:
        return load, PPM
    slots = num_slots(case.llm, case.problem.redundant_experts)
    busiest = -(-slots // strategy.moe_ep) * UNITS // slots
    return load, load_factor_ppm(busiest, strategy.moe_ep)


def memory_blocks(case: Case, *, best: bool) -> Blocks:
    """The placement's blocks where they are known, else those that need least memory."""
    if case.blocks is not None:
        return case.blocks
    load, lambda_ppm = _balance(case, best=best)
    layers = case.llm.num_layers
    spread = stage_ledgers(
        case.leaves, case.strategy.model_copy(update={"pp": layers}), Blocks(load, lambda_ppm, (1,) * layers)
    )
    names = (
        "attention", "kv_head_replication", "routed_experts", "shared_experts", "dense_layers", "norms_and_router",
        "kv_cache",
    )  # fmt: skip
    weights = [sum(ledger.items_kib[name] for name in names) for ledger in spread]
    ends = spread[0].items_kib["embedding"], spread[-1].items_kib["lm_head"]
    return Blocks(load, lambda_ppm, min_max_split(weights, *ends, case.strategy.pp))


def figures(case: Case, *, best: bool) -> Figures:
    """Metrics; with the best conceivable placement they are lower bounds of every placement's."""
    packing = packing_of(case.problem, case.strategy)
    load, lambda_ppm = _balance(case, best=best)
    times = []
    for phase in ("decode", "prefill"):
        blocks = case.blocks
        if blocks is None:
            even = Blocks(load, lambda_ppm, (1,) * case.llm.num_layers)
            probe = PhaseTimes(case.leaves, case.strategy, packing, phase, even)
            by_kind = {kind: probe.layer(kind).total_ns for kind in case.llm.kinds}
            weights = [by_kind[kind] for kind in case.llm.layers]
            split = min_max_split(weights, probe.embedding_ns, probe.head_ns, case.strategy.pp)
            blocks = Blocks(load, lambda_ppm, split)
        times.append(PhaseTimes(case.leaves, case.strategy, packing, phase, blocks))
    return figures_of(case.problem, case.strategy, *times)


# --- rules ------------------------------------------------------------------------------------------------------------


def _memory(case: Case) -> Iterator[Finding]:
    for best in (True, False):
        ledgers = stage_ledgers(case.leaves, case.strategy, memory_blocks(case, best=best))
        fullest = max(ledgers, key=lambda ledger: ledger.total_kib)
        if fullest.total_kib <= fullest.capacity_kib:
            continue
        items = sorted(fullest.items_kib.items(), key=lambda item: -item[1])[:KNOWN_ITEMS]
        named = ", ".join(f"{name} {short_bytes(kib * BYTES_PER_KIB)}" for name, kib in items)
        certain = best or case.blocks is not None
        yield Finding(
            rule="memory",
            severity="error" if certain else "note",
            title="Does not fit" if certain else "Fits only when sequences are dealt well",
            sentence=f"A GPU of stage {fullest.stage} needs more memory than it may use; shard or replicate less on "
            "it.",
            arithmetic=f"{short_bytes(fullest.total_kib * BYTES_PER_KIB)} needed ({named}), "
            f"{short_bytes(fullest.capacity_kib * BYTES_PER_KIB)} usable",
        )
        return


def _slos(case: Case) -> Iterator[Finding]:
    limits, osl = limits_of(case.problem), case.problem.workload.osl
    if not limits:
        return
    best, dealt = figures(case, best=True), figures(case, best=False)
    for limit in limits:
        lower, usual = objective_value(limit.metric, best), objective_value(limit.metric, dealt)
        impossible = not limit.holds(best)
        severity: Severity = "error" if impossible or case.blocks is not None else "note"
        if limit.holds(best) and limit.holds(dealt):
            continue
        missed = lower if impossible else usual
        yield Finding(
            rule=limit.rule,
            severity=severity,
            title="Misses its SLO" if severity == "error" else "Meets its SLO only with a good placement",
            sentence=f"The strategy breaks the rule {RULES[limit.rule]!r}.",
            arithmetic=f"{limit.words} = {limit.text(missed, osl)}, {limit.asked(osl)}",
        )
