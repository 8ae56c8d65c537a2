"""One strategy's layers, stages and steps as plain integers: the adding-up that evaluation and judge use."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from solver.cost.leaves import Leaves, as_ints
from solver.cost.machine import Phase
from solver.packing import Packing
from solver.specs.llm import LayerKind
from solver.strategy import Strategy


@dataclass(frozen=True)
class LayerTime:
    """Time of one layer in one phase, ns. Without overlap ``total = compute + communication``."""

    projection_ns: int
    """Attention projections plus dense FFN or shared experts."""
    core_ns: int
    expert_ns: int
    allreduce_ns: int
    exchange_ns: int
    """Dispatch and combine (or gather and reduce) of the experts."""
    hidden_ns: int
    """What overlap takes off (negative: what it costs)."""

    @property
    def compute_ns(self) -> int:
        """Computation before overlap."""
        return self.projection_ns + self.core_ns + self.expert_ns

    @property
    def communication_ns(self) -> int:
        """Communication before overlap."""
        return self.allreduce_ns + self.exchange_ns

    @property
    def total_ns(self) -> int:
        """Time the layer takes."""
        return self.compute_ns + self.communication_ns - self.hidden_ns


@dataclass(frozen=True)
class Blocks:
    """What the placement blocks decided, as the cost model sees it."""

    load_tokens: int
    """Context tokens of the heaviest (attention-DP rank, micro-batch) bin in the middle of generation."""
    lambda_ppm: int
    """Mean over MoE layers of max / mean expert-rank load, parts per million, rounded up."""
    stage_layers: tuple[int, ...]
    """Layers of every stage, first to last; sums to the number of layers."""


class PhaseTimes:
    """Per-kind layer times and stage extras of one strategy in one phase."""

    def __init__(self, leaves: Leaves, strategy: Strategy, packing: Packing, phase: Phase, blocks: Blocks) -> None:
        self.leaves, self.strategy, self.phase, self.blocks = leaves, strategy, phase, blocks
        decode = phase == "decode"
        self.is_idle = not leaves.problem.runs(phase)
        self.group_tokens = (
            strategy.batch * leaves.step_tokens if decode else strategy.prefill_batch * leaves.chunk_tokens
        )
        self.allreduce = strategy.decode_allreduce if decode else strategy.prefill_allreduce
        self.dispatch = strategy.decode_dispatch if decode else strategy.prefill_dispatch
        self.overlap = strategy.decode_overlap if decode else strategy.prefill_overlap
        self.head_rows = self.group_tokens if decode else strategy.prefill_batch
        self.stage_members = packing.stage_members
        self.in_domain = packing.members("pp") == strategy.pp
        self._layers: dict[LayerKind, LayerTime] = {}

    def layer(self, kind: LayerKind) -> LayerTime:
        """Time of one layer of a kind."""
        if kind not in self._layers:
            self._layers[kind] = LayerTime(0, 0, 0, 0, 0, 0) if self.is_idle else self._layer(kind)
        return self._layers[kind]

    def _layer(self, kind: LayerKind) -> LayerTime:
        core = self._core_ns(kind)
        stage_tokens = self.strategy.attn_dp * self.group_tokens
        whole = self._parts(kind, self.group_tokens, stage_tokens, core)
        if not (self.overlap and kind.ffn == "moe"):
            return whole
        half = self._parts(kind, -(-self.group_tokens // 2), -(-stage_tokens // 2), 0)
        (tp,) = as_ints(self.strategy.attn_tp)
        compute = 2 * half.compute_ns + core + int(self.leaves.second_core_ns(self.phase, kind.attention, tp))
        inflated = int(self.leaves.inflated_ns(as_ints(compute)[0]))
        overlapped = max(inflated, 2 * half.communication_ns) + self.leaves.sync_ns
        hidden = whole.compute_ns + whole.communication_ns - overlapped
        return LayerTime(
            whole.projection_ns, whole.core_ns, whole.expert_ns, whole.allreduce_ns, whole.exchange_ns, hidden
        )

    def _core_ns(self, kind: LayerKind) -> int:
        attention, s, once = self.leaves.attention, self.strategy, self.leaves.once
        if self.phase == "decode":
            return once(attention.decode_core_ns, kind.attention, s.attn_tp, self.blocks.load_tokens, s.batch)
        return once(attention.prefill_core_ns, kind.attention, s.attn_tp, s.prefill_batch)

    def _parts(self, kind: LayerKind, group_tokens: int, stage_tokens: int, core_ns: int) -> LayerTime:
        leaves, s, once = self.leaves, self.strategy, self.leaves.once
        members, factor = self.stage_members, self.blocks.lambda_ppm
        allreduce = once(leaves.allreduce_ns, self.allreduce, s.attn_tp, group_tokens)
        experts = exchange = 0
        if kind.ffn == "moe":
            experts = once(leaves.expert_ns, s.moe_tp, s.moe_ep, stage_tokens, factor)
            if self.dispatch == "gather" and s.attn_dp == 1:
                exchange = allreduce  # every rank has all tokens already: one all-reduce over the stage
            else:
                exchange = once(leaves.own_ns, s.attn_tp, group_tokens)
                if self.dispatch == "all_to_all":
                    exchange += once(leaves.all_to_all_ns, s.moe_tp, s.moe_ep, members, stage_tokens, factor)
                else:
                    exchange += once(leaves.gather_ns, s.moe_tp * s.moe_ep, members, stage_tokens)
        return LayerTime(
            projection_ns=once(leaves.dense_part_ns, kind.attention, kind.ffn, s.attn_tp, group_tokens),
            core_ns=core_ns,
            expert_ns=experts,
            allreduce_ns=leaves.num_allreduces(kind.ffn, self.dispatch) * allreduce,
            exchange_ns=exchange,
            hidden_ns=0,
        )

    @property
    def embedding_ns(self) -> int:
        """What the first stage pays on top of its layers."""
        if self.is_idle:
            return 0
        return self.leaves.once(self.leaves.ffn.embedding_ns, self.strategy.attn_tp, self.group_tokens)

    @property
    def head_ns(self) -> int:
        """What the last stage pays on top of its layers."""
        if self.is_idle:
            return 0
        return self.leaves.once(self.leaves.ffn.head_ns, self.phase, self.strategy.attn_tp, self.head_rows)

    @property
    def hop_ns(self) -> int:
        """One hop between stages; 0 for one stage."""
        if self.strategy.pp == 1 or self.is_idle:
            return 0
        tp, inside, tokens = as_ints(self.strategy.attn_tp, int(self.in_domain), self.group_tokens)
        return int(self.leaves.comm.hop_ns(tp, inside, tokens))

    @property
    def return_ns(self) -> int:
        """The sampled tokens' way back to the first stage; 0 for one stage."""
        if self.strategy.pp == 1 or self.is_idle:
            return 0
        (inside,) = as_ints(int(self.in_domain))
        return int(self.leaves.comm.return_ns(inside))

    def stage_times(self) -> list[int]:
        """Time of every stage, ns."""
        llm = self.leaves.problem.llm
        by_kind = [self.layer(kind).total_ns for kind in llm.kinds]
        times, first = [], 0
        for count in self.blocks.stage_layers:
            held = Counter(llm.kind_of_layer[first : first + count])
            times.append(sum(n * by_kind[kind] for kind, n in held.items()))
            first += count
        times[0] += self.embedding_ns
        times[-1] += self.head_ns
        return times
