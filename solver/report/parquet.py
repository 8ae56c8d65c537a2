"""The GPU-to-shard map as a Parquet file: typed columns, written in row groups while the records stream by.

Ranks of a symmetry class hold the same experts and sequences. They are converted once per row group and taken by index,
and a row group ends when its lists are long enough, so that memory stays bounded whatever the size of the map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from importlib import import_module, util
from types import ModuleType
from typing import BinaryIO, TypeVar

from solver.errors import ReportError
from solver.expansion import GpuRecord

MAX_ROWS = 16384
"""Rows of a row group."""
MAX_VALUES = 2**21
"""Experts and sequences of a row group, counted as often as rows hold them."""
NUMBERS = tuple(field.name for field in fields(GpuRecord))[:-2]
"""Columns of one whole number each."""
Held = TypeVar("Held", dict[int, tuple[int, ...]], tuple[tuple[int, ...], ...])


def check_parquet() -> None:
    """Refuse before any work is done.

    Raises
    ------
    ReportError
        pyarrow is not installed.
    """
    if util.find_spec("pyarrow") is None:
        raise ReportError(
            "a Parquet file needs pyarrow: pip install 'shardwright[parquet]', or write --format jsonl or csv"
        )


def write_parquet(records: Iterable[GpuRecord], file: BinaryIO) -> None:
    """Write one row per record.

    Columns: the whole numbers of :class:`~solver.plan.GpuRecord` as int32; `experts`, a map from decoder layer to the
    list of its logical experts; `sequences`, a list per micro-batch.

    Raises
    ------
    ReportError
        pyarrow is not installed.
    """
    check_parquet()
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    numbers = arrow.list_(arrow.int32())
    schema = arrow.schema(
        [(name, arrow.int32()) for name in NUMBERS]
        + [("experts", arrow.map_(arrow.int32(), numbers)), ("sequences", arrow.list_(numbers))]
    )
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for rows in _row_groups(records):
            plain = [arrow.array([getattr(row, name) for row in rows], arrow.int32()) for name in NUMBERS]
            experts = _taken(arrow, [row.experts for row in rows], schema.field("experts").type)
            sequences = _taken(arrow, [row.sequences for row in rows], schema.field("sequences").type)
            table = arrow.Table.from_arrays([*plain, experts, sequences], schema=schema)
            writer.write_table(table, row_group_size=MAX_ROWS)


def _row_groups(records: Iterable[GpuRecord]) -> Iterator[list[GpuRecord]]:
    """Records in groups of at most `MAX_ROWS` rows and, one row aside, `MAX_VALUES` values."""
    rows: list[GpuRecord] = []
    sizes: dict[int, int] = {}
    values = 0
    for record in records:
        rows.append(record)
        for key, lists in ((id(record.experts), record.experts.values()), (id(record.sequences), record.sequences)):
            if key not in sizes:  # of an object that a row keeps alive until the group ends
                sizes[key] = sum(map(len, lists))
            values += sizes[key]
        if len(rows) >= MAX_ROWS or values >= MAX_VALUES:
            yield rows
            rows, sizes, values = [], {}, 0
    if rows:
        yield rows


def _taken(arrow: ModuleType, held: list[Held], kind: object) -> object:
    """Arrow array of what the rows hold; what several rows share is converted once."""
    distinct = {id(item): item for item in held}
    position = {key: i for i, key in enumerate(distinct)}
    values = [list(item.items()) if isinstance(item, dict) else item for item in distinct.values()]
    taken: object = arrow.array(values, kind).take(arrow.array([position[id(item)] for item in held], arrow.int32()))
    return taken
