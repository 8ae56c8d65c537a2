"""The Pareto front: equal to enumeration, none dominated, none missing; cut short, resumed, and judged."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import jsonschema
import pytest
from command_line import SMALL, error_line, run
from oracle import every_plan
from problems import draw

from solver import Front, ParetoOptions, Problem, SpecError, pareto, verify_front
from solver.cost.metrics import objective_value
from solver.errors import PlanError
from solver.front import METRICS
from solver.search.loop import Loop
from solver.specs.problem import ObjectiveName

SEEDS = (
    0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 14, 15, 16, 20, 22, 23, 24, 26, 27, 28, 31, 32, 33, 35, 36, 38, 39, 45, 51,
    60, 62, 69, 77, 84, 87, 91, 94, 105, 150, 154, 183, 194, 244, 248, 320, 324, 338, 356, 357, 359, 413, 447, 453, 458,
    489, 490, 501, 505, 517, 557, 566, 580, 611, 673,
)  # fmt: skip
"""Problems of at most 400 legal strategies: of the first 700 those with most points, some with two, one and none."""


@dataclass(frozen=True)
class Case:
    """A problem with two metrics and their front by enumeration: every plan of the space with every placement."""

    problem: Problem
    first: ObjectiveName
    second: ObjectiveName
    true: tuple[tuple[int, int], ...]


@cache
def case_of(seed: int) -> Case:
    problem = draw(seed)
    metrics = [metric for metric in METRICS if metric != "gpus" or problem.gpus_exact is None]
    first, second = random.Random(seed).sample(metrics, 2)
    values = {
        (objective_value(first, figures), objective_value(second, figures))
        for _, figures in every_plan(problem)
        if figures is not None
    }
    front = [v for v in values if not any(o != v and o[0] <= v[0] and o[1] <= v[1] for o in values)]
    return Case(problem, first, second, tuple(sorted(front)))


@cache
def front_of(seed: int) -> Front:
    case = case_of(seed)
    return pareto(case.problem, (case.first, case.second))


def integers(front: Front) -> tuple[tuple[int, int], ...]:
    return tuple((point.first, point.second) for point in front.points)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_front_is_that_of_enumeration(seed: int) -> None:
    true, front = case_of(seed).true, front_of(seed)
    assert integers(front) == true
    assert front.status == ("COMPLETE" if true else "INFEASIBLE")
    assert bool(front.reasons) == (not true)
    assert not front.gaps
    assert verify_front(front).findings == ()
    assert Front.parse(front.model_dump_json()) == front


def test_the_cases_are_worth_it() -> None:
    cases = [case_of(seed) for seed in SEEDS]
    assert len({frozenset((case.first, case.second)) for case in cases}) == 15  # every two of the six metrics
    assert sum(len(case.true) >= 4 for case in cases) >= 30
    assert sum(not case.true for case in cases) >= 5
    assert sum(not is_supported(case.true) for case in cases) >= 10


def is_supported(front: tuple[tuple[int, int], ...]) -> bool:
    """Whether every point is the best of some weighted sum: a walk along them turns one way only."""
    turns = zip(front, front[1:], front[2:], strict=False)
    return all((b[0] - a[0]) * (c[1] - b[1]) > (b[1] - a[1]) * (c[0] - b[0]) for a, b, c in turns)


LONGEST = 105
"""The seed of the front with most points: ten."""


def test_the_judge_enumerates_what_is_claimed() -> None:
    for seed in (LONGEST, *SEEDS[::12]):
        if case_of(seed).true:
            assert verify_front(front_of(seed), exhaustive=True).findings == ()


@pytest.mark.parametrize("points", [2, 3, 5])
def test_a_subset_is_spread_and_honest(points: int) -> None:
    case = case_of(LONGEST)
    problem, first, second, true = case.problem, case.first, case.second, case.true
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
    case = case_of(LONGEST)
    problem, first, second, true = case.problem, case.first, case.second, case.true
    front = pareto(problem, (first, second), ParetoOptions(points=len(true) + 5))
    assert front.status == "COMPLETE"
    assert integers(front) == true


@pytest.mark.parametrize("after", [0, 1, 3, 4, 6])
def test_an_interrupt_keeps_what_is_proved_and_is_resumed(after: int) -> None:
    case = case_of(LONGEST)
    problem, first, second, true = case.problem, case.first, case.second, case.true
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


def test_ctrl_c_between_solves_is_heard() -> None:
    # CP-SAT leaves the signal at its default action: without care a Ctrl-C after the first solve kills the process.
    program = (
        "import os, signal, time\n"
        "from solver import Ask, solve\n"
        "solve(Ask(llm='qwen3-30b-a3b', cluster='h200x8', isl=512, osl=64, concurrency='8', fix=('pp=1',)).problem())\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(5)\n"
        "except KeyboardInterrupt:\n"
        "    print('heard')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "heard\n", done


def test_no_time_leaves_nothing_but_says_so() -> None:
    case = case_of(LONGEST)
    problem, first, second = case.problem, case.first, case.second
    front = pareto(problem, (first, second), ParetoOptions(time_limit_s=1e-9))
    assert (front.status, front.points, front.ended) == ("UNKNOWN", (), "time limit")


def test_what_makes_no_front_is_refused() -> None:
    problem = case_of(LONGEST).problem
    with pytest.raises(SpecError, match="twice"):
        pareto(problem, ("latency", "latency"))
    with pytest.raises(SpecError, match="no metric"):
        pareto(problem, ("latency", "weighted"))
    with pytest.raises(SpecError, match="at least 2"):
        pareto(problem, options=ParetoOptions(points=1))
    with pytest.raises(SpecError, match="fixes the GPUs at 1"):
        pareto(problem.model_copy(update={"gpus_exact": 1, "gpus_at_most": None}), ("gpus", "latency"))
    with pytest.raises(SpecError, match="is about"):
        pareto(problem, ("tpot", "gpus"), ParetoOptions(resume=front_of(LONGEST)))


# --- convictions ------------------------------------------------------------------------------------------------------


def changed(front: Front, index: int, **values: object) -> Front:
    """The front with another value in one point."""
    points = list(front.points)
    points[index] = points[index].model_copy(update=values)
    return front.model_copy(update={"points": tuple(points)})


def rules(front: Front, *, exhaustive: bool = False) -> set[str]:
    return {finding.rule for finding in verify_front(front, exhaustive=exhaustive).findings}


def test_the_judge_convicts_what_is_changed() -> None:
    front = front_of(LONGEST)
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
    front = front_of(LONGEST)
    points = [*front.points[:1], front.points[2].model_copy(update={"proved_to": front.points[0].second - 1}),
              *front.points[3:]]  # fmt: skip
    holed = front.model_copy(update={"points": tuple(points)})
    assert rules(holed) == set()
    assert rules(holed, exhaustive=True) == {"front-missing"}
    with pytest.raises(PlanError, match="judge convicts"):
        pareto(front.problem, (front.first, front.second), ParetoOptions(resume=changed(front, 0, second=1)))
    with pytest.raises(PlanError, match="missing"):
        Front.parse("{}")


# --- command line -----------------------------------------------------------------------------------------------------

FEW = (*SMALL, "--fix", "prefill_batch=1", "--fix", "attn_tp=1", "--no-progress")
"""A front of a few points."""


def test_on_the_command_line(tmp_path: Path) -> None:
    out, table, plot = tmp_path / "front.json", tmp_path / "front.csv", tmp_path / "front.svg"
    result = run("pareto", *FEW, "--metrics", "latency,efficiency", "--out", out, "--csv", table, "--plot", plot)
    assert result.code == 0
    front = Front.parse(out.read_text())
    assert front.status == "COMPLETE"
    assert len(front.points) >= 3
    assert result.out.startswith("COMPLETE  request latency and efficiency: ")
    assert len(table.read_text().splitlines()) == len(front.points) + 1
    assert "<svg" in plot.read_text()
    schema = json.loads(run("schema", "--document", "front").out)
    jsonschema.Draft202012Validator(schema).validate(json.loads(out.read_text()))
    assert "exists already" in error_line(run("pareto", *FEW, "--out", out))
    told = run("verify", out)
    assert (told.code, told.out.split()[0]) == (0, "CONFIRMED")
    broken = tmp_path / "broken.json"
    broken.write_text(changed(front, 0, second=1).model_dump_json())
    assert run("verify", broken).code == 4
    page = tmp_path / "report.html"
    plan = tmp_path / "plan.json"
    plan.write_text(front.points[0].plan.model_dump_json())
    assert run("report", plan, "--front", out, "--out", page).code == 0
    assert "Pareto Front" in page.read_text()
    assert "front is not drawn" not in run("report", plan, "--front", out, "--out", "-").out
    assert "convicts the front" in error_line(run("report", plan, "--front", broken, "--out", "-"))


def test_cut_short_and_resumed_on_the_command_line(tmp_path: Path) -> None:
    out, metrics = tmp_path / "front.json", ("--metrics", "latency,efficiency")
    few = run("pareto", *FEW, *metrics, "--points", "2", "--out", out)
    assert few.code == 0
    assert "not searched" in few.out
    assert Front.parse(out.read_text()).gaps
    none = run("pareto", *FEW, *metrics, "--time-limit", "0.000001", "--json")
    assert none.code == 4
    assert Front.parse(none.out).status == "UNKNOWN"
    whole = run("pareto", *FEW, *metrics, "--resume", "--out", out)
    assert whole.code == 0
    assert Front.parse(out.read_text()).status == "COMPLETE"
    infeasible = run("pareto", *FEW, *metrics, "--slo-ttft", "1 us")
    assert infeasible.code == 3
    assert "[slo-ttft]" in infeasible.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--metrics", "latency"), "give two"),
        (("--metrics", "latency,cost"), "no metric 'cost'"),
        (("--points", "1"), "from 2 to"),
        (("--resume",), "--out"),
        (("--plot", "front.pdf"), ".png or .svg"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], words: str) -> None:
    assert words in error_line(run("pareto", *FEW, *arguments))
