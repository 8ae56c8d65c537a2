"""A good strategy from closed-form scores: the program's hint and upper bound. Never part of a claim."""

from __future__ import annotations

from collections.abc import Iterator

from solver.cost.balance import sequence_tokens
from solver.cost.layers import Blocks
from solver.cost.ledger import stage_ledgers
from solver.cost.leaves import Leaves
from solver.cost.metrics import Utopia, evaluate_times, objective_value
from solver.degrees import Domains
from solver.search.bounds import Bounds
from solver.search.realise import even_stages, memory_violations, slo_violations
from solver.specs.problem import Problem
from solver.strategy import Packing, Strategy, canonical_mesh, packing_of, violations

MAX_SHAPES = 48
"""Stage shapes that are scored before the descent."""
MAX_DESCENTS = 4


class Scores:
    """Objective integers of strategies with the placement blocks at their lower bounds, memoised."""

    def __init__(self, leaves: Leaves, domains: Domains, bounds: Bounds, utopia: Utopia | None) -> None:
        self.leaves, self.problem, self.domains, self.bounds = leaves, leaves.problem, domains, bounds
        self._weights = utopia.weights(self.problem.objective.latency_weight) if utopia else (0, 0)
        self.known: dict[Strategy, int | None] = {}
        self._tokens = sequence_tokens(self.problem)

    def value(self, strategy: Strategy) -> int | None:
        """Score of a strategy; None when it is illegal, too large, or misses an SLO."""
        if strategy not in self.known:
            self.known[strategy] = self._score(strategy)
        return self.known[strategy]

    def _score(self, strategy: Strategy) -> int | None:
        if violations(self.problem, strategy):
            return None
        bins = strategy.replicas * strategy.attn_dp * strategy.micro_batches
        load = strategy.batch * self._tokens[-1]
        if not self.problem.workload.is_uniform:
            load = max(self._tokens[-1], -(-sum(self._tokens) // bins))
        factor = self.bounds.lambda_ppm(strategy.moe_ep) if self.problem.llm.is_moe else 10**6
        blocks = Blocks(load, factor, even_stages(self.problem.llm.num_layers, strategy.pp))
        figures = evaluate_times(self.leaves, strategy, packing_of(self.problem, strategy), blocks)
        if slo_violations(self.leaves, figures) or memory_violations(stage_ledgers(self.leaves, strategy, blocks)):
            return None
        return objective_value(self.problem.objective.name, figures, self._weights)


def find_incumbent(scores: Scores, shapes: list[tuple[int, int, int, int]]) -> Strategy | None:
    """Best strategy found by scoring a spread of stage shapes and descending one decision at a time."""
    step = max(1, len(shapes) // MAX_SHAPES)
    best: Strategy | None = None
    for shape in shapes[::step]:
        for strategy in _starts(scores, shape):
            best = _better(scores, best, strategy)
    if best is None:
        return None
    for _ in range(MAX_DESCENTS):
        before = best
        for strategy in _neighbours(scores, best, shapes):
            best = _better(scores, best, strategy)
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


def _starts(scores: Scores, shape: tuple[int, int, int, int]) -> Iterator[Strategy]:
    """One-stage strategies of a shape: a single instance, enough for one sequence per rank, as many as fit."""
    problem, domains = scores.problem, scores.domains
    tp, _, _, dp = shape
    for pp in dict.fromkeys((domains.pp[0], domains.pp[len(domains.pp) // 2])):
        most = _most_replicas(problem, tp, dp, pp)
        if most == 0:
            continue
        concurrency = problem.workload.concurrency
        wanted = [most] if concurrency is None else [1, min(most, -(-concurrency // dp)), most]
        if domains.replicas is not None:
            wanted = [domains.replicas]
        if problem.gpus_exact is not None:
            wanted = [problem.gpus_exact // (tp * dp * pp)] if problem.gpus_exact % (tp * dp * pp) == 0 else []
        for replicas in dict.fromkeys(wanted):
            for batch in _batches(scores, replicas * dp * domains.micro_batches[0]):
                yield _strategy(scores, shape, pp, replicas, batch)


def _most_replicas(problem: Problem, tp: int, dp: int, pp: int) -> int:
    packing = Packing("tp-dp-pp", problem.cluster.domain_gpus, tp, dp, pp)
    if packing.instances_per_domain:
        fitting = problem.cluster.num_domains * packing.instances_per_domain
    else:
        fitting = problem.cluster.num_domains // packing.domains_per_instance
    return min(fitting, problem.gpu_budget // (tp * dp * pp))


def _batches(scores: Scores, bins: int) -> list[int]:
    concurrency, values = scores.problem.workload.concurrency, scores.domains.batch
    if concurrency is None:
        return list(values[:: max(1, len(values) // 6)])
    return [b for b in values if b * bins >= concurrency][:1]


def _strategy(scores: Scores, shape: tuple[int, int, int, int], pp: int, replicas: int, batch: int) -> Strategy:
    tp, moe_tp, moe_ep, dp = shape
    d = scores.domains
    exchange = "all_to_all" if moe_ep > 1 and dp > 1 else "gather"
    return Strategy(
        attn_tp=tp, attn_dp=dp, moe_tp=moe_tp, moe_ep=moe_ep, pp=pp, replicas=replicas, batch=batch,
        micro_batches=d.micro_batches[0], prefill_batch=d.prefill_batch[0],
        mesh_order=canonical_mesh(d.mesh_order[-1], tp, dp, pp),
        decode_allreduce="tree" if "tree" in d.decode_allreduce else d.decode_allreduce[0],
        prefill_allreduce=d.prefill_allreduce[0],
        decode_dispatch=exchange if exchange in d.decode_dispatch else d.decode_dispatch[0],  # type: ignore[arg-type]
        prefill_dispatch=exchange if exchange in d.prefill_dispatch else d.prefill_dispatch[0],  # type: ignore[arg-type]
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
