"""shardwright: provably optimal parallel strategies and explicit GPU placements for serving large language models."""

from solver.api import SolveOptions, check, evaluate, placement, reference_problem, solve, verify
from solver.audit import AuditReport, Claims
from solver.errors import (
    CatalogError,
    OutputError,
    PlanError,
    SolverError,
    SpecError,
    StrategyError,
    UnitError,
    UnknownArchitectureError,
)
from solver.plan import Evaluation, GpuRecord, NoPlan, Plan
from solver.specs.hardware import Cluster, Gpu
from solver.specs.llm import Llm
from solver.specs.problem import Objective, Pins, Problem, Space
from solver.specs.workload import Slo, Workload
from solver.strategy import Strategy, parse_label
from solver.verify import Verification

__all__ = [
    "AuditReport",
    "CatalogError",
    "Claims",
    "Cluster",
    "Evaluation",
    "Gpu",
    "GpuRecord",
    "Llm",
    "NoPlan",
    "Objective",
    "OutputError",
    "Pins",
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
    "Verification",
    "Workload",
    "check",
    "evaluate",
    "parse_label",
    "placement",
    "reference_problem",
    "solve",
    "verify",
]
