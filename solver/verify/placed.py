"""Rules on the placement: layers, experts, sequences. Each yields at most a handful of findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from solver.cost.balance import slots_per_rank
from solver.specs.llm import Moe
from solver.strategy import moe_tp_is_fastest, num_slots
from solver.verify.evidence import Evidence, true_lambda_ppm, true_load
from solver.verify.finding import Finding


def layers(evidence: Evidence) -> Iterator[Finding]:
    """Stages cover the layers."""
    stages, pp, num_layers = evidence.placement.stage_layers, evidence.strategy.pp, evidence.problem.llm.num_layers
    if len(stages) != pp:
        yield Finding("layers", f"stage_layers has {len(stages)} entries for pp = {pp} stages")
    if min(stages, default=1) < 1:
        yield Finding("layers", f"a stage has {min(stages)} layers")
    if sum(stages) != num_layers:
        yield Finding(
            "layers", f"the stages hold {' + '.join(map(str, stages))} = {sum(stages)} of {num_layers} layers"
        )


def topology(evidence: Evidence) -> Iterator[Finding]:
    """Stated facts of cluster and engine."""
    placement, problem = evidence.placement, evidence.problem
    for name, stated, true in (
        ("domain_gpus", placement.domain_gpus, problem.cluster.domain_gpus),
        ("gpus_per_node", placement.gpus_per_node, problem.cluster.gpus_per_node),
        ("moe_tp_fastest", placement.moe_tp_fastest, moe_tp_is_fastest(problem.engine)),
    ):
        if stated != true:
            yield Finding("topology", f"{name} is {stated} in the placement, {true} in the problem")


# --- experts ----------------------------------------------------------------------------------------------------------


def expert_maps(evidence: Evidence) -> Iterator[Finding]:
    """Every MoE layer has a map of the right shape."""
    placement, llm, ranks = evidence.placement, evidence.problem.llm, evidence.strategy.moe_ep
    maps, of_layer = placement.expert_maps, placement.map_of_layer
    if len(of_layer) != llm.num_moe_layers:
        yield Finding("expert-maps", f"map_of_layer has {len(of_layer)} entries for {llm.num_moe_layers} MoE layers")
    unknown = [index for index in of_layer if index >= len(maps)]
    if unknown:
        yield Finding("expert-maps", f"map_of_layer names map {unknown[0]}, there are {len(maps)}")
    if not llm.is_moe and maps:
        yield Finding("expert-maps", f"{len(maps)} expert maps, but {llm.name} has no experts")
    unused = sorted(set(range(len(maps))) - set(of_layer))
    if llm.is_moe and unused:
        yield Finding("expert-maps", f"map {unused[0]} belongs to no layer")
    for index, held in enumerate(maps):
        if llm.is_moe and len(held) != ranks:
            yield Finding("expert-maps", f"map {index} has {len(held)} ranks, moe_ep = {ranks}")
            return


def experts(evidence: Evidence) -> Iterator[Finding]:
    """Every logical expert is present, no rank overfull, nothing doubled."""
    moe, maps = evidence.problem.llm.moe, evidence.placement.expert_maps
    if moe is None:
        return
    for index, held in enumerate(maps):
        found = list(_one_map(evidence, moe, index, held))
        if found:
            yield from found
            return


def _one_map(evidence: Evidence, moe: Moe, index: int, held: tuple[tuple[int, ...], ...]) -> Iterator[Finding]:
    num_experts = moe.num_experts
    slots = num_slots(evidence.problem.llm, evidence.problem.redundant_experts)
    present = Counter(expert for rank in held for expert in rank)
    strange = [expert for expert in present if expert >= num_experts]
    missing = [expert for expert in range(num_experts) if expert not in present]
    if strange:
        yield Finding("expert-range", f"map {index} holds expert {strange[0]}, the layer has {num_experts}")
    if missing:
        yield Finding("expert-missing", f"map {index} lacks {len(missing)} experts, the first is {missing[0]}")
    for rank, members in enumerate(held):
        if len(set(members)) < len(members):
            expert = next(e for e, count in Counter(members).items() if count > 1)
            times = members.count(expert)
            yield Finding("expert-twice", f"map {index}: rank {rank} holds expert {expert} {times} times")
            break
    counts, wanted = [len(members) for members in held], slots_per_rank(slots, len(held)) if held else []
    if counts != wanted:
        rank = next(r for r, (a, b) in enumerate(zip(counts, wanted, strict=True)) if a != b)
        numbers = f"{counts[rank]} replicas for {wanted[rank]} slots"
        yield Finding("expert-slots", f"map {index}: rank {rank} holds {numbers}")
    if sum(counts) != slots:
        yield Finding("expert-slots", f"map {index} holds {sum(counts)} replicas, a layer has {slots}")


def load_factor(evidence: Evidence) -> Iterator[Finding]:
    """lambda_ppm from the maps."""
    true, stated = true_lambda_ppm(evidence.plan, evidence.strategy), evidence.placement.lambda_ppm
    if true is not None and true != stated:
        yield Finding("load-factor", f"lambda_ppm is {stated}, the expert maps give {true}")


# --- sequences --------------------------------------------------------------------------------------------------------


def sequences(evidence: Evidence) -> Iterator[Finding]:
    """Every sequence in exactly one bin, bins within their cap."""
    placement, s, workload = evidence.placement, evidence.strategy, evidence.problem.workload
    wanted = s.slots if workload.concurrency is None else workload.concurrency
    if placement.num_sequences != wanted:
        yield Finding("sequences", f"num_sequences is {placement.num_sequences}, the workload has {wanted}")
    bins = placement.bins
    if bins is None:
        if not workload.is_uniform:
            yield Finding("bins", f"no bins, but the {wanted} sequences have different lengths")
        elif -(-placement.num_sequences // evidence.num_bins) > s.batch:
            yield Finding(
                "bin-cap",
                f"{placement.num_sequences} sequences dealt to {evidence.num_bins} bins exceed batch = {s.batch}",
            )
        return
    if len(bins) != evidence.num_bins:
        yield Finding("bins", f"{len(bins)} bins for {evidence.num_bins} pairs of attention-DP rank and micro-batch")
    fullest = max(range(len(bins)), key=lambda b: len(bins[b]), default=0)
    if bins and len(bins[fullest]) > s.batch:
        yield Finding("bin-cap", f"bin {fullest} holds {len(bins[fullest])} sequences, batch = {s.batch}")
    seen = Counter(index for members in bins for index in members)
    twice = [index for index, count in seen.items() if count > 1]
    strange = [index for index in seen if index >= wanted]
    for what, indices in (("sits in several bins", twice), ("does not exist", strange)):
        if indices:
            yield Finding("sequences", f"sequence {indices[0]} {what} ({len(indices)} of {wanted} such)")
    missing = wanted - (len(seen) - len(strange))
    if missing:
        lost = next(index for index in range(wanted) if index not in seen)
        yield Finding("sequences", f"sequence {lost} is in no bin ({missing} of {wanted} such)")


def load(evidence: Evidence) -> Iterator[Finding]:
    """load_tokens from the bins."""
    true, stated = true_load(evidence.plan, evidence.strategy), evidence.placement.load_tokens
    if true is not None and true != stated:
        yield Finding("load", f"load_tokens is {stated}, the heaviest bin has {true}")
