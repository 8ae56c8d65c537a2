"""Closed-loop load: the adding-up of the metrics where nothing queues, laws of queueing where something does."""

from __future__ import annotations

from dataclasses import fields
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import CALIBRATION, small_cluster, small_llm, small_problem, small_workload
from round_numbers import problem_of

from solver.cost.closed_loop import ClosedLoop, Deployment, capacity, predict, predict_strategy
from solver.cost.layers import Blocks
from solver.cost.leaves import PPM, Leaves
from solver.cost.lengths import Lengths
from solver.cost.metrics import Figures, evaluate_times
from solver.legality import violations
from solver.specs.calibration import Calibration
from solver.specs.llm import Llm
from solver.specs.problem import ALL_REDUCES, Problem
from solver.specs.workload import Workload
from solver.strategy import Strategy, packing_of

MOE = {"num_experts": 8, "top_k": 2, "expert_width": 512}
LLMS: dict[str, dict[str, Any]] = {
    "moe": {},
    "shared": {"moe": {**MOE, "shared_width": 256}},
    "dense-first": {"moe_layers": [1, 2, 3], "dense_width": 1024},
    "dense": {"moe": None, "dense_width": 1024},
    "mla": {"mla": {"kv_lora_rank": 64, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32}},
    "sliding": {"sliding_window": 64, "attention_kinds": ["sliding", "full"]},
}
AMPLE = "80 GB"


def at(deployment: Deployment, **changes: Any) -> Deployment:
    """A deployment with some of its numbers replaced."""
    known = {field.name: getattr(deployment, field.name) for field in fields(Deployment)}
    return Deployment(**known | {name: np.asarray(value, dtype=np.int64) for name, value in changes.items()})


ONE = at(Deployment(*(np.asarray(1, dtype=np.int64) for _ in fields(Deployment))), admission_steps=0)
"""One GPU, one request, one token of output, admitted at once."""


def deployment(osl: int, concurrency: int, **degrees: int) -> Deployment:
    """One replica of these degrees inside one domain of four, balanced experts."""
    stage = degrees.get("attn_tp", 1) * degrees.get("attn_dp", 1)
    return at(ONE, stage_members=min(4, stage), lambda_ppm=PPM, osl=osl, concurrency=concurrency, **degrees)


def calibration(**changes: Any) -> Calibration:
    return Calibration.read({**CALIBRATION, **changes}, "test")


def one_at_a_time() -> Workload:
    """Prompts of 200 tokens that fill a pass, outputs of 50."""
    return small_workload(isl=200, osl=50, prefill_chunk_tokens=200)


def loop(problem: Problem, deployed: Deployment) -> ClosedLoop:
    return predict(Leaves(problem), deployed)


# --- two witnesses of the adding-up ----


@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("workload", [{}, {"prefill_chunk_tokens": 70}, {"speculative": {"draft": 2, "accepted": 0.5}}])
@pytest.mark.parametrize("degrees", [(1, 1, 1), (4, 1, 1), (2, 2, 4), (1, 4, 2), (2, 4, 8)])
def test_one_replica_adds_up_like_its_best_strategy(
    llm: str, workload: dict[str, Any], degrees: tuple[int, int, int]
) -> None:
    """Decode step and lone prefill are those of the metrics with the fastest collectives, without overlap."""
    tp, dp, ep = degrees
    record, batch = small_llm(**LLMS[llm]), 5
    if not record.is_moe:
        dp = ep = 1
    load = small_workload(isl=200, concurrency=batch * dp, **workload)
    problem = small_problem(llm=record, cluster=small_cluster(memory=AMPLE), workload=load)
    degree = {"attn_tp": tp, "attn_dp": dp, "moe_tp": tp * dp // ep if record.is_moe else 1, "moe_ep": ep}
    strategies = with_collectives(problem, Strategy(**degree, batch=batch))
    assert len(strategies) in (3, 6)
    figures = [evaluated(problem, strategy) for strategy in strategies]
    found = predict_strategy(Leaves(problem), strategies[0], packing_of(problem, strategies[0]), PPM)
    assert int(found.resident) == batch * dp
    assert int(found.decode_ns) == min(each.decode_ns for each in figures)
    assert int(found.prefill_ns) == min(each.ttft_ns for each in figures)


def with_collectives(problem: Problem, strategy: Strategy) -> list[Strategy]:
    """The legal strategies of these degrees without overlap, one all-reduce and one exchange for both phases."""
    found = []
    for reduce, dispatch in product(ALL_REDUCES, ("gather", "all_to_all")):
        knobs = {"decode_allreduce": reduce, "prefill_allreduce": reduce}
        knobs |= {"decode_dispatch": dispatch, "prefill_dispatch": dispatch}
        changed = Strategy(**strategy.model_dump() | knobs)
        if {broken.rule for broken in violations(problem, changed)} <= {"tp-domain"}:
            found.append(changed)
    return found


def evaluated(problem: Problem, strategy: Strategy) -> Figures:
    """Metrics with balanced blocks, sequences in the middle of their output."""
    workload = problem.workload
    load = strategy.batch * (workload.mean_isl + workload.osl // 2)
    blocks = Blocks(load, PPM, (problem.llm.num_layers,))
    return evaluate_times(Leaves(problem), strategy, packing_of(problem, strategy), blocks)


def test_a_dense_layer_on_one_gpu_by_hand() -> None:
    # Decode 8960 ns as in test_cost: 108 + 1368 + 436 + 1368 + 4680 + 1000; prefill 51112: 900 + 19600 + 3332 + 19600 +
    # 4680 + 3000. Before the first token: 500 ns outside the model, the prefill, one decode step.
    llm = {"moe": None, "dense_width": 80, "num_layers": 1}
    problem = problem_of(llm, workload={"concurrency": 1}, calibration={"request_overhead": "500 ns"})
    found = loop(problem, deployment(10, 1))
    assert (int(found.decode_ns), int(found.prefill_ns), int(found.wait_ns)) == (8960, 51112, 0)
    assert (int(found.tpot_ns), int(found.ttft_ns)) == (8960, 500 + 51112 + 8960)


# --- drafted tokens ----

ONE_LAYER = {"moe": None, "dense_width": 80, "num_layers": 1}
DRAFTS = {"speculative": {"draft": 2, "accepted": 0.0}}


def test_each_drafted_token_is_a_pass_of_one_layer_and_the_head() -> None:
    # One dense layer: a pass of the prediction layer is a whole pass of the LLM for one token of every sequence, host
    # work apart, and so is a plain decode step. Two drafts of which none is kept: two passes more.
    times = {"host_step": "3 us", "host_sequence": "50 ns"}
    own = {**ONE_LAYER, "num_mtp_layers": 1}
    plain = loop(problem_of(ONE_LAYER, workload={"concurrency": 4}, calibration=times), deployment(10, 4))
    load = {"concurrency": 4, **DRAFTS}
    free = loop(problem_of(ONE_LAYER, workload=load, calibration=times), deployment(10, 4))
    drafted = loop(problem_of(own, workload=load, calibration=times), deployment(10, 4))
    assert int(drafted.decode_ns) - int(free.decode_ns) == 2 * (int(plain.decode_ns) - 3000 - 4 * 50)


def test_drafts_that_are_planned_one_after_another_repeat_the_host_work() -> None:
    # Twice more: 2 * (3 us per step + 4 sequences * 200 ns); the 50 ns that an overlap leaves visible are paid once.
    times = {"host_step": "3 us", "host_sequence": "50 ns"}
    load = {"concurrency": 4, **DRAFTS}
    once = loop(problem_of(ONE_LAYER, workload=load, calibration=times), deployment(10, 4))
    serial = {**times, "draft_host_steps": 2, "draft_host_sequence": "200 ns"}
    again = loop(problem_of(ONE_LAYER, workload=load, calibration=serial), deployment(10, 4))
    assert int(again.decode_ns) - int(once.decode_ns) == 2 * (3000 + 4 * 200)
    undrafted = problem_of(ONE_LAYER, workload={"concurrency": 4}, calibration=serial)
    assert (
        loop(undrafted, deployment(10, 4)).decode_ns
        == loop(problem_of(ONE_LAYER, workload={"concurrency": 4}, calibration=times), deployment(10, 4)).decode_ns
    )


# --- admission ----


def test_a_prompt_waits_for_the_steps_of_others_until_it_is_admitted() -> None:
    # Ten steps, with probability 7/8 (a lone request finds an idle engine); nothing is lost between TTFT and TPOT.
    problem = small_problem(workload=one_at_a_time(), cluster=small_cluster(memory=AMPLE))
    now = loop(problem, deployment(50, 8, attn_tp=2, moe_ep=2))
    later = loop(problem, deployment(50, 8, attn_tp=2, moe_ep=2, admission_steps=10))
    added = int(later.ttft_ns) - int(now.ttft_ns) + 50 * (int(later.tpot_ns) - int(now.tpot_ns))
    assert added == pytest.approx(10 * 7 / 8 * int(now.decode_ns), abs=60)
    assert int(later.ttft_ns) > int(now.ttft_ns)
    alone = deployment(50, 1, attn_tp=2, moe_ep=2)
    assert loop(problem, at(alone, admission_steps=10)).ttft_ns == loop(problem, alone).ttft_ns


def test_the_wait_of_a_workload_reaches_the_prediction() -> None:
    load = small_workload(isl=200, osl=50, concurrency=8)
    slow = small_workload(isl=200, osl=50, concurrency=8, admission_steps=2.5)
    strategy = Strategy(attn_tp=2, moe_ep=2, batch=8)
    found = []
    for workload in (load, slow):
        problem = small_problem(workload=workload, cluster=small_cluster(memory=AMPLE))
        found.append(predict_strategy(Leaves(problem), strategy, packing_of(problem, strategy), PPM))
    assert int(found[1].ttft_ns) > int(found[0].ttft_ns) + 2 * int(found[0].decode_ns)


# --- interference ----


def first_ns(found: ClosedLoop) -> float:
    """Prefill and step of a request alone, and half a step of the others, whom it meets with probability 1 - 1/n."""
    return int(found.prefill_ns) + int(found.decode_ns) * (1 + (1 - 1 / int(found.resident)) / 2)


@settings(max_examples=40)
@given(
    llm=st.sampled_from(sorted(LLMS)), isl=st.integers(1, 5000), osl=st.integers(1, 3000), mixed=st.booleans(),
    overhead=st.integers(0, 10**9), share=st.floats(0, 1),
)  # fmt: skip
def test_a_lone_request_meets_nobody(llm: str, isl: int, osl: int, mixed: bool, overhead: int, share: float) -> None:
    changes = {"mixed_batches": mixed, "request_overhead": f"{overhead} ns", "queue_share": share}
    problem = small_problem(
        llm=small_llm(**LLMS[llm]), workload=small_workload(isl=isl, osl=osl, concurrency=1),
        calibration=calibration(**changes), cluster=small_cluster(memory=AMPLE),
    )  # fmt: skip
    found = loop(problem, deployment(osl, 1, attn_tp=2, moe_ep=1 if llm == "dense" else 2))
    assert int(found.wait_ns) == 0
    assert int(found.tpot_ns) == int(found.decode_ns)
    assert int(found.ttft_ns) == overhead + int(found.prefill_ns) + int(found.decode_ns)


def test_prefills_of_others_stretch_the_decode_time() -> None:
    # Seven others, each one pass of its own: A = 7 prefills in a cycle. Without bursts they delay the first token and
    # the others in proportion to t_0 and osl t_decode; nothing is lost or counted twice. Whole ns per token.
    problem = small_problem(workload=one_at_a_time(), cluster=small_cluster(memory=AMPLE))
    found = loop(problem, deployment(50, 8, attn_tp=2, moe_ep=2))
    first = first_ns(found)
    decoding, others = 50 * int(found.tpot_ns), 7 * int(found.prefill_ns)
    tokens = 50 * int(found.decode_ns)
    assert int(found.ttft_ns) == pytest.approx(first + others * first / (first + tokens), abs=1)
    assert decoding == pytest.approx(tokens + others * tokens / (first + tokens), abs=100)
    assert int(found.ttft_ns) + decoding == pytest.approx(first + tokens + others, abs=100)
    assert decoding > 1.2 * 50 * int(found.decode_ns)


def test_what_passes_outside_the_engine_is_delayed_by_nobody() -> None:
    # A second of overhead is added to the first token; the prefills of others fall on the rest as without it.
    workload, cluster = small_workload(isl=200, osl=50), small_cluster(memory=AMPLE)
    near, far = (
        loop(
            small_problem(workload=workload, cluster=cluster, calibration=calibration(request_overhead=overhead)),
            deployment(50, 8, attn_tp=2, moe_ep=2),
        )
        for overhead in ("0 ns", "1 s")
    )
    assert int(far.ttft_ns) - int(near.ttft_ns) == 10**9
    assert int(far.tpot_ns) == int(near.tpot_ns)


def test_attention_groups_prefill_side_by_side() -> None:
    # Eight requests over two groups: the seven others are 3.5 rounds, not 7.
    problem = small_problem(workload=one_at_a_time(), cluster=small_cluster(memory=AMPLE))
    found = loop(problem, deployment(50, 8, attn_dp=2, moe_ep=2))
    first, decoding = first_ns(found), 50 * int(found.tpot_ns)
    cycle = first + 50 * int(found.decode_ns) + 3.5 * int(found.prefill_ns)
    assert int(found.ttft_ns) + decoding == pytest.approx(cycle, abs=100)


def test_a_prompt_waits_for_a_share_of_the_others() -> None:
    # A quarter of seven prefills of others in bursts; of the rest, the share t_0 / (t_0 + osl t_decode) as before.
    eight = deployment(50, 8, attn_tp=2, moe_ep=2)
    workload, cluster = one_at_a_time(), small_cluster(memory=AMPLE)
    free, queued = (
        loop(small_problem(workload=workload, cluster=cluster, calibration=calibration(queue_share=share)), eight)
        for share in (0.0, 0.25)
    )
    first, others = first_ns(free), 7 * int(free.prefill_ns)
    spread = first / (first + 50 * int(free.decode_ns))
    more = int(queued.ttft_ns) - int(free.ttft_ns)
    assert more == pytest.approx(others * (0.25 + 0.75 * spread - spread), abs=1)
    assert int(queued.decode_ns) == int(free.decode_ns)


@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("isl", [20, 300, 3000])
def test_a_shared_step_costs_no_more_than_a_pass_of_its_own(llm: str, isl: int) -> None:
    """Mixed batches read the weights once for both."""
    tpot = []
    for mixed in (False, True):
        problem = small_problem(
            llm=small_llm(**LLMS[llm]), workload=small_workload(isl=isl, osl=50), cluster=small_cluster(memory=AMPLE),
            calibration=calibration(mixed_batches=mixed),
        )  # fmt: skip
        tpot.append(int(loop(problem, deployment(50, 8, attn_tp=2, moe_ep=1 if llm == "dense" else 2)).tpot_ns))
    assert tpot[1] <= tpot[0]


def test_a_mixed_step_lasts_as_long_as_its_launches() -> None:
    # Launches far beyond the GPU's work: a step with a prompt takes as long as they and the host's work before them.
    # Decoding loses that beyond its own step (the GPU's work and the host's), who waits for his turn all of it.
    changes = {"mixed_batches": True, "host_prefill_kernel": "1 ms", "host_prefill": "3 ms"}
    problem = small_problem(
        workload=one_at_a_time(), cluster=small_cluster(memory=AMPLE), calibration=calibration(**changes)
    )
    found = loop(problem, deployment(50, 8, attn_tp=2, moe_ep=2))
    step = Leaves(problem).num_kernels * 10**6 + 3 * 10**6
    first, tokens = first_ns(found), 50 * int(found.decode_ns)
    phi = first / (first + tokens)
    assert int(found.ttft_ns) == pytest.approx(first + phi * 7 * step, abs=1)
    assert 50 * int(found.tpot_ns) == pytest.approx(tokens + (1 - phi) * 7 * (step - int(found.decode_ns)), abs=50)


def test_launches_behind_the_work_of_a_mixed_step_cost_decoding_nothing() -> None:
    # A prompt of 3,000 tokens keeps the GPU busy for longer than its kernels take to launch; a lone pass pays for both.
    free, launched = (
        loop(
            small_problem(
                workload=small_workload(isl=3000, osl=50, concurrency=8), cluster=small_cluster(memory=AMPLE),
                calibration=calibration(mixed_batches=True, host_prefill_kernel=kernel),
            ),
            deployment(50, 8, attn_tp=2, moe_ep=2),
        )
        for kernel in ("0 ns", "100 ns")
    )  # fmt: skip
    more = int(launched.prefill_ns) - int(free.prefill_ns)
    assert more > 0
    # Only the share of the others' prompts that delays the first token follows the longer pass.
    assert int(launched.tpot_ns) <= int(free.tpot_ns)


def cycle_ns(found: ClosedLoop, osl: int) -> int:
    """From a request's arrival to its last token."""
    return int(found.ttft_ns) + osl * int(found.tpot_ns)


def assert_passes_of(problem: Problem, deployed: Deployment, together: int) -> None:
    """The others' prompts cost as many rounds of so many prompts as the metrics say; nothing is lost on the way."""
    found, osl, concurrency = loop(problem, deployed), int(deployed.osl), int(deployed.concurrency)
    strategy = Strategy(attn_tp=2, moe_ep=2, batch=concurrency, prefill_batch=together)
    shared = min(evaluated(problem, each).round_ns for each in with_collectives(problem, strategy))
    waited = int(deployed.admission_steps) * int(found.decode_ns) * (1 - 1 / concurrency)
    expected = first_ns(found) + waited + osl * int(found.decode_ns) + (concurrency - 1) / together * shared
    assert cycle_ns(found, osl) == pytest.approx(expected, abs=3 * osl)


def sharing(budget: int) -> Problem:
    """Prompts of 50 tokens, outputs of 10, 400 requests: 40 start in a step, more than a pass takes."""
    workload = small_workload(isl=50, osl=10, concurrency=400, prefill_chunk_tokens=budget)
    return small_problem(workload=workload, cluster=small_cluster(memory=AMPLE))


@pytest.mark.parametrize(("budget", "together"), [(400, 8), (200, 4), (50, 1)])
def test_prompts_of_one_decode_step_share_a_pass(budget: int, together: int) -> None:
    assert_passes_of(sharing(budget), deployment(10, 400, attn_tp=2, moe_ep=2), together)


def test_prompts_that_wait_for_the_same_look_share_a_pass() -> None:
    # Eight sequences of ten tokens: 0.8 start in a step, 40 in fifty (25 steps of wait); a pass takes all eight.
    workload = small_workload(isl=50, osl=10, concurrency=8)
    problem = small_problem(workload=workload, cluster=small_cluster(memory=AMPLE))
    assert_passes_of(problem, deployment(10, 8, attn_tp=2, moe_ep=2, admission_steps=25), 8)


def test_a_prompt_that_seldom_meets_another_shares_few_passes() -> None:
    # Half a prompt arrives in a step: a pass that has any has 0.5 / (1 - e^-0.5) = 1.27 (Poisson).
    def lost_ns(budget: int) -> float:
        workload = small_workload(isl=50, osl=80, concurrency=40, prefill_chunk_tokens=budget)
        problem = small_problem(workload=workload, cluster=small_cluster(memory=AMPLE))
        found = loop(problem, deployment(80, 40, attn_tp=2, moe_ep=2))
        return cycle_ns(found, 80) - first_ns(found) - 80 * int(found.decode_ns)

    host = 30_000 * 39  # "host_prefill" of the small calibration, once a pass
    assert lost_ns(50) > lost_ns(8192) + 0.9 * host * (1 - (1 - np.exp(-0.5)) / 0.5)


# --- capacity and Little's law ----


def test_capacity_by_hand() -> None:
    # The round LLM on one GPU of 2048 KiB: four layers of 47 (attention) + 188 (experts: 8 * 24000 bytes) + 4 (norms,
    # router); embedding and head 2 * 196; a prefill pass of one prompt 149 + 4 + 79; reserves 6: 1586. The cache of a
    # sequence of 100 + 5 tokens is four layers of 17 KiB (16800 bytes): 462 / 68 = 6.8.
    leaves = Leaves(problem_of())
    assert int(capacity(leaves, deployment(10, 8))) == 6


def test_a_tied_vocabulary_is_held_once() -> None:
    # 196 KiB more: 658 / 68 = 9.7.
    assert int(capacity(Leaves(problem_of({"tie_embeddings": True})), deployment(10, 8))) == 9


def test_a_stage_holds_one_end_of_the_vocabulary() -> None:
    # Two stages of two layers: 478 + 196 + 232 + 6 = 912 KiB on either, and 34 KiB a sequence: 1136 / 34 = 33.4.
    leaves = Leaves(problem_of())
    assert int(capacity(leaves, deployment(10, 8, pp=2, micro_batches=2))) == 33


def test_a_network_that_does_not_fit_still_serves_one_by_one() -> None:
    problem = small_problem(cluster=small_cluster(memory="25 MB"))
    assert int(capacity(Leaves(problem), deployment(16, 8))) == 1


@settings(max_examples=40)
@given(
    llm=st.sampled_from(sorted(LLMS)), memory=st.integers(70, 160), concurrency=st.integers(1, 4000),
    replicas=st.integers(1, 3), share=st.floats(0, 1),
)  # fmt: skip
def test_littles_law(llm: str, memory: int, concurrency: int, replicas: int, share: float) -> None:
    """Requests in flight = throughput x time in the system, throughput being that of the resident ones."""
    problem = small_problem(
        llm=small_llm(**LLMS[llm]), workload=small_workload(isl=300, osl=20),
        cluster=small_cluster(memory=f"{memory} MB"), calibration=calibration(queue_share=share),
    )  # fmt: skip
    leaves, deployed = Leaves(problem), deployment(20, concurrency, replicas=replicas)
    found = predict(leaves, deployed)
    fitting, offered = int(capacity(leaves, deployed)), max(1.0, concurrency / replicas)
    served = min(np.ceil(offered), fitting)
    assert int(found.resident) == served
    cycle = int(found.ttft_ns) - int(found.wait_ns) + 20 * int(found.tpot_ns)
    if offered <= served:
        assert int(found.wait_ns) == 0
    else:
        assert int(found.wait_ns) == pytest.approx((offered - served) / served * cycle, rel=1e-6)
        assert offered == pytest.approx(served / cycle * (cycle + int(found.wait_ns)), rel=1e-6)


# --- monotony ----


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("llm", LLMS)
def test_more_load_is_never_faster(llm: str, mixed: bool) -> None:
    """While no two prompts share a pass (outputs are long), and with rows of experts at the full rate."""
    problem = small_problem(
        llm=small_llm(**LLMS[llm]), workload=small_workload(isl=300, osl=400), cluster=small_cluster(memory="60 MB"),
        calibration=calibration(grouped_gemm_half_rows=0.0, queue_share=0.2, mixed_batches=mixed),
    )  # fmt: skip
    deployed = deployment(400, 1, attn_tp=2, moe_ep=1 if llm == "dense" else 2)
    loops = [loop(problem, at(deployed, concurrency=concurrency)) for concurrency in range(1, 500, 7)]
    for name in ("ttft_ns", "tpot_ns", "decode_ns", "wait_ns", "resident"):
        assert np.all(np.diff([int(getattr(found, name)) for found in loops]) >= 0), name
    assert int(loops[-1].tpot_ns) > int(loops[0].tpot_ns)
    assert int(loops[-1].wait_ns) > 0


@settings(max_examples=40)
@given(
    llm=st.sampled_from(sorted(LLMS)), concurrency=st.integers(1, 2000), isl=st.integers(10, 500),
    osl=st.integers(100, 400), mixed=st.booleans(), share=st.floats(0, 0.2),
)  # fmt: skip
def test_more_memory_never_lengthens_the_wait(
    llm: str, concurrency: int, isl: int, osl: int, mixed: bool, share: float
) -> None:
    """Where decoding outlasts the prefills; a deployment that prefills bind serves no more with more memory."""
    waits, residents = [], []
    for megabytes in (80, 90, 110, 150, 230, 390, 80_000):
        problem = small_problem(
            llm=small_llm(**LLMS[llm]), workload=small_workload(isl=isl, osl=osl, concurrency=1),
            cluster=small_cluster(memory=f"{megabytes} MB"),
            calibration=calibration(mixed_batches=mixed, queue_share=share),
        )  # fmt: skip
        found = loop(problem, deployment(osl, concurrency))
        waits.append(int(found.wait_ns))
        residents.append(int(found.resident))
    assert waits == sorted(waits, reverse=True)
    assert residents == sorted(residents)
    assert waits[-1] == 0


# --- many at once ----


@st.composite
def deployments(draw: st.DrawFn, moe: bool) -> tuple[Deployment, list[int]]:
    """Up to six deployments as one, and the mean prompts of their workloads."""
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        tp, dp = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from([1, 2, 4])) if moe else 1
        ep = draw(st.sampled_from([n for n in (1, 2, 4, 8) if tp * dp % n == 0])) if moe else 1
        pp = draw(st.integers(1, 3))
        rows.append(
            {
                "attn_tp": tp, "attn_dp": dp, "moe_tp": tp * dp // ep if moe else 1, "moe_ep": ep, "pp": pp,
                "micro_batches": draw(st.integers(1, pp)), "replicas": draw(st.integers(1, 3)),
                "stage_members": min(4, tp * dp), "inside": draw(st.integers(0, 1)),
                "lambda_ppm": draw(st.integers(PPM, 3 * PPM)),
                "concurrency": draw(st.integers(1, 3000)), "osl": draw(st.integers(1, 500)),
                "admission_steps": draw(st.integers(0, 40)),
            }
        )  # fmt: skip
    isl = [draw(st.integers(1, 20_000)) for _ in rows]
    return at(ONE, **{name: [row[name] for row in rows] for name in rows[0]}), isl


@settings(max_examples=60)
@given(data=st.data(), llm=st.sampled_from(sorted(LLMS)), mixed=st.booleans(), hit=st.sampled_from([0.0, 0.3]))
def test_many_deployments_cost_what_each_costs_alone(data: st.DataObject, llm: str, mixed: bool, hit: float) -> None:
    record = small_llm(**LLMS[llm])
    deployed, isl = data.draw(deployments(record.is_moe))
    problem = problem_for(record, mixed, hit)
    many = predict(Leaves(problem, Lengths.many(problem, np.array(isl), deployed.osl)), deployed)
    for row, prompt in enumerate(isl):
        single = at(deployed, **{field.name: getattr(deployed, field.name)[row] for field in fields(Deployment)})
        own = small_workload(isl=prompt, osl=int(single.osl), concurrency=1, prefix_hit_rate=hit)
        one = predict(Leaves(problem.model_copy(update={"workload": own})), single)
        for field in fields(ClosedLoop):
            assert int(getattr(many, field.name)[row]) == int(getattr(one, field.name)), field.name


def problem_for(llm: Llm, mixed: bool, hit: float) -> Problem:
    """A problem of that LLM on little memory, so that some deployments wait."""
    return small_problem(
        llm=llm, cluster=small_cluster(memory="150 MB"), workload=small_workload(isl=1, prefix_hit_rate=hit),
        calibration=calibration(mixed_batches=mixed, queue_share=0.2, request_overhead="5 ms"),
    )  # fmt: skip
