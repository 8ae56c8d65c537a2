"""Labels, packing and legality: one rule, one tiny problem, the reason in a comment."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from oracle import every_strategy
from plans import small_cluster, small_llm, small_problem, small_workload
from problems import draw

from solver import evaluate, solve
from solver.api import SolveOptions
from solver.degrees import divisors, domains_of, grid, grid_above
from solver.errors import StrategyError
from solver.legality import RULES, violations
from solver.packing import Packing, canonical_mesh
from solver.plan import Plan
from solver.specs.problem import MESH_ORDERS, Pins, Problem, Space
from solver.strategy import Strategy, packing_of, parse_label

ROOT = Path(__file__).resolve().parents[1]
ALL = Space(name="all", max_pp=4, max_batch=8, max_prefill_batch=2)


def problem_of(**changes: Any) -> Problem:
    """Eight experts, eight heads (four for KV), four layers; 16 GPUs in domains of four; eight equal sequences."""
    return small_problem(**{"workload": small_workload(isl=100, concurrency=8), "space": ALL, **changes})


def rules_of(strategy: Strategy, **changes: Any) -> set[str]:
    return {violation.rule for violation in violations(problem_of(**changes), strategy)}


# --- labels ----


@pytest.mark.parametrize(
    ("label", "strategy"),
    [
        ("EP64-TP8-PP2-DP2", Strategy(attn_tp=8, attn_dp=64, moe_tp=8, moe_ep=64, pp=2, replicas=2)),
        ("dp2-pp2-tp8-ep64", Strategy(attn_tp=8, attn_dp=64, moe_tp=8, moe_ep=64, pp=2, replicas=2)),
        ("EP4", Strategy(attn_dp=4, moe_ep=4)),
        ("A8x1-E1x8-PP2-R3", Strategy(attn_tp=8, moe_ep=8, pp=2, replicas=3)),
        (" a2x3-e6x1-pp1-r1 ", Strategy(attn_tp=2, attn_dp=3, moe_tp=6)),
    ],
)
def test_labels_are_read(label: str, strategy: Strategy) -> None:
    assert parse_label(label) == strategy


def test_the_reference_label_means_2048_gpus() -> None:
    # Two instances of two stages of 512 ranks: attention TP8 x DP64, experts TP8 x EP64.
    strategy = parse_label("EP64-TP8-PP2-DP2")
    assert (strategy.stage_gpus, strategy.instance_gpus, strategy.gpus) == (512, 1024, 2048)
    assert (strategy.label, strategy.full_label) == ("EP64-TP8-PP2-DP2", "A8x64-E8x64-PP2-R2")


def test_what_the_short_form_cannot_say_is_said_in_full() -> None:
    assert Strategy(attn_tp=8, moe_ep=8).label == "A8x1-E1x8-PP1-R1"


def test_labels_name_their_degrees_again() -> None:
    rng = random.Random(0)
    for _ in range(200):
        tp, dp, moe_tp = rng.choice([1, 2, 3, 8]), rng.choice([1, 4, 6]), rng.choice([1, 2, 3])
        if tp * dp % moe_tp:
            continue
        experts = {"moe_tp": moe_tp, "moe_ep": tp * dp // moe_tp}
        strategy = Strategy(attn_tp=tp, attn_dp=dp, **experts, pp=rng.randint(1, 4), replicas=rng.randint(1, 9))
        assert parse_label(strategy.full_label) == strategy
        assert parse_label(strategy.label) == strategy


def test_a_dense_label_has_no_experts() -> None:
    dense = Strategy(attn_tp=8, pp=2, replicas=3)
    assert dense.label == "TP8-PP2-DP3"
    read = parse_label(dense.label)
    assert (read.attn_tp, read.pp, read.replicas, read.gpus) == (8, 2, 3, 48)


@pytest.mark.parametrize(
    "text", ["", "EP", "EP0", "TP2-TP2", "EP4-XX2", "A2x2-E1x8-PP1-R1", "A2-E2-PP1-R1", "TP99999999", "EP4 TP2", "TP-2"]
)
def test_other_texts_are_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(StrategyError) as caught:
        parse_label(text)
    assert "\n" not in str(caught.value)


def test_the_identity_is_checked_where_a_strategy_is_made() -> None:
    with pytest.raises(ValueError, match="identity"):
        Strategy(attn_tp=2, attn_dp=2, moe_tp=1, moe_ep=2)


def test_ties_prefer_fewer_gpus_then_fewer_stages_then_smaller_degrees() -> None:
    ordered = [
        Strategy(attn_tp=2, moe_ep=2),
        Strategy(attn_tp=2, moe_ep=2, batch=2),
        Strategy(attn_tp=2, moe_tp=2),
        Strategy(pp=2),
        Strategy(attn_dp=4, moe_ep=4),
        Strategy(attn_tp=4, moe_ep=4),
    ]
    shuffled = random.Random(0).sample(ordered, len(ordered))
    assert sorted(shuffled, key=lambda s: s.sort_key) == ordered


def test_products() -> None:
    strategy = Strategy(attn_tp=2, attn_dp=3, moe_ep=6, pp=2, replicas=2, batch=5, micro_batches=2)
    assert (strategy.stage_gpus, strategy.instance_gpus, strategy.gpus, strategy.slots) == (6, 12, 24, 60)


# --- packing into scale-up domains ----


def test_small_instances_share_a_domain() -> None:
    packing = Packing("tp-dp-pp", 8, tp=2, dp=1, pp=1)
    assert (packing.instances_per_domain, packing.domains(4), packing.domains(5)) == (4, 1, 2)
    assert [packing.gpu(r, 0, 0, t) for r in range(3) for t in range(2)] == [0, 1, 2, 3, 4, 5]


def test_gpus_left_over_in_a_domain_stay_idle() -> None:
    # TP 3 in domains of 8: two instances a domain, GPUs 6 and 7 idle.
    packing = Packing("tp-dp-pp", 8, tp=3, dp=1, pp=1)
    assert (packing.instances_per_domain, packing.domains(3), packing.is_launchable(8)) == (2, 2, True)
    assert [packing.gpu(r, 0, 0, 0) for r in range(3)] == [0, 3, 8]


def test_the_first_dimension_that_does_not_fit_spreads() -> None:
    # TP 2, DP 6 in domains of 8: four DP ranks a domain, two domains a stage; each stage has its own two.
    packing = Packing("tp-dp-pp", 8, tp=2, dp=6, pp=2)
    assert (packing.stage_members, packing.members("pp"), packing.domains_per_instance) == (8, 1, 4)
    assert [packing.gpu(0, 0, d, 0) for d in range(6)] == [0, 2, 4, 6, 8, 10]
    assert packing.gpu(0, 1, 0, 0) == 16
    assert packing.gpu(1, 0, 0, 0) == 32


def test_the_mesh_order_decides_what_stays_inside() -> None:
    # TP 2 x PP 4 fill a domain of 8: stages are neighbours, the DP ranks of a stage are not.
    packing = Packing("tp-pp-dp", 8, tp=2, dp=3, pp=4)
    assert (packing.members("pp"), packing.stage_members, packing.domains_per_instance) == (4, 2, 3)
    assert [packing.gpu(0, s, 0, 0) for s in range(4)] == [0, 2, 4, 6]
    assert packing.gpu(0, 0, 1, 0) == 8


def test_alignment() -> None:
    assert Packing("tp-dp-pp", 8, tp=2, dp=4, pp=3).is_launchable(8)  # whole domains
    assert Packing("tp-dp-pp", 8, tp=8, dp=3, pp=1).is_launchable(8)
    assert Packing("tp-dp-pp", 8, tp=2, dp=3, pp=1).is_launchable(8)  # 6 of 8, on one node
    assert not Packing("tp-dp-pp", 8, tp=2, dp=6, pp=1).is_launchable(8)  # 12 of 16
    # Domains of 72 in nodes of 4: sixteen ranks are four nodes; six are one and a half.
    assert Packing("tp-dp-pp", 72, tp=4, dp=4, pp=1).is_launchable(4)
    assert not Packing("tp-dp-pp", 72, tp=2, dp=3, pp=1).is_launchable(4)
    # An instance of 12 is three nodes, but its stages of 6 are not whole nodes.
    assert not Packing("tp-dp-pp", 72, tp=2, dp=3, pp=2).is_launchable(4)


@pytest.mark.parametrize("seed", range(40))
def test_no_gpu_is_given_twice_and_none_is_invented(seed: int) -> None:
    rng = random.Random(seed)
    domain, tp, dp, pp, replicas = (rng.randint(1, most) for most in (9, 6, 6, 4, 5))
    packing = Packing(rng.choice(MESH_ORDERS), domain, tp, dp, pp)
    gpus = [
        packing.gpu(r, s, d, t) for r in range(replicas) for s in range(pp) for d in range(dp) for t in range(tp)
    ]  # fmt: skip
    assert len(set(gpus)) == len(gpus)
    assert max(gpus) < packing.domains(replicas) * domain
    # Ranks of a group really share as many domains as said.
    group = [packing.gpu(0, 0, d, 0) // domain for d in range(dp)]
    assert max(group.count(number) for number in group) == packing.members("dp")


def test_orders_that_lay_ranks_out_alike_have_one_name() -> None:
    assert canonical_mesh("tp-pp-dp", 2, 4, 1) == canonical_mesh("tp-pp-dp", 2, 1, 4) == "tp-dp-pp"
    assert canonical_mesh("tp-pp-dp", 2, 4, 4) == "tp-pp-dp"


# --- legality ----

DENSE = {"moe": None, "dense_width": 512}
EIGHT = {"batch": 8}

BROKEN: dict[str, tuple[Strategy, dict[str, Any]]] = {
    # 3 does not divide 8 heads.
    "heads": (Strategy(attn_tp=3, moe_ep=3, **EIGHT), {}),
    # 6 heads, 3 for KV: TP 2 divides 6, but neither 2 | 3 nor 3 | 2.
    "kv-heads": (Strategy(attn_tp=2, moe_ep=2, **EIGHT), {"llm": small_llm(num_heads=6, num_kv_heads=3)}),
    # 2 does not divide 3 value heads of the linear layers.
    "linear-heads": (
        Strategy(attn_tp=2, moe_ep=2, **EIGHT),
        {
            "llm": small_llm(
                attention_kinds=["linear"],
                linear={"num_key_heads": 3, "num_value_heads": 3, "key_head_dim": 8, "value_head_dim": 8},
            )
        },
    ),
    # 4 does not divide 510 columns.
    "dense-width": (Strategy(attn_tp=4, **EIGHT), {"llm": small_llm(moe=None, dense_width=510)}),
    # 512 columns in blocks of 256: TP 4 would cut a block.
    "expert-width": (Strategy(attn_tp=4, moe_tp=4, **EIGHT), {"llm": small_llm(quant_block=256)}),
    # 16 ranks for 8 replicas.
    "experts": (Strategy(attn_dp=16, moe_ep=16), {}),
    # 8 experts + 1 on one rank: some expert twice on it.
    "redundancy": (Strategy(**EIGHT), {"redundant_experts": 1}),
    # With one stage, tp-pp-dp is tp-dp-pp.
    "mesh-order": (Strategy(attn_dp=2, moe_ep=2, batch=4, mesh_order="tp-pp-dp"), {}),
    # TP 8 in domains of 4.
    "tp-domain": (Strategy(attn_tp=8, moe_ep=8, **EIGHT), {}),
    "dense-degrees": (Strategy(attn_dp=2, batch=4), {"llm": small_llm(**DENSE)}),
    "stages": (Strategy(pp=5, **EIGHT), {}),
    "micro-batches": (Strategy(pp=2, micro_batches=3, batch=3), {}),
    # 7 slots for 8 sequences.
    "concurrency": (Strategy(batch=7), {}),
    "gpu-count": (Strategy(replicas=2, batch=4), {"gpus_exact": 3}),
    # TP 3 in domains of 4: one instance each, four fit the 16 GPUs, not five.
    "packing": (
        Strategy(attn_tp=3, replicas=5, batch=2),
        {"llm": small_llm(moe=None, dense_width=510, num_heads=6, num_kv_heads=6)},
    ),
    "dispatch": (Strategy(decode_dispatch="all_to_all", **EIGHT), {}),
    # Nothing says how long a direct all-reduce waits.
    "all-reduce": (Strategy(attn_tp=2, moe_ep=2, batch=8, decode_allreduce="direct"), {}),
    "overlap": (Strategy(attn_dp=2, moe_ep=2, batch=4, decode_overlap=True), {}),
    # 100 tokens a prompt, 150 a step.
    "prefill-batch": (
        Strategy(prefill_batch=2, **EIGHT),
        {"workload": small_workload(isl=100, concurrency=8, prefill_chunk_tokens=150)},
    ),
    # The GPU has a 16-bit unit only.
    "dtype": (Strategy(**EIGHT), {"llm": small_llm(dtypes={"experts": "fp8"})}),
    "pin": (Strategy(**EIGHT), {"pins": Pins(replicas=2)}),
    # SGLang knows tp-dp-pp only.
    "engine-mesh": (
        Strategy(attn_dp=2, moe_ep=2, pp=2, batch=4, mesh_order="tp-pp-dp"),
        {"engine": "sglang", "cluster": small_cluster(16, 4)},
    ),
    # A stage of 6 ranks takes two domains of 4: half of its second node is not its own.
    "engine-alignment": (Strategy(attn_dp=6, moe_ep=6, batch=2), {"engine": "vllm"}),
    "engine-vllm-moe": (Strategy(attn_tp=4, moe_tp=2, moe_ep=2, **EIGHT), {"engine": "vllm"}),
    "engine-sglang-dispatch": (
        Strategy(attn_dp=4, moe_tp=2, moe_ep=2, batch=2, decode_dispatch="all_to_all", prefill_dispatch="all_to_all"),
        {"engine": "sglang"},
    ),
    # 8 experts on 3 ranks.
    "engine-slots": (Strategy(attn_dp=3, moe_ep=3, batch=3), {"engine": "sglang"}),
    "engine-trtllm-dp": (Strategy(attn_tp=2, attn_dp=2, moe_ep=4, batch=4), {"engine": "trtllm"}),
    "engine-expert-map": (Strategy(attn_dp=2, moe_ep=2, batch=4), {"engine": "megatron", "redundant_experts": 2}),
    "engine-overlap": (
        Strategy(
            attn_dp=2,
            moe_ep=2,
            batch=4,
            decode_dispatch="all_to_all",
            decode_overlap=True,
            prefill_dispatch="all_to_all",
        ),
        {"engine": "megatron"},
    ),
    # SGLang has one switch for two-batch overlap: on in decode and off in prefill cannot be said.
    "engine-phases": (
        Strategy(
            attn_dp=2,
            moe_ep=2,
            batch=4,
            decode_dispatch="all_to_all",
            decode_overlap=True,
            prefill_dispatch="all_to_all",
        ),
        {"engine": "sglang"},
    ),
    "engine-exchange-dp": (
        Strategy(attn_tp=2, moe_ep=2, batch=8, decode_dispatch="all_to_all", prefill_dispatch="all_to_all"),
        {"engine": "vllm"},
    ),
    # No multi-token-prediction layers that could draft.
    "engine-speculation": (
        Strategy(attn_dp=2, moe_ep=2, batch=4),
        {
            "engine": "vllm",
            "workload": small_workload(isl=100, concurrency=8, speculative={"draft": 1, "accepted": 0.5}),
        },
    ),
    # vLLM's NIXL connector knows nothing of stages.
    "engine-pool-stages": (
        Strategy(attn_tp=2, moe_tp=2, pp=2, batch=4),
        {
            "engine": "vllm",
            "role": "decode",
            "objective": {"name": "tpot"},
            "workload": small_workload(isl=100, concurrency=None),
        },
    ),
    # A decode pool prefills nothing: its idle knobs repeat those of decode.
    "pool": (
        Strategy(attn_dp=2, moe_ep=2, batch=4, prefill_batch=2),
        {"role": "decode", "objective": {"name": "tpot"}, "workload": small_workload(isl=100, concurrency=None)},
    ),
}
JUDGED_BY_COST = {"memory", "horizon"} | {
    f"slo-{metric}" for metric in ("ttft", "tpot", "request-latency", "throughput", "efficiency")
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_named_and_alone_breaks_the_strategy(rule: str) -> None:
    strategy, changes = BROKEN[rule]
    related = {"tp-domain": {"packing"}, "engine-slots": {"engine-alignment"}, "experts": {"packing"}}
    found = violations(problem_of(**changes), strategy)
    assert rule in {violation.rule for violation in found}
    assert {violation.rule for violation in found} <= {rule, *related.get(rule, set())}
    sentence = next(violation.sentence for violation in found if violation.rule == rule)
    assert "\n" not in sentence
    assert len(sentence) > 15


def test_identity_against_a_moe_llm() -> None:
    # Strategy() of four attention ranks without expert degrees is well formed (a dense LLM's), not legal here.
    assert "identity" in rules_of(Strategy(attn_tp=4, **EIGHT))


def test_every_rule_is_tested() -> None:
    assert {*BROKEN, "identity", *JUDGED_BY_COST} == set(RULES)


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("memory", {"cluster": small_cluster(memory="30 MB")}),
        ("horizon", {"workload": small_workload(isl=100, osl=16 * 10**6, concurrency=8)}),
        ("slo-ttft", {"workload": small_workload(isl=100, concurrency=8, slo={"ttft": "1 us"})}),
        ("slo-tpot", {"workload": small_workload(isl=100, concurrency=8, slo={"tpot": "1 us"})}),
        ("slo-request-latency", {"workload": small_workload(isl=100, concurrency=8, slo={"request_latency": "1 us"})}),
        (
            "slo-throughput",
            {"workload": small_workload(isl=100, concurrency=8, slo={"min_throughput": "1000000000 tokens/s"})},
        ),
        (
            "slo-efficiency",
            {"workload": small_workload(isl=100, concurrency=8, slo={"min_efficiency": "1000000000 tokens/s/GPU"})},
        ),
    ],
)
def test_memory_and_slos_are_judged_with_the_cost(rule: str, changes: dict[str, Any]) -> None:
    problem = problem_of(**changes)
    assert violations(problem, Strategy(**EIGHT)) == []
    assert [text for text in evaluate(problem, Strategy(**EIGHT)).violations if text.startswith(f"[{rule}]")]


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        # KV heads are replicated: TP 8 over 4 KV heads, in a domain of 8.
        (Strategy(attn_tp=8, moe_ep=8, **EIGHT), {"cluster": small_cluster(16, 8)}),
        # The latent of MLA is not split at all: any TP that divides the heads.
        (
            Strategy(attn_tp=2, moe_ep=2, **EIGHT),
            {
                "llm": small_llm(
                    num_heads=6, num_kv_heads=3,
                    mla={"kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
                )
            },
        ),
        # Layers need not divide by pp, experts not by moe_ep, degrees need not be powers of two.
        (Strategy(attn_dp=3, moe_ep=3, pp=3, batch=3), {}),
        # TP across domains, where the caller allows it.
        (Strategy(attn_tp=8, moe_ep=8, **EIGHT), {"space": Space(name="all", tp_across_domains=True)}),
        # More slots than sequences.
        (Strategy(replicas=3, batch=3), {}),
        # vLLM launches tp-pp-dp; with one attention group both orders are the same.
        (Strategy(attn_tp=4, moe_tp=4, pp=2, **EIGHT), {"engine": "vllm", "pins": Pins(mesh_order="tp-pp-dp")}),
        # 4-bit weights on a GPU without a 4-bit unit.
        (Strategy(**EIGHT), {"llm": small_llm(dtypes={"experts": "mxfp4"})}),
    ],
)  # fmt: skip
def test_legal_though_it_may_look_odd(strategy: Strategy, changes: dict[str, Any]) -> None:
    assert violations(problem_of(**changes), strategy) == []


def test_expert_tp_groups_stay_inside_domains_too() -> None:
    # A stage of 8 ranks over two domains of 4: expert TP pairs are neighbours. In TensorRT-LLM's rank order (tp
    # outermost) the two of a pair are moe_ep = 4 ranks apart, in different domains.
    wide = Strategy(attn_dp=8, moe_tp=2, moe_ep=4, batch=1)
    assert rules_of(wide) == set()
    assert rules_of(wide, engine="trtllm") == {"tp-domain"}


# --- the degree space ----


def test_grids() -> None:
    assert grid(30) == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28]
    assert [grid_above(value) for value in (1, 8, 9, 17, 100)] == [1, 8, 10, 20, 112]
    assert divisors(12) == [1, 2, 3, 4, 6, 12]


def test_every_rejected_degree_says_why() -> None:
    domains = domains_of(problem_of(pins=Pins(pp=2)))
    why = {(r.degree, r.value): r.violation.rule for r in domains.rejections}
    assert domains.attn_tp == (1, 2, 4)
    assert why["attn_tp", 3] == "heads"
    assert why["attn_tp", 8] == "tp-domain"
    assert why["pp", 3] == "pin"


@pytest.mark.parametrize("seed", range(3000, 3025))
def test_the_space_holds_every_legal_strategy(seed: int) -> None:
    """No legal strategy has a value that the space leaves out (algorithms that cannot matter aside)."""
    problem = draw(seed)
    domains = domains_of(problem)
    for strategy in every_strategy(problem):
        for name in ("attn_tp", "moe_tp", "moe_ep", "pp", "batch", "micro_batches", "prefill_batch"):
            assert getattr(strategy, name) in getattr(domains, name)
        packing = packing_of(problem, strategy)
        assert packing.domains(strategy.replicas) <= problem.cluster.num_domains


@pytest.mark.parametrize("order", MESH_ORDERS)
def test_a_pinned_order_that_the_engine_lacks_still_fits_one_group(order: str) -> None:
    # vLLM launches tp-pp-dp, SGLang tp-dp-pp; a dense LLM has one attention group, so both lay ranks out alike.
    for engine in ("vllm", "sglang"):
        problem = problem_of(llm=small_llm(**DENSE), engine=engine, pins=Pins(mesh_order=order))  # type: ignore[arg-type]
        assert isinstance(solve(problem, SolveOptions(workers=1)), Plan)


@pytest.mark.parametrize(
    "knob",
    [{"batch": 6}, {"decode_allreduce": "tree"}, {"decode_dispatch": "all_to_all"}, {"decode_overlap": True}],
)
def test_named_degrees_are_evaluated_with_the_knobs_that_are_given(knob: dict[str, Any]) -> None:
    problem = problem_of(pins=Pins(**knob), engine="vllm" if "decode_dispatch" in knob else "any")
    found = evaluate(problem, "A1x4-E1x4-PP1-R1").strategy.strategy()
    assert {name: getattr(found, name) for name in knob} == knob


def test_given_knobs_that_the_rules_forbid_are_named() -> None:
    problem = problem_of(pins=Pins(decode_allreduce="direct"))
    with pytest.raises(StrategyError, match=r"\[all-reduce\] decode_allreduce = direct"):
        evaluate(problem, "A4x1-E4x1-PP1-R1")


def test_a_strategy_whose_blocks_need_no_search_is_evaluated_without_or_tools() -> None:
    """A caller who scores one deployment does not wait for OR-tools (and pandas with it) to be imported."""
    code = (
        "import sys; sys.path.insert(0, 'tests'); from plans import small_problem, small_workload; import solver\n"
        "problem = small_problem(workload=small_workload(isl=100, concurrency=8))\n"
        "from solver.strategy import Strategy\n"
        "assert solver.evaluate(problem, Strategy(attn_tp=2, attn_dp=2, moe_ep=4, batch=4)).metrics.tpot_ns > 0\n"
        "sys.exit('ortools' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
