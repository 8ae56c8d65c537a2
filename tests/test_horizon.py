"""The rule ``horizon``: how far the cost model looks is the same for search, judge and brute force."""

from __future__ import annotations

import pytest
from oracle import brute_force, every_strategy
from plans import CALIBRATION, small_cluster, small_problem, small_workload

from solver import ScenarioPlan, Scenarios, SolveOptions, evaluate, solve, solve_scenarios, verify
from solver.plan import NoPlan, Plan
from solver.specs.calibration import Calibration
from solver.specs.problem import Objective, ObjectiveName, Problem, Space

LONG = 2 * 10**6
"""Output tokens of a request that takes 15,000 s to 300,000 s, so that some strategies stay within the horizon."""
LONG_FOR_THROUGHPUT = 8 * 10**5
"""The same for its own limit, a request every 9,007 s."""


def long_requests(name: ObjectiveName, host_step: str = "0 s") -> Problem:
    osl = LONG_FOR_THROUGHPUT if name == "throughput" else LONG
    return small_problem(
        cluster=small_cluster(4, memory="100 TB"),
        workload=small_workload(isl=100, osl=osl, concurrency=None),
        objective=Objective(name=name),
        calibration=Calibration.read({**CALIBRATION, "host_step": host_step}, "test"),
        space=Space(name="all", max_batch=5, max_prefill_batch=1, max_pp=2),
    )


@pytest.mark.parametrize("name", ["latency", "throughput", "efficiency", "gpus", "weighted"])
def test_the_optimum_within_the_horizon_is_that_of_brute_force(name: ObjectiveName) -> None:
    problem = long_requests(name)
    answer, plan = brute_force(problem), solve(problem, SolveOptions(workers=1))
    assert isinstance(plan, Plan)
    assert plan.status == "OPTIMAL"
    assert plan.certificate.value == plan.certificate.bound == answer.value
    assert plan.strategy.strategy() in answer.strategies
    assert verify(plan, exhaustive=True).ok


@pytest.mark.parametrize("name", ["latency", "throughput"])
def test_the_horizon_binds(name: ObjectiveName) -> None:
    problem = long_requests(name)
    judged = [evaluate(problem, strategy).violations for strategy in list(every_strategy(problem))[::40]]
    beyond = [found for found in judged if any(text.startswith("[horizon]") for text in found)]
    assert beyond
    assert len(beyond) < len(judged)


def test_nothing_within_the_horizon_is_infeasible_and_says_so() -> None:
    result = solve(long_requests("latency", host_step="10 s"), SolveOptions(workers=1))
    assert isinstance(result, NoPlan)
    assert result.status == "INFEASIBLE"
    assert any("100,000 s" in reason for reason in result.reasons)


def test_scenarios_end_where_one_model_of_all_of_them_does() -> None:
    # Several programs share 64 bits, so that their horizon is nearer: 36,000 s of a cycle.
    asked = Scenarios.read({"scenario": [{"name": "a", "osl": 3 * 10**5}, {"name": "b", "osl": 10**6}]}, "test")
    plan = solve_scenarios(long_requests("efficiency"), asked, options=SolveOptions(workers=1))
    assert isinstance(plan, ScenarioPlan)
    assert plan.status == "OPTIMAL"
    assert verify(plan, exhaustive=True).ok
