"""Evaluation of one named strategy: its placement blocks solved, its metrics and ledger, no claim about others.

OR-tools is imported only where a block is searched, or the knobs of named degrees.
"""

from __future__ import annotations

import time

from solver.cost.leaves import Leaves
from solver.cost.sources import operator_sources, source_notes
from solver.degrees import grid_above
from solver.engines import ENGINE_MESH
from solver.errors import StrategyError
from solver.legality import violations
from solver.packing import canonical_mesh
from solver.plan import Evaluation, PlannedStrategy
from solver.search.assemble import breakdown_of, closed_loop_of, metrics_of, placement_of
from solver.search.realise import BlockCache, realise
from solver.specs.problem import Pins, Problem
from solver.strategy import Strategy

BLOCK_SECONDS = 30.0
"""Time limit of the placement blocks."""
KNOB_SECONDS = 60.0
"""Time limit of the search for the best knobs of named degrees."""


def evaluate_strategy(problem: Problem, strategy: Strategy) -> Evaluation:
    """Metrics of a complete strategy."""
    broken = violations(problem, strategy)
    if broken:
        raise StrategyError(f"{strategy.label} is illegal: {'; '.join(str(v) for v in broken)}")
    leaves = Leaves(problem)
    realised = realise(BlockCache(leaves), strategy, None, time.monotonic() + BLOCK_SECONDS)
    sources = operator_sources(problem, strategy, realised.blocks)
    return Evaluation(
        strategy=PlannedStrategy.of(strategy),
        metrics=metrics_of(problem, realised.figures),
        breakdown=breakdown_of(leaves, strategy, realised.blocks),
        memory=realised.ledgers,
        placement=placement_of(problem, realised),
        closed_loop=closed_loop_of(leaves, strategy, realised.blocks),
        violations=tuple(str(v) for v in realised.violations),
        operator_sources=sources,
        assumptions=(*problem.assumptions, *source_notes(problem, sources)),
        problem=problem,
    )


def evaluate_label(problem: Problem, strategy: Strategy) -> Evaluation:
    """Metrics of named degrees with the best knobs for the objective; without memory-legal knobs, the plain ones."""
    from solver.search.loop import Loop
    from solver.search.program import SearchLimits

    degrees = ("attn_tp", "attn_dp", "moe_tp", "moe_ep", "pp", "replicas")
    if not problem.llm.is_moe and strategy.moe_tp == strategy.attn_tp and strategy.attn_dp == 1:
        strategy = strategy.model_copy(update={"moe_tp": 1, "moe_ep": 1})
    mesh = canonical_mesh(ENGINE_MESH[problem.engine][0], strategy.attn_tp, strategy.attn_dp, strategy.pp)
    strategy = strategy.model_copy(update={"mesh_order": mesh})
    concurrency = problem.workload.concurrency
    bins = strategy.replicas * strategy.attn_dp
    plain = (
        strategy if concurrency is None else strategy.model_copy(update={"batch": grid_above(-(-concurrency // bins))})
    )
    given = problem.pins.given()
    knobs = {name: value for name, value in given.items() if name not in (*degrees, "mesh_order")}
    degrees_given = Pins(**{name: value for name, value in given.items() if name not in knobs})
    broken = violations(problem.model_copy(update={"pins": degrees_given}), plain)
    if broken:
        raise StrategyError(f"{strategy.label} is illegal: {'; '.join(str(v) for v in broken)}")
    fixed = {**given, **{name: getattr(strategy, name) for name in degrees}}
    pinned = problem.model_copy(update={"pins": Pins(**fixed)})
    objective = problem.objective if problem.objective.name not in ("weighted", "gpus") else None
    if objective is None:
        pinned = pinned.model_copy(update={"objective": type(problem.objective)(name="latency")})
    best = Loop(pinned, SearchLimits(1, 0, KNOB_SECONDS), lambda _progress: None, None).run().best
    return evaluate_strategy(problem, best.strategy if best is not None else plain.model_copy(update=knobs))
