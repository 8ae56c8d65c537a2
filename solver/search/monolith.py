"""One model of a small problem that decides degrees *and* placements: the program with nothing bounded and nothing cut.

Where the program has a lower bound of a placement block, this model has the block's decisions: which replica of which
expert sits on which rank, which sequence goes to which bin, which layers form which stage. The loop must find the same
optimum; a test keeps the two equal. Only for small problems: load factors become rows of the cost tables.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations, pairwise, product
from math import comb
from time import monotonic

import numpy as np
from ortools.sat.python import cp_model

from solver.cost.balance import (
    UNITS,
    expert_counts,
    expert_share,
    load_factor_ppm,
    mean_ppm,
    sequence_tokens,
    slots_per_rank,
)
from solver.cost.leaves import Leaves
from solver.cost.metrics import Utopia
from solver.degrees import domains_of
from solver.errors import SpecError
from solver.search.bounds import Bounds
from solver.search.choice import Choice, Expr
from solver.search.experts import PPM_PERFECT, solve_layers
from solver.search.phase import PhaseVars
from solver.search.program import Program, ProgramResult, SearchLimits
from solver.search.pruning import build_tables
from solver.search.shapes import stage_shapes
from solver.search.stage_vars import StageVars
from solver.search.tables import Column, PhaseTables
from solver.specs.problem import Problem
from solver.strategy import num_slots

MAX_FACTORS = 400
"""Load factors of one expert-parallel degree, and subsets of experts that are weighed to find them."""
MAX_LAYOUTS = 400
"""Stage layouts over all numbers of stages."""
MAX_SEQUENCES = 12


def solve_monolith(problem: Problem, limits: SearchLimits, utopia: Utopia | None = None) -> ProgramResult:
    """Optimum over degrees and placements, by one CP-SAT call; INFEASIBLE when there is no plan.

    Raises
    ------
    SpecError
        The problem is too large for one model.
    """
    domains = domains_of(problem)
    if domains.is_empty or not stage_shapes(problem, domains):
        return ProgramResult("INFEASIBLE", None, 0, 0)
    layouts = sum(comb(problem.llm.num_layers - 1, pp - 1) for pp in domains.pp)
    sequences = len(problem.workload.prompt_lengths)
    if layouts > MAX_LAYOUTS or (sequences > MAX_SEQUENCES and not problem.workload.is_uniform):
        raise SpecError(
            f"{layouts} stage layouts and {sequences} sequences are too many for one model (at most {MAX_LAYOUTS} and "
            f"{MAX_SEQUENCES}); use the loop"
        )
    return Monolith(Leaves(problem), utopia).solve(limits, lambda _value, _bound: None)


@dataclass
class _GivenFactors(Bounds):
    """Bounds that promise nothing but what is given: load factors by moe_ep, and no loads."""

    factors: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.load_cuts = []

    def lambda_ppm(self, moe_ep: int) -> int:
        """The given factor."""
        return self.factors[moe_ep]


class Monolith(Program):
    """The program with the placement blocks inside."""

    def __init__(self, leaves: Leaves, utopia: Utopia | None) -> None:
        super().__init__(leaves, domains_of(leaves.problem), _GivenFactors(leaves.problem), utopia, None)
        if self.degrees.load is not None:
            self._deal_sequences(self.degrees.load)

    # --- layers to stages ---------------------------------------------------------------------------------------------

    def _stages(self) -> StageVars:
        return _LayoutVars(self.model, self.leaves, self.degrees, self.decode, self.prefill)

    # --- sequences to bins --------------------------------------------------------------------------------------------

    def _deal_sequences(self, load: cp_model.IntVar) -> None:
        """Every sequence in one bin (attention-DP rank and micro-batch) of at most `batch`; `load` is the heaviest."""
        model, d, tokens = self.model, self.degrees, sorted(sequence_tokens(self.problem), reverse=True)
        bins = model.new_int_var(1, self.degrees.budget * max(d.micro_batches.values), "num_bins")
        model.add_multiplication_equality(bins, [d.groups, d.micro_batches.variable()])
        # Bins are alike: the i-th sequence opens at most the i-th bin.
        x_sb = [[model.new_bool_var(f"sequence_{s}_in_{b}") for b in range(s + 1)] for s in range(len(tokens))]
        for row in x_sb:
            model.add_exactly_one(row)
        for b in range(len(tokens)):
            members = [(tokens[s], x_sb[s][b]) for s in range(b, len(tokens))]
            model.add(sum(literal for _, literal in members) <= d.batch.variable())
            model.add(sum(length * literal for length, literal in members) <= load)
            for _, literal in members:
                model.add(bins >= b + 1).only_enforce_if(literal)

    # --- experts to ranks ---------------------------------------------------------------------------------------------

    def _tables(self, bounds: Bounds, utopia: Utopia | None, upper: int | None) -> list[PhaseTables]:  # noqa: ARG002
        """Cost tables with a row for every load factor that a placement may have."""
        d = self.degrees
        self.root_bound, self.tables_digest = 0, ""
        if not d.is_moe:
            return build_tables(self.leaves, self.domains, bounds, utopia, d.shapes, d.layout_rows)
        possible = {moe_ep: possible_factors(self.problem, moe_ep) for moe_ep in d.moe_ep.values}
        whole: list[PhaseTables] = []
        parts: list[list[Column]] = [[], []]
        for turn in range(max(len(values) for values in possible.values())):
            given = {moe_ep: values[min(turn, len(values) - 1)] for moe_ep, values in possible.items()}
            fixed = _GivenFactors(self.problem, factors=given)
            whole = build_tables(self.leaves, self.domains, fixed, utopia, d.shapes, d.layout_rows)
            for part, table in zip(parts, whole, strict=True):
                expert = table.expert
                expert["factor"] = np.array([given[int(n)] for n in expert["moe_ep"]], dtype=np.int64)
                new = np.array([turn < len(possible[int(n)]) for n in expert["moe_ep"]])
                part.append({name: column[new] for name, column in expert.items()})
        for part, table in zip(parts, whole, strict=True):
            table.expert = {name: np.concatenate([piece[name] for piece in part]) for name in part[0]}
        self._place_experts(sorted({value for values in possible.values() for value in values}))
        return whole

    def _place_experts(self, values: list[int]) -> None:
        """Replicas of every distinct MoE layer on ranks; `factor` is the mean of the layers' max / mean loads."""
        model, d = self.model, self.degrees
        d.factor = Choice(model, "factor", values)
        factors = [self._place_layer(layer, counts) for layer, counts in enumerate(expert_counts(self.problem))]
        model.add(len(factors) * d.factor.number() >= sum(factors))

    def _place_layer(self, layer: int, counts_e: tuple[int, ...]) -> cp_model.IntVar:
        """Load factor (ppm) of one layer, at least that of the chosen placement."""
        model, moe_ep = self.model, self.degrees.moe_ep
        slots, total = num_slots(self.problem.llm, self.problem.redundant_experts), sum(counts_e)
        ranks = max(moe_ep.values)
        most = min(ranks, 1 + slots - len(counts_e))
        x_er = [[model.new_bool_var(f"{layer}.{e}_on_{r}") for r in range(ranks)] for e in range(len(counts_e))]
        loads: list[Expr] = [0] * ranks
        for e, count in enumerate(counts_e):
            replicas: Choice[int] = Choice(model, f"{layer}.{e}_replicas", range(1, most + 1))
            model.add(sum(x_er[e]) == replicas.number())
            for r in range(ranks):
                for number in replicas.values:
                    both = model.new_bool_var(f"{layer}.{e}_on_{r}_of_{number}")
                    model.add_bool_or([~x_er[e][r], ~replicas.is_(number), both])
                    loads[r] = loads[r] + expert_share(count, total, number) * both
        busiest = model.new_int_var(0, 2 * UNITS, f"{layer}.busiest")
        for r in range(ranks):
            held = [slots_per_rank(slots, n)[r] if r < n else 0 for n in moe_ep.values]
            model.add(sum(row[r] for row in x_er) == moe_ep.pick(held))
            model.add(loads[r] <= busiest)
        factor = model.new_int_var(PPM_PERFECT, 2 * PPM_PERFECT * ranks, f"{layer}.factor")
        for n in moe_ep.values:
            model.add(1000 * factor >= n * busiest).only_enforce_if(moe_ep.is_(n))
        return factor


def possible_factors(problem: Problem, moe_ep: int) -> list[int]:
    """Every mean load factor (ppm) that the best placement on `moe_ep` ranks may have, and some that none has.

    The busiest rank holds some set of experts, each with some number of replicas; sets lighter than the mean or heavier
    than a known placement's busiest rank are left out.

    Raises
    ------
    SpecError
        There are too many.
    """
    slots = num_slots(problem.llm, problem.redundant_experts)
    capacities = slots_per_rank(slots, moe_ep)
    sums = {0}
    rows = expert_counts(problem)
    for counts_e in rows:
        most = min(moe_ep, 1 + slots - len(counts_e))
        subsets = sum(comb(len(counts_e), held) * most**held for held in set(capacities))
        if subsets > 50 * MAX_FACTORS:
            raise SpecError(f"{subsets} possible contents of a rank are too many for one model; use the loop")
        known = load_factor_ppm(solve_layers([counts_e], capacities, monotonic())[0].busiest, moe_ep)
        factors = {load_factor_ppm(load, moe_ep) for load in _rank_loads(counts_e, set(capacities), most)}
        factors = {factor for factor in factors if factor < known} | {known}
        sums = {before + factor for before in sums for factor in factors}
        if len(sums) > MAX_FACTORS:
            raise SpecError(f"{len(sums)} possible load factors are too many for one model; use the loop")
    return sorted({mean_ppm([total] + [0] * (len(rows) - 1)) for total in sums})


def _rank_loads(counts_e: tuple[int, ...], capacities: set[int], most: int) -> set[int]:
    """Load of every possible content of a rank, in billionths."""
    total = sum(counts_e)
    loads = set()
    for held in capacities:
        for experts in combinations(range(len(counts_e)), held):
            for replicas in product(range(1, most + 1), repeat=held):
                shares = (expert_share(counts_e[e], total, n) for e, n in zip(experts, replicas, strict=True))
                loads.add(sum(shares))
    return loads


class _LayoutVars(StageVars):
    """Stages by exact layouts: one literal per layout, one per stage that some layout has."""

    def _split(self, decode: PhaseVars, prefill: PhaseVars) -> None:
        model, d, num_layers = self.model, self.d, self.llm.num_layers
        layouts: list[tuple[int, ...]] = []
        for pp in d.pp.values:
            cuts = combinations(range(1, num_layers), pp - 1)
            layouts += [(0, *inner, num_layers) for inner in cuts]
        layout: Choice[tuple[int, ...]] = Choice(model, "layout", layouts)
        for pp in d.pp.values:
            of_pp = [layout.is_(ends) for ends in layouts if len(ends) == pp + 1]
            model.add(cp_model.LinearExpr.sum(of_pp) == d.pp.is_(pp))
        stages = sorted({stage for ends in layouts for stage in pairwise(ends)})
        for first, end in stages:
            given = model.new_bool_var(f"stage_{first}_{end}")
            for ends in layouts:
                if (first, end) in pairwise(ends):
                    model.add_implication(layout.is_(ends), given)
            counts = self._counts(first, end - first)
            for slow, times in ((self.slowest["decode"], decode), (self.slowest["prefill"], prefill)):
                time: Expr = (times.embedding if first == 0 else 0) + (times.head if end == num_layers else 0)
                for kind, count in counts.items():
                    time = time + count * times.layer[kind]
                model.add(slow >= time).only_enforce_if(given)
            self._fits(counts, first=first == 0, last=end == num_layers, given=[given])
