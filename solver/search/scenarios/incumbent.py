"""Good deployments from closed-form scores: the joint program's hint and upper limit. Never part of a claim.

Candidates are what single scenarios like best and the stage shapes with the least joint bounds; the best few are
improved one common decision at a time. Given the common decisions, every scenario chooses its own batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product

import numpy as np

from solver.cost.machine import Floats
from solver.cost.scenarios import Yardstick
from solver.packing import Packing, canonical_mesh
from solver.scenarioplan import COMMON
from solver.search.incumbent import Scores
from solver.search.loop import Loop
from solver.search.scenarios.deployed import Strategies, with_common
from solver.search.shapes import stage_shapes
from solver.search.tables import MODES
from solver.specs.problem import MESH_ORDERS
from solver.strategy import Strategy

Shape = tuple[int, int, int, int]
SEEDS_PER_SCENARIO = 3
"""Strategies of a scenario's own search that are tried for all."""
MAX_SHAPES = 24
"""Stage shapes with the least joint bounds that are tried."""
NEAR = 1.1
"""Deployments that start further above the best known total are not tuned."""
DESCENTS = 3
NEAR_ENOUGH = 1.01
"""One descent is enough when it ends this close to the bound of all shapes."""
MAX_DESCENT_TURNS = 4


@dataclass(frozen=True)
class Scored:
    """A deployment by its score: one strategy a scenario."""

    total: int
    expected: int
    strategies: Strategies

    @property
    def key(self) -> tuple[int, int]:
        """Smaller is better."""
        return (self.total, self.expected)


class JointScores:
    """Totals of deployments with every block at its lower bound, each scenario with its best own knobs."""

    def __init__(self, loops: Sequence[Loop], yardstick: Yardstick) -> None:
        self.loops, self.yardstick = tuple(loops), yardstick
        self.scores = [Scores(lp.leaves, lp.outcome.domains, lp.bounds, None) for lp in loops]
        shapes = [stage_shapes(lp.problem, lp.outcome.domains) for lp in loops]
        self.shapes = [shape for shape in shapes[0] if all(shape in set(other) for other in shapes[1:])]
        self._known: dict[tuple[object, ...], Scored | None] = {}
        self._least: int | None = None
        self.shape_bounds, self._knobs_of_shape = self._shape_bounds()
        """Least total of every stage shape whatever the rest."""
        self.root = float(self.shape_bounds.min(initial=np.inf))

    def best(self, common: Strategy, like: Strategies) -> Scored | None:
        """A deployment of common decisions, every scenario with its best own knobs; None where one finds no legal ones.

        Only those are tuned that come near the best known one with the knobs that they start with.
        """
        key = tuple(getattr(common, name) for name in COMMON)
        if key in self._known:
            return self._known[key]
        start = self._scored(self._start(s, with_common(own, common)) for s, own in enumerate(like))
        if start is not None:
            start = self._scored(self._tuned(s, own) for s, own in enumerate(start.strategies))
        if start is not None and (self._least is None or start.total < self._least):
            self._least = start.total
        self._known[key] = start
        return start

    def _scored(self, found: Iterator[tuple[int, Strategy] | None]) -> Scored | None:
        """The total of all scenarios; None as soon as one has none, or the total is far above the best known one."""
        values, strategies = list(self.yardstick.own), list[Strategy]()
        for s, pair in enumerate(found):
            if pair is None:
                return None
            values[s] = pair[0]
            strategies.append(pair[1])
            if self._least is not None and self.yardstick.total(values) > NEAR * self._least:
                return None
        return Scored(self.yardstick.total(values), self.yardstick.expected(values), tuple(strategies))

    def _start(self, s: int, strategy: Strategy) -> tuple[int, Strategy] | None:
        """The strategy with the first batches that are legal: those that it has, else the smallest ones."""
        for batch, prompts in product(self._batches(s, strategy), (strategy.prefill_batch, 1)):
            started = self._try(s, None, strategy, batch=batch, prefill_batch=prompts)
            if started is not None:
                return started
        return None

    def _batches(self, s: int, strategy: Strategy) -> list[int]:
        """Batches that are worth a look, the strategy's own first; a fixed concurrency leaves the smallest few."""
        concurrency, batches = self.loops[s].problem.workload.concurrency, self.scores[s].domains.batch
        if concurrency is None:
            return list(dict.fromkeys((strategy.batch, batches[0])))
        per_batch = strategy.replicas * strategy.attn_dp * strategy.micro_batches
        return [batch for batch in batches if batch * per_batch >= concurrency][:3]

    def _tuned(self, s: int, strategy: Strategy) -> tuple[int, Strategy] | None:
        """Best batches and all-reduces of one scenario, one decision at a time."""
        domains, best = self.scores[s].domains, self._try(s, None, strategy)
        free = self.loops[s].problem.workload.concurrency is None
        for batch in domains.batch if free else self._batches(s, strategy):
            best = self._try(s, best, strategy, batch=batch)
        for name in ("prefill_batch", "decode_allreduce", "prefill_allreduce"):
            for value in getattr(domains, name):
                best = self._try(s, best, strategy if best is None else best[1], **{name: value})
        return best

    def _try(
        self, s: int, best: tuple[int, Strategy] | None, strategy: Strategy, **changes: int | str
    ) -> tuple[int, Strategy] | None:
        changed = strategy.model_copy(update=changes)
        value = self.scores[s].value(changed)
        return best if value is None or (best is not None and best[0] <= value) else (value, changed)

    # --- joint bounds of the stage shapes -----------------------------------------------------------------------------

    def promising(self) -> Iterator[list[Strategy]]:
        """Stage shapes in the order of their bounds, by each scenario's own best strategy of that shape."""
        for i in np.argsort(self.shape_bounds, kind="stable").tolist():
            if not np.isfinite(self.shape_bounds[i]):
                return
            yield self._knobs_of_shape[i]

    def _shape_bounds(self) -> tuple[Floats, list[list[Strategy]]]:
        """Least total of every stage shape, and for each shape each scenario's own best knobs."""
        least = np.zeros((len(self.scores), len(self.shapes)))
        knobs: list[list[Strategy]] = [[] for _ in self.shapes]
        for s, scores in enumerate(self.scores):
            decode, prefill = scores.cells(self.shapes)
            slo = scores.problem.workload.slo
            for cell, limit in ((decode, slo.tpot), (prefill, slo.ttft)):
                if limit is not None:
                    cell.share[cell.time_ns * (1e6 / scores.leaves.kept_ppm if cell is decode else 1) > limit] = np.inf
            least[s] = decode.share.min(axis=(1, 2)) + prefill.share.min(axis=(1, 2))
            for i in range(len(self.shapes)):
                g, m = np.unravel_index(int(np.argmin(decode.share[i])), decode.share[i].shape)
                p, n = np.unravel_index(int(np.argmin(prefill.share[i])), prefill.share[i].shape)
                knobs[i].append(self._of_shape(s, i, (decode.groups[g], MODES[m]), (prefill.groups[p], MODES[n])))
        parts, own = np.array(self.yardstick.parts, dtype=float), np.array(self.yardstick.own, dtype=float)
        if self.yardstick.over == "expected":
            return parts @ np.maximum(least, own[:, None]), knobs
        return (np.maximum(least - own[:, None], 0) / own[:, None] * self.yardstick.scale).max(axis=0), knobs

    def _of_shape(self, s: int, shape: int, decode: tuple[int, str], prefill: tuple[int, str]) -> Strategy:
        tp, moe_tp, moe_ep, dp = self.shapes[shape]
        seed = self.loops[s].outcome.best
        assert seed is not None
        return seed.strategy.model_copy(
            update={
                "attn_tp": tp, "moe_tp": moe_tp, "moe_ep": moe_ep, "attn_dp": dp, "batch": decode[0],
                "prefill_batch": prefill[0],
                "decode_dispatch": "all_to_all" if decode[1] in ("send", "overlap") else "gather",
                "prefill_dispatch": "all_to_all" if prefill[1] in ("send", "overlap") else "gather",
                "decode_overlap": decode[1] == "overlap", "prefill_overlap": prefill[1] == "overlap",
            }
        )  # fmt: skip


def find_deployment(scores: JointScores) -> Strategies | None:
    """Best strategies found, one a scenario, with common decisions; None when no candidate is legal in all."""
    bests = [loop.outcome.best for loop in scores.loops]
    own = tuple(best.strategy for best in bests if best is not None)
    tried = [scores.best(common, like) for common, like in _seeds(scores, own)]
    starts = sorted({scored.key: scored for scored in tried if scored is not None}.items())
    ended: list[Scored] = []
    for _, start in starts[:DESCENTS]:
        ended.append(_descend(scores, start))
        if ended[-1].total <= NEAR_ENOUGH * scores.root:
            break
    return min(ended, key=lambda scored: scored.key).strategies if ended else None


def _seeds(scores: JointScores, own: Strategies) -> Iterator[tuple[Strategy, Strategies]]:
    for loop in scores.loops:
        ranked = [strategy for _, strategy in loop.outcome.runners_up[:SEEDS_PER_SCENARIO]]
        best = loop.outcome.best
        for common in dict.fromkeys([*([best.strategy] if best else []), *ranked]):
            yield common, own
    for knobs in islice(scores.promising(), MAX_SHAPES):
        like = tuple(knobs)
        for common in dict.fromkeys(like):
            for variant in _resized(scores, common):
                yield variant, like


def _resized(scores: JointScores, common: Strategy) -> Iterator[Strategy]:
    """The strategy with one stage and as many replicas as fit, and as it is."""
    for pp in dict.fromkeys((common.pp, 1)):
        if pp in scores.scores[0].domains.pp:
            most = most_replicas(scores, common, pp)
            order = canonical_mesh(common.mesh_order, common.attn_tp, common.attn_dp, pp)
            for replicas in dict.fromkeys((most, min(common.replicas, most))):
                if replicas:
                    micro = min(common.micro_batches, pp)
                    changes = {"pp": pp, "replicas": replicas, "micro_batches": micro, "mesh_order": order}
                    yield common.model_copy(update=changes)


def most_replicas(scores: JointScores, common: Strategy, pp: int) -> int:
    """Replicas of these degrees that budget and packing allow."""
    problem = scores.scores[0].problem
    packing = Packing("tp-dp-pp", problem.cluster.domain_gpus, common.attn_tp, common.attn_dp, pp)
    fitting = problem.cluster.num_domains // packing.domains_per_instance
    if packing.instances_per_domain:
        fitting = problem.cluster.num_domains * packing.instances_per_domain
    return min(fitting, problem.gpu_budget // (common.stage_gpus * pp))


def _descend(scores: JointScores, start: Scored) -> Scored:
    best = start
    for _ in range(MAX_DESCENT_TURNS):
        before = best
        for common in _neighbours(scores, best.strategies[0]):
            tuned = scores.best(common, best.strategies)
            if tuned is not None and tuned.key < best.key:
                best = tuned
        if best is before:
            break
    return best


def _neighbours(scores: JointScores, best: Strategy) -> Iterator[Strategy]:
    """Strategies that differ in one common decision."""
    domains = scores.scores[0].domains
    for decode in (("gather", False), ("all_to_all", False), ("all_to_all", True)):
        for prefill in (("gather", False), ("all_to_all", False), ("all_to_all", True)):
            if decode[0] in domains.decode_dispatch and prefill[0] in domains.prefill_dispatch:
                yield best.model_copy(
                    update={
                        "decode_dispatch": decode[0], "decode_overlap": decode[1],
                        "prefill_dispatch": prefill[0], "prefill_overlap": prefill[1],
                    }
                )  # fmt: skip
    for pp in domains.pp:
        order = canonical_mesh(best.mesh_order, best.attn_tp, best.attn_dp, pp)
        for micro in dict.fromkeys((min(best.micro_batches, pp), pp)):
            for replicas in dict.fromkeys((best.replicas, most_replicas(scores, best, pp))):
                if replicas:
                    changes = {"pp": pp, "mesh_order": order, "micro_batches": micro, "replicas": replicas}
                    yield best.model_copy(update=changes)
    for order in MESH_ORDERS:
        yield best.model_copy(update={"mesh_order": order})
    for replicas in (best.replicas - 1, best.replicas + 1, best.replicas // 2, best.replicas * 2):
        if replicas > 0:
            yield best.model_copy(update={"replicas": replicas})
    for tp, moe_tp, moe_ep, dp in scores.shapes:
        if tp * dp not in (best.stage_gpus, 2 * best.stage_gpus, best.stage_gpus // 2):
            continue
        shape = best.model_copy(update={"attn_tp": tp, "moe_tp": moe_tp, "moe_ep": moe_ep, "attn_dp": dp})
        order = canonical_mesh(best.mesh_order, tp, dp, best.pp)
        most = most_replicas(scores, shape, best.pp)
        as_many_groups = max(1, best.replicas * best.attn_dp // dp)
        for replicas in dict.fromkeys((min(best.replicas, most), min(as_many_groups, most))):
            if replicas:
                yield shape.model_copy(update={"mesh_order": order, "replicas": replicas})
