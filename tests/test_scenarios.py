"""One deployment for several scenarios: brute force agrees, and the judge convicts every lie.

Brute force prices every strategy with every layout of stages in every scenario alone, and then looks for the common
decisions and the layout that are best for all. It shares the rules and leaf costs with the package, nothing else.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from oracle import Bench, every_layout, every_load, every_strategy, least_factor
from problems import draw

from solver import SolveOptions, solve, solve_scenarios, verify
from solver.cost.balance import sequence_tokens
from solver.cost.layers import Blocks
from solver.cost.leaves import Leaves
from solver.cost.metrics import Figures, objective_value
from solver.cost.scenarios import Yardstick
from solver.plan import NoPlan
from solver.scenarioplan import COMMON, ScenarioPlan
from solver.search.scenarios.stages import common_layout, figures_with
from solver.search.stages import StagesProblem
from solver.specs.problem import Objective, Pins, Problem
from solver.specs.scenarios import Over, Scenarios
from solver.strategy import Strategy, packing_of
from solver.verify.joint import confirm_joint

SEEDS = range(52)
ENUMERATED = 6
"""Every sixth answer is also confirmed by the judge's enumeration of all deployments."""
TIGHT = tuple(range(100, 110))
"""Problems whose scenarios are each limited to their own optimum: most admit no single deployment."""
Key = tuple[object, ...]


@dataclass(frozen=True)
class Truth:
    """What brute force finds: the least total, the least weighted sum beside it, and the decisions that reach both."""

    total: int
    expected: int
    common: frozenset[Key]


@dataclass(frozen=True)
class Case:
    problem: Problem
    scenarios: Scenarios
    over: Over
    own: tuple[int | None, ...]
    truth: Truth | None
    result: ScenarioPlan | NoPlan


def drawn(seed: int) -> tuple[Problem, Scenarios, Over]:
    """A small random problem and two or three scenarios of it; one in three keeps the limits of the base."""
    rng = random.Random(seed)
    problem = draw(seed)
    if problem.objective.name == "weighted":
        problem = problem.model_copy(update={"objective": Objective(name=rng.choice(["latency", "efficiency"]))})
    scenarios = []
    for index in range(rng.choice([2, 2, 3])):
        scenario: dict[str, object] = {"name": f"s{index}", "weight": rng.choice([1, 2, 3, 0.5, 7])}
        if index or rng.random() < 0.5:
            scenario["isl"] = rng.choice([10, 60, 400, 3000])
            scenario["osl"] = rng.choice([1, 5, 40, 300])
            if problem.workload.isl_list is not None or rng.random() < 0.5:
                scenario["concurrency"] = rng.choice([1, 2, 4, "free"])
            if rng.random() < 0.2:
                scenario["prefix_hit_rate"] = 0.5
            if rng.random() < 0.7:
                scenario["slo"] = {}
        scenarios.append(scenario)
    over: Over = rng.choice(["expected", "regret"])
    return problem, Scenarios.read({"scenario": scenarios}, "test"), over


def values_of(problem: Problem) -> dict[Key, int]:
    """Least objective integer of one scenario by common decisions and layout."""
    bench, found = Bench(problem), dict[Key, int]()
    for strategy in every_strategy(problem):
        bins = strategy.replicas * strategy.attn_dp * strategy.micro_batches
        loads = every_load(problem, bins, strategy.batch)[:1]
        for load in loads:
            for layout in every_layout(problem.llm.num_layers, strategy.pp):
                blocks = Blocks(load, least_factor(problem, strategy.moe_ep), layout)
                if not bench.fits(strategy, blocks):
                    continue
                figures = bench.figures(strategy, packing_of(problem, strategy), blocks)
                if bench.in_time(figures):
                    key = (*common_of(strategy), layout)
                    value = objective_value(problem.objective.name, figures)
                    found[key] = min(value, found.get(key, value))
    return found


def common_of(strategy: Strategy) -> tuple[object, ...]:
    return tuple(getattr(strategy, name) for name in COMMON)


def truth_of(parts: tuple[int, ...], over: Over, values: list[dict[Key, int]]) -> Truth | None:
    """The best common decisions; written out again, so that the package's own sums are not believed."""
    own = [min(each.values()) for each in values]
    scale = 10**5
    while scale > 1 and scale * 16 * max(own) > 2**61:
        scale //= 10
    totals: dict[tuple[int, int], set[Key]] = {}
    for key in set.intersection(*(set(each) for each in values)):
        here = [each[key] for each in values]
        expected = sum(part * value for part, value in zip(parts, here, strict=True))
        regret = max(-(-scale * (value - best) // best) for value, best in zip(here, own, strict=True))
        totals.setdefault((expected, expected) if over == "expected" else (regret, expected), set()).add(key)
    if not totals:
        return None
    least = min(totals)
    return Truth(*least, frozenset(key[:-1] for key in totals[least]))


@cache
def case_of(seed: int) -> Case:
    problem, scenarios, over = drawn(seed)
    values = [values_of(each) for each in scenarios.problems(problem)]
    own = tuple(min(each.values(), default=None) for each in values)
    truth = None if None in own else truth_of(scenarios.parts, over, values)
    return Case(problem, scenarios, over, own, truth, solve_scenarios(problem, scenarios, over, SolveOptions()))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_joint_loop_finds_the_optimum_of_brute_force(seed: int) -> None:
    case = case_of(seed)
    truth, result = case.truth, case.result
    if truth is None:
        assert isinstance(result, NoPlan)
        assert result.status == "INFEASIBLE"
        assert result.reasons
        return
    assert isinstance(result, ScenarioPlan)
    assert result.status == "OPTIMAL"
    assert [each.own_value for each in result.scenarios] == list(case.own)
    assert result.claim.value == result.claim.bound == truth.total
    assert verify(result, exhaustive=seed % ENUMERATED == 0).findings == ()
    parts, values = case.scenarios.parts, [each.value for each in result.scenarios]
    assert sum(part * value for part, value in zip(parts, values, strict=True)) == truth.expected
    chosen = [each.plan.strategy.strategy() for each in result.scenarios]
    assert {common_of(strategy) for strategy in chosen} <= truth.common
    assert len({common_of(strategy) for strategy in chosen}) == 1

    def order(common: Key) -> tuple[object, ...]:
        named = dict(zip(COMMON, common, strict=True))
        gpus = named["attn_tp"] * named["attn_dp"] * named["pp"] * named["replicas"]  # type: ignore[operator]
        return (gpus, *(named[name] for name in ("pp", "attn_tp", "moe_tp", "moe_ep", "micro_batches")))

    assert order(common_of(chosen[0])) == min(order(common) for common in truth.common)


@pytest.mark.parametrize("seed", [seed for seed in SEEDS if seed % ENUMERATED == 1])
def test_the_enumeration_of_deployments_can_say_no(seed: int) -> None:
    """Of a bound one above the optimum, the deployment itself is the counterexample."""
    result = case_of(seed).result
    if isinstance(result, ScenarioPlan):
        higher = result.claim.model_copy(update={"bound": result.claim.bound + 1})
        found = confirm_joint(result.model_copy(update={"claim": higher}))
        assert {finding.rule for finding in found} == {"scenario-optimum"}


@cache
def tight_case(seed: int) -> Case:
    """Two scenarios that may each be no slower than alone: a deployment exists if one reaches both optima."""
    problem, scenarios, over = drawn(seed)
    problem = problem.model_copy(update={"objective": Objective(name="latency")})
    values = [values_of(each) for each in scenarios.problems(problem)]
    own = [min(each.values(), default=None) for each in values]
    limited = [
        {**scenario.model_dump(exclude_none=True), "slo": {"request_latency": f"{best} ns"}}
        for scenario, best in zip(scenarios.scenario, own, strict=True)
        if best is not None
    ]
    asked = Scenarios.read({"scenario": limited or scenarios.model_dump()["scenario"]}, "test")
    tight = [{key: v for key, v in each.items() if v == best} for each, best in zip(values, own, strict=True) if each]
    truth = truth_of(asked.parts, over, tight) if tight else None
    return Case(problem, asked, over, tuple(own), truth, solve_scenarios(problem, asked, over))


@pytest.mark.parametrize("seed", TIGHT)
def test_scenarios_that_exclude_one_another_are_told_so(seed: int) -> None:
    case = tight_case(seed)
    if case.truth is None:
        assert isinstance(case.result, NoPlan)
        assert case.result.status == "INFEASIBLE"
    else:
        assert isinstance(case.result, ScenarioPlan)
        assert case.result.claim.value == case.truth.total


def test_a_conflict_names_the_scenarios_that_make_it() -> None:
    """Two scenarios exclude one another; a third one, which has a plan of its own and no limit, is not blamed."""
    innocent = {"name": "innocent", "isl": 10, "osl": 1, "concurrency": 1, "slo": {}}
    alone = Scenarios.read({"scenario": [innocent]}, "test")
    case = next(
        case
        for case in map(tight_case, TIGHT)
        if case.truth is None and len(case.scenarios.scenario) == 2 and values_of(*alone.problems(case.problem))
    )
    three = [*(s.model_dump(exclude_none=True) for s in case.scenarios.scenario), innocent]
    answer = solve_scenarios(case.problem, Scenarios.read({"scenario": three}, "test"), case.over)
    assert isinstance(answer, NoPlan)
    assert answer.status == "INFEASIBLE"
    assert "innocent" not in answer.reasons[0]
    assert "'s0', 's1'" in answer.reasons[0]


def answered() -> ScenarioPlan:
    """A small answer with regret."""
    found = (case_of(seed).result for seed in SEEDS)
    return next(r for r in found if isinstance(r, ScenarioPlan) and any(each.regret for each in r.scenarios))


def changed(plan: ScenarioPlan, path: str, change: object) -> ScenarioPlan:
    """The document with one number replaced; `path` names keys and positions."""
    document = json.loads(plan.model_dump_json())
    place: Any = document
    *way, last = [int(word) if word.isdigit() else word for word in path.split(".")]
    for word in way:
        place = place[word]
    place[last] = change(place[last]) if callable(change) else change
    return ScenarioPlan.parse(json.dumps(document))


@pytest.mark.parametrize(
    ("path", "change", "rule"),
    [
        ("claim.value", lambda v: v + 1, "scenario-total"),
        ("claim.natural", lambda v: v * 1.01 + 1, "scenario-total"),
        ("claim.scale", lambda v: v * 10, "scenario-total"),
        ("claim.bound", lambda v: v + 1, "scenario-bound"),
        ("claim.gap", 0.5, "scenario-gap"),
        ("status", "FEASIBLE", "scenario-status"),
        ("scenarios.0.value", lambda v: v - 1, "scenario-value"),
        ("scenarios.0.regret", lambda v: v + 1, "scenario-value"),
        ("scenarios.1.own_value", lambda v: v + 1, "scenario-own"),
        ("scenarios.1.own_bound", lambda v: v + 1, "scenario-own"),
        ("scenarios.0.natural", lambda v: v * 2 + 1, "scenario-value"),
        ("scenarios.0.part", lambda v: v + 1, "scenario-weight"),
        ("scenarios.0.name", "another", "scenario-question"),
        ("scenarios.0.plan.problem.workload.osl", lambda v: v + 1, "scenario-question"),
        ("scenarios.0.own.problem.workload.osl", lambda v: v + 1, "scenario-question"),
        ("asked.scenario.0.weight", lambda v: v * 3, "scenario-weight"),
        ("scenarios.0.plan.strategy.replicas", lambda v: v + 1, "scenario-common"),
        ("scenarios.0.plan.metrics.tpot_ns", lambda v: v - 1, "metrics"),
        ("scenarios.0.plan.violations", ["too slow"], "scenario-value"),
        ("scenarios.0.own.certificate.bound", lambda v: v + 1, "scenario-own"),
        ("launched.batch", lambda v: v + 1, "scenario-launched"),
    ],
)
def test_the_judge_convicts_every_lie(path: str, change: object, rule: str) -> None:
    plan = answered()
    assert verify(plan).ok
    assert rule in {finding.rule for finding in verify(changed(plan, path, change)).findings}


def test_one_scenario_is_the_plain_problem() -> None:
    """With one scenario the expected optimum is that of solve, and nothing is regretted."""
    problem, _, _ = drawn(3)
    one = Scenarios.read({"scenario": [{"name": "only"}]}, "test")
    answer, plain = solve_scenarios(problem, one), solve(problem)
    if isinstance(plain, NoPlan):
        assert isinstance(answer, NoPlan)
        return
    assert isinstance(answer, ScenarioPlan)
    assert answer.claim.value == plain.certificate.value
    assert answer.scenarios[0].plan.strategy == plain.strategy
    assert answer.scenarios[0].regret == 0


def test_the_common_layout_is_the_best_of_all() -> None:
    """Against every split, with limits and ranks that disagree between the scenarios."""
    compared = 0
    for seed in range(300, 360):
        problem, scenarios, over = drawn(seed)
        problems = scenarios.problems(problem.model_copy(update={"pins": Pins(), "engine": "any"}))
        num_layers = problem.llm.num_layers
        pp = min(3, num_layers, problem.gpu_budget)
        strategy = Strategy(attn_tp=1, attn_dp=1, moe_tp=1, moe_ep=1, pp=pp, replicas=1, batch=2, micro_batches=pp)
        if pp < 2:
            continue
        stages = [
            StagesProblem(Leaves(each), strategy, packing_of(each, strategy), 2 * sequence_tokens(each)[-1], 10**6)
            for each in problems
        ]
        name = problem.objective.name
        yardstick = Yardstick.of(over, scenarios.parts, [1000 + 10**6 * s for s in range(len(problems))])

        def rank(figures: Sequence[Figures]) -> tuple[int, ...]:
            return (yardstick.total([objective_value(name, each) for each in figures]),)  # noqa: B023

        fitting = [
            layout
            for layout in every_layout(num_layers, pp)
            if all(Bench(s.leaves.problem).fits(strategy, Blocks(s.load_tokens, 10**6, layout)) for s in stages)
        ]
        best = min((rank(figures_with(stages, layout)) for layout in fitting), default=None)
        found = common_layout(stages, rank)
        assert (None if found is None else rank(figures_with(stages, found))) == best
        compared += found is not None
    assert compared > 10


def test_the_cases_cover_what_matters() -> None:
    seen: Counter[str] = Counter()
    for case in (*map(case_of, SEEDS), *map(tight_case, TIGHT)):
        result = case.result
        plan = result if isinstance(result, ScenarioPlan) else None
        features = {
            case.over: True,
            case.problem.objective.name: True,
            "infeasible": plan is None,
            "no single deployment": plan is None and None not in case.own,
            "regret": plan is not None and any(each.regret for each in plan.scenarios),
            "stages": plan is not None and plan.launched.pp > 1,
            "different batches": plan is not None and len({e.plan.strategy.batch for e in plan.scenarios}) > 1,
            "cuts": plan is not None and any(turn.cut for turn in plan.claim.iterations),
        }  # fmt: skip
        seen.update(name for name, present in features.items() if present)
    assert {name: seen[name] for name in features if seen[name] < (1 if name == "cuts" else 3)} == {}
