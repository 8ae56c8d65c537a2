"""The catalog of LLMs, GPUs, clusters, workloads and calibrations: TOML files under ``models/``, found by name or path.

An entry may list ``aliases``; an LLM is also found by its Hugging Face id (:mod:`solver.specs.hf_names`).
In a wheel the files lie inside the package (``solver/models``), in a checkout or an editable install beside it.
"""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from solver.errors import CatalogError
from solver.specs.calibration import Calibration
from solver.specs.files import MAX_FILE_BYTES, decode, parse_toml, read_bytes, shown
from solver.specs.hardware import Cluster, Gpu
from solver.specs.hf_config import read_config
from solver.specs.hf_names import Named, find, plain
from solver.specs.llm import Llm
from solver.specs.precision import in_precision
from solver.specs.workload import Workload
from solver.units import short_bytes

Kind = Literal["llm", "gpu", "cluster", "workload", "calibration"]
KINDS: tuple[str, ...] = get_args(Kind)
Record = Llm | Gpu | Cluster | Workload | Calibration
MAX_GPUS = 2**24
MAX_LISTED = 12
"""Most names that an error message lists."""

_SIZED = re.compile(r"(.+)x([0-9]+)")


@dataclass(frozen=True)
class CatalogEntry:
    """One entry as ``catalog show`` prints it."""

    kind: str
    name: str
    summary: str
    """One line with the numbers that tell entries apart."""
    source: str
    assumptions: tuple[str, ...]
    text: str
    """The TOML file."""
    record: Record


def names(kind: str) -> tuple[str, ...]:
    """Names of the catalog entries of one kind, sorted.

    Raises
    ------
    CatalogError
        The kind is not one of llm, gpu, cluster, workload, calibration, or the catalog is not installed.
    """
    if kind not in KINDS:
        raise CatalogError(f"there is no catalog of {shown(kind)}; there are {', '.join(KINDS)}")
    return tuple(sorted(file.name.removesuffix(".toml") for file in _folder(kind).iterdir() if _is_toml(file.name)))


def entry_name(kind: str, name_or_path: str | Path) -> str | None:
    """The entry that a name, an alias or (of an LLM) a Hugging Face id means; None for a path and for anything else."""
    named = _named(kind, name_or_path)
    return None if named is None else named.entry


def read_toml(path: str | Path) -> dict[str, object]:
    """Tables of a TOML file.

    Raises
    ------
    CatalogError
        The file is missing, a folder, larger than 16 MiB, not UTF-8 or not TOML.
    """
    return parse_toml(decode(read_bytes(path, error=CatalogError), str(path), CatalogError), str(path), CatalogError)


def load_llm(name_or_path: str | Path) -> Llm:
    """The LLM of a catalog name or Hugging Face id, a TOML file, a ``config.json``, or a folder that holds one.

    An id that states a storage format which the entry has not (``nvidia/Qwen3-32B-NVFP4``) gives the entry in that
    format (:func:`solver.specs.precision.in_precision`). A file or folder of that name comes before an id.
    """
    named = _named("llm", name_or_path)
    text = str(name_or_path)
    if named is None and text and (os.path.isdir(text) or text.lower().endswith(".json")):
        return read_config(text)
    data, where = _tables("llm", name_or_path)
    llm = Llm.read(data, where)
    return llm if named is None or named.precision is None else in_precision(llm, named.precision)


def load_gpu(name_or_path: str | Path) -> Gpu:
    """The GPU of a catalog name or a TOML file."""
    data, where = _tables("gpu", name_or_path)
    return Gpu.read(data, where)


def load_cluster(name_or_path: str | Path) -> Cluster:
    """The cluster of a catalog name or alias (``h200``, ``h200_sxm``), of one with a total number of GPUs
    (``h200x64``), or of a TOML file.

    A file names its GPU by catalog name (``gpu = "h200"``) or describes it in a table ``[gpu]``.
    """
    if isinstance(name_or_path, str) and entry_name("cluster", name_or_path) is None:
        match = _SIZED.fullmatch(name_or_path.strip().lower())
        if match is not None and entry_name("cluster", match[1]) is not None:
            if len(match[2]) > 9 or not 1 <= int(match[2]) <= MAX_GPUS:
                raise CatalogError(f"cluster {shown(name_or_path)}: the number of GPUs must be from 1 to {MAX_GPUS}")
            return sized(load_cluster(match[1]), int(match[2]))
    data, where = _tables("cluster", name_or_path)
    gpu = data.get("gpu")
    if isinstance(gpu, str):
        data = {**data, "gpu": load_gpu(gpu).model_dump()}
    return Cluster.read(data, where)


def load_workload(name_or_path: str | Path) -> Workload:
    """The workload of a catalog name or a TOML file."""
    data, where = _tables("workload", name_or_path)
    return Workload.read(data, where)


def calibration_of(cluster: Cluster, engine: str) -> Calibration:
    """The calibration that belongs to a cluster under an engine: ``<cluster's>-<engine>`` where the catalog has it."""
    return calibration_under(cluster.calibration, engine)


def calibration_under(hardware: str, engine: str) -> Calibration:
    """The calibration of some hardware under an engine: ``<hardware>-<engine>`` where the catalog has it."""
    own = f"{hardware}-{engine}"
    return load_calibration(own if own in names("calibration") else hardware)


def load_calibration(name_or_path: str | Path) -> Calibration:
    """The calibration of a catalog name or a TOML file."""
    data, where = _tables("calibration", name_or_path)
    return Calibration.read(data, where)


def sized(cluster: Cluster, num_gpus: int) -> Cluster:
    """The same hardware with `num_gpus` GPUs in all, named ``<name>x<num_gpus>``.

    Below one node the node shrinks to that count, below one scale-up domain the domain does; anything else must be a
    whole number of nodes, and of scale-up domains once it exceeds one.

    Raises
    ------
    CatalogError
        The count is not such a multiple; the sentence names the two nearest ones.
    """
    block = _block(cluster, num_gpus)
    if num_gpus % block:
        below = num_gpus // block * block
        unit = "node" if block == cluster.gpus_per_node else "scale-up domain"
        raise CatalogError(
            f"{num_gpus} GPUs are not a whole number of {cluster.name} {unit}s of {block}: "
            f"take {below} or {below + block}"
        )
    data = cluster.model_dump()
    levels = []
    joined = 0
    for level, record in zip(cluster.levels, data["levels"], strict=True):
        size = None if level.gpus is None else min(level.gpus, num_gpus)
        if size is None or size > joined:
            levels.append({**record, "gpus": size})
            joined = size or joined
    data["name"] = f"{cluster.name}x{num_gpus}"
    data["num_gpus"] = num_gpus
    data["gpus_per_node"] = min(cluster.gpus_per_node, num_gpus)
    data["levels"] = levels
    return Cluster.read(data, data["name"])


def whole_size(cluster: Cluster, num_gpus: int) -> int:
    """The smallest size that :func:`sized` accepts and that holds `num_gpus` GPUs."""
    block = _block(cluster, num_gpus)
    return -(-num_gpus // block) * block


def _block(cluster: Cluster, num_gpus: int) -> int:
    """Size of the node or scale-up domain that `num_gpus` must be a multiple of; 1 below one node."""
    blocks = [cluster.gpus_per_node, *(level.gpus for level in cluster.levels if level.gpus is not None)]
    return max((size for size in blocks if size <= num_gpus), default=1)


def describe(kind: str, name: str) -> CatalogEntry:
    """One catalog entry with its text, its record and a line that sums it up.

    Raises
    ------
    CatalogError
        There is no such entry.
    """
    names(kind)
    record: Record
    if kind == "llm":
        record = load_llm(name)
    elif kind == "gpu":
        record = load_gpu(name)
    elif kind == "cluster":
        record = load_cluster(name)
    elif kind == "workload":
        record = load_workload(name)
    else:
        record = load_calibration(name)
    known = entry_name(kind, name)
    if known is None and kind == "cluster" and (match := _SIZED.fullmatch(name.strip().lower())) is not None:
        known = entry_name(kind, match[1])
    if known is None:
        raise CatalogError(f"{shown(name)} is a file, not a name of the catalog; see `shardwright catalog list`")
    assumptions = () if isinstance(record, Gpu | Calibration) else record.assumptions
    text = decode((_folder(kind) / f"{known}.toml").read_bytes(), known, CatalogError)
    return CatalogEntry(kind, record.name, summary(record), record.source, assumptions, text, record)


def summary(record: Record) -> str:
    """One line with the numbers that tell entries of one kind apart."""
    if isinstance(record, Llm):
        experts = "dense"
        if record.moe is not None:
            experts = f"{record.num_moe_layers} with {record.moe.num_experts} experts, {record.moe.top_k} active"
        return (
            f"{record.total_parameters / 1e9:.1f} B parameters, {record.num_layers} layers ({experts}), "
            f"hidden {record.hidden_size}"
        )
    if isinstance(record, Gpu):
        peaks = ", ".join(f"{unit} {value / 1e12:g}" for unit, value in record.peak.items())
        return f"{short_bytes(record.memory)}, {short_bytes(record.memory_bandwidth)}/s, TFLOP/s: {peaks}"
    if isinstance(record, Cluster):
        links = ", ".join(f"{level.name} {short_bytes(level.bandwidth)}/s" for level in record.levels)
        return f"{record.num_gpus} x {record.gpu.name}, {record.gpus_per_node} per node, {links}"
    if isinstance(record, Workload):
        lengths = f"{record.prompt_lengths[0]} to {record.longest_isl}" if not record.is_uniform else record.longest_isl
        many = "free" if record.concurrency is None else record.concurrency
        return f"{lengths} tokens in, {record.osl} out, concurrency {many}"
    return f"GEMM {record.gemm_efficiency['bf16']:g}, memory {record.memory_efficiency:g} of the peak"


def _folder(kind: str) -> Traversable:
    """The folder of one kind of entries."""
    for root in (importlib.resources.files("solver") / "models", Path(__file__).resolve().parents[2] / "models"):
        folder = root / kind
        if folder.is_dir():
            return folder
    raise CatalogError(f"the catalog folder models/{kind} is not installed; reinstall the package")


def _is_toml(file: str) -> bool:
    return file.endswith(".toml") and not file.startswith(".")


def _named(kind: str, name_or_path: str | Path) -> Named | None:
    """What a name means; None when it is not a name, alias or id of the catalog, or there is a file of that name."""
    if not isinstance(name_or_path, str):
        return None
    name = name_or_path.strip().lower()
    if name in names(kind):
        return Named(name)
    if _is_path(name_or_path):
        return None
    if kind == "llm":
        return find(name, _spellings(kind))
    return Named(_spellings(kind)[name]) if name in _spellings(kind) else None


@functools.cache
def _spellings(kind: str) -> Mapping[str, str]:
    """Entry of every name and alias: plain ones for LLMs, in lower case for the others."""
    spell = plain if kind == "llm" else str.lower
    return MappingProxyType(
        {spell(word): name for name in names(kind) for word in (name, *_aliases(_entry_tables(kind, name), name))}
    )


def _entry_tables(kind: str, name: str) -> dict[str, object]:
    """Tables of a catalog entry as its file has them."""
    where = f"models/{kind}/{name}.toml"
    content = (_folder(kind) / f"{name}.toml").read_bytes()[:MAX_FILE_BYTES]
    return parse_toml(decode(content, where, CatalogError), where, CatalogError)


def _tables(kind: str, name_or_path: str | Path) -> tuple[Mapping[str, object], str]:
    """Tables of an entry without its aliases, and the words that name it in error messages."""
    name = entry_name(kind, name_or_path)
    if name is not None:
        data, where = _entry_tables(kind, name), f"models/{kind}/{name}.toml"
    elif isinstance(name_or_path, Path) or _is_path(str(name_or_path)):
        data, where = read_toml(name_or_path), str(name_or_path)
    else:
        raise _unknown(kind, name_or_path)
    _aliases(data, where)
    return {key: value for key, value in data.items() if key != "aliases"}, where


def _aliases(data: Mapping[str, object], where: str) -> tuple[str, ...]:
    """Further names that a file gives its entry."""
    value = data.get("aliases", [])
    if not isinstance(value, list) or not all(isinstance(alias, str) for alias in value):
        raise CatalogError(f"{where}: aliases must be a list of names, got {shown(value)}")
    return tuple(value)


def _is_path(text: str) -> bool:
    """Whether a text that is no catalog name should be opened as a file."""
    try:
        return text.lower().endswith((".toml", ".json")) or (text != "" and os.path.exists(text))
    except ValueError:
        return False


def _unknown(kind: str, name: object) -> CatalogError:
    """The error for an unknown name, with the closest ones."""
    known = names(kind)
    word = name.strip().lower() if isinstance(name, str) else ""
    last = word.rstrip("/").rpartition("/")[2]
    if kind == "cluster" and (match := _SIZED.fullmatch(last)) is not None:
        last = match[1]
    begun = sorted((entry for entry in known if last and entry.startswith(last)), key=len)
    close = list(dict.fromkeys([*begun, *difflib.get_close_matches(last[:100], known, n=3, cutoff=0.5)]))[:4]
    closest = f"closest: {', '.join(close)}" if close else f"known: {', '.join(known[:MAX_LISTED])}"
    if not close and len(known) > MAX_LISTED:
        closest += f" and {len(known) - MAX_LISTED} more"
    return CatalogError(
        f"there is no {kind} {shown(name)} in the catalog and no such file; {closest} "
        f"(`shardwright catalog list {kind}` shows all)"
    )
