"""The oracle: the optimum of a small problem by brute force over degrees *and* placements, in plain Python.

It knows the rules (:func:`solver.legality.violations`) and the leaf costs (``solver.cost``), and nothing of how the
solver looks: no tables, no bounds, no OR-tools. Every strategy of the space ``all`` is combined with every split of the
layers into stages, every dealing of the sequences to bins and every placement of the expert replicas.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import combinations, pairwise, product

from solver.cost.balance import (
    expert_counts,
    load_factor_ppm,
    mean_ppm,
    rank_loads,
    sequence_tokens,
    slots_per_rank,
)
from solver.cost.layers import Blocks, PhaseTimes
from solver.cost.leaves import PPM, Leaves
from solver.cost.ledger import stage_ledgers
from solver.cost.machine import Phase
from solver.cost.metrics import Figures, Utopia, figures_of, objective_value
from solver.legality import attn_tp_violations, moe_ep_violations, moe_tp_violations, violations
from solver.packing import Packing
from solver.specs.problem import ALL_REDUCES, MESH_ORDERS, ObjectiveName, Problem
from solver.strategy import Strategy, num_chunks, num_slots, packing_of

EXCHANGES = (("gather", False), ("all_to_all", False), ("all_to_all", True))
"""(dispatch, overlap) pairs; overlap without all_to_all is illegal."""
ALGORITHMS = (
    "decode_allreduce", "prefill_allreduce", "decode_dispatch", "prefill_dispatch", "decode_overlap", "prefill_overlap",
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What brute force found."""

    value: int | None
    """Least objective integer; absent when no strategy with any placement meets memory and SLOs."""
    strategies: tuple[Strategy, ...]
    """Every strategy that reaches it with some placement."""
    legal: int
    """Strategies that satisfy the rules (memory and SLOs aside)."""
    utopia: Utopia | None = None


# --- degrees ----------------------------------------------------------------------------------------------------------


def every_strategy(problem: Problem) -> Iterator[Strategy]:
    """Every joint assignment of degrees and knobs of the space ``all`` that satisfies the rules."""
    assert problem.space.name == "all"
    budget, llm, space = problem.gpu_budget, problem.llm, problem.space
    concurrency = problem.workload.concurrency or space.max_batch
    upto = {
        "pp": min(space.max_pp, llm.num_layers, budget),
        "batch": min(space.max_batch, concurrency),
        "prefill_batch": space.max_prefill_batch,
    }
    free = {name: [v for v in range(1, most + 1) if _asked(problem, name, v)] for name, most in upto.items()}
    for name in ("pp", "batch"):  # a pinned value belongs to the space whatever its limits
        pinned = getattr(problem.pins, name)
        free[name] = free[name] if pinned is None else [pinned]
    sizes = range(1, budget + 1)
    tps = [v for v in sizes if _asked(problem, "attn_tp", v) and not any(attn_tp_violations(problem, v))]
    moe_tps = [v for v in sizes if _asked(problem, "moe_tp", v) and not any(moe_tp_violations(problem, v))]
    moe_eps = [v for v in sizes if _asked(problem, "moe_ep", v) and not any(moe_ep_violations(problem, v))]
    for tp, moe_tp, moe_ep, pp in product(tps, moe_tps, moe_eps, free["pp"]):
        stage = moe_tp * moe_ep if llm.is_moe else tp
        if stage % tp:
            continue
        for replicas, order in product(range(1, budget // (stage * pp) + 1), MESH_ORDERS):
            shape = {
                "attn_tp": tp, "attn_dp": stage // tp, "moe_tp": moe_tp, "moe_ep": moe_ep, "pp": pp,
                "replicas": replicas, "mesh_order": order,
            }  # fmt: skip
            yield from _with_knobs(problem, shape, free)


def _asked(problem: Problem, name: str, value: object) -> bool:
    return getattr(problem.pins, name) in (None, value)


def _with_knobs(problem: Problem, shape: dict[str, object], free: dict[str, list[int]]) -> Iterator[Strategy]:
    sizes = product(range(1, int(str(shape["pp"])) + 1), free["batch"], free["prefill_batch"])
    for m, batch, prompts in sizes:
        base = {**shape, "micro_batches": m, "batch": batch, "prefill_batch": prompts}
        if not all(_asked(problem, name, base[name]) for name in ("attn_dp", "replicas", "micro_batches")):
            continue
        # What is broken without any choice of algorithm stays broken with one: a filter for speed only.
        plain = Strategy(**base)
        if any(broken.rule not in ("pin", "dispatch", "overlap") for broken in violations(problem, plain)):
            continue
        algorithms = product(ALL_REDUCES, ALL_REDUCES, EXCHANGES, EXCHANGES)
        for decode, prefill, (sent, hidden), (prefill_sent, prefill_hidden) in algorithms:
            strategy = Strategy(
                **base,
                decode_allreduce=decode,
                prefill_allreduce=prefill,
                decode_dispatch=sent,
                prefill_dispatch=prefill_sent,
                decode_overlap=hidden,
                prefill_overlap=prefill_hidden,
            )
            asked = all(_asked(problem, name, getattr(strategy, name)) for name in ALGORITHMS)
            if asked and not violations(problem, strategy):
                yield strategy


# --- placements -------------------------------------------------------------------------------------------------------


def every_layout(num_layers: int, pp: int) -> list[tuple[int, ...]]:
    """Every split of the layers into `pp` non-empty contiguous stages."""
    cuts = combinations(range(1, num_layers), pp - 1)
    return [tuple(b - a for a, b in pairwise((0, *cut, num_layers))) for cut in cuts]


def every_load(problem: Problem, bins: int, cap: int) -> tuple[int, ...]:
    """Heaviest bin of every dealing of the sequences, each value once, ascending."""
    tokens = sequence_tokens(problem)
    if problem.workload.is_uniform:
        return (cap * tokens[-1],)
    return _loads(tokens, min(bins, len(tokens)), cap)


@cache
def _loads(tokens: tuple[int, ...], bins: int, cap: int) -> tuple[int, ...]:
    """By set partitions of the sequences into at most `bins` sets of at most `cap` (bins are alike)."""
    partial: list[list[list[int]]] = [[]]
    for index in range(len(tokens)):
        longer: list[list[list[int]]] = []
        for sets in partial:
            for chosen, members in enumerate(sets):
                if len(members) < cap:
                    longer.append([*sets[:chosen], [*members, index], *sets[chosen + 1 :]])
            if len(sets) < bins:
                longer.append([*sets, [index]])
        partial = longer
    return tuple(sorted({max(sum(tokens[i] for i in members) for members in sets) for sets in partial}))


def every_factor(problem: Problem, moe_ep: int) -> tuple[int, ...]:
    """Mean load factor of every joint placement of the MoE layers, each value once, ascending (ppm)."""
    if not problem.llm.is_moe:
        return (PPM,)
    return _factors(expert_counts(problem), _capacities(problem, moe_ep))


def _capacities(problem: Problem, moe_ep: int) -> tuple[int, ...]:
    return tuple(slots_per_rank(num_slots(problem.llm, problem.redundant_experts), moe_ep))


@cache
def _factors(rows: tuple[tuple[int, ...], ...], capacities: tuple[int, ...]) -> tuple[int, ...]:
    sums = {0}
    for counts in rows:
        sums = {known + factor for known in sums for factor in _layer_factors(counts, capacities)}
    # The mean depends on the sum over layers alone.
    return tuple(sorted({mean_ppm([total] + [0] * (len(rows) - 1)) for total in sums}))


def least_factor(problem: Problem, moe_ep: int) -> int:
    """The least of :func:`every_factor`: layers are placed independently of one another."""
    if not problem.llm.is_moe:
        return PPM
    capacities = _capacities(problem, moe_ep)
    return mean_ppm([_layer_factors(counts, capacities)[0] for counts in expert_counts(problem)])


@cache
def _layer_factors(counts: tuple[int, ...], capacities: tuple[int, ...]) -> tuple[int, ...]:
    placements = every_placement(len(counts), capacities)
    return tuple(sorted({load_factor_ppm(max(rank_loads(counts, held)), len(capacities)) for held in placements}))


@cache
def every_placement(num_experts: int, capacities: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Every placement of expert replicas: full ranks, no expert twice on a rank, none missing.

    Equally large ranks are alike: their contents appear in lexicographic order only.
    """
    found: list[tuple[tuple[int, ...], ...]] = []

    def fill(held: tuple[tuple[int, ...], ...], missing: frozenset[int]) -> None:
        rank = len(held)
        if rank == len(capacities):
            found.append(held)
            return
        later = sum(capacities[rank + 1 :])
        for chosen in combinations(range(num_experts), capacities[rank]):
            if rank and capacities[rank] == capacities[rank - 1] and chosen < held[-1]:
                continue
            left = missing - set(chosen)
            if len(left) <= later:
                fill((*held, chosen), left)

    fill((), frozenset(range(num_experts)))
    return tuple(found)


# --- adding up --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageTimes:
    """One phase of one strategy and stage layout, as :func:`solver.cost.metrics.figures_of` reads it."""

    leaves: Leaves
    stages: tuple[int, ...]
    hop_ns: int
    return_ns: int

    def stage_times(self) -> list[int]:
        """Time of every stage, ns."""
        return list(self.stages)


class Bench:
    """Prices strategies of one problem; what several of them share is priced once."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.leaves = problem, Leaves(problem)
        self._times: dict[tuple[object, ...], StageTimes] = {}
        self._layers: dict[tuple[object, ...], tuple[list[int], int, int, int, int]] = {}
        self._fits: dict[tuple[object, ...], bool] = {}

    def figures(self, strategy: Strategy, packing: Packing, blocks: Blocks) -> Figures:
        """Metrics of a strategy with its placement."""
        decode = self._phase(strategy, packing, "decode", blocks)
        prefill = self._phase(strategy, packing, "prefill", blocks)
        return figures_of(self.problem, strategy, decode, prefill)  # type: ignore[arg-type]

    def _phase(self, s: Strategy, packing: Packing, phase: Phase, blocks: Blocks) -> StageTimes:
        decode = phase == "decode"
        knobs = (
            (s.batch, s.decode_allreduce, s.decode_dispatch, s.decode_overlap, blocks.load_tokens)
            if decode
            else (s.prefill_batch, s.prefill_allreduce, s.prefill_dispatch, s.prefill_overlap, 0)
        )
        place = (packing.stage_members, packing.members("pp") == s.pp, s.pp == 1)
        key = (phase, s.attn_tp, s.attn_dp, s.moe_tp, s.moe_ep, blocks.lambda_ppm, *knobs, *place)
        if key not in self._layers:
            times = PhaseTimes(self.leaves, s, packing, phase, blocks)
            by_kind = {kind: times.layer(kind).total_ns for kind in self.problem.llm.kinds}
            each = [by_kind[kind] for kind in self.problem.llm.layers]
            self._layers[key] = (each, times.embedding_ns, times.head_ns, times.hop_ns, times.return_ns)
        whole = (*key, blocks.stage_layers)
        if whole not in self._times:
            each, embedding, head, hop, back = self._layers[key]
            ends = [sum(blocks.stage_layers[:stage]) for stage in range(len(blocks.stage_layers) + 1)]
            stages = [sum(each[a:b]) for a, b in pairwise(ends)]
            stages[0] += embedding
            stages[-1] += head
            self._times[whole] = StageTimes(self.leaves, tuple(stages), hop, back)
        return self._times[whole]

    def fits(self, s: Strategy, blocks: Blocks) -> bool:
        """Whether the fullest rank of every stage fits the usable memory."""
        key = (s.attn_tp, s.moe_tp, s.moe_ep, s.batch, s.micro_batches, s.prefill_batch, blocks.load_tokens,
               blocks.stage_layers)  # fmt: skip
        if key not in self._fits:
            ledgers = stage_ledgers(self.leaves, s, blocks)
            self._fits[key] = all(ledger.total_kib <= ledger.capacity_kib for ledger in ledgers)
        return self._fits[key]

    def in_time(self, figures: Figures) -> bool:
        """Whether every SLO holds."""
        slo = self.problem.workload.slo
        rate = Fraction(figures.active * self.problem.workload.osl * 10**9, figures.cycle_ns)
        return (
            (slo.ttft is None or figures.ttft_ns <= slo.ttft)
            and (slo.tpot is None or figures.tpot_ns <= slo.tpot)
            and (slo.request_latency is None or figures.request_latency_ns <= slo.request_latency)
            and (slo.min_throughput is None or rate >= slo.min_throughput)
            and (slo.min_efficiency is None or rate / figures.gpus >= slo.min_efficiency)
        )


def in_sight(problem: Problem, figures: Figures) -> bool:
    """Whether the rule ``horizon`` holds: 100 s a token, 1,000 s a pass, 100,000 s a request, exact products."""
    second, name = 10**9, problem.objective.name
    return (
        figures.tpot_ns <= 100 * second
        and figures.round_ns < num_chunks(problem) * (1000 * second + 1)
        and figures.request_latency_ns <= 100_000 * second
        and figures.cycle_ns * max(1000, figures.gpus) + figures.active <= 2**61
        and (name != "throughput" or figures.inverse_throughput_ps <= 2**53)
        and (name not in ("efficiency", "weighted") or figures.inverse_efficiency_ns <= 2**53)
    )


def every_plan(problem: Problem, *, every_balance: bool = False) -> Iterator[tuple[Strategy, Figures | None]]:
    """Every legal strategy with every placement that meets memory and SLOs (None: it has no such placement).

    Costs rise with the heaviest bin and with the busiest rank, so the least of each is taken; with `every_balance`
    nothing is taken for granted and every pair of values is tried.
    """
    bench = Bench(problem)
    for strategy in every_strategy(problem):
        bins = strategy.replicas * strategy.attn_dp * strategy.micro_batches
        loads = every_load(problem, bins, strategy.batch)
        if every_balance:
            factors = every_factor(problem, strategy.moe_ep)
        else:
            loads, factors = loads[:1], (least_factor(problem, strategy.moe_ep),)
        packing, found = packing_of(problem, strategy), False
        layouts = every_layout(problem.llm.num_layers, strategy.pp)
        for load, factor, layout in product(loads, factors, layouts):
            blocks = Blocks(load, factor, layout)
            if not bench.fits(strategy, blocks):
                continue
            figures = bench.figures(strategy, packing, blocks)
            if bench.in_time(figures) and in_sight(problem, figures):
                found = True
                yield strategy, figures
        if not found:
            yield strategy, None


def brute_force(problem: Problem, *, every_balance: bool = False) -> Answer:
    """The optimum of a problem and every strategy that reaches it."""
    plans = list(every_plan(problem, every_balance=every_balance))
    legal = len({strategy for strategy, _ in plans})
    found = [(strategy, figures) for strategy, figures in plans if figures is not None]
    if not found:
        return Answer(None, (), legal)
    name: ObjectiveName = problem.objective.name
    utopia, weights = None, (0, 0)
    if name == "weighted":
        utopia = Utopia(
            latency_ns=min(figures.request_latency_ns for _, figures in found),
            inverse_efficiency_ns=min(figures.inverse_efficiency_ns for _, figures in found),
        )
        weights = utopia.weights(problem.objective.latency_weight)
    values = [objective_value(name, figures, weights) for _, figures in found]
    best = min(values)
    winners = {strategy for (strategy, _), value in zip(found, values, strict=True) if value == best}
    return Answer(best, tuple(sorted(winners, key=lambda s: s.sort_key)), legal, utopia)
