"""The exhaustive check against brute force in plain Python: every strategy, every split, every placement."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from itertools import combinations, pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plans import build_plan, small_cluster, small_llm, small_problem, small_workload

from solver.cost.balance import expert_counts, load_factor_ppm, mean_ppm, rank_loads, sequence_tokens, slots_per_rank
from solver.cost.layers import Blocks
from solver.cost.leaves import Leaves
from solver.cost.ledger import stage_ledgers
from solver.cost.metrics import evaluate_times, objective_value
from solver.degrees import domains_of
from solver.legality import violations
from solver.specs.catalog import load_calibration, load_cluster, load_llm, load_workload
from solver.specs.problem import MESH_ORDERS, OBJECTIVES, Pins, Problem, Space
from solver.strategy import Strategy, num_slots, packing_of
from solver.verify import verify
from solver.verify.blocks import BlockBounds, layer_lower, search_items, search_layer
from solver.verify.exhaustive import Enumeration
from solver.verify.stages import least_cap, least_caps, splits

SINGLE = ("latency", "ttft", "tpot", "throughput", "efficiency", "gpus")


# --- brute force ----


def every_strategy(problem: Problem) -> Iterator[Strategy]:
    """Every joint assignment that satisfies the legality rules."""
    d = domains_of(problem)
    for tp, moe_tp, moe_ep, pp in product(d.attn_tp, d.moe_tp, d.moe_ep, d.pp):
        stage = moe_tp * moe_ep if problem.llm.is_moe else tp
        if stage % tp:
            continue
        most = problem.gpu_budget // (stage * pp)
        knobs = product(
            range(1, most + 1), d.micro_batches, d.batch, d.prefill_batch, MESH_ORDERS, d.decode_allreduce,
            d.prefill_allreduce, d.decode_dispatch, d.prefill_dispatch, d.decode_overlap, d.prefill_overlap,
        )  # fmt: skip
        for r, m, b, pb, order, dar, par, dd, pd, do, po in knobs:
            strategy = Strategy(
                attn_tp=tp, attn_dp=stage // tp, moe_tp=moe_tp, moe_ep=moe_ep, pp=pp, replicas=r, micro_batches=m,
                batch=b, prefill_batch=pb, mesh_order=order, decode_allreduce=dar, prefill_allreduce=par,
                decode_dispatch=dd, prefill_dispatch=pd, decode_overlap=do, prefill_overlap=po,
            )  # fmt: skip
            if not violations(problem, strategy):
                yield strategy


def every_split(num_layers: int, pp: int) -> Iterator[tuple[int, ...]]:
    """Compositions of the layers into stages."""
    for cuts in combinations(range(1, num_layers), pp - 1):
        ends = (0, *cuts, num_layers)
        yield tuple(b - a for a, b in pairwise(ends))


def least_load(problem: Problem, bins: int, cap: int) -> int:
    """Heaviest bin of the best assignment of sequences."""
    tokens = sequence_tokens(problem)
    if problem.workload.is_uniform:
        return cap * tokens[-1]
    return _least_makespan(tokens, min(bins, len(tokens)), cap)


@cache
def _least_makespan(tokens: tuple[int, ...], bins: int, cap: int) -> int:
    best = sum(tokens)
    for owners in product(range(bins), repeat=len(tokens)):
        if max(owners.count(b) for b in range(bins)) <= cap:
            best = min(best, max(sum(t for t, o in zip(tokens, owners, strict=True) if o == b) for b in range(bins)))
    return best


def least_factor(problem: Problem, moe_ep: int) -> int:
    """Mean load factor of the best placement of every layer."""
    capacities = tuple(slots_per_rank(num_slots(problem.llm, problem.redundant_experts), moe_ep))
    return mean_ppm([load_factor_ppm(least_busiest(row, capacities), moe_ep) for row in expert_counts(problem)])


@cache
def least_busiest(counts: tuple[int, ...], capacities: tuple[int, ...]) -> int:
    """Busiest rank of the best placement: every choice of distinct experts for every rank."""
    best = 2 * 10**9
    for held in product(*(list(combinations(range(len(counts)), capacity)) for capacity in capacities)):
        if len({e for rank in held for e in rank}) == len(counts):
            best = min(best, max(rank_loads(counts, held)))
    return best


def brute_force(problem: Problem, names: tuple[str, ...] = SINGLE) -> tuple[dict[str, int | None], int]:
    """Least objective integers over strategies, splits and placements, and the number of legal strategies."""
    leaves, best, count = Leaves(problem), dict.fromkeys(names), 0
    slo, osl = problem.workload.slo, problem.workload.osl
    for strategy in every_strategy(problem):
        count += 1
        bins = strategy.replicas * strategy.attn_dp * strategy.micro_batches
        load = least_load(problem, bins, strategy.batch)
        factor = least_factor(problem, strategy.moe_ep) if problem.llm.is_moe else 10**6
        for stages in every_split(problem.llm.num_layers, strategy.pp):
            blocks = Blocks(load, factor, stages)
            f = evaluate_times(leaves, strategy, packing_of(problem, strategy), blocks)
            limits = ((slo.ttft, f.ttft_ns), (slo.tpot, f.tpot_ns), (slo.request_latency, f.request_latency_ns))
            if any(limit is not None and value > limit for limit, value in limits):
                continue
            rate = Fraction(f.active * osl * 10**9, f.cycle_ns)
            rates = ((slo.min_throughput, rate), (slo.min_efficiency, rate / f.gpus))
            if any(least is not None and value < least for least, value in rates):
                continue
            if any(ledger.total_kib > ledger.capacity_kib for ledger in stage_ledgers(leaves, strategy, blocks)):
                continue
            for name in names:
                value = objective_value(name, f)  # type: ignore[arg-type]
                known = best[name]
                best[name] = value if known is None else min(known, value)
    return best, count


def agrees(problem: Problem, names: tuple[str, ...] = SINGLE) -> None:
    """The enumeration's optimum and count are those of brute force."""
    best, count = brute_force(problem, names)
    space = Enumeration(problem)
    assert space.configurations == count
    for name, value in best.items():
        found = space.minimum(name)  # type: ignore[arg-type]
        assert (None if found is None else found.upper) == value
        if found is not None:
            assert found.lower == found.upper


# --- spaces small enough for brute force ----

LEAN = Pins(decode_allreduce="ring", prefill_allreduce="ring")


def tiny(**changes: Any) -> Problem:
    parts: dict[str, Any] = {
        "llm": small_llm(num_heads=4, num_kv_heads=2, moe={"num_experts": 4, "top_k": 2, "expert_width": 512}),
        "cluster": small_cluster(4, 2),
        "workload": small_workload(isl=200, concurrency=4),
        "space": Space(name="all", max_pp=2, max_batch=4, max_prefill_batch=2),
        "pins": LEAN,
        **changes,
    }
    return small_problem(**parts)


def test_uniform_workload() -> None:
    agrees(tiny())


def test_all_knobs() -> None:
    agrees(tiny(pins=Pins(pp=1, replicas=1, batch=2), space=Space(name="all", max_pp=1), cluster=small_cluster(8, 4),
                workload=small_workload(isl=200, concurrency=2)))  # fmt: skip


@pytest.mark.parametrize("cluster", [(4, 4), (8, 2)])
def test_direct_all_reduces(cluster: tuple[int, int]) -> None:
    # Inside a domain they are faster than any other, across domains they are the hierarchical ones.
    calibration = small_problem().calibration.model_copy(update={"direct_sync": 1000})
    space = Space(name="all", max_pp=1, tp_across_domains=True)
    pins = Pins(pp=1, replicas=1, batch=2, attn_tp=4)
    agrees(tiny(calibration=calibration, pins=pins, space=space, cluster=small_cluster(*cluster),
                workload=small_workload(isl=200, concurrency=2)), ("latency", "tpot"))  # fmt: skip


def test_free_concurrency() -> None:
    agrees(tiny(workload=small_workload(isl=200, concurrency=None, slo={"tpot": "2 ms"})))


@pytest.mark.parametrize("rate", ["min_throughput", "min_efficiency"])
@pytest.mark.parametrize("concurrency", [None, 4])
def test_least_rates(rate: str, concurrency: int | None) -> None:
    # Where replicas are free and where they cost efficiency; the limit lies between the best and the worst plan.
    loose = tiny(workload=small_workload(isl=200, concurrency=concurrency))
    name = rate.removeprefix("min_")
    found = Enumeration(loose).minimum(name)  # type: ignore[arg-type]
    assert found is not None
    best = loose.workload.osl * 10**9 * (1000 if name == "throughput" else 1)
    least = f"{2 * best}/{3 * found.lower} tokens/s{'/GPU' if name == 'efficiency' else ''}"  # two thirds of the best
    agrees(tiny(workload=small_workload(isl=200, concurrency=concurrency, slo={rate: least})))


def test_uneven_sequences() -> None:
    agrees(tiny(workload=small_workload(isl_list=[100, 900, 2500, 2600, 4000], concurrency=5)))


def test_tight_memory() -> None:
    best, _ = brute_force(tiny(cluster=small_cluster(4, 2, "40 MB")))
    loose, _ = brute_force(tiny())
    assert best != loose  # the memory binds
    agrees(tiny(cluster=small_cluster(4, 2, "40 MB")))


def test_nothing_fits() -> None:
    agrees(tiny(cluster=small_cluster(4, 2, "25 MB")))


def test_mixed_layers_over_three_stages() -> None:
    llm = small_llm(
        num_layers=5, num_heads=2, num_kv_heads=2, moe_layers=[1, 2, 4], dense_width=4096, vocab_size=20000,
        moe={"num_experts": 2, "top_k": 1, "expert_width": 512},
    )  # fmt: skip
    space = Space(name="all", max_pp=3, max_batch=4, max_prefill_batch=1)
    agrees(tiny(llm=llm, space=space, cluster=small_cluster(6, 2), workload=small_workload(isl=3000, concurrency=4)))


def test_redundant_experts_with_skewed_loads() -> None:
    loads = {"source": "test", "counts": [[9, 1, 4, 2], [1, 1, 1, 30], [5, 5, 5, 4], [3, 0, 9, 7]]}
    workload = small_workload(isl=200, concurrency=4, expert_loads=loads)
    agrees(
        tiny(workload=workload, redundant_experts=2, pins=Pins(pp=1, decode_allreduce="tree", prefill_allreduce="tree"))
    )


def test_dense_llm() -> None:
    agrees(tiny(llm=small_llm(moe=None, dense_width=512, num_heads=4), pins=Pins()))


def test_exact_gpu_count_and_pins() -> None:
    agrees(tiny(gpus_exact=3, cluster=small_cluster(4, 4)))
    agrees(tiny(pins=Pins(attn_dp=2, mesh_order="tp-pp-dp", decode_allreduce="ring", prefill_allreduce="tree")))


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm", "megatron"])
def test_engine_profiles(engine: str) -> None:
    agrees(
        tiny(engine=engine, cluster=small_cluster(6, 3), space=Space(name="all", max_pp=2, max_batch=2)), ("latency",)
    )


def test_speculation_and_chunks() -> None:
    workload = small_workload(
        isl=900, concurrency=2, prefill_chunk_tokens=256, speculative={"draft": 2, "accepted": 0.7}
    )
    agrees(tiny(workload=workload))


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**6))
def test_random_problems(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randint(2, 4)
    lengths = [rng.choice([50, 100, 700, 1500, 4000]) + rng.randint(0, 40) for _ in range(count)]
    workload: dict[str, Any] = {"isl_list": lengths, "concurrency": count, "osl": rng.choice([1, 7, 100])}
    experts = rng.choice([2, 4])
    layers = rng.randint(2, 4)
    if rng.random() < 0.5:
        counts = [[rng.randint(0, 20) + 1 for _ in range(experts)] for _ in range(layers)]
        workload["expert_loads"] = {"source": "test", "counts": counts}
    if rng.random() < 0.4:
        workload["slo"] = {"tpot": f"{rng.choice([300, 500, 900])} us"}
    llm = small_llm(
        num_layers=layers, num_heads=2, num_kv_heads=2, vocab_size=rng.choice([100, 30000]),
        moe={
            "num_experts": experts, "top_k": rng.randint(1, 2), "expert_width": 512, "shared_width": rng.choice([0, 64])
        },
    )  # fmt: skip
    problem = tiny(
        llm=llm,
        workload=small_workload(**workload),
        cluster=small_cluster(4, rng.choice([2, 4]), rng.choice(["35 MB", "60 MB", "200 MB"])),
        space=Space(name="all", max_pp=2, max_batch=count, max_prefill_batch=1),
        redundant_experts=rng.choice([0, 0, 1]),
    )
    agrees(problem)


# --- convictions ----


def test_a_suboptimal_plan_claimed_optimal_is_convicted() -> None:
    verification = verify(build_plan(tiny(), Strategy(batch=4)), exhaustive=True)
    assert [finding.rule for finding in verification.findings] == ["exhaustive-optimum"]
    assert verification.configurations == Enumeration(tiny()).configurations


@pytest.mark.parametrize("name", SINGLE)
def test_the_optimum_is_confirmed_and_the_next_integer_refuted(name: str) -> None:
    problem = tiny(objective={"name": name})
    found = Enumeration(problem).minimum(name)  # type: ignore[arg-type]
    assert found is not None
    best = build_plan(problem, found.strategy)
    assert best.certificate.value == found.upper  # one layer kind and a light vocabulary: even stages are optimal
    assert verify(best, exhaustive=True).ok
    above = Enumeration(problem).below(name, found.lower + 1, (0, 0), first=True)  # type: ignore[arg-type]
    assert above.best is not None


def test_a_true_bound_with_a_gap_is_confirmed() -> None:
    problem = tiny()
    best = Enumeration(problem).minimum("latency")
    assert best is not None
    plan = build_plan(problem, Strategy(batch=4), bound=best.lower)
    assert plan.status == "FEASIBLE"
    assert verify(plan, exhaustive=True).ok
    assert not verify(build_plan(problem, Strategy(batch=4), bound=best.lower + 1), exhaustive=True).ok


def test_weighted_optimum_lies_between() -> None:
    problem = tiny(objective={"name": "weighted", "latency_weight": 0.3})
    space = Enumeration(problem)
    utopia = space.utopia()
    assert utopia is not None
    weights = utopia.weights(0.3)
    found = space.minimum("weighted", weights)
    assert found is not None
    # Both normalised terms are at least their weight's share of 2^46.
    assert found.lower >= weights[0] * utopia.latency_ns + weights[1] * utopia.inverse_efficiency_ns
    values = []
    leaves = Leaves(problem)
    for strategy in every_strategy(problem):
        load = least_load(problem, 1, strategy.batch)
        for stages in every_split(4, strategy.pp):
            blocks = Blocks(load, least_factor(problem, strategy.moe_ep), stages)
            figures = evaluate_times(leaves, strategy, packing_of(problem, strategy), blocks)
            values.append(objective_value("weighted", figures, weights))
    assert found.upper == min(values)


def test_the_reference_deployment() -> None:
    problem = Problem(
        llm=load_llm("reference"),
        cluster=load_cluster("reference"),
        workload=load_workload("reference"),
        calibration=load_calibration("reference"),
    )
    space = Enumeration(problem)
    best = space.minimum("latency")
    assert best is not None
    assert best.lower == best.upper
    outcome = space.below("latency", best.lower, (0, 0), first=True)
    assert outcome.best is None
    assert outcome.open is None
    assert space.configurations > 10**6


def test_every_objective_is_covered() -> None:
    assert set(OBJECTIVES) == {*SINGLE, "weighted"}


# --- blocks and stages ----


def test_expert_bound_of_equal_loads_is_reached() -> None:
    # 8 experts on 3 ranks: one rank holds three of them, 3/8 of the tokens.
    assert layer_lower((1,) * 8, slots_per_rank(8, 3)) == 375_000_000
    assert search_layer((1,) * 8, slots_per_rank(8, 3)).upper == 375_000_000


@settings(max_examples=60, deadline=None, derandomize=True)
@given(counts=st.lists(st.integers(0, 30), min_size=2, max_size=5), ranks=st.integers(1, 3), spare=st.integers(0, 2))
def test_layers_are_searched_exactly(counts: list[int], ranks: int, spare: int) -> None:
    counts[0] += 1
    ranks = min(ranks, len(counts))
    spare = min(spare, len(counts) * (ranks - 1))
    capacities = tuple(slots_per_rank(len(counts) + spare, ranks))
    if max(capacities) > len(counts):
        return
    true = least_busiest(tuple(counts), capacities)
    found = search_layer(counts, capacities)
    assert layer_lower(counts, capacities) <= true
    assert found.lower == found.upper == true


@settings(max_examples=60, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 500), min_size=1, max_size=6), bins=st.integers(1, 4), spare=st.integers(0, 2))
def test_loads_are_searched_exactly(lengths: list[int], bins: int, spare: int) -> None:
    cap = -(-len(lengths) // bins) + spare
    problem = tiny(workload=small_workload(isl_list=[*lengths, 501], concurrency=len(lengths) + 1), pins=Pins())
    cap = max(cap, -(-(len(lengths) + 1) // bins))
    true = least_load(problem, bins, cap)
    blocks = BlockBounds(problem)
    assert int(blocks.load(np.array(bins), np.array(cap))) <= true
    found = blocks.load_interval(bins, cap)
    assert found.lower == found.upper == true


def test_items_that_divide_evenly_need_no_search() -> None:
    assert search_items([3, 3, 2, 2, 2], [3, 3], 6).upper == 6


@settings(max_examples=80, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), pp=st.integers(1, 4))
def test_stages_are_split_exactly(seed: int, pp: int) -> None:
    rng = random.Random(seed)
    layers = rng.randint(pp, 7)
    time, memory = ([rng.randint(1, 20) for _ in range(layers)] for _ in range(2))
    limit = rng.randint(10, 60)
    sums = [
        (max(sum(time[a:b]) for a, b in spans), max(sum(memory[a:b]) for a, b in spans))
        for stages in every_split(layers, pp)
        for spans in [[(sum(stages[:s]), sum(stages[: s + 1])) for s in range(pp)]]
    ]
    true = min((slow for slow, held in sums if held <= limit), default=None)
    found = least_cap([time, memory], [limit], pp)
    assert found == true
    arrays = [np.array([t]) for t in time], [np.array([h]) for h in memory]
    many = int(least_caps(*arrays, np.array([limit]), pp)[0])
    assert many == (2**42 if true is None else true)
    if true is not None:
        stages = splits([time, memory], [true, limit], pp)
        assert stages is not None
        assert len(stages) == pp
        assert sum(stages) == layers
        assert min(stages) >= 1
