"""What the times of one strategy rest on: formulas or measured kernels, operator by operator."""

from __future__ import annotations

from solver.cost.layers import Blocks
from solver.cost.leaves import Leaves
from solver.cost.metrics import evaluate_times
from solver.cost.operators import analytic_source
from solver.plan import OperatorSource
from solver.specs.problem import Problem
from solver.strategy import Strategy, packing_of


def operator_sources(problem: Problem, strategy: Strategy, blocks: Blocks) -> tuple[OperatorSource, ...]:
    """Sources of every operator that this strategy's metrics add up; one entry for all of them without measurements.

    An operator has two entries where some of its numbers are measured and some are not.
    """
    leaves = Leaves(problem)
    measured = leaves.machine.measured
    if measured is None:
        return (OperatorSource(operator="all", source=analytic_source(problem)),)
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
    notes = [
        f"Measured ({source}): {', '.join(operators)}." for source, operators in by_source.items() if source != analytic
    ]
    formulas = [*by_source.get(analytic, []), "embedding", "pipeline hops", "host work"]
    notes.append(f"Not measured, priced by formulas ({analytic}): {', '.join(formulas)}.")
    return tuple(notes)
