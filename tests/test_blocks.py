"""Placement blocks, each alone, against brute force: their values are optimal and their bounds are valid."""

from __future__ import annotations

import random
import time
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import every_layout, every_load, every_placement, every_strategy
from plans import small_cluster, small_llm, small_problem, small_workload
from problems import draw

from solver.cost.balance import expert_share, load_factor_ppm, mean_ppm, rank_loads, sequence_tokens, slots_per_rank
from solver.cost.layers import Blocks
from solver.cost.leaves import Leaves
from solver.cost.ledger import stage_ledgers
from solver.cost.metrics import Utopia, evaluate_times, objective_value
from solver.search.batches import load_bound, solve_batches
from solver.search.bounds import Bounds
from solver.search.experts import expert_bound_ppm, layer_bound, solve_experts, solve_layers
from solver.search.stages import StagesProblem, solve_stages
from solver.specs.problem import OBJECTIVES, Objective, Problem
from solver.strategy import Strategy, packing_of

FAST = settings(max_examples=150, deadline=None, derandomize=True)


def soon() -> float:
    """A deadline far enough for any test problem."""
    return time.monotonic() + 60


# --- experts: replicas to ranks ----

COUNTS = st.lists(st.integers(0, 40) | st.sampled_from([200, 1000]), min_size=2, max_size=6)


@FAST
@given(counts=COUNTS, ranks=st.integers(1, 4), redundant=st.integers(0, 2))
def test_layers_are_placed_optimally(counts: list[int], ranks: int, redundant: int) -> None:
    counts[0] += 1  # not all zero
    slots = len(counts) + redundant
    if ranks > slots or slots > len(counts) * ranks:
        return  # illegal: an empty rank, or an expert twice on one
    capacities = tuple(slots_per_rank(slots, ranks))
    best = min(max(rank_loads(counts, held)) for held in every_placement(len(counts), capacities))
    found = solve_layers([counts], capacities, soon())[0]
    assert found.busiest == found.bound == best
    assert layer_bound(counts, capacities) <= best
    # The placement is one: full ranks, no expert twice on a rank, none missing, and as heavy as said.
    assert [len(rank) for rank in found.slots_of_rank] == list(capacities)
    assert all(len(set(rank)) == len(rank) for rank in found.slots_of_rank)
    assert {expert for rank in found.slots_of_rank for expert in rank} == set(range(len(counts)))
    assert max(rank_loads(counts, found.slots_of_rank)) == found.busiest


@FAST
@given(counts=st.lists(st.integers(1, 10_000), min_size=2, max_size=40), redundant=st.integers(1, 30))
def test_one_slot_per_rank_is_settled_by_the_bound(counts: list[int], redundant: int) -> None:
    # Every slot is a rank, so only replica counts matter: giving each next slot to the heaviest share is optimal.
    total, replicas = sum(counts), [1] * len(counts)
    for _ in range(redundant):
        hottest = max(range(len(counts)), key=lambda e: counts[e] / replicas[e])
        replicas[hottest] += 1
    best = max(expert_share(count, total, copies) for count, copies in zip(counts, replicas, strict=True))
    assert layer_bound(counts, (1,) * sum(replicas)) == best


@pytest.mark.parametrize(
    ("experts", "redundant", "ranks", "top"),
    [
        (256, 32, 72, 4),  # four slots: at least 224 experts have one replica, and 72 ranks hold three each of 216
        (256, 32, 144, 2),  # two slots: 224 whole experts on 144 ranks
        (512, 64, 192, 3),  # three slots: 448 whole experts, and two each on 192 ranks are 384
        (384, 32, 104, 4),  # four slots: 352 whole experts, and three each on 104 ranks are 312
        (128, 16, 16, 8),  # nine slots: the mean, with a replica of each of eight pairs of halves on every rank
    ],
)
def test_equal_experts_with_redundancy_are_proved(experts: int, redundant: int, ranks: int, top: int) -> None:
    (layer,) = solve_layers([[1] * experts], slots_per_rank(experts + redundant, ranks), soon())
    assert layer.busiest == layer.bound == top * expert_share(1, experts, 1)


def test_without_time_a_layer_still_has_a_placement_and_a_valid_bound() -> None:
    # 7, 5, 5, 4, 4, 3 (of 28) on two ranks of three slots: 7 + 4 + 3 against 5 + 5 + 4 is even, 14/28.
    found = solve_layers([(7, 5, 5, 4, 4, 3)], (3, 3), time.monotonic() - 1)[0]
    assert found.bound <= 500_000_001 <= found.busiest + 1


def test_a_hot_expert_is_replicated() -> None:
    # Shares 0.7, 0.1, 0.1, 0.1; two spare slots on three ranks of two. Three replicas of the hot one leave 0.7/3 and
    # a tenth on each rank: 0.3333; two replicas would leave 0.35 and more.
    found = solve_layers([(7, 1, 1, 1)], (2, 2, 2), soon())[0]
    assert all(0 in rank for rank in found.slots_of_rank)
    assert found.busiest == 233_333_334 + 100_000_000


def test_the_mean_over_layers_is_what_counts() -> None:
    # Layer 0: 3, 1 on two ranks: 0.75, factor 1.5. Layer 1: even, factor 1. Mean 1.25.
    loads = {"source": "test", "counts": [[3, 1], [1, 1]]}
    llm = small_llm(num_layers=2, moe={"num_experts": 2, "top_k": 1, "expert_width": 512})
    problem = small_problem(llm=llm, workload=small_workload(expert_loads=loads))
    found = solve_experts(problem, 2, soon())
    assert (found.lambda_ppm, found.bound_ppm) == (1_250_000, 1_250_000)
    assert expert_bound_ppm(problem, 2) == mean_ppm([load_factor_ppm(750_000_000, 2), 1_000_000]) == 1_250_000


def test_uniform_routing_on_ranks_that_divide_the_experts_is_even() -> None:
    found = solve_experts(small_problem(), 4, soon())
    assert found.lambda_ppm == found.bound_ppm == 1_000_000
    assert found.layers[0].slots_of_rank == ((0, 1), (2, 3), (4, 5), (6, 7))


# --- batches: sequences to bins ----

TOKENS = st.lists(st.integers(1, 600), min_size=1, max_size=7).map(sorted)


@FAST
@given(tokens=TOKENS, bins=st.integers(1, 5), spare=st.integers(0, 3))
def test_sequences_are_dealt_optimally(tokens: list[int], bins: int, spare: int) -> None:
    cap = -(-len(tokens) // bins) + spare
    problem = small_problem(workload=small_workload(isl_list=tokens, concurrency=len(tokens), osl=1))
    best = every_load(problem, bins, cap)[0]
    if problem.workload.is_uniform:
        best = -(-len(tokens) // bins) * tokens[0]  # equal sequences: the fullest bin
    found = solve_batches(tokens, bins, cap, soon())
    assert found is not None
    assert found.load == found.bound == best
    assert load_bound(tokens, bins) <= best
    assert sorted(index for members in found.bins for index in members) == list(range(len(tokens)))
    assert len(found.bins) == bins
    assert max(len(members) for members in found.bins) <= cap
    assert max(sum(tokens[i] for i in members) for members in found.bins) == found.load


def test_sequences_that_do_not_fit_have_no_dealing() -> None:
    assert solve_batches((1, 2, 3, 4, 5), 2, 2, soon()) is None


def test_the_cap_can_force_a_heavier_bin() -> None:
    # 6 against 2 + 2 + 2 is even; with two per bin the heaviest is 6 + 2.
    free, capped = solve_batches((2, 2, 2, 6), 2, 3, soon()), solve_batches((2, 2, 2, 6), 2, 2, soon())
    assert free is not None
    assert capped is not None
    assert (free.load, capped.load) == (6, 8)


@FAST
@given(tokens=TOKENS)
def test_promises_about_loads_hold_for_fewer_bins_too(tokens: list[int]) -> None:
    problem = small_problem(workload=small_workload(isl_list=tokens, concurrency=len(tokens), osl=1))
    for cut in Bounds(problem).load_cuts:
        for bins in range(1, min(cut.bins, len(tokens)) + 1):
            assert every_load(problem, bins, len(tokens))[0] >= cut.load


# --- stages: layers to stages ----


def best_layout(problem: Problem, strategy: Strategy, load: int, factor: int, utopia: Utopia | None) -> int | None:
    """Least objective over all layouts that meet memory and SLOs."""
    leaves, packing, slo = Leaves(problem), packing_of(problem, strategy), problem.workload.slo
    weights = utopia.weights(problem.objective.latency_weight) if utopia else (0, 0)
    values = []
    for layout in every_layout(problem.llm.num_layers, strategy.pp):
        blocks = Blocks(load, factor, layout)
        if any(ledger.total_kib > ledger.capacity_kib for ledger in stage_ledgers(leaves, strategy, blocks)):
            continue
        f = evaluate_times(leaves, strategy, packing, blocks)
        limits = ((slo.ttft, f.ttft_ns), (slo.tpot, f.tpot_ns), (slo.request_latency, f.request_latency_ns))
        rate = Fraction(f.active * problem.workload.osl * 10**9, f.cycle_ns)
        rates = ((slo.min_throughput, rate), (slo.min_efficiency, rate / f.gpus))
        fast = all(least is None or value >= least for least, value in rates)
        if fast and all(limit is None or value <= limit for limit, value in limits):
            values.append(objective_value(problem.objective.name, f, weights))
    return min(values, default=None)


@pytest.mark.parametrize("seed", range(120))
def test_layers_are_split_optimally(seed: int) -> None:
    rng = random.Random(seed)
    problem = draw(seed)
    pipelined = [s for s in every_strategy(problem) if s.pp > 1]
    for strategy, name in zip(rng.sample(pipelined, min(4, len(pipelined))), OBJECTIVES[seed % 4 :], strict=False):
        asked = problem.model_copy(update={"objective": Objective(name=name, latency_weight=0.3)})  # type: ignore[arg-type]
        utopia = Utopia(latency_ns=10**7, inverse_efficiency_ns=10**6) if name == "weighted" else None
        load, factor = strategy.batch * sequence_tokens(problem)[-1], rng.choice([1_000_000, 1_300_000])
        leaves, packing = Leaves(asked), packing_of(asked, strategy)
        layout = solve_stages(StagesProblem(leaves, strategy, packing, load, factor), utopia)
        best = best_layout(asked, strategy, load, factor, utopia)
        if layout is None:
            assert best is None
            continue
        assert len(layout) == strategy.pp
        assert sum(layout) == problem.llm.num_layers
        weights = utopia.weights(0.3) if utopia else (0, 0)
        figures = evaluate_times(leaves, strategy, packing, Blocks(load, factor, layout))
        assert objective_value(asked.objective.name, figures, weights) == best


def stages_of(problem: Problem, strategy: Strategy) -> tuple[int, ...] | None:
    """Layout of a strategy with balanced blocks."""
    load = strategy.batch * sequence_tokens(problem)[-1]
    return solve_stages(StagesProblem(Leaves(problem), strategy, packing_of(problem, strategy), load, 10**6), None)


def test_one_stage_holds_every_layer() -> None:
    assert stages_of(small_problem(), Strategy(batch=8)) == (4,)


def test_a_heavy_head_takes_layers_off_the_last_stage() -> None:
    # Prefill of several chunks waits for the slowest stage; the head of a large vocabulary weighs as much as layers.
    llm = small_llm(num_layers=8, vocab_size=2_000_000)
    workload = small_workload(isl=1000, concurrency=8, prefill_chunk_tokens=100)
    problem = small_problem(
        llm=llm, workload=workload, cluster=small_cluster(memory="80 GB"), objective={"name": "ttft"}
    )
    layout = stages_of(problem, Strategy(pp=2, batch=8))
    assert layout is not None
    assert layout[0] > layout[1]


def test_equal_objectives_are_split_evenly() -> None:
    # One micro-batch of one chunk: the split does not change the latency, so the slowest stages decide.
    layout = stages_of(small_problem(workload=small_workload(isl=100, concurrency=8)), Strategy(pp=2, batch=8))
    assert layout == (2, 2)


def test_memory_and_slos_can_leave_no_layout() -> None:
    problem = small_problem(workload=small_workload(isl=100, concurrency=8, slo={"ttft": "1 ns"}))
    stages = StagesProblem(Leaves(problem), Strategy(pp=2, batch=8), packing_of(problem, Strategy(pp=2)), 800, 10**6)
    assert solve_stages(stages, None) is None
    assert solve_stages(stages, None, with_slos=False) == (2, 2)


def test_more_stages_than_layers_have_no_layout() -> None:
    assert stages_of(small_problem(), Strategy(pp=5, batch=8)) is None


def test_many_layers_are_split_at_once() -> None:
    """61 layers of two kinds over 16 stages; an objective that counts both phases must not be climbed ns by ns."""
    llm = small_llm(num_layers=61, dense_width=2000, moe_layers=list(range(3, 61)))
    problem = small_problem(llm=llm, cluster=small_cluster(memory="80 GB"), objective={"name": "efficiency"})
    for pp, micro_batches in product((2, 3, 7, 16), (1, 2)):
        layout = stages_of(problem, Strategy(pp=pp, micro_batches=micro_batches, batch=8))
        assert layout is not None
        assert max(layout) - min(layout) <= 2
