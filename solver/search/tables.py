"""Cost tables of one phase as arrays, and the share of the objective that every row costs at least.

The shares turn the product-heavy objectives into one linear inequality, ``objective >= sum of the chosen rows'
shares``: redundant, but what the program proves most of its bound with. Rows whose share already exceeds a known
plan's objective are left out of the model.

A *mode* is how one phase runs its MoE layers:

======== =========================================================================================
reduce   one attention group: every rank has all tokens, one all-reduce over the stage
gather   several groups: tokens are gathered, partial sums reduced back
send     all-to-all dispatch and combine
overlap  the same, with two half batches so that communication hides behind computation
======== =========================================================================================
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from solver.cost.balance import sequence_tokens
from solver.cost.horizon import MAX_OBJECTIVE
from solver.cost.leaves import PPM, Leaves
from solver.cost.machine import Floats, Ints, Phase
from solver.cost.metrics import THROUGHPUT_SCALE, Utopia
from solver.degrees import Domains
from solver.search.bounds import Bounds
from solver.specs.llm import LayerKind
from solver.specs.problem import ALL_REDUCES, AllReduce, ObjectiveName, Problem

Mode = Literal["reduce", "gather", "send", "overlap"]
MODES: tuple[Mode, ...] = ("reduce", "gather", "send", "overlap")
Column = dict[str, Ints]


@dataclass(frozen=True)
class Rates:
    """Objective integers per ns of a phase's time, and per GPU-ns of it per sequence."""

    time: float
    gpu_time: float


def phase_rates(
    name: ObjectiveName, leaves: Leaves, domains: Domains, phase: Phase, utopia: Utopia | None = None
) -> Rates:
    """What a nanosecond of a decode step or of a prefill pass adds to a metric's objective integer at least.

    Derivation (DESIGN 5.8, 5.10; m micro-batches, pp stages, x slots per rank, p prompts per pass, c chunks): a step
    takes at least ``total * max(1, m / pp)``, a round at least ``c * total / pp``. So the GPU time per output token is
    at least ``G * total / (attn_dp * batch)`` and per prefilled request ``c * G * total / (attn_dp * p)``.
    """
    problem = leaves.problem
    workload, osl = problem.workload, problem.workload.osl
    if not problem.runs(phase):
        return Rates(0.0, 0.0)
    kept = leaves.kept_ppm / PPM
    decode = phase == "decode"
    latency = Rates((osl - 1) / kept if decode else 1.0, 0.0)
    efficiency = Rates(0.0, osl / kept if decode else float(leaves.chunks))
    if name == "latency":
        return latency
    if name == "ttft":
        return Rates(0.0 if decode else 1.0, 0.0)
    if name == "tpot":
        return Rates(1 / kept if decode else 0.0, 0.0)
    if name == "efficiency":
        return efficiency
    if name == "throughput":
        if workload.concurrency is None:
            return Rates(0.0, efficiency.gpu_time * THROUGHPUT_SCALE / problem.gpu_budget)
        share = osl / kept if decode else leaves.chunks / max(domains.pp)
        return Rates(THROUGHPUT_SCALE * share / workload.concurrency, 0.0)
    if name == "weighted" and utopia is not None:
        by_latency, by_efficiency = utopia.weights(problem.objective.latency_weight)
        return Rates(by_latency * latency.time, by_efficiency * efficiency.gpu_time)
    return Rates(0.0, 0.0)


@dataclass(frozen=True)
class PhaseRates:
    """Rates of the objective, and of every metric with a limit."""

    objective: Rates
    limits: dict[ObjectiveName, Rates]


def phase_modes(problem: Problem, domains: Domains, phase: Phase) -> tuple[Mode, ...]:
    """Modes that the domains of dispatch and overlap leave."""
    decode = phase == "decode"
    dispatches = domains.decode_dispatch if decode else domains.prefill_dispatch
    overlaps = domains.decode_overlap if decode else domains.prefill_overlap
    modes: list[Mode] = []
    if "gather" in dispatches and False in overlaps:
        modes += ["reduce", "gather"] if problem.llm.is_moe else ["reduce"]
    if "all_to_all" in dispatches:
        modes += ["send"] if False in overlaps else []
        modes += ["overlap"] if True in overlaps else []
    return tuple(modes)


class PhaseTables:
    """Group table by (attn_tp, sequences or prompts per group, mode, all-reduce); expert table by (moe_tp, moe_ep,
    tokens of the stage, ranks of the stage in one domain, mode)."""

    def __init__(
        self, leaves: Leaves, bounds: Bounds, phase: Phase, rates: PhaseRates, modes: tuple[Mode, ...]
    ) -> None:
        self.leaves, self.bounds, self.phase, self.modes = leaves, bounds, phase, modes
        self.rates, self.limit_rates = rates.objective, rates.limits
        self.unit = leaves.step_tokens if phase == "decode" else leaves.chunk_tokens
        self.group: Column = {}
        self.expert: Column = {}

    @property
    def main_kind(self) -> LayerKind:
        """The kind with most layers: stages cannot split its layers evenly when `pp` does not divide them."""
        llm = self.leaves.problem.llm
        return max(llm.kinds, key=llm.layers.count)

    @property
    def shared_limits(self) -> dict[ObjectiveName, Rates]:
        """Limits whose shares the program adds up: rates, which it has as products only."""
        return {metric: rates for metric, rates in self.limit_rates.items() if metric in ("throughput", "efficiency")}

    # --- group table --------------------------------------------------------------------------------------------------

    def build_group(self, attn_tp: tuple[int, ...], groups: tuple[int, ...], algorithms: tuple[AllReduce, ...]) -> None:
        """Rows of the group table; times without the decode core of sequences of different length."""
        leaves = self.leaves
        rows = [
            (tp, g, MODES.index(mode), ALL_REDUCES.index(algorithm))
            for tp in attn_tp
            for g in groups
            for mode in self.modes
            if mode != "overlap" or g * self.unit > 1
            for algorithm in self._useful(tp, algorithms)
        ]
        columns = np.array(rows, dtype=np.int64).reshape(-1, 4)
        tp, group, mode, algorithm = (columns[:, i] for i in range(4))
        tokens = group * self.unit
        overlap = mode == MODES.index("overlap")
        table: Column = {"attn_tp": tp, "group": group, "mode": mode, "allreduce": algorithm}
        table["embedding"] = leaves.ffn.embedding_ns(tp, tokens)
        table["head"] = leaves.ffn.head_ns(self.phase, tp, tokens if self.phase == "decode" else group)
        for inside in (0, 1):
            table[f"hop{inside}"] = leaves.comm.hop_ns(tp, np.full_like(tp, inside), tokens)
        table["sync"] = np.where(overlap, leaves.sync_ns, 0)
        whole, half = self._allreduce(algorithm, tp, tokens), 2 * self._allreduce(algorithm, tp, -(-tokens // 2))
        total: Floats = (table["embedding"] + table["head"] + leaves.pass_host_ns(self.phase)).astype(np.float64)
        spread: Floats = total
        for kind in leaves.problem.llm.kinds:
            layers, more = leaves.problem.llm.layers.count(kind), self._spread_ns(kind, tp, group)
            least = layers * self._kind_columns(table, kind, whole, half)
            total, spread = total + least, spread + least + layers * more
            if kind == self.main_kind:
                table["main_share"] = self._share(least, tp / group, self.rates, least + layers * more)
        table["share"] = self._share(total, tp / group, self.rates, spread)
        for metric, rates in self.shared_limits.items():
            table[f"share.{metric}"] = self._share(total, tp / group, rates, spread)
        self.group = table

    def _useful(self, tp: int, algorithms: tuple[AllReduce, ...]) -> tuple[AllReduce, ...]:
        """Algorithms that can differ in time: one without TP; the hierarchy is the ring inside a domain, and what a
        direct all-reduce is across domains.
        """
        if tp == 1:
            return algorithms[:1]
        inside = tp <= self.leaves.machine.domain_gpus
        same: tuple[AllReduce, AllReduce] = ("hierarchical", "ring") if inside else ("direct", "hierarchical")
        return tuple(a for a in algorithms if a != same[0] or same[1] not in algorithms)

    def _allreduce(self, algorithm: Ints, tp: Ints, tokens: Ints) -> Ints:
        times = np.stack([self.leaves.allreduce_ns(a, tp, tokens) for a in ALL_REDUCES])
        return np.asarray(np.take_along_axis(times, algorithm[None, :], axis=0)[0], dtype=np.int64)

    def _kind_columns(self, table: Column, kind: LayerKind, whole: Ints, half: Ints) -> Floats:
        """Columns of one layer kind (``plain``, and ``busy``, ``sent`` of the half batches); returns its least time."""
        leaves, tp, group, mode = self.leaves, table["attn_tp"], table["group"], table["mode"]
        tokens, name = group * self.unit, f"{kind.attention}.{kind.ffn}"
        core = self._core(kind, tp, group)
        floating = self.phase == "decode" and not leaves.problem.workload.is_uniform
        if floating:
            table[f"core.{kind.attention}"] = core
        counted = np.zeros_like(core) if floating else core
        fixed = leaves.dense_part_ns(kind.attention, kind.ffn, tp, tokens)
        if kind.ffn == "dense":
            table[f"plain.{name}"] = fixed + counted + 2 * whole
            return (fixed + core + 2 * whole).astype(np.float64)
        reduces = np.where(
            mode == MODES.index("reduce"),
            2,
            np.where(mode == MODES.index("gather"), 1, leaves.num_allreduces("moe", "all_to_all")),
        )
        own = np.where(mode == MODES.index("reduce"), 0, leaves.own_ns(tp, tokens))
        overlap = mode == MODES.index("overlap")
        plain = fixed + reduces * whole + own
        table[f"plain.{name}"] = np.where(overlap, 0, plain + counted)
        smaller = -(-tokens // 2)
        second = leaves.second_core_ns(self.phase, kind.attention, tp)
        halves = 2 * leaves.dense_part_ns(kind.attention, kind.ffn, tp, smaller) + second
        table[f"busy.{name}"] = np.where(overlap, halves + counted, 0)
        table[f"sent.{name}"] = np.where(overlap, reduces * half + 2 * leaves.own_ns(tp, smaller), 0)
        return np.where(overlap, (halves + core) * (PPM / leaves.busy_ppm) + leaves.sync_ns, plain + core)

    def _core(self, kind: LayerKind, tp: Ints, group: Ints) -> Ints:
        """Attention core; for sequences of different length in decode its floor at the shortest possible load."""
        leaves = self.leaves
        if self.phase == "prefill":
            return leaves.attention.prefill_core_ns(kind.attention, tp, group)
        if leaves.problem.workload.is_uniform:
            load = group * sequence_tokens(leaves.problem)[-1]
        else:
            load = np.full_like(tp, self.bounds.shortest_load)
        return leaves.attention.decode_core_ns(kind.attention, tp, load, group)

    def _spread_ns(self, kind: LayerKind, tp: Ints, group: Ints) -> Floats:
        """What GPU time pays for the decode core beyond its floor, as time of a row, for sequences of different length.

        Bins of at most `group` sequences hold all tokens: ``load * bins >= tokens``, ``bins >= n / group``, and no load
        is below the longest sequence. The core is a line in the load, so over all bins it takes at least what
        ``n / group`` bins of equal load take.
        """
        workload = self.leaves.problem.workload
        if self.phase == "prefill" or workload.is_uniform:
            return np.zeros(tp.shape)
        tokens = sequence_tokens(self.leaves.problem)
        equal = np.maximum(sum(tokens) / len(tokens) * group, self.bounds.shortest_load)
        token_ps, _ = self.leaves.attention.decode_core_ps(kind.attention, tp)
        return np.asarray(np.maximum(token_ps * (equal - self.bounds.shortest_load) / 1000 - 1, 0.0), dtype=np.float64)

    # --- expert table -------------------------------------------------------------------------------------------------

    def build_expert(
        self, shapes: list[tuple[int, int, int, int]], layout: list[tuple[int, int]], groups: tuple[int, ...]
    ) -> None:
        """Rows of the expert table: every reachable (moe_tp, moe_ep, tokens), locality and mode."""
        reach: dict[tuple[int, int], set[tuple[int, bool]]] = {}
        for _, moe_tp, moe_ep, dp in shapes:
            reach.setdefault((moe_tp, moe_ep), set()).update((dp * g * self.unit, dp == 1) for g in groups)
        members_of: dict[int, list[int]] = {}
        for stage, members in layout:
            members_of.setdefault(stage, []).append(members)
        rows = sorted(
            {
                (moe_tp, moe_ep, tokens, members, MODES.index(mode))
                for (moe_tp, moe_ep), reached in reach.items()
                for tokens, alone in reached
                for members in members_of.get(moe_tp * moe_ep, [])
                for mode in self.modes
                if (mode == "reduce") <= alone and (mode == "gather") <= (not alone)
                if moe_ep > 1 or mode in ("reduce", "gather")
            }
        )
        columns = np.array(rows, dtype=np.int64).reshape(-1, 5)
        tp, ep, count, local, mode = (columns[:, i] for i in range(5))
        leaves = self.leaves
        factors = {int(n): self.bounds.lambda_ppm(int(n)) for n in np.unique(ep)}
        factor = np.array([factors[int(n)] for n in ep], dtype=np.int64)
        table: Column = {"moe_tp": tp, "moe_ep": ep, "tokens": count, "members": local, "mode": mode}
        experts = leaves.expert_ns(tp, ep, count, factor)
        sent = leaves.all_to_all_ns(tp, ep, local, count, factor)
        gathered = leaves.gather_ns(tp * ep, local, count)
        half = -(-count // 2)
        overlap = mode == MODES.index("overlap")
        exchange = np.where(mode == MODES.index("reduce"), 0, np.where(mode == MODES.index("gather"), gathered, sent))
        busy = 2 * leaves.expert_ns(tp, ep, half, factor)
        table["plain"] = np.where(overlap, 0, experts + exchange)
        table["busy"] = np.where(overlap, busy, 0)
        table["sent"] = np.where(overlap, 2 * leaves.all_to_all_ns(tp, ep, local, half, factor), 0)
        least = np.where(overlap, busy * (PPM / leaves.busy_ppm), table["plain"])
        gpus_per_sequence = tp * ep / (count / self.unit)
        whole = leaves.problem.llm.num_moe_layers * least
        table["share"] = self._share(whole, gpus_per_sequence, self.rates)
        for metric, rates in self.shared_limits.items():
            table[f"share.{metric}"] = self._share(whole, gpus_per_sequence, rates)
        main = leaves.problem.llm.layers.count(self.main_kind) if self.main_kind.ffn == "moe" else 0
        table["main_share"] = self._share(main * least, gpus_per_sequence, self.rates)
        self.expert = table

    @staticmethod
    def _share(
        total_ns: Ints | Floats, gpus_per_sequence: Floats, rates: Rates, busy_ns: Ints | Floats | None = None
    ) -> Ints:
        """Objective integers that a row costs at least, rounded down (and no more than an objective may be).

        `busy_ns` is what GPU time pays where it pays more than `total_ns`.
        """
        busy_ns = total_ns if busy_ns is None else busy_ns
        share = rates.time * total_ns + rates.gpu_time * busy_ns * gpus_per_sequence
        return np.floor(np.minimum(share * (1 - 1e-9), float(MAX_OBJECTIVE))).astype(np.int64)


def ratios(numerator: Ints, denominator: Ints) -> list[tuple[int, int]]:
    """Reduced fractions."""
    common = np.gcd(numerator, denominator)
    return list(zip((numerator // common).tolist(), (denominator // common).tolist(), strict=True))


def tables_digest(tables: list[PhaseTables]) -> str:
    """SHA-256 of all cost tables, before rows are left out."""
    digest = hashlib.sha256()
    for phase in tables:
        for table in (phase.group, phase.expert):
            for name in sorted(table):
                digest.update(name.encode())
                digest.update(np.ascontiguousarray(table[name]).tobytes())
    return digest.hexdigest()
