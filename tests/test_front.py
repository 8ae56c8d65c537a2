"""The Pareto front: equal to enumeration, none dominated, none missing; cut short, resumed, and judged."""

from __future__ import annotations

import random
from functools import cache
from unittest import mock

import pytest
from oracle import every_plan
from problems import draw

from solver import Front, ParetoOptions, Problem, SpecError, pareto, verify_front
from solver.cost.metrics import objective_value
from solver.errors import PlanError
from solver.front import METRICS
from solver.search.loop import Loop
from solver.specs.problem import ObjectiveName

SEEDS = range(400)
CASES = 64
MAX_SMALL = 40
"""Cases with fewer than three points (none among them: nothing is feasible)."""
MAX_LEGAL = 300
"""Legal strategies of the largest problem; every one is priced with every stage layout."""


@cache
def cases() -> list[tuple[Problem, ObjectiveName, ObjectiveName, tuple[tuple[int, int], ...]]]:
    """Problems with two metrics and their fronts by enumeration: every plan of the space with every placement."""
    found = []
    for seed in SEEDS:
        problem, rng = draw(seed), random.Random(seed)
        first, second = rng.sample([m for m in METRICS if m != "gpus" or problem.gpus_exact is None], 2)
        values, legal = set(), set()
        for strategy, figures in every_plan(problem):
            legal.add(strategy)
            if len(legal) > MAX_LEGAL:
                break
            if figures is not None:
                values.add((objective_value(first, figures), objective_value(second, figures)))
        front = tuple(sorted(v for v in values if not any(o != v and o[0] <= v[0] and o[1] <= v[1] for o in values)))
        small = sum(len(known[3]) < 3 for known in found)
        if len(legal) <= MAX_LEGAL and (len(front) >= 3 or small < MAX_SMALL):
            found.append((problem, first, second, front))
        if len(found) == CASES:
            break
    return found


@cache
def front_of(index: int) -> Front:
    problem, first, second, _ = cases()[index]
    return pareto(problem, (first, second))


def integers(front: Front) -> tuple[tuple[int, int], ...]:
    return tuple((point.first, point.second) for point in front.points)


@pytest.mark.parametrize("index", range(CASES))
def test_the_front_is_that_of_enumeration(index: int) -> None:
    true, front = cases()[index][3], front_of(index)
    assert integers(front) == true
    assert front.status == ("COMPLETE" if true else "INFEASIBLE")
    assert bool(front.reasons) == (not true)
    assert not front.gaps
    assert verify_front(front).findings == ()
    assert Front.parse(front.model_dump_json()) == front


def test_the_cases_are_worth_it() -> None:
    pairs = {frozenset((first, second)) for _, first, second, _ in cases()}
    assert len(pairs) == 15  # every two of the six metrics
    assert sum(len(front) >= 3 for *_, front in cases()) >= 15
    assert any(not front for *_, front in cases())
    assert any(is_supported(front) is False for *_, front in cases())


def is_supported(front: tuple[tuple[int, int], ...]) -> bool:
    """Whether every point is the best of some weighted sum: a walk along them turns one way only."""
    turns = zip(front, front[1:], front[2:], strict=False)
    return all((b[0] - a[0]) * (c[1] - b[1]) > (b[1] - a[1]) * (c[0] - b[0]) for a, b, c in turns)


def longest() -> int:
    """The case with most points."""
    return max(range(CASES), key=lambda index: len(cases()[index][3]))


def test_the_judge_enumerates_what_is_claimed() -> None:
    for index in (longest(), *range(0, CASES, 12)):
        if cases()[index][3]:
            assert verify_front(front_of(index), exhaustive=True).findings == ()


@pytest.mark.parametrize("points", [2, 3, 5])
def test_a_subset_is_spread_and_honest(points: int) -> None:
    problem, first, second, true = cases()[longest()]
    assert len(true) > 5
    front = pareto(problem, (first, second), ParetoOptions(points=points))
    assert front.status == "PARTIAL"
    assert len(front.points) == points
    assert set(integers(front)) < set(true)
    assert {true[0], true[-1]} <= set(integers(front))
    assert front.ended == f"{points} points were asked for"
    for missing in set(true) - set(integers(front)):
        assert any(gap.low <= missing[1] <= gap.high for gap in front.gaps)
    assert verify_front(front).ok
    whole = pareto(problem, (first, second), ParetoOptions(resume=front))
    assert integers(whole) == true
    assert whole.status == "COMPLETE"


def test_more_points_than_there_are_is_the_whole_front() -> None:
    problem, first, second, true = cases()[longest()]
    front = pareto(problem, (first, second), ParetoOptions(points=len(true) + 5))
    assert front.status == "COMPLETE"
    assert integers(front) == true


@pytest.mark.parametrize("after", [0, 1, 3, 4, 6])
def test_an_interrupt_keeps_what_is_proved_and_is_resumed(after: int) -> None:
    problem, first, second, true = cases()[longest()]
    run, calls = Loop.run, iter(range(100))

    def interrupted(loop: Loop) -> object:
        if next(calls) == after:
            raise KeyboardInterrupt
        return run(loop)

    with mock.patch.object(Loop, "run", interrupted):
        front = pareto(problem, (first, second))
    assert front.ended == "interrupt"
    assert front.status == ("PARTIAL" if front.points else "UNKNOWN")
    assert set(integers(front)) < set(true)
    assert verify_front(front).ok
    seen: list[Front] = []
    options = ParetoOptions(resume=front, on_progress=lambda progress: seen.append(progress.snapshot()))
    whole = pareto(problem, (first, second), options)
    assert integers(whole) == true
    assert whole.points[: len(front.points[:1])] == front.points[:1]
    assert all(verify_front(snapshot).ok for snapshot in seen[:3])
    assert seen[-1].points == whole.points


def test_no_time_leaves_nothing_but_says_so() -> None:
    problem, first, second, _ = cases()[longest()]
    front = pareto(problem, (first, second), ParetoOptions(time_limit_s=1e-9))
    assert (front.status, front.points, front.ended) == ("UNKNOWN", (), "time limit")


def test_what_makes_no_front_is_refused() -> None:
    problem = cases()[longest()][0]
    with pytest.raises(SpecError, match="twice"):
        pareto(problem, ("latency", "latency"))
    with pytest.raises(SpecError, match="no metric"):
        pareto(problem, ("latency", "weighted"))
    with pytest.raises(SpecError, match="at least 2"):
        pareto(problem, options=ParetoOptions(points=1))
    with pytest.raises(SpecError, match="fixes the GPUs at 1"):
        pareto(problem.model_copy(update={"gpus_exact": 1, "gpus_at_most": None}), ("gpus", "latency"))
    with pytest.raises(SpecError, match="is about"):
        pareto(problem, ("tpot", "gpus"), ParetoOptions(resume=front_of(longest())))


# --- convictions ------------------------------------------------------------------------------------------------------


def changed(front: Front, index: int, **values: object) -> Front:
    """The front with another value in one point."""
    points = list(front.points)
    points[index] = points[index].model_copy(update=values)
    return front.model_copy(update={"points": tuple(points)})


def rules(front: Front, *, exhaustive: bool = False) -> set[str]:
    return {finding.rule for finding in verify_front(front, exhaustive=exhaustive).findings}


def test_the_judge_convicts_what_is_changed() -> None:
    front = front_of(longest())
    a, b = front.points[0], front.points[1]
    assert "front-values" in rules(changed(front, 0, second=a.second + 1))
    assert "front-question" in rules(changed(front, 0, first=a.first + 1))
    assert "front-order" in rules(front.model_copy(update={"points": (b, a, *front.points[2:])}))
    assert "front-question" in rules(changed(front, 0, plan=b.plan))
    assert "front-proved" in rules(changed(front, 1, proved_to=a.second))
    assert "front-status" in rules(changed(front, 1, proved_to=b.second)) or a.second == b.second + 1
    assert "front-status" in rules(front.model_copy(update={"status": "PARTIAL"}))
    assert "front-status" in rules(front.model_copy(update={"least_second": None}))
    assert "front-status" in rules(front.model_copy(update={"points": ()}))
    assert "front-proved" in rules(front.model_copy(update={"least_second": front.points[-1].second + 1}))
    assert "front-metrics" in rules(front.model_copy(update={"second": front.first}))
    assert "front-digest" in rules(front.model_copy(update={"problem_digest": "0" * 64}))
    feasible = a.plan.model_copy(update={"status": "FEASIBLE"})
    assert "front-plan" in rules(changed(front, 0, plan=feasible))


def test_a_point_left_out_is_missed_by_the_exhaustive_judge() -> None:
    # The next point claims to follow the one before the hole, so that the front looks complete.
    front = front_of(longest())
    points = [*front.points[:1], front.points[2].model_copy(update={"proved_to": front.points[0].second - 1}),
              *front.points[3:]]  # fmt: skip
    holed = front.model_copy(update={"points": tuple(points)})
    assert rules(holed) == set()
    assert rules(holed, exhaustive=True) == {"front-missing"}
    with pytest.raises(PlanError, match="judge convicts"):
        pareto(front.problem, (front.first, front.second), ParetoOptions(resume=changed(front, 0, second=1)))
    with pytest.raises(PlanError, match="missing"):
        Front.parse("{}")
