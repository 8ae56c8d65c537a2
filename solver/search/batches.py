"""Batches block: which sequence goes to which bin, a bin being one attention-DP rank and micro-batch.

Minimise the heaviest bin's context tokens with at most `batch` sequences per bin.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ortools.sat.python import cp_model

MAX_EXACT_VARIABLES = 4000
"""Largest model (sequences x bins) that CP-SAT is asked to close."""


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
    lengths = np.sort(np.asarray(tokens, dtype=np.int64))[::-1]
    bound = max(int(lengths[0]), -(-int(lengths.sum()) // bins))
    for k in range(1, (len(lengths) - 1) // bins + 1):
        last = k * bins + 1
        bound = max(bound, int(lengths[last - k - 1 : last].sum()))
    return bound


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
        found, load = _improve(tokens, found)
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


def _improve(tokens: Sequence[int], found: list[list[int]]) -> tuple[list[list[int]], int]:
    """Best swap between the heaviest bin and any sequence elsewhere, while it helps."""
    lengths = np.asarray(tokens, dtype=np.int64)
    owner = np.empty(len(tokens), dtype=np.int64)
    for b, members in enumerate(found):
        owner[members] = b
    loads = np.bincount(owner, weights=lengths, minlength=len(found)).astype(np.int64)
    for _ in range(min(2000, 20 * len(found))):
        worst = int(np.argmax(loads))
        mine = np.flatnonzero(owner == worst)
        others = np.flatnonzero(owner != worst)
        if not len(others):
            break
        delta = lengths[mine][:, None] - lengths[others][None, :]
        after = np.maximum(loads[worst] - delta, loads[owner[others]][None, :] + delta)
        after = np.where(delta > 0, after, np.iinfo(np.int64).max)
        row, column = np.unravel_index(int(np.argmin(after)), after.shape)
        if after[row, column] >= loads[worst]:
            break
        a, b = int(mine[row]), int(others[column])
        change = int(lengths[a] - lengths[b])
        loads[worst] -= change
        loads[owner[b]] += change
        owner[a], owner[b] = owner[b], owner[a]
    return [[int(i) for i in np.flatnonzero(owner == b)] for b in range(len(found))], int(loads.max())


def _close(
    tokens: Sequence[int], found: list[list[int]], cap: int, load: int, bound: int, deadline: float
) -> tuple[list[list[int]], int, int]:
    """Exact model, equal lengths counted instead of told apart; returns (bins, load, proved bound)."""
    bins, left = len(found), deadline - time.monotonic()
    lengths = sorted(set(tokens), reverse=True)
    if len(lengths) * bins > MAX_EXACT_VARIABLES or left <= 0:
        return found, load, bound
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
