"""Pictures of a plan in the terminal: the tree of replicas, stages and ranks, and the load of the experts' ranks."""

from __future__ import annotations

from collections.abc import Iterator

from solver.cost.balance import expert_counts, rank_loads
from solver.expansion import stage_starts
from solver.plan import Plan
from solver.report.terminal import plural

SHADES = ".:-=+*#%@"
"""From the least loaded rank to the busiest, in any terminal."""
MAX_WIDTH = 120
NAME_WIDTH = 12


def tree_lines(plan: Plan) -> Iterator[str]:
    """Replicas, stages, attention-DP ranks; equal branches are drawn once."""
    s, placement = plan.strategy.strategy(), plan.placement
    packing_node = placement.gpus_per_node
    yield f"{plan.problem.llm.name}: {plural(s.replicas, 'replica')}, {s.gpus:,} GPUs\n"
    alike = f" (and {s.replicas - 1:,} alike)" if s.replicas > 1 else ""
    nodes = s.instance_gpus / packing_node
    yield f"`- replica 0{alike}: {plural(s.instance_gpus, 'GPU')} = {nodes:g} nodes of {packing_node}\n"
    starts = stage_starts(placement.stage_layers)
    for stage, (first, count) in enumerate(zip(starts, placement.stage_layers, strict=True)):
        last = stage == s.pp - 1
        bar, ledger = "   " if last else "|  ", plan.memory[stage]
        used = ledger.total_kib / ledger.capacity_kib
        yield f"   {'`' if last else '|'}- stage {stage}: layers {first}-{first + count - 1}, memory {used:.0%}\n"
        dp = f"attention DP {s.attn_dp} x TP {s.attn_tp}"
        yield f"   {bar}|- {dp}, {s.batch} x {s.micro_batches} sequences per DP rank\n"
        if plan.problem.llm.is_moe:
            slots = [len(rank) for rank in placement.expert_maps[0]]
            each = f"{min(slots)}" if min(slots) == max(slots) else f"{min(slots)} to {max(slots)}"
            yield f"   {bar}`- experts EP {s.moe_ep} x TP {s.moe_tp}, {each} slots per EP rank\n"
        else:
            yield f"   {bar}`- dense FFN, TP {s.attn_tp}\n"


def heat_lines(plan: Plan, width: int) -> Iterator[str]:
    """A row per MoE layer, a cell per expert-parallel rank (or group of ranks), shaded by load / mean.

    Parameters
    ----------
    width : columns of the terminal; ranks that do not fit share a cell, which shows the busiest of them.
    """
    placement, counts = plan.placement, expert_counts(plan.problem)
    if not placement.expert_maps:
        yield "a dense LLM has no experts to balance\n"
        return
    ranks = plan.strategy.moe_ep
    per_cell = -(-ranks // max(1, min(width, MAX_WIDTH) - NAME_WIDTH - 8))
    rows = []
    for row, index in enumerate(placement.map_of_layer):
        loads = rank_loads(counts[row % len(counts)], placement.expert_maps[index])
        mean = sum(loads) / ranks
        rows.append([max(loads[i : i + per_cell]) / mean for i in range(0, ranks, per_cell)])
    least, most = min(map(min, rows)), max(map(max, rows))
    group = "" if per_cell == 1 else f", {per_cell} ranks a cell (the busiest shown)"
    yield f"load of expert-parallel ranks / mean, per MoE layer{group}\n"
    span = most - least
    for layer, row_loads in zip(plan.problem.llm.moe_layer_indices, rows, strict=True):
        cells = "".join(SHADES[round((load - least) / span * (len(SHADES) - 1)) if span else 0] for load in row_loads)
        yield f"{f'layer {layer}':<{NAME_WIDTH}}{cells}  {max(row_loads):.3f}\n"
    yield f"{'':<{NAME_WIDTH}}'{SHADES[0]}' {least:.3f} to '{SHADES[-1]}' {most:.3f}\n"
