"""Ranked alternatives: the best plan of every combination of degrees in turn, as enumeration finds them."""

from __future__ import annotations

from functools import cache
from unittest import mock

import pytest
from command_line import SMALL, error_line, run
from oracle import every_plan
from problems import draw

from solver import Plan, SolveOptions, solve, verify
from solver.cost.metrics import Utopia, objective_value
from solver.cost.terms import objective_terms
from solver.plan import Alternatives
from solver.search.loop import Loop
from solver.specs.problem import OBJECTIVES

ASKED = 3
SEEDS = (
    0, 1, 3, 5, 10, 15, 16, 19, 33, 37, 50, 59, 66, 90, 108, 113, 147, 183, 199, 206, 213, 300, 304, 344, 353,
    396, 405, 421, 439, 453, 460, 462, 489, 497, 505, 534, 544, 562, 576, 580, 583,
)  # fmt: skip
"""At most 400 legal strategies each: for every objective some with many combinations of degrees, some with few."""


@cache
def ranked_by_enumeration(seed: int) -> list[int]:
    """Best objective integer of every combination of degrees, ascending."""
    problem = draw(seed)
    plans = [(strategy.degrees, figures) for strategy, figures in every_plan(problem) if figures is not None]
    weights = (0, 0)
    if problem.objective.name == "weighted":
        latency = min(figures.request_latency_ns for _, figures in plans)
        efficiency = min(figures.inverse_efficiency_ns for _, figures in plans)
        weights = Utopia(latency, efficiency).weights(problem.objective.latency_weight)
    best: dict[tuple[int, ...], int] = {}
    for degrees, figures in plans:
        value = objective_value(problem.objective.name, figures, weights)
        best[degrees] = min(value, best.get(degrees, value))
    return sorted(best.values())


@cache
def plan_of(seed: int) -> Plan:
    plan = solve(draw(seed), SolveOptions(alternatives=ASKED))
    assert isinstance(plan, Plan)
    return plan


def ranking(plan: Plan) -> Alternatives:
    assert plan.alternatives is not None
    return plan.alternatives


@pytest.mark.parametrize("seed", SEEDS)
def test_the_ranks_are_those_of_enumeration(seed: int) -> None:
    values, plan = ranked_by_enumeration(seed), plan_of(seed)
    ranked = ranking(plan)
    assert [plan.certificate.value, *(other.value for other in ranked.ranked)] == values[: ASKED + 1]
    assert [other.rank for other in ranked.ranked] == list(range(2, len(ranked.ranked) + 2))
    assert ranked.complete == (len(values) <= ASKED)
    degrees = {plan.strategy.strategy().degrees, *(other.strategy.strategy().degrees for other in ranked.ranked)}
    assert len(degrees) == len(ranked.ranked) + 1
    assert verify(plan).findings == ()
    assert Plan.parse(plan.model_dump_json()) == plan


def test_the_cases_have_every_objective() -> None:
    assert {draw(seed).objective.name for seed in SEEDS} == set(OBJECTIVES)
    assert {len(ranked_by_enumeration(seed)) > ASKED for seed in SEEDS} == {True, False}


def test_the_exhaustive_judge_confirms_the_ranks() -> None:
    for seed in SEEDS[::8]:
        assert verify(plan_of(seed), exhaustive=True).findings == ()


@pytest.mark.parametrize("seed", SEEDS[::4])
def test_the_terms_add_up_to_the_objective(seed: int) -> None:
    # Times are rounded up to whole ns a few times a request: the sum of the terms is within a millionth of the integer.
    plan = plan_of(seed)
    stated = plan.certificate.utopia
    utopia = None if stated is None else Utopia(stated.latency_ns, stated.inverse_efficiency_ns)
    for each, value in ((plan, plan.certificate.value), *((other, other.value) for other in ranking(plan).ranked)):
        terms = objective_terms(plan.problem, each.metrics, each.breakdown, utopia)
        assert sum(terms.values()) == pytest.approx(value, rel=1e-4, abs=2)


def spoilt(plan: Plan, **values: object) -> Plan:
    """The plan with its first alternative changed."""
    ranked = ranking(plan)
    other = ranked.ranked[0].model_copy(update=values)
    return plan.model_copy(update={"alternatives": ranked.model_copy(update={"ranked": (other, *ranked.ranked[1:])})})


def several() -> Plan:
    """A plan with at least two alternatives that are worse than it."""
    plans = (plan_of(seed) for seed in SEEDS)
    return next(p for p in plans if len(ranking(p).ranked) >= 2 and ranking(p).ranked[0].distance > 0.01)


def test_the_judge_convicts_what_is_changed() -> None:
    plan = several()
    first, second = ranking(plan).ranked[:2]
    for change in (
        {"value": first.value + 1},
        {"objective": first.objective * 1.01},
        {"distance": first.distance + 0.01},
        {"rank": 3},
        {"why": ()},
        {"strategy": second.strategy},
        {"strategy": first.strategy.model_copy(update={"full_label": "A1x1-E1x1-PP1-R1-x"})},
        {"metrics": first.metrics.model_copy(update={"ttft_ns": first.metrics.ttft_ns + 1})},
        {"placement": first.placement.model_copy(update={"stage_layers": (1,)})},
        {"memory": ()},
    ):
        assert {finding.rule for finding in verify(spoilt(plan, **change)).findings} == {"alternatives"}, change
    fewer = ranking(plan).model_copy(update={"asked": 1})
    assert not verify(plan.model_copy(update={"alternatives": fewer})).ok


def test_a_rank_left_out_is_found_by_the_exhaustive_judge() -> None:
    plan = several()
    ranked = ranking(plan)
    moved = tuple(other.model_copy(update={"rank": rank}) for rank, other in enumerate(ranked.ranked[1:], start=2))
    holed = plan.model_copy(update={"alternatives": ranked.model_copy(update={"ranked": moved})})
    assert verify(holed).ok
    assert "alternatives" in {finding.rule for finding in verify(holed, exhaustive=True).findings}


def test_a_ranking_cut_short_says_so() -> None:
    problem = several().problem
    run_loop, calls = Loop.run, iter(range(100))

    def interrupted(loop: Loop) -> object:
        if loop.beyond is not None and next(calls) == 1:
            loop.outcome.status, loop.outcome.interrupted = "UNKNOWN", True
            return loop.outcome
        return run_loop(loop)

    with mock.patch.object(Loop, "run", interrupted):
        plan = solve(problem, SolveOptions(alternatives=ASKED))
    assert isinstance(plan, Plan)
    assert plan.status == "OPTIMAL"
    assert len(ranking(plan).ranked) == 1
    assert not ranking(plan).complete
    assert verify(plan).ok


def test_on_the_command_line() -> None:
    result = run("solve", *SMALL, "--alternatives", "2", "--no-progress", columns=120)
    assert result.code == 0
    assert "Alternatives  the next best plans of other degrees" in result.out
    assert "Proved: each is the best of all degrees not ranked before it." in result.out
    assert "--alternatives 101" in error_line(run("solve", *SMALL, "--alternatives", "101"))
