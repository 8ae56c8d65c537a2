"""Records: what they compute from their dimensions, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from solver.errors import SpecError
from solver.specs.catalog import load_calibration, load_cluster, load_llm, load_workload
from solver.specs.hardware import Cluster, Gpu
from solver.specs.llm import Llm
from solver.specs.problem import Pins, Problem
from solver.specs.workload import Workload

SMALL: dict[str, Any] = {
    "name": "small",
    "source": "test",
    "num_layers": 2,
    "hidden_size": 8,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 2,
    "vocab_size": 10,
    "dense_width": 16,
}
MOE = {"num_experts": 4, "top_k": 2, "expert_width": 6}


def llm(**changes: Any) -> Llm:
    return Llm.read({**SMALL, **changes}, "test")


def test_dense_parameters_add_up() -> None:
    # attention 8 * 2 * (4 + 4 + 2 * 2) = 192, FFN 3 * 8 * 16 = 384, norms 8 * 5, embedding and head 2 * 80
    assert llm().total_parameters == 2 * (192 + 384) + 40 + 160


def test_tied_embeddings_count_once() -> None:
    assert llm().total_parameters - llm(tie_embeddings=True).total_parameters == 80


def test_moe_layers_replace_dense_ones() -> None:
    # one layer swaps its FFN of 384 for a router of 8 * 4 and 4 experts of 3 * 8 * 6 = 144
    mixed = llm(moe=MOE, moe_layers=[1])
    assert mixed.total_parameters - llm().total_parameters == 32 + 4 * 144 - 384
    assert [layer.ffn for layer in mixed.layers] == ["dense", "moe"]


def test_moe_without_indices_is_every_layer() -> None:
    assert llm(moe=MOE, dense_width=0).moe_layer_indices == (0, 1)


def test_output_gate_doubles_the_query_projection() -> None:
    assert llm(attention_output_gate=True).attention_parameters() - llm().attention_parameters() == 8 * 2 * 4


def test_latent_attention_parameters() -> None:
    mla = {"kv_lora_rank": 5, "qk_rope_head_dim": 1, "qk_nope_head_dim": 2, "v_head_dim": 3}
    # q 8 * 4 * 3 = 96, kv down 8 * 6 = 48, kv up 5 * 4 * 5 = 100, out 4 * 3 * 8 = 96
    assert llm(mla=mla).attention_parameters() == 340
    # with a query rank of 7: 7 * (8 + 12) = 140 instead of 96
    assert llm(mla={**mla, "q_lora_rank": 7}).attention_parameters() == 384


def test_attention_kinds_repeat() -> None:
    kinds = [
        layer.attention for layer in llm(num_layers=5, attention_kinds=["sliding", "full"], sliding_window=4).layers
    ]
    assert kinds == ["sliding", "full", "sliding", "full", "sliding"]


def test_the_reference_contradicts_its_declaration() -> None:
    # 16 * 64 * 3 * 1024 * 2048 = 6.442 B experts, 16 * 4 * 1024^2 = 67 M attention, 2 * 128000 * 1024 = 262 M
    # embedding and head, 16 * 1024 * 64 router, 33 * 1024 norms: 6.773 B against 30 B
    reference = load_llm("reference")
    assert reference.dimensioned_parameters == 6_442_450_944 + 67_108_864 + 262_144_000 + 1_048_576 + 33_792
    assert reference.total_parameters == reference.dimensioned_parameters
    assert "30.00 B" in reference.declared_sentence()
    assert "6.77 B" in reference.declared_sentence()


def test_as_declared_spreads_the_surplus_over_routed_experts() -> None:
    declared, reference = load_llm("reference-declared"), load_llm("reference")
    routed = 16 * 64
    # rounding up costs less than one parameter per expert
    assert 0 <= declared.total_parameters - 30_000_000_000 < routed
    assert declared.attention_parameters() == reference.attention_parameters()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_kv_heads": 3}, "does not divide"),
        ({"dense_width": 0}, "dense_width"),
        ({"moe_layers": [0]}, "[moe]"),
        ({"moe": MOE, "moe_layers": [2]}, "layer 2"),
        ({"moe": MOE, "moe_layers": [1, 0]}, "increasing"),
        ({"moe": {**MOE, "top_k": 5}}, "top_k"),
        ({"moe": {**MOE, "num_groups": 3}}, "num_groups"),
        ({"attention_kinds": ["sliding"]}, "sliding_window"),
        ({"attention_kinds": ["sparse"]}, "[indexer]"),
        ({"attention_kinds": ["linear"]}, "[linear]"),
        ({"attention_kinds": ["full"] * 3}, "3 entries"),
        ({"declared_parameters": 5000}, "as-dimensioned"),
        ({"reading": "as-declared"}, "declared_parameters"),
        ({"reading": "as-declared", "declared_parameters": 5000}, "no"),
        ({"num_layers": 0}, "num_layers"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_layers": True}, "num_layers"),
        ({"hidden_size": "8"}, "hidden_size"),
        ({"num_heads": 4.0}, "num_heads"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_contradictory_llm_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        llm(**changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_declaration_within_five_percent_needs_no_reading() -> None:
    assert llm(declared_parameters=round(llm().dimensioned_parameters * 1.04)).declared_gap < 0.05


GPU: dict[str, Any] = {
    "name": "g",
    "source": "test",
    "peak": {"bf16": "1 TFLOP/s"},
    "memory": "1 GB",
    "memory_bandwidth": "1 TB/s",
}
LEVELS = [
    {"name": "near", "gpus": 8, "bandwidth": "100 GB/s", "latency": "1 us", "source": "test"},
    {"name": "far", "bandwidth": "10 GB/s", "latency": "5 us", "source": "test"},
]
CLUSTER: dict[str, Any] = {
    "name": "c",
    "source": "test",
    "gpu": GPU,
    "num_gpus": 16,
    "gpus_per_node": 8,
    "levels": LEVELS,
}


@pytest.mark.parametrize(
    "changes",
    [
        {"levels": []},
        {"levels": [LEVELS[1], LEVELS[1]]},  # an inner level without a size
        {"levels": [LEVELS[0]]},  # nothing joins all
        {"levels": [{**LEVELS[0], "gpus": 12}, LEVELS[1]]},  # no multiple of the node
        {"levels": [LEVELS[0], {**LEVELS[0], "gpus": 12}, LEVELS[1]]},  # no multiple of the level below
        {"levels": [{**LEVELS[0], "bandwidth": "0 B/s"}, LEVELS[1]]},
        {"num_gpus": 0},
        {"num_gpus": "16"},
        {"num_gpus": 12},  # no whole number of nodes
        {"gpu": {**GPU, "peak": {"fp8": "1 TFLOP/s"}}},  # no 16-bit unit
        {"gpu": {**GPU, "peak": {"bf16": "1 TFLOP/s", "fp6": "1 TFLOP/s"}}},
        {"gpu": {**GPU, "memory": 64}},  # a bare number
        {"gpu": {**GPU, "memory": "0 GB"}},
    ],
)
def test_contradictory_cluster_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        Cluster.read({**CLUSTER, **changes}, "test")
    assert "\n" not in str(caught.value)


def test_one_level_makes_the_cluster_one_scale_up_domain() -> None:
    assert Cluster.read({**CLUSTER, "levels": [LEVELS[1]]}, "test").scale_up_gpus == 16


def test_records_survive_their_own_dump() -> None:
    cluster = Cluster.read(CLUSTER, "test")
    assert Cluster.read(cluster.model_dump(), "test") == cluster
    assert Gpu.model_validate_json(cluster.gpu.model_dump_json()) == cluster.gpu


def workload(**changes: Any) -> Workload:
    return Workload.read({"name": "w", "source": "test", "osl": 4, **changes}, "test")


def test_a_range_spreads_evenly_and_includes_its_ends() -> None:
    assert workload(isl_range={"min": 10, "max": 40}, concurrency=4).prompt_lengths == (10, 20, 30, 40)


def test_the_mean_prompt_rounds_up() -> None:
    assert workload(isl_list=[1, 2], concurrency=2).mean_isl == 2


def test_reference_sequences_end_with_128_to_10240_tokens() -> None:
    reference = load_workload("reference")
    assert reference.prompt_lengths[0] + reference.osl == 128
    assert reference.longest_isl + reference.osl == 10240
    assert len(reference.prompt_lengths) == 128


@pytest.mark.parametrize(
    "changes",
    [
        {},  # no prompt length
        {"isl": 4, "isl_range": {"min": 1, "max": 2}},
        {"isl_range": {"min": 2, "max": 1}},
        {"isl_list": [1, 2], "concurrency": 3},
        {"isl": 0},
        {"isl": True},
        {"isl": "4"},
        {"isl": 4, "concurrency": 0},
        {"isl": 4, "prefix_hit_rate": 1.0},
        {"isl": 4, "prefix_hit_rate": float("nan")},
        {"isl": 4, "slo": {"tpot": "0 ms"}},
        {"isl": 4, "slo": {"tpot": 50}},
        {"isl": 4, "speculative": {"draft": 1, "accepted": 2}},
        {"isl": 4, "expert_loads": {"source": "test", "counts": [[1, 2], [3]]}},
        {"isl": 4, "expert_loads": {"source": "test", "counts": [[1, 2], [0, 0]]}},
    ],
)
def test_contradictory_workload_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        workload(**changes)
    assert "\n" not in str(caught.value)


def reference_problem(**changes: Any) -> Problem:
    parts = {
        "llm": load_llm("reference").model_dump(),
        "cluster": load_cluster("reference").model_dump(),
        "workload": load_workload("reference").model_dump(),
        "calibration": load_calibration("reference").model_dump(),
    }
    return Problem.read({**parts, **changes}, "test")


def test_problem_digest_depends_on_the_question_alone() -> None:
    assert reference_problem().digest == reference_problem().digest
    assert reference_problem().digest != reference_problem(redundant_experts=1).digest


@pytest.mark.parametrize(
    "changes",
    [
        {"gpus_exact": 4096},
        {"llm": load_llm("qwen3-32b").model_dump(), "redundant_experts": 1},
        {"llm": {**load_llm("reference").model_dump(), "max_context": 10239}},
    ],
)
def test_contradictory_problem_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        reference_problem(**changes)


def test_pins_are_read_from_texts() -> None:
    assert Pins.parse(("attn_tp=8", "decode_overlap=true")).given() == {"attn_tp": 8, "decode_overlap": True}


@pytest.mark.parametrize(
    "texts", [("attn_tp",), ("colour=8",), ("attn_tp=8", "attn_tp=4"), ("attn_tp=0",), ("attn_tp=x",), ("=8",)]
)
def test_malformed_pins_are_refused(texts: tuple[str, ...]) -> None:
    with pytest.raises(SpecError):
        Pins.parse(texts)
