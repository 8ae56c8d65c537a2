"""One strategy in hand: its best knobs, its best split into stages, and placements that exist.

The judge ends here: a strategy that is claimed not to exist is built, and its objective computed by the cost model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from solver.cost.balance import batches_held, resident_tokens
from solver.cost.horizon import in_horizon
from solver.cost.layers import Blocks, PhaseTimes
from solver.cost.leaves import Leaves, as_ints
from solver.cost.ledger import stage_ledgers
from solver.cost.limits import is_within, limits_of
from solver.cost.machine import Phase
from solver.cost.metrics import evaluate_times, objective_value
from solver.degrees import Domains
from solver.engines import exchange_switch, sends_without_attention_dp
from solver.legality import violations
from solver.specs.problem import ObjectiveName
from solver.strategy import Strategy, packing_of, pool_strategy
from solver.verify.blocks import BlockBounds, Interval
from solver.verify.stages import least_cap, splits


@dataclass(frozen=True)
class Judge:
    """What a strategy is judged by."""

    leaves: Leaves
    blocks: BlockBounds
    domains: Domains
    name: ObjectiveName
    weights: tuple[int, int]


@dataclass(frozen=True)
class Realised:
    """Objective integer of a strategy: proved lower bound, and the value of a placement that exists (if any fits)."""

    strategy: Strategy
    lower: int
    upper: int | None


@dataclass(frozen=True)
class _Timing:
    """One phase under one setting of its knobs: ns per layer, embedding and head folded into the ends."""

    strategy: Strategy
    layers_ns: tuple[int, ...]
    slowest_ns: int
    """Least slowest stage of any split that fits the memory."""
    switch: tuple[str | bool, ...]
    """What the other phase must share (an engine's switch for both)."""


def realise(judge: Judge, strategy: Strategy) -> Realised | None:
    """Best value of a strategy over knobs and placements; None when memory or an SLO excludes it for certain."""
    bins = strategy.replicas * strategy.attn_dp * strategy.micro_batches
    load = judge.blocks.load_interval(bins, strategy.batch)
    is_moe = judge.leaves.problem.llm.is_moe
    factor = judge.blocks.lambda_interval(strategy.moe_ep) if is_moe else Interval(10**6, 10**6)
    lower = _best(judge, strategy, load.lower, factor.lower)
    if lower is None:
        return None
    exact = load.lower == load.upper and factor.lower == factor.upper
    upper = lower if exact else _best(judge, strategy, load.upper, factor.upper)
    if upper is None:
        return Realised(lower[1], lower[0], None)
    return Realised(upper[1], lower[0], upper[0])


def _best(judge: Judge, strategy: Strategy, load: int, lambda_ppm: int) -> tuple[int, Strategy] | None:
    """Least objective integer over knobs and splits at a given load and load factor."""
    leaves = judge.leaves
    memory, limit = _memory(leaves, strategy, load)
    blocks = Blocks(load, lambda_ppm, (leaves.problem.llm.num_layers,))
    decode = _timings(judge, strategy, "decode", blocks, (memory, limit))
    prefill = _timings(judge, strategy, "prefill", blocks, (memory, limit))
    best: tuple[int, Strategy] | None = None
    if leaves.problem.role == "decode":  # the idle phase follows the other, whatever its knobs
        prefill = prefill[:1]
    elif leaves.problem.role == "prefill":
        decode = decode[:1]
    for d, p in product(decode, prefill):
        if d.switch != p.switch and leaves.problem.role == "aggregated":
            continue
        knobs = ("prefill_allreduce", "prefill_dispatch", "prefill_overlap")
        both = d.strategy.model_copy(update={name: getattr(p.strategy, name) for name in knobs})
        both = pool_strategy(leaves.problem, both)
        for stage_layers in _fronts(d, p, memory, limit, strategy.pp):
            value = _value(judge, both, Blocks(load, lambda_ppm, stage_layers))
            if value is not None and (best is None or value < best[0]):
                best = (value, both)
    return best


def _fronts(d: _Timing, p: _Timing, memory: list[int], limit: int, pp: int) -> Iterator[tuple[int, ...]]:
    """Splits of which none is worse than another in both phases; every metric grows with the two slowest stages."""
    cap = sum(p.layers_ns)
    while True:
        slow = least_cap([d.layers_ns, p.layers_ns, memory], [cap, limit], pp)
        if slow is None:
            return
        other = least_cap([p.layers_ns, d.layers_ns, memory], [slow, limit], pp)
        if other is None:
            return
        found = splits([d.layers_ns, p.layers_ns, memory], [slow, other, limit], pp)
        if found is not None:
            yield found
        if other <= p.slowest_ns:
            return
        cap = other - 1


def _timings(
    judge: Judge, strategy: Strategy, phase: Phase, blocks: Blocks, memory: tuple[list[int], int]
) -> list[_Timing]:
    """The settings of a phase's knobs that are not slower than another one in every layer."""
    leaves, domains = judge.leaves, judge.domains
    decode = phase == "decode"
    options = product(
        domains.decode_allreduce if decode else domains.prefill_allreduce,
        domains.decode_dispatch if decode else domains.prefill_dispatch,
        domains.decode_overlap if decode else domains.prefill_overlap,
    )
    found: list[_Timing] = []
    tokens = strategy.batch * leaves.step_tokens if decode else strategy.prefill_batch * leaves.chunk_tokens
    for allreduce, dispatch, overlap in options:
        exchange = dispatch == "all_to_all"
        if (exchange and strategy.moe_ep == 1) or (overlap and not (exchange and tokens >= 2)):
            continue
        engine = leaves.problem.engine
        if engine == "sglang" and exchange and strategy.moe_tp > 1:
            continue
        if exchange and strategy.attn_dp == 1 and not sends_without_attention_dp(engine):
            continue
        knobs = {f"{phase}_allreduce": allreduce, f"{phase}_dispatch": dispatch, f"{phase}_overlap": overlap}
        chosen = strategy.model_copy(update=knobs)
        times = PhaseTimes(leaves, chosen, packing_of(leaves.problem, chosen), phase, blocks)
        by_kind = {kind: times.layer(kind).total_ns for kind in leaves.problem.llm.kinds}
        layers = [by_kind[kind] for kind in leaves.problem.llm.layers]
        layers[0] += times.embedding_ns
        layers[-1] += times.head_ns
        switch = exchange_switch(engine, dispatch, overlap)
        rivals = [other for other in found if other.switch == switch]
        if any(all(a <= b for a, b in zip(other.layers_ns, layers, strict=True)) for other in rivals):
            continue
        worse = [o for o in rivals if all(b <= a for a, b in zip(o.layers_ns, layers, strict=True))]
        found = [other for other in found if other not in worse]
        slowest = least_cap([layers, memory[0]], [memory[1]], strategy.pp)
        if slowest is not None:
            found.append(_Timing(chosen, tuple(layers), slowest, switch))
    return found


def _memory(leaves: Leaves, strategy: Strategy, load: int) -> tuple[list[int], int]:
    """KiB per layer (vocabulary in the first and last one), and what a rank has for its layers."""
    memory, llm = leaves.memory, leaves.problem.llm
    tp, moe_tp, moe_ep = as_ints(strategy.attn_tp, strategy.moe_tp, strategy.moe_ep)
    batch, prompts = as_ints(strategy.batch, strategy.prefill_batch)
    batches = batches_held(leaves.problem, strategy.micro_batches, strategy.pp)
    tokens, sequences = as_ints(
        resident_tokens(leaves.problem, load, strategy.batch, batches),
        strategy.batch * batches,
    )
    by_kind = {
        kind: int(
            memory.attention_kib(kind, tp)
            + memory.experts_kib(kind, moe_tp, moe_ep)
            + memory.ffn_kib(kind, tp)
            + memory.norm_router_kib(kind)
            + leaves.attention.cache_kib(kind.attention, tp, tokens, sequences)
        )
        for kind in llm.kinds
    }
    layers = [by_kind[kind] for kind in llm.layers]
    vocabulary = int(leaves.ffn.vocabulary_kib(tp))
    layers[0] += vocabulary
    if not (llm.tie_embeddings and strategy.pp == 1):
        layers[-1] += vocabulary
    work = memory.decode_workspace_kib(tp, batch) + memory.prefill_workspace_kib(tp, prompts)
    return layers, memory.capacity_kib - memory.constant_kib - int(np.asarray(work))


def _value(judge: Judge, strategy: Strategy, blocks: Blocks) -> int | None:
    """Objective integer of a complete strategy; None when it is illegal, does not fit, or misses an SLO."""
    problem = judge.leaves.problem
    figures = evaluate_times(judge.leaves, strategy, packing_of(problem, strategy), blocks)
    if not is_within(limits_of(problem), figures) or not in_horizon(problem, figures) or violations(problem, strategy):
        return None
    if any(ledger.total_kib > ledger.capacity_kib for ledger in stage_ledgers(judge.leaves, strategy, blocks)):
        return None
    return objective_value(judge.name, figures, judge.weights)
