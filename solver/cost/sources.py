"""What the times of one strategy rest on: formulas or measured kernels, operator by operator."""

from __future__ import annotations

from solver.cost.layers import Blocks
from solver.cost.leaves import Leaves
from solver.cost.metrics import evaluate_times
from solver.cost.operators import analytic_source
from solver.plan import OperatorSource
from solver.specs.problem import Problem
from solver.strategy import Strategy, packing_of

NEVER_MEASURED = ("embedding", "pipeline hops", "host work")
"""What no table of operators has."""


def operator_sources(problem: Problem, strategy: Strategy, blocks: Blocks) -> tuple[OperatorSource, ...]:
    """Sources of every operator that this strategy's metrics add up; one entry for all of them without measurements.

    An operator has two entries where some of its numbers are measured and some are not.
    """
    if problem.operators.source == "analytic":
        return (OperatorSource(operator="all", source=analytic_source(problem)),)
    leaves = Leaves(problem)
    measured = leaves.machine.measured
    assert measured is not None
    evaluate_times(leaves, strategy, packing_of(problem, strategy), blocks)
    return measured.sources()


def source_notes(problem: Problem, sources: tuple[OperatorSource, ...]) -> tuple[str, ...]:
    """The sources as sentences; none for a problem that asks for formulas."""
    if problem.operators.source == "analytic":
        return ()
    by_source: dict[str, list[str]] = {}
    for entry in sources:
        by_source.setdefault(entry.source, []).append(entry.operator)
    analytic = analytic_source(problem)
    formulas = by_source.pop(analytic, [])
    notes = [f"Measured ({source}): {', '.join(operators)}." for source, operators in by_source.items()]
    never = (*formulas, *NEVER_MEASURED)
    notes.append(f"Not measured, priced by formulas ({analytic}): {', '.join(never)}.")
    if formulas:
        notes.append(
            f"The formulas stand in for measurements of {', '.join(formulas)} in this strategy; they may flatter it "
            f"against strategies that were measured. --engine {problem.operators.backend} leaves out what that engine "
            "cannot launch, and so was not measured."
        )
    return tuple(notes)
