"""A deployment realised in every scenario: blocks solved, one layout of stages, exact metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from solver.cost.horizon import SHARED_PRODUCT, horizon_violations
from solver.cost.layers import Blocks
from solver.cost.leaves import Leaves
from solver.cost.ledger import stage_ledgers
from solver.cost.limits import limit_violations
from solver.cost.metrics import Figures, evaluate_times, objective_value
from solver.cost.scenarios import Yardstick
from solver.legality import Violation
from solver.scenarioplan import COMMON
from solver.search.loop import Loop
from solver.search.realise import Realised, memory_violations
from solver.search.scenarios.stages import common_layout, figures_with
from solver.search.stages import StagesProblem
from solver.specs.problem import Problem
from solver.strategy import Strategy, packing_of

Strategies = tuple[Strategy, ...]
"""One strategy a scenario; they agree in :data:`solver.scenarioplan.COMMON`."""


@dataclass(frozen=True)
class Deployed:
    """One deployment in all scenarios. Infeasible (a limit or the memory of some scenario) when `total` is absent."""

    parts: tuple[Realised, ...]
    total: int | None
    """The integer that is minimised."""
    expected: int

    @property
    def strategies(self) -> Strategies:
        """The strategy of every scenario."""
        return tuple(part.strategy for part in self.parts)

    @property
    def key(self) -> tuple[int, int, tuple[tuple[int | str | bool, ...], ...]]:
        """What a smaller deployment is better by."""
        assert self.total is not None
        return (self.total, self.expected, tuple(strategy.sort_key for strategy in self.strategies))


def with_common(own: Strategy, common: Strategy) -> Strategy:
    """A strategy with the common decisions of another one."""
    return own.model_copy(update={name: getattr(common, name) for name in COMMON})


def deploy(loops: Sequence[Loop], strategies: Strategies, yardstick: Yardstick) -> Deployed:
    """Solve the blocks of every scenario, and the layout of stages for all of them together."""
    parts = tuple(loop.realise(strategy) for loop, strategy in zip(loops, strategies, strict=True))
    if strategies[0].pp > 1 and not any(part.violations for part in parts):
        problems = _stages(loops, strategies, [(part.blocks.load_tokens, part.blocks.lambda_ppm) for part in parts])
        layout = _layout(problems, yardstick, [part.blocks.stage_layers for part in parts])
        if layout is None:
            return Deployed(parts, None, 0)
        parts = tuple(_with_layout(loop.leaves, part, layout) for loop, part in zip(loops, parts, strict=True))
    values = [part.value for part in parts]
    feasible = not any(
        part.violations or _missed(part.figures, loop.problem) for loop, part in zip(loops, parts, strict=True)
    )
    return Deployed(parts, yardstick.total(values) if feasible else None, yardstick.expected(values))


@dataclass(frozen=True)
class Least:
    """What is proved of some strategies: no placement makes them cheaper; infeasible when `total` is absent."""

    strategies: Strategies
    total: int | None
    expected: int


def least(loops: Sequence[Loop], deployed: Deployed, yardstick: Yardstick) -> Least:
    """Proved cost of a deployment's strategies: blocks at their proved bounds, the best common layout."""
    strategies = deployed.strategies
    bounds = []
    for part in deployed.parts:
        load = part.blocks.load_tokens if part.batches is None else part.batches.bound
        bounds.append((load, part.blocks.lambda_ppm if part.experts is None else part.experts.bound_ppm))
    problems = _stages(loops, strategies, bounds)
    layout = _layout(problems, yardstick, [])
    if layout is None:
        return Least(strategies, None, 0)
    for loop, strategy, (load, factor) in zip(loops, strategies, bounds, strict=True):
        if memory_violations(stage_ledgers(loop.leaves, strategy, Blocks(load, factor, layout))):
            return Least(strategies, None, 0)
    values = _values(problems, figures_with(problems, layout))
    return Least(strategies, yardstick.total(values), yardstick.expected(values))


def _stages(
    loops: Sequence[Loop], strategies: Strategies, blocks: Sequence[tuple[int, int]]
) -> tuple[StagesProblem, ...]:
    return tuple(
        StagesProblem(loop.leaves, strategy, packing_of(loop.problem, strategy), load, factor)
        for loop, strategy, (load, factor) in zip(loops, strategies, blocks, strict=True)
    )


def _values(problems: Sequence[StagesProblem], figures: Sequence[Figures]) -> list[int]:
    names = [problem.leaves.problem.objective.name for problem in problems]
    return [objective_value(name, each) for name, each in zip(names, figures, strict=True)]


def _layout(
    problems: Sequence[StagesProblem], yardstick: Yardstick, wished: Sequence[tuple[int, ...]]
) -> tuple[int, ...] | None:
    """The best common layout; the wish of every scenario where all agree."""
    if wished and len(set(wished)) == 1:
        return wished[0]

    def rank(figures: Sequence[Figures]) -> tuple[int, ...] | None:
        if any(_missed(each, problem.leaves.problem) for problem, each in zip(problems, figures, strict=True)):
            return None
        values = _values(problems, figures)
        return (yardstick.total(values), yardstick.expected(values))

    if problems[0].strategy.pp == 1:
        whole = (problems[0].leaves.problem.llm.num_layers,)
        return None if rank(figures_with(problems, whole)) is None else whole
    return common_layout(problems, rank)


def _missed(figures: Figures, problem: Problem) -> list[Violation]:
    """Limits and horizon that one scenario's metrics exceed."""
    return [*limit_violations(problem, figures), *horizon_violations(problem, figures, SHARED_PRODUCT)]


def _with_layout(leaves: Leaves, part: Realised, layout: tuple[int, ...]) -> Realised:
    if part.blocks.stage_layers == layout:
        return part
    blocks = replace(part.blocks, stage_layers=layout)
    figures = evaluate_times(leaves, part.strategy, packing_of(leaves.problem, part.strategy), blocks)
    ledgers = stage_ledgers(leaves, part.strategy, blocks)
    return replace(
        part,
        blocks=blocks,
        figures=figures,
        ledgers=ledgers,
        violations=(*memory_violations(ledgers), *_missed(figures, leaves.problem)),
        value=objective_value(leaves.problem.objective.name, figures),
    )
