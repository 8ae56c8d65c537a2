"""Layer times of every setting of a phase's knobs, on arrays over (stage layouts, sequences or prompts per group).

The leaf formulas come from :mod:`solver.cost`; how they add up to a layer is written here once more, on arrays.
Shape suffixes: U layouts ``(attn_tp, attn_dp, moe_tp, moe_ep, stage_members)``, G group sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from solver.cost.leaves import PPM, Leaves
from solver.cost.machine import Ints, Phase
from solver.degrees import Domains
from solver.engines import exchange_switch, sends_without_attention_dp
from solver.specs.llm import AttentionKind, FfnKind, LayerKind
from solver.specs.problem import AllReduce, Dispatch

Bools = npt.NDArray[np.bool_]

HUGE_NS = 2**42
"""No step or pass is charged more (over an hour), and what cannot fit is charged this: products stay inside int64."""


@dataclass(frozen=True)
class Layouts:
    """Distinct stage layouts, one array each."""

    attn_tp: Ints
    attn_dp: Ints
    moe_tp: Ints
    moe_ep: Ints
    members: Ints


@dataclass(frozen=True)
class Setting:
    """One setting of a phase's knobs; `allreduce` absent means the fastest of those allowed.

    Without overlap a layer's time grows with the time of one all-reduce of the same size in every kind of layer, so
    that the fastest algorithm is best whatever else is chosen. With overlap, halves and whole layers may disagree.
    """

    dispatch: Dispatch
    overlap: bool
    allreduce: AllReduce | None
    legal_ug: Bools
    plain_ug: dict[LayerKind, Ints]
    """Kinds that are not overlapped: time without the attention core."""
    compute_ug: dict[LayerKind, Ints]
    """Overlapped kinds: computation of both halves without the core."""
    communication_ug: dict[LayerKind, Ints]


class PhaseTable:
    """Settings of one phase; `busy` turns computation into time while communication holds its SMs."""

    def __init__(
        self, leaves: Leaves, domains: Domains, phase: Phase, layouts: Layouts, groups: Sequence[int], lambda_u: Ints
    ) -> None:
        self.leaves, self.phase, self.layouts = leaves, phase, layouts
        decode = phase == "decode"
        self.groups = np.array(groups, dtype=np.int64)
        self.tokens = self.groups * (leaves.step_tokens if decode else leaves.chunk_tokens)
        self.rows = self.tokens if decode else self.groups
        self._factor = lambda_u[:, None]
        self._algorithms = domains.decode_allreduce if decode else domains.prefill_allreduce
        dispatches = domains.decode_dispatch if decode else domains.prefill_dispatch
        overlaps = domains.decode_overlap if decode else domains.prefill_overlap
        self._tp, self._dp = layouts.attn_tp[:, None], layouts.attn_dp[:, None]
        self._moe_tp, self._moe_ep = layouts.moe_tp[:, None], layouts.moe_ep[:, None]
        self._members = layouts.members[:, None]
        group, half = self.tokens[None, :], -(-self.tokens[None, :] // 2)
        stage = self._dp * group
        self._whole = _Parts(group, stage, self._experts_ns(stage))
        self._half = _Parts(half, -(-stage // 2), self._experts_ns(-(-stage // 2)) if True in overlaps else stage)
        self.settings: list[Setting] = []
        for dispatch in dispatches:
            if False in overlaps:
                self.settings.append(self._plain_setting(dispatch))
            if True in overlaps and dispatch == "all_to_all":
                self.settings += [self._overlap_setting(algorithm) for algorithm in self._algorithms]

    def switch(self, setting: Setting) -> tuple[str | bool, ...]:
        """What a setting demands of the other phase."""
        return exchange_switch(self.leaves.problem.engine, setting.dispatch, setting.overlap)

    def num_settings(self, switch: tuple[str | bool, ...]) -> Ints:
        """Legal settings of the knobs by layout and group; one without algorithm stands for all of them."""
        total = np.zeros((len(self.layouts.attn_tp), len(self.groups)), dtype=np.int64)
        for setting in self.settings:
            if self.switch(setting) == switch:
                total += setting.legal_ug * (len(self._algorithms) if setting.allreduce is None else 1)
        return total

    def _experts_ns(self, stage: Ints) -> Ints:
        if self.leaves.experts is None:
            return 0 * stage
        return self.leaves.expert_ns(self._moe_tp, self._moe_ep, stage, self._factor)

    def _reduce(self, tokens: Ints, algorithms: Sequence[AllReduce]) -> Ints:
        times = [self.leaves.allreduce_ns(a, self._tp, tokens) for a in algorithms]
        return np.asarray(np.min(np.stack(np.broadcast_arrays(*times)), axis=0), dtype=np.int64)

    def _legal(self, dispatch: Dispatch, overlap: bool) -> Bools:
        """Dispatch and overlap rules on arrays."""
        legal = np.ones((len(self.layouts.attn_tp), len(self.groups)), dtype=np.bool_)
        if dispatch == "all_to_all":
            legal &= self._moe_ep > 1
            if self.leaves.problem.engine == "sglang":
                legal &= self._moe_tp == 1
            if not sends_without_attention_dp(self.leaves.problem.engine):
                legal &= self._dp > 1
        if overlap:
            legal &= self.tokens[None, :] >= 2
        return legal

    def _dense_part(self, attention: AttentionKind, ffn: FfnKind, tokens: Ints) -> Ints:
        return self.leaves.dense_part_ns(attention, ffn, self._tp, tokens)

    def _plain_setting(self, dispatch: Dispatch) -> Setting:
        leaves, whole = self.leaves, self._whole
        reduce = self._reduce(whole.group, self._algorithms)
        plain: dict[LayerKind, Ints] = {}
        for kind in leaves.problem.llm.kinds:
            time = self._dense_part(kind.attention, kind.ffn, whole.group)
            time = time + leaves.num_allreduces(kind.ffn, dispatch) * reduce
            if kind.ffn == "moe":
                time = time + whole.experts_ns + self._exchange(dispatch, whole, reduce)
            plain[kind] = time
        return Setting(dispatch, False, None, self._legal(dispatch, False), plain, {}, {})

    def _exchange(self, dispatch: Dispatch, parts: _Parts, reduce: Ints) -> Ints:
        """Dispatch and combine; one attention group gathers nothing, it all-reduces over the stage."""
        own = self.leaves.own_ns(self._tp, parts.group)
        if dispatch == "all_to_all":
            return own + self.leaves.all_to_all_ns(self._moe_tp, self._moe_ep, self._members, parts.stage, self._factor)
        gathered = self.leaves.gather_ns(self._moe_tp * self._moe_ep, self._members, parts.stage)
        return np.where(self._dp == 1, reduce, own + gathered)

    def _overlap_setting(self, algorithm: AllReduce) -> Setting:
        leaves, half = self.leaves, self._half
        plain: dict[LayerKind, Ints] = {}
        compute: dict[LayerKind, Ints] = {}
        communication: dict[LayerKind, Ints] = {}
        reduce_half = self._reduce(half.group, [algorithm])
        exchange = self._exchange("all_to_all", half, reduce_half)
        for kind in leaves.problem.llm.kinds:
            if kind.ffn == "dense":
                plain[kind] = self._dense_part(kind.attention, "dense", self._whole.group) + 2 * self._reduce(
                    self._whole.group, [algorithm]
                )
                continue
            compute[kind] = 2 * (self._dense_part(kind.attention, "moe", half.group) + half.experts_ns)
            communication[kind] = 2 * (leaves.num_allreduces("moe", "all_to_all") * reduce_half + exchange)
        return Setting("all_to_all", True, algorithm, self._legal("all_to_all", True), plain, compute, communication)

    def layer_ns(self, setting: Setting, kind: LayerKind, at: tuple[Ints, Ints], core_ns: Ints) -> Ints:
        """Time of one layer at index arrays ``(layout, group)`` with the attention core given."""
        if kind in setting.plain_ug:
            return setting.plain_ug[kind][at] + core_ns
        second_ns = self.leaves.second_core_ns(self.phase, kind.attention, self.layouts.attn_tp[at[0]])
        compute = setting.compute_ug[kind][at] + core_ns + second_ns
        inflated = self.leaves.inflated_ns(compute)
        return np.maximum(inflated, setting.communication_ug[kind][at]) + self.leaves.sync_ns


@dataclass(frozen=True)
class _Parts:
    """Tokens of an attention group and of the stage, and the experts' time for the latter."""

    group: Ints
    stage: Ints
    experts_ns: Ints


def per_token_ns(leaves: Leaves, step_ns: Ints) -> Ints:
    """Time per token of a decode step that keeps ``kept_ppm / 10^6`` tokens."""
    return step_ns if leaves.kept_ppm == PPM else -(-step_ns * PPM // leaves.kept_ppm)
