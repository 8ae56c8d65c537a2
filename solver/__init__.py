"""shardwright: provably optimal parallel strategies and explicit GPU placements for serving large language models.

Public names are imported when they are first used, so that ``--help`` does not pay for NumPy and pydantic.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from solver.api import (
        ExplainOptions,
        PlaceOptions,
        SolveOptions,
        calibrate,
        check,
        compare,
        evaluate,
        explain,
        place,
        placement,
        predict,
        read_measurements,
        reference_problem,
        solve,
        verify,
        verify_explanation,
        what_if,
    )
    from solver.ask import Ask
    from solver.audit import AuditReport, Claims
    from solver.errors import (
        CatalogError,
        ExportError,
        NoPlacementError,
        OutputError,
        PlanError,
        SolverError,
        SpecError,
        StrategyError,
        UnitError,
        UnknownArchitectureError,
    )
    from solver.expertmap import ExpertPlacement
    from solver.explanation import Explanation, WhatIf
    from solver.export import Export, ExportOptions, bench_script, export
    from solver.plan import Comparison, Evaluation, GpuRecord, NoPlan, Plan
    from solver.specs.hardware import Cluster, Gpu
    from solver.specs.llm import Llm
    from solver.specs.placing import Placing
    from solver.specs.problem import Objective, Pins, Problem, Space
    from solver.specs.vary import Vary
    from solver.specs.windows import LoadWindow, read_windows
    from solver.specs.workload import Slo, Workload
    from solver.strategy import Strategy, parse_label
    from solver.verify import Verification

__all__ = [
    "Ask",
    "AuditReport",
    "CatalogError",
    "Claims",
    "Cluster",
    "Comparison",
    "Evaluation",
    "ExpertPlacement",
    "ExplainOptions",
    "Explanation",
    "Export",
    "ExportError",
    "ExportOptions",
    "Gpu",
    "GpuRecord",
    "Llm",
    "LoadWindow",
    "NoPlacementError",
    "NoPlan",
    "Objective",
    "OutputError",
    "Pins",
    "PlaceOptions",
    "Placing",
    "Plan",
    "PlanError",
    "Problem",
    "Slo",
    "SolveOptions",
    "SolverError",
    "Space",
    "SpecError",
    "Strategy",
    "StrategyError",
    "UnitError",
    "UnknownArchitectureError",
    "Vary",
    "Verification",
    "WhatIf",
    "Workload",
    "bench_script",
    "calibrate",
    "check",
    "compare",
    "evaluate",
    "explain",
    "export",
    "parse_label",
    "place",
    "placement",
    "predict",
    "read_measurements",
    "read_windows",
    "reference_problem",
    "solve",
    "verify",
    "verify_explanation",
    "what_if",
]

_NAMES_OF_MODULE = {
    "solver.api": (
        "ExplainOptions",
        "PlaceOptions",
        "SolveOptions",
        "calibrate",
        "check",
        "compare",
        "evaluate",
        "explain",
        "place",
        "placement",
        "predict",
        "read_measurements",
        "reference_problem",
        "solve",
        "verify",
        "verify_explanation",
        "what_if",
    ),
    "solver.ask": ("Ask",),
    "solver.audit": ("AuditReport", "Claims"),
    "solver.errors": (
        "CatalogError",
        "ExportError",
        "NoPlacementError",
        "OutputError",
        "PlanError",
        "SolverError",
        "SpecError",
        "StrategyError",
        "UnitError",
        "UnknownArchitectureError",
    ),
    "solver.explanation": ("Explanation", "WhatIf"),
    "solver.export": ("Export", "ExportOptions", "bench_script", "export"),
    "solver.plan": ("Comparison", "Evaluation", "GpuRecord", "NoPlan", "Plan"),
    "solver.expertmap": ("ExpertPlacement",),
    "solver.specs.hardware": ("Cluster", "Gpu"),
    "solver.specs.llm": ("Llm",),
    "solver.specs.problem": ("Objective", "Pins", "Problem", "Space"),
    "solver.specs.placing": ("Placing",),
    "solver.specs.vary": ("Vary",),
    "solver.specs.windows": ("LoadWindow", "read_windows"),
    "solver.specs.workload": ("Slo", "Workload"),
    "solver.strategy": ("Strategy", "parse_label"),
    "solver.verify": ("Verification",),
}
_MODULE_OF_NAME = {name: module for module, names in _NAMES_OF_MODULE.items() for name in names}


class _Package(ModuleType):
    """This package. Importing the submodule ``solver.verify`` must not hide the function of the same name."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _MODULE_OF_NAME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    module = _MODULE_OF_NAME.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
