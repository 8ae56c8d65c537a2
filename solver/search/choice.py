"""Two building blocks of the program: a decision with a literal per value, and a table with a literal per row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from ortools.sat.python import cp_model

Value = TypeVar("Value", bound=Hashable)
Expr = cp_model.LinearExpr | int


class Choice(Generic[Value]):
    """A decision over finitely many values: exactly one literal holds."""

    def __init__(self, model: cp_model.CpModel, name: str, values: Sequence[Value]) -> None:
        self.name, self.values = name, tuple(values)
        self.literals = {value: model.new_bool_var(f"{name}={value}") for value in self.values}
        model.add_exactly_one(self.literals.values())
        self._model = model
        self._variable: cp_model.IntVar | None = None

    def is_(self, value: Value) -> cp_model.IntVar:
        """Literal of one value."""
        return self.literals[value]

    def pick(self, coefficients: Sequence[int]) -> Expr:
        """Linear expression: the coefficient of the chosen value."""
        return cp_model.LinearExpr.weighted_sum(list(self.literals.values()), list(coefficients))

    def number(self) -> Expr:
        """The chosen value as a linear expression (integer values only)."""
        return self.pick([int(value) for value in self.values])  # type: ignore[call-overload]

    def variable(self) -> cp_model.IntVar:
        """The chosen value as a variable (products take variables, not sums)."""
        if self._variable is None:
            domain = cp_model.Domain.from_values([int(value) for value in self.values])  # type: ignore[call-overload]
            self._variable = self._model.new_int_var_from_domain(domain, self.name)
            self._model.add(self._variable == self.number())
        return self._variable

    def index(self) -> Expr:
        """Position of the chosen value."""
        return self.pick(range(len(self.values)))

    def chosen(self, solver: cp_model.CpSolver | cp_model.CpSolverSolutionCallback) -> Value:
        """The value in a solution."""
        return next(value for value, literal in self.literals.items() if solver.boolean_value(literal))


class Table:
    """A table constraint with one literal per row: keys are tied to choices, outputs are linear expressions."""

    def __init__(self, model: cp_model.CpModel, name: str, num_rows: int) -> None:
        self.model, self.num_rows = model, num_rows
        self.rows = [model.new_bool_var(f"{name}#{row}") for row in range(num_rows)]
        model.add_exactly_one(self.rows)

    def key(self, choice: Choice[Value], values: Sequence[Value]) -> None:
        """Tie a choice to the column `values` (one entry per row): its value is that of the chosen row."""
        rows_of: dict[Value, list[cp_model.IntVar]] = defaultdict(list)
        for row, value in zip(self.rows, values, strict=True):
            rows_of[value].append(row)
        for value, literal in choice.literals.items():
            self.model.add(cp_model.LinearExpr.sum(rows_of.get(value, [])) == literal)

    def out(self, name: str, values: Sequence[int]) -> cp_model.IntVar:
        """The entry of the chosen row, as a variable."""
        numbers = [int(value) for value in values]
        variable = self.model.new_int_var(min(numbers), max(numbers), name)
        self.model.add(variable == cp_model.LinearExpr.weighted_sum(self.rows, numbers))
        return variable
