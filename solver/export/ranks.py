"""Rank tables: which rank runs on which host and GPU, and what it holds; one row per GPU."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from solver.export.deployment import Launch
from solver.export.files import ExportFile

COLUMNS = (
    "replica", "rank", "host", "node", "local_gpu", "gpu", "stage", "first_layer", "last_layer", "attn_tp_rank",
    "attn_dp_rank", "moe_tp_rank", "moe_ep_rank",
)  # fmt: skip
Row = dict[str, str | int]
Experts = dict[int, tuple[int, ...]]


def rows(deployment: Launch) -> list[Row]:
    """One row per GPU, by replica and rank."""
    return [row for row, _ in expert_rows(deployment)]


def expert_rows(deployment: Launch) -> list[tuple[Row, Experts]]:
    """One row per GPU, by replica and rank, each with the experts of every MoE layer."""
    result = []
    for instance in deployment.instances:
        for seat in instance.seats:
            record = seat.record
            row: Row = {"rank": seat.rank, "host": deployment.host(record.node)}
            result.append(({name: row.get(name, getattr(record, name, "")) for name in COLUMNS}, record.experts))
    return result


def csv_files(deployment: Launch) -> list[ExportFile]:
    """The table as CSV; a column names the plan."""
    return [csv_file(rows(deployment), deployment)]


def jsonl_files(deployment: Launch) -> list[ExportFile]:
    """The table as JSON lines, with the experts of every MoE layer."""
    return [jsonl_file(expert_rows(deployment), deployment)]


def csv_file(table: Sequence[Row], deployment: Launch) -> ExportFile:
    """Rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*table[0], "plan"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "plan": deployment.short_digest} for row in table)
    return ExportFile("ranks.csv", text.getvalue())


def jsonl_file(table: Sequence[tuple[Row, Experts]], deployment: Launch) -> ExportFile:
    """Rows as JSON lines."""
    lines = [json.dumps({**row, "experts": experts, "plan": deployment.short_digest}) + "\n" for row, experts in table]
    return ExportFile("ranks.jsonl", "".join(lines))
