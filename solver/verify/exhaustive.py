"""Every strategy of the degree space again, by vectorised arithmetic: is any better than the claim?

Each configuration gets a valid lower bound of its objective integer: exact layer times, and placement-dependent parts
at the lower bounds of :mod:`solver.verify.blocks`. Knobs are separable: given the degrees, all-reduce, dispatch and
overlap of decode enter the metrics only through the decode step, and those of prefill only through its path and its
slowest stage; so each phase takes the minimum over its own knobs (where an engine has one switch for both phases, for
each position of the switch). What stays below the claim is refined (exact split of
the layers, blocks searched) and finally evaluated with a placement in hand.

Replicas: more of them never lengthen a step (the bins get lighter, the layers stay the same), so latency, TTFT, TPOT
and throughput need only the most that fit. For `gpus`, `efficiency` and `weighted`, and under a least efficiency, the
first bound combines the loads of the most replicas with the GPUs of the fewest; survivors are then taken apart replica
by replica, up to one bin a sequence, beyond which loads no longer fall. With free concurrency loads do not depend on
them, efficiency neither, and a least throughput asks for the most (or, of `gpus`, for each number in turn).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np

from solver.cost.balance import batches_held, resident_tokens, sequence_tokens
from solver.cost.horizon import beyond_times
from solver.cost.leaves import PPM, Leaves
from solver.cost.limits import limits_of
from solver.cost.machine import Ints
from solver.cost.metrics import THROUGHPUT_SCALE, Utopia
from solver.degrees import domains_of
from solver.specs.problem import MESH_ORDERS, ObjectiveName, Problem
from solver.strategy import Strategy
from solver.verify.blocks import BlockBounds
from solver.verify.legal import Rows, rows_of
from solver.verify.realise import Judge, Realised, realise
from solver.verify.stages import Cut
from solver.verify.tables import HUGE_NS, Bools, Layouts, PhaseTable, per_token_ns

Switch = tuple[str | bool, ...]
HUGE = 2**61
"""Stands for "infeasible" and for products that leave int64; a bound is never rounded up to it."""
MAX_SURVIVORS = 2**17
"""Configurations below the claim that are kept, least bound first."""
BATCH = 4096
"""Survivors refined at once."""
FIRST_BATCH = 64
"""Few at first: the first one that can be placed usually outdoes all others."""
MAX_SEARCHED_BLOCKS = 64
"""Placement blocks searched per batch of survivors before the rest of them are looked at one by one."""
CELLS = 2**19
"""Configurations evaluated at once; bounds the memory."""
FEWER_IS_BETTER: tuple[ObjectiveName, ...] = ("gpus", "efficiency", "weighted")
"""Objectives that count GPUs, so that more replicas are not free."""


@dataclass(frozen=True)
class Selection:
    """Configurations as broadcastable arrays: row, group index of decode and prefill, micro-batches, replicas."""

    row: Ints
    batch: Ints
    prompts: Ints
    micro: Ints
    load_replicas: Ints
    gpu_replicas: Ints


@dataclass(frozen=True)
class Survivors:
    """Configurations whose lower bound is below the claim; flat arrays."""

    bound: Ints
    pp: Ints
    row: Ints
    batch: Ints
    prompts: Ints
    micro: Ints
    least: Ints
    most: Ints

    def take(self, index: Ints | Bools) -> Survivors:
        """The chosen ones."""
        return Survivors(*(getattr(self, f.name)[index] for f in fields(self)))


@dataclass(frozen=True)
class Outcome:
    """`best` beats the claim with a placement in hand; `open` has a bound below it that could not be closed."""

    best: Realised | None
    open: Strategy | None
    open_bound: int


class Enumeration:
    """The degree space of one problem."""

    def __init__(self, problem: Problem, without: tuple[tuple[int, ...], ...] = ()) -> None:
        """`without`: degrees of an instance (:attr:`Strategy.degrees`) that are left out of the space."""
        self.problem, self.leaves, self.blocks = problem, Leaves(problem), BlockBounds(problem)
        self.domains = domains_of(problem)
        llm = problem.llm
        self.kinds = llm.kinds
        self.kind_of_layer = [self.kinds.index(kind) for kind in llm.layers]
        self.rows = (
            {}
            if self.domains.is_empty
            else {pp: rows_of(problem, self.domains, pp).without(without) for pp in self.domains.pp}
        )
        self.batches = np.array(self.domains.batch, dtype=np.int64)
        self.prompts = np.array(self.domains.prefill_batch, dtype=np.int64)
        self.num_sequences = problem.workload.concurrency
        if any(len(rows) for rows in self.rows.values()):
            self._build_tables()

    def _build_tables(self) -> None:
        columns = [
            np.concatenate([getattr(rows, name) for rows in self.rows.values()])
            for name in ("attn_tp", "attn_dp", "moe_tp", "moe_ep", "members")
        ]
        distinct, index = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
        ends = np.cumsum([len(rows) for rows in self.rows.values()])[:-1]
        self.layout = dict(zip(self.rows, np.split(index.ravel(), ends), strict=True))
        self.layouts = Layouts(*(distinct[:, column] for column in range(5)))
        self._refresh()

    def _refresh(self) -> None:
        """Layer times at the load factors known now."""
        lambda_u = np.array([self._factor(ep) for ep in self.layouts.moe_ep.tolist()], dtype=np.int64)
        self.decode = PhaseTable(self.leaves, self.domains, "decode", self.layouts, self.batches.tolist(), lambda_u)
        self.prefill = PhaseTable(self.leaves, self.domains, "prefill", self.layouts, self.prompts.tolist(), lambda_u)

    @property
    def _switches(self) -> list[Switch]:
        """What both phases must have in common: the bound is the least over these."""
        return sorted({self.decode.switch(s) for s in self.decode.settings} & {
            self.prefill.switch(s) for s in self.prefill.settings
        })  # fmt: skip

    def _factor(self, moe_ep: int) -> int:
        return self.blocks.lambda_ppm(moe_ep) if self.problem.llm.is_moe else PPM

    # --- counting and walking -----------------------------------------------------------------------------------------

    @property
    def configurations(self) -> int:
        """Legal joint assignments of degrees, replicas and knobs; memory and SLOs are not applied."""
        total = 0
        counts = [(self.decode.num_settings(switch), self.prefill.num_settings(switch)) for switch in self._switches]
        if self.problem.role == "decode":  # the other phase follows
            counts = [(decode, np.ones_like(prefill)) for decode, prefill in counts]
        elif self.problem.role == "prefill":
            counts = [(np.ones_like(decode), prefill) for decode, prefill in counts]
        for pp, rows, micro, selection in self._chunks():
            layout = self.layout[pp][selection.row]
            knobs = sum(
                decode[layout, selection.batch] * prefill[layout, selection.prompts] for decode, prefill in counts
            )
            least, most = self._replicas(rows, selection, micro)
            fits = self._prompts_fit(selection)
            total += int((np.maximum(0, most - least + 1) * knobs * fits).sum())
        return total

    def _chunks(self) -> Iterator[tuple[int, Rows, int, Selection]]:
        """(pp, rows, micro-batches, grid of configurations) of bounded size; replicas are filled in later."""
        cells = max(1, CELLS // (len(self.batches) * len(self.prompts)))
        zero = np.zeros((1, 1, 1), dtype=np.int64)
        for pp, rows in self.rows.items():
            for micro in (m for m in self.domains.micro_batches if m <= pp):
                for first in range(0, len(rows), cells):
                    yield (
                        pp,
                        rows,
                        micro,
                        Selection(
                            np.arange(first, min(first + cells, len(rows)), dtype=np.int64)[:, None, None],
                            np.arange(len(self.batches), dtype=np.int64)[None, :, None],
                            np.arange(len(self.prompts), dtype=np.int64)[None, None, :],
                            zero + micro,
                            zero,
                            zero,
                        ),
                    )

    def _replicas(self, rows: Rows, selection: Selection, micro: Ints | int) -> tuple[Ints, Ints]:
        """Fewest and most replicas with enough slots for the concurrency (none when fewest > most)."""
        least, most = rows.least[selection.row], rows.most[selection.row]
        if self.num_sequences is not None:
            slots = rows.attn_dp[selection.row] * micro * self.batches[selection.batch]
            least = np.maximum(least, -(-self.num_sequences // slots))
        return least, most

    def replica_range(self, pp: int, selection: Selection) -> tuple[Ints, Ints]:
        """Fewest and most replicas of configurations with `pp` stages."""
        return self._replicas(self.rows[pp], selection, selection.micro)

    def _prompts_fit(self, selection: Selection) -> Bools:
        prompts, slots = self.prompts[selection.prompts], self.batches[selection.batch] * selection.micro
        fits: Bools = prompts <= slots if self.problem.runs("decode") else prompts == slots
        return fits

    # --- one bound for every configuration ----------------------------------------------------------------------------

    def bounds(self, pp: int, at: Selection, name: ObjectiveName, weights: tuple[int, int], *, refine: bool) -> Ints:
        """Lower bound of the objective integer, ``HUGE`` where memory or an SLO cannot hold."""
        rows, leaves = self.rows[pp], self.leaves
        batch = self.batches[at.batch]
        bins = at.load_replicas * rows.attn_dp[at.row] * at.micro
        load = self.blocks.load(bins, batch)
        vocabulary = leaves.ffn.vocabulary_kib(rows.attn_tp[at.row])
        # A single stage holds tied embeddings once; of several stages the first and the last hold their own copy.
        last = 0 * vocabulary if pp == 1 and self.problem.llm.tie_embeddings else vocabulary
        layers_kib, rank_kib = self._memory(pp, at, load)
        limit = leaves.memory.capacity_kib - rank_kib
        cut = Cut(self.kind_of_layer, pp, (layers_kib, (vocabulary, last)), limit, refine=refine)
        best: Ints = np.full((1, 1, 1), HUGE, dtype=np.int64)
        for switch in self._switches:
            step = per_token_ns(leaves, np.minimum(self._step(rows, at, load, cut, switch), HUGE_NS))
            best = np.minimum(best, self._bound(rows, at, (name, weights), step, self._passes(rows, at, cut, switch)))
        return np.where(cut.overfull, HUGE, best)

    def _bound(
        self,
        rows: Rows,
        at: Selection,
        goal: tuple[ObjectiveName, tuple[int, int]],
        step: Ints,
        passes: tuple[Ints, Ints],
    ) -> Ints:
        """Objective of a decode step and of the prefill passes; ``HUGE`` where an SLO or the horizon cannot hold."""
        workload, batch, (ttft, round_ns) = self.problem.workload, self.batches[at.batch], passes
        rounds = -(-batch * at.micro // self.prompts[at.prompts])
        tpot = step + -(-(rounds - 1) * round_ns // workload.osl)
        latency = ttft + _times(tpot, workload.osl - 1)
        cycle = _times(step, workload.osl) + rounds * round_ns
        values = _Values(ttft, tpot, latency, cycle)
        value = self._objective(rows, at, *goal, values)
        infeasible = (step >= HUGE_NS) | (ttft >= HUGE_NS) | ~self._prompts_fit(at)
        infeasible = infeasible | beyond_times(tpot, round_ns // self.leaves.chunks, latency)
        for limit in limits_of(self.problem):
            infeasible = infeasible | (self._objective(rows, at, limit.metric, (0, 0), values) > limit.at_most)
        return np.where(infeasible, HUGE, np.minimum(value, HUGE))

    def _step(self, rows: Rows, at: Selection, load: Ints, cut: Cut, switch: Switch) -> Ints:
        """Decode step, the best of its knob settings."""
        if not self.problem.runs("decode"):
            return np.zeros((1, 1, 1), dtype=np.int64)
        leaves, pp, layout = self.leaves, rows.pp, self.layout[rows.pp][at.row]
        tp, inside, batch = rows.attn_tp[at.row], rows.inside[at.row], self.batches[at.batch]
        tokens, head_rows = self.decode.tokens[at.batch], self.decode.rows[at.batch]
        kinds = dict.fromkeys(kind.attention for kind in self.kinds)
        core = {kind: leaves.attention.decode_core_ns(kind, tp, load, batch) for kind in kinds}
        ends = (leaves.ffn.embedding_ns(tp, tokens), leaves.ffn.head_ns("decode", tp, head_rows))
        hops = (pp - 1) * leaves.comm.hop_ns(tp, inside, tokens) + leaves.comm.return_ns(inside) if pp > 1 else 0
        best: Ints = np.full((1, 1, 1), HUGE_NS, dtype=np.int64)
        for setting in (s for s in self.decode.settings if self.decode.switch(s) == switch):
            cell = (layout, at.batch)
            times = [self.decode.layer_ns(setting, kind, cell, core[kind.attention]) for kind in self.kinds]
            total, slowest = cut.apply(times, ends)
            step = np.maximum(total + hops, at.micro * slowest) + leaves.host_ns
            best = np.minimum(best, np.where(setting.legal_ug[cell], step, HUGE_NS))
        return best

    def _passes(self, rows: Rows, at: Selection, cut: Cut, switch: Switch) -> tuple[Ints, Ints]:
        """TTFT and round of prefills, each the best of the prefill knob settings."""
        if not self.problem.runs("prefill"):
            nothing: Ints = np.zeros((1, 1, 1), dtype=np.int64)
            return nothing, nothing
        leaves, pp, layout = self.leaves, rows.pp, self.layout[rows.pp][at.row]
        tp, inside, prompts = rows.attn_tp[at.row], rows.inside[at.row], self.prompts[at.prompts]
        tokens, head_rows = self.prefill.tokens[at.prompts], self.prefill.rows[at.prompts]
        kinds = dict.fromkeys(kind.attention for kind in self.kinds)
        core = {kind: leaves.attention.prefill_core_ns(kind, tp, prompts) for kind in kinds}
        ends = (leaves.ffn.embedding_ns(tp, tokens), leaves.ffn.head_ns("prefill", tp, head_rows))
        hops = (pp - 1) * leaves.comm.hop_ns(tp, inside, tokens) if pp > 1 else 0
        path: Ints = np.full((1, 1, 1), HUGE_NS, dtype=np.int64)
        slow: Ints = path
        for setting in (s for s in self.prefill.settings if self.prefill.switch(s) == switch):
            cell = (layout, at.prompts)
            times = [self.prefill.layer_ns(setting, kind, cell, core[kind.attention]) for kind in self.kinds]
            total, slowest = cut.apply(times, ends)
            legal = setting.legal_ug[cell]
            ttft = total + hops + (leaves.chunks - 1) * slowest + leaves.chunks * leaves.prefill_host_ns
            ttft = ttft + leaves.transfer_ns
            path = np.minimum(path, np.where(legal, ttft, HUGE_NS))
            slow = np.minimum(slow, np.where(legal, leaves.chunks * (slowest + leaves.prefill_host_ns), HUGE_NS))
        return path, slow

    def _memory(self, pp: int, at: Selection, load: Ints) -> tuple[list[Ints], Ints]:
        """KiB of one layer by kind, and of a rank's part that does not depend on the layers."""
        rows, memory = self.rows[pp], self.leaves.memory
        tp, moe_tp, moe_ep = rows.attn_tp[at.row], rows.moe_tp[at.row], rows.moe_ep[at.row]
        batch = self.batches[at.batch]
        remaining = resident_tokens(self.problem, 0, 1, 1)
        batches = at.micro if self.problem.runs("decode") else 0 * at.micro + batches_held(self.problem, 1, pp)
        tokens, sequences = batches * (load + batch * remaining), batch * batches
        held = []
        for kind in self.kinds:
            weights = memory.attention_kib(kind, tp) + memory.norm_router_kib(kind)
            if kind.ffn == "moe":
                weights = weights + memory.experts_kib(kind, moe_tp, moe_ep)
            weights = weights + memory.ffn_kib(kind, tp)
            held.append(weights + self.leaves.attention.cache_kib(kind.attention, tp, tokens, sequences))
        work = memory.decode_workspace_kib(tp, batch) + memory.prefill_workspace_kib(tp, self.prompts[at.prompts])
        return held, work + memory.constant_kib

    def _objective(self, rows: Rows, at: Selection, name: ObjectiveName, weights: tuple[int, int], v: _Values) -> Ints:
        width = rows.pp * rows.stage_gpus[at.row]
        slots = rows.attn_dp[at.row] * at.micro * self.batches[at.batch]
        if name == "gpus":
            return width * at.gpu_replicas + 0 * v.cycle
        if name == "throughput":
            active = at.load_replicas * slots if self.num_sequences is None else self.num_sequences
            return -(-_times(v.cycle, THROUGHPUT_SCALE) // active)
        if name in ("latency", "ttft", "tpot"):
            return {"latency": v.latency, "ttft": v.ttft, "tpot": v.tpot}[name]
        if self.num_sequences is None:  # all slots are active: replicas cancel
            efficiency = -(-_times(v.cycle, width) // slots)
        else:
            efficiency = -(-_times(v.cycle, width * at.gpu_replicas) // self.num_sequences)
        if name == "efficiency":
            return efficiency
        return _times(v.latency, weights[0]) + _times(efficiency, weights[1])

    # --- below a claim ------------------------------------------------------------------------------------------------

    def below(self, name: ObjectiveName, claim: int, weights: tuple[int, int], *, first: bool) -> Outcome:
        """Look for a configuration whose objective integer is below `claim`; `first` stops at the first one found."""
        found, dropped = self._survivors(name, claim, weights)
        best: Realised | None = None
        stuck: Strategy | None = None
        stuck_bound = HUGE
        limit, start, size = claim, 0, FIRST_BATCH
        while start < len(found.bound) and int(found.bound[start]) < limit:
            some = found.take(np.arange(start, min(start + size, len(found.bound))))
            batch = self._refined(some, name, limit, weights)
            start, size = start + size, BATCH
            for candidate, bound in self._candidates(batch):
                if bound >= limit:
                    break
                result = realise(Judge(self.leaves, self.blocks, self.domains, name, weights), candidate)
                if result is None:
                    continue
                if result.upper is not None and result.upper < limit:
                    best, limit = result, result.upper
                if result.lower < min(limit, stuck_bound):
                    stuck, stuck_bound = candidate, result.lower
                if first and best is not None:
                    return Outcome(best, None, HUGE)
        if dropped < limit and stuck is None:
            stuck_bound = dropped
        return Outcome(best, stuck if stuck_bound < limit else None, stuck_bound)

    def minimum(self, name: ObjectiveName, weights: tuple[int, int] = (0, 0)) -> Realised | None:
        """The best configuration of the whole space; None when there is none."""
        return self.below(name, HUGE, weights, first=False).best

    def utopia(self) -> Utopia | None:
        """Best latency and best inverse efficiency, for the objective ``weighted``."""
        latency, efficiency = self.minimum("latency"), self.minimum("efficiency")
        if latency is None or efficiency is None:
            return None
        return Utopia(latency.lower, efficiency.lower)

    def _survivors(self, name: ObjectiveName, claim: int, weights: tuple[int, int]) -> tuple[Survivors, int]:
        """Configurations bounded below the claim, best first, and the least bound of those dropped for memory."""
        kept: list[Survivors] = []
        dropped, limit = HUGE, min(claim, HUGE)
        for pp, rows, micro, grid in self._chunks():
            least, most = self._replicas(rows, grid, micro)
            at = Selection(grid.row, grid.batch, grid.prompts, grid.micro, np.maximum(most, 1), np.maximum(least, 1))
            value = self.bounds(pp, at, name, weights, refine=False)
            hits = np.nonzero((value < limit) & (least <= most))
            if not len(hits[0]):
                continue
            shape = np.broadcast_shapes(value.shape, least.shape)
            columns = (value, np.int64(pp), grid.row, grid.batch, grid.prompts, grid.micro, least, most)
            kept.append(Survivors(*(np.broadcast_to(column, shape)[hits] for column in columns)))
            if sum(len(part.bound) for part in kept) > 2 * MAX_SURVIVORS:
                whole = _joined(kept)
                kept = [whole.take(np.arange(MAX_SURVIVORS))]
                dropped = min(dropped, int(whole.bound[MAX_SURVIVORS]))
        return _joined(kept), dropped

    def _refined(self, batch: Survivors, name: ObjectiveName, claim: int, weights: tuple[int, int]) -> Survivors:
        """The same with exact splits, every number of replicas, and blocks searched; those still below the claim."""
        batch = self._again(self._by_replica(batch, name, claim), name, claim, weights)
        rose = False
        for moe_ep, bins, cap in self._distinct_blocks(batch):
            before = self._factor(moe_ep) + self._load_bound(bins, cap)
            if self.problem.llm.is_moe:
                self.blocks.lambda_interval(moe_ep)
            self.blocks.load_interval(bins, cap)
            rose = rose or self._factor(moe_ep) + self._load_bound(bins, cap) > before
        if not rose:
            return batch
        self._refresh()
        return self._again(batch, name, claim, weights)

    def _load_bound(self, bins: int, batch: int) -> int:
        return int(self.blocks.load(np.asarray(bins, dtype=np.int64), np.asarray(batch, dtype=np.int64)))

    def _distinct_blocks(self, batch: Survivors) -> list[tuple[int, int, int]]:
        """(moe_ep, bins, cap) of the survivors with the least bounds."""
        found: dict[tuple[int, int, int], None] = {}
        for candidate, _ in self._candidates(batch.take(np.arange(min(len(batch.bound), BATCH)))):
            bins = candidate.replicas * candidate.attn_dp * candidate.micro_batches
            found[candidate.moe_ep, bins, candidate.batch] = None
            if len(found) >= MAX_SEARCHED_BLOCKS:
                break
        return list(found)

    def _by_replica(self, batch: Survivors, name: ObjectiveName, claim: int) -> Survivors:
        """One configuration per number of replicas worth looking at."""
        least, most = batch.least, batch.most
        slo, free = self.problem.workload.slo, self.num_sequences is None
        fewer = name in FEWER_IS_BETTER or (slo.min_efficiency is not None and not free)
        more = slo.min_throughput is not None and free  # the limit asks for replicas
        if not fewer or (more and name != "gpus"):
            return self._with_replicas(batch, np.arange(len(most)), most)
        if more:  # as many as are better than the claim
            width = self._of_row(batch, "stage_gpus") * batch.pp
            enough = (claim - 1) // width
        elif self.blocks.is_uniform:
            return self._with_replicas(batch, np.arange(len(least)), least)
        else:
            enough = -(-len(sequence_tokens(self.problem)) // (self._of_row(batch, "attn_dp") * batch.micro))
            enough = np.maximum(least, enough)
        count = np.maximum(0, np.minimum(most, enough) - least + 1)
        index = np.repeat(np.arange(len(count)), count)
        offset = np.arange(len(index)) - np.repeat(np.cumsum(count) - count, count)
        return self._with_replicas(batch, index, batch.least[index] + offset)

    def _of_row(self, batch: Survivors, column: str) -> Ints:
        """A column of the rows that the survivors belong to."""
        pairs = zip(batch.pp.tolist(), batch.row.tolist(), strict=True)
        return np.array([int(getattr(self.rows[pp], column)[row]) for pp, row in pairs], dtype=np.int64)

    @staticmethod
    def _with_replicas(batch: Survivors, index: Ints, replicas: Ints) -> Survivors:
        chosen = batch.take(index)
        return replace(chosen, least=replicas, most=replicas)

    def _again(self, batch: Survivors, name: ObjectiveName, claim: int, weights: tuple[int, int]) -> Survivors:
        """Refined bounds of single configurations; those still below the claim, best first."""
        parts = []
        for pp in np.unique(batch.pp).tolist():
            part = batch.take(batch.pp == pp)
            for start in range(0, len(part.bound), BATCH):
                some = part.take(np.arange(start, min(start + BATCH, len(part.bound))))
                columns = (some.row, some.batch, some.prompts, some.micro, some.most, some.most)
                at = Selection(*(column[:, None, None] for column in columns))
                value = self.bounds(pp, at, name, weights, refine=True).reshape(-1)
                parts.append(replace(some, bound=value).take(value < claim))
        return _joined(parts)

    def _candidates(self, batch: Survivors) -> Iterator[tuple[Strategy, int]]:
        """Survivors as strategies (knobs left open) with their bounds."""
        for i in range(len(batch.bound)):
            rows, row = self.rows[int(batch.pp[i])], int(batch.row[i])
            yield (
                Strategy(
                    attn_tp=int(rows.attn_tp[row]),
                    attn_dp=int(rows.attn_dp[row]),
                    moe_tp=int(rows.moe_tp[row]),
                    moe_ep=int(rows.moe_ep[row]),
                    pp=rows.pp,
                    replicas=int(batch.most[i]),
                    micro_batches=int(batch.micro[i]),
                    batch=int(self.batches[batch.batch[i]]),
                    prefill_batch=int(self.prompts[batch.prompts[i]]),
                    mesh_order=MESH_ORDERS[int(rows.order[row])],
                ),
                int(batch.bound[i]),
            )


@dataclass(frozen=True)
class _Values:
    """Metrics of configurations, ns."""

    ttft: Ints
    tpot: Ints
    latency: Ints
    cycle: Ints


def _times(value: Ints, factor: Ints | int) -> Ints:
    """``value * factor``, stopped at ``HUGE`` (which keeps a lower bound valid)."""
    if isinstance(factor, int) and factor == 0:
        return 0 * value
    return np.where(value > HUGE // np.maximum(factor, 1), HUGE, value * factor)


def _joined(parts: list[Survivors]) -> Survivors:
    """All survivors, least bound first."""
    if not parts:
        return Survivors(*(np.zeros(0, dtype=np.int64) for _ in fields(Survivors)))
    whole = Survivors(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Survivors)))
    return whole.take(np.argsort(whole.bound, kind="stable"))
