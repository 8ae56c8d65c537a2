"""The judge acquits honest plans and convicts every kind of mutation by the name of the rule that it breaks."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plans import build_plan, small_cluster, small_llm, small_problem, small_workload

from solver.plan import Deal, Plan
from solver.specs.problem import Pins, Problem, Space
from solver.strategy import Strategy
from solver.verify import VERIFY_RULES, verify

Document = dict[str, Any]

STRATEGY = Strategy(
    attn_tp=2, attn_dp=2, moe_tp=1, moe_ep=4, pp=2, replicas=2, micro_batches=2, batch=1, decode_dispatch="all_to_all"
)
"""16 GPUs: two instances of two stages of four ranks; eight bins of one sequence."""


def plan() -> Plan:
    return build_plan(small_problem(redundant_experts=4), STRATEGY)


def rules(document: Document | Plan) -> set[str]:
    judged = document if isinstance(document, Plan) else Plan.model_validate(document)
    verification = verify(judged)
    assert verification.ok == (not verification.findings)
    assert {finding.rule for finding in verification.findings} <= set(VERIFY_RULES)
    assert all(
        any(c.isdigit() for c in f.sentence)
        or f.rule in ("objective", "labels", "digest", "topology", "status", "bins", "dtype")
        for f in verification.findings
    )
    return {finding.rule for finding in verification.findings}


@pytest.mark.parametrize(
    ("problem", "strategy"),
    [
        (small_problem(), STRATEGY),
        (small_problem(redundant_experts=4), STRATEGY),
        (small_problem(workload=small_workload(isl=100)), STRATEGY),
        (small_problem(workload=small_workload(isl=100, concurrency=None)), STRATEGY),
        (small_problem(objective={"name": "throughput"}), STRATEGY),
        (small_problem(objective={"name": "efficiency"}), STRATEGY),
        (small_problem(objective={"name": "gpus"}), STRATEGY),
        (small_problem(objective={"name": "ttft"}), Strategy(batch=8)),
        (small_problem(space=Space(name="all")), Strategy(attn_tp=4, moe_ep=3, attn_dp=3, moe_tp=4, batch=3)),
        (small_problem(llm=small_llm(moe=None, dense_width=512)), Strategy(attn_tp=4, pp=2, replicas=2, batch=4)),
        (small_problem(llm=small_llm(moe_layers=[1, 3], dense_width=512)), STRATEGY),
        (small_problem(llm=small_llm(tie_embeddings=True), engine="trtllm"),
         Strategy(attn_tp=4, moe_tp=2, moe_ep=2, batch=8)),
    ],
)  # fmt: skip
def test_honest_plans_are_acquitted(problem: Problem, strategy: Strategy) -> None:
    verification = verify(build_plan(problem, strategy))
    assert verification.findings == ()
    assert verification.ok
    assert len(verification.checks) >= 20
    assert verification.configurations is None


def test_honest_plans_with_a_gap_are_acquitted() -> None:
    value = plan().certificate.value
    for name in ("latency", "throughput", "efficiency"):
        problem = small_problem(objective={"name": name})
        value = build_plan(problem, STRATEGY).certificate.value
        assert verify(build_plan(problem, STRATEGY, bound=value - value // 10)).findings == ()


def test_a_plan_survives_its_own_json() -> None:
    assert verify(Plan.parse(plan().model_dump_json())).ok


def first_map(document: Document) -> list[list[int]]:
    """The first expert map as lists, in place."""
    maps = document["placement"]["expert_maps"] = [[list(r) for r in m] for m in document["placement"]["expert_maps"]]
    return maps[0]


def bins(document: Document) -> list[list[int]]:
    """The bins as lists, in place."""
    dealt = Deal.model_validate(document["placement"]["bins"]).bins()
    found = document["placement"]["bins"] = [list(members) for members in dealt]
    return found


def moved_expert(d: Document) -> None:
    held = first_map(d)
    held[1].append(held[0].pop())


def dropped_expert(d: Document) -> None:
    held = first_map(d)
    lone = next(e for e in range(8) if sum(rank.count(e) for rank in held) == 1)
    for rank in held:
        if lone in rank:
            rank.remove(lone)


def replaced_expert(d: Document) -> None:
    held = first_map(d)
    lone = next(e for e in range(8) if sum(rank.count(e) for rank in held) == 1)
    other = next(e for e in range(8) if all(e not in rank for rank in held if lone in rank))
    for rank in held:
        rank[:] = [other if e == lone else e for e in rank]


def doubled_expert(d: Document) -> None:
    held = first_map(d)
    held[0][1] = held[0][0]


def expert_out_of_range(d: Document) -> None:
    first_map(d)[0][0] = 8


def extra_replica(d: Document) -> None:
    held = first_map(d)
    held[0].append(next(e for e in range(8) if e not in held[0]))


def missing_rank(d: Document) -> None:
    first_map(d).pop()


def wrong_map_of_layer(d: Document) -> None:
    d["placement"]["map_of_layer"] = [0, 0, 0, 1]


def short_map_of_layer(d: Document) -> None:
    d["placement"]["map_of_layer"] = [0, 0, 0]


def unused_map(d: Document) -> None:
    d["placement"]["expert_maps"] = [*d["placement"]["expert_maps"]] * 2


def layer_gap(d: Document) -> None:
    d["placement"]["stage_layers"] = [2, 1]


def overlapping_stages(d: Document) -> None:
    d["placement"]["stage_layers"] = [3, 2]


def too_many_stages(d: Document) -> None:
    d["placement"]["stage_layers"] = [2, 1, 1]


def moved_layer(d: Document) -> None:
    d["placement"]["stage_layers"] = [3, 1]


def overfull_rank(d: Document) -> None:
    d["problem"]["cluster"]["gpu"]["memory"] = "20 MB"


def shrunk_cluster(d: Document) -> None:
    d["problem"]["cluster"]["num_gpus"] = 8


def ranks_share_gpus(d: Document) -> None:
    d["placement"]["domain_gpus"] = 2


def wrong_node_size(d: Document) -> None:
    d["placement"]["gpus_per_node"] = 2


def wrong_rank_order(d: Document) -> None:
    d["placement"]["moe_tp_fastest"] = False


def wrong_label(d: Document) -> None:
    d["strategy"]["label"] = "EP4-TP2-PP2-DP2"


def degrees_changed(d: Document) -> None:
    d["strategy"].update(attn_tp=4, attn_dp=1)


def broken_identity(d: Document) -> None:
    d["strategy"]["moe_ep"] = 5


def wrong_heads(d: Document) -> None:
    d["strategy"].update(attn_tp=3, attn_dp=4, moe_tp=3, moe_ep=4)


def wide_tp_group(d: Document) -> None:
    d["strategy"].update(attn_tp=8, attn_dp=1, moe_tp=8, moe_ep=1, replicas=1, decode_dispatch="gather")


def over_budget(d: Document) -> None:
    d["strategy"]["replicas"] = 3


def within_no_budget(d: Document) -> None:
    d["problem"]["gpus_at_most"] = 8


def too_many_micro_batches(d: Document) -> None:
    d["strategy"]["micro_batches"] = 3


def too_few_slots(d: Document) -> None:
    d["strategy"]["micro_batches"] = 1


def useless_overlap(d: Document) -> None:
    d["strategy"]["decode_overlap"] = True  # one token per rank cannot be halved


def engine_rule(d: Document) -> None:
    d["problem"]["engine"] = "megatron"


def pin_ignored(d: Document) -> None:
    d["problem"]["pins"]["attn_tp"] = 4


def sequence_missing(d: Document) -> None:
    bins(d)[0].clear()


def sequence_doubled(d: Document) -> None:
    found = bins(d)
    found[0] = found[1]


def sequence_unknown(d: Document) -> None:
    bins(d)[0][0] = 8


def bin_over_cap(d: Document) -> None:
    found = bins(d)
    found[0] += found[1]
    found[1] = []


def bin_lost(d: Document) -> None:
    bins(d).pop()


def no_bins(d: Document) -> None:
    d["placement"]["bins"] = None


def wrong_number_of_sequences(d: Document) -> None:
    d["placement"]["num_sequences"] = 7


def wrong_load(d: Document) -> None:
    d["placement"]["load_tokens"] -= 1


def wrong_lambda(d: Document) -> None:
    d["placement"]["lambda_ppm"] = 10**6


def wrong_digest(d: Document) -> None:
    d["certificate"]["digests"]["problem"] = "0" * 64


def problem_changed(d: Document) -> None:
    d["problem"]["workload"]["osl"] = 17


def ledger_item_changed(d: Document) -> None:
    d["memory"][1]["items_kib"]["kv_cache"] -= 1


def ledger_item_missing(d: Document) -> None:
    del d["memory"][0]["items_kib"]["embedding"]


def ledger_item_invented(d: Document) -> None:
    d["memory"][0]["items_kib"]["compression"] = 0
    d["memory"][0]["items_kib"]["savings"] = 1


def capacity_changed(d: Document) -> None:
    d["memory"][0]["capacity_kib"] += 1


def stage_ledger_missing(d: Document) -> None:
    d["memory"] = d["memory"][:1]


def breakdown_decode(d: Document) -> None:
    d["breakdown"]["decode"][0]["ns"] += 1


def breakdown_prefill(d: Document) -> None:
    d["breakdown"]["prefill"] = []


def ttft_slo_broken(d: Document) -> None:
    d["problem"]["workload"]["slo"]["ttft"] = "1 us"


def tpot_slo_broken(d: Document) -> None:
    d["problem"]["workload"]["slo"]["tpot"] = "1 us"


def latency_slo_broken(d: Document) -> None:
    d["problem"]["workload"]["slo"]["request_latency"] = "1 us"


def throughput_slo_broken(d: Document) -> None:
    d["problem"]["workload"]["slo"]["min_throughput"] = "1000000000 tokens/s"


def efficiency_slo_broken(d: Document) -> None:
    d["problem"]["workload"]["slo"]["min_efficiency"] = "1000000000 tokens/s/GPU"


def bound_above_value(d: Document) -> None:
    d["certificate"]["bound"] += 1


def wrong_bound(d: Document) -> None:
    d["certificate"]["bound"] -= 1000


def wrong_objective_bound(d: Document) -> None:
    d["objective"]["bound"] *= 0.9


def wrong_certificate_value(d: Document) -> None:
    d["certificate"]["value"] -= 1
    d["certificate"]["bound"] -= 1


def wrong_objective_value(d: Document) -> None:
    d["objective"]["value"] *= 0.99


def wrong_gap(d: Document) -> None:
    d["objective"]["gap"] = 0.01


def wrong_certificate_gap(d: Document) -> None:
    d["certificate"]["gap"] = 0.01


def wrong_status(d: Document) -> None:
    d["status"] = "FEASIBLE"


def both_statuses_wrong(d: Document) -> None:
    d["status"] = d["certificate"]["status"] = "FEASIBLE"


def infeasible_with_a_plan(d: Document) -> None:
    d["status"] = d["certificate"]["status"] = "INFEASIBLE"


def optimal_with_a_gap(d: Document) -> None:
    value = d["certificate"]["value"]
    gap = 10 / value
    d["certificate"].update(bound=value - 10, gap=gap)
    d["objective"].update(bound=d["objective"]["value"] - 10, gap=gap)


def other_objective(d: Document) -> None:
    d["objective"]["name"] = "tpot"


def other_certificate_objective(d: Document) -> None:
    d["certificate"]["objective_name"] = "tpot"


def wrong_sense(d: Document) -> None:
    d["objective"]["sense"] = "maximise"


def outside_the_space(d: Document) -> None:
    d["problem"]["space"]["max_pp"] = 1


MUTATIONS: list[tuple[Callable[[Document], None], str]] = [
    (moved_expert, "expert-slots"),
    (dropped_expert, "expert-missing"),
    (replaced_expert, "expert-missing"),
    (doubled_expert, "expert-twice"),
    (expert_out_of_range, "expert-range"),
    (extra_replica, "expert-slots"),
    (missing_rank, "expert-maps"),
    (wrong_map_of_layer, "expert-maps"),
    (short_map_of_layer, "expert-maps"),
    (unused_map, "expert-maps"),
    (layer_gap, "layers"),
    (overlapping_stages, "layers"),
    (too_many_stages, "layers"),
    (moved_layer, "ledger"),
    (overfull_rank, "memory"),
    (shrunk_cluster, "gpus-once"),
    (ranks_share_gpus, "topology"),
    (wrong_node_size, "topology"),
    (wrong_rank_order, "topology"),
    (wrong_label, "labels"),
    (degrees_changed, "labels"),
    (broken_identity, "identity"),
    (wrong_heads, "heads"),
    (wide_tp_group, "tp-domain"),
    (wide_tp_group, "tp-groups"),
    (over_budget, "gpu-count"),
    (over_budget, "gpus-once"),
    (within_no_budget, "gpu-count"),
    (too_many_micro_batches, "micro-batches"),
    (too_few_slots, "concurrency"),
    (useless_overlap, "overlap"),
    (engine_rule, "engine-expert-map"),
    (pin_ignored, "pin"),
    (sequence_missing, "sequences"),
    (sequence_doubled, "sequences"),
    (sequence_unknown, "sequences"),
    (bin_over_cap, "bin-cap"),
    (bin_lost, "bins"),
    (no_bins, "bins"),
    (wrong_number_of_sequences, "sequences"),
    (wrong_load, "load"),
    (wrong_lambda, "load-factor"),
    (wrong_digest, "digest"),
    (problem_changed, "digest"),
    (problem_changed, "metrics"),
    (ledger_item_changed, "ledger"),
    (ledger_item_missing, "ledger"),
    (ledger_item_invented, "ledger"),
    (capacity_changed, "ledger"),
    (stage_ledger_missing, "ledger"),
    (breakdown_decode, "breakdown"),
    (breakdown_prefill, "breakdown"),
    (ttft_slo_broken, "slo-ttft"),
    (tpot_slo_broken, "slo-tpot"),
    (latency_slo_broken, "slo-request-latency"),
    (throughput_slo_broken, "slo-throughput"),
    (efficiency_slo_broken, "slo-efficiency"),
    (bound_above_value, "bound"),
    (wrong_bound, "status"),
    (wrong_bound, "gap"),
    (wrong_objective_bound, "objective-value"),
    (wrong_certificate_value, "certificate-value"),
    (wrong_objective_value, "objective-value"),
    (wrong_gap, "gap"),
    (wrong_certificate_gap, "gap"),
    (wrong_status, "status"),
    (both_statuses_wrong, "status"),
    (infeasible_with_a_plan, "status"),
    (optimal_with_a_gap, "status"),
    (other_objective, "objective"),
    (other_certificate_objective, "objective"),
    (wrong_sense, "objective"),
    (outside_the_space, "space"),
]


@pytest.mark.parametrize(("mutate", "rule"), MUTATIONS, ids=[f"{m.__name__}-{rule}" for m, rule in MUTATIONS])
def test_every_mutation_is_convicted(mutate: Callable[[Document], None], rule: str) -> None:
    document = copy.deepcopy(plan().model_dump(mode="json"))
    mutate(document)
    assert rule in rules(document)


METRICS = list(plan().metrics.model_dump())


@pytest.mark.parametrize("name", METRICS)
def test_every_wrong_metric_is_convicted(name: str) -> None:
    document = plan().model_dump(mode="json")
    document["metrics"][name] *= 2
    assert "metrics" in rules(document)


def test_a_throughput_off_by_a_millionth_is_convicted() -> None:
    document = plan().model_dump(mode="json")
    document["metrics"]["throughput_tokens_per_s"] *= 1.000001
    assert rules(document) == {"metrics"}


def test_a_stage_of_no_layers_is_not_a_plan() -> None:
    # The schema refuses it; an edited record that bypasses the schema is convicted.
    whole = plan()
    placement = whole.placement.model_copy(update={"stage_layers": (4, 0)})
    assert "layers" in rules(whole.model_copy(update={"placement": placement}))


def test_wrong_bound_of_a_rate_is_convicted() -> None:
    document = build_plan(small_problem(objective={"name": "throughput"}), STRATEGY).model_dump(mode="json")
    document["objective"]["bound"] *= 0.5  # worse than the value: not a bound
    assert {"bound", "objective-value"} <= rules(document)


def test_a_swap_of_equal_experts_is_innocent() -> None:
    # Experts are equally loaded, so that exchanging two single ones between ranks changes no number of the plan.
    problem = small_problem()
    document = build_plan(problem, STRATEGY).model_dump(mode="json")
    held = first_map(document)
    held[0][0], held[1][0] = held[1][0], held[0][0]
    assert rules(document) == set()


def test_free_concurrency_must_fill_all_slots() -> None:
    problem = small_problem(workload=small_workload(isl=100, concurrency=None))
    document = build_plan(problem, STRATEGY).model_dump(mode="json")
    document["placement"]["num_sequences"] -= 1
    assert "sequences" in rules(document)


def test_tp_may_leave_its_domain_when_allowed() -> None:
    problem = small_problem(space=Space(tp_across_domains=True))
    assert rules(build_plan(problem, Strategy(attn_tp=8, moe_tp=8, batch=8))) == set()


def test_large_plans_are_sampled() -> None:
    # 8192 GPUs: more than are expanded.
    problem = small_problem(cluster=small_cluster(8192), workload=small_workload(isl=100, concurrency=8192))
    strategy = Strategy(attn_tp=2, attn_dp=2, moe_ep=4, replicas=2048, batch=2)
    whole = build_plan(problem, strategy)
    assert rules(whole) == set()
    wide = build_plan(problem, Strategy(attn_tp=8, moe_tp=8, replicas=1024, batch=8))
    assert {"tp-domain", "tp-groups"} <= rules(wide)


def test_absurd_numbers_are_convicted_without_a_crash() -> None:
    document = plan().model_dump(mode="json")
    huge = 2**24
    document["strategy"].update(
        attn_dp=huge, moe_ep=huge * 2, pp=huge, replicas=huge, micro_batches=huge, batch=huge, prefill_batch=huge
    )
    document["placement"].update(load_tokens=10**30, lambda_ppm=10**30, num_sequences=10**30)
    document["strategy"]["moe_ep"] = huge
    document["strategy"]["moe_tp"] = 2
    assert {"gpu-count", "gpus-once", "sequences"} <= rules(document)


def test_pinned_strategies_are_acquitted() -> None:
    assert rules(build_plan(small_problem(pins=Pins(attn_tp=2, pp=2)), STRATEGY)) == set()


def test_the_judge_never_meets_the_solver() -> None:
    code = (
        "import sys; import solver.verify; from solver.verify import exhaustive, realise; "
        "sys.exit(any(name.startswith(('solver.search', 'ortools')) for name in sys.modules))"
    )
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
