"""Two slots per rank: a layer is a choice of replica counts, since sorted replicas paired from both ends are optimal.

A maximum of T needs, for every size t above T / 2, as many replicas of at most T - t as there are of at least t (they
cannot be paired with one another), and that suffices, up to an expert that would meet itself. With a variable per
expert and count these conditions are linear: the linear program proves a maximum impossible, CP-SAT finds the counts.
Both get conditions and counts as they are needed. Shape suffixes: E logical experts, C replica counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from ortools.linear_solver import pywraplp
from ortools.sat.python import cp_model

from solver.place import clock as time
from solver.place.bounds import SAFE, most_replicas
from solver.place.stack import lone
from solver.place.state import Floats, Ints, Shelf

ROUNDS = 60
"""Most rounds of conditions and counts for one maximum."""
NEW_CONDITIONS = 6
"""Most conditions that one round adds."""
NEARBY = 1
"""Counts around those of the linear program that CP-SAT may choose, at first; one more when all layers are done."""
VIOLATED = 1e-6
"""Replicas by which a condition must fail to count: the tolerance of the linear program."""
MOST_COUNTS = 20_000
"""Replica counts that are tried one and all."""
CLOSE_SECONDS = 0.2
"""Deterministic time of CP-SAT for one maximum of one layer, at first; doubled when all layers are done."""
MOST_SECONDS = 16.0
"""Deterministic time of CP-SAT for one maximum at which the search gives up."""
COARSE = 1e-2
"""Relative gap of a layer's first bound."""
FIRST_STEP = 0.015
"""Distance from the bound, relative, of the first maximum that is tried: most layers have counts for it."""
ALLOWANCE = 1e-9
"""Relative allowance for rounding of sizes, in favour of what is possible."""


def pairs_apply(num_experts: int, shelf: Shelf) -> bool:
    """Whether all ranks have two slots and some experts more than one replica."""
    return bool((shelf.slots_r == 2).all()) and shelf.num_slots > num_experts


def every_count(num_experts: int, shelf: Shelf, least: int = 1) -> Ints | None:
    """All replica counts that fill the slots, ``[B, E]``, where there are not too many of them."""
    spare, most = shelf.num_slots - least * num_experts, shelf.num_ranks - least
    if math.comb(spare + num_experts - 1, spare) > MOST_COUNTS:
        return None
    rows = np.zeros((1, 0), dtype=np.int64)
    for expert in range(num_experts):
        left = spare - rows.sum(axis=1)
        later = num_experts - expert - 1
        grown = [np.c_[rows, np.full(len(rows), extra)][(left >= extra) & (left - extra <= later * most)]
                 for extra in range(min(spare, most) + 1)]  # fmt: skip
        rows = np.concatenate(grown)
    counts: Ints = rows + least
    return counts


@dataclass
class PairSearch:
    """Layers with two slots per rank: their bounds raised by linear programs, counts below their best maxima by CP-SAT.

    `load_le`, `bound_l` and `best_l` are in one unit; `gap` is the relative gap at which a layer is left alone.
    """

    load_le: Floats
    shelf: Shelf
    bound_l: Floats
    best_l: Floats
    gap: float
    least: int = 1

    def __post_init__(self) -> None:
        self.pairs = [Pairs(load_e, self.shelf, self.least) for load_e in self.load_le]
        self.failed_l = self.bound_l.copy()
        self.bounded_l = np.zeros(len(self.load_le), dtype=np.int64)
        self.seconds, self.nearby = CLOSE_SECONDS, NEARBY

    def run(self, until: float) -> dict[int, Ints]:
        """Counts of the layers that got better ones, until the time (``time.monotonic``); bounds change in place.

        Few counts are tried one and all. Else each layer's bound comes first, roughly; then, widest gaps first, maxima
        halfway between the best one and the highest that failed; then the bound again.
        """
        found: dict[int, Ints] = {}
        every = every_count(self.load_le.shape[1], self.shelf, self.least)
        while every is None and time.monotonic() < until:
            far = self.best_l > self.bound_l * (1 + self.gap)
            if not far.any() or self.seconds > MOST_SECONDS:
                break
            wide = (self.best_l - self.failed_l > self.gap * self.best_l) | (self.bounded_l < 2)
            open_l = np.flatnonzero(far & wide)
            if not len(open_l):
                self.failed_l, self.seconds, self.nearby = self.bound_l.copy(), 2 * self.seconds, self.nearby + 1
            for layer in open_l[np.argsort((self.failed_l / self.best_l)[open_l], kind="stable")]:
                if time.monotonic() > until:
                    break
                counts = self._step(int(layer), until)
                if counts is not None:
                    found[int(layer)] = counts
        if every is not None:
            for layer in np.flatnonzero(self.best_l > self.bound_l * (1 + self.gap)):
                counts = self._try_all(int(layer), every)
                if counts is not None:
                    found[int(layer)] = counts
        return found

    def _try_all(self, layer: int, every_be: Ints) -> Ints | None:
        """The optimum of one layer, from all counts there are; both bound and best maximum."""
        experts = np.broadcast_to(np.arange(every_be.shape[1]), every_be.shape)
        expert = np.repeat(experts.ravel(), every_be.ravel()).reshape(len(every_be), -1)
        size = np.take_along_axis(self.load_le[layer] / every_be, expert, 1)
        order = np.argsort(size, axis=1, kind="stable")
        size, expert = np.take_along_axis(size, order, 1), np.take_along_axis(expert, order, 1)
        top = np.maximum((size + size[:, ::-1]).max(axis=1), lone(size, expert, every_be))
        best = int(top.argmin())
        self.bound_l[layer] = max(float(self.bound_l[layer]), float(top[best]) * (1 - SAFE))
        if top[best] >= self.best_l[layer]:
            return None
        self.best_l[layer] = top[best]
        counts: Ints = every_be[best]
        return counts

    def _step(self, layer: int, until: float) -> Ints | None:
        """One step of one layer: its bound, or counts for one maximum."""
        pairs, best = self.pairs[layer], float(self.best_l[layer])
        failed = float(self.failed_l[layer])
        narrow = best <= failed * (1 + self.gap)
        if self.bounded_l[layer] == 0 or (self.bounded_l[layer] == 1 and narrow):
            gap = self.gap if narrow else COARSE
            self.bound_l[layer] = pairs.bound((float(self.bound_l[layer]), best), gap, until)
            self.failed_l[layer] = max(failed, self.bound_l[layer])
            self.bounded_l[layer] += 1
            return None
        top = min((best + failed) / 2, failed * (1 + FIRST_STEP))
        probe = pairs.probe(top)
        seconds = min(self.seconds, until - time.monotonic())
        counts = pairs.counts(top, probe, seconds, self.nearby) if probe.counts_of_e else None
        if counts is None:
            self.failed_l[layer] = top
            return None
        size = np.sort(np.repeat(self.load_le[layer] / counts, counts))
        self.best_l[layer] = (size + size[::-1]).max()
        return counts


@dataclass(frozen=True)
class Probe:
    """Whether the linear program allows a maximum; if so its counts per expert, and the conditions it met.

    Possible and without counts where the program was not solved to the end: nothing is known of such a maximum.
    """

    possible: bool
    counts_of_e: tuple[tuple[int, ...], ...] = ()
    sizes: tuple[float, ...] = ()


@dataclass
class Pairs:
    """One layer in search of counts; loads in any unit."""

    load_e: Floats
    shelf: Shelf
    least: int = 1
    columns: set[tuple[int, int]] = field(default_factory=set)
    """Pairs of expert and count that the linear programs so far needed."""
    sizes: set[float] = field(default_factory=set)
    """Sizes whose conditions they needed."""

    def __post_init__(self) -> None:
        self.count_c = np.arange(self.least, most_replicas(len(self.load_e), self.shelf, self.least) + 1)
        self.size_ec = self.load_e[:, None] / self.count_c[None, :]
        self.slots = self.shelf.num_slots

    def bound(self, span: tuple[float, float], gap: float = 1e-3, until: float = math.inf) -> float:
        """Highest maximum found impossible within `span`: the bound so far, and a maximum reached.

        Maxima below the one reached are tried in steps that double, since few layers have wide gaps; then bisection.
        """
        low, high = span
        step, bracketed = gap, False
        while high > low * (1 + gap) and time.monotonic() < until:
            middle = (low + high) / 2 if bracketed else max((low + high) / 2, high * (1 - step))
            possible = self.probe(middle).possible
            step, bracketed = 2 * step, bracketed or not possible
            if possible:
                high = middle
            else:
                low = middle
        return low

    def probe(self, top: float) -> Probe:
        """The linear program for one maximum: the least violation of the conditions, with prices that prove it."""
        fewest = (self.size_ec <= top * (1 + ALLOWANCE)).argmax(axis=1)
        if self.size_ec[:, -1].max() > top * (1 + ALLOWANCE):
            return Probe(False)
        program = _Program(self, top)
        program.add_columns({(e, int(self.count_c[c])) for e, c in enumerate(fewest)} | self.columns)
        program.add_rows(sorted(size for size in self.sizes if size > top / 2 * (1 + ALLOWANCE)))
        for _ in range(ROUNDS):
            answer = program.solve()
            if answer is None:
                break
            used_columns = zip(answer.columns, answer.weights, strict=True)
            self.columns |= {column for column, weight in used_columns if weight > 0}
            self.sizes |= {size for size, price in zip(answer.rows, answer.row_prices, strict=True) if price > 0}
            cheapest = self._cheapest(top, answer)
            if cheapest is None:
                return Probe(False)
            sizes = self._broken(top, answer.columns, answer.weights, answer.violation + VIOLATED)
            new = cheapest - program.columns.keys()
            if not new and not sizes:
                return Probe(True, answer.counts_of_e(len(self.load_e)), tuple(program.rows))
            program.add_columns(new)
            program.add_rows(sizes)
        return Probe(True)

    def kind(self, top: float, size: float, value: Floats) -> Ints:
        """1 for replicas of at least `size`, -1 for those that may be paired with them, 0 for others."""
        small = value <= (top - size) + ALLOWANCE * top
        kinds: Ints = (value >= size).astype(np.int64) - small
        return kinds

    def _cheapest(self, top: float, answer: _Answer) -> set[tuple[int, int]] | None:
        """Counts that the prices of the conditions and slots would rather have; None when these prove impossibility."""
        paid_ec = np.full(self.size_ec.shape, answer.slot_price)
        for size, price in zip(answer.rows, answer.row_prices, strict=True):
            paid_ec += price * self.kind(top, size, self.size_ec)
        paid_ec *= self.count_c
        paid_ec[self.size_ec > top * (1 + ALLOWANCE)] = np.inf
        best = paid_ec.argmin(axis=1)
        least_e = np.take_along_axis(paid_ec, best[:, None], 1)[:, 0]
        # Real counts fill the slots and violate nothing, so they pay the slots' price at most.
        if least_e.sum() - self.slots * answer.slot_price > VIOLATED:
            return None
        wanted = np.flatnonzero(least_e < answer.expert_prices - VIOLATED)
        return {(int(e), int(self.count_c[best[e]])) for e in wanted}

    def _broken(self, top: float, columns: list[tuple[int, int]], weights: Floats, allowed: float) -> list[float]:
        """Sizes whose conditions fail by more than `allowed`, the worst of every run of them, most violated first."""
        used = np.flatnonzero(weights > 0)
        expert, count = np.array(columns)[used].T
        size = self.load_e[expert] / count
        order = np.argsort(size)
        size, number = size[order], np.concatenate([[0.0], np.cumsum((weights[used] * count)[order])])
        large = np.unique(size[size > top / 2 * (1 + ALLOWANCE)])
        above = number[-1] - number[np.searchsorted(size, large, side="left")]
        below = number[np.searchsorted(size, top - large + ALLOWANCE * top, side="right")]
        excess = np.concatenate([[-np.inf], above - below - allowed, [-np.inf]])
        peak = (excess[1:-1] > 0) & (excess[1:-1] >= excess[:-2]) & (excess[1:-1] >= excess[2:])
        worst = np.flatnonzero(peak)
        worst = worst[np.argsort(-excess[1:-1][worst], kind="stable")][:NEW_CONDITIONS]
        return [float(large[at]) for at in worst]

    def counts(self, top: float, probe: Probe, seconds: float, nearby: int) -> Ints | None:
        """Counts at most `nearby` from those of a probe that allow `top`, by CP-SAT; None if none were found in time.

        The seconds are CP-SAT's deterministic ones, so that no clock decides; real ones may be up to twice as many.
        """
        allowed = self._around(top, probe, nearby)
        model = cp_model.CpModel()
        choice = {column: model.new_bool_var("") for column in allowed}
        for _, columns in groupby(allowed, key=lambda column: column[0]):
            model.add_exactly_one([choice[column] for column in columns])
        model.add(
            cp_model.LinearExpr.weighted_sum(list(choice.values()), [count for _, count in allowed]) == self.slots
        )
        value = np.array([self.load_e[expert] / count for expert, count in allowed])
        number = np.array([count for _, count in allowed])

        def require(sizes: Iterable[float]) -> None:
            for size in sizes:
                terms = number * self.kind(top, size, value)
                where = np.flatnonzero(terms).tolist()
                literals = [choice[allowed[at]] for at in where]
                model.add(cp_model.LinearExpr.weighted_sum(literals, terms[where].tolist()) <= 0)

        require(probe.sizes)
        ends = time.monotonic() + 2 * seconds
        for _ in range(ROUNDS):
            solver = cp_model.CpSolver()
            solver.parameters.catch_sigint_signal = False  # Ctrl-C is for the clock of this room
            solver.parameters.cp_model_presolve = False  # it takes three times as long as the search
            solver.parameters.num_workers = 1
            solver.parameters.max_deterministic_time = seconds
            solver.parameters.max_time_in_seconds = max(0.01, ends - time.monotonic())
            if solver.status_name(solver.solve(model)) not in ("OPTIMAL", "FEASIBLE"):
                return None
            seconds -= solver.response_proto.deterministic_time
            chosen = [column for column in allowed if solver.boolean_value(choice[column])]
            broken = self._broken(top, chosen, np.ones(len(chosen)), 0.5)
            if not broken:
                return np.array([count for _, count in sorted(chosen)], dtype=np.int64)
            require(broken)
        return None

    def _around(self, top: float, probe: Probe, nearby: int) -> list[tuple[int, int]]:
        """Counts of the probe and their neighbours that keep an expert's replicas within `top`, sorted."""
        first, last = int(self.count_c[0]), int(self.count_c[-1])
        allowed = {
            (expert, count)
            for expert, used in enumerate(probe.counts_of_e)
            for middle in used
            for count in range(max(first, middle - nearby), min(last, middle + nearby) + 1)
            if self.load_e[expert] / count <= top * (1 + ALLOWANCE)
        }
        return sorted(allowed)


@dataclass(frozen=True)
class _Answer:
    """Solution of a linear program: columns with their weights, and the prices of rows, experts and slots."""

    violation: float
    columns: list[tuple[int, int]]
    weights: Floats
    rows: list[float]
    row_prices: Floats
    expert_prices: Floats
    slot_price: float

    def counts_of_e(self, experts: int) -> tuple[tuple[int, ...], ...]:
        """Counts with a weight, per expert."""
        used: list[list[int]] = [[] for _ in range(experts)]
        for (expert, count), weight in zip(self.columns, self.weights, strict=True):
            if weight > VIOLATED:
                used[expert].append(count)
        return tuple(tuple(counts) for counts in used)


class _Program:
    """The linear program of one maximum: weights of counts, least violation of the conditions."""

    def __init__(self, pairs: Pairs, top: float) -> None:
        self.pairs, self.top = pairs, top
        self.solver = pywraplp.Solver.CreateSolver("GLOP")
        self.infinite = self.solver.infinity()
        self.columns: dict[tuple[int, int], pywraplp.Variable] = {}
        self.rows: dict[float, pywraplp.Constraint] = {}
        self.violation = self.solver.NumVar(0.0, self.infinite, "violation")
        self.experts = [self.solver.Constraint(1.0, 1.0) for _ in pairs.load_e]
        self.filled = self.solver.Constraint(float(pairs.slots), float(pairs.slots))
        objective = self.solver.Objective()
        objective.SetCoefficient(self.violation, 1.0)
        objective.SetMinimization()
        # Slots too many or too few count as violations, so that the first few columns have a solution.
        for sign in (1.0, -1.0):
            slack = self.solver.NumVar(0.0, self.infinite, "slack")
            self.filled.SetCoefficient(slack, sign)
            objective.SetCoefficient(slack, 1.0)

    def add_columns(self, columns: Iterable[tuple[int, int]]) -> None:
        """Columns (expert, count) whose replicas are within the maximum."""
        fresh = sorted(column for column in columns if column not in self.columns)
        size = np.array([self.pairs.load_e[expert] / count for expert, count in fresh])
        fits = size <= self.top * (1 + ALLOWANCE)
        fresh, size = [column for column, fit in zip(fresh, fits, strict=True) if fit], size[fits]
        for expert, count in fresh:
            column = self.solver.NumVar(0.0, self.infinite, "weight")
            self.columns[expert, count] = column
            self.experts[expert].SetCoefficient(column, 1.0)
            self.filled.SetCoefficient(column, float(count))
        for value, row in self.rows.items():
            self._fill(row, value, fresh, size)

    def add_rows(self, sizes: Iterable[float]) -> None:
        """Conditions for some sizes."""
        columns = list(self.columns)
        values = np.array([self.pairs.load_e[expert] / count for expert, count in columns])
        for size in sizes:
            row = self.solver.Constraint(-self.infinite, 0.0)
            row.SetCoefficient(self.violation, -1.0)
            self._fill(row, size, columns, values)
            self.rows[size] = row

    def _fill(self, row: pywraplp.Constraint, size: float, columns: list[tuple[int, int]], values: Floats) -> None:
        for column, kind in zip(columns, self.pairs.kind(self.top, size, values), strict=True):
            if kind:
                row.SetCoefficient(self.columns[column], float(kind * column[1]))

    def solve(self) -> _Answer | None:
        """Solve with the rows and columns so far; prices are only as good as their check by the caller.

        None where the numbers are beyond the solver, even from scratch and without its presolve.
        """
        if self.solver.Solve() != pywraplp.Solver.OPTIMAL:
            careful = pywraplp.MPSolverParameters()
            careful.SetIntegerParam(careful.INCREMENTALITY, careful.INCREMENTALITY_OFF)
            careful.SetIntegerParam(careful.PRESOLVE, careful.PRESOLVE_OFF)
            if self.solver.Solve(careful) != pywraplp.Solver.OPTIMAL:
                return None
        return _Answer(
            self.violation.solution_value(),
            list(self.columns),
            np.array([column.solution_value() for column in self.columns.values()]),
            list(self.rows),
            np.array([max(0.0, -row.dual_value()) for row in self.rows.values()]),
            np.array([row.dual_value() for row in self.experts]),
            -float(self.filled.dual_value()),
        )
