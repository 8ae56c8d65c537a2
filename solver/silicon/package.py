"""The one place that speaks to ``aiconfigurator-core``: load tables, price one operator, list what there is."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import NamedTuple, Protocol

from solver.errors import OperatorsError
from solver.specs.operators import Operators

DISTRIBUTION = "aiconfigurator-core"
REPAIR = "or use --operators analytic"
MEASURED = frozenset({"silicon", "mixed"})
"""Tags of the package that count as measured: table rows, and (``mixed``) rows plus the memory traffic of the rotary
embedding and the cache write. Its other tags (``empirical``, ``estimated``, ``sol``) are models, and ours is used."""
NS_PER_MS = 1e6

Argument = int | float | str | bool


@dataclass(frozen=True, eq=False)
class Operator:
    """One operator: the package's class name and the arguments of its constructor. Equal ones are the same object."""

    kind: str
    arguments: tuple[tuple[str, Argument], ...]

    @staticmethod
    @lru_cache(maxsize=2**16)
    def of(kind: str, **arguments: Argument) -> Operator:
        """The operator with these arguments."""
        return Operator(kind, tuple(arguments.items()))


class Shape(NamedTuple):
    """At which size an operator is priced: a number of tokens, or sequences and their lengths."""

    prefill: bool
    tokens: int | None = None
    """Rows of an operator that sees tokens only; absent for attention cores."""
    batch: int = 1
    length: int = 1
    """New tokens of each sequence in prefill, context of each sequence in decode."""
    cached: int = 0
    """Tokens of each sequence that are cached already, in prefill."""


@dataclass(frozen=True)
class Wiring:
    """Links of a measured system, as its table of systems states them."""

    gpus_per_node: int
    scale_up_bytes_per_s: float
    network_bytes_per_s: float


class _Engine(Protocol):
    """What is used of the package's engine handle."""

    def evaluate_ops_json(
        self, ops_json: str, *, is_context: bool, batch_size: int, s: int, prefix: int, x: int | None
    ) -> list[tuple[str, float, float, str]]: ...


class Tables:
    """Measured operators of one system, backend and version; prices are remembered.

    Raises
    ------
    OperatorsError
        The package is absent or another version, or has no such tables.
    """

    def __init__(self, operators: Operators) -> None:
        package, system, backend, version = operators.package, operators.system, operators.backend, operators.version
        if package is None or system is None or backend is None or version is None:
            raise OperatorsError(f"operators {operators} name no measured tables; {REPAIR}")
        installed = installed_package()
        if installed != package:
            raise OperatorsError(
                f"the operators were priced with {package}, but {installed} is installed: "
                f"pip install '{package.replace(' ', '==')}', {REPAIR}"
            )
        _quiet()
        from aiconfigurator_core.sdk.engine import EngineHandle
        from aiconfigurator_core.sdk.errors import EmpiricalNotImplementedError, PerfDataNotAvailableError
        from aiconfigurator_core.sdk.perf_database import get_database

        self._missing = (PerfDataNotAvailableError, EmpiricalNotImplementedError, ValueError)
        try:
            database = get_database(system, backend, version)
        except ValueError as error:
            raise unknown_tables(system, backend, version) from error
        if database is None:
            raise unknown_tables(system, backend, version)
        node = database.system_spec["node"]
        self.wiring = Wiring(int(node["num_gpus_per_node"]), float(node["intra_node_bw"]), float(node["inter_node_bw"]))
        self._engine: _Engine = EngineHandle.for_database(database)
        self._json: dict[Operator, str | None] = {}
        self._ns: dict[Operator, dict[Shape, float]] = {}

    def ns(self, operator: Operator, shape: Shape) -> float:
        """Measured time of an operator in ns (interpolated by the package between its rows); NaN where it has none."""
        known = self._ns.setdefault(operator, {})
        found = known.get(shape)
        if found is None:
            found = known[shape] = self._look_up(operator, shape)
        return found

    def _look_up(self, operator: Operator, shape: Shape) -> float:
        if operator not in self._json:
            self._json[operator] = self._serialised(operator)
        text = self._json[operator]
        if text is None:
            return math.nan
        try:
            ((_, milliseconds, _, tag),) = self._engine.evaluate_ops_json(
                text,
                is_context=shape.prefill,
                batch_size=shape.batch,
                s=shape.length,
                prefix=shape.cached,
                x=shape.tokens,
            )
        except self._missing:
            return math.nan
        return float(milliseconds) * NS_PER_MS if tag in MEASURED else math.nan

    def _serialised(self, operator: Operator) -> str | None:
        """The operator in the package's wire form; None where the package refuses its arguments."""
        from aiconfigurator_core.sdk import operations
        from aiconfigurator_core.sdk.engine import build_ops_json

        try:
            made = getattr(operations, operator.kind)(name="operator", scale_factor=1.0, **dict(operator.arguments))
            return str(build_ops_json([made]))
        except ValueError:
            return None


@lru_cache(maxsize=8)
def tables_of(operators: Operators) -> Tables:
    """The tables of a source; loaded once per process, because loading costs half a second."""
    return Tables(operators)


def installed_package() -> str:
    """Name and version of the installed package.

    Raises
    ------
    OperatorsError
        It is not installed.
    """
    try:
        return f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}"
    except metadata.PackageNotFoundError:
        raise OperatorsError(
            f"measured operators need the package {DISTRIBUTION}, which is not installed: "
            f"pip install 'shardwright[silicon]', {REPAIR}"
        ) from None


def current_version(system: str, backend: str) -> str | None:
    """The version of an engine that the package recommends for a system; None where it measured none."""
    installed_package()
    _quiet()
    from aiconfigurator_core.sdk.perf_database import get_version_slots

    slots = get_version_slots(system, backend)
    return None if slots is None else str(slots["current"])


def unknown_tables(system: str, backend: str | None = None, version: str | None = None) -> OperatorsError:
    """The sentence for a system, backend or version without measurements: what there is instead."""
    from aiconfigurator_core.sdk.perf_database import get_supported_databases

    measured = get_supported_databases()
    if system not in measured:
        had, words = sorted(measured), f"system {system[:60]!r}"
    elif backend is None or backend not in measured[system]:
        had, words = sorted(measured[system]), f"backend {str(backend)[:60]!r} on {system}"
    else:
        had, words = sorted(measured[system][backend]), f"version {str(version)[:60]!r} of {backend} on {system}"
    return OperatorsError(
        f"{installed_package()} has no measured operators for {words}; it has {', '.join(had)}; choose one with "
        f"--operators silicon:SYSTEM/BACKEND/VERSION, {REPAIR}"
    )


def _quiet() -> None:
    """Keep the package's log off stderr unless the caller configured logging."""
    logging.getLogger("aiconfigurator_core").addHandler(logging.NullHandler())
