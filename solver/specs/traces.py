"""A trace of request lengths -> a few scenarios that stand for it, with the error of doing so.

The reduction is deterministic: one cell holds all requests; again and again the one cut (of one cell, along input or
output length, between two neighbouring lengths) that lowers the squared error most is made, until there are as many
cells as asked. Both lengths count relative to their mean, so that neither outweighs the other by its unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from solver.errors import SpecError
from solver.specs.files import decode, parse_json, read_bytes, shown
from solver.specs.scenarios import MAX_SCENARIOS, Cell, Reduction, Scenario, Scenarios
from solver.specs.tables import csv_lines

MAX_TRACE_BYTES = 256 * 2**20
MAX_REQUESTS = 2_000_000
MAX_LENGTH = 2**24
"""Tokens of one request, in or out; the same limit as in a workload."""
MAX_LINE = 1_000_000
"""Characters of one line of JSON: requests have a hundred."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LengthTrace:
    """Lengths of recorded requests: two arrays [requests], tokens."""

    source: str
    isl: Ints
    osl: Ints


# --- reading ------------------------------------------------------------------------------------------------------


def read_trace(path: str | Path) -> LengthTrace:
    """Lengths of a CSV file (first line names the columns) or of JSON lines (one object each): `isl` and `osl`.

    Other columns and keys are ignored. The file's name decides: ``.jsonl`` and ``.ndjson`` are JSON lines.

    Raises
    ------
    SpecError
        Missing, larger than 256 MiB or 2,000,000 requests, not UTF-8, or a line without two whole numbers from 1 to
        2^24; one sentence with the line.
    """
    where = shown(str(path), 200)
    text = decode(read_bytes(path, MAX_TRACE_BYTES), where)
    rows = _json_rows(text, where) if Path(path).suffix.lower() in (".jsonl", ".ndjson") else _csv_rows(text, where)
    lengths: list[tuple[int, int]] = []
    for line, cells in rows:
        if len(lengths) == MAX_REQUESTS:
            raise SpecError(f"{where} has more than {MAX_REQUESTS:,} requests; take a sample of them")
        lengths.append((_length(cells, "isl", where, line), _length(cells, "osl", where, line)))
    if not lengths:
        raise SpecError(f"{where} holds no request: give one line each with the columns isl and osl")
    table = np.array(lengths, dtype=np.int64)
    return LengthTrace(Path(path).name[:200], table[:, 0], table[:, 1])


def _csv_rows(text: str, where: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    lines = csv_lines(text, where)
    first = next(lines, None)
    if first is None:
        return  # no line, no request: the caller says so
    header = [name.lower() for name in first[1]]
    for name in ("isl", "osl"):
        if header.count(name) != 1:
            raise SpecError(
                f"{where} must name the column {name} once in its first line, which is {shown(','.join(first[1]))}"
            )
    for number, cells in lines:
        yield number, dict(zip(header, cells, strict=True))


def _json_rows(text: str, where: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        if len(line) > MAX_LINE:
            raise SpecError(f"{where}, line {number} has {len(line):,} characters: give one request a line")
        value = parse_json(line, f"{where}, line {number}")
        if not isinstance(value, dict):
            raise SpecError(f"{where}, line {number}: expected an object with isl and osl, got {type(value).__name__}")
        yield number, value


def _length(cells: Mapping[str, object], name: str, where: str, line: int) -> int:
    given = cells.get(name)
    value = given
    if isinstance(given, str):
        value = int(given) if given.isascii() and given.isdigit() and len(given) <= 12 else None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_LENGTH:
        what = "is missing" if name not in cells else f"is {shown(given)}"
        raise SpecError(f"{where}, line {line}: {name} {what}; give a whole number of tokens from 1 to {MAX_LENGTH:,}")
    return value


# --- reducing -----------------------------------------------------------------------------------------------------


def scenarios_of_trace(trace: LengthTrace, num_scenarios: int) -> Scenarios:
    """At most `num_scenarios` scenarios weighted by their requests (fewer when the trace has fewer different shapes).

    What is lost is in ``Scenarios.reduction``.

    Raises
    ------
    SpecError
        The number is not from 1 to 32.
    """
    if not 1 <= num_scenarios <= MAX_SCENARIOS:
        raise SpecError(f"{num_scenarios} scenarios: give a number from 1 to {MAX_SCENARIOS}")
    lengths = np.stack([trace.isl, trace.osl], axis=1)
    scale = len(lengths) / lengths.sum(axis=0).astype(np.float64)
    cells = [_Cut.of(np.arange(len(lengths)), lengths, scale)]
    while len(cells) < num_scenarios:
        best = max(range(len(cells)), key=lambda i: (cells[i].gain, -i))
        if cells[best].gain <= 0:
            break
        halves = cells[best].halves
        cells[best : best + 1] = [_Cut.of(half, lengths, scale) for half in halves]
    ordered = sorted(cells, key=lambda cell: tuple(lengths[cell.members].mean(axis=0)))
    described = tuple(_cell(lengths[cell.members], i) for i, cell in enumerate(ordered))
    reduction = _reduction(trace, lengths, [cell.members for cell in ordered], described)
    scenarios = tuple(Scenario(name=c.name, weight=c.requests, isl=c.isl, osl=c.osl) for c in described)
    return Scenarios(source=f"trace {trace.source}", scenario=scenarios, reduction=reduction)


@dataclass(frozen=True)
class _Cut:
    """A cell and its best cut."""

    members: Ints
    gain: float
    """By how much the cut lowers the squared error; 0 when all members are alike."""
    halves: tuple[Ints, ...]

    @staticmethod
    def of(members: Ints, lengths: Ints, scale: npt.NDArray[np.float64]) -> _Cut:
        """The cut of these members that lowers the squared error most; the first of equal ones, input before output."""
        best: tuple[float, tuple[Ints, ...]] = (0.0, ())
        values = lengths[members] * scale
        count = len(members)
        for axis in (0, 1):
            order = np.argsort(lengths[members, axis], kind="stable")
            ordered = values[order]
            left = np.cumsum(ordered, axis=0)[:-1]
            right = ordered.sum(axis=0) - left
            size = np.arange(1, count, dtype=np.float64)[:, None]
            # Splitting lowers the squared error by n_l * n_r / n * |mean_l - mean_r|^2, summed over both lengths.
            gain = (size * (count - size) / count * (left / size - right / (count - size)) ** 2).sum(axis=1)
            gain = np.where(np.diff(lengths[members, axis][order]) > 0, gain, 0.0)
            if count > 1 and float(gain.max()) > best[0]:
                at = int(np.argmax(gain)) + 1
                best = float(gain[at - 1]), (members[order[:at]], members[order[at:]])
        return _Cut(members, best[0], best[1])


def _cell(lengths: Ints, index: int) -> Cell:
    requests = len(lengths)
    tokens_in, tokens_out = (int(total) for total in lengths.sum(axis=0))
    low, high = lengths.min(axis=0), lengths.max(axis=0)
    isl, osl = -(-tokens_in // requests), -(-tokens_out // requests)
    return Cell(
        name=f"s{index}",
        requests=requests,
        isl=isl,
        osl=osl,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        isl_min=int(low[0]),
        isl_max=int(high[0]),
        osl_min=int(low[1]),
        osl_max=int(high[1]),
    )


def _reduction(trace: LengthTrace, lengths: Ints, members: list[Ints], cells: tuple[Cell, ...]) -> Reduction:
    totals = [int(total) for total in lengths.sum(axis=0)]
    away = np.zeros(2, dtype=np.int64)
    for index, cell in zip(members, cells, strict=True):
        away += np.abs(lengths[index] - np.array([cell.isl, cell.osl])).sum(axis=0)
    return Reduction(
        source=trace.source,
        requests=len(lengths),
        tokens_in=totals[0],
        tokens_out=totals[1],
        cells=cells,
        isl_spread=float(away[0]) / totals[0],
        osl_spread=float(away[1]) / totals[1],
        extra_in=sum(cell.requests * cell.isl for cell in cells) - totals[0],
        extra_out=sum(cell.requests * cell.osl for cell in cells) - totals[1],
    )
