"""Calibration: a fit finds what made the data, shrinks when it knows little, and says how well it does."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import run

from solver import calibrate, predict
from solver.errors import SpecError
from solver.fitting.coefficients import PRIORS, Coefficient, parameters, values
from solver.fitting.toml import calibration_toml
from solver.specs import catalog
from solver.specs.calibration import Calibration
from solver.specs.measurements import Measurement

HEADER = "id,llm,system,engine,precision,isl,osl,concurrency,attn_tp,attn_dp,moe_tp,moe_ep,gpus"


def deployments(llm: str, precision: str, moe: bool) -> list[Measurement]:
    """Twelve deployments of an LLM on H200 with vLLM, not measured yet."""
    return [
        Measurement(
            id=f"{llm}-tp{tp}-c{concurrency}-{isl}", llm=llm, system="h200_sxm", engine="vllm", engine_version=None,
            precision=precision, gemm_dtype=None, moe_dtype=None, isl=isl, osl=256, concurrency=concurrency,
            attn_tp=tp, attn_dp=1, moe_tp=tp if moe else 1, moe_ep=1, pp=1, gpus=tp, ttft_ns=None, tpot_ns=None,
        )
        for tp in (4, 8)
        for concurrency in (4, 32, 128)
        for isl in (1024, 4096)
    ]  # fmt: skip


def measured_with(rows: list[Measurement], truth: Calibration) -> list[Measurement]:
    """The rows as a world with these coefficients would measure them."""
    told = {each.id: each for each in predict(rows, truth)}
    return [replace(row, ttft_ns=told[row.id].ttft_ns, tpot_ns=told[row.id].tpot_ns) for row in rows]


BASE = catalog.load_calibration("hopper-vllm")
SLOWER = BASE.model_copy(update={"launch": round(1.6 * BASE.launch), "memory_efficiency": 0.7 * BASE.memory_efficiency})


def test_a_users_measurements_gain() -> None:
    # 24 rows of a machine whose launches and memory are slower than the catalog says: the fit explains them, and
    # predicts an LLM that it has not seen far better than the catalog's calibration does.
    rows = measured_with(
        [*deployments("llama-3.1-70b", "fp8", False), *deployments("qwen3-235b-a22b", "fp8", True)], SLOWER
    )
    report = calibrate(rows, BASE)
    assert report.before.tpot_mean is not None
    assert report.fitted.tpot_mean is not None
    assert report.unseen.tpot_mean is not None
    assert report.before.tpot_mean > 15
    assert report.fitted.tpot_mean < 0.3 * report.before.tpot_mean  # shrinkage keeps a little of the base
    assert report.unseen.tpot_mean < 0.5 * report.before.tpot_mean
    assert report.gains
    assert report.pairs == 2
    assert report.calibration.launch > BASE.launch
    assert report.calibration.memory_efficiency < BASE.memory_efficiency


def test_measurements_that_the_base_predicts_move_nothing() -> None:
    report = calibrate(measured_with(deployments("llama-3.1-70b", "fp8", False), BASE), BASE)
    assert report.before.tpot_mean == 0
    assert all(after == pytest.approx(before, rel=0.02) for before, after in report.moved.values())


def test_a_few_measurements_gain_and_more_gain_more() -> None:
    rows = measured_with(deployments("llama-3.1-70b", "fp8", False), SLOWER)
    few, many = (calibrate(each, BASE) for each in (rows[:4], rows))
    assert few.before.tpot_mean is not None
    assert few.unseen.tpot_mean is not None
    assert many.unseen.tpot_mean is not None
    assert many.unseen.tpot_mean < few.unseen.tpot_mean < few.before.tpot_mean


def test_the_written_file_is_the_calibration(tmp_path: Path) -> None:
    report = calibrate(measured_with(deployments("llama-3.1-70b", "fp8", False), SLOWER), BASE)
    path = tmp_path / "mine.toml"
    path.write_text(calibration_toml(report.calibration), encoding="utf-8")
    read = catalog.load_calibration(path)
    for name, value in report.calibration.model_dump().items():
        if isinstance(value, float):
            assert getattr(read, name) == pytest.approx(value, rel=1e-3)  # four digits are written
        elif name != "gemm_efficiency":
            assert read.model_dump()[name] == value
    assert read.gemm_efficiency == pytest.approx(report.calibration.gemm_efficiency, rel=1e-3)


@pytest.mark.parametrize("name", catalog.names("calibration"))
def test_catalog_calibrations_survive_writing(name: str) -> None:
    calibration = catalog.load_calibration(name)
    assert Calibration.read(tomllib.loads(calibration_toml(calibration)), name).launch == calibration.launch


def test_bad_sets_of_measurements_are_refused() -> None:
    rows = measured_with(deployments("llama-3.1-70b", "fp8", False), BASE)
    with pytest.raises(SpecError, match="at least 4"):
        calibrate(rows[:3], BASE)
    with pytest.raises(SpecError, match="choose with --only"):
        calibrate([*rows, replace(rows[0], id="other", engine="sglang")], BASE)
    with pytest.raises(SpecError, match="given twice"):
        calibrate([*rows, rows[0]], BASE)
    with pytest.raises(SpecError, match="no multiple"):
        calibrate([*rows, replace(rows[0], id="odd", gpus=7)], BASE)
    with pytest.raises(SpecError, match="make both equal"):
        calibrate([*rows, replace(rows[0], id="odd", moe_tp=3)], BASE)
    mixture = replace(deployments("qwen3-235b-a22b", "fp8", False)[0], attn_tp=8, moe_tp=1, moe_ep=1, gpus=8)
    with pytest.raises(SpecError, match="has experts on 8 GPUs"):
        predict([mixture])


def test_a_measured_deployment_is_not_held_to_the_published_context() -> None:
    # An engine is told to serve more, and the row says that it did; the first row of a group is like the others.
    row = deployments("llama-3.1-70b", "fp8", False)[0]
    longer = replace(row, id="longer", isl=200_000)
    assert catalog.load_llm("llama-3.1-70b").max_context == 131_072
    forward, backward = predict([row, longer]), predict([longer, row])
    assert {each.id: each.ttft_ns for each in forward} == {each.id: each.ttft_ns for each in backward}
    assert forward[1].ttft_ns > forward[0].ttft_ns


# --- the hierarchical model ----


def test_levels_add_up_and_an_unseen_key_keeps_the_level_above() -> None:
    prior = Coefficient("launch", 1000.0, 0.5, gpu_spread=0.2, engine_spread=0.1)
    model = parameters((prior,), [("hopper", "vllm"), ("blackwell", "sglang")])
    assert [p.level for p in model] == ["global", "gpu", "gpu", "engine", "engine"]
    z = np.array([1.0, 0.0, 1.0, 0.0, 1.0])  # blackwell, hopper; sglang, vllm
    found = {key: values((prior,), model, z, key)["launch"] for key in (("hopper", "vllm"), ("hopper", ""), ("", ""))}
    assert found["hopper", "vllm"] == pytest.approx(1000 * np.exp(0.5 + 0.2 + 0.1))
    assert found["hopper", ""] == pytest.approx(1000 * np.exp(0.5 + 0.2))
    assert found["", ""] == pytest.approx(1000 * np.exp(0.5))


def test_a_share_bends_below_its_largest_value() -> None:
    prior = next(each for each in PRIORS if each.name == "memory_efficiency")
    model = parameters((prior,), [("hopper", "vllm")])
    at = [values((prior,), model, np.array([z]), ("", ""))["memory_efficiency"] for z in (-20.0, 0.0, 5.0, 50.0)]
    assert at[1] == pytest.approx(prior.value)
    assert at == sorted(at)
    assert at[-1] <= prior.largest


# --- the command ----


def test_the_command_fits_and_writes(tmp_path: Path) -> None:
    rows = measured_with(deployments("llama-3.1-70b", "fp8", False), SLOWER)
    lines = [f"{HEADER},measured_ttft_ms,measured_tpot_ms"]
    for r in rows:
        assert r.ttft_ns is not None
        assert r.tpot_ns is not None
        lines.append(
            f"{r.id},{r.llm},{r.system},{r.engine},{r.precision},{r.isl},{r.osl},{r.concurrency},{r.attn_tp},1,1,1,"
            f"{r.gpus},{r.ttft_ns / 1e6},{r.tpot_ns / 1e6}"
        )
    data, out = tmp_path / "mine.csv", tmp_path / "mine.toml"
    data.write_text("\n".join(lines), encoding="utf-8")
    done = run("calibrate", "--data", str(data), "--out", str(out))
    assert done.code == 0, done.err
    assert "unseen" in done.out
    assert "launch" in done.out
    assert catalog.load_calibration(out).error is not None
    again = run("calibrate", "--data", str(data), "--out", str(out))
    assert again.code == 2
    assert "--force" in again.err
    assert run("calibrate", "--data", str(data), "--range-ratio", "2").code == 2
    assert run("calibrate", "--data", str(data), "--only", "system=b200_sxm").code == 2


@pytest.mark.parametrize(
    ("coefficient", "value", "words"),
    [("cache_efficiency", 1e-300, "0.001"), ("launch", "4000000000 s", "longer than the 10 s")],
)
def test_coefficients_that_no_hardware_has_are_refused(coefficient: str, value: object, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        Calibration.read({**BASE.model_dump(), coefficient: value}, "mine")
