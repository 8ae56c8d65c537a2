"""Honest ties: the next best degrees in turn, as enumeration finds them, within the calibration's error."""

from __future__ import annotations

from unittest import mock

import pytest
from oracle import every_plan
from problems import draw

from solver import SolveOptions, solve
from solver.cost.metrics import UNFITTED_BAND_PERCENT, error_band, objective_value
from solver.plan import Plan
from solver.search.ties import TieFinder
from solver.specs.calibration import Errors, FitError
from solver.specs.problem import Problem

MOST = 3
NAMES = ("latency", "tpot", "throughput", "efficiency")


def best_by_degrees(problem: Problem) -> dict[tuple[int, ...], int]:
    """Best objective of every combination of an instance's degrees, by enumeration."""
    best: dict[tuple[int, ...], int] = {}
    for strategy, figures in every_plan(problem):
        if figures is not None:
            value = objective_value(problem.objective.name, figures)
            best[strategy.degrees] = min(value, best.get(strategy.degrees, value))
    return best


@pytest.mark.parametrize("seed", [seed for seed in range(60) if draw(seed).objective.name in NAMES][:24])
def test_ties_are_the_next_best_degrees(seed: int) -> None:
    problem = draw(seed)
    plan = solve(problem, SolveOptions(ties=MOST))
    if not isinstance(plan, Plan) or plan.status != "OPTIMAL":
        return
    assert plan.ties is not None
    winner = plan.strategy.strategy().degrees
    ranked = sorted(value for degrees, value in best_by_degrees(problem).items() if degrees != winner)
    within = [value for value in ranked if value <= plan.ties.at_most]
    assert [tie.value for tie in plan.ties.tied] == within[:MOST]
    assert len({tie.strategy.strategy().degrees for tie in plan.ties.tied} | {winner}) == len(plan.ties.tied) + 1
    assert not plan.ties.complete or len(within) == len(plan.ties.tied)


def test_a_search_that_was_cut_short_proves_nothing() -> None:
    problem = draw(next(seed for seed in range(60) if draw(seed).objective.name == "latency"))
    with mock.patch("solver.search.ties.Loop") as loop:
        loop.return_value.run.return_value.status = "UNKNOWN"
        loop.return_value.run.return_value.best = None
        best = mock.Mock(value=100)
        found = TieFinder(problem, None, lambda _progress: None).find(best, 2, lambda: mock.Mock())
    assert not found.tied
    assert not found.complete


def test_the_band_is_the_calibrations_unseen_error() -> None:
    problem = draw(0)
    fitted = problem.calibration.model_copy(
        update={
            "error": FitError(
                rows=9,
                pairs=2,
                left_out="pairs",
                unseen=Errors(tpot_mean=20, tpot_median=8, ttft_mean=40, ttft_median=30),
            )
        }
    )
    known = problem.model_copy(update={"calibration": fitted})
    assert error_band(known, "latency")[0] == 8
    assert error_band(known, "ttft")[0] == 30
    assert error_band(known, "gpus")[0] == 0
    assert error_band(problem, "latency")[0] == UNFITTED_BAND_PERCENT
