"""Contiguous layers to pipeline stages, derived anew for the judge: the least slowest stage, under memory.

The embedding always belongs to the first layer's stage and the head to the last layer's, so that both are folded into
those layers' costs and a split is a plain partition of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from solver.cost.machine import Ints
from solver.verify.tables import HUGE_NS, Bools


def window_counts(kinds: Sequence[int], num_kinds: int, length: int) -> list[tuple[int, ...]]:
    """Distinct layer counts by kind of every window of `length` layers; `kinds` is the kind index of every layer."""
    found = {
        tuple(kinds[first : first + length].count(kind) for kind in range(num_kinds))
        for first in range(len(kinds) - length + 1)
    }
    return sorted(found)


def splits(costs: Sequence[Sequence[int]], caps: Sequence[int], pp: int) -> tuple[int, ...] | None:
    """Layers per stage such that no stage exceeds any cap; ``costs[resource][layer]``; None when there is no split.

    Greedy is exact: filling a stage as far as its caps allow never leaves more for the later ones.
    """
    num_layers = len(costs[0])
    stages, held = [0], [0] * len(costs)
    for layer in range(num_layers):
        parts = [row[layer] for row in costs]
        if any(part > cap for part, cap in zip(parts, caps, strict=True)):
            return None
        after = [h + part for h, part in zip(held, parts, strict=True)]
        if stages[-1] and any(h > cap for h, cap in zip(after, caps, strict=True)):
            stages.append(0)
            after = parts
        stages[-1] += 1
        held = after
    if len(stages) > pp or num_layers < pp:
        return None
    while len(stages) < pp:  # splitting a stage only makes it lighter
        index = max(range(len(stages)), key=lambda s: stages[s])
        stages[index : index + 1] = [stages[index] // 2, stages[index] - stages[index] // 2]
    return tuple(stages)


def least_cap(costs: Sequence[Sequence[int]], caps: Sequence[int], pp: int) -> int | None:
    """Smallest cap on ``costs[0]`` under the `caps` of the other resources; None when no split meets those."""
    high = sum(costs[0])
    low = max(max(costs[0]), -(-high // pp))
    if splits(costs, [high, *caps], pp) is None:
        return None
    while low < high:
        middle = (low + high) // 2
        if splits(costs, [middle, *caps], pp) is None:
            low = middle + 1
        else:
            high = middle
    return low


def least_caps(costs_ln: Sequence[Ints], memory_ln: Sequence[Ints], limit: Ints, pp: int) -> Ints:
    """:func:`least_cap` for many configurations at once: one array per layer; ``HUGE_NS`` where there is no split."""
    total = np.sum(np.stack(costs_ln), axis=0)
    low = np.maximum(np.max(np.stack(costs_ln), axis=0), -(-total // pp))
    possible = _fit(costs_ln, memory_ln, total, limit, pp)
    high = total.copy()
    while bool(np.any(low < high)):
        middle = (low + high) // 2
        good = _fit(costs_ln, memory_ln, middle, limit, pp)
        high = np.where(good, middle, high)
        low = np.where(good, low, np.minimum(middle + 1, high))
    return np.where(possible, low, HUGE_NS)


def _fit(costs_ln: Sequence[Ints], memory_ln: Sequence[Ints], cap: Ints, limit: Ints, pp: int) -> Bools:
    """Whether greedy filling needs at most `pp` stages."""
    used, time, memory = np.zeros_like(cap), np.zeros_like(cap), np.zeros_like(cap)
    good = np.ones(cap.shape, dtype=np.bool_)
    for index, (cost, held) in enumerate(zip(costs_ln, memory_ln, strict=True)):
        good &= (cost <= cap) & (held <= limit)
        joins = (time + cost <= cap) & (memory + held <= limit) & (index > 0)
        time, memory = np.where(joins, time + cost, cost), np.where(joins, memory + held, held)
        used += ~joins
    return good & (used <= pp)


class Cut:
    """Splits layers into `pp` stages: total and slowest stage of a phase, under the memory of a rank.

    Coarsely: the mean, the lightest window of ``ceil(layers / pp)`` layers, and first and last stage with one layer.
    Exactly (`refine`): the least slowest stage of any split in which every stage fits its rank.

    Parameters
    ----------
    kind_of_layer : index of every layer's kind
    pp : stages
    memory : KiB of one layer by kind, and what the first and the last stage hold on top, arrays over configurations
    limit : KiB that a rank has for its layers
    """

    def __init__(
        self,
        kind_of_layer: Sequence[int],
        pp: int,
        memory: tuple[list[Ints], tuple[Ints, Ints]],
        limit: Ints,
        *,
        refine: bool,
    ) -> None:
        self.kind_of_layer, self.pp, self.refine = kind_of_layer, pp, refine
        num_kinds = max(kind_of_layer) + 1
        self.counts = [list(kind_of_layer).count(kind) for kind in range(num_kinds)]
        self.windows = window_counts(kind_of_layer, num_kinds, -(-len(kind_of_layer) // pp))
        self.memory, self.limit = memory, limit
        self.overfull: Bools = self._coarse(*memory)[1] > limit

    def _coarse(self, times: list[Ints], ends: tuple[Ints, Ints]) -> tuple[Ints, Ints]:
        total = ends[0] + ends[1]
        for count, time in zip(self.counts, times, strict=True):
            total = total + count * time
        if self.pp == 1:
            return total, total
        slowest = np.maximum(-(-total // self.pp), ends[0] + times[self.kind_of_layer[0]])
        slowest = np.maximum(slowest, ends[1] + times[self.kind_of_layer[-1]])
        lightest: Ints | None = None
        for window in self.windows:
            weight = np.zeros_like(times[0])
            for count, time in zip(window, times, strict=True):
                weight = weight + count * time
            lightest = weight if lightest is None else np.minimum(lightest, weight)
        return total, slowest if lightest is None else np.maximum(slowest, lightest)

    def apply(self, times: list[Ints], ends: tuple[Ints, Ints]) -> tuple[Ints, Ints]:
        """(all layers with embedding and head, slowest stage); a slowest stage of ``HUGE_NS`` says it cannot fit."""
        total, slowest = self._coarse(times, ends)
        if not self.refine or self.pp == 1:
            return total, slowest
        costs, held = self._per_layer(times, ends), self._per_layer(*self.memory)
        shape = np.broadcast_shapes(*(c.shape for c in (*costs, *held)), self.limit.shape)
        costs, held = ([np.broadcast_to(c, shape).reshape(-1) for c in rows] for rows in (costs, held))
        limit = np.broadcast_to(self.limit, shape).reshape(-1)
        return total, least_caps(costs, held, limit, self.pp).reshape(shape)

    def _per_layer(self, by_kind: list[Ints], ends: tuple[Ints, Ints]) -> list[Ints]:
        layers = [by_kind[kind] for kind in self.kind_of_layer]
        layers[0] = layers[0] + ends[0]
        layers[-1] = layers[-1] + ends[1]
        return layers
