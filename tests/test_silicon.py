"""Measured operators: chosen number by number, traced, refused in one sentence, and never needed by default."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measured_package
import numpy as np
import pytest
from command_line import error_line, run
from measured_package import OPERATORS, declare, install
from oracle import brute_force
from plans import small_llm, small_problem, small_workload
from problems import draw

from solver import SolveOptions, evaluate, solve, verify
from solver.cost.leaves import Leaves, as_ints
from solver.cost.metrics import error_band
from solver.cost.operators import positive_least_squares
from solver.errors import OperatorsError, SpecError
from solver.plan import Plan
from solver.silicon import SiliconTimes, choose_operators
from solver.silicon.choice import SYSTEM_OF_GPU
from solver.silicon.package import tables_of
from solver.silicon.times import _between
from solver.specs import catalog
from solver.specs.operators import Operators
from solver.specs.problem import Problem
from solver.strategy import Strategy

US = 1000


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stand-in of the optional package."""
    install(monkeypatch)
    yield
    tables_of.cache_clear()


def measured_problem(**changes: Any) -> Problem:
    """The small problem priced with the stand-in."""
    return small_problem(**{"operators": OPERATORS, **changes})


# --- the default needs nothing ----------------------------------------------------------------------------------------


def test_the_package_is_imported_only_when_a_number_is_asked_for() -> None:
    code = "import solver.cli, solver.silicon, sys; print([m for m in sys.modules if 'aiconfigurator' in m])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_formulas_are_one_source_for_all_operators() -> None:
    problem = small_problem()
    (source,) = evaluate(problem, Strategy(batch=8)).operator_sources
    assert (source.operator, source.source) == ("all", "analytic: calibration test")


# --- which number -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("package")
def test_a_measured_gemm_replaces_its_formula_and_keeps_the_other_kernels() -> None:
    # 2 tokens, TP 2. QKV: (4 + 2 * 2) heads of 32 columns = 256, output 256 columns: 512 columns * 2 rows = 1024 us;
    # of the 4 kernels 2 are GEMMs, the other two cost a launch of 1.5 us each.
    leaves = Leaves(measured_problem())
    assert int(leaves.attention.projection_ns("full", *as_ints(2, 2))) == 1024 * US + 2 * 1500


@pytest.mark.usefixtures("package")
def test_an_unmeasured_degree_is_priced_by_the_formula_and_says_so() -> None:
    problem = measured_problem()
    leaves, formulas = Leaves(problem), Leaves(problem.model_copy(update={"operators": Operators()}))
    tokens, factor = as_ints(64, 10**6)
    noise = formulas.experts.load_factor(as_ints(2)[0], tokens, factor)
    for moe_tp, moe_ep in ((1, 2), (2, 2)):
        tp, ep = as_ints(moe_tp, moe_ep)
        formula = int(formulas.expert_ns(tp, ep, tokens, factor))
        even = int(formulas.experts._formula_ns(tp, ep, tokens, np.asarray(1.0)))
        # 10 us * 64 tokens / 2 ranks, three launches, and what the busiest rank adds by the formula
        measured = 320 * US + 3 * 1500 + formula - even
        assert noise > 1
        assert int(leaves.expert_ns(tp, ep, tokens, factor)) == (measured if moe_tp == 1 else formula)
    sources = [entry.source for entry in leaves.machine.measured.sources() if entry.operator == "routed experts"]
    assert sources == [str(OPERATORS), "analytic: calibration test"]


@pytest.mark.usefixtures("package")
def test_times_grow_with_the_imbalance_whatever_was_measured() -> None:
    # The proof bounds the imbalance from below: a larger one must never be cheaper.
    leaves, tokens = Leaves(measured_problem()), as_ints(64)[0]
    times = [int(leaves.expert_ns(*as_ints(1, 4), tokens, as_ints(f)[0])) for f in range(10**6, 4 * 10**6, 10**5)]
    assert times == sorted(times)


@pytest.mark.usefixtures("package")
def test_a_measured_decode_core_is_a_line() -> None:
    # One KV head per rank at TP 4: 5 us + 1 us a sequence + 1 ns a token, exactly the stand-in's law.
    attention = Leaves(measured_problem()).attention
    tp, load, batch = as_ints(4, 3000, 3)
    token_ps, sequence_ps = attention.decode_core_ps("full", tp)
    assert (int(attention.core_base_ns("full", tp)), int(token_ps), int(sequence_ps)) == (5 * US, 1000, 1000 * US)
    assert int(attention.decode_core_ns("full", tp, load, batch)) == 5 * US + 3 * US + 3000


@pytest.mark.usefixtures("package")
def test_speculative_verification_keeps_the_formula() -> None:
    workload = small_workload(speculative={"draft": 1, "accepted": 0.5})
    problem = measured_problem(workload=workload)
    formulas = Leaves(problem.model_copy(update={"operators": Operators()}))
    arguments = as_ints(4, 3000, 3)
    mine = Leaves(problem).attention.decode_core_ns("full", *arguments)
    assert int(mine) == int(formulas.attention.decode_core_ns("full", *arguments))


@pytest.mark.usefixtures("package")
def test_a_prefill_core_is_the_mean_of_its_chunks() -> None:
    # 100 tokens in 2 chunks of 50, one KV head: 50 us each.
    problem = measured_problem(workload=small_workload(isl=100, prefill_chunk_tokens=50))
    assert int(Leaves(problem).attention.prefill_core_ns("full", *as_ints(4, 1))) == 50 * US


@pytest.mark.usefixtures("package")
def test_every_all_reduce_inside_a_node_costs_what_was_measured() -> None:
    # The stand-in says 4 us for 4 ranks; for 3, between 2 and 4 us, geometrically: 2 * 2^log2(1.5) = 3 us.
    leaves = Leaves(measured_problem())
    for algorithm in ("ring", "tree", "hierarchical"):
        times = leaves.allreduce_ns(algorithm, np.array([1, 2, 3, 4]), np.array(7))
        assert times.tolist() == [0, 2 * US, 3 * US, 4 * US]


@pytest.mark.usefixtures("package")
def test_collectives_of_other_links_are_not_taken_over() -> None:
    problem = measured_problem()
    slow = problem.cluster.levels[0].model_copy(update={"bandwidth": 200 * 10**9})
    cluster = problem.cluster.model_copy(update={"levels": (slow, *problem.cluster.levels[1:])})
    problem = problem.model_copy(update={"cluster": cluster})
    formulas = Leaves(problem.model_copy(update={"operators": Operators()}))
    arguments = as_ints(4, 7)
    assert int(Leaves(problem).allreduce_ns("ring", *arguments)) == int(formulas.allreduce_ns("ring", *arguments))


@pytest.mark.usefixtures("package")
def test_what_the_package_models_itself_is_no_measurement() -> None:
    times = SiliconTimes(small_llm(), measured_problem().cluster, OPERATORS)
    assert math.isnan(times.collective_ns("all_gather", *as_ints(4, 1024)))


@pytest.mark.usefixtures("package")
def test_equal_numbers_are_looked_up_once() -> None:
    times = SiliconTimes(small_llm(), measured_problem().cluster, OPERATORS)
    times.gemm_ns(np.array([[1], [2]]), np.array([8, 8, 8]), np.array(8), "bf16")
    before = measured_package._Engine.calls
    ns = times.gemm_ns(np.array([[1], [2]]), np.array([8, 8, 8]), np.array(8), "bf16")
    assert ns.tolist() == [[8 * US] * 3, [16 * US] * 3]
    assert measured_package._Engine.calls == before


def test_between_measured_degrees_times_are_geometric() -> None:
    # Linear in logarithms: with t = 8 / (a b) at the powers of two, 8 / (3 * 6) at (3, 6).
    assert _between(lambda a, b: 8 / (a * b), 3, 6) == pytest.approx(8 / 18)
    assert _between(lambda a: 7.0 * a, 1) == pytest.approx(7.0)
    assert math.isnan(_between(lambda a: math.nan if a == 4 else 1.0, 3))
    assert _between(lambda a: math.nan if a == 4 else 1.0, 2) == 1.0


def test_coefficients_are_never_negative() -> None:
    x = np.arange(1.0, 9.0)
    columns = np.stack([np.ones(8), x], axis=1)
    assert positive_least_squares(columns, 3 + 2 * x) == pytest.approx([3, 2])
    assert (positive_least_squares(columns, 20 - 2 * x) >= 0).all()


@pytest.mark.parametrize("name", ["llama-3.1-70b", "deepseek-v3", "deepseek-v2-lite", "qwen3-next-80b-a3b", "glm-5"])
def test_the_gemms_of_a_layer_are_its_weights(name: str) -> None:
    llm = catalog.load_llm(name)
    workload = small_workload(isl=64, osl=64)
    attention = Leaves(small_problem(llm=llm, cluster=catalog.load_cluster("b200"), workload=workload)).attention
    for kind in {layer.attention for layer in llm.kinds}:
        for attn_tp in (1, 2, 4, 8, 16):
            (tp,) = as_ints(attn_tp)
            counted = sum(int(columns * inner) for columns, inner in attention.projection_shapes(kind, tp))
            assert counted == int(attention.weights(kind, tp))


# --- the whole journey ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("seed", [3001, 3003, 3004, 3005, 3006, 3007])
def test_measured_optimum_is_that_of_brute_force(seed: int) -> None:
    problem = draw(seed).model_copy(update={"operators": OPERATORS})
    value, result = brute_force(problem).value, solve(problem, SolveOptions(workers=1))
    assert value == (result.certificate.value if isinstance(result, Plan) else None)
    assert not isinstance(result, Plan) or verify(result, exhaustive=True).ok


@pytest.mark.usefixtures("package")
def test_a_plan_states_what_was_measured() -> None:
    problem = measured_problem(space={"name": "all", "max_pp": 1, "max_batch": 2, "max_prefill_batch": 1})
    plan = solve(problem, SolveOptions(workers=1))
    assert isinstance(plan, Plan)
    assert plan.certificate.value == brute_force(problem).value
    assert verify(plan, exhaustive=True).ok
    assert str(OPERATORS) in {entry.source for entry in plan.operator_sources}
    assert [words for words in plan.warnings if words.startswith(f"Measured ({OPERATORS}): LM head, ")]
    assert [words for words in plan.warnings if words.startswith("Not measured, priced by formulas (analytic: ")]
    assert Plan.parse(plan.model_dump_json()) == plan


@pytest.mark.usefixtures("package")
def test_the_judge_finds_the_sources_again() -> None:
    problem = measured_problem(space={"name": "all", "max_pp": 1, "max_batch": 2, "max_prefill_batch": 1})
    document = json.loads(solve(problem, SolveOptions(workers=1)).model_dump_json())
    document["operator_sources"][0]["source"] = "analytic: calibration test"
    verdict = verify(Plan.model_validate(document))
    assert {finding.rule for finding in verdict.findings} == {"operator-sources"}


def test_the_error_of_a_calibration_is_not_claimed_for_measured_operators() -> None:
    llama = {"llm": catalog.load_llm("llama-3.1-70b"), "cluster": catalog.load_cluster("h200x8")}
    fitted = catalog.calibration_of(llama["cluster"], "vllm")
    problem = small_problem(**llama, workload=small_workload(isl=64), calibration=fitted)
    assert "cross-validated" in error_band(problem, "tpot")[1]
    assert (
        "assumed: sums of measured operators"
        in error_band(problem.model_copy(update={"operators": OPERATORS}), "tpot")[1]
    )


def test_source_and_tables_are_part_of_the_question() -> None:
    problem = measured_problem()
    assert problem.digest != problem.model_copy(update={"operators": Operators()}).digest
    other = Operators.model_validate({**OPERATORS.model_dump(), "version": "0.5.16"})
    assert problem.digest != problem.model_copy(update={"operators": other}).digest


# --- refusals ---------------------------------------------------------------------------------------------------------


def asked(text: str, cluster: str = "h200x8", llm: str = "llama-3.1-70b") -> Operators:
    return choose_operators(text, catalog.load_cluster(cluster), "any", catalog.load_llm(llm))


@pytest.mark.usefixtures("package")
def test_the_source_is_completed_from_gpu_and_engine() -> None:
    assert asked("silicon") == OPERATORS
    assert asked("silicon:h200_sxm/vllm").version == "0.24.0"
    assert asked("silicon", "h100x8").backend == "vllm"  # SGLang was not measured there
    cluster, llm = catalog.load_cluster("h200x8"), catalog.load_llm("llama-3.1-70b")
    assert choose_operators("silicon", cluster, "vllm", llm).backend == "vllm"


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("text", "cluster", "llm", "words"),
    [
        ("silicon", "mi300x", "llama-3.1-70b", ["'mi300x'", "h100, h200", "--operators analytic"]),
        ("silicon:b999", "h200", "llama-3.1-70b", ["system 'b999'", "h100_sxm, h200_sxm", "--operators analytic"]),
        ("silicon:h100_sxm/sglang", "h100", "llama-3.1-70b", ["backend 'sglang' on h100_sxm", "it has vllm"]),
        ("silicon:h200_sxm/vllm/9", "h200", "llama-3.1-70b", ["version '9' of vllm", "it has 0.24.0"]),
        ("silicon", "h200", "deepseek-v3", ["no measured GEMM in fp8", "attention weights", "has bf16, fp16 there"]),
        ("silicon:", "h200", "llama-3.1-70b", ["expected analytic, silicon, or silicon:SYSTEM"]),
        ("silicon:a//b", "h200", "llama-3.1-70b", ["expected analytic, silicon, or silicon:SYSTEM"]),
        ("roofline", "h200", "llama-3.1-70b", ["'roofline'", "expected analytic"]),
    ],
)
def test_what_was_not_measured_is_refused_with_what_was(text: str, cluster: str, llm: str, words: list[str]) -> None:
    with pytest.raises(OperatorsError) as refusal:
        asked(text, cluster, llm)
    assert [word for word in words if word not in str(refusal.value)] == []


def test_measured_gpus_are_in_the_catalog() -> None:
    assert set(SYSTEM_OF_GPU) <= {catalog.load_cluster(name).gpu.name for name in catalog.names("cluster")}


def test_without_the_package_the_command_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, None)
    line = error_line(
        run("evaluate", "TP8", "--model", "llama-3.1-70b", "--cluster", "h200x8", "--operators", "silicon")
    )
    assert "aiconfigurator-core, which is not installed: pip install 'shardwright[silicon]'" in line
    assert "--operators analytic" in line


def test_a_plan_is_verified_with_its_own_source_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch)
    problem = measured_problem(space={"name": "all", "max_pp": 1, "max_batch": 2, "max_prefill_batch": 1})
    path = tmp_path / "plan.json"
    path.write_text(solve(problem, SolveOptions(workers=1)).model_dump_json())
    assert run("verify", path).code == 0
    install(monkeypatch, "0.13.0")
    line = error_line(run("verify", path))
    assert "priced with aiconfigurator-core 0.12.0, but aiconfigurator-core 0.13.0 is installed" in line
    declare(monkeypatch, None)
    assert "not installed" in error_line(run("verify", path))


@pytest.mark.parametrize(
    "fields", [{"source": "silicon"}, {"source": "analytic", "system": "h200_sxm"}, {"source": "roofline"}]
)
def test_a_source_is_named_whole(fields: dict[str, str]) -> None:
    with pytest.raises(SpecError):
        Operators.read(fields, "test")


# --- the real package, where it is installed --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Iterator[Operators]:
    """Measured H200 operators."""
    pytest.importorskip("aiconfigurator_core")
    tables_of.cache_clear()
    yield asked("silicon:h200_sxm/sglang", llm="deepseek-v3")
    tables_of.cache_clear()


def test_real_tables_have_the_operators_of_deepseek(real: Operators) -> None:
    llm, cluster = catalog.load_llm("deepseek-v3"), catalog.load_cluster("h200x64")
    times = SiliconTimes(llm, cluster, real)
    tp = np.array([1, 2, 4, 8])
    found = {
        "gemm": times.gemm_ns(np.array([1, 64, 4096]), np.array(7168), np.array(2048), "fp8"),
        "experts": times.experts_ns(np.array(1024), np.array(1), np.array([1, 8, 12, 64])),
        "prefill core": times.prefill_core_ns("full", tp, np.array(1), np.array(2048), np.array(0)),
        "decode core": times.decode_core_ns("full", tp, np.array(16), np.array(4096)),
        "all-reduce": times.collective_ns("all_reduce", np.array([2, 4, 8]), np.array(2**20)),
        "exchange": times.exchange_ns(np.array([8, 16, 32, 64]), np.array(64)),
    }
    # Nanoseconds, not milliseconds: a kernel takes a microsecond at least, and none of these a second.
    assert {name: ns.tolist() for name, ns in found.items() if not ((ns > 1e3) & (ns < 1e9)).all()} == {}
    assert np.isnan(times.collective_ns("all_reduce", np.array(16), np.array(2**20)))
    # A GEMM of 4096 rows cannot outrun the unit: 2 * 4096 * 7168 * 2048 FLOP at 1979 TFLOP/s take 60.8 us.
    assert found["gemm"][2] > 60_800


def test_real_plan_is_proved_and_verified(real: Operators) -> None:
    llm, cluster = catalog.load_llm("deepseek-v3"), catalog.load_cluster("h200x8")
    workload = small_workload(isl=2048, osl=128, concurrency=16)
    problem = small_problem(llm=llm, cluster=cluster, workload=workload, operators=real, pins={"pp": 1})
    plan = solve(problem, SolveOptions(workers=1))
    assert isinstance(plan, Plan)
    assert plan.status == "OPTIMAL"
    assert verify(plan).ok
    assert "decode attention core" in {entry.operator for entry in plan.operator_sources if "silicon" in entry.source}


def test_real_measurements_are_the_packages_own(real: Operators) -> None:
    from aiconfigurator_core.sdk import operations
    from aiconfigurator_core.sdk.engine import EngineHandle, build_ops_json
    from aiconfigurator_core.sdk.perf_database import get_database

    gemm = operations.GEMM(name="g", scale_factor=1.0, n=4096, k=7168, quant_mode="bfloat16")
    engine = EngineHandle.for_database(get_database(real.system, real.backend, real.version))
    ((_, ms, _, _),) = engine.evaluate_ops_json(
        build_ops_json([gemm]), is_context=True, batch_size=1, s=1, prefix=0, x=96
    )
    times = SiliconTimes(catalog.load_llm("llama-3.1-70b"), catalog.load_cluster("h200x8"), real)
    assert float(times.gemm_ns(*as_ints(96, 4096, 7168), "bf16")) == pytest.approx(ms * 1e6)
