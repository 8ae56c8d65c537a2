"""A good strategy from closed-form scores: the program's hint and upper bound. Never part of a claim."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from solver.cost.balance import sequence_tokens
from solver.cost.horizon import in_horizon
from solver.cost.layers import Blocks
from solver.cost.leaves import PPM, Leaves
from solver.cost.ledger import stage_ledgers
from solver.cost.limits import is_within, limits_of
from solver.cost.metrics import Figures, Utopia, evaluate_times, objective_value
from solver.degrees import Domains
from solver.legality import violations
from solver.packing import Packing, canonical_mesh
from solver.search.bounds import Bounds
from solver.search.joint import Bools
from solver.search.pruning import Cells, beyond_limits, build_tables, cells_of
from solver.search.realise import even_stages, memory_violations
from solver.search.shared import Known
from solver.specs.problem import AllReduce, Problem
from solver.strategy import Strategy, packing_of, pool_strategy

MAX_SCORED = 1200
"""Strategies that are scored before the descent."""
MAX_FEASIBLE = 36
"""Feasible ones among them that are enough, and how many of one shape."""
MAX_PER_SHAPE = 6
MAX_DESCENTS = 4
NEAR_ENOUGH = 1.01
"""One descent is enough when it ends this close to the bound of all shapes."""
MAX_STARTS = 2
"""Starts of different stage size or depth that are descended from."""


class Scores:
    """Objective integers of strategies with the placement blocks at their lower bounds, memoised."""

    def __init__(
        self,
        leaves: Leaves,
        domains: Domains,
        bounds: Bounds,
        utopia: Utopia | None,
        admits: Callable[[Strategy, int], bool] | None = None,
        waived: frozenset[str] = frozenset(),
    ) -> None:
        self._admits, self._limits, self._waived = admits, limits_of(leaves.problem), waived
        self.leaves, self.problem, self.domains, self.bounds = leaves, leaves.problem, domains, bounds
        self._utopia = utopia
        self._weights = utopia.weights(self.problem.objective.latency_weight) if utopia else (0, 0)
        self.known: dict[Strategy, int | None] = {}
        self.late: list[Bools] = []
        """By phase, what misses a limit however the other phase runs; known with the cells."""
        self.root = 0.0
        """Least sum of the phases' bounds over all shapes (of the most local layout)."""
        self._tokens = sequence_tokens(self.problem)
        self._total_tokens = sum(self._tokens)
        self._priced: dict[Strategy, Figures | None] = {}
        self._rules = self.problem
        self.start: Strategy | None = None
        """The best strategy of earlier solves."""

    def share(self, known: Known | None) -> None:
        """Price no strategy twice that an earlier solve has priced."""
        if known is not None:
            self._priced, self._rules = known.priced, known.base
            self.start = known.start(self._utopia, self._admits)

    def cells(self, shapes: list[tuple[int, int, int, int]]) -> tuple[Cells, Cells]:
        """Lower bounds of both phases by shape and group size, each stage as local as it can be."""
        problem, domains = self.problem, self.domains
        local = {
            (tp * dp, Packing("tp-dp-pp", problem.cluster.domain_gpus, tp, dp, 1).stage_members)
            for tp, _, _, dp in shapes
        }
        tables = build_tables(self.leaves, domains, self.bounds, self._utopia, shapes, sorted(local))
        decode, prefill = (cells_of(table, shapes) for table in tables)
        self.late = beyond_limits(tables, [decode, prefill], self._limits)
        return decode, prefill

    def value(self, strategy: Strategy) -> int | None:
        """Score of a strategy; None when it is illegal, too large, or misses an SLO."""
        if strategy not in self.known:
            self.known[strategy] = self._score(strategy)
        return self.known[strategy]

    def _score(self, strategy: Strategy) -> int | None:
        if strategy not in self._priced:
            self._priced[strategy] = self._figures(strategy)
        figures = self._priced[strategy]
        if figures is None or figures.gpus > self.problem.gpu_budget or not is_within(self._limits, figures):
            return None
        if not in_horizon(self.problem, figures):
            return None
        value = objective_value(self.problem.objective.name, figures, self._weights)
        return value if self._admits is None or self._admits(strategy, value) else None

    def _figures(self, strategy: Strategy) -> Figures | None:
        """Metrics with the blocks at their bounds and even stages; None where a rule or the memory forbids it."""
        if any(violation.rule not in self._waived for violation in violations(self._rules, strategy)):
            return None
        bins = strategy.replicas * strategy.attn_dp * strategy.micro_batches
        load = strategy.batch * self._tokens[-1]
        if not self.problem.workload.is_uniform:
            load = max(self._tokens[-1], -(-self._total_tokens // bins))
        factor = self.bounds.lambda_ppm(strategy.moe_ep) if self.problem.llm.is_moe else 10**6
        blocks = Blocks(load, factor, even_stages(self.problem.llm.num_layers, strategy.pp))
        figures = evaluate_times(self.leaves, strategy, packing_of(self.problem, strategy), blocks)
        return None if memory_violations(stage_ledgers(self.leaves, strategy, blocks)) else figures


def find_incumbent(scores: Scores, shapes: list[tuple[int, int, int, int]]) -> Strategy | None:
    """Best strategy found by scoring the combinations with the lowest bounds and descending from the best few."""
    if scores.start is not None:
        return _descend(scores, scores.start, shapes)
    best_of_start: dict[tuple[int, int], Strategy] = {}
    feasible = [0] * len(shapes)
    for s, batch, prefill_batch in _promising(scores, shapes):
        if len(scores.known) > MAX_SCORED or sum(feasible) >= MAX_FEASIBLE:
            break
        if feasible[s] >= MAX_PER_SHAPE:
            continue
        for free in _starts(scores, shapes[s], batch, prefill_batch):
            strategy = pool_strategy(scores.problem, free)
            if scores.value(strategy) is None:
                continue
            feasible[s] += 1
            key = (strategy.stage_gpus, strategy.pp)
            best_of_start[key] = _better(scores, best_of_start.get(key), strategy) or strategy
    starts = sorted(best_of_start.values(), key=lambda s: (scores.value(s), s.sort_key))
    best: Strategy | None = None
    for start in starts[:MAX_STARTS]:
        found = _descend(scores, start, shapes)
        best = found if best is None else _better(scores, best, found)
        if best is not None and (scores.value(best) or 0) <= NEAR_ENOUGH * scores.root:
            break
    return best


def first_feasible(scores: Scores, shapes: list[tuple[int, int, int, int]], most: int) -> Strategy | None:
    """The first strategy that fits and keeps the limits among the `most` with the lowest bounds."""
    for s, batch, prefill_batch in _promising(scores, shapes):
        for strategy in _starts(scores, shapes[s], batch, prefill_batch):
            if scores.value(strategy) is not None:
                return strategy
        if len(scores.known) > most:
            break
    return None


def _promising(scores: Scores, shapes: list[tuple[int, int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """(shape, batch, prefill batch) in the order of their lower bounds, those that meet the TPOT limit in one stage."""
    decode, prefill = scores.cells(shapes)
    for cell, late in zip((decode, prefill), scores.late, strict=True):
        cell.share[late] = np.inf
    bound = decode.share.min(axis=2)[:, :, None] + prefill.share.min(axis=2)[:, None, :]
    scores.root = float(bound.min())
    workload, leaves = scores.problem.workload, scores.leaves
    batch = np.array(decode.groups, dtype=np.float64)[None, :, None]
    prompts = np.array(prefill.groups, dtype=np.float64)[None, None, :]
    others = np.maximum(0.0, batch / prompts - 1) * leaves.chunks * prefill.time_ns.min(axis=2)[:, None, :]
    tpot = decode.time_ns.min(axis=2)[:, :, None] * PPM / leaves.kept_ppm + others / workload.osl
    if workload.slo.tpot is not None:
        bound = np.where(tpot > workload.slo.tpot, np.inf, bound)
    for position in np.argsort(bound, axis=None, kind="stable").tolist():
        s, b, p = (int(axis) for axis in np.unravel_index(position, bound.shape))
        if not np.isfinite(bound[s, b, p]):
            return
        yield s, decode.groups[b], prefill.groups[p]


def _descend(scores: Scores, best: Strategy, shapes: list[tuple[int, int, int, int]]) -> Strategy:
    """Move to the best neighbour until none is better."""
    for _ in range(MAX_DESCENTS):
        before = best
        for free in _neighbours(scores, best, shapes):
            strategy = pool_strategy(scores.problem, free)
            best = _better(scores, best, strategy) or best
        if best == before:
            break
    return best


def _better(scores: Scores, best: Strategy | None, strategy: Strategy) -> Strategy | None:
    value = scores.value(strategy)
    if value is None:
        return best
    if best is None:
        return strategy
    known = scores.value(best)
    assert known is not None
    return strategy if (value, strategy.sort_key) < (known, best.sort_key) else best


def _starts(scores: Scores, shape: tuple[int, int, int, int], batch: int, prefill_batch: int) -> Iterator[Strategy]:
    """Strategies of a shape with one, two and four full stages, or as many as fill the budget with one instance, and as
    many replicas as the workload wants."""
    problem, domains = scores.problem, scores.domains
    tp, _, _, dp = shape
    filling = problem.gpu_budget // (tp * dp)
    for pp in [p for p in domains.pp if p in (1, 2, 4, filling)] or domains.pp[:1]:
        micro = pp if pp in domains.micro_batches else domains.micro_batches[0]
        most, instance = _most_replicas(problem, tp, dp, pp), tp * dp * pp
        concurrency = problem.workload.concurrency
        replicas = most if concurrency is None else -(-concurrency // (dp * batch * micro))
        if problem.gpus_exact is not None:
            replicas = problem.gpus_exact // instance if problem.gpus_exact % instance == 0 else 0
        replicas = domains.replicas or replicas
        if 0 < replicas <= most:
            strategy = _strategy(scores, shape, pp, replicas, batch)
            for prompts in dict.fromkeys((prefill_batch, domains.prefill_batch[0])):
                yield strategy.model_copy(update={"micro_batches": micro, "prefill_batch": prompts})


def _most_replicas(problem: Problem, tp: int, dp: int, pp: int) -> int:
    packing = Packing("tp-dp-pp", problem.cluster.domain_gpus, tp, dp, pp)
    if packing.instances_per_domain:
        fitting = problem.cluster.num_domains * packing.instances_per_domain
    else:
        fitting = problem.cluster.num_domains // packing.domains_per_instance
    return min(fitting, problem.gpu_budget // (tp * dp * pp))


def _first(wanted: tuple[AllReduce, ...], allowed: tuple[AllReduce, ...]) -> AllReduce:
    """The first of those wanted that is allowed, else the first that is."""
    return next((algorithm for algorithm in wanted if algorithm in allowed), allowed[0])


def _strategy(scores: Scores, shape: tuple[int, int, int, int], pp: int, replicas: int, batch: int) -> Strategy:
    tp, moe_tp, moe_ep, dp = shape
    d = scores.domains
    exchange = "all_to_all" if moe_ep > 1 and dp > 1 else "gather"
    return Strategy(
        attn_tp=tp, attn_dp=dp, moe_tp=moe_tp, moe_ep=moe_ep, pp=pp, replicas=replicas, batch=batch,
        micro_batches=d.micro_batches[0], prefill_batch=d.prefill_batch[0],
        mesh_order=canonical_mesh(d.mesh_order[-1], tp, dp, pp),
        decode_allreduce=_first(("direct", "tree"), d.decode_allreduce),
        prefill_allreduce=_first(("direct",), d.prefill_allreduce),
        decode_dispatch=exchange if exchange in d.decode_dispatch else d.decode_dispatch[0],
        prefill_dispatch=exchange if exchange in d.prefill_dispatch else d.prefill_dispatch[0],
        decode_overlap=d.decode_overlap[0], prefill_overlap=d.prefill_overlap[0],
    )  # fmt: skip


def _neighbours(scores: Scores, best: Strategy, shapes: list[tuple[int, int, int, int]]) -> Iterator[Strategy]:
    """Strategies that differ in one decision (or in the stage shape with the slots kept)."""
    d = scores.domains
    for name in (
        "decode_allreduce", "prefill_allreduce", "decode_dispatch", "prefill_dispatch", "decode_overlap",
        "prefill_overlap", "batch", "prefill_batch", "micro_batches",
    ):  # fmt: skip
        for value in getattr(d, name):
            yield best.model_copy(update={name: value})
    for dispatch, overlap in (("gather", False), ("all_to_all", False), ("all_to_all", True)):
        both = {"decode_dispatch": dispatch, "prefill_dispatch": dispatch}
        if dispatch in d.decode_dispatch and dispatch in d.prefill_dispatch:
            yield best.model_copy(update=both)
        if overlap in d.decode_overlap and overlap in d.prefill_overlap:
            yield best.model_copy(update={**both, "decode_overlap": overlap, "prefill_overlap": overlap})
    near = d.batch.index(best.batch)
    for batch in d.batch[max(0, near - 6) : near + 7]:
        for prefill_batch in d.prefill_batch:
            for overlap in d.decode_overlap:
                changes = {"batch": batch, "prefill_batch": prefill_batch, "decode_overlap": overlap}
                yield best.model_copy(update=changes)
    for pp in d.pp:
        order = canonical_mesh(d.mesh_order[-1], best.attn_tp, best.attn_dp, pp)
        piped = {"pp": pp, "mesh_order": order, "micro_batches": min(best.micro_batches, pp)}
        yield best.model_copy(update=piped)
        if pp in d.micro_batches:
            yield best.model_copy(update={**piped, "micro_batches": pp})
    for tp, moe_tp, moe_ep, dp in shapes:
        if moe_tp * moe_ep not in (best.stage_gpus, 2 * best.stage_gpus, best.stage_gpus // 2):
            continue
        most = _most_replicas(scores.problem, tp, dp, best.pp)
        shape = {"attn_tp": tp, "moe_tp": moe_tp, "moe_ep": moe_ep, "attn_dp": dp}
        shape["mesh_order"] = canonical_mesh(d.mesh_order[-1], tp, dp, best.pp)  # type: ignore[assignment]
        for replicas in dict.fromkeys((best.replicas, max(1, best.replicas * best.attn_dp // dp), most)):
            if 0 < replicas <= most:
                yield best.model_copy(update={**shape, "replicas": replicas})
