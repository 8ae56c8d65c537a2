"""What placement can achieve at best, derived anew for the judge: load factor of experts, load of bins, stages.

Each block has a closed-form lower bound, and an interval ``[lower, upper]`` from a small plain search: `upper` belongs
to a placement that exists, and the two are equal where the search finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from solver.cost.balance import (
    expert_counts,
    expert_share,
    load_factor_ppm,
    mean_ppm,
    sequence_tokens,
    slots_per_rank,
)
from solver.cost.machine import Ints
from solver.specs.problem import Problem
from solver.strategy import num_slots

MAX_NODES = 400_000
"""Nodes of the small searches of one block (shared by its layers); beyond, the interval stays open."""
MAX_SEARCHED_ITEMS = 64
"""Larger layers and batches are only bounded and packed greedily."""
MAX_SWAPS = 2_000
MAX_SWAP_ITEMS = 10**6
"""Items looked at while swapping: large batches swap less often."""


@dataclass(frozen=True)
class Interval:
    """Proved lower bound and realised value of a block."""

    lower: int
    upper: int


@dataclass
class BlockBounds:
    """Lower bounds of load factor and load by degree, raised as blocks are searched."""

    problem: Problem
    _factors: dict[int, Interval] = field(default_factory=dict)
    _loads: dict[tuple[int, int], Interval] = field(default_factory=dict)
    _closed: dict[tuple[str, int], int] = field(default_factory=dict)

    @property
    def is_uniform(self) -> bool:
        """Whether all sequences weigh the same, so that the load is ``batch * tokens`` by definition."""
        return self.problem.workload.is_uniform

    # --- experts --------------------------------------------------------------------------------------------------

    def lambda_ppm(self, moe_ep: int) -> int:
        """Lower bound on the mean load factor of `moe_ep` ranks, parts per million."""
        if moe_ep in self._factors:
            return self._factors[moe_ep].lower
        key = ("lambda", moe_ep)
        if key not in self._closed:
            capacities = slots_per_rank(num_slots(self.problem.llm, self.problem.redundant_experts), moe_ep)
            self._closed[key] = mean_ppm(
                [load_factor_ppm(layer_lower(row, capacities), moe_ep) for row in expert_counts(self.problem)]
            )
        return self._closed[key]

    def lambda_interval(self, moe_ep: int) -> Interval:
        """Bounds on the mean load factor after searching every distinct layer."""
        if moe_ep not in self._factors:
            capacities = slots_per_rank(num_slots(self.problem.llm, self.problem.redundant_experts), moe_ep)
            rows = expert_counts(self.problem)
            found = [search_layer(row, capacities, MAX_NODES // len(rows)) for row in rows]
            self._factors[moe_ep] = Interval(
                mean_ppm([load_factor_ppm(layer.lower, moe_ep) for layer in found]),
                mean_ppm([load_factor_ppm(layer.upper, moe_ep) for layer in found]),
            )
        return self._factors[moe_ep]

    # --- sequences ------------------------------------------------------------------------------------------------

    def load(self, bins: Ints, batch: Ints) -> Ints:
        """Lower bound on the heaviest bin's tokens for arrays of bin counts and caps (broadcast)."""
        tokens = np.asarray(sequence_tokens(self.problem), dtype=np.int64)
        if self.is_uniform:
            return np.asarray(tokens[-1] * batch + 0 * bins, dtype=np.int64)
        distinct = np.unique(bins)
        by_bins = np.array([self._load_by_bins(b) for b in distinct.tolist()], dtype=np.int64)
        bound = by_bins[np.searchsorted(distinct, bins)]
        # If all other bins are full, each bin still holds `fill` sequences, the longest one's bin too.
        fill = np.clip(len(tokens) - (bins - 1) * batch, 1, len(tokens))
        light = np.concatenate([[0], np.cumsum(tokens)])
        bound = np.maximum(bound, tokens[-1] + light[fill - 1])
        for (num, cap), interval in self._loads.items():
            bound = np.where((bins == num) & (batch == cap), np.maximum(bound, interval.lower), bound)
        return np.asarray(bound, dtype=np.int64)

    def _load_by_bins(self, bins: int) -> int:
        """Longest, mean, and pigeonhole: of the ``k * bins + 1`` longest some bin holds k + 1."""
        key = ("load", bins)
        if key not in self._closed:
            longest_first = sequence_tokens(self.problem)[::-1]
            bound = max(longest_first[0], -(-sum(longest_first) // bins))
            for k in range(1, (len(longest_first) - 1) // bins + 1):
                last = k * bins + 1
                bound = max(bound, sum(longest_first[last - k - 1 : last]))
            self._closed[key] = bound
        return self._closed[key]

    def load_interval(self, bins: int, batch: int) -> Interval:
        """Bounds on the heaviest bin's tokens after a search; what the search space defines when uniform."""
        tokens = sequence_tokens(self.problem)
        if self.is_uniform:
            return Interval(tokens[-1] * batch, tokens[-1] * batch)
        used = min(bins, len(tokens))  # more bins than sequences stay empty
        key = (bins, batch)
        if key not in self._loads:
            lower = int(self.load(np.asarray(bins, dtype=np.int64), np.asarray(batch, dtype=np.int64)))
            self._loads[key] = search_items(tokens, [batch] * used, lower)
        return self._loads[key]


def layer_lower(counts_e: Sequence[int], capacities: Sequence[int]) -> int:
    """Lower bound on the busiest rank's load of one layer, in billionths of its tokens.

    The mean (shares are rounded up, so an expert's replicas add up to at least its share); the hottest expert over as
    many replicas as there can be; without redundancy, the lightest experts that fill the largest rank, and the t
    hottest experts on t ranks, each with the lightest company that fills its slots.
    """
    ranks, slots, total = len(capacities), sum(capacities), sum(counts_e)
    whole = sorted(expert_share(count, total, 1) for count in counts_e)
    most = min(ranks, 1 + slots - len(counts_e))
    bound = max(-(-sum(whole) // ranks), expert_share(max(counts_e), total, most))
    if slots > len(counts_e):
        return bound
    bound = max(bound, sum(whole[: max(capacities)]))
    least = min(capacities)
    bound = max(bound, whole[-1] + sum(whole[: least - 1]))
    # Pigeonhole: of the k * ranks + 1 heaviest experts some rank holds k + 1, at least the lightest of them.
    for k in range(1, (len(whole) - 1) // ranks + 1):
        heavy = whole[::-1][: k * ranks + 1]
        bound = max(bound, sum(heavy[-(k + 1) :]))
    return bound


def search_layer(counts_e: Sequence[int], capacities: Sequence[int], nodes: int = MAX_NODES) -> Interval:
    """Busiest rank of one layer: bound, greedy packing, and a small exact search."""
    lower, total, ranks = layer_lower(counts_e, capacities), sum(counts_e), len(capacities)
    redundant = sum(capacities) - len(counts_e)
    if redundant == 0:
        return search_items([expert_share(c, total, 1) for c in counts_e], list(capacities), lower, nodes)
    replicas = [1] * len(counts_e)
    for _ in range(redundant):
        hottest = max((e for e in range(len(counts_e)) if replicas[e] < ranks), key=lambda e: counts_e[e] / replicas[e])
        replicas[hottest] += 1
    shares = [expert_share(c, total, r) for c, r in zip(counts_e, replicas, strict=True)]
    upper = _pack_replicas(shares, replicas, capacities)
    if upper <= lower or len(counts_e) > MAX_SEARCHED_ITEMS:
        return Interval(min(lower, upper), upper)
    return _ReplicaSearch(counts_e, capacities, Interval(lower, upper), nodes).run()


def _pack_replicas(shares: Sequence[int], replicas: Sequence[int], capacities: Sequence[int]) -> int:
    """Busiest rank when experts with many replicas, then heavy ones, go to the least loaded ranks with room."""
    loads, room = [0] * len(capacities), list(capacities)
    for expert in sorted(range(len(shares)), key=lambda e: (-replicas[e], -shares[e])):
        free = sorted((r for r in range(len(room)) if room[r]), key=lambda r: loads[r])
        if len(free) < replicas[expert]:
            return sum(shares[e] * replicas[e] for e in range(len(shares)))  # stuck: a bound that always holds
        for rank in free[: replicas[expert]]:
            loads[rank] += shares[expert]
            room[rank] -= 1
    return max(loads)


class _ReplicaSearch:
    """Depth first over the experts, heaviest first: number of replicas, then the set of ranks."""

    def __init__(self, counts_e: Sequence[int], capacities: Sequence[int], known: Interval, nodes: int) -> None:
        self.counts, self.total = sorted(counts_e, reverse=True), sum(counts_e)
        self.room, self.loads = list(capacities), [0] * len(capacities)
        self.lower, self.best, self.nodes = known.lower, known.upper, nodes

    def run(self) -> Interval:
        """The exact value where the search ends within its nodes."""
        self._place(0, sum(self.room) - len(self.counts))
        return Interval(self.best if self.nodes >= 0 else self.lower, self.best)

    def _place(self, expert: int, spare: int) -> None:
        self.nodes -= 1
        if self.nodes < 0 or self.best <= self.lower:
            return
        if expert == len(self.counts):
            if spare == 0:
                self.best = min(self.best, max(self.loads))
            return
        for count in range(1, min(len(self.room), 1 + spare) + 1):
            share = expert_share(self.counts[expert], self.total, count)
            seen = set()
            for ranks in combinations([r for r in range(len(self.room)) if self.room[r]], count):
                look = tuple(sorted((self.loads[r], self.room[r]) for r in ranks))
                if look in seen or max(self.loads[r] for r in ranks) + share >= self.best:
                    continue
                seen.add(look)
                self._shift(ranks, share, -1)
                self._place(expert + 1, spare - count + 1)
                self._shift(ranks, -share, 1)

    def _shift(self, ranks: tuple[int, ...], load: int, room: int) -> None:
        for rank in ranks:
            self.loads[rank] += load
            self.room[rank] += room


def search_items(weights: Sequence[int], rooms: Sequence[int], lower: int, nodes: int = MAX_NODES) -> Interval:
    """Heaviest of bins with `rooms` places, every item placed once: greedy with swaps, then a small exact search."""
    items = sorted(weights, reverse=True)
    packed = _pack(items, list(rooms))
    upper = max(sum(members) for members in packed)
    if upper > lower:
        upper = _swap(packed, lower)
    if upper <= lower or len(items) > MAX_SEARCHED_ITEMS:
        return Interval(min(lower, upper), upper)
    return _ItemSearch(items, list(rooms), Interval(lower, upper), nodes).run()


def _pack(items: Sequence[int], room: list[int]) -> list[list[int]]:
    """Longest first onto the lightest bin with room."""
    bins: list[list[int]] = [[] for _ in room]
    loads = np.zeros(len(room), dtype=np.int64)
    for item in items:
        chosen = int(np.argmin(loads))
        bins[chosen].append(item)
        loads[chosen] += item
        room[chosen] -= 1
        if not room[chosen]:
            loads[chosen] += 2**60
    return bins


def _swap(bins: list[list[int]], lower: int) -> int:
    """Swap an item of the heaviest bin with a lighter one elsewhere while the heaviest of the two shrinks."""
    loads = [sum(members) for members in bins]
    for _ in range(min(MAX_SWAPS, 1 + MAX_SWAP_ITEMS // sum(len(members) for members in bins))):
        worst = max(range(len(bins)), key=lambda b: loads[b])
        best, choice = loads[worst], None
        for other in range(len(bins)):
            if other == worst or loads[other] >= best:
                continue
            for i, a in enumerate(bins[worst]):
                for j, b in enumerate(bins[other]):
                    after = max(loads[worst] - a + b, loads[other] + a - b)
                    if b < a and after < best:
                        best, choice = after, (i, other, j)
        if choice is None or loads[worst] <= lower:
            break
        i, other, j = choice
        bins[worst][i], bins[other][j] = bins[other][j], bins[worst][i]
        loads[worst], loads[other] = sum(bins[worst]), sum(bins[other])
    return max(loads)


class _ItemSearch:
    """Depth first over the items, heaviest first; bins that look alike are tried once."""

    def __init__(self, items: Sequence[int], room: list[int], known: Interval, nodes: int) -> None:
        self.items, self.room, self.loads = items, room, [0] * len(room)
        self.lower, self.best, self.nodes = known.lower, known.upper, nodes
        # Where all places are taken in the end, a bin's last k places cost at least the k lightest items.
        light = [0]
        for item in reversed(items):
            light.append(light[-1] + item)
        self.light = light if sum(room) == len(items) else [0] * (max(room) + 1)

    def run(self) -> Interval:
        """The exact value where the search ends within its nodes."""
        self._place(0)
        return Interval(self.best if self.nodes >= 0 else self.lower, self.best)

    def _place(self, index: int) -> None:
        self.nodes -= 1
        if self.nodes < 0 or self.best <= self.lower:
            return
        if index == len(self.items):
            self.best = min(self.best, max(self.loads))
            return
        item, seen = self.items[index], set()
        for b in sorted(range(len(self.room)), key=lambda b: self.loads[b]):
            look = (self.loads[b], self.room[b])
            if not self.room[b] or look in seen:
                continue
            if self.loads[b] + item + self.light[self.room[b] - 1] >= self.best:
                continue
            seen.add(look)
            self.loads[b] += item
            self.room[b] -= 1
            self._place(index + 1)
            self.loads[b] -= item
            self.room[b] += 1
