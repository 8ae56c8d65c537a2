"""Metamorphic properties: how the optimum must move, or must not, when a problem changes. No oracle is needed."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
from plans import small_cluster, small_llm, small_problem, small_workload
from problems import draw

from solver import SolveOptions, check, solve, verify
from solver.audit import audit
from solver.cost.balance import slots_per_rank
from solver.cost.layers import Blocks
from solver.expansion import expand
from solver.plan import NoPlan, Placement, Plan
from solver.specs.hardware import Cluster
from solver.specs.problem import Objective, Pins, Problem
from solver.specs.workload import Slo, Workload
from solver.strategy import num_slots

OPTIONS = SolveOptions(workers=1)
SEEDS = range(1000, 1024)
"""Problems that the exactness tests do not use."""


@cache
def base(seed: int) -> tuple[Problem, Plan | NoPlan]:
    """A problem and its plan. Utopia values move with the problem, so `weighted` is replaced by what it is made of."""
    problem = draw(seed)
    if problem.objective.name == "weighted":
        problem = problem.model_copy(update={"objective": Objective(name="efficiency")})
    return problem, solve(problem, OPTIONS)


def value_of(result: Plan | NoPlan) -> float:
    """Objective integer; infinite when there is no plan."""
    if isinstance(result, NoPlan):
        assert result.status == "INFEASIBLE"
        return float("inf")
    assert result.status == "OPTIMAL"
    return result.certificate.value


def with_gpu(problem: Problem, name: str, factor: int) -> Problem:
    """The problem with `factor` times as much of a GPU's resource."""
    gpu = problem.cluster.gpu
    if name == "peak":
        better = gpu.model_copy(update={"peak": {unit: rate * factor for unit, rate in gpu.peak.items()}})
    else:
        better = gpu.model_copy(update={name: getattr(gpu, name) * factor})
    return problem.model_copy(update={"cluster": problem.cluster.model_copy(update={"gpu": better})})


def with_links(problem: Problem, changes: dict[str, float]) -> Problem:
    """The problem with every link level's bandwidth and latency scaled."""
    levels = tuple(
        level.model_copy(update={name: int(getattr(level, name) * factor) for name, factor in changes.items()})
        for level in problem.cluster.levels
    )
    return problem.model_copy(update={"cluster": problem.cluster.model_copy(update={"levels": levels})})


def with_workload(problem: Problem, changes: dict[str, Any]) -> Problem:
    """The problem with another workload; validated anew, because lengths are cached."""
    workload = Workload.model_validate({**problem.workload.model_dump(), **changes})
    return problem.model_copy(update={"workload": workload})


# --- more never hurts ----


@pytest.mark.parametrize("name", ["memory", "memory_bandwidth", "peak"])
@pytest.mark.parametrize("seed", SEEDS[::2])
def test_a_better_gpu_never_hurts(seed: int, name: str) -> None:
    problem, plan = base(seed)
    assert value_of(solve(with_gpu(problem, name, 2), OPTIONS)) <= value_of(plan)


@pytest.mark.parametrize("changes", [{"bandwidth": 3.0}, {"latency": 0.4}], ids=str)
@pytest.mark.parametrize("seed", SEEDS[::2])
def test_better_links_never_hurt(seed: int, changes: dict[str, float]) -> None:
    problem, plan = base(seed)
    assert value_of(solve(with_links(problem, changes), OPTIONS)) <= value_of(plan)


@pytest.mark.parametrize("seed", SEEDS)
def test_looser_slos_never_hurt(seed: int) -> None:
    problem, plan = base(seed)
    for slo in (Slo(), Slo.model_validate({"tpot": "3 s", "ttft": "9 s"})):
        looser = problem.model_copy(update={"workload": problem.workload.model_copy(update={"slo": slo})})
        assert value_of(solve(looser, OPTIONS)) <= value_of(plan)


@pytest.mark.parametrize("seed", SEEDS)
def test_more_freedom_never_hurts(seed: int) -> None:
    problem, plan = base(seed)
    freer: list[Problem] = [problem.model_copy(update={"gpus_exact": None, "gpus_at_most": None})]
    # A pinned size belongs to the space whatever its limits, so the limits must admit it without the pin.
    pinned = {f"max_{name}": getattr(problem.pins, name) or 1 for name in ("pp", "batch", "prefill_batch")}
    limits = {name: max(size, getattr(problem.space, name)) for name, size in pinned.items()}
    freer.append(problem.model_copy(update={"pins": Pins(), "space": problem.space.model_copy(update=limits)}))
    if problem.engine != "any":
        freer.append(problem.model_copy(update={"engine": "any"}))
    for free in freer:
        result = solve(free, SolveOptions(workers=1, time_limit_s=60))
        assert value_of(result) <= value_of(plan)


def test_a_larger_cluster_never_hurts() -> None:
    for seed in SEEDS[:8]:
        problem, plan = base(seed)
        cluster, one = problem.cluster, problem.cluster.domain_gpus
        larger = Cluster.model_validate({**cluster.model_dump(), "num_gpus": cluster.num_gpus + one})
        assert value_of(solve(problem.model_copy(update={"cluster": larger}), OPTIONS)) <= value_of(plan)


# --- answers, not crashes ----

CONTRADICTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"decode_dispatch": "all_to_all"}, {"moe": None, "dense_width": 512}),
    ({"decode_dispatch": "gather", "decode_overlap": True}, {}),
    ({"prefill_dispatch": "all_to_all", "moe_ep": 1}, {}),
    ({"decode_dispatch": "all_to_all", "decode_overlap": True, "batch": 1, "micro_batches": 1, "replicas": 1}, {}),
    ({"attn_dp": 2}, {"moe": None, "dense_width": 512}),
    ({"moe_tp": 3}, {}),
]


@pytest.mark.parametrize(("pins", "llm"), CONTRADICTIONS)
def test_contradictory_pins_are_infeasible(pins: dict[str, Any], llm: dict[str, Any]) -> None:
    problem = small_problem(llm=small_llm(**llm), pins=Pins.model_validate(pins))
    if pins.get("batch") == 1:  # one token a rank and step: nothing to halve
        workload = small_workload(isl=100, concurrency=1)
        problem = problem.model_copy(update={"workload": workload})
    result = solve(problem, OPTIONS)
    assert isinstance(result, NoPlan)
    assert result.status == "INFEASIBLE"


@pytest.mark.parametrize("name", ["latency", "tpot", "throughput", "efficiency", "weighted"])
def test_many_sequences_stay_inside_64_bits(name: str) -> None:
    problem = small_problem(
        cluster=small_cluster(memory="80 GB"), workload=small_workload(isl=50, osl=4, concurrency=8192),
        objective={"name": name}, space={"max_pp": 2},
    )  # fmt: skip
    assert value_of(solve(problem, SolveOptions(workers=1, time_limit_s=120))) > 0


# --- what must not matter ----


@pytest.mark.parametrize("seed", SEEDS)
def test_pinning_the_winner_keeps_it(seed: int) -> None:
    problem, plan = base(seed)
    if isinstance(plan, NoPlan):
        return
    chosen = plan.strategy.strategy()
    fields = [name for name in Pins.model_fields if name != "mesh_order"]
    rng = random.Random(seed)
    for names in (fields, rng.sample(fields, 3), rng.sample(fields, 1)):
        pins = Pins.model_validate({**problem.pins.given(), **{name: getattr(chosen, name) for name in names}})
        pinned = solve(problem.model_copy(update={"pins": pins}), OPTIONS)
        assert isinstance(pinned, Plan)
        assert value_of(pinned) == value_of(plan)
        assert pinned.strategy == plan.strategy


@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_of_experts_and_of_sequences_does_not_matter(seed: int) -> None:
    problem, plan = base(seed)
    rng, changes = random.Random(seed), {}
    if problem.workload.isl_list is not None:
        changes["isl_list"] = rng.sample(problem.workload.isl_list, len(problem.workload.isl_list))
    loads = problem.workload.expert_loads
    if loads is not None:
        rows = [tuple(rng.sample(row, len(row))) for row in rng.sample(loads.counts, len(loads.counts))]
        changes["expert_loads"] = {"source": "test", "counts": rows}
    renamed = solve(with_workload(problem, changes), OPTIONS)
    assert value_of(renamed) == value_of(plan)
    if isinstance(plan, Plan) and isinstance(renamed, Plan):
        assert renamed.strategy == plan.strategy
        assert renamed.metrics == plan.metrics


@pytest.mark.parametrize("seed", SEEDS)
def test_seeds_and_repetition_do_not_change_the_plan(seed: int) -> None:
    problem, plan = base(seed)
    again = solve(problem, SolveOptions(workers=1, seed=7))
    assert value_of(again) == value_of(plan)
    if isinstance(plan, Plan) and isinstance(again, Plan):
        assert (again.strategy, again.metrics) == (plan.strategy, plan.metrics)
        assert (again.placement, again.memory) == (plan.placement, plan.memory)


@pytest.mark.parametrize("seed", SEEDS[::3])
def test_doubled_loads_are_the_same_loads(seed: int) -> None:
    problem, plan = base(seed)
    loads = problem.workload.expert_loads
    if loads is None:
        return
    doubled = {"source": "test", "counts": [[2 * count for count in row] for row in loads.counts]}
    assert value_of(solve(with_workload(problem, {"expert_loads": doubled}), OPTIONS)) == value_of(plan)


# --- the judge and the auditor agree with the solver ----


@pytest.mark.parametrize("seed", [*SEEDS, *range(2000, 2030)])
def test_the_judge_acquits_and_the_auditor_finds_nothing(seed: int) -> None:
    problem = draw(seed)
    if seed % 2:
        space = problem.space.model_copy(update={"name": "standard", "max_batch": 40})
        problem = problem.model_copy(update={"space": space})
    plan = solve(problem, OPTIONS)
    if isinstance(plan, NoPlan):
        return
    verdict = verify(plan, exhaustive=True)
    assert verdict.findings == ()
    assert verdict.ok
    placed = Blocks(plan.placement.load_tokens, plan.placement.lambda_ppm, plan.placement.stage_layers)
    strategy = plan.strategy.strategy()
    for report in (audit(problem, strategy, blocks=placed), check(problem, strategy)):
        assert report.legal
        assert [f for f in report.findings if f.severity != "note"] == []


@pytest.mark.parametrize("seed", SEEDS)
def test_renaming_equal_ranks_keeps_the_plan_valid(seed: int) -> None:
    problem, plan = base(seed)
    if isinstance(plan, NoPlan):
        return
    rng, placement = random.Random(seed), plan.placement
    room = slots_per_rank(num_slots(problem.llm, problem.redundant_experts), plan.strategy.moe_ep)
    maps = []
    for held in placement.expert_maps:
        order = [r for size in sorted(set(room), reverse=True) for r in _shuffled(rng, room, size)]
        maps.append(tuple(held[rank] for rank in order))
    bins = None if placement.bins is None else tuple(rng.sample(placement.bins, len(placement.bins)))
    renamed = Placement.model_validate({**placement.model_dump(), "expert_maps": maps, "bins": bins})
    assert verify(plan.model_copy(update={"placement": renamed})).findings == ()


def _shuffled(rng: random.Random, room: list[int], size: int) -> list[int]:
    ranks = [rank for rank, slots in enumerate(room) if slots == size]
    return rng.sample(ranks, len(ranks))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_plan_survives_its_document_and_names_every_gpu_once(seed: int) -> None:
    _, plan = base(seed)
    if isinstance(plan, NoPlan):
        return
    assert Plan.parse(plan.model_dump_json()) == plan
    records = list(expand(plan))
    assert len(records) == len({record.gpu for record in records}) == plan.metrics.gpus_used
    assert {record.node for record in records} <= set(range(plan.problem.cluster.num_nodes))
