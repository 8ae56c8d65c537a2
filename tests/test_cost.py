"""The cost model by hand: one formula, one tiny test, the arithmetic in a comment (DESIGN 5).

Hardware, LLM and workload are those of ``round_numbers.py``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from oracle import StageTimes
from round_numbers import CALIBRATION, CLUSTER, LLM, MLA, leaves_of, problem_of

from solver.cost import balance
from solver.cost.attention import attended_pairs
from solver.cost.experts import routing_noise
from solver.cost.layers import Blocks, LayerTime, PhaseTimes
from solver.cost.leaves import Leaves, as_ints
from solver.cost.ledger import stage_ledgers
from solver.cost.machine import LARGEST_LEAF, Gemm, Machine, Phase, ceil_int
from solver.cost.metrics import Figures, Utopia, evaluate_times, figures_of, objective_value
from solver.errors import SpecError
from solver.specs.calibration import Calibration
from solver.specs.hardware import Cluster
from solver.specs.llm import AttentionKind
from solver.specs.problem import Problem
from solver.strategy import Strategy, chunk_tokens, max_prefill_batch, new_prompt_tokens, num_chunks, packing_of

# --- 5.1 operators and rounding ----


def test_a_leaf_is_rounded_up_once() -> None:
    assert [int(ceil_int(x)) for x in (2.0, 2.1, 2.9999, 0.0)] == [2, 3, 3, 0]


def test_a_millionth_is_noise_of_floating_point() -> None:
    assert int(ceil_int(2.0000009)) == 2


@pytest.mark.parametrize("value", [1e16, 1e300, math.inf])
def test_a_leaf_beyond_the_horizon_stays_within_64_bits(value: float) -> None:
    assert ceil_int(value) == LARGEST_LEAF
    assert ceil_int(np.array([value, 1.5])).tolist() == [LARGEST_LEAF, 2]


def test_an_operator_takes_the_larger_of_compute_and_memory() -> None:
    machine = leaves_of().machine
    # 1000 FLOP at 250/ns = 4 ns against 500 bytes at 50/ns = 10 ns, and two launches of 100 ns.
    assert int(machine.operator_ns(np.array(1000.0), np.array(500.0), 250.0, 2)) == 210
    assert int(machine.operator_ns(np.array(9000.0), np.array(500.0), 250.0, 2)) == 236


def test_eight_bit_weights_multiply_on_their_own_unit() -> None:
    machine = leaves_of().machine
    assert (machine.peak_flop_per_ns("bf16"), machine.peak_flop_per_ns("fp8")) == (1000, 2000)
    # 4-bit weights without a 4-bit unit are expanded to 16 bit on the fly.
    assert machine.peak_flop_per_ns("mxfp4") == 1000


# --- 5.1 GEMMs: rate by rows and arithmetic, bandwidth by format ----


def gemm_ns(machine: Machine, rows: float, flop: float, weight_bytes: float, **changes: Any) -> int:
    """A GEMM without activations or launches."""
    sizes = {"rows": np.array(rows), "flop": np.array(flop), "weight_bytes": np.array(weight_bytes)}
    rest = {"dtype": "bf16", "blocks": False, "activation_bytes": np.array(0.0), "kernels": 0}
    return int(machine.gemm_ns(Gemm(**{**sizes, **rest, **changes})))


@pytest.mark.parametrize(("rows", "nanoseconds"), [(16, 80), (48, 54), (16 * 10**6, 41)])
def test_the_rate_of_a_gemm_grows_with_its_rows(rows: int, nanoseconds: int) -> None:
    # 10000 FLOP at 250/ns = 40 ns. With half of the rate at 16 rows: 80 ns; at 48 rows 3/4: 53.3; in the end 40.00004.
    machine = leaves_of(calibration={"gemm_half_rows": 16.0}).machine
    assert gemm_ns(machine, rows, 10000, 0) == nanoseconds


def test_rows_do_not_slow_what_the_memory_limits() -> None:
    # 5000 bytes / 50 = 100 ns are longer than the 80 ns of computation at half of the rate.
    machine = leaves_of(calibration={"gemm_half_rows": 16.0}).machine
    assert gemm_ns(machine, 16, 10000, 5000) == 100


def test_grouped_and_plain_gemms_have_half_rows_of_their_own() -> None:
    machine = leaves_of(calibration={"gemm_half_rows": 16.0, "grouped_gemm_half_rows": 48.0}).machine
    # 16 rows: half of the rate, or a quarter when grouped.
    assert (gemm_ns(machine, 16, 10000, 0), gemm_ns(machine, 16, 10000, 0, is_grouped=True)) == (80, 160)


def test_the_head_runs_at_the_rate_of_its_rows() -> None:
    # One row, half rows 7: an eighth of 250: 200000 FLOP / 31.25 = 6400 ns, more than the 4080 of its bytes.
    ffn = leaves_of(calibration={"gemm_half_rows": 7.0}).ffn
    assert int(ffn.head_ns("prefill", *as_ints(1, 1))) == 6400 + 600


@pytest.mark.parametrize(("power", "nanoseconds"), [(1.0, 70), (2.0, 50), (8.0, 41), (None, 40)])
def test_near_the_ridge_computation_and_memory_overlap_in_part(power: float | None, nanoseconds: int) -> None:
    # 10000 FLOP / 250 = 40 ns and 1500 bytes / 50 = 30 ns: their sum, the hypotenuse, 40.5 ns, the larger.
    machine = leaves_of(calibration={} if power is None else {"roofline_power": power}).machine
    assert gemm_ns(machine, 1, 10000, 1500) == nanoseconds


def test_nothing_to_do_takes_no_time_under_a_smooth_roofline() -> None:
    assert gemm_ns(leaves_of(calibration={"roofline_power": 2.0}).machine, 1, 0, 0) == 0


def test_kernels_around_a_gemm_pass_its_activations_again() -> None:
    # 40 ns of computation hide 500 bytes of activations (10 ns); two and a half passes more of them are not hidden.
    machine = leaves_of(calibration={"elementwise_passes": 2.5}).machine
    assert gemm_ns(machine, 1, 10000, 0, activation_bytes=np.array(500.0)) == 40 + 25


def test_grouped_gemms_reach_a_share_of_the_rate() -> None:
    # 10000 FLOP at 250/ns = 40 ns, at half of it 80.
    machine = leaves_of(calibration={"grouped_gemm_share": 0.5}).machine
    assert (gemm_ns(machine, 1, 10000, 0), gemm_ns(machine, 1, 10000, 0, is_grouped=True)) == (40, 80)


@pytest.mark.parametrize(
    ("dtype", "blocks", "nanoseconds"), [("fp8", True, 160), ("fp8", False, 80), ("bf16", True, 80)]
)
def test_grouped_gemms_of_block_scaled_weights_reach_less(dtype: str, blocks: bool, nanoseconds: int) -> None:
    # 10000 FLOP at 250/ns, half of it when grouped, half of that when 8-bit weights are scaled in blocks.
    efficiency = dict.fromkeys(("bf16", "fp8", "fp8_block"), 0.25)
    shares = {"grouped_gemm_share": 0.5, "grouped_block_share": 0.5}
    machine = machine_of({"bf16": 1000, "fp8": 1000}, gemm_efficiency=efficiency, **shares)
    gemm = {"dtype": dtype, "blocks": blocks}
    assert gemm_ns(machine, 1, 10000, 0, is_grouped=True, **gemm) == nanoseconds
    assert gemm_ns(machine, 1, 10000, 0, **gemm) == 40


@pytest.mark.parametrize(
    ("dtype", "blocks", "rate"),
    [
        ("bf16", False, 1000 * 0.5),
        ("fp16", False, 1000 * 0.5),
        ("bf16", True, 1000 * 0.5),  # only 8-bit floating point has a kernel of its own for block scales
        ("fp8", False, 2000 * 0.4),
        ("fp8", True, 2000 * 0.3),
        ("int8", False, 2000 * 0.5),  # not listed: as 16 bit
        ("int8", True, 2000 * 0.5),
        ("mxfp4", False, 1000 * 0.5 * 0.8),  # no 4-bit unit: expanded to 16 bit
        ("int4", False, 1000 * 0.5 * 0.8),
    ],
)
def test_every_arithmetic_has_its_efficiency(dtype: str, blocks: bool, rate: float) -> None:
    efficiency = {"bf16": 0.5, "fp8": 0.4, "fp8_block": 0.3, "fp4": 0.2}
    machine = machine_of({"bf16": 1000, "fp8": 2000, "int8": 2000}, gemm_efficiency=efficiency, weight_only_compute=0.8)
    assert machine.gemm_flop_per_ns(dtype, blocks=blocks) == pytest.approx(rate)


@pytest.mark.parametrize(("dtype", "rate"), [("mxfp4", 4000 * 0.2), ("nvfp4", 4000 * 0.2), ("int4", 1000 * 0.5 * 0.8)])
def test_four_bits_are_multiplied_where_the_unit_exists(dtype: str, rate: float) -> None:
    # int4 has no unit on any GPU: its weights are always expanded.
    efficiency = {"bf16": 0.5, "fp4": 0.2}
    machine = machine_of({"bf16": 1000, "fp4": 4000}, gemm_efficiency=efficiency, weight_only_compute=0.8)
    assert machine.gemm_flop_per_ns(dtype, blocks=False) == pytest.approx(rate)
    assert machine.expands(dtype) == (dtype == "int4")


def test_only_expanded_weights_are_read_more_slowly() -> None:
    machine = machine_of({"bf16": 1000, "fp8": 2000}, weight_only_memory=0.25)
    # 1000 bytes at 50/ns = 20 ns; four times that when they are expanded. Activations are read at the full rate: 10 ns.
    for dtype, nanoseconds in (("bf16", 20), ("fp8", 20), ("mxfp4", 80), ("int4", 80)):
        assert gemm_ns(machine, 1, 0, 1000, dtype=dtype) == nanoseconds
        assert gemm_ns(machine, 1, 0, 1000, dtype=dtype, activation_bytes=np.array(500.0)) == nanoseconds + 10


def test_an_efficiency_of_16_bit_is_what_the_others_fall_back_on() -> None:
    with pytest.raises(SpecError, match="bf16"):
        Calibration.read({**CALIBRATION, "gemm_efficiency": {"fp8": 0.5}}, "test")


def machine_of(peak: dict[str, int], **calibration: Any) -> Machine:
    """A machine with these peaks in FLOP/ns."""
    gpu = {**CLUSTER["gpu"], "peak": {unit: f"{rate} GFLOP/s" for unit, rate in peak.items()}}
    return leaves_of(cluster=Cluster.read({**CLUSTER, "gpu": gpu}, "test"), calibration=calibration).machine


def test_4_bit_activations_are_always_quantised_in_groups() -> None:
    machine = machine_of({"bf16": 1, "fp8": 2, "fp4": 4})
    assert machine.quantises("nvfp4", blocks=False)
    assert not machine.quantises("fp8", blocks=False)
    assert not machine.quantises("bf16", blocks=True)


# --- 5.2 attention projections ----


@pytest.mark.parametrize(("tp", "weights"), [(1, 24000), (2, 12000), (4, 6000), (8, 4000)])
def test_kv_heads_are_replicated_beyond_their_number(tp: int, weights: int) -> None:
    # h d (H + H + 2 H_kv) = 100 * 10 * (8 + 8 + 8) = 24000, of it 8000 for KV, split at most 4 ways:
    # at TP 8 a rank holds 16000 / 8 + 8000 / 4 = 4000, not 3000.
    assert int(leaves_of().attention.weights("full", *as_ints(tp))) == weights


def test_latent_projections_are_replicated_by_tp() -> None:
    # Down-projection h (60 + 4) = 6400 on every rank. Q: 100 * 8 * 12 = 9600, KV up: 60 * 8 * 18 = 8640,
    # out: 8 * 10 * 100 = 8000, together 26240, of which TP 8 holds 3280.
    assert int(leaves_of({"mla": MLA}).attention.weights("full", *as_ints(8))) == 6400 + 3280


def test_projections_read_their_weights_whatever_the_batch() -> None:
    attention = leaves_of().attention
    # One token: 24000 * 2 + 2 * 100 * 2 = 48400 bytes / 50 = 968 ns against 48000 / 250 = 192; four launches.
    assert int(attention.projection_ns("full", *as_ints(1, 1))) == 968 + 400
    # Ten tokens: 480000 FLOP / 250 = 1920 ns against 52000 / 50 = 1040.
    assert int(attention.projection_ns("full", *as_ints(1, 10))) == 1920 + 400


@pytest.mark.parametrize(
    ("llm", "kind", "kernels"),
    [
        ({}, "full", 4),
        ({"mla": MLA}, "full", 9),
        ({"dtypes": {"attention": "fp8"}}, "full", 4),  # one scale per tensor: the kernels before apply it
        ({"dtypes": {"attention": "fp8"}, "quant_block": 10}, "full", 4 + 2),  # before both projections
        ({"mla": MLA, "dtypes": {"attention": "fp8"}, "quant_block": 10}, "full", 9 + 3),  # the query has two
        ({"dtypes": {"attention": "int4"}}, "full", 4),  # expanded weights multiply 16-bit activations
    ],
)
def test_launches_of_the_projections(llm: dict[str, Any], kind: AttentionKind, kernels: int) -> None:
    attention = leaves_of(llm).attention
    assert attention.projection_kernels(kind) == kernels
    free = leaves_of(llm, calibration={"launch": "0 ns"}).attention
    one = as_ints(1, 1)
    assert int(attention.projection_ns(kind, *one)) - int(free.projection_ns(kind, *one)) == 100 * kernels


def test_launches_of_sparse_and_linear_attention() -> None:
    sparse = {"mla": MLA, "attention_kinds": ["sparse"], "indexer": {"top_k": 50, "num_heads": 2, "head_dim": 16}}
    linear = {"num_key_heads": 2, "num_value_heads": 4, "key_head_dim": 10, "value_head_dim": 10, "conv_kernel": 2}
    assert leaves_of(sparse).attention.projection_kernels("sparse") == 9 + 4
    found = leaves_of({"attention_kinds": ["linear"], "linear": linear}).attention.projection_kernels("linear")
    assert found == 4 + 4


# --- 5.3 attention core ----


@pytest.mark.parametrize(("tp", "picoseconds"), [(1, 3200), (2, 1600), (4, 800), (8, 800)])
def test_decode_reads_the_cache(tp: int, picoseconds: int) -> None:
    # 2 * 4 heads * 10 * 2 bytes = 160 bytes / 50 = 3.2 ns per cached token; one KV head is the least a rank reads.
    assert int(leaves_of().attention.decode_core_ps("full", *as_ints(tp))[0]) == picoseconds


def test_decode_core_of_the_heaviest_rank() -> None:
    # 1000 tokens of context at 3.2 ns, one launch.
    assert int(leaves_of().attention.decode_core_ns("full", *as_ints(1, 1000, 8))) == 3300


@pytest.mark.parametrize(("tp", "picoseconds"), [(1, 3968), (4, 2560), (8, 2560)])
def test_the_latent_cache_is_not_split_by_tp(tp: int, picoseconds: int) -> None:
    # Bytes: (60 + 4) * 2 = 128 / 50 = 2.56 ns whatever TP. FLOP: 2 * 8 * (2 * 60 + 4) = 1984 / 500 = 3.968 ns at TP 1.
    assert int(leaves_of({"mla": MLA}).attention.decode_core_ps("full", *as_ints(tp))[0]) == picoseconds


def test_the_cache_has_a_bandwidth_of_its_own() -> None:
    slow, usual = (leaves_of(calibration={"cache_efficiency": share}) for share in (0.25, 0.5))
    # 160 bytes at 25/ns instead of 50/ns.
    assert int(slow.attention.decode_core_ps("full", *as_ints(1))[0]) == 6400
    # Nothing else moves: projections, experts, embedding, head.
    assert int(slow.attention.projection_ns("full", *as_ints(1, 1))) == 968 + 400
    for leaves in (slow, usual):
        assert leaves.experts is not None
        assert int(leaves.experts.compute_ns(*as_ints(1, 1, 4, 10**6))) == 2689 + 900
        assert int(leaves.ffn.embedding_ns(*as_ints(1, 10))) == 180
        assert int(leaves.ffn.head_ns("decode", *as_ints(1, 10))) == 8600
    # And the other way round: weights at half of the bandwidth, the cache as before.
    weights = leaves_of(calibration={"memory_efficiency": 0.25}).attention
    assert int(weights.projection_ns("full", *as_ints(1, 1))) == 2 * 968 + 400
    assert int(weights.decode_core_ps("full", *as_ints(1))[0]) == 3200


def test_states_and_index_keys_are_read_at_the_rate_of_the_cache() -> None:
    slow = {"cache_efficiency": 0.25}
    sparse = {"mla": MLA, "attention_kinds": ["sparse"], "indexer": {"top_k": 50, "num_heads": 2, "head_dim": 16}}
    token, sequence = leaves_of(sparse, calibration=slow).attention.decode_core_ps("sparse", *as_ints(8))
    assert (int(token), int(sequence)) == (800, 50 * 5120)  # twice the 0.4 and 2.56 ns above
    linear = {"num_key_heads": 2, "num_value_heads": 4, "key_head_dim": 10, "value_head_dim": 10, "conv_kernel": 2}
    attention = leaves_of({"attention_kinds": ["linear"], "linear": linear}, calibration=slow).attention
    assert int(attention.decode_core_ps("linear", *as_ints(1))[1]) == 2 * 89600


def test_a_window_caps_what_decode_reads() -> None:
    llm = {"attention_kinds": ["sliding"], "sliding_window": 64}
    token, sequence = leaves_of(llm).attention.decode_core_ps("sliding", *as_ints(1))
    assert (int(token), int(sequence)) == (0, 64 * 3200)
    # A window beyond the longest sequence (100 + 10 tokens) is the whole sequence.
    wide = leaves_of({**llm, "sliding_window": 5000}).attention.decode_core_ps("sliding", *as_ints(1))
    assert int(wide[1]) == 110 * 3200


def test_sparse_attention_scores_every_token_and_reads_the_best() -> None:
    llm = {"mla": MLA, "attention_kinds": ["sparse"], "indexer": {"top_k": 50, "num_heads": 2, "head_dim": 16}}
    token, sequence = leaves_of(llm).attention.decode_core_ps("sparse", *as_ints(8))
    # Index key: 16 + 4 bytes / 50 = 0.4 ns (FLOP 2 * 2 * 16 / 500 = 0.128). Then 50 tokens at 2.56 ns.
    assert (int(token), int(sequence)) == (400, 50 * 2560)


def test_linear_attention_reads_and_writes_its_state() -> None:
    linear = {"num_key_heads": 2, "num_value_heads": 4, "key_head_dim": 10, "value_head_dim": 10, "conv_kernel": 2}
    attention = leaves_of({"attention_kinds": ["linear"], "linear": linear}).attention
    token, sequence = attention.decode_core_ps("linear", *as_ints(1))
    # State: 4 bytes * (4 * 10 * 10 + 2 * (2 * 2 * 10 + 4 * 10)) = 4 * 560 = 2240; twice that / 50 = 89.6 ns.
    assert (int(token), int(sequence)) == (0, 89600)


def test_linear_attention_keeps_a_state_for_every_drafted_token() -> None:
    linear = {"num_key_heads": 2, "num_value_heads": 4, "key_head_dim": 10, "value_head_dim": 10, "conv_kernel": 2}
    drafting = {"speculative": {"draft": 3, "accepted": 1.0}}
    attention = leaves_of({"attention_kinds": ["linear"], "linear": linear}, workload=drafting).attention
    # The state above is read once and written after each of the 4 tokens of a step: 5 * 2240 / 50 = 224 ns.
    assert int(attention.decode_core_ps("linear", *as_ints(1))[1]) == 224_000


def test_verifying_drafts_multiplies_the_work_of_the_core() -> None:
    workload = {"speculative": {"draft": 15, "accepted": 1.0}}
    # 4 * 8 * 10 = 320 FLOP per cached token, 16 tokens a step: 5120 / 500 = 10.24 ns; the cache is read once.
    assert int(leaves_of(workload=workload).attention.decode_core_ps("full", *as_ints(1))[0]) == 10240


def test_prefill_is_quadratic_with_the_causal_half() -> None:
    # 100 * 101 / 2 = 5050 pairs, 2 * 8 heads * (10 + 10) * 5050 = 1_616_000 FLOP / 500 = 3232 ns per prompt.
    attention = leaves_of().attention
    assert int(attention.prefill_core_ns("full", *as_ints(1, 1))) == 3232 + 100
    assert int(attention.prefill_core_ns("full", *as_ints(1, 3))) == 3 * 3232 + 100
    assert int(attention.prefill_core_ns("full", *as_ints(2, 1))) == 1616 + 100


def test_prefill_on_top_of_a_cached_prefix() -> None:
    # 50 new tokens: 50 * 50 + 50 * 51 / 2 = 3775 pairs, 2 * 8 * 20 * 3775 / 500 = 2416 ns.
    leaves = leaves_of(workload={"prefix_hit_rate": 0.5})
    assert int(leaves.attention.prefill_core_ns("full", *as_ints(1, 1))) == 2416 + 100


@pytest.mark.parametrize(
    ("new", "cached", "window", "pairs"),
    [(100, 0, None, 5050), (50, 50, None, 3775), (100, 0, 10, 955), (10, 90, 10, 100), (10, 5, 10, 90), (3, 2, 9, 12)],
)
def test_attended_pairs(new: int, cached: int, window: int | None, pairs: int) -> None:
    # Window 10: 1 + ... + 10 = 55, then 90 queries of 10. With 5 cached: 6 + ... + 10 = 40, then 5 queries of 10.
    assert attended_pairs(new, cached, window) == pairs


def test_prompts_are_cut_into_equal_chunks() -> None:
    problem = problem_of(workload={"isl": 1000, "prefix_hit_rate": 0.1, "prefill_chunk_tokens": 400})
    # 900 new tokens, 3 chunks of 300; no second prompt fits a chunk.
    assert (new_prompt_tokens(problem), num_chunks(problem), chunk_tokens(problem)) == (900, 3, 300)
    assert max_prefill_batch(problem) == 1
    assert max_prefill_batch(problem_of(workload={"prefill_chunk_tokens": 400})) == 4
    assert new_prompt_tokens(problem_of(workload={"isl": 1, "prefix_hit_rate": 0.9})) == 1


# --- 5.4 experts ----


def test_distinct_experts_are_touched_not_k() -> None:
    experts = leaves_of().experts
    assert experts is not None
    # p = 2/8. One token: 8 * (1 - 0.75) = 2. Two: 8 * (1 - 0.5625) = 3.5. Half of that on each of two ranks.
    assert float(experts.touched(*as_ints(1, 1))) == 2
    assert float(experts.touched(*as_ints(1, 2))) == 3.5
    assert float(experts.touched(*as_ints(2, 2))) == 1.75
    assert float(experts.touched(*as_ints(2, 10000))) == 4


def test_an_uneven_rank_touches_its_share() -> None:
    # 8 experts on 3 ranks: the fullest holds 3 of 8 slots, 3/8 * 3.5.
    experts = leaves_of().experts
    assert experts is not None
    assert float(experts.touched(*as_ints(3, 2))) == 3 / 8 * 3.5


def test_replicas_are_always_touched() -> None:
    experts = leaves_of(redundant_experts=8).experts
    assert experts is not None
    # 16 slots on two ranks: 8/16 * (3.5 + 8).
    assert float(experts.touched(*as_ints(2, 2))) == 5.75


def test_skewed_loads_touch_fewer_experts() -> None:
    counts = [[100, 100, 0, 0, 0, 0, 0, 0]] * 4
    experts = leaves_of(workload={"expert_loads": {"source": "test", "counts": counts}}).experts
    assert experts is not None
    # Two experts take everything: p = 1 for both, whatever the number of tokens.
    assert float(experts.touched(*as_ints(1, 100))) == 2


def test_unknown_popularity_touches_fewer_experts() -> None:
    experts = leaves_of(calibration={"routing_skew": 1.0}).experts
    assert experts is not None
    # Exponential popularity: 8 (1 - 1 / (1 + T / 4)). Four tokens: 4; twelve: 6. One: its choices are distinct.
    assert float(experts.touched(*as_ints(1, 4))) == 4
    assert float(experts.touched(*as_ints(1, 12))) == pytest.approx(6)
    assert float(experts.touched(*as_ints(1, 1))) == 2
    assert float(experts.touched(*as_ints(1, 10**6))) == pytest.approx(8, rel=1e-4)
    # Next to no skew: as uniform, 8 * (1 - exp(-3)) for many rare choices against 8 * (1 - 0.75^12).
    nearly = leaves_of(calibration={"routing_skew": 1e-6}).experts
    assert nearly is not None
    assert float(nearly.touched(*as_ints(1, 12))) == pytest.approx(8 * (1 - math.exp(-3)), rel=1e-4)


def test_declared_loads_leave_nothing_unknown() -> None:
    workload = {"expert_loads": {"source": "test", "counts": [[1] * 8] * 4}}
    plain, skewed = (leaves_of(workload=workload, calibration={"routing_skew": s}).experts for s in (0.0, 1.0))
    assert plain is not None
    assert skewed is not None
    for tokens in (1, 4, 1000):
        args = as_ints(2, tokens)
        assert float(plain.touched(*args)) == float(skewed.touched(*args))
        assert float(plain.load_factor(*args, np.array(10**6))) == float(skewed.load_factor(*args, np.array(10**6)))


def test_unknown_popularity_leaves_ranks_uneven_however_many_tokens() -> None:
    # Two ranks of four experts, 10^6 tokens, 10^6 rows on either: the noise of rows that vary by 10^-6 + 1/4, as of a
    # mean of 4 (3.99998). Replicas are placed to remove it: 10^6 rows hardly vary.
    calibration = {"routing_skew": 1.0, "routing_noise": 1.0}
    args = as_ints(2, 10**6, 10**6)
    skewed = leaves_of(calibration=calibration).experts
    assert skewed is not None
    expected = float(routing_noise(np.array(2), np.array(4.0)))
    assert float(skewed.load_factor(*args)) == pytest.approx(expected, rel=1e-3)
    replicated = leaves_of(calibration=calibration, redundant_experts=2).experts
    assert replicated is not None
    assert float(replicated.load_factor(*args)) < 1.001


def test_grouped_gemms_by_hand() -> None:
    experts = leaves_of().experts
    assert experts is not None
    # Expert: 3 * 100 * 40 = 12000 weights. 4 tokens: 8 rows, 192000 FLOP / 250 = 768 ns; touched
    # 8 * (1 - 0.75^4) = 5.46875 experts * 24000 bytes + 2 * 8 * 200 bytes = 134450 / 50 = 2689 ns; nine launches.
    assert int(experts.compute_ns(*as_ints(1, 1, 4, 10**6))) == 2689 + 900
    # Expert TP 2 halves weights and FLOP, not the rows: (65625 + 3200) / 50 = 1376.5.
    assert int(experts.compute_ns(*as_ints(2, 1, 4, 10**6))) == 1377 + 900


def test_the_rank_with_more_rows_touches_more_experts() -> None:
    experts = leaves_of(calibration={"routing_noise": 0.0}).experts
    assert experts is not None
    # Two ranks of four experts, one token: 1 row and 1 expert on each if even, (24000 + 400) / 50 = 488. At factor 1.5
    # it is 1.5 of both; at any factor no more than one token's two choices.
    assert int(experts.compute_ns(*as_ints(1, 2, 1, 10**6))) == 488 + 900
    assert int(experts.compute_ns(*as_ints(1, 2, 1, 1_500_000))) == 732 + 900
    assert int(experts.compute_ns(*as_ints(1, 2, 1, 9 * 10**6))) == 976 + 900
    # 40 tokens touch all four experts: (4 * 24000 + 60 * 400) / 50 = 2400 ns, less than 60 rows * 24000 FLOP / 250.
    assert int(experts.compute_ns(*as_ints(1, 2, 40, 1_500_000))) == 5760 + 900


def test_few_rows_per_expert_lower_the_efficiency() -> None:
    experts = leaves_of(calibration={"grouped_gemm_half_rows": 4.0}).experts
    assert experts is not None
    # 8 rows on 8 (1 - (3/4)^4) = 5.46875 touched experts: the rate is r / (r + 4) with r = 8 / 5.46875, so that every
    # touched expert costs as much as 4 rows more: 768 ns * (8 + 4 * 5.46875) / 8 = 2868 ns.
    assert int(experts.compute_ns(*as_ints(1, 1, 4, 10**6))) == 2868 + 900


def test_fewer_tokens_never_cost_more() -> None:
    experts = leaves_of(calibration={"grouped_gemm_half_rows": 32.0}).experts
    assert experts is not None
    times = [int(experts.compute_ns(*as_ints(1, 2, tokens, 10**6))) for tokens in range(1, 200)]
    assert times == sorted(times)


def test_fewer_tokens_never_cost_more_under_the_fitted_terms() -> None:
    fitted = {"roofline_power": 2.0, "elementwise_passes": 1.5, "routing_skew": 0.5, "grouped_gemm_share": 0.7}
    experts = leaves_of(calibration={"grouped_gemm_half_rows": 32.0, **fitted}).experts
    assert experts is not None
    times = [int(experts.compute_ns(*as_ints(1, 2, tokens, 10**6))) for tokens in range(1, 200)]
    assert times == sorted(times)
    factors = [int(experts.compute_ns(*as_ints(1, 2, 40, factor))) for factor in range(10**6, 3 * 10**6, 10**5)]
    assert factors == sorted(factors)


def test_a_single_rank_has_no_routing_noise() -> None:
    assert float(routing_noise(np.array(1), np.array(3.0))) == 1


def test_routing_noise_of_two_poisson_ranks() -> None:
    # E max of two Poisson(1) = sum over x of 1 - F(x)^2 = 0.8647 + 0.4587 + 0.1542 + 0.0376 + 0.0073 + 0.0014 = 1.5238;
    # the surplus times sqrt(1 - 1/2).
    assert float(routing_noise(np.array(2), np.array(1.0))) == pytest.approx(1 + 0.5238 * 0.5**0.5, abs=2e-4)


def test_routing_noise_of_deepseek() -> None:
    # 1,024 tokens x 8 experts on 32 ranks: 256 rows a rank, balanced to 1 / 0.88 (DESIGN 5).
    assert 1 / float(routing_noise(np.array(32), np.array(256.0))) == pytest.approx(0.88, abs=0.01)


def test_without_routing_noise_only_the_placement_is_uneven() -> None:
    # 8 rows on two ranks are noisy; a share of 0 leaves the 1.5 of the placement, a half leaves half of the excess.
    args = as_ints(2, 4, 1_500_000)
    found = []
    for share in (0.0, 0.5, 1.0):
        experts = leaves_of(calibration={"routing_noise": share}).experts
        assert experts is not None
        found.append(float(experts.load_factor(*args)))
    noise = float(routing_noise(np.array(2), np.array(4.0)))
    assert noise > 1.1
    assert found == [1.5, pytest.approx(1.5 * (1 + (noise - 1) / 2)), pytest.approx(1.5 * noise)]


def test_the_busiest_rank_cannot_hold_more_than_everything() -> None:
    experts = leaves_of().experts
    assert experts is not None
    # One token on 8 ranks of one expert: at most one row a rank, mean 2/8: factor 4, whatever the placement says.
    assert float(experts.load_factor(*as_ints(8, 1, 9 * 10**6))) == 4


def test_imbalance_multiplies_the_rows() -> None:
    experts = leaves_of().experts
    assert experts is not None
    even, skewed = (float(experts.load_factor(*as_ints(2, 1000, ppm))) for ppm in (10**6, 1_500_000))
    assert skewed == pytest.approx(1.5 * even)


# --- 5.5 dense layers, shared experts, embedding, head ----


def test_dense_layers_by_hand() -> None:
    leaves = leaves_of({"moe": None, "dense_width": 80})
    # 3 * 100 * 80 = 24000 weights: like the projections, 968 ns for one token, four launches.
    assert int(leaves.ffn.dense_ns(*as_ints(1, 1))) == 968 + 400
    assert int(leaves.ffn.dense_ns(*as_ints(2, 1))) == 488 + 400


def test_shared_experts_are_always_active() -> None:
    shared = leaves_of({"moe": {**LLM["moe"], "shared_width": 80}})
    assert int(shared.ffn.shared_ns(*as_ints(1, 1))) == 968 + 300
    assert int(leaves_of().ffn.shared_ns(*as_ints(1, 1))) == 0


@pytest.mark.parametrize(
    ("dtype", "block", "more"),
    [
        ("fp8", None, 0),  # one scale per tensor: the norm applies it
        ("fp8", 10, 1),  # scales per block depend on the activations: a kernel before the up projection
        ("nvfp4", 10, 0),  # expanded, too: this GPU multiplies no 4-bit numbers
        ("int4", 10, 0),  # expanded weights multiply 16-bit activations
    ],
)
def test_launches_of_the_feed_forward_network(dtype: str, block: int | None, more: int) -> None:
    quantised = {"dtypes": {"dense": dtype}, "quant_block": block}
    assert leaves_of(quantised).ffn.dense_kernels == 4 + more
    assert leaves_of(quantised).ffn.shared_kernels == 0


def test_embedding_is_looked_up_and_reduced() -> None:
    ffn = leaves_of().ffn
    # 10 tokens: 2 * 10 * 200 bytes / 50 = 80 ns and a launch; TP 4 adds the best all-reduce of 2000 bytes:
    # tree 2 * 2 * 100 + 2 * 2000 / 10 + 10 = 810 (ring: 600 + 300 + 10 = 910).
    assert int(ffn.embedding_ns(*as_ints(1, 10))) == 180
    assert int(ffn.embedding_ns(*as_ints(4, 10))) == 180 + 810


def test_the_head_multiplies_gathers_and_samples() -> None:
    ffn = leaves_of().ffn
    # 10 rows: 2 * 10 * 100000 FLOP / 250 = 8000 ns against (200000 + 40000) / 50 = 4800; six launches.
    assert int(ffn.head_ns("decode", *as_ints(1, 10))) == 8600
    # TP 4: 2000 ns, and an all-gather of 40000 bytes: 3 * 100 + 0.75 * 40000 / 10 + 10 = 3310.
    assert int(ffn.head_ns("decode", *as_ints(4, 10))) == 2600 + 3310


def test_every_decoding_row_costs_the_host() -> None:
    ffn = leaves_of(calibration={"host_sequence": "50 ns"}).ffn
    # 10 rows of 50 ns on top of the 8600 above, in decode only: a prefill pass has its own host terms.
    assert int(ffn.head_ns("decode", *as_ints(1, 10))) == 8600 + 500
    assert int(ffn.head_ns("prefill", *as_ints(1, 10))) == 8600


# --- 5.6 all-reduce ----


@pytest.mark.parametrize(("algorithm", "time"), [("ring", 760), ("tree", 610), ("hierarchical", 760)])
def test_allreduce_inside_a_domain(algorithm: str, time: int) -> None:
    # Ring 2 * 3 * 100 + 2 * 3/4 * 1000 / 10 + 10; tree 2 * 2 * 100 + 2 * 1000 / 10 + 10; hierarchical is the ring here.
    assert int(leaves_of().comm.allreduce_ns(algorithm, *as_ints(4, 4), np.array(1000.0))) == time  # type: ignore[arg-type]


@pytest.mark.parametrize(("algorithm", "time"), [("ring", 15760), ("tree", 8010), ("hierarchical", 3010)])
def test_allreduce_across_domains(algorithm: str, time: int) -> None:
    # 8 ranks in two domains, 1 byte/ns and 1000 ns between them. Ring 14000 + 1750; tree 6000 + 2000; hierarchical
    # 600 + 150 inside, 2 * 1000 + 2 * 1/2 * 250 across.
    assert int(leaves_of().comm.allreduce_ns(algorithm, *as_ints(8, 4), np.array(1000.0))) == time  # type: ignore[arg-type]


@pytest.mark.parametrize(("payload", "time"), [(1000, 410), (2000, 710), (4000, 1060)])
def test_direct_allreduce_inside_a_domain(payload: int, time: int) -> None:
    # One step 100 + 3 S / 10 + 10, two steps 2 * 100 + 250 + 2 * 3/4 * S / 10 + 10: they cross at 2333 bytes.
    comm = leaves_of(calibration={"direct_sync": "250 ns"}).comm
    assert int(comm.allreduce_ns("direct", *as_ints(4, 4), np.array(float(payload)))) == time


def test_direct_allreduce_across_domains_is_the_hierarchical_one() -> None:
    comm = leaves_of(calibration={"direct_sync": "250 ns"}).comm
    assert int(comm.allreduce_ns("direct", *as_ints(8, 4), np.array(1000.0))) == 3010


def test_the_fastest_allreduce_is_direct_only_where_it_is_timed() -> None:
    # 5 tokens of 200 bytes: ring 760, tree 610, direct 410; 12 ns more of synchronisation change nothing at one step.
    tp, tokens = as_ints(4, 5)
    assert int(leaves_of().comm.best_tp_allreduce_ns(tp, tokens)) == 610
    assert int(leaves_of(calibration={"direct_sync": "250 ns"}).comm.best_tp_allreduce_ns(tp, tokens)) == 410
    assert int(leaves_of(calibration={"direct_sync": "262 ns"}).comm.best_tp_allreduce_ns(tp, tokens)) == 410


def test_a_group_of_one_has_nothing_to_reduce() -> None:
    assert int(leaves_of().comm.allreduce_ns("ring", *as_ints(1, 1), np.array(1000.0))) == 0


def test_tree_rounds_its_depth_up() -> None:
    # 3 ranks: depth 2: 2 * 2 * 100 + 2 * 1000 / 10 + 10.
    assert int(leaves_of().comm.allreduce_ns("tree", *as_ints(3, 4), np.array(1000.0))) == 610


# --- 5.7 dispatch and combine ----


def test_a_token_goes_once_to_each_distinct_rank() -> None:
    # 4 (1 - (3/4)^2) = 1.75 of 4 ranks, not 2.
    assert float(leaves_of().comm.destinations(*as_ints(4))) == 1.75


def test_node_limited_routing_bounds_the_destinations() -> None:
    limited = leaves_of({"moe": {**LLM["moe"], "num_groups": 4, "groups_per_token": 1}})
    assert float(limited.comm.destinations(*as_ints(4))) == 1  # one group of one rank
    assert float(limited.comm.destinations(*as_ints(8))) == pytest.approx(8 * (1 - (7 / 8) ** 2))  # 1.875 of two ranks


def test_eight_bit_dispatch_carries_its_scales() -> None:
    # 100 bytes and one fp32 scale per (begun) 128 elements; back in 16 bit.
    comm = leaves_of({"dtypes": {"dispatch": "fp8"}}).comm
    assert (comm.dispatch_bytes, comm.token_bytes) == (104, 200)


def test_all_to_all_inside_a_domain() -> None:
    # 40 tokens over 4 ranks: 10 each * 1.75 copies * 200 bytes, 3/4 of them leave: 2625 / 10 = 262.5 ns; + 100 + 10,
    # rounded up to 373, twice.
    assert int(leaves_of().comm.all_to_all_ns(*as_ints(1, 4, 4, 40), np.array(1.0))) == 746


def test_all_to_all_is_as_slow_as_its_slowest_level() -> None:
    # 8 ranks, 4 in a domain: 5 tokens each * 1.875 copies * 200 bytes = 1875; half of it crosses at 1 byte/ns: 937.5
    # (3/8 stays inside: 70 ns); + 1000 + 10, rounded up to 1948, twice.
    assert int(leaves_of().comm.all_to_all_ns(*as_ints(1, 8, 4, 40), np.array(1.0))) == 3896


def test_expert_tp_receives_every_copy() -> None:
    # moe_tp 2 x moe_ep 2 in a domain: 10 tokens each * 1.5 destinations * 2 shards * 200 bytes * 3/4 / 10 = 450.
    assert int(leaves_of().comm.all_to_all_ns(*as_ints(2, 2, 4, 40), np.array(1.0))) == 2 * (450 + 110)


def test_gather_moves_every_token_to_every_rank() -> None:
    # 40 tokens * 200 bytes = 8000: 3 * 100 + 3/4 * 8000 / 10 + 10 = 910, and back.
    assert int(leaves_of().comm.gather_ns(*as_ints(4, 4, 40))) == 1820


def test_one_group_reduces_instead_of_exchanging() -> None:
    """With one attention group every rank has all tokens: the exchange is a second all-reduce over the stage."""
    problem = problem_of()
    strategy = Strategy(attn_tp=4, moe_ep=4, batch=8, decode_allreduce="tree")
    layer = layer_of(problem, strategy, "decode")
    # 8 tokens * 200 bytes: tree 400 + 2 * 1600 / 10 + 10 = 730.
    assert (layer.allreduce_ns, layer.exchange_ns) == (730, 730)


def test_attention_groups_gather_their_tokens_after_the_exchange() -> None:
    # A2x2 on four ranks: gather of 16 tokens, 2 * (300 + 0.75 * 3200 / 10 + 10) = 1100, and the TP gather of the
    # group's 8 tokens: 100 + 0.5 * 1600 / 10 + 10 = 190; one TP all-reduce after attention, by ring:
    # 200 + 1600 / 10 + 10 = 370.
    layer = layer_of(problem_of(), Strategy(attn_tp=2, attn_dp=2, moe_ep=4, batch=8), "decode")
    assert (layer.allreduce_ns, layer.exchange_ns) == (370, 1100 + 190)


def test_shared_experts_need_their_own_allreduce_beside_all_to_all() -> None:
    shared = problem_of({"moe": {**LLM["moe"], "shared_width": 80}})
    strategy = Strategy(attn_tp=2, attn_dp=2, moe_ep=4, batch=8, decode_dispatch="all_to_all")
    assert layer_of(shared, strategy, "decode").allreduce_ns == 2 * 370
    assert layer_of(problem_of(), strategy, "decode").allreduce_ns == 370


def layer_of(problem: Problem, strategy: Strategy, phase: Phase) -> LayerTime:
    """The first layer with balanced blocks."""
    blocks = Blocks(strategy.batch * 105, 10**6, (4,))
    times = PhaseTimes(Leaves(problem), strategy, packing_of(problem, strategy), phase, blocks)
    return times.layer(problem.llm.layers[0])


# --- 5.8 pipeline ----


def test_hops_between_stages() -> None:
    comm = leaves_of().comm
    # 10 tokens * 200 bytes: 2000 / 10 + 100 + 10 inside, split over TP 4: 500 / 10 + 110; 2000 / 1 + 1000 + 10 outside.
    assert int(comm.hop_ns(*as_ints(1, 1, 10))) == 310
    assert int(comm.hop_ns(*as_ints(4, 1, 10))) == 160
    assert int(comm.hop_ns(*as_ints(1, 0, 10))) == 3010
    assert (int(comm.return_ns(*as_ints(1))), int(comm.return_ns(*as_ints(0)))) == (110, 1010)


def figures(problem: Problem, strategy: Strategy, decode: tuple[int, ...], prefill: tuple[int, ...]) -> Figures:
    """Metrics of stages that take so many ns; between them 300 ns a hop in decode (110 back), 400 in prefill."""
    leaves, several = Leaves(problem), strategy.pp > 1
    phases = StageTimes(leaves, decode, 300 * several, 110 * several), StageTimes(leaves, prefill, 400 * several, 0)
    return figures_of(problem, strategy, *phases)  # type: ignore[arg-type]


def test_a_decode_step_is_the_path_or_the_slowest_stage_times_the_micro_batches() -> None:
    problem = problem_of()
    # Path 5000 + 7000 + 300 + 110 = 12410; two micro-batches keep the slowest stage busy for 14000; host 1000.
    assert figures(problem, Strategy(pp=2, batch=8), (5000, 7000), (1, 1)).decode_ns == 13410
    assert figures(problem, Strategy(pp=2, batch=4, micro_batches=2), (5000, 7000), (1, 1)).decode_ns == 15000


def test_chunks_follow_one_another_through_the_slowest_stage() -> None:
    problem = problem_of(workload={"isl": 900, "prefill_chunk_tokens": 300})
    # 10000 + 20000 + 400, two more chunks behind the slowest stage, three times the host (3000 a pass).
    found = figures(problem, Strategy(pp=2, batch=8), (1, 1), (10000, 20000))
    assert found.ttft_ns == 30400 + 2 * 20000 + 3 * 3000
    assert found.round_ns == 3 * (20000 + 3000)


def test_a_prefill_pass_costs_the_host_once_and_by_kernel() -> None:
    # 3000 a pass and 4 layers of 4 (projections) + 1 (core) + 9 (experts) kernels of 200; a decode step keeps its 1000.
    workload = {"isl": 900, "prefill_chunk_tokens": 300}
    problem = problem_of(workload=workload, calibration={"host_prefill_kernel": "200 ns"})
    leaves = Leaves(problem)
    assert (leaves.pass_host_ns("prefill"), leaves.pass_host_ns("decode")) == (14200, 1000)
    found = figures(problem, Strategy(batch=8), (5000,), (10000,))
    assert (found.ttft_ns, found.round_ns) == (3 * 24200, 3 * 24200)  # three chunks
    assert found.decode_ns == 6000


def test_linear_attention_costs_the_host_of_a_prefill_pass_more() -> None:
    # Every second of four layers is linear: 3000 + 2 * 700 a pass. Without such layers it counts nothing.
    linear = {"num_key_heads": 2, "num_value_heads": 4, "key_head_dim": 32, "value_head_dim": 32}
    hybrid = {"attention_kinds": ["linear", "full"], "linear": linear}
    times = {"host_prefill_linear": "700 ns"}
    assert leaves_of(hybrid, calibration=times).pass_host_ns("prefill") == 4400
    assert leaves_of(calibration=times).pass_host_ns("prefill") == 3000


def test_embedding_and_head_belong_to_the_first_and_last_stage() -> None:
    problem = problem_of()
    strategy, blocks = Strategy(pp=3, batch=8), Blocks(840, 10**6, (1, 1, 2))
    times = PhaseTimes(Leaves(problem), strategy, packing_of(problem, strategy), "decode", blocks)
    layer = times.layer(problem.llm.layers[0]).total_ns
    assert times.stage_times() == [layer + times.embedding_ns, layer, 2 * layer + times.head_ns]


# --- 5.9 overlap ----


def test_two_half_batches_hide_communication_at_a_price() -> None:
    problem = problem_of()
    plain = Strategy(attn_dp=4, moe_ep=4, batch=8, decode_dispatch="all_to_all")
    whole, hidden = (layer_of(problem, s, "decode") for s in (plain, plain.model_copy(update={"decode_overlap": True})))
    leaves = Leaves(problem)
    half = leaves.dense_part_ns("full", "moe", *as_ints(1, 4))
    half = int(half + leaves.expert_ns(*as_ints(1, 4, 16, 10**6)))
    compute = 2 * half + whole.core_ns + 100  # the core is launched twice
    sent = 2 * int(leaves.all_to_all_ns(*as_ints(1, 4, 4, 16, 10**6)))
    # Computation runs on 80 % of the SMs; 7 ns a layer cannot be hidden.
    assert hidden.total_ns == max(-(-compute * 10 // 8), sent) + 7
    assert hidden.hidden_ns == whole.total_ns - hidden.total_ns


# --- 5.10 aggregated steady state, metrics ----


def test_a_cycle_serves_every_slot_once() -> None:
    # 6 slots a rank, 4 prompts a pass: 2 rounds of (2000 + 3000); decode step 5000 + 1000; osl 10.
    problem = problem_of(workload={"isl": 20})
    found = figures(problem, Strategy(batch=6, prefill_batch=4, replicas=2), (5000,), (2000,))
    assert found.rounds == 2
    assert found.cycle_ns == 10 * 6000 + 2 * 5000
    # One round falls between a token and the next one of others, once per 10 tokens.
    assert found.tpot_ns == 6000 + 500
    assert found.ttft_ns == 5000
    assert found.request_latency_ns == 5000 + 9 * 6500
    assert (found.active, found.gpus) == (8, 2)
    # 8 active sequences: 70000 ns / 8 = 8750 ns of the deployment and 17500 GPU-ns a request.
    assert found.inverse_throughput_ps == 8_750_000
    assert found.inverse_efficiency_ns == 17_500
    assert found.throughput_tokens_per_s(10) == 8 * 10 * 1e9 / 70000


def test_interference_is_rounded_up() -> None:
    problem = problem_of(workload={"osl": 7})
    # One other round of 2000 + 3000 over 7 tokens: 714.28.
    assert figures(problem, Strategy(batch=2, replicas=4), (5000,), (2000,)).tpot_ns == 6000 + 715


def test_with_free_concurrency_every_slot_is_active() -> None:
    problem = problem_of(workload={"concurrency": None})
    assert figures(problem, Strategy(batch=6, replicas=2), (5000,), (2000,)).active == 12


@pytest.mark.parametrize(
    ("name", "value"),
    [("latency", 7), ("ttft", 5), ("tpot", 6), ("throughput", 4000), ("efficiency", 12), ("gpus", 3)],
)
def test_objective_integers(name: str, value: int) -> None:
    # Cycle 8, two active: 4 ns = 4000 ps; 8 * 3 / 2 = 12.
    found = Figures(
        ttft_ns=5, tpot_ns=6, request_latency_ns=7, cycle_ns=8, decode_ns=1, round_ns=1, rounds=1, active=2, gpus=3
    )
    assert objective_value(name, found) == value  # type: ignore[arg-type]
    assert objective_value("weighted", found, (10, 100)) == 10 * 7 + 100 * 12


def test_weights_normalise_by_the_utopia_values() -> None:
    # Both parts at their best give 2^46 (up to the rounding of the weights).
    latency, efficiency = Utopia(latency_ns=1000, inverse_efficiency_ns=64).weights(0.25)
    assert latency * 1000 == pytest.approx(2**46 / 4, abs=1000)
    assert efficiency * 64 == 2**46 * 3 / 4


# --- 5.12 speculation ----


def test_accepted_drafts_shorten_the_step_per_token() -> None:
    problem = problem_of(workload={"speculative": {"draft": 2, "accepted": 0.5}})
    # 6000 ns a step for 1.5 tokens.
    assert figures(problem, Strategy(batch=8), (5000,), (2000,)).decode_ns == 4000


def test_drafts_enlarge_the_verified_batch() -> None:
    problem = problem_of(workload={"speculative": {"draft": 2, "accepted": 0.5}})
    strategy = Strategy(batch=8)
    times = PhaseTimes(Leaves(problem), strategy, packing_of(problem, strategy), "decode", Blocks(840, 10**6, (4,)))
    assert (times.group_tokens, times.head_rows) == (24, 24)


# --- memory ----


def test_the_ledger_by_hand() -> None:
    problem, strategy = problem_of(), Strategy(attn_dp=2, moe_ep=2, batch=4)
    (ledger,) = stage_ledgers(Leaves(problem), strategy, Blocks(4 * 105, 10**6, (4,)))
    items = ledger.items_kib
    assert items["attention"] == 4 * 47  # 24000 * 2 bytes = 46.9 KiB a layer
    assert items["kv_head_replication"] == 0
    assert items["routed_experts"] == 4 * 94  # 4 of 8 experts * 24000 bytes = 93.75 KiB
    assert items["shared_experts"] == items["dense_layers"] == 0
    assert items["norms_and_router"] == 4 * 4  # 2 * 100 * 2 + 100 * 8 * 4 = 3600 bytes
    assert items["kv_cache"] == 4 * 69  # 4 sequences of 110 tokens * 160 bytes = 70400 bytes = 68.75 KiB
    assert items["embedding"] == items["lm_head"] == 196  # 1000 * 100 * 2 bytes = 195.3 KiB
    # Prefill of 100 tokens: (6 * 100 + 2 * 2 * 40) * 2 bytes each = 152000 bytes = 148.4 KiB.
    assert items["activations"] == 149
    assert items["logits"] == 16 + 4  # fp32: 4 rows of 1000 in decode (15.6), one prompt's last (3.9)
    # top_k * (200 + 200) bytes a token: 4 tokens (3.1 KiB), 100 tokens (78.1 KiB).
    assert items["exchange_buffers"] == 4 + 79
    assert (items["framework"], items["communicators"], items["cuda_graphs"]) == (1, 2, 3)
    assert ledger.total_kib == sum(items.values())
    assert ledger.capacity_kib == 2048  # half of 4 MiB


def test_surplus_kv_heads_cost_memory() -> None:
    (ledger,) = stage_ledgers(Leaves(problem_of()), Strategy(attn_tp=8, moe_ep=8, batch=8), Blocks(840, 10**6, (4,)))
    # A rank holds 4000 weights (7.8 KiB); an eighth of all would be 3000: 1000 * 2 bytes = 1.95 KiB are copies.
    assert ledger.items_kib["kv_head_replication"] == 4 * 2
    assert ledger.items_kib["attention"] == 4 * (8 - 2)


def test_replicas_cost_memory() -> None:
    (ledger,) = stage_ledgers(
        Leaves(problem_of(redundant_experts=2)), Strategy(attn_dp=2, moe_ep=2, batch=4), Blocks(420, 10**6, (4,))
    )
    assert ledger.items_kib["routed_experts"] == 4 * 118  # 5 slots * 24000 bytes = 117.2 KiB


def test_an_uneven_split_is_charged_to_the_fullest_rank() -> None:
    (ledger,) = stage_ledgers(Leaves(problem_of()), Strategy(attn_dp=3, moe_ep=3, batch=4), Blocks(420, 10**6, (4,)))
    assert ledger.items_kib["routed_experts"] == 4 * 71  # 3 of 8 experts * 24000 bytes = 70.3 KiB


def test_tied_embeddings_are_held_once_by_one_stage_and_twice_by_two() -> None:
    problem = problem_of({"tie_embeddings": True})
    (one,) = stage_ledgers(Leaves(problem), Strategy(batch=8), Blocks(840, 10**6, (4,)))
    assert (one.items_kib["embedding"], one.items_kib["lm_head"]) == (196, 0)
    first, last = stage_ledgers(Leaves(problem), Strategy(pp=2, batch=8), Blocks(840, 10**6, (2, 2)))
    assert (first.items_kib["embedding"], first.items_kib["lm_head"]) == (196, 0)
    assert (last.items_kib["embedding"], last.items_kib["lm_head"]) == (0, 196)


def test_every_resident_sequence_is_reserved_at_its_full_length() -> None:
    problem = problem_of(workload={"isl": None, "isl_list": [10, 20, 30, 40], "concurrency": 4, "osl": 9})
    # Middle of generation: prompt + 4. Two micro-batches as heavy as the heaviest (say 44 + 14 tokens, two sequences),
    # each of the sequences still to grow by 5.
    assert balance.sequence_tokens(problem) == (14, 24, 34, 44)
    assert balance.resident_tokens(problem, 58, 2, 2) == 2 * (58 + 2 * 5)


def test_windows_and_states_are_reserved_per_sequence() -> None:
    sliding = leaves_of({"attention_kinds": ["sliding"], "sliding_window": 64}).attention
    # 64 tokens * 160 bytes, 3 sequences: 30720 bytes = 30 KiB, whatever their length.
    assert int(sliding.cache_kib("sliding", *as_ints(1, 9999, 3))) == 30
    sparse = {"mla": MLA, "attention_kinds": ["sparse"], "indexer": {"top_k": 50, "num_heads": 2, "head_dim": 16}}
    # Latent 128 bytes and index key 16 + 4 bytes a token.
    assert int(leaves_of(sparse).attention.cache_kib("sparse", *as_ints(8, 1024, 3))) == 148


def test_the_stage_ledgers_add_up_to_the_network() -> None:
    whole = stage_ledgers(Leaves(problem_of()), Strategy(batch=8), Blocks(840, 10**6, (4,)))
    parts = stage_ledgers(Leaves(problem_of()), Strategy(pp=3, batch=8), Blocks(840, 10**6, (1, 2, 1)))
    for name in ("attention", "routed_experts", "norms_and_router", "kv_cache", "embedding", "lm_head"):
        assert sum(part.items_kib[name] for part in parts) == whole[0].items_kib[name]
    assert [(part.first_layer, part.num_layers) for part in parts] == [(0, 1), (1, 2), (3, 1)]


# --- balance ----


def test_replicas_share_their_load_evenly() -> None:
    # A third of 10 of 30 tokens: 111,111,111.1 billionths, rounded up.
    assert balance.expert_share(10, 30, 3) == 111_111_112


def test_rank_loads_add_up_by_replica() -> None:
    # Expert 0 (6 of 10 tokens) on both ranks.
    assert balance.rank_loads((6, 3, 1), ((0, 1), (0, 2))) == [600_000_000, 400_000_000]


def test_load_factors() -> None:
    assert balance.load_factor_ppm(600_000_000, 2) == 1_200_000
    assert balance.load_factor_ppm(333_333_334, 3) == 1_000_001
    assert balance.load_factor_ppm(1, 2) == 1_000_000
    assert balance.mean_ppm([1_000_000, 1_000_001]) == 1_000_001


def test_the_first_ranks_hold_the_surplus_slots() -> None:
    assert balance.slots_per_rank(8, 3) == [3, 3, 2]


# --- the whole, once ----


def test_a_dense_layer_on_one_gpu_from_end_to_end() -> None:
    problem = problem_of({"moe": None, "dense_width": 80, "num_layers": 1}, workload={"concurrency": 1})
    strategy = Strategy()
    found = evaluate_times(Leaves(problem), strategy, packing_of(problem, strategy), Blocks(105, 10**6, (1,)))
    # Decode: embedding ceil(400 / 50) + 100 = 108; projections 1368; core ceil(105 * 3.2) + 100 = 436; FFN 1368;
    # head (one row) (200000 + 4000) / 50 = 4080 + 600; host 1000.
    assert found.decode_ns == 108 + 1368 + 436 + 1368 + 4680 + 1000
    # Prefill of 100 tokens: embedding 800 + 100; projections 4.8e6 / 250 = 19200 + 400; core 3332; FFN 19200 + 400;
    # head of one row 4680; host 3000.
    assert found.ttft_ns == 900 + 19600 + 3332 + 19600 + 4680 + 3000
    assert found.tpot_ns == found.decode_ns  # a single slot waits for nobody
