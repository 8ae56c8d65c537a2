"""The GPU-to-shard map as lines of text: JSON lines, CSV, and a table for people. All of them stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields

from solver.deployment import InstanceGroup
from solver.plan import GpuRecord
from solver.report.terminal import compact

Lines = Callable[[Iterable[GpuRecord]], Iterator[str]]

TABLE_COLUMNS = (
    ("gpu", 7), ("node", 6), ("local", 5), ("replica", 7), ("stage", 5), ("layers", 9), ("attn tp", 7), ("attn dp", 7),
    ("moe tp", 6), ("moe ep", 6),
)  # fmt: skip


def experts_text(experts: dict[int, tuple[int, ...]]) -> str:
    """Experts by layer, equal neighbours joined: ``0-15:0-3 7;16:4-7``."""
    parts: list[tuple[list[int], tuple[int, ...]]] = []
    for layer, held in experts.items():
        if parts and parts[-1][1] == held:
            parts[-1][0].append(layer)
        else:
            parts.append(([layer], held))
    return ";".join(f"{compact(layers)}:{compact(held)}" for layers, held in parts)


def sequences_text(sequences: tuple[tuple[int, ...], ...]) -> str:
    """Sequences by micro-batch: ``0-3|4-7``."""
    return "|".join(compact(sorted(held)) for held in sequences)


def jsonl(records: Iterable[GpuRecord]) -> Iterator[str]:
    """One JSON object per line."""
    for record in records:
        yield json.dumps(asdict(record), separators=(",", ":")) + "\n"


def csv(records: Iterable[GpuRecord]) -> Iterator[str]:
    """A header and one row per GPU. No cell needs quotes: lists use spaces, ``:``, ``;`` and ``|``."""
    names = [field.name for field in fields(GpuRecord)]
    yield ",".join(names) + "\n"
    for record in records:
        cells = [getattr(record, name) for name in names[:-2]]
        cells += [experts_text(record.experts), sequences_text(record.sequences)]
        yield ",".join(str(cell) for cell in cells) + "\n"


def table(records: Iterable[GpuRecord]) -> Iterator[str]:
    """Aligned columns; experts and sequences, which may be long, come last."""
    yield " ".join(name.rjust(width) for name, width in TABLE_COLUMNS) + "  experts per layer; sequences\n"
    for record in records:
        layers = f"{record.first_layer}-{record.last_layer}"
        cells = (
            record.gpu, record.node, record.local_gpu, record.replica, record.stage, layers, record.attn_tp_rank,
            record.attn_dp_rank, record.moe_tp_rank, record.moe_ep_rank,
        )  # fmt: skip
        row = " ".join(str(cell).rjust(width) for cell, (_, width) in zip(cells, TABLE_COLUMNS, strict=True))
        yield f"{row}  {experts_text(record.experts) or 'none'}; {sequences_text(record.sequences) or 'none'}\n"


def deployed(form: str, records: Iterable[tuple[InstanceGroup, int, GpuRecord]]) -> Iterator[str]:
    """The same formats for a deployment: cluster and pool come first, `replica` counts the instances of a group."""
    is_first = True
    for group, _, record in records:
        lines = list(FORMATS[form]([record]))
        if form == "jsonl":
            yield json.dumps({"cluster": group.size.site, "role": group.size.role, **asdict(record)}) + "\n"
            continue
        header, line = lines
        if is_first:
            yield f"cluster,role,{header}" if form == "csv" else f"{'cluster':>7} {'role':>10} {header}"
            is_first = False
        site, role = group.size.site, group.size.role
        yield f"{site},{role},{line}" if form == "csv" else f"{site:>7} {role:>10} {line}"


FORMATS: dict[str, Lines] = {"table": table, "jsonl": jsonl, "csv": csv}
"""Format name -> lines of the map."""
