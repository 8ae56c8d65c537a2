"""Load windows for expert placement: what engines record, as tokens ``[windows, layers, experts]``.

Shape suffixes: W windows, L layers, E logical experts.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from solver.errors import SpecError
from solver.specs.files import MAX_FILE_BYTES, decode, parse_json, read_bytes, shown
from solver.specs.loads import MAX_LOAD_FILE_BYTES, SUFFIXES, read_array, read_table

Counts = npt.NDArray[np.int64]
MAX_EXPERTS = 4096
MAX_WINDOWS = 64
RESPONSE_SUFFIX = ".jsonl"
TENSOR_TYPES = {"I32": "<i4", "I64": "<i8", "F32": "<f4", "F64": "<f8", "U8": "u1", "I16": "<i2"}
"""Types of safetensors that hold counts."""


@dataclass(frozen=True)
class LoadWindow:
    """Tokens per layer and logical expert of one stretch of traffic; `weight` is its share of tomorrow's traffic.

    Raises
    ------
    SpecError
        The counts have no layers or experts, are negative or not finite, or a layer has none.
    """

    name: str
    count_le: Counts
    weight: float = 1.0

    def __post_init__(self) -> None:
        where = f"window {shown(self.name, 100)}"
        if self.count_le.ndim != 2 or not self.count_le.size:
            raise SpecError(
                f"{where}: loads have the shape {self.count_le.shape}; give [layers, experts] and at least one of each"
            )
        wrong = np.argwhere(~(np.isfinite(self.count_le) & (self.count_le >= 0)))
        if len(wrong):
            layer, expert = wrong[0].tolist()
            raise SpecError(
                f"{where}: layer {layer}, expert {expert} has {self.count_le[layer, expert]} tokens; give 0 or more"
            )
        empty = np.flatnonzero(~self.count_le.any(axis=1))
        if len(empty):
            raise SpecError(f"{where}: all loads of layer {empty[0]} are zero; leave it out, or record longer")


def read_windows(path: str | Path, most: int = 8, num_experts: int | None = None) -> tuple[LoadWindow, ...]:
    """Windows of a file; consecutive steps of a time axis are joined until at most `most` windows are left.

    ``.csv``, ``.json``, ``.npy``, ``.npz``: counts ``[layers, experts]`` or ``[windows, layers, experts]``, as
    :func:`~solver.specs.loads.read_loads` reads them. ``.pt``: a dump of SGLang's recorder (needs torch). ``.jsonl``:
    responses of vLLM with ``routed_experts``, one JSON object a line (`num_experts` is needed, else the largest id
    counts). A folder: the statistics of TensorRT-LLM (``rank<r>.safetensors``). Rows without any token (dense layers of
    a recorder that has a row for every decoder layer) are dropped.

    Raises
    ------
    SpecError
        Missing, malformed, too large, of the wrong shape; a negative, fractional or not finite number.
    """
    file = Path(path)
    if file.is_dir():
        counts = _tensorrt(file)
    elif file.suffix.lower() == ".pt":
        counts = _recorder(file)
    elif file.suffix.lower() == RESPONSE_SUFFIX:
        counts = _responses(file, num_experts)
    elif file.suffix.lower() in SUFFIXES:
        counts = read_table(path)
    else:
        raise SpecError(
            f"expert loads {str(path)!r} must be a folder of TensorRT-LLM statistics or a file that ends with one of "
            f"{', '.join((*SUFFIXES, '.pt', RESPONSE_SUFFIX))}"
        )
    return _windows(counts, str(path), file.stem, most)


def _windows(count_wle: Counts, where: str, name: str, most: int) -> tuple[LoadWindow, ...]:
    """Windows without empty steps and layers, joined to at most `most`."""
    filled = count_wle[count_wle.any(axis=(1, 2))]
    if not len(filled):
        raise SpecError(f"{where}: all loads are zero")
    layers = filled.any(axis=(0, 2))
    filled = filled[:, layers, :]
    if filled.shape[2] > MAX_EXPERTS:
        raise SpecError(f"{where}: {filled.shape[2]} experts per layer are more than {MAX_EXPERTS}")
    joined = [part.sum(axis=0) for part in np.array_split(filled, min(most, len(filled)))]
    for window, count_le in enumerate(joined):
        for layer, row in enumerate(count_le):
            if not row.any():
                raise SpecError(f"{where}: all loads of row {layer} in window {window} are zero; join more steps")
    if len(joined) == 1:
        return (LoadWindow(name, joined[0]),)
    return tuple(LoadWindow(f"{name}[{window}]", count_le) for window, count_le in enumerate(joined))


def _recorder(file: Path) -> Counts:
    """``logical_count`` of a dump of SGLang's recorder in mode stat: ``[steps, layers, experts]``, in no order."""
    where = str(file)
    try:
        import torch  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise SpecError(
            f"{where}: reading .pt needs torch; install it, or convert once with "
            "numpy.savez('loads.npz', logical_count=torch.load(file)['logical_count'].numpy())"
        ) from None
    content = io.BytesIO(read_bytes(file, MAX_LOAD_FILE_BYTES))
    try:
        value = torch.load(content, map_location="cpu", weights_only=True)
        counts = np.asarray(value["logical_count"])
    except (KeyError, TypeError, ValueError, RuntimeError, EOFError, OSError) as fault:
        raise SpecError(f"{where} is no recorder dump with the key 'logical_count': {shown(str(fault), 100)}") from None
    return read_array(counts, where)


def _responses(file: Path, num_experts: int | None) -> Counts:
    """Histogram of the ids that the tokens of vLLM responses chose."""
    total: Counts | None = None
    for where, ids in routed_experts(file):
        width = num_experts or int(ids.max()) + 1
        if int(ids.max()) >= width:
            raise SpecError(f"{where}: expert {int(ids.max())} of {width}")
        counted = np.stack([np.bincount(ids[:, at].ravel(), minlength=width) for at in range(ids.shape[1])])
        total = counted if total is None else _add(total, counted, where)
    if total is None:
        raise SpecError(f"{file} holds no response with 'routed_experts'")
    return total[None]


def routed_experts(file: Path) -> Iterator[tuple[str, Counts]]:
    """(Where, ids ``[tokens, layers, top_k]``) of every choice in a file of vLLM responses, one JSON object a line.

    Raises
    ------
    SpecError
        Missing, malformed, or a choice without `routed_experts`.
    """
    for number, line in enumerate(decode(read_bytes(file, MAX_LOAD_FILE_BYTES), str(file)).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        response = parse_json(line, where)
        choices = response.get("choices") if isinstance(response, dict) else None
        if not isinstance(choices, list):
            raise SpecError(f"{where}: a vLLM response needs the key 'choices'")
        for choice in choices:
            yield where, _routed(choice, where)


def _routed(choice: object, where: str) -> Counts:
    text = choice.get("routed_experts") if isinstance(choice, dict) else None
    if not isinstance(text, str):
        raise SpecError(f"{where}: a choice lacks 'routed_experts' (serve with --enable-return-routed-experts)")
    try:
        ids = np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False)
    except (binascii.Error, ValueError, EOFError, OSError) as fault:
        raise SpecError(f"{where}: 'routed_experts' is not base64 of a .npy: {shown(str(fault), 80)}") from None
    if ids.ndim != 3 or ids.dtype.kind not in "ui" or not ids.size or int(ids.max()) >= MAX_EXPERTS or ids.min() < 0:
        raise SpecError(f"{where}: 'routed_experts' must be ids [tokens, layers, top_k], got {list(ids.shape)}")
    whole: Counts = ids.astype(np.int64)
    return whole


def _add(total: Counts, counted: Counts, where: str) -> Counts:
    """Sum of two tables; the narrower one is widened, other layers are refused."""
    if total.shape[0] != counted.shape[0]:
        raise SpecError(f"{where}: {counted.shape[0]} layers, the responses before have {total.shape[0]}")
    width = max(total.shape[1], counted.shape[1])
    wide = np.zeros((total.shape[0], width), dtype=np.int64)
    wide[:, : total.shape[1]] += total
    wide[:, : counted.shape[1]] += counted
    return wide


def _tensorrt(folder: Path) -> Counts:
    """TensorRT-LLM statistics: tensors ``<iteration>_<layer>`` of every ``rank<r>.safetensors``, summed."""
    files = sorted(path for path in folder.glob("rank*.safetensors") if not path.stem.endswith("_raw"))
    if not files:
        raise SpecError(f"{str(folder)!r} holds no rank<r>.safetensors (statistics of TensorRT-LLM)")
    steps: dict[int, dict[int, Counts]] = {}
    for file in files:
        for name, values in _safetensors(file).items():
            step, _, layer = name.partition("_")
            if not (step.isdigit() and layer.isdigit()) or values.ndim != 1:
                raise SpecError(f"{file}: tensor {shown(name)} is not <iteration>_<layer> with one count per expert")
            row = steps.setdefault(int(step), {})
            known = row.get(int(layer))
            row[int(layer)] = values if known is None else known + values
    layers = sorted({layer for row in steps.values() for layer in row})
    widths = {len(values) for row in steps.values() for values in row.values()}
    if len(widths) != 1 or any(sorted(row) != layers for row in steps.values()):
        raise SpecError(f"{str(folder)!r}: iterations have different layers or numbers of experts")
    return np.stack([np.stack([steps[step][layer] for layer in layers]) for step in sorted(steps)])


def _safetensors(file: Path) -> dict[str, Counts]:
    """Tensors of a safetensors file: eight bytes of header length, a JSON header with types and offsets, the data."""
    where = str(file)
    content = read_bytes(file, MAX_LOAD_FILE_BYTES)
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(len(content) - 8, MAX_FILE_BYTES):
        raise SpecError(f"{where} is no safetensors file: its header claims {size} bytes of {len(content)}")
    header = parse_json(decode(content[8 : 8 + size], where), where)
    if not isinstance(header, dict):
        raise SpecError(f"{where} is no safetensors file: the header is {shown(header)}")
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        kind = TENSOR_TYPES.get(str(entry.get("dtype"))) if isinstance(entry, dict) else None
        if kind is None:
            raise SpecError(f"{where}: tensor {shown(name)} has a type that holds no counts: {shown(entry)}")
        try:
            first, end = (8 + size + int(offset) for offset in entry["data_offsets"])
            values = np.frombuffer(content[first:end], dtype=kind).reshape(entry["shape"])
        except (KeyError, TypeError, ValueError) as fault:
            raise SpecError(f"{where}: tensor {shown(name)} cannot be read: {shown(str(fault), 80)}") from None
        tensors[name] = read_array(np.asarray(values)[None, None], f"{where}: {name}")[0, 0]
    return tensors


def read_map(path: str | Path) -> tuple[tuple[int, ...], ...]:
    """A current map: JSON with the key ``physical_to_logical_map`` (ours, or SGLang's), or the bare table of rows."""
    where = str(path)
    value = parse_json(decode(read_bytes(path), where), where)
    rows = value.get("physical_to_logical_map") if isinstance(value, dict) else value
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and row for row in rows):
        raise SpecError(f"{where}: a map needs the key 'physical_to_logical_map' with a row of experts per layer")
    if any(isinstance(cell, bool) or not isinstance(cell, int) for row in rows for cell in row):
        raise SpecError(f"{where}: the experts of a map are whole numbers; got {shown(json.dumps(rows)[:60])}")
    if len({len(row) for row in rows}) > 1:
        raise SpecError(f"{where}: the rows of a map have different lengths")
    return tuple(tuple(row) for row in rows)
