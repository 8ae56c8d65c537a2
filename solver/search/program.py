"""The program: every degree and knob as an integer decision of one CP-SAT model (DESIGN 7).

Leaf costs come in through small tables, each tied to its few degrees; products (stage size, GPUs, slots) are
multiplication constraints; what the placement blocks decide enters by its lower bounds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from ortools.sat.python import cp_model

from solver.cost.leaves import Leaves
from solver.cost.machine import Phase
from solver.cost.metrics import THROUGHPUT_SCALE, Utopia
from solver.degrees import Domains
from solver.search.bounds import Bounds
from solver.search.choice import Expr
from solver.search.degree_vars import DegreeVars
from solver.search.metric_vars import MAX_OBJECTIVE, MAX_STEP_NS, MAX_TOTAL_NS, MetricVars
from solver.search.phase import PhaseVars, build_phase
from solver.search.stage_vars import StageVars
from solver.search.tables import PhaseTables, phase_modes, phase_rates, prune, tables_digest
from solver.specs.problem import AllReduce
from solver.strategy import Strategy

@dataclass(frozen=True)
class SearchLimits:
    """Parameters of one CP-SAT call."""

    workers: int
    seed: int
    time_s: float | None


@dataclass(frozen=True)
class ProgramResult:
    """Outcome of one CP-SAT call: `value` and `bound` are exact integers; `strategy` is absent when none was found."""

    status: str
    strategy: Strategy | None
    value: int
    bound: int


class Program:
    """The model of one problem with the bounds known so far."""

    def __init__(
        self, leaves: Leaves, domains: Domains, bounds: Bounds, utopia: Utopia | None, upper: int | None
    ) -> None:
        problem = leaves.problem
        self.problem, self.leaves, self.domains = problem, leaves, domains
        self.model = cp_model.CpModel()
        model = self.model
        self.degrees = DegreeVars(model, problem, domains, bounds)
        d = self.degrees
        self.tables = self._tables(bounds, utopia, upper)
        self.decode: PhaseVars = build_phase(model, leaves, d, self.tables[0])
        self.prefill: PhaseVars = build_phase(model, leaves, d, self.tables[1])
        self.stages = StageVars(model, leaves, d, self.decode, self.prefill)

        step = model.new_int_var(0, MAX_STEP_NS, "step")
        model.add(step >= self.decode.path + leaves.host_ns)
        if d.max_pp > 1:
            slow = self.stages.slowest["decode"]
            for m in d.micro_batches.values:
                model.add(step >= m * slow + leaves.host_ns).only_enforce_if(d.micro_batches.is_(m))
        slowest_pass = self.stages.slowest["prefill"]
        ttft = self.prefill.path + (leaves.chunks - 1) * slowest_pass + leaves.chunks * leaves.host_ns
        round_ns = model.new_int_var(0, MAX_TOTAL_NS, "round")
        model.add(round_ns >= leaves.chunks * (slowest_pass + leaves.host_ns))
        most_rounds = max(domains.batch) * max(domains.micro_batches)
        rounds = model.new_int_var(1, most_rounds, "rounds")
        for p in d.prefill_batch.values:
            model.add(p * rounds >= d.sequences).only_enforce_if(d.prefill_batch.is_(p))
        others = model.new_int_var(0, MAX_TOTAL_NS, "other_rounds")
        model.add_multiplication_equality(others, [rounds - 1, round_ns])
        self.metrics = MetricVars(model, leaves, step, ttft, round_ns, others)
        self.objective = self._objective(utopia)
        model.add(self.objective >= self.decode.share + self.prefill.share)
        if upper is not None:
            model.add(self.objective <= upper)
        for cut in bounds.strategy_cuts:
            differs = d.differs_from(cut.strategy)
            if cut.value is None:
                model.add_bool_or(differs)
            else:
                reached = model.new_bool_var("cut")
                model.add(self.objective >= cut.value).only_enforce_if(reached)
                model.add_bool_or([reached, *differs])

    def _tables(self, bounds: Bounds, utopia: Utopia | None, upper: int | None) -> list[PhaseTables]:
        """Cost tables of both phases, without the rows that a known plan's objective excludes."""
        problem, leaves, d, domains = self.problem, self.leaves, self.degrees, self.domains
        tables = []
        phases: tuple[tuple[Phase, tuple[int, ...], tuple[AllReduce, ...]], ...] = (
            ("decode", domains.batch, domains.decode_allreduce),
            ("prefill", domains.prefill_batch, domains.prefill_allreduce),
        )
        for phase, groups, algorithms in phases:
            rates = phase_rates(problem, leaves, domains, phase, utopia)
            table = PhaseTables(leaves, bounds, phase, rates, phase_modes(problem, domains, phase))
            table.build_group(domains.attn_tp, groups, algorithms)
            if problem.llm.is_moe:
                table.build_expert(d.shapes, d.layout_rows, groups)
            tables.append(table)
        self.tables_digest = tables_digest(tables)
        if upper is not None:
            prune(tables, upper)
        return tables

    def _objective(self, utopia: Utopia | None) -> cp_model.IntVar:
        """The integer that is minimised; the same number as :func:`solver.cost.metrics.objective_value`."""
        model, d, name, metrics = self.model, self.degrees, self.problem.objective.name, self.metrics
        value = model.new_int_var(0, MAX_OBJECTIVE, "objective")
        if name == "latency":
            model.add(value >= metrics.latency)
        elif name == "ttft":
            model.add(value >= metrics.ttft)
        elif name == "tpot":
            model.add(value >= metrics.tpot)
        elif name == "gpus":
            model.add(value >= d.gpus)
        elif name == "throughput":
            self._at_least_ratio(value, THROUGHPUT_SCALE * metrics.cycle, d.active)
        elif name == "efficiency":
            self._at_least_ratio(value, self._gpu_time(metrics.cycle), d.active_per_share)
        else:
            assert utopia is not None
            efficiency = model.new_int_var(0, MAX_OBJECTIVE, "inverse_efficiency")
            self._at_least_ratio(efficiency, self._gpu_time(metrics.cycle), d.active_per_share)
            latency_weight, efficiency_weight = utopia.weights(self.problem.objective.latency_weight)
            model.add(value >= latency_weight * metrics.latency + efficiency_weight * efficiency)
        return value

    def _gpu_time(self, cycle: Expr) -> cp_model.IntVar:
        """``cycle`` times the GPUs that `active_per_share` sequences keep busy."""
        whole = self.model.new_int_var(0, MAX_TOTAL_NS, "cycle")
        self.model.add(whole == cycle)
        busy = self.model.new_int_var(0, 2**61, "gpu_time")
        self.model.add_multiplication_equality(busy, [whole, self.degrees.gpus_per_share])
        return busy

    def _at_least_ratio(self, value: cp_model.IntVar, numerator: Expr, denominator: Expr | int) -> None:
        """``value * denominator >= numerator``."""
        if isinstance(denominator, int):
            self.model.add(value * denominator >= numerator)
            return
        product = self.model.new_int_var(0, 2**61, "ratio")
        self.model.add_multiplication_equality(product, [value, denominator])
        self.model.add(product >= numerator)

    # --- use ------------------------------------------------------------------------------------------------------

    def at_least(self, value: int) -> None:
        """The objective is known to be at least `value`."""
        self.model.add(self.objective >= value)

    def hint(self, strategy: Strategy) -> None:
        """Start from a strategy; never changes the optimum."""
        self.model.clear_hints()
        self.degrees.hint(strategy)

    @property
    def digest(self) -> str:
        """SHA-256 of the model's text form."""
        return hashlib.sha256(str(self.model.proto).encode()).hexdigest()

    def solve(self, limits: SearchLimits, progress: Callable[[int | None, int], None]) -> ProgramResult:
        """Minimise the objective."""
        self.model.minimize(self.objective)
        return self._run(limits, progress, self.objective)

    def solve_ties(self, limits: SearchLimits) -> ProgramResult:
        """Minimise the tie-break among the solutions that satisfy the bound on the objective, group by group."""
        result = ProgramResult("UNKNOWN", None, 0, 0)
        for group in self.degrees.tie_groups():
            expression = group.expression()
            self.model.minimize(expression)
            target = self.model.new_int_var(0, 2**53, "tie")
            self.model.add(target == expression)
            result = self._run(limits, lambda _value, _bound: None, target)
            if result.status != "OPTIMAL":
                return result
            assert result.strategy is not None
            self.model.add(expression == result.value)
            self.hint(result.strategy)
        return result

    def _run(
        self, limits: SearchLimits, progress: Callable[[int | None, int], None], target: cp_model.IntVar
    ) -> ProgramResult:
        solver = cp_model.CpSolver()
        parameters = solver.parameters
        parameters.num_workers = limits.workers
        parameters.random_seed = limits.seed
        parameters.relative_gap_limit = 0.0
        parameters.absolute_gap_limit = 0.0
        if limits.time_s is not None:
            parameters.max_time_in_seconds = max(0.01, limits.time_s)
        status = solver.solve(self.model, _Watch(progress))
        name = solver.status_name(status)
        bound = int(solver.response_proto.inner_objective_lower_bound)
        if name not in ("OPTIMAL", "FEASIBLE"):
            return ProgramResult(name, None, 0, bound)
        value = solver.value(target)
        return ProgramResult(name, self.degrees.strategy(solver), value, value if name == "OPTIMAL" else bound)


class _Watch(cp_model.CpSolverSolutionCallback):
    """Reports every solution and its bound."""

    def __init__(self, progress: Callable[[int | None, int], None]) -> None:
        super().__init__()
        self._progress = progress

    def on_solution_callback(self) -> None:
        self._progress(int(self.objective_value), int(self.best_objective_bound))
