"""A whole search over scenarios: every scenario alone, the joint loop, the document or the reasons for none."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from solver.certificate import Parameters, Versions, WallTimes
from solver.cost.metrics import natural_value
from solver.cost.scenarios import TOTAL_UNITS, Yardstick, natural_total
from solver.cost.sources import operator_sources, source_notes
from solver.errors import SpecError
from solver.plan import Evaluation, NoPlan, PlannedStrategy
from solver.scenarioplan import ScenarioClaim, ScenarioPlan, ScenarioResult
from solver.search.assemble import (
    assemble,
    breakdown_of,
    closed_loop_of,
    metrics_of,
    placement_of,
)
from solver.search.explain.reasons import reasons_for_none
from solver.search.loop import Loop, Progress
from solver.search.program import SearchLimits
from solver.search.realise import Realised
from solver.search.run import DEFAULT_WORKERS, SearchOptions
from solver.search.scenarios.deployed import Deployed
from solver.search.scenarios.loop import JointLoop
from solver.specs.problem import Problem
from solver.specs.scenarios import Over, Scenarios

SHARE_ALONE = 0.6
"""Share of a time limit that the scenarios' own optima may take together."""


@dataclass(frozen=True)
class Asked:
    """The whole question."""

    problem: Problem
    scenarios: Scenarios
    over: Over
    problems: tuple[Problem, ...]


def search_scenarios(
    asked: Asked, options: SearchOptions, on_progress: Callable[[Progress], None]
) -> ScenarioPlan | NoPlan:
    """Find and prove the best deployment for all scenarios."""
    started = time.monotonic()
    limits = SearchLimits(options.workers or DEFAULT_WORKERS, options.seed, options.time_limit_s)
    loops: list[Loop] = []
    for problem, scenario in zip(asked.problems, asked.scenarios.scenario, strict=True):
        waiting = len(asked.problems) - len(loops)
        loop = Loop(problem, _alone(limits, started, waiting), on_progress, None)
        outcome = loop.run()
        if outcome.status == "INFEASIBLE":
            reasons = reasons_for_none(problem, _alone(limits, started, waiting))
            return _none(asked, "INFEASIBLE", [f"scenario {scenario.name!r}: {said}" for said in reasons], started)
        if outcome.best is None or outcome.interrupted:
            said = f"the search ended before scenario {scenario.name!r} had a plan of its own; give it more time"
            return _none(asked, "UNKNOWN", [said], started)
        loops.append(loop)
    yardstick = Yardstick.of(asked.over, asked.scenarios.parts, [loop.outcome.bound for loop in loops])
    _in_range(asked, yardstick, loops)
    joint = JointLoop(loops, yardstick, _left(limits, started), on_progress)
    found = joint.run()
    if found.best is None:
        if found.status == "INFEASIBLE":
            return _none(asked, "INFEASIBLE", _conflict(asked, loops, limits), started)
        return _none(asked, "UNKNOWN", ["the search ended before any deployment for all scenarios was found"], started)
    return _document(asked, joint, loops, limits, started)


def _alone(limits: SearchLimits, started: float, waiting: int) -> SearchLimits:
    """Time for one scenario alone, fairly shared by those that wait."""
    if limits.time_s is None:
        return limits
    left = limits.time_s * SHARE_ALONE - (time.monotonic() - started)
    return SearchLimits(limits.workers, limits.seed, max(0.01, left / waiting))


def _left(limits: SearchLimits, started: float) -> SearchLimits:
    if limits.time_s is None:
        return limits
    return SearchLimits(limits.workers, limits.seed, max(0.01, limits.time_s - (time.monotonic() - started)))


def _in_range(asked: Asked, yardstick: Yardstick, loops: Sequence[Loop]) -> None:
    """Refuse sums that 64-bit arithmetic or the document's numbers could not hold."""
    best = [loop.outcome.best.value for loop in loops if loop.outcome.best is not None]
    if max(best) > yardstick.largest or yardstick.expected(best) >= 2**53:
        raise SpecError(
            f"the weights make {sum(yardstick.parts)} parts, and the weighted sum of the scenarios' optima "
            f"{yardstick.expected(best)} exceeds 2^53 = {2**53}: give coarser weights"
            + ("" if asked.over == "expected" else " or ask for --over expected")
        )


def _conflict(asked: Asked, loops: Sequence[Loop], limits: SearchLimits) -> list[str]:
    """A minimal set of scenarios that no deployment serves together, found by leaving them out one by one."""
    kept, decided = list(range(len(loops))), True
    for index in range(len(loops)):
        rest = [i for i in kept if i != index]
        if len(rest) < 2:
            continue
        own = [loops[i].outcome.bound for i in rest]
        some = JointLoop([loops[i] for i in rest], Yardstick.of("expected", [1] * len(rest), own), limits, _silent)
        outcome = some.run()
        decided = decided and (outcome.status == "INFEASIBLE" or outcome.best is not None)
        if outcome.status == "INFEASIBLE":
            kept = rest
    names = ", ".join(repr(asked.scenarios.scenario[i].name) for i in kept)
    repair = "leave any one of these out, or relax its limits" if decided else "there may be a smaller such set"
    return [
        f"every scenario has a plan of its own, but no single deployment meets memory and limits in {names} together: "
        f"{repair}"
    ]


def _silent(_progress: Progress) -> None:
    """Nothing is shown of a search that explains."""


def _none(asked: Asked, status: str, reasons: Sequence[str], started: float) -> NoPlan:
    return NoPlan.model_validate(
        {
            "status": status,
            "reasons": tuple(reasons),
            "problem_digest": asked.problem.digest,
            "wall_s": time.monotonic() - started,
        }
    )


# --- the document -------------------------------------------------------------------------------------------------


def _document(
    asked: Asked, joint: JointLoop, loops: Sequence[Loop], limits: SearchLimits, started: float
) -> ScenarioPlan:
    best, yardstick = joint.outcome.best, joint.yardstick
    assert best is not None
    values = [part.value for part in best.parts]
    results = tuple(
        ScenarioResult(
            name=scenario.name,
            part=part,
            value=realised.value,
            own_value=own.certificate.value,
            own_bound=bound,
            regret=regret,
            natural=natural_of(own.problem, realised.value),
            own_natural=natural_of(own.problem, own.certificate.value),
            plan=_evaluation(loop, realised),
            own=own,
        )
        for scenario, part, realised, own, bound, regret, loop in zip(
            asked.scenarios.scenario,
            yardstick.parts,
            best.parts,
            [assemble(loop.problem, loop.outcome, limits, None, _seconds(loop)) for loop in loops],
            yardstick.own,
            yardstick.regrets(values),
            loops,
            strict=True,
        )
    )
    proved = all(loop.outcome.status == "OPTIMAL" for loop in loops)
    return ScenarioPlan(
        status=joint.outcome.status if proved else "FEASIBLE",
        claim=_claim(asked, joint, limits, time.monotonic() - started),
        launched=_launched(best),
        scenarios=results,
        problem=asked.problem,
        asked=asked.scenarios,
        warnings=_warnings(asked, results),
    )


def _seconds(loop: Loop) -> float:
    return loop.outcome.tables_s + loop.outcome.program_s + loop.outcome.blocks_s


def natural_of(problem: Problem, value: int) -> float:
    """An objective integer of one scenario in the unit of its metric."""
    return natural_value(problem.objective.name, value, problem.workload.osl)


def _evaluation(loop: Loop, realised: Realised) -> Evaluation:
    """The deployment in one scenario."""
    problem, strategy, blocks = loop.problem, realised.strategy, realised.blocks
    sources = operator_sources(problem, strategy, blocks)
    return Evaluation(
        strategy=PlannedStrategy.of(strategy),
        metrics=metrics_of(problem, realised.figures),
        breakdown=breakdown_of(loop.leaves, strategy, blocks),
        memory=realised.ledgers,
        placement=placement_of(problem, realised),
        closed_loop=closed_loop_of(loop.leaves, strategy, blocks),
        violations=tuple(str(violation) for violation in realised.violations),
        operator_sources=sources,
        assumptions=(*problem.assumptions, *source_notes(problem, sources)),
        problem=problem,
    )


def _launched(best: Deployed) -> PlannedStrategy:
    """The deployment as it is started: room for the largest batches of all scenarios."""
    largest = {name: max(getattr(s, name) for s in best.strategies) for name in ("batch", "prefill_batch")}
    return PlannedStrategy.of(best.strategies[0].model_copy(update=largest))


def _claim(asked: Asked, joint: JointLoop, limits: SearchLimits, total_s: float) -> ScenarioClaim:
    outcome, yardstick, name = joint.outcome, joint.yardstick, asked.problem.objective.name
    assert outcome.best is not None
    assert outcome.best.total is not None
    total = outcome.best.total
    loops = joint.loops
    return ScenarioClaim(
        over=asked.over,
        value=total,
        bound=outcome.bound,
        gap=(total - outcome.bound) / total if total else 0.0,
        scale=yardstick.scale,
        unit=TOTAL_UNITS[name] if asked.over == "expected" else "(0.1 is 10 % worse than alone)",
        natural=natural_total(name, yardstick, total),
        iterations=tuple(outcome.iterations),
        program_digest=outcome.program_digest,
        versions=Versions.here(),
        parameters=Parameters(seed=limits.seed, workers=limits.workers, time_limit_s=limits.time_s),
        wall_s=WallTimes(
            tables=round(outcome.tables_s + sum(loop.outcome.tables_s for loop in loops), 4),
            program=round(outcome.program_s + sum(loop.outcome.program_s for loop in loops), 4),
            blocks=round(outcome.blocks_s + sum(loop.outcome.blocks_s for loop in loops), 4),
            total=round(total_s, 4),
        ),
    )


def _warnings(asked: Asked, results: Sequence[ScenarioResult]) -> tuple[str, ...]:
    """What holds of a single scenario is said of it, what holds of all is said once."""
    found: list[str] = []
    if asked.scenarios.is_rounded:
        shares = ", ".join(f"{result.name} {result.part}" for result in results)
        found.append(f"The weights are rounded to {sum(r.part for r in results)} parts: {shares}.")
    said = [result.own.warnings for result in results]
    everywhere = [w for w in said[0] if all(w in other for other in said[1:]) and "idle" not in w]
    found += everywhere
    unproved = [result.name for result in results if result.own.status != "OPTIMAL"]
    if unproved:
        found.append(f"The own optimum of {', '.join(unproved)} is not proved: regret is measured by its bound.")
    return tuple(found)
