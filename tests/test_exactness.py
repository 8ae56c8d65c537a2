"""The claim "proved optimal": on random small problems the loop, brute force and the monolithic model agree.

Brute force (``oracle``) knows the rules and the leaf costs only. The loop must find its optimum integer, answer
INFEASIBLE exactly when nothing exists, and break ties as documented.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

import pytest
from oracle import Answer, Bench, brute_force, every_layout, every_load, every_strategy, least_factor
from problems import draw

from solver import SolveOptions, solve, verify
from solver.cost.layers import Blocks
from solver.cost.leaves import Leaves
from solver.cost.metrics import evaluate_times
from solver.errors import SpecError
from solver.plan import NoPlan, Plan
from solver.search.monolith import solve_monolith
from solver.search.program import SearchLimits
from solver.specs.problem import ENGINES, OBJECTIVES, Objective, Problem
from solver.specs.workload import Slo
from solver.strategy import Strategy, num_chunks, packing_of

SEEDS = range(240)
MAX_LEGAL = 5000
"""Legal strategies of the largest problem; every one is priced with every stage layout."""
MONOLITHS, MONOLITH_LEGAL = 80, 200
"""Problems that are also solved as one model, and the legal strategies of the largest of them."""


@dataclass(frozen=True)
class Case:
    """A problem, what brute force says and what the package says."""

    problem: Problem
    answer: Answer
    result: Plan | NoPlan


@cache
def case_of(seed: int) -> Case:
    problem = draw(seed)
    return Case(problem, brute_force(problem), solve(problem, SolveOptions(workers=1)))


def tie_key(s: Strategy) -> tuple[int, ...]:
    """Lexicographic tie-break, without the algorithms (several of them may take the same time)."""
    return (s.gpus, s.pp, s.attn_tp, s.moe_tp, s.moe_ep, s.micro_batches, s.batch)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_loop_finds_the_optimum_of_brute_force(seed: int) -> None:
    case = case_of(seed)
    answer, result = case.answer, case.result
    assert answer.legal <= MAX_LEGAL
    if answer.value is None:
        assert isinstance(result, NoPlan)
        assert result.status == "INFEASIBLE"
        assert result.reasons
        return
    assert isinstance(result, Plan)
    assert result.status == "OPTIMAL"
    assert result.certificate.value == result.certificate.bound == answer.value
    chosen = result.strategy.strategy()
    assert chosen in answer.strategies
    assert tie_key(chosen) == min(tie_key(strategy) for strategy in answer.strategies)


@pytest.mark.parametrize("gap", [0.001, 0.5])
def test_a_gap_is_kept_and_said(gap: float) -> None:
    # The value is within the gap of the true optimum whatever ended the search; OPTIMAL is said of the optimum alone.
    stopped = 0
    for case in map(case_of, SEEDS[:40]):
        if case.answer.value is None:
            continue
        plan = solve(case.problem, SolveOptions(workers=1, gap=gap))
        assert isinstance(plan, Plan)
        claim = plan.certificate
        assert claim.parameters.relative_gap_limit == gap
        assert claim.bound <= case.answer.value <= claim.value
        assert claim.value - claim.bound <= gap * claim.value
        assert (plan.status == "OPTIMAL") == (claim.bound == claim.value)
        assert verify(plan).ok
        stopped += plan.status == "FEASIBLE"
    assert stopped or gap < 0.5


def test_the_monolithic_model_finds_the_same_optimum() -> None:
    compared = 0
    for seed in SEEDS:
        case = case_of(seed)
        problem, answer = case.problem, case.answer
        if answer.legal > MONOLITH_LEGAL:
            continue
        if problem.objective.name == "weighted" and answer.utopia is None:  # nothing exists, so there is no utopia
            problem = problem.model_copy(update={"objective": Objective(name="gpus")})
        try:
            found = solve_monolith(problem, SearchLimits(workers=1, seed=0, time_s=None), answer.utopia)
        except SpecError:  # too large for one model
            continue
        value = found.value if found.status == "OPTIMAL" else None
        assert found.status in ("OPTIMAL", "INFEASIBLE")
        assert (seed, value) == (seed, answer.value)
        compared += 1
        if compared == MONOLITHS:
            return
    pytest.fail(f"only {compared} problems were small enough")


def test_the_problems_cover_every_feature() -> None:
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        case = case_of(seed)
        p, answer, result = case.problem, case.answer, case.result
        workload = p.workload
        features = {
            p.objective.name: True,
            p.engine: True,
            "infeasible": answer.value is None,
            "infeasible though legal": answer.value is None and answer.legal > 0,
            "ties": len({tie_key(strategy) for strategy in answer.strategies}) > 1,
            "cuts": isinstance(result, Plan) and len(result.certificate.iterations) > 1,
            "dense": not p.llm.is_moe,
            "moe": p.llm.is_moe,
            "redundant experts": p.redundant_experts > 0,
            "skewed loads": workload.expert_loads is not None,
            "skewed loads with redundancy": workload.expert_loads is not None and p.redundant_experts > 0,
            "uneven lengths": not workload.is_uniform,
            "dense and moe layers": len({kind.ffn for kind in p.llm.kinds}) > 1,
            "mixed attention": len({kind.attention for kind in p.llm.kinds}) > 1,
            "latent attention": p.llm.mla is not None,
            "three stages": p.space.max_pp >= 3 and p.llm.num_layers >= 3,
            "several stages win": isinstance(result, Plan) and result.strategy.pp > 1,
            "odd gpus": p.cluster.num_gpus & (p.cluster.num_gpus - 1) > 0,
            "odd domain": p.cluster.domain_gpus & (p.cluster.domain_gpus - 1) > 0,
            "several domains": p.cluster.num_domains > 1,
            "exact gpus": p.gpus_exact is not None,
            "slo": workload.slo != Slo(),
            "least throughput": workload.slo.min_throughput is not None,
            "least efficiency": workload.slo.min_efficiency is not None,
            "pins": bool(p.pins.given()),
            "speculative": workload.speculative is not None,
            "free concurrency": workload.concurrency is None,
            "prefix hits": workload.prefix_hit_rate > 0,
            "several chunks": num_chunks(p) > 1,
            "several prompts per pass": isinstance(result, Plan) and result.strategy.prefill_batch > 1,
            "fp8": "fp8" in (p.llm.dtypes.experts, p.llm.dtypes.dense),
        }  # fmt: skip
        seen.update(name for name, present in features.items() if present)
    rare = {"infeasible": 25, "infeasible though legal": 10, "several stages win": 10, "several prompts per pass": 3}
    names = {*OBJECTIVES, *ENGINES, *features}
    assert {name: seen[name] for name in names if seen[name] < rare.get(name, 8)} == {}


# --- brute force itself ----


def test_brute_force_prices_as_the_cost_model_does() -> None:
    for seed in range(20):
        problem = draw(seed)
        bench, leaves = Bench(problem), Leaves(problem)
        for strategy in list(every_strategy(problem))[::37]:
            bins = strategy.replicas * strategy.attn_dp * strategy.micro_batches
            load = every_load(problem, bins, strategy.batch)[0]
            for layout in every_layout(problem.llm.num_layers, strategy.pp)[:2]:
                blocks = Blocks(load, least_factor(problem, strategy.moe_ep), layout)
                packing = packing_of(problem, strategy)
                assert bench.figures(strategy, packing, blocks) == evaluate_times(leaves, strategy, packing, blocks)


def test_the_best_balance_is_best() -> None:
    """Taking the lightest heaviest bin and busiest rank loses nothing: every other pair of values is tried, too."""
    tried = 0
    for seed in SEEDS:
        problem = case_of(seed).problem
        uneven = not problem.workload.is_uniform or problem.workload.expert_loads is not None
        few_layers = problem.llm.num_moe_layers <= 2 or problem.workload.expert_loads is None
        if uneven and few_layers and case_of(seed).answer.legal <= 150:
            assert brute_force(problem, every_balance=True) == case_of(seed).answer
            tried += 1
        if tried == 20:
            return
    pytest.fail(f"only {tried} problems were small enough")
