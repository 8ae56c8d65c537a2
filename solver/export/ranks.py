"""Rank tables: which rank runs on which host and GPU, and what it holds; one row per GPU."""

from __future__ import annotations

import csv
import io
import json

from solver.export.deployment import Deployment
from solver.export.files import ExportFile

COLUMNS = (
    "replica", "rank", "host", "node", "local_gpu", "gpu", "stage", "first_layer", "last_layer", "attn_tp_rank",
    "attn_dp_rank", "moe_tp_rank", "moe_ep_rank",
)  # fmt: skip


def rows(deployment: Deployment) -> list[dict[str, str | int]]:
    """One row per GPU, by replica and rank."""
    result = []
    for instance in deployment.instances:
        for seat in instance.seats:
            record = seat.record
            row: dict[str, str | int] = {"rank": seat.rank, "host": deployment.host(record.node)}
            result.append({name: row.get(name, getattr(record, name, "")) for name in COLUMNS})
    return result


def csv_files(deployment: Deployment) -> list[ExportFile]:
    """The table as CSV; a column names the plan."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, "plan"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "plan": deployment.short_digest} for row in rows(deployment))
    return [ExportFile("ranks.csv", text.getvalue())]


def jsonl_files(deployment: Deployment) -> list[ExportFile]:
    """The table as JSON lines, with the experts of every MoE layer."""
    lines = []
    table = iter(rows(deployment))
    for instance in deployment.instances:
        for seat in instance.seats:
            row = next(table)
            lines.append(json.dumps({**row, "experts": seat.record.experts, "plan": deployment.short_digest}) + "\n")
    return [ExportFile("ranks.jsonl", "".join(lines))]
