"""Files of measured deployments: what a row becomes, what is served, and one sentence for every malformed cell."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from solver.errors import CatalogError, SpecError
from solver.specs.catalog import load_cluster, load_llm
from solver.specs.measurements import (
    COUNTS,
    MAX_ROWS,
    REQUIRED,
    Measurement,
    read_measurements,
    served_cluster,
    served_llm,
)
from solver.specs.precision import PRECISIONS, in_precision
from solver.specs.workload import Speculative

DEVELOPMENT = Path(__file__).parents[1].parent / "shared" / "data" / "silicon" / "dev.csv"

ROW = {
    "id": "one",
    "llm": "deepseek-ai/DeepSeek-R1",
    "system": "h200_sxm",
    "engine": "vllm",
    "precision": "fp8",
    "isl": "1024",
    "osl": "128",
    "concurrency": "16",
    "attn_tp": "2",
    "attn_dp": "4",
    "moe_tp": "1",
    "moe_ep": "8",
    "gpus": "8",
}


def text_of(*rows: dict[str, str]) -> str:
    """A CSV text of rows with equal columns."""
    return "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]) + "\n"


def read(tmp_path: Path, content: str | bytes) -> tuple[Measurement, ...]:
    file = tmp_path / "measured.csv"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_measurements(file)


def one(tmp_path: Path, **cells: str) -> Measurement:
    return read(tmp_path, text_of({**ROW, **cells}))[0]


def test_a_row_with_every_column(tmp_path: Path) -> None:
    extra = {
        "engine_version": "0.12.0",
        "gemm_dtype": "fp8",
        "moe_dtype": "fp8_block",
        "pp": "2",
        "measured_ttft_ms": "387.8932",
        "measured_tpot_ms": "9.0893",
        "speculative_draft": "3",
        "speculative_accepted": "1.5",
        "admission_steps": "7.5",
        "prefix_hit_rate": "0.25",
        "colour": "blue",
    }
    assert one(tmp_path, **extra) == Measurement(
        id="one",
        llm="deepseek-ai/DeepSeek-R1",
        system="h200_sxm",
        engine="vllm",
        engine_version="0.12.0",
        precision="fp8",
        gemm_dtype="fp8",
        moe_dtype="fp8_block",
        isl=1024,
        osl=128,
        concurrency=16,
        attn_tp=2,
        attn_dp=4,
        moe_tp=1,
        moe_ep=8,
        pp=2,
        gpus=8,
        ttft_ns=387_893_200,
        tpot_ns=9_089_300,
        speculative=Speculative(draft=3, accepted=1.5),
        admission_steps=7.5,
        prefix_hit_rate=0.25,
    )


def test_a_row_to_be_predicted_only(tmp_path: Path) -> None:
    # Neither the columns of the result nor any other optional one is there.
    row = one(tmp_path)
    assert (row.ttft_ns, row.tpot_ns, row.pp, row.speculative) == (None, None, 1, None)
    assert (row.engine_version, row.gemm_dtype, row.moe_dtype) == (None, None, None)
    assert (row.admission_steps, row.prefix_hit_rate) == (None, 0.0)


def test_optional_cells_may_be_empty(tmp_path: Path) -> None:
    empty = {"pp": "", "measured_ttft_ms": "", "measured_tpot_ms": " ", "speculative_draft": "0", "gemm_dtype": ""}
    assert one(tmp_path, **empty) == one(tmp_path)


def test_byte_order_mark_windows_lines_blank_lines_quotes_and_spaces(tmp_path: Path) -> None:
    plain = text_of(ROW, {**ROW, "id": "two"})
    fancy = plain.replace("\n", "\r\n").replace("one,", '"one",').replace("two", "\r\n two")
    assert read(tmp_path, b"\xef\xbb\xbf" + fancy.encode()) == read(tmp_path, plain)


def test_numbers_of_a_spreadsheet(tmp_path: Path) -> None:
    assert one(tmp_path, concurrency="16.0", isl="1024.").concurrency == 16


@pytest.mark.parametrize("column", COUNTS)
@pytest.mark.parametrize("cell", ["nan", "inf", "-1", "0", "1.5", "1e3", "99999999999999"])
def test_malformed_counts_name_line_and_column(tmp_path: Path, column: str, cell: str) -> None:
    with pytest.raises(SpecError, match=rf"line 3: {column} '{cell}' is not a whole number from 1 to .*; ") as caught:
        read(tmp_path, text_of(ROW, {**ROW, "id": "two", column: cell}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", REQUIRED)
def test_needed_cells_must_be_filled(tmp_path: Path, column: str) -> None:
    with pytest.raises(SpecError, match=f"line 2: {column} '' is empty; fill the cell or delete the row"):
        one(tmp_path, **{column: ""})


@pytest.mark.parametrize("column", ["measured_ttft_ms", "measured_tpot_ms", "speculative_accepted"])
@pytest.mark.parametrize("cell", ["nan", "NaN", "inf", "-inf", "-1", "1e99", "fast", "1_0", "１２"])
def test_malformed_times_and_shares(tmp_path: Path, column: str, cell: str) -> None:
    with pytest.raises(SpecError, match=f"line 2: {column} '{cell}' is not a number .*; "):
        one(tmp_path, **{"speculative_draft": "2", column: cell})


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"measured_ttft_ms": "0"}, "above 0 .*leave it empty"),
        ({"precision": "fp3"}, "precision 'fp3' is not known; take one of bf16"),
        ({"pp": "0"}, "pp '0' is not a whole number from 1 to"),
        ({"llm": "x" * 301}, "301 characters"),
        ({"speculative_draft": "2"}, "stands alone; give both"),
        ({"speculative_accepted": "2"}, "stands alone; give both"),
        ({"speculative_draft": "2", "speculative_accepted": "2.5"}, "exceeds the 2 tokens"),
        ({"speculative_draft": "1.5", "speculative_accepted": "1"}, "not a whole number of tokens"),
        ({"speculative_draft": "17", "speculative_accepted": "1"}, "up to 16"),
        ({"admission_steps": "-1"}, "give the mean decode steps a prompt waits"),
        ({"admission_steps": "1e6"}, "up to 10000"),
        ({"prefix_hit_rate": "1"}, "give the share of prompts that was cached"),
    ],
)
def test_other_cells_that_cannot_be(tmp_path: Path, cells: dict[str, str], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        one(tmp_path, **cells)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty; the first line must name"),
        ("\n , \n", "is empty"),
        (text_of(ROW).splitlines()[0], "no row below its header"),
        (text_of(ROW).replace("isl,", "prompt,"), "lacks the columns isl; its first line"),
        (text_of(ROW).replace("id,", "id,id,"), "the column 'id' twice"),
        (text_of(ROW, ROW), "line 3: id 'one' is already the id of line 2; give"),
        (text_of(ROW) + "two,x\n", "line 3: 2 cells, but the header names 13; "),
        (text_of(ROW) + 'two,"x\n', "line 3 is not CSV"),
        (text_of(ROW).encode("utf-16"), "not UTF-8"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_malformed_files(tmp_path: Path, content: str | bytes, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_files_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solver.specs.measurements.MAX_ROWS", 2)
    rows = [{**ROW, "id": str(i)} for i in range(3)]
    assert len(read(tmp_path, text_of(*rows[:2]))) == 2 < MAX_ROWS
    with pytest.raises(SpecError, match="more than 2 rows; split"):
        read(tmp_path, text_of(*rows))
    monkeypatch.setattr("solver.specs.measurements.MAX_MEASUREMENTS_BYTES", 100)
    with pytest.raises(SpecError, match="larger than"):
        read(tmp_path, text_of(*rows))
    with pytest.raises(SpecError, match="no file"):
        read_measurements(tmp_path / "absent.csv")


# --- what is served -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("llm", "precision", "weights", "block", "dispatch"),
    [
        ("meta-llama/Llama-3.1-70B", "bf16", "bf16 bf16 bf16", None, "bf16"),
        ("meta-llama/Llama-3.1-70B", "fp8", "fp8 fp8 bf16", None, "bf16"),
        ("meta-llama/Llama-3.1-70B", "fp4", "nvfp4 nvfp4 bf16", 16, "bf16"),
        ("meta-llama/Llama-3.1-70B", "int4_wo", "int4 int4 bf16", 128, "bf16"),
        ("deepseek-ai/DeepSeek-R1", "bf16", "bf16 bf16 bf16", None, "bf16"),
        ("deepseek-ai/DeepSeek-R1", "fp8", "fp8 fp8 fp8", 128, "fp8"),  # published with blocks
        ("deepseek-ai/DeepSeek-R1", "nvfp4", "bf16 bf16 nvfp4", 16, "bf16"),
        ("nvidia/DeepSeek-R1-NVFP4", "fp8", "fp8 fp8 fp8", 128, "fp8"),  # the row's precision, not the name's
        ("zhipuai/GLM-5", "fp8", "fp8 fp8 fp8", None, "bf16"),  # published in bf16: a scale per tensor
        ("moonshotai/Kimi-K2.5", "int4", "bf16 bf16 int4", 32, "bf16"),  # published with groups of 32
        ("moonshotai/Kimi-K2.5", "fp4", "bf16 bf16 nvfp4", 16, "bf16"),
        ("moonshotai/Kimi-K2.5", "bf16", "bf16 bf16 bf16", None, "bf16"),
        ("openai/gpt-oss-120b", "fp4", "bf16 bf16 mxfp4", None, "bf16"),
    ],
)
def test_data_types_of_a_deployment(
    tmp_path: Path, llm: str, precision: str, weights: str, block: int | None, dispatch: str
) -> None:
    served = served_llm(one(tmp_path, llm=llm, precision=precision))
    types = served.dtypes
    assert f"{types.attention} {types.dense} {types.experts}" == weights
    assert (served.quant_block, types.dispatch) == (block, dispatch)
    kv = "fp8" if llm.startswith("nvidia/") else "bf16"  # NVIDIA's checkpoints say so
    assert (types.embedding, types.activation, types.kv) == ("bf16", "bf16", kv)


@pytest.mark.parametrize(
    ("system", "precision", "kv"),
    [
        ("h200_sxm", "fp8", "bf16"),
        ("b200_sxm", "fp8", "fp8"),
        ("b200_sxm", "fp4", "fp8"),
        ("b200_sxm", "bf16", "bf16"),
        ("gb200", "int4", "fp8"),
        ("l40s", "fp8", "bf16"),
    ],
)
def test_the_kv_cache_is_small_on_hardware_with_four_bits(tmp_path: Path, system: str, precision: str, kv: str) -> None:
    assert served_llm(one(tmp_path, system=system, precision=precision)).dtypes.kv == kv


@pytest.mark.parametrize("column", ["gemm_dtype", "moe_dtype"])
def test_a_row_may_say_that_fp8_has_blocks(tmp_path: Path, column: str) -> None:
    served = served_llm(one(tmp_path, llm="zhipuai/GLM-5", **{column: "fp8_block"}))
    assert (served.quant_block, served.dtypes.dispatch) == (128, "fp8")


def test_an_llm_in_its_own_precision_is_itself() -> None:
    for name, precision in (("deepseek-r1", "fp8"), ("kimi-k2.5", "int4"), ("gpt-oss-120b", "fp4"), ("glm-5", "bf16")):
        llm = load_llm(name)
        assert in_precision(llm, precision) is llm


def test_another_precision_is_named_and_assumed() -> None:
    llm = load_llm("deepseek-r1")
    served = in_precision(llm, "fp4", kv="fp8")
    assert served.name == "deepseek-r1-nvfp4"
    # The entry's sentences on the KV cache and on the dispatch are no longer true.
    assert served.assumptions == (
        "Served in nvfp4: attention bf16, dense FFN bf16, experts nvfp4 (tokens travel to them in bf16), "
        "one scale per block of 16, KV cache fp8.",
    )
    assert in_precision(llm, "fp8", kv="fp8").name == "deepseek-r1"
    assert type(llm).model_validate(served.model_dump()) == served


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["qwen3-32b", "gpt-oss-20b", "kimi-k2.5", "qwen3.5-397b-a17b"])
def test_every_precision_of_every_kind_of_llm_is_a_valid_record(name: str, precision: str) -> None:
    llm = load_llm(name)
    served = in_precision(llm, precision)
    assert type(llm).model_validate(served.model_dump()) == served
    assert served.total_parameters == llm.total_parameters


def test_an_unknown_precision() -> None:
    with pytest.raises(SpecError, match="precision 'fp3' is not known; known: bf16"):
        in_precision(load_llm("glm-5"), "fp3")


@pytest.mark.parametrize(
    ("system", "gpus", "served"),
    [("h200_sxm", 8, 8), ("h200_sxm", 2, 2), ("h200_sxm", 12, 16), ("gb200", 4, 4), ("gb200", 6, 8), ("gb200", 72, 72)],
)
def test_the_cluster_has_the_gpus_of_the_row(tmp_path: Path, system: str, gpus: int, served: int) -> None:
    cluster = served_cluster(one(tmp_path, system=system, gpus=str(gpus)))
    assert cluster.num_gpus == served
    assert cluster.gpu == load_cluster(system).gpu


def test_names_that_are_not_in_the_catalog(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no llm 'nobody/nothing'"):
        served_llm(one(tmp_path, llm="nobody/nothing"))
    with pytest.raises(CatalogError, match="no cluster 'h2000_sxm'"):
        served_cluster(one(tmp_path, system="h2000_sxm"))


@pytest.mark.skipif(not DEVELOPMENT.exists(), reason="the measured deployments are not here")
def test_every_measured_deployment_resolves() -> None:
    rows = read_measurements(DEVELOPMENT)
    with DEVELOPMENT.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row.id for row in rows] == [line["id"] for line in table]
    assert len(rows) == 1391
    for row, line in zip(rows, table, strict=True):
        assert served_llm(row).is_moe == (line["dense"] != "True")
        assert served_cluster(row).num_gpus == row.gpus
        assert row.ttft_ns == pytest.approx(float(line["measured_ttft_ms"]) * 1e6, abs=1)
        assert row.tpot_ns == pytest.approx(float(line["measured_tpot_ms"]) * 1e6, abs=1)
