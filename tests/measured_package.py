"""A stand-in for the optional package of measured operators: its door, with times that a comment can compute.

GEMM: columns * rows us. Experts: 10 * tokens / moe_ep us, measured for moe_tp = 1 and moe_ep 1, 2, 4 only. Attention
cores, per KV head: prefill batch * new us; decode 5 us + 1 us per sequence + 1 ns per cached token. All-reduce: as many
us as ranks, inside a node of four GPUs. Nothing else was measured, and only bf16. Links are those of the small cluster.
"""

from __future__ import annotations

import json
import sys
import types
from importlib import metadata
from typing import Any, ClassVar

import pytest

from solver.silicon import package
from solver.specs.operators import Operators

VERSION = "0.12.0"
MEASURED = {"h100_sxm": {"vllm": ["0.24.0"]}, "h200_sxm": {"sglang": ["0.5.14"], "vllm": ["0.24.0"]}}
OPERATORS = Operators(
    source="silicon", package=f"aiconfigurator-core {VERSION}", system="h200_sxm", backend="sglang", version="0.5.14"
)


class PerfDataNotAvailableError(RuntimeError):
    """The package's own "never measured"."""


class _Database:
    system_spec: ClassVar = {"node": {"num_gpus_per_node": 4, "intra_node_bw": 50e9, "inter_node_bw": 5e9}}


class _Engine:
    """Prices an operator from its arguments, in ms, as the package does."""

    calls = 0

    @classmethod
    def for_database(cls, _database: _Database) -> _Engine:
        return cls()

    def evaluate_ops_json(
        self, ops_json: str, *, is_context: bool, batch_size: int, s: int, prefix: int, x: int | None
    ) -> list[tuple[str, float, float, str]]:
        """Milliseconds, energy and tag."""
        assert is_context or prefix == 0
        type(self).calls += 1
        ((kind, a),) = json.loads(ops_json)
        tag = "silicon"
        if kind == "GEMM" and a["quant_mode"] == "bfloat16":
            us = a["n"] * (x or 0)
        elif kind == "MoE" and a["quant_mode"] == "bfloat16" and a["moe_tp_size"] == 1 and a["moe_ep_size"] <= 4:
            us = 10 * (x or 0) / a["moe_ep_size"]
        elif kind == "ContextAttention" and a["window_size"] == 0:
            us, tag = a["n_kv"] * batch_size * s, "mixed"
        elif kind == "GenerationAttention" and a["window_size"] == 0:
            us = a["n_kv"] * (5 + batch_size + batch_size * s / 1000)
        elif kind == "CustomAllReduce":
            us = a["tp_size"]
        elif kind == "NCCL":
            us, tag = 1, "empirical"  # a model of the package, not a row: ours is used
        else:
            raise PerfDataNotAvailableError(kind)
        return [("operator", us / 1000, 0.0, tag)]


def _get_database(system: str, backend: str, version: str) -> _Database:
    if version not in MEASURED.get(system, {}).get(backend, []):
        raise ValueError(f"{backend}/{version} on {system}")
    return _Database()


def install(monkeypatch: pytest.MonkeyPatch, version: str = VERSION) -> None:
    """Put the stand-in where the package would be, until the test ends."""

    def operator(kind: str) -> Any:
        return lambda name, scale_factor, **arguments: (kind, arguments)  # noqa: ARG005

    kinds = ("GEMM", "MoE", "ContextAttention", "GenerationAttention", "ContextMLA", "GenerationMLA", "CustomAllReduce",
             "NCCL", "MoEAllToAll")  # fmt: skip
    modules: dict[str, dict[str, Any]] = {
        "": {},
        ".sdk": {},
        ".sdk.operations": {kind: operator(kind) for kind in kinds},
        ".sdk.engine": {"EngineHandle": _Engine, "build_ops_json": json.dumps},
        ".sdk.errors": {
            "PerfDataNotAvailableError": PerfDataNotAvailableError,
            "EmpiricalNotImplementedError": PerfDataNotAvailableError,
        },
        ".sdk.perf_database": {
            "get_database": _get_database,
            "get_supported_databases": lambda: MEASURED,
            "get_version_slots": lambda system, backend: (
                {"current": MEASURED[system][backend][0]} if backend in MEASURED.get(system, {}) else None
            ),
        },
    }
    for suffix, content in modules.items():
        module = types.ModuleType(f"aiconfigurator_core{suffix}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        parent, _, leaf = module.__name__.rpartition(".")
        if parent:
            monkeypatch.setattr(sys.modules[parent], leaf, module, raising=False)
    declare(monkeypatch, version)


def declare(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """Make the package look installed in a version, or absent; nothing loaded before is remembered."""
    real = metadata.version

    def installed(name: str) -> str:
        if name != package.DISTRIBUTION:
            return real(name)
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(package.metadata, "version", installed)
    package.tables_of.cache_clear()
