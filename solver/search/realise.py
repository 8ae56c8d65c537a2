"""From degrees to a realised deployment: the placement blocks solved, exact metrics and ledger."""

from __future__ import annotations

from dataclasses import dataclass

from solver.cost.balance import sequence_tokens
from solver.cost.horizon import horizon_violations
from solver.cost.layers import Blocks
from solver.cost.leaves import Leaves
from solver.cost.ledger import stage_ledgers
from solver.cost.limits import limit_violations
from solver.cost.metrics import Figures, Utopia, evaluate_times, objective_value
from solver.legality import Violation
from solver.plan import StageLedger
from solver.search.batches import BatchesResult, solve_batches
from solver.search.experts import PPM_PERFECT, ExpertsResult, solve_experts
from solver.search.stages import StagesProblem, solve_stages
from solver.strategy import Strategy, packing_of


@dataclass(frozen=True)
class Realised:
    """A strategy with its placement. `violations`: broken rules of memory, SLOs and horizon (then it is no plan)."""

    strategy: Strategy
    blocks: Blocks
    experts: ExpertsResult | None
    batches: BatchesResult | None
    """Absent when all sequences are equally long (dealt evenly)."""
    figures: Figures
    ledgers: tuple[StageLedger, ...]
    violations: tuple[Violation, ...]
    value: int
    """Objective integer."""

    @property
    def is_exact(self) -> bool:
        """Whether both blocks are proved optimal for these degrees."""
        experts = self.experts is None or self.experts.lambda_ppm == self.experts.bound_ppm
        return experts and (self.batches is None or self.batches.load == self.batches.bound)


class BlockCache:
    """Solved placement blocks by the degrees they depend on; a block is solved once."""

    def __init__(self, leaves: Leaves) -> None:
        self.leaves, self.problem = leaves, leaves.problem
        self._experts: dict[int, ExpertsResult] = {}
        self._batches: dict[tuple[int, int], BatchesResult | None] = {}

    def experts(self, moe_ep: int, deadline: float) -> ExpertsResult | None:
        """Experts block for `moe_ep` ranks; None for a dense LLM."""
        if not self.problem.llm.is_moe:
            return None
        if moe_ep not in self._experts:
            self._experts[moe_ep] = solve_experts(self.problem, moe_ep, deadline)
        return self._experts[moe_ep]

    def batches(self, bins: int, cap: int, deadline: float) -> BatchesResult | None:
        """Batches block; None when the sequences are equally long or do not fit."""
        if self.problem.workload.is_uniform:
            return None
        key = (bins, cap)
        if key not in self._batches:
            self._batches[key] = solve_batches(sequence_tokens(self.problem), bins, cap, deadline)
        return self._batches[key]


def realise(cache: BlockCache, strategy: Strategy, utopia: Utopia | None, deadline: float) -> Realised:
    """Solve the blocks for a strategy's degrees and add everything up.

    The strategy must satisfy :func:`solver.legality.violations`; memory, SLOs and horizon are judged here.
    """
    leaves, problem = cache.leaves, cache.problem
    experts = cache.experts(strategy.moe_ep, deadline)
    bins = strategy.replicas * strategy.attn_dp * strategy.micro_batches
    batches = cache.batches(bins, strategy.batch, deadline)
    load = batches.load if batches is not None else strategy.batch * sequence_tokens(problem)[-1]
    factor = PPM_PERFECT if experts is None else experts.lambda_ppm
    packing = packing_of(problem, strategy)
    layout = solve_stages(StagesProblem(leaves, strategy, packing, load, factor), utopia)
    blocks = Blocks(load, factor, layout or even_stages(problem.llm.num_layers, strategy.pp))
    figures = evaluate_times(leaves, strategy, packing, blocks)
    ledgers = stage_ledgers(leaves, strategy, blocks)
    weights = utopia.weights(problem.objective.latency_weight) if utopia else (0, 0)
    return Realised(
        strategy,
        blocks,
        experts,
        batches,
        figures,
        ledgers,
        (*memory_violations(ledgers), *limit_violations(problem, figures), *horizon_violations(problem, figures)),
        objective_value(problem.objective.name, figures, weights),
    )


def even_stages(num_layers: int, pp: int) -> tuple[int, ...]:
    """Layers per stage, the remainder on the first stages."""
    each, more = divmod(num_layers, pp)
    return tuple(each + (stage < more) for stage in range(pp))


def memory_violations(ledgers: tuple[StageLedger, ...]) -> list[Violation]:
    """Stages whose fullest rank exceeds the usable memory."""
    found = []
    for ledger in ledgers:
        if ledger.total_kib > ledger.capacity_kib:
            largest = sorted(ledger.items_kib.items(), key=lambda item: -item[1])[:3]
            parts = ", ".join(f"{name} {kib / 2**20:.2f} GiB" for name, kib in largest)
            found.append(
                Violation(
                    "memory",
                    f"stage {ledger.stage} needs {ledger.total_kib / 2**20:.2f} GiB per GPU of "
                    f"{ledger.capacity_kib / 2**20:.2f} GiB usable ({parts})",
                )
            )
    return found
