"""The GPU-to-shard map: one record per GPU, expanded from the symmetry classes of a plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from solver.packing import Packing
from solver.plan import Placement, Plan
from solver.specs.llm import Llm
from solver.strategy import packing_of


@dataclass(frozen=True)
class GpuRecord:
    """Everything one GPU holds."""

    gpu: int
    node: int
    local_gpu: int
    replica: int
    stage: int
    first_layer: int
    last_layer: int
    attn_tp_rank: int
    attn_dp_rank: int
    moe_tp_rank: int
    moe_ep_rank: int
    experts: dict[int, tuple[int, ...]]
    """MoE layer of the stage (0-based decoder index) -> logical experts in this rank's slots."""
    sequences: tuple[tuple[int, ...], ...]
    """Per micro-batch, the sequences whose attention this GPU computes."""


def moe_coordinates(stage_rank: int, moe_tp: int, moe_ep: int, moe_tp_fastest: bool) -> tuple[int, int]:
    """(moe_tp rank, moe_ep rank) of a rank of the stage."""
    if moe_tp_fastest:
        return stage_rank % moe_tp, stage_rank // moe_tp
    return stage_rank // moe_ep, stage_rank % moe_ep


def stage_starts(stage_layers: tuple[int, ...]) -> list[int]:
    """First layer of every stage."""
    return [sum(stage_layers[:stage]) for stage in range(len(stage_layers))]


def sequences_of_bin(placement: Placement, bin_index: int, num_bins: int) -> tuple[int, ...]:
    """Sequences dealt to one bin."""
    if placement.bins is not None:
        return placement.bins[bin_index] if bin_index < len(placement.bins) else ()
    each, more = divmod(placement.num_sequences, num_bins)
    first = bin_index * each + min(bin_index, more)
    return tuple(range(first, first + each + (bin_index < more)))


def moe_layers_of_stage(llm: Llm, first: int, count: int) -> list[tuple[int, int]]:
    """(decoder layer, index among MoE layers) of the MoE layers of a stage."""
    return [(layer, i) for i, layer in enumerate(llm.moe_layer_indices) if first <= layer < first + count]


class Expansion:
    """The records of a plan: by rank, or all of them in a stream. Ranks of a class share what they hold."""

    def __init__(self, plan: Plan) -> None:
        self.strategy, self.placement = plan.strategy.strategy(), plan.placement
        self.packing: Packing = packing_of(plan.problem, self.strategy)
        s, placement = self.strategy, self.placement
        self._starts = stage_starts(placement.stage_layers)
        self._num_bins = s.replicas * s.attn_dp * s.micro_batches
        self._held: list[list[dict[int, tuple[int, ...]]]] = []
        nothing: dict[int, tuple[int, ...]] = {}
        for first, count in zip(self._starts, placement.stage_layers, strict=True):
            layers = moe_layers_of_stage(plan.problem.llm, first, count)
            maps = [(layer, placement.expert_maps[placement.map_of_layer[i]]) for layer, i in layers]
            ranks = s.moe_ep if plan.problem.llm.is_moe else s.stage_gpus
            self._held.append([{layer: held[ep] for layer, held in maps} if maps else nothing for ep in range(ranks)])

    def at(self, replica: int, stage: int, attn_dp_rank: int, attn_tp_rank: int) -> GpuRecord:
        """The record of one rank."""
        return self._record(replica, stage, attn_dp_rank, attn_tp_rank, self._sequences(replica, attn_dp_rank))

    def __iter__(self) -> Iterator[GpuRecord]:
        s = self.strategy
        for replica in range(s.replicas):
            for stage in range(s.pp):
                for dp in range(s.attn_dp):
                    sequences = self._sequences(replica, dp)
                    for tp in range(s.attn_tp):
                        yield self._record(replica, stage, dp, tp, sequences)

    def _sequences(self, replica: int, dp: int) -> tuple[tuple[int, ...], ...]:
        """Per micro-batch, the sequences of an attention-DP rank."""
        base = (replica * self.strategy.attn_dp + dp) * self.strategy.micro_batches
        bins = range(base, base + self.strategy.micro_batches)
        return tuple(sequences_of_bin(self.placement, index, self._num_bins) for index in bins)

    def _record(self, replica: int, stage: int, dp: int, tp: int, sequences: tuple[tuple[int, ...], ...]) -> GpuRecord:
        s, placement = self.strategy, self.placement
        gpu = self.packing.gpu(replica, stage, dp, tp)
        moe_tp, moe_ep = moe_coordinates(dp * s.attn_tp + tp, s.moe_tp, s.moe_ep, placement.moe_tp_fastest)
        first = self._starts[stage]
        return GpuRecord(
            gpu=gpu,
            node=gpu // placement.gpus_per_node,
            local_gpu=gpu % placement.gpus_per_node,
            replica=replica,
            stage=stage,
            first_layer=first,
            last_layer=first + placement.stage_layers[stage] - 1,
            attn_tp_rank=tp,
            attn_dp_rank=dp,
            moe_tp_rank=moe_tp,
            moe_ep_rank=moe_ep,
            experts=self._held[stage][moe_ep],
            sequences=sequences,
        )


def expand(plan: Plan) -> Iterator[GpuRecord]:
    """One record per used GPU, replica by replica, stage by stage; streams."""
    return iter(Expansion(plan))
