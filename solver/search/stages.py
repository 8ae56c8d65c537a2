"""Stages block: which layers form which pipeline stage, for given degrees.

Contiguous stages, each with at least one layer, minimising the objective through the slowest stage of both phases
under the memory of every stage; among equals the one with the smallest slowest stages, then the most even one.

Metrics depend on a layout only through its slowest stage in decode and in prefill, and rise with both, so the best
layout is a Pareto point of the two. All Pareto points are found by dynamic programming: the least prefill bottleneck
under a limit on the decode bottleneck, then the least decode bottleneck that allows a smaller one, and so on. (As a
CP-SAT model this block could climb by one ns at a time: the objective is a maximum of sums of large integers.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from solver.cost.horizon import in_horizon
from solver.cost.layers import Blocks, PhaseTimes
from solver.cost.leaves import Leaves
from solver.cost.ledger import layer_kib, stage_constant_kib
from solver.cost.limits import is_within, limits_of
from solver.cost.machine import Ints
from solver.cost.metrics import Utopia, evaluate_times, objective_value
from solver.packing import Packing
from solver.strategy import Strategy

HUGE = 2**62
"""Bottleneck of an impossible stage."""


@dataclass(frozen=True)
class StagesProblem:
    """A strategy with everything but its stage layout decided."""

    leaves: Leaves
    strategy: Strategy
    packing: Packing
    load_tokens: int
    lambda_ppm: int


def solve_stages(problem: StagesProblem, utopia: Utopia | None, *, with_slos: bool = True) -> tuple[int, ...] | None:
    """Layers of every stage, first to last; None when none meets memory (and SLOs and horizon, unless left out)."""
    leaves, strategy = problem.leaves, problem.strategy
    num_layers, objective = leaves.problem.llm.num_layers, leaves.problem.objective
    if strategy.pp == 1:
        return (num_layers,)
    if strategy.pp > num_layers:
        return None
    weights = utopia.weights(objective.latency_weight) if utopia else (0, 0)
    limits = limits_of(leaves.problem)
    best: tuple[tuple[int, int], tuple[int, ...]] | None = None
    for slowest, layout in _pareto(problem):
        blocks = Blocks(problem.load_tokens, problem.lambda_ppm, layout)
        figures = evaluate_times(leaves, strategy, problem.packing, blocks)
        key = (objective_value(objective.name, figures, weights), slowest)
        if best is not None and key >= best[0]:
            continue
        if not with_slos or (is_within(limits, figures) and in_horizon(leaves.problem, figures)):
            best = key, layout
    return None if best is None else best[1]


def _pareto(problem: StagesProblem) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Pareto-optimal layouts that fit the memory, with the sum of their slowest stages, by rising decode bottleneck."""
    pp = problem.strategy.pp
    fits = fitting(problem)
    decode, prefill = (forbid(times, fits) for times in stage_times(problem))
    limit = HUGE
    while True:
        fastest = _bottleneck(forbid(decode, prefill < limit), pp)
        if fastest is None:
            return
        found = _bottleneck(forbid(prefill, decode <= fastest.value), pp)
        assert found is not None
        yield fastest.value + found.value, found.layout
        limit = found.value


# --- costs of every possible stage, arrays [role, first layer, layer after the last] ----------------------------------

FIRST, MIDDLE, LAST = range(3)


def stage_times(problem: StagesProblem) -> Iterator[Ints]:
    """Time of every possible stage in decode and in prefill, ns."""
    leaves, llm = problem.leaves, problem.leaves.problem.llm
    blocks = Blocks(problem.load_tokens, problem.lambda_ppm, (llm.num_layers,))
    for phase in ("decode", "prefill"):
        times = PhaseTimes(leaves, problem.strategy, problem.packing, phase, blocks)
        by_kind = {kind: times.layer(kind).total_ns for kind in llm.kinds}
        yield _spans([by_kind[kind] for kind in llm.layers], (times.embedding_ns, 0, times.head_ns))


def fitting(problem: StagesProblem) -> npt.NDArray[np.bool_]:
    """Whether a stage has layers and fits the memory."""
    leaves, strategy, llm = problem.leaves, problem.strategy, problem.leaves.problem.llm
    blocks = Blocks(problem.load_tokens, problem.lambda_ppm, (llm.num_layers,))
    by_kind = {kind: layer_kib(leaves, strategy, blocks, kind) for kind in llm.kinds}
    roles = (FIRST, MIDDLE, LAST)
    constant = [stage_constant_kib(leaves, strategy, is_first=role == FIRST, is_last=role == LAST) for role in roles]
    held = _spans([by_kind[kind] for kind in llm.layers], constant)
    position = np.arange(llm.num_layers + 1)
    return np.asarray((held <= leaves.memory.capacity_kib) & (position[:, None] < position[None, :]))


def _spans(layers: Sequence[int], extras: Sequence[int]) -> Ints:
    """Sum of layers ``a`` to ``b - 1``, plus what the role adds."""
    prefix = np.array([0, *np.cumsum(layers).tolist()], dtype=np.int64)
    return (prefix[None, :] - prefix[:, None])[None, :, :] + np.array(extras, dtype=np.int64)[:, None, None]


def forbid(cost: Ints, allowed: npt.NDArray[np.bool_]) -> Ints:
    """The costs, :data:`HUGE` where a stage is not allowed."""
    return np.where(allowed, cost, HUGE)


# --- dynamic programming ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """A layout with its bottleneck."""

    value: int
    layout: tuple[int, ...]


def _bottleneck(cost: Ints, pp: int) -> _Found | None:
    """Layout of `pp` stages whose costliest stage is cheapest; None when every layout holds an impossible stage."""
    num_layers = cost.shape[1] - 1
    position = np.arange(num_layers + 1)
    least = cost[FIRST, 0]
    firsts: list[Ints] = []
    for stage in range(1, pp):
        through = np.maximum(least[:, None], cost[LAST if stage == pp - 1 else MIDDLE])
        least = through.min(axis=0)
        uneven = np.abs(position * pp - stage * num_layers)[:, None]
        firsts.append(np.where(through == least[None, :], uneven, HUGE).argmin(axis=0))
    if least[num_layers] >= HUGE:
        return None
    ends = [num_layers]
    for first in reversed(firsts):
        ends.append(int(first[ends[-1]]))
    sizes = [after - before for after, before in pairwise([*ends, 0])]
    return _Found(int(least[num_layers]), tuple(reversed(sizes)))
