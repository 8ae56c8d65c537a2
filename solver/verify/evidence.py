"""What the judge recomputes from a plan's placement, once, for all rules."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from solver.cost.balance import expert_counts, load_factor_ppm, mean_ppm, rank_loads, sequence_tokens
from solver.cost.layers import Blocks, PhaseTimes
from solver.cost.leaves import PPM, Leaves
from solver.cost.metrics import Figures, figures_of
from solver.packing import Packing
from solver.plan import Placement, Plan
from solver.specs.problem import Problem
from solver.strategy import Strategy, packing_of

MAX_CLAIMED = 2**40
"""A claimed load or load factor that cannot be recomputed is believed up to here (a finding says so anyway)."""


@dataclass(frozen=True)
class Evidence:
    """A plan with its strategy; load factor and load are recomputed where the placement allows, else as claimed."""

    plan: Plan
    strategy: Strategy
    load_tokens: int
    lambda_ppm: int
    full: bool = False
    """Every rank is to be looked at, not a sample."""

    @property
    def problem(self) -> Problem:
        """The question that the plan answers."""
        return self.plan.problem

    @property
    def placement(self) -> Placement:
        """Its placement."""
        return self.plan.placement

    @property
    def num_bins(self) -> int:
        """Attention-DP ranks times micro-batches, over all replicas."""
        return self.strategy.replicas * self.strategy.attn_dp * self.strategy.micro_batches

    @cached_property
    def leaves(self) -> Leaves:
        """Leaf costs of the problem."""
        return Leaves(self.problem)

    @cached_property
    def packing(self) -> Packing:
        """Packing of the strategy on the problem's cluster."""
        return packing_of(self.problem, self.strategy)

    @cached_property
    def blocks(self) -> Blocks:
        """The placement as the cost model sees it."""
        return Blocks(self.load_tokens, self.lambda_ppm, self.placement.stage_layers)

    @property
    def is_complete(self) -> bool:
        """Whether the stages cover the layers, so that times and memory can be computed."""
        stages = self.placement.stage_layers
        pp, num_layers = self.strategy.pp, self.problem.llm.num_layers
        return len(stages) == pp and sum(stages) == num_layers and min(stages) >= 1

    @cached_property
    def decode(self) -> PhaseTimes:
        """Times of the decode phase."""
        return PhaseTimes(self.leaves, self.strategy, self.packing, "decode", self.blocks)

    @cached_property
    def prefill(self) -> PhaseTimes:
        """Times of the prefill phase."""
        return PhaseTimes(self.leaves, self.strategy, self.packing, "prefill", self.blocks)

    @cached_property
    def figures(self) -> Figures:
        """The metrics' integers."""
        return figures_of(self.problem, self.strategy, self.decode, self.prefill)


def evidence_of(plan: Plan, strategy: Strategy, *, full: bool = False) -> Evidence:
    """Recompute load and load factor, keeping the claimed ones where the placement is too broken to tell."""
    load, factor = true_load(plan, strategy), true_lambda_ppm(plan, strategy)
    placement = plan.placement
    return Evidence(
        plan,
        strategy,
        min(placement.load_tokens, MAX_CLAIMED) if load is None else load,
        min(placement.lambda_ppm, MAX_CLAIMED) if factor is None else factor,
        full,
    )


def true_load(plan: Plan, strategy: Strategy) -> int | None:
    """Tokens of the heaviest bin; None when a bin names a sequence that does not exist."""
    tokens, bins = sequence_tokens(plan.problem), plan.placement.bins
    if bins is None:
        return strategy.batch * tokens[-1]
    if len(tokens) == 1:  # free concurrency: any number of equal sequences
        return max((len(members) for members in bins), default=0) * tokens[0]
    if any(index >= len(tokens) for members in bins for index in members):
        return None
    return max((sum(tokens[index] for index in members) for members in bins), default=0)


def true_lambda_ppm(plan: Plan, strategy: Strategy) -> int | None:
    """Mean over MoE layers of max / mean rank load; None when the maps cannot be read."""
    llm, placement = plan.problem.llm, plan.placement
    if llm.moe is None or not llm.is_moe:
        return PPM
    maps, of_layer = placement.expert_maps, placement.map_of_layer
    if len(of_layer) != llm.num_moe_layers or any(index >= len(maps) for index in of_layer):
        return None
    if any(expert >= llm.moe.num_experts for ranks in maps for slots in ranks for expert in slots):
        return None
    counts = expert_counts(plan.problem)
    known: dict[tuple[int, int], int] = {}
    factors = []
    for layer, index in enumerate(of_layer):
        key = (0 if len(counts) == 1 else layer, index)
        if key not in known:
            loads = rank_loads(counts[key[0]], maps[index])
            known[key] = load_factor_ppm(max(loads, default=0), strategy.moe_ep)
        factors.append(known[key])
    return mean_ppm(factors)
