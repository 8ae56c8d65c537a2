"""One layout of layers to stages for all scenarios, exact.

The metrics of a scenario depend on the layout only through its slowest stage in decode and in prefill, and rise with
both. So only layouts matter whose vector of slowest stages, two entries a scenario, is not dominated; they are found by
dynamic programming over (stages, layers) that keeps the undominated vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from solver.cost.layers import Blocks
from solver.cost.machine import Ints
from solver.cost.metrics import Figures, evaluate_times
from solver.search.stages import FIRST, HUGE, LAST, MIDDLE, StagesProblem, fitting, forbid, stage_times

Rank = Callable[[Sequence[Figures]], tuple[int, ...] | None]
"""Smaller is better; None when a limit is missed."""


def common_layout(stages: Sequence[StagesProblem], rank: Rank) -> tuple[int, ...] | None:
    """Layers of every stage, best by `rank` of all layouts that fit the memory in every scenario; None without any."""
    num_layers, pp = stages[0].leaves.problem.llm.num_layers, stages[0].strategy.pp
    if pp > num_layers:
        return None
    best: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    for layout in _undominated(stages, num_layers, pp):
        key = rank(figures_with(stages, layout))
        if key is not None and (best is None or (key, layout) < best):
            best = key, layout
    return None if best is None else best[1]


def figures_with(stages: Sequence[StagesProblem], layout: tuple[int, ...]) -> list[Figures]:
    """Metrics of every scenario with a layout."""
    return [
        evaluate_times(s.leaves, s.strategy, s.packing, Blocks(s.load_tokens, s.lambda_ppm, layout)) for s in stages
    ]


@dataclass(frozen=True)
class _Labels:
    """Undominated vectors of slowest stages, array [labels, 2 * scenarios], and the layouts that have them."""

    slowest: Ints
    layouts: list[tuple[int, ...]]


def _undominated(stages: Sequence[StagesProblem], num_layers: int, pp: int) -> list[tuple[int, ...]]:
    allowed = np.logical_and.reduce([fitting(problem) for problem in stages])
    # [role, first layer, layer after the last, scenario and phase]
    cost = np.stack([forbid(times, allowed) for problem in stages for times in stage_times(problem)], axis=-1)
    labels = {0: _Labels(np.zeros((1, cost.shape[-1]), dtype=np.int64), [()])}
    for stage in range(pp):
        role = FIRST if stage == 0 else LAST if stage == pp - 1 else MIDDLE
        last = stage == pp - 1
        ends = [num_layers] if last else range(stage + 1, num_layers - (pp - 1 - stage) + 1)
        labels = {
            end: merged
            for end in ends
            if (merged := _merged([(begin, known) for begin, known in labels.items() if begin < end], cost[role], end))
        }
    final = labels.get(num_layers)
    return [] if final is None else final.layouts


def _merged(before: list[tuple[int, _Labels]], cost: Ints, end: int) -> _Labels | None:
    """Labels that end at a layer, from those before its stage."""
    vectors, layouts = [], []
    for begin, known in before:
        if cost[begin, end].max() >= HUGE:
            continue
        vectors.append(np.maximum(known.slowest, cost[begin, end]))
        layouts += [(*layout, end - begin) for layout in known.layouts]
    if not vectors:
        return None
    slowest = np.concatenate(vectors)
    order = np.lexsort(slowest.T[::-1])
    kept: list[int] = []
    for i in order.tolist():
        if not kept or not bool((slowest[kept] <= slowest[i]).all(axis=1).any()):
            kept.append(i)
    return _Labels(slowest[kept], [layouts[i] for i in kept])
