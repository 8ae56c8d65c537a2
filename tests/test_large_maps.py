"""Large maps: the written form of the bins, the streams, the judge by class and by rank, the aggregated picture."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from command_line import error_line, run
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import build_plan, small_problem
from pydantic import ValidationError

from solver.errors import ReportError
from solver.expansion import Expansion, GpuRecord, expand, moe_coordinates
from solver.plan import Deal, Placement, Plan
from solver.report import parquet
from solver.report.placement import csv, jsonl, table
from solver.specs.runs import numbers_of, runs_text
from solver.specs.spec import document_text
from solver.strategy import Strategy
from solver.verify import ranks, verify
from solver.verify.evidence import Evidence

# --- the written form ------------------------------------------------------------------------------------------------


def test_runs_up_and_down_are_joined() -> None:
    # 0 1 2 3 counts up, 9 8 7 counts down; two neighbours are no run.
    assert runs_text([0, 1, 2, 3, 7, 8, 5, 9, 8, 7]) == "0-3 7 8 5 9-7"
    assert runs_text([]) == ""


@given(st.lists(st.integers(0, 12), max_size=40))
def test_runs_are_read_back(numbers: list[int]) -> None:
    assert numbers_of(runs_text(numbers), 40) == numbers


@pytest.mark.parametrize("text", ["1-", "-3", "a", "1..2", "1 2 three", "9" * 13])
def test_what_is_no_run_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither a number nor a run"):
        numbers_of(text, 100)


def test_a_short_text_cannot_ask_for_endless_numbers() -> None:
    with pytest.raises(ValueError, match="more than 100 numbers"):
        numbers_of("0-999999999999", 100)
    assert len(numbers_of("0-99", 100)) == 100


@given(st.lists(st.integers(0, 5), max_size=30))
def test_bins_come_back_from_their_written_form(owners: list[int]) -> None:
    bins = tuple(tuple(s for s, owner in enumerate(owners) if owner == b) for b in range(6))
    deal = Deal.of(bins)
    assert deal is not None
    assert deal.bins() == bins


@pytest.mark.parametrize(
    "bins",
    [((1, 0), (2,)), ((0, 1), (1,)), ((0,), (2,)), ((0, 0), (1,))],
    ids=["order", "two bins", "missing", "twice"],
)
def test_bins_that_a_deal_cannot_say_are_written_as_lists(bins: tuple[tuple[int, ...], ...]) -> None:
    assert Deal.of(bins) is None


def test_a_deal_to_a_bin_that_does_not_exist_is_refused() -> None:
    document = {
        "domain_gpus": 8, "gpus_per_node": 8, "stage_layers": [4], "moe_tp_fastest": True, "num_sequences": 2,
        "bins": {"count": 2, "bin_of_sequence": "0 2"}, "load_tokens": 1, "lambda_ppm": 1,
    }  # fmt: skip
    with pytest.raises(ValidationError, match="sequence 1 is dealt to bin 2 of 2"):
        Placement.model_validate(document)
    assert Placement.model_validate({**document, "bins": [[0], [1]]}).bins == ((0,), (1,))


def plan() -> Plan:
    strategy = Strategy(attn_tp=2, attn_dp=2, moe_ep=4, pp=2, replicas=2, micro_batches=2, batch=1)
    return build_plan(small_problem(redundant_experts=4), strategy)


def test_a_document_keeps_lists_of_numbers_on_one_line() -> None:
    text = document_text(plan())
    assert Plan.parse(text) == plan()
    assert json.loads(text) == json.loads(plan().model_dump_json())
    assert '"stage_layers": [2, 2],\n' in text
    # Text that looks like a list is left alone: its line breaks are escapes.
    odd = plan().model_copy(update={"warnings": ("[\n  1,\n  2\n]",)})
    assert Plan.parse(document_text(odd)).warnings == odd.warnings


def test_a_document_of_the_first_version_is_read() -> None:
    # The first version listed the sequences of every bin.
    old = json.loads(plan().model_dump_json())
    assert plan().placement.bins is not None
    old["placement"]["bins"] = [list(members) for members in plan().placement.bins or ()]
    old["schema_version"] = "1.0"
    assert Plan.parse(json.dumps(old)) == plan()
    assert Plan.parse(json.dumps(old)).schema_version == "1.1"


# --- streams ---------------------------------------------------------------------------------------------------------


def test_json_lines_say_what_the_records_say() -> None:
    records = list(expand(plan()))
    lines = [json.loads(line) for line in jsonl(iter(records))]
    assert lines == json.loads(json.dumps([asdict(record) for record in records]))


def test_shared_texts_are_those_of_each_record() -> None:
    # Copies share no object, so nothing can be taken from a neighbour.
    records = list(expand(plan()))
    copies = [replace(r, experts=dict(r.experts), sequences=(*r.sequences,)) for r in records]
    for form in (jsonl, csv, table):
        assert list(form(records)) == list(form(copies))


def test_parquet_holds_the_records_in_row_groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="the extra parquet is not installed")
    monkeypatch.setattr(parquet, "MAX_ROWS", 5)
    document, out = tmp_path / "plan.json", tmp_path / "map.parquet"
    document.write_text(document_text(plan()))
    assert run("placement", document, "--format", "parquet", "--out", out).code == 0
    read = pq.ParquetFile(out)
    assert read.metadata.num_row_groups == 4  # 16 rows in groups of 5
    rows, records = read.read().to_pylist(), list(expand(plan()))
    assert [row["gpu"] for row in rows] == [record.gpu for record in records]
    for row, record in zip(rows, records, strict=True):
        held = {layer: tuple(experts) for layer, experts in row.pop("experts")}
        dealt = tuple(map(tuple, row.pop("sequences")))
        assert (held, dealt) == (record.experts, record.sequences)
        assert all(row[name] == getattr(record, name) for name in row)


def test_long_lists_end_a_row_group_early(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every record holds 2 layers x 3 slots and 2 sequences: 8 values; 16 values make a group of two.
    monkeypatch.setattr(parquet, "MAX_VALUES", 16)
    groups = list(parquet._row_groups(expand(plan())))
    assert [len(group) for group in groups] == [2] * 8


def test_parquet_is_refused_where_it_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "plan.json"
    document.write_text(document_text(plan()))
    assert "--out FILE" in error_line(run("placement", document, "--format", "parquet"))
    monkeypatch.setattr(parquet.util, "find_spec", lambda _name: None)
    with pytest.raises(ReportError, match=r"shardwright\[parquet\]"):
        parquet.check_parquet()


# --- the judge, rank by rank -----------------------------------------------------------------------------------------


def wrong_gpu(record: GpuRecord) -> GpuRecord:
    return replace(record, gpu=record.gpu ^ 1)


def wrong_experts(record: GpuRecord) -> GpuRecord:
    return replace(record, experts={**record.experts, record.first_layer: (0,)})


def lost_layer(record: GpuRecord) -> GpuRecord:
    return replace(record, experts={})


def wrong_sequences(record: GpuRecord) -> GpuRecord:
    return replace(record, sequences=record.sequences[::-1])


def wrong_stage(record: GpuRecord) -> GpuRecord:
    return replace(record, last_layer=record.last_layer + 1)


@pytest.mark.parametrize("spoil", [wrong_gpu, wrong_experts, lost_layer, wrong_sequences, wrong_stage])
@pytest.mark.parametrize("rank", [0, 7, 15])
def test_a_wrong_record_of_any_rank_is_convicted(
    spoil: Callable[[GpuRecord], GpuRecord], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Expansion.__iter__
    monkeypatch.setattr(
        Expansion, "__iter__", lambda self: (spoil(r) if i == rank else r for i, r in enumerate(real(self)))
    )
    verdict = verify(plan())
    assert [finding.rule for finding in verdict.findings] == ["records"]
    assert f"rank {rank} " in verdict.findings[0].sentence


def test_a_sample_is_seeded_and_full_takes_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of 16 ranks 4 are sampled; one wrong record outside of the sample is found by --full alone.
    monkeypatch.setattr(ranks, "MAX_SAMPLED", 4)
    sampled = random.Random(ranks.SAMPLE_SEED).sample(range(16), 4)
    spoilt = next(record for i, record in enumerate(expand(plan())) if i not in sampled)
    real = Expansion._record

    def record(self: Expansion, *at: Any) -> GpuRecord:
        made = real(self, *at)
        return wrong_gpu(made) if made.gpu == spoilt.gpu else made

    assert (verify(plan()).records, verify(plan(), full=True).records) == (4, 16)
    monkeypatch.setattr(Expansion, "_record", record)
    assert verify(plan()).ok
    assert not verify(plan(), full=True).ok


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_seats_are_those_of_the_packing(seed: int) -> None:
    # Two arithmetics of the same definition, on arrays and by rank: random sizes, orders and domains.
    rng = random.Random(seed)
    tp, dp, pp = rng.choice((1, 2, 3, 4)), rng.choice((1, 2, 3, 5, 8)), rng.choice((1, 2, 3))
    moe_tp = rng.choice([k for k in range(1, tp * dp + 1) if tp * dp % k == 0])
    strategy = Strategy(
        attn_tp=tp, attn_dp=dp, moe_tp=moe_tp, moe_ep=tp * dp // moe_tp, pp=pp, replicas=rng.randint(1, 5),
        mesh_order=rng.choice(("tp-dp-pp", "tp-pp-dp")),
    )  # fmt: skip
    base, domain = plan(), rng.choice((1, 2, 4, 6, 8, 16))
    cluster = base.problem.cluster.model_copy(
        update={"gpus_per_node": domain, "scale_up_gpus": domain, "num_gpus": 64 * domain * strategy.gpus}
    )
    problem = base.problem.model_copy(update={"cluster": cluster})
    placement = base.placement.model_copy(update={"moe_tp_fastest": rng.random() < 0.5})
    evidence = Evidence(base.model_copy(update={"problem": problem, "placement": placement}), strategy, 0, 0)
    seats = ranks.seats_of(evidence)
    assert len(seats) == strategy.gpus
    for i in range(strategy.gpus):
        at = (int(seats.replica[i]), int(seats.stage[i]), int(seats.attn_dp[i]), int(seats.attn_tp[i]))
        assert evidence.packing.gpu(*at) == seats.gpu[i]
        rank = at[2] * tp + at[3]
        moe = moe_coordinates(rank, strategy.moe_tp, strategy.moe_ep, placement.moe_tp_fastest)
        assert moe == (seats.moe_tp[i], seats.moe_ep[i])
