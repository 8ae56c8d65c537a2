"""Batches block: which sequence goes to which bin, a bin being one attention-DP rank and micro-batch.

Minimise the heaviest bin's context tokens with at most `batch` sequences per bin.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from solver.cost.machine import Ints

MAX_EXACT_VARIABLES = 4000
"""Largest model (sequences x bins) that CP-SAT is asked to close."""
MAX_SWAPS = 2000
MAX_NEAR = 2**16
"""Pairs of sequences that a swap is chosen from first: with those of the lightest bins."""


@dataclass(frozen=True)
class BatchesResult:
    """Bins of sequence indices (ascending lengths), the heaviest bin's tokens and its proved lower bound."""

    bins: tuple[tuple[int, ...], ...]
    load: int
    bound: int


def load_bound(tokens: Sequence[int], bins: int) -> int:
    """Lower bound on the heaviest bin, whatever the cap: mean, longest, and the pigeonhole bounds.

    Among the ``k * bins + 1`` longest sequences some bin holds ``k + 1``, at least the k + 1 shortest of them.
    """
    return load_bounds(tokens, (bins,))[0]


def load_bounds(tokens: Sequence[int], numbers_of_bins: Sequence[int]) -> list[int]:
    """:func:`load_bound` for many numbers of bins; the sequences are sorted and added up once."""
    longest_first = np.sort(np.asarray(tokens, dtype=np.int64))[::-1]
    total = np.concatenate(([0], np.cumsum(longest_first)))
    bounds = []
    for bins in numbers_of_bins:
        k = np.arange(1, (len(longest_first) - 1) // bins + 1)
        crowded = total[k * bins + 1] - total[k * (bins - 1)]
        bounds.append(max(int(longest_first[0]), -(-int(total[-1]) // bins), int(crowded.max(initial=0))))
    return bounds


def solve_batches(tokens: Sequence[int], bins: int, cap: int, deadline: float) -> BatchesResult | None:
    """Exact where it closes; None when the sequences do not fit ``bins * cap`` slots.

    `tokens` are the sequences' context lengths in ascending order; `deadline` is a ``time.monotonic`` value.
    """
    if len(tokens) > bins * cap:
        return None
    bound = load_bound(tokens, min(bins, len(tokens)))
    found = _longest_first(tokens, bins, cap)
    load = max(sum(tokens[i] for i in members) for members in found)
    if load > bound:
        found, load = _improve(tokens, found, bound)
    if load > bound:
        found, load, bound = _close(tokens, found, cap, load, bound, deadline)
    return BatchesResult(tuple(tuple(sorted(members)) for members in found), load, bound)


def _longest_first(tokens: Sequence[int], bins: int, cap: int) -> list[list[int]]:
    """Longest sequence first into the lightest bin with room."""
    found: list[list[int]] = [[] for _ in range(bins)]
    heap = [(0, b) for b in range(bins)]
    for index in reversed(range(len(tokens))):
        load, lightest = heapq.heappop(heap)
        found[lightest].append(index)
        if len(found[lightest]) < cap:
            heapq.heappush(heap, (load + tokens[index], lightest))
    return found


def _improve(tokens: Sequence[int], found: list[list[int]], bound: int) -> tuple[list[list[int]], int]:
    """Best swap between the heaviest bin and a sequence elsewhere, while it helps and the bound is not reached."""
    lengths = np.asarray(tokens, dtype=np.int64)
    members = [np.sort(np.asarray(bin_, dtype=np.int64)) for bin_ in found]
    loads = np.array([int(lengths[bin_].sum()) for bin_ in members], dtype=np.int64)
    sizes = np.array([len(bin_) for bin_ in members], dtype=np.int64)
    for _ in range(min(MAX_SWAPS, 20 * len(found))):
        worst = int(np.argmax(loads))
        if loads[worst] <= bound:
            break
        swap = _best_swap(lengths, members, loads, sizes, worst)
        if swap is None:
            break
        a, b, other = swap
        change = int(lengths[a] - lengths[b])
        loads[worst] -= change
        loads[other] += change
        members[worst] = np.sort(np.append(members[worst][members[worst] != a], b))
        members[other] = np.sort(np.append(members[other][members[other] != b], a))
    return [bin_.tolist() for bin_ in members], int(loads.max())


def _best_swap(lengths: Ints, members: list[Ints], loads: Ints, sizes: Ints, worst: int) -> tuple[int, int, int] | None:
    """(sequence of the heaviest bin, sequence of another, that other bin) whose exchange leaves the least heavier load.

    Of many sequences those of the lightest bins come first, and if none of them helps, one of every length: that of
    the lightest bin that has it. None when nothing helps.
    """
    by_load = np.argsort(loads, kind="stable")
    by_load = by_load[by_load != worst]
    near = by_load[: max(1, int(np.searchsorted(np.cumsum(sizes[by_load]) * sizes[worst], MAX_NEAR, side="right")))]
    for bins in (near, by_load) if len(near) < len(by_load) else (near,):
        others = np.concatenate([members[b] for b in bins.tolist()] or [members[worst][:0]])
        owner = np.repeat(bins, sizes[bins])
        order = np.argsort(others) if len(bins) == len(near) else np.unique(lengths[others], return_index=True)[1]
        swap = _exchange(lengths, members[worst], others[order], loads[owner[order]], int(loads[worst]))
        if swap is not None:
            return int(members[worst][swap[0]]), int(others[order][swap[1]]), int(owner[order][swap[1]])
    return None


def _exchange(lengths: Ints, mine: Ints, others: Ints, loads: Ints, load: int) -> tuple[int, int] | None:
    """Positions in `mine` and `others` (in bins of `loads`) of the best swap; None when `load` stays as it is."""
    if not len(others):
        return None
    delta = lengths[mine][:, None] - lengths[others][None, :]
    after = np.maximum(load - delta, loads[None, :] + delta)
    after = np.where(delta > 0, after, np.iinfo(np.int64).max)
    row, column = (int(axis) for axis in np.unravel_index(int(np.argmin(after)), after.shape))
    return (row, column) if after[row, column] < load else None


def _close(
    tokens: Sequence[int], found: list[list[int]], cap: int, load: int, bound: int, deadline: float
) -> tuple[list[list[int]], int, int]:
    """Exact model, equal lengths counted instead of told apart; returns (bins, load, proved bound)."""
    bins, left = len(found), deadline - time.monotonic()
    lengths = sorted(set(tokens), reverse=True)
    if len(lengths) * bins > MAX_EXACT_VARIABLES or left <= 0:
        return found, load, bound
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    makespan = model.new_int_var(bound, load, "makespan")
    supply = {length: tokens.count(length) for length in lengths}
    n_lb = [[model.new_int_var(0, min(cap, supply[s]), f"n_{s}_{b}") for b in range(bins)] for s in lengths]
    for row, length in zip(n_lb, lengths, strict=True):
        model.add(sum(row) == supply[length])
    for b in range(bins):
        model.add(sum(row[b] for row in n_lb) <= cap)
        model.add(sum(length * row[b] for row, length in zip(n_lb, lengths, strict=True)) <= makespan)
        for row, length in zip(n_lb, lengths, strict=True):
            model.add_hint(row[b], sum(tokens[i] == length for i in found[b]))
    model.minimize(makespan)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = min(left, 10.0)
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    if solver.status_name(solver.solve(model)) not in ("OPTIMAL", "FEASIBLE"):
        return found, load, bound
    rest = {length: [i for i, t in enumerate(tokens) if t == length] for length in lengths}
    exact: list[list[int]] = [[] for _ in range(bins)]
    for row, length in zip(n_lb, lengths, strict=True):
        for b in range(bins):
            exact[b] += [rest[length].pop() for _ in range(solver.value(row[b]))]
    proved = max(bound, int(solver.response_proto.inner_objective_lower_bound))
    return exact, max(sum(tokens[i] for i in members) for members in exact), proved
