"""A CSV of measured deployments, or of deployments to be predicted -> :class:`Measurement` records.

One row is one deployment under one load: the LLM, the hardware, the engine, the precision, the request lengths, the
concurrency, the degrees, and, where they were measured, TTFT and TPOT in milliseconds.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from solver.errors import SpecError
from solver.specs.catalog import MAX_GPUS, entry_name, load_cluster, load_llm, sized, whole_size
from solver.specs.files import decode, read_bytes, shown
from solver.specs.hardware import Cluster
from solver.specs.llm import Llm
from solver.specs.precision import PRECISIONS, in_precision, storage_format
from solver.specs.problem import ENGINES
from solver.specs.tables import csv_lines
from solver.specs.workload import MAX_ADMISSION_STEPS, MAX_SEQUENCES, Speculative

MAX_MEASUREMENTS_BYTES = 64 * 2**20
MAX_ROWS = 200_000
MAX_TEXT = 300
MAX_TOKENS = 2**24
MAX_MS = 10**9

TEXTS = ("id", "llm", "system", "engine", "precision")
COUNTS: dict[str, int] = {
    "isl": MAX_TOKENS,
    "osl": MAX_TOKENS,
    "concurrency": MAX_SEQUENCES,
    "attn_tp": MAX_GPUS,
    "attn_dp": MAX_GPUS,
    "moe_tp": MAX_GPUS,
    "moe_ep": MAX_GPUS,
    "gpus": MAX_GPUS,
}
"""Columns of whole numbers, and the largest that each may hold."""
FILTERS = ("llm", "system", "engine", "precision")
"""Columns by which rows are chosen."""
REQUIRED = (*TEXTS, *COUNTS)
"""Columns that every file must have; README of the catalog lists the optional ones."""

_WHOLE = re.compile(r"([0-9]{1,12})(?:\.0*)?")


@dataclass(frozen=True)
class Measurement:
    """One measured deployment. Times are absent where the row is only to be predicted."""

    id: str
    llm: str
    """Catalog name, Hugging Face id, or path."""
    system: str
    """Catalog name or alias of the cluster, such as ``h200_sxm``."""
    engine: str
    engine_version: str | None
    precision: str
    """One of :data:`solver.specs.precision.PRECISIONS`."""
    gemm_dtype: str | None
    moe_dtype: str | None
    isl: int
    osl: int
    concurrency: int
    """Requests in flight."""
    attn_tp: int
    attn_dp: int
    moe_tp: int
    """1 for a dense LLM, as `moe_ep`."""
    moe_ep: int
    pp: int
    gpus: int
    ttft_ns: int | None
    tpot_ns: int | None
    speculative: Speculative | None = None
    admission_steps: float | None = None
    """Mean decode steps that a new prompt waits before the engine takes it in; absent means not known."""
    prefix_hit_rate: float = 0.0
    """Share of every prompt whose KV was cached already."""


def read_measurements(path: str | Path) -> tuple[Measurement, ...]:
    """The rows of a CSV file, in its order. Columns that no field asks for are ignored.

    Columns: `id`, `llm`, `system`, `engine`, `precision`, `isl`, `osl`, `concurrency`, `attn_tp`, `attn_dp`, `moe_tp`,
    `moe_ep`, `gpus`; optional are `engine_version`, `gemm_dtype`, `moe_dtype`, `pp` (1), `measured_ttft_ms`,
    `measured_tpot_ms`, `prefix_hit_rate` (0), `admission_steps`, and `speculative_draft` with `speculative_accepted`.
    An empty cell of an optional column means that it is not known. Times are rounded to whole nanoseconds.

    Raises
    ------
    SpecError
        The file is missing, larger than 64 MiB or 200,000 rows, not UTF-8 or not CSV, lacks a column, gives an id
        twice, or has a cell that is not what its column holds; the sentence names the line and the column.
    """
    where = str(path)
    text = decode(read_bytes(path, MAX_MEASUREMENTS_BYTES), where)
    rows: list[Measurement] = []
    lines: dict[str, int] = {}
    for row in _rows(text, where):
        measurement = _measurement(row)
        if measurement.id in lines:
            raise row.fault("id", f"is already the id of line {lines[measurement.id]}", "give every row its own id")
        if len(rows) == MAX_ROWS:
            raise SpecError(f"{where} has more than {MAX_ROWS:,} rows; split the file")
        lines[measurement.id] = row.line
        rows.append(measurement)
    if not rows:
        raise SpecError(f"{where} has no row below its header; nothing is measured")
    return tuple(rows)


def served_llm(measurement: Measurement) -> Llm:
    """The LLM of a measurement with the data types of the deployment (:func:`solver.specs.precision.in_precision`).

    The KV cache is fp8 on hardware with an fp4 unit and in NVIDIA's own checkpoints (``nvidia/...``, whose quantisation
    config says so), unless the precision has 16 bits; otherwise bf16. Scales of fp8 are
    per block where the LLM is published so, or where it has experts and the row says ``fp8_block``: engines quantise a
    dense LLM with one scale per channel unless its checkpoint has blocks. It has no `max_context`: engines are told to
    serve longer requests, and the row says that they did.

    Raises
    ------
    SpecError
        The LLM, the system or the precision is not known.
    """
    blocks = "fp8_block" in (measurement.precision, measurement.gemm_dtype, measurement.moe_dtype)
    return _served_llm(measurement.llm, measurement.system, measurement.precision, blocks)


def served_cluster(measurement: Measurement) -> Cluster:
    """The system of a measurement with its GPUs; a part of several nodes is rounded up to whole nodes.

    Raises
    ------
    CatalogError
        The system is not in the catalog.
    """
    return _served_cluster(measurement.system, measurement.gpus)


def contradiction(row: Measurement) -> str | None:
    """What is wrong with a row's engine or degrees, as one sentence; None when nothing is."""
    stage = row.attn_tp * row.attn_dp
    if row.engine not in ENGINES:
        return f"row {shown(row.id)}: the engine {shown(row.engine)} is not known; take one of {', '.join(ENGINES)}"
    if row.moe_tp * row.moe_ep not in (1, stage):
        return (
            f"row {shown(row.id)}: moe_tp * moe_ep = {row.moe_tp * row.moe_ep}, but attn_tp * attn_dp = {stage}; make "
            "both equal, or moe_tp = moe_ep = 1 for a dense LLM"
        )
    if stage > 1 and row.moe_tp * row.moe_ep == 1 and served_llm(row).is_moe:
        return (
            f"row {shown(row.id)}: moe_tp = moe_ep = 1, but {shown(row.llm)} has experts on {stage} GPUs a stage; give "
            "moe_tp * moe_ep = attn_tp * attn_dp"
        )
    if row.gpus % (stage * row.pp):
        return (
            f"row {shown(row.id)}: gpus = {row.gpus} is no multiple of attn_tp * attn_dp * pp = {stage * row.pp}; give "
            "the GPUs of whole replicas"
        )
    return None


def chosen(rows: Sequence[Measurement], filters: Sequence[str]) -> tuple[Measurement, ...]:
    """Rows that match every ``name=value`` text, as in ``system=h200_sxm``.

    Raises
    ------
    SpecError
        A malformed text, a name that is no column, or no row left.
    """
    kept = tuple(rows)
    for text in filters:
        name, _, value = (part.strip() for part in text.partition("="))
        if name not in FILTERS or not value:
            raise SpecError(f"--only {shown(text)}: expected name=value with a name of {', '.join(FILTERS)}")
        kept = tuple(row for row in kept if str(getattr(row, name)) == value)
        if not kept:
            known = sorted({str(getattr(row, name)) for row in rows})[:8]
            raise SpecError(f"--only {shown(text)}: no row has it; {name} is one of {', '.join(known)}")
    return kept


@functools.lru_cache(maxsize=1024)
def _served_llm(name: str, system: str, precision: str, fp8_blocks: bool) -> Llm:
    llm = load_llm(entry_name("llm", name) or name)
    small_cache = "fp4" in load_cluster(system).gpu.peak or name.lower().startswith("nvidia/")
    small_cache = small_cache and storage_format(precision) not in ("bf16", "fp16")
    blocks = fp8_blocks and (llm.is_moe or precision == "fp8_block")
    served = in_precision(llm, precision, kv="fp8" if small_cache else "bf16", fp8_blocks=blocks)
    return served.model_copy(update={"max_context": None})


@functools.lru_cache(maxsize=1024)
def _served_cluster(system: str, gpus: int) -> Cluster:
    cluster = load_cluster(system)
    return sized(cluster, whole_size(cluster, gpus))


# --- reading one row ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """The cells of one line by column, stripped."""

    cells: Mapping[str, str]
    where: str
    line: int

    def fault(self, column: str, problem: str, repair: str) -> SpecError:
        """The error of one cell."""
        return SpecError(f"{self.where}, line {self.line}: {column} {shown(self.cells[column])} {problem}; {repair}")

    def text(self, column: str) -> str | None:
        """The cell; None when it is empty or the column is absent."""
        cell = self.cells.get(column) or None
        if cell is not None and len(cell) > MAX_TEXT:
            raise self.fault(column, f"has {len(cell)} characters, more than {MAX_TEXT}", "shorten it")
        return cell

    def needed(self, column: str) -> str:
        """The cell of a column that must not be empty."""
        cell = self.text(column)
        if cell is None:
            raise self.fault(column, "is empty", "fill the cell or delete the row")
        return cell

    def count(self, column: str, high: int) -> int | None:
        """A whole number from 1 to `high`; None when absent. A trailing ``.0`` is tolerated."""
        cell = self.text(column)
        if cell is None:
            return None
        match = _WHOLE.fullmatch(cell)
        value = int(match[1]) if match else 0
        if not 1 <= value <= high:
            raise self.fault(column, f"is not a whole number from 1 to {high}", "correct the cell or delete the row")
        return value

    def number(self, column: str, high: float, repair: str, *, zero: bool = False) -> float | None:
        """A number above 0 (or from 0, with `zero`) up to `high`; None when absent."""
        cell = self.text(column)
        if cell is None:
            return None
        try:
            value = math.nan if "_" in cell or not cell.isascii() else float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not 0 <= value <= high or (value == 0 and not zero):
            raise self.fault(column, f"is not a number {'from' if zero else 'above'} 0 and up to {high:g}", repair)
        return value

    def nanoseconds(self, column: str) -> int | None:
        """A time in milliseconds as whole nanoseconds; None when absent."""
        value = self.number(column, MAX_MS, "correct the cell, or leave it empty where nothing was measured")
        return None if value is None else max(1, round(value * 10**6))


def _rows(text: str, where: str) -> Iterator[_Row]:
    """The rows below the header; lines without any cell are skipped."""
    lines = csv_lines(text, where)
    first = next(lines, None)
    if first is None:
        raise SpecError(f"{where} is empty; the first line must name the columns {', '.join(REQUIRED)}")
    header = _header(first[1], where)
    for number, cells in lines:
        yield _Row(dict(zip(header, cells, strict=True)), where, number)


def _header(columns: list[str], where: str) -> list[str]:
    """The names of the columns, once all that are needed are there, each once."""
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        needed = ", ".join(REQUIRED)
        raise SpecError(f"{where} lacks the columns {', '.join(missing)}; its first line must name {needed}")
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise SpecError(f"{where} has the column {shown(twice[0])} twice; delete one of them")
    return columns


def _measurement(row: _Row) -> Measurement:
    """One row as a record."""
    texts = {column: row.needed(column) for column in TEXTS}
    if texts["precision"].lower() not in PRECISIONS:
        raise row.fault("precision", "is not known", f"take one of {', '.join(PRECISIONS)}")
    counts: dict[str, int] = {}
    for column, high in COUNTS.items():
        row.needed(column)
        counts[column] = row.count(column, high) or 1
    return Measurement(
        id=texts["id"],
        llm=texts["llm"],
        system=texts["system"].lower(),
        engine=texts["engine"].lower(),
        engine_version=row.text("engine_version"),
        precision=texts["precision"].lower(),
        gemm_dtype=row.text("gemm_dtype"),
        moe_dtype=row.text("moe_dtype"),
        **counts,
        pp=row.count("pp", MAX_GPUS) or 1,
        ttft_ns=row.nanoseconds("measured_ttft_ms"),
        tpot_ns=row.nanoseconds("measured_tpot_ms"),
        speculative=_speculative(row),
        admission_steps=row.number(
            "admission_steps", MAX_ADMISSION_STEPS, "give the mean decode steps a prompt waits", zero=True
        ),
        prefix_hit_rate=row.number("prefix_hit_rate", 0.999, "give the share of prompts that was cached", zero=True)
        or 0.0,
    )


def _speculative(row: _Row) -> Speculative | None:
    """Declared speculative decoding; None without it (both cells empty, or a draft of 0)."""
    repair = "give both speculative_draft and speculative_accepted, or neither"
    draft = row.number("speculative_draft", 16, "give the tokens proposed per step, from 0 to 16", zero=True)
    accepted = row.number("speculative_accepted", 16, "give the mean number of proposed tokens kept", zero=True)
    if draft is None and accepted is None:
        return None
    if draft is None or (accepted is None and draft > 0):
        present = "speculative_draft" if draft is not None else "speculative_accepted"
        raise row.fault(present, "stands alone", repair)
    if draft != int(draft):
        raise row.fault("speculative_draft", "is not a whole number of tokens", "give the tokens proposed per step")
    if accepted is not None and accepted > draft:
        raise row.fault("speculative_accepted", f"exceeds the {draft:g} tokens proposed", "correct one of both")
    return Speculative(draft=int(draft), accepted=accepted or 0.0) if draft else None
