"""Results as tables: JSON lines always, Parquet where pyarrow is installed; and the report with its pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from solver.errors import ReportError
from solver.report.sweep_page import sweep_markdown
from solver.report.sweep_plots import Picture, pictures
from solver.sweep.store import Store
from solver.swept import Answer, Outcome, Row, Scalar, Swept

if TYPE_CHECKING:
    import pyarrow

Cell = Scalar | tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """A column of the tables: its name, its type in Parquet, and its cell of a row."""

    name: str
    kind: str
    cell: Callable[[Row], Cell]


def _of_outcome(name: str, kind: str, read: Callable[[Outcome], Cell]) -> Column:
    return Column(name, kind, lambda row: read(row.outcome))


def _of_answer(name: str, kind: str, read: Callable[[Answer], Cell]) -> Column:
    """A number of the plan; None in a row without one."""
    return Column(name, kind, lambda row: None if row.outcome.answer is None else read(row.outcome.answer))


COLUMNS: tuple[Column, ...] = (
    _of_outcome("digest", "string", lambda o: o.digest),
    _of_outcome("status", "string", lambda o: o.status),
    _of_outcome("reason", "string", lambda o: "; ".join(o.reasons)),
    _of_answer("objective_name", "string", lambda a: a.objective),
    _of_answer("objective_value", "double", lambda a: a.value),
    _of_answer("objective_bound", "double", lambda a: a.bound),
    _of_answer("objective_unit", "string", lambda a: a.unit),
    _of_answer("gap", "double", lambda a: a.gap),
    _of_answer("strategy", "string", lambda a: a.strategy.full_label),
    _of_answer("label", "string", lambda a: a.strategy.label),
    *(
        _of_answer(degree, "int64", lambda a, degree=degree: getattr(a.strategy, degree))  # type: ignore[misc]
        for degree in ("attn_tp", "attn_dp", "moe_tp", "moe_ep", "pp", "replicas", "batch", "micro_batches")
    ),
    _of_answer("gpus_used", "int64", lambda a: a.metrics.gpus_used),
    _of_answer("ttft_ns", "int64", lambda a: a.metrics.ttft_ns),
    _of_answer("tpot_ns", "int64", lambda a: a.metrics.tpot_ns),
    _of_answer("request_latency_ns", "int64", lambda a: a.metrics.request_latency_ns),
    _of_answer("throughput_tokens_per_s", "double", lambda a: a.metrics.throughput_tokens_per_s),
    _of_answer("efficiency_tokens_per_s_per_gpu", "double", lambda a: a.metrics.efficiency_tokens_per_s_per_gpu),
    _of_answer("active_sequences", "int64", lambda a: a.metrics.active_sequences),
    _of_answer("memory_kib", "int64", lambda a: a.memory_kib),
)
"""What every sweep tells of a point; the swept words stand before them."""


def columns_of(swept: Swept) -> tuple[Column, ...]:
    """Columns of a sweep: the index, every word that its file gives, then :data:`COLUMNS`."""
    words = dict.fromkeys(word for row in swept.rows for word in row.words)
    return (
        Column("index", "int64", lambda row: row.index),
        *(Column(word, _kind(swept, word), lambda row, word=word: row.words.get(word)) for word in words),  # type: ignore[misc]
        *COLUMNS,
    )


def _kind(swept: Swept, word: str) -> str:
    """Parquet type of a word: that of its values, which the question has validated."""
    values = [row.words[word] for row in swept.rows if row.words.get(word) is not None]
    if values and all(isinstance(value, tuple) for value in values):
        return "list"
    if values and all(isinstance(value, int) for value in values):
        return "int64"
    return "double" if values and all(isinstance(value, int | float) for value in values) else "string"


def jsonl(swept: Swept) -> bytes:
    """One JSON object a line, one line a point."""
    columns = columns_of(swept)
    lines = (json.dumps({column.name: column.cell(row) for column in columns}) + "\n" for row in swept.rows)
    return "".join(lines).encode()


def parquet(swept: Swept) -> bytes:
    """The same as Parquet.

    Raises
    ------
    ReportError
        pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ReportError("results.parquet needs pyarrow: install shardwright[parquet]") from error
    columns = columns_of(swept)
    types: dict[str, pyarrow.DataType] = {
        "string": pyarrow.string(), "double": pyarrow.float64(), "int64": pyarrow.int64(),
        "list": pyarrow.list_(pyarrow.string()),
    }  # fmt: skip
    arrays = [pyarrow.array([column.cell(row) for row in swept.rows], types[column.kind]) for column in columns]
    table = pyarrow.table(arrays, names=[column.name for column in columns])
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue()


def write_tables(store: Store, swept: Swept, plot: tuple[str, ...] = ()) -> Swept:
    """Everything that is made of the results; what needs an extra that is not installed is left out and noted."""
    files: list[str] = []
    notes: list[str] = []

    def write(name: str, make: Callable[[], bytes]) -> None:
        try:
            content = make()
        except ReportError as missing:
            notes.append(str(missing))
            return
        store.write(name, content)
        files.append(name)

    write("results.jsonl", lambda: jsonl(swept))
    write("results.parquet", lambda: parquet(swept))
    drawn: tuple[Picture, ...] = ()
    try:
        drawn = pictures(swept, plot)
    except ReportError as missing:
        notes.append(str(missing))
    for picture in drawn:
        write(f"{picture.name}.svg", lambda picture=picture: picture.svg.encode())  # type: ignore[misc]
        write(f"{picture.name}.png", lambda picture=picture: picture.png)  # type: ignore[misc]
    write("report.md", lambda: sweep_markdown(swept, drawn).encode())
    return replace(swept, files=tuple(files), notes=tuple(notes))
