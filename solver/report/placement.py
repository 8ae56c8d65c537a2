"""The GPU-to-shard map as lines of text: JSON lines, CSV, and a table for people. All of them stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from itertools import groupby
from typing import Generic, TypeVar

from solver.deployment import InstanceGroup
from solver.expansion import GpuRecord
from solver.report.terminal import compact

T = TypeVar("T")
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


class _Texts(Generic[T]):
    """Texts of what records share: ranks of a symmetry class hold one and the same object, which is spelt out once."""

    MOST = 2**16

    def __init__(self, spell: Callable[[T], str]) -> None:
        self._spell = spell
        self._known: dict[int, tuple[T, str]] = {}

    def __call__(self, held: T) -> str:
        found = self._known.get(id(held))
        if found is None:
            if len(self._known) >= self.MOST:
                self._known.clear()
            found = self._known[id(held)] = (held, self._spell(held))  # kept alive, so that its id stays its own
        return found[1]


def jsonl(records: Iterable[GpuRecord]) -> Iterator[str]:
    """One JSON object per line."""
    names = [field.name for field in fields(GpuRecord)][:-2]
    row = "{{" + ",".join(f'"{name}":{{0.{name}}}' for name in names) + ',"experts":{1},"sequences":{2}}}\n'
    experts, sequences = _Texts(_json), _Texts(_json)
    for record in records:
        yield row.format(record, experts(record.experts), sequences(record.sequences))


def _json(held: object) -> str:
    return json.dumps(held, separators=(",", ":"))


def csv(records: Iterable[GpuRecord]) -> Iterator[str]:
    """A header and one row per GPU. No cell needs quotes: lists use spaces, ``:``, ``;`` and ``|``."""
    names = [field.name for field in fields(GpuRecord)]
    yield ",".join(names) + "\n"
    row = ",".join(f"{{0.{name}}}" for name in names[:-2]) + ",{1},{2}\n"
    experts, sequences = _Texts(experts_text), _Texts(sequences_text)
    for record in records:
        yield row.format(record, experts(record.experts), sequences(record.sequences))


def table(records: Iterable[GpuRecord]) -> Iterator[str]:
    """Aligned columns; experts and sequences, which may be long, come last."""
    yield " ".join(name.rjust(width) for name, width in TABLE_COLUMNS) + "  experts per layer; sequences\n"
    experts, sequences = _Texts(experts_text), _Texts(sequences_text)
    for record in records:
        layers = f"{record.first_layer}-{record.last_layer}"
        cells = (
            record.gpu, record.node, record.local_gpu, record.replica, record.stage, layers, record.attn_tp_rank,
            record.attn_dp_rank, record.moe_tp_rank, record.moe_ep_rank,
        )  # fmt: skip
        row = " ".join(str(cell).rjust(width) for cell, (_, width) in zip(cells, TABLE_COLUMNS, strict=True))
        yield f"{row}  {experts(record.experts) or 'none'}; {sequences(record.sequences) or 'none'}\n"


def deployed(form: str, records: Iterable[tuple[InstanceGroup, int, GpuRecord]]) -> Iterator[str]:
    """The same formats for a deployment: cluster and pool come first, `replica` counts the instances of a group."""
    is_first = True
    for size, same in groupby(records, key=lambda entry: entry[0].size):
        lines = FORMATS[form](record for _, _, record in same)
        if form == "jsonl":
            for line in lines:
                yield f'{{"cluster":{size.site},"role":"{size.role}",{line[1:]}'
            continue
        header = next(iter(lines))
        if is_first:
            yield f"cluster,role,{header}" if form == "csv" else f"{'cluster':>7} {'role':>10} {header}"
        is_first = False
        for line in lines:
            yield f"{size.site},{size.role},{line}" if form == "csv" else f"{size.site:>7} {size.role:>10} {line}"


FORMATS: dict[str, Lines] = {"table": table, "jsonl": jsonl, "csv": csv}
"""Format name -> lines of the map."""
