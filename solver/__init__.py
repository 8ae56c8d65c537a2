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
        ParetoOptions,
        PlaceOptions,
        SolveOptions,
        calibrate,
        check,
        compare,
        deploy,
        evaluate,
        explain,
        pareto,
        place,
        placement,
        predict,
        read_measurements,
        reference_problem,
        solve,
        solve_scenarios,
        spend_slots,
        verify,
        verify_deployment,
        verify_explanation,
        verify_front,
        what_if,
    )
    from solver.ask import Ask
    from solver.audit import AuditReport, Claims
    from solver.deployment import DeploymentPlan, expand_deployment
    from solver.errors import (
        CatalogError,
        EngineError,
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
    from solver.expansion import GpuRecord
    from solver.expertmap import ExpertPlacement
    from solver.explanation import Explanation, WhatIf
    from solver.export import Export, ExportOptions, bench_script, export
    from solver.front import Front, FrontPoint
    from solver.plan import Comparison, Evaluation, NoPlan, Plan
    from solver.scenarioplan import ScenarioPlan
    from solver.slotbudget import SlotBudget
    from solver.specs.deploying import Deploying
    from solver.specs.hardware import Cluster, Gpu
    from solver.specs.llm import Llm
    from solver.specs.placing import Placing
    from solver.specs.problem import Objective, Pins, Problem, Space
    from solver.specs.scenarios import Reduction, Scenario, Scenarios, read_scenarios
    from solver.specs.slots import SlotSweep, Spending
    from solver.specs.traces import LengthTrace, read_trace, scenarios_of_trace
    from solver.specs.vary import Vary
    from solver.specs.windows import LoadWindow, read_windows
    from solver.specs.workload import Slo, Workload
    from solver.strategy import Strategy, parse_label
    from solver.sweep import Sweep, SweepOptions, sweep
    from solver.swept import Swept
    from solver.verify import Verification
    from solver.verify.front import FrontVerification

__all__ = [
    "Ask",
    "AuditReport",
    "CatalogError",
    "Claims",
    "Cluster",
    "Comparison",
    "Deploying",
    "DeploymentPlan",
    "EngineError",
    "Evaluation",
    "ExpertPlacement",
    "ExplainOptions",
    "Explanation",
    "Export",
    "ExportError",
    "ExportOptions",
    "Front",
    "FrontPoint",
    "FrontVerification",
    "Gpu",
    "GpuRecord",
    "LengthTrace",
    "Llm",
    "LoadWindow",
    "NoPlacementError",
    "NoPlan",
    "Objective",
    "OutputError",
    "ParetoOptions",
    "Pins",
    "PlaceOptions",
    "Placing",
    "Plan",
    "PlanError",
    "Problem",
    "Reduction",
    "Scenario",
    "ScenarioPlan",
    "Scenarios",
    "Slo",
    "SlotBudget",
    "SlotSweep",
    "SolveOptions",
    "SolverError",
    "Space",
    "SpecError",
    "Spending",
    "Strategy",
    "StrategyError",
    "Sweep",
    "SweepOptions",
    "Swept",
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
    "deploy",
    "evaluate",
    "expand_deployment",
    "explain",
    "export",
    "pareto",
    "parse_label",
    "place",
    "placement",
    "predict",
    "read_measurements",
    "read_scenarios",
    "read_trace",
    "read_windows",
    "reference_problem",
    "scenarios_of_trace",
    "solve",
    "solve_scenarios",
    "spend_slots",
    "sweep",
    "verify",
    "verify_deployment",
    "verify_explanation",
    "verify_front",
    "what_if",
]

_NAMES_OF_MODULE = {
    "solver.api": (
        "ParetoOptions",
        "ExplainOptions",
        "PlaceOptions",
        "SolveOptions",
        "calibrate",
        "check",
        "compare",
        "deploy",
        "evaluate",
        "pareto",
        "explain",
        "place",
        "placement",
        "predict",
        "read_measurements",
        "reference_problem",
        "solve",
        "solve_scenarios",
        "spend_slots",
        "verify",
        "verify_deployment",
        "verify_front",
        "verify_explanation",
        "what_if",
    ),
    "solver.deployment": ("DeploymentPlan", "expand_deployment"),
    "solver.specs.deploying": ("Deploying",),
    "solver.ask": ("Ask",),
    "solver.audit": ("AuditReport", "Claims"),
    "solver.errors": (
        "CatalogError",
        "EngineError",
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
    "solver.front": ("Front", "FrontPoint"),
    "solver.expansion": ("GpuRecord",),
    "solver.plan": ("Comparison", "Evaluation", "NoPlan", "Plan"),
    "solver.expertmap": ("ExpertPlacement",),
    "solver.specs.hardware": ("Cluster", "Gpu"),
    "solver.specs.llm": ("Llm",),
    "solver.specs.problem": ("Objective", "Pins", "Problem", "Space"),
    "solver.specs.placing": ("Placing",),
    "solver.scenarioplan": ("ScenarioPlan",),
    "solver.specs.scenarios": ("Reduction", "Scenario", "Scenarios", "read_scenarios"),
    "solver.slotbudget": ("SlotBudget",),
    "solver.specs.slots": ("SlotSweep", "Spending"),
    "solver.specs.traces": ("LengthTrace", "read_trace", "scenarios_of_trace"),
    "solver.specs.vary": ("Vary",),
    "solver.specs.windows": ("LoadWindow", "read_windows"),
    "solver.specs.workload": ("Slo", "Workload"),
    "solver.strategy": ("Strategy", "parse_label"),
    "solver.sweep": ("Sweep", "SweepOptions", "sweep"),
    "solver.swept": ("Swept",),
    "solver.verify": ("Verification",),
    "solver.verify.front": ("FrontVerification",),
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
