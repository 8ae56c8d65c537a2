"""Files of measured expert loads (.csv, .json, .npy, .npz) -> :class:`ExpertLoads`.

Shape suffixes: W windows (or steps), L layers, E logical experts.
"""

from __future__ import annotations

import csv
import io
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from solver.errors import SpecError
from solver.specs.files import MAX_FILE_BYTES, decode, parse_json, read_bytes, shown
from solver.specs.llm import Llm
from solver.specs.workload import ExpertLoads

MAX_ELEMENTS = 50_000_000
"""Most numbers a load file may hold; 1000 windows of 61 layers of 256 experts are 16 million."""
MAX_LOAD_FILE_BYTES = 512 * 2**20
MAX_COUNT = 2**40
"""Most tokens per expert and layer."""
KEYS = ("loads", "logical_count")
"""Keys of a JSON object or an .npz archive that hold the loads; the second is SGLang's."""
SUFFIXES = (".csv", ".json", ".npy", ".npz")

Array = npt.NDArray[np.generic]
Counts = npt.NDArray[np.int64]


def read_loads(path: str | Path, llm: Llm | None = None) -> ExpertLoads:
    """Tokens per MoE layer and logical expert, ``[layers, experts]``.

    ``.csv``: one row per layer, comma-separated whole numbers, one optional header line. ``.json``: a table of rows, or
    an object with the key ``loads`` or ``logical_count``. ``.npz``: the array ``loads`` or ``logical_count``, others
    are ignored. ``.npy``: the array. An array ``[windows, layers, experts]`` is summed over its windows.

    Parameters
    ----------
    path : the file
    llm : when given, a file with one row per decoder layer (as SGLang records them) is cut down to the MoE layers, and
        the shape is checked

    Raises
    ------
    SpecError
        The file is missing, malformed, too large, of the wrong shape, or holds a negative, fractional or not finite
        number, or a layer without any token.
    """
    where = str(path)
    counts = _summed(read_table(path), where)
    if llm is not None:
        counts = _moe_rows(counts, llm, where)
    for layer, row in enumerate(counts):
        if not row.any():
            raise SpecError(f"{where}: all loads of row {layer} are zero (a dense layer? rows must be MoE layers)")
    return ExpertLoads.read({"source": where, "counts": counts.tolist()}, where)


def read_table(path: str | Path) -> Counts:
    """Whole numbers ``[windows, layers, experts]`` of a table file, one window where it has no such axis.

    Raises
    ------
    SpecError
        As :func:`read_loads`.
    """
    file, where = Path(path), str(path)
    suffix = file.suffix.lower()
    if suffix == ".csv":
        values = _read_csv(file, where)
    elif suffix == ".json":
        values = _read_json(file, where)
    elif suffix in (".npy", ".npz"):
        values = read_numpy(file, KEYS)
    else:
        raise SpecError(f"expert loads {where!r} must be a file that ends with one of {', '.join(SUFFIXES)}")
    return read_array(values, where)


def _read_csv(file: Path, where: str) -> Array:
    """Rows of whole numbers; the first line may be a header."""
    text = decode(read_bytes(file, MAX_FILE_BYTES * 4), where)
    try:
        rows = [row for row in csv.reader(io.StringIO(text), strict=True) if any(cell.strip() for cell in row)]
    except csv.Error as fault:
        raise SpecError(f"{where} is not CSV: {fault}") from fault
    if rows and not any(_is_number(cell) for cell in rows[0]):
        rows = rows[1:]
    values: list[list[float]] = []
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            if not _is_number(cell):
                raise SpecError(f"{where}: row {number}, column {column} is {shown(cell)}, not a number of tokens")
        values.append([float(cell) for cell in row])
    return _rectangle(values, where)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_json(file: Path, where: str) -> Array:
    """Nested lists, bare or under one of the known keys."""
    value = parse_json(decode(read_bytes(file, MAX_FILE_BYTES * 4), where), where)
    if isinstance(value, dict):
        key = next((key for key in KEYS if key in value), None)
        if key is None:
            raise SpecError(f"{where}: the JSON object needs the key {' or '.join(KEYS)}, got {shown(list(value))}")
        value = value[key]
    if not isinstance(value, list) or not value:
        raise SpecError(f"{where}: expert loads must be a list of layers, got {shown(value)}")
    if all(isinstance(row, list) and row and isinstance(row[0], list) for row in value):
        windows = [_rectangle(window, where) for window in value]
        if len({window.shape for window in windows}) > 1:
            raise SpecError(f"{where}: windows have different shapes, {shown(sorted({w.shape for w in windows}))}")
        return np.stack(windows)
    return _rectangle(value, where)


def _rectangle(rows: list[list[float]], where: str) -> Array:
    """A table ``[L, E]`` of equally long rows of numbers."""
    widths: set[int] = set()
    for number, row in enumerate(rows):
        if not isinstance(row, list):
            raise SpecError(f"{where}: row {number} must be a list of numbers, got {shown(row)}")
        for cell in row:
            if isinstance(cell, bool) or not isinstance(cell, int | float):
                raise SpecError(f"{where}: row {number} holds {shown(cell)}, not a number of tokens")
        widths.add(len(row))
    if len(widths) > 1:
        raise SpecError(f"{where}: rows have different lengths, {shown(sorted(widths))}; a full table is needed")
    return np.array(rows, dtype=np.float64).reshape(len(rows), max(widths, default=0))


def read_numpy(file: Path, keys: Sequence[str]) -> Array:
    """The array of a ``.npy`` file, or the first of `keys` in an ``.npz``, read after its header was found harmless.

    Raises
    ------
    SpecError
        Missing, malformed, too large, no array of numbers, or no such key.
    """
    where, content = str(file), io.BytesIO(read_bytes(file, MAX_LOAD_FILE_BYTES))
    if file.suffix.lower() != ".npz":
        return _read_array(content, where)
    try:
        with zipfile.ZipFile(content) as members:
            present = members.namelist()
            key = next((key for key in keys if f"{key}.npy" in present), None)
            if key is None:
                raise SpecError(f"{where}: the archive needs the array {' or '.join(keys)}, it has {shown(present)}")
            with members.open(f"{key}.npy") as member:
                return _read_array(member, where)
    except SpecError:
        raise
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as fault:
        raise SpecError(f"{where} is not a NumPy archive that can be read: {shown(str(fault), 100)}") from fault


def _read_array(stream: IO[bytes], where: str) -> Array:
    """One array in NumPy's format; object arrays, other kinds of data and absurd shapes are refused by the header."""
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise SpecError(f"{where}: NumPy format version {shown(version)} is not known")
    except SpecError:
        raise
    except (ValueError, EOFError, OSError, SyntaxError, TypeError, RecursionError, MemoryError) as fault:
        raise SpecError(f"{where} is not a NumPy array: {shown(str(fault), 100)}") from fault
    if dtype.hasobject or dtype.kind not in "iuf":
        raise SpecError(f"{where}: an array of whole numbers is needed, got the data type {dtype}")
    if any(size < 0 for size in shape):
        raise SpecError(f"{where}: the array has the impossible shape {list(shape)}")
    elements = math.prod(shape)
    if elements > MAX_ELEMENTS:
        raise SpecError(f"{where}: the array has the shape {list(shape)}, more than {MAX_ELEMENTS:,} numbers")
    if elements == 0:
        return np.zeros(shape)
    wanted = elements * dtype.itemsize
    data = stream.read(wanted)
    if len(data) < wanted:
        raise SpecError(f"{where} ends early: the shape {list(shape)} needs {wanted} bytes, there are {len(data)}")
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")


def read_array(values: Array, where: str) -> Counts:
    """Whole numbers ``[W, L, E]`` of an array ``[L, E]`` or ``[W, L, E]``.

    Raises
    ------
    SpecError
        Another shape; a negative, fractional, too large or not finite number.
    """
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise SpecError(
            f"{where}: expert loads must have the shape [layers, experts] or [windows, layers, experts], "
            f"got {list(values.shape)}"
        )
    exact = values.astype(np.float64)
    bad = ~np.isfinite(exact) | (exact < 0) | (exact > MAX_COUNT) | (exact != np.floor(exact))
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise SpecError(
            f"{where}: the load at {list(index)} is {exact[index]:g}; loads are whole numbers from 0 to 2^40"
        )
    whole = exact.astype(np.int64)
    return whole if values.ndim == 3 else whole[None]


def _summed(counts_wle: Counts, where: str) -> Counts:
    """Counts ``[L, E]`` over all windows."""
    counts: Counts = counts_wle.sum(axis=0)
    if counts.max() > MAX_COUNT:
        raise SpecError(f"{where}: the loads summed over {len(counts_wle)} windows reach {counts.max():g}, above 2^40")
    return counts


def _moe_rows(counts_LE: Counts, llm: Llm, where: str) -> Counts:  # noqa: N803 (shape suffix)
    """Rows of the MoE layers of `llm`, after a check of the shape."""
    rows, columns = counts_LE.shape
    experts = 0 if llm.moe is None else llm.moe.num_experts
    if not llm.num_moe_layers:
        raise SpecError(f"{where}: expert loads are given, but {llm.name} has no experts")
    if columns != experts or rows not in (llm.num_moe_layers, llm.num_layers):
        raise SpecError(
            f"{where}: expert loads have the shape [{rows}, {columns}], but {llm.name} needs "
            f"[{llm.num_moe_layers}, {experts}] (or [{llm.num_layers}, {experts}] with one row per decoder layer)"
        )
    return counts_LE if rows == llm.num_moe_layers else counts_LE[list(llm.moe_layer_indices)]
