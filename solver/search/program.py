"""The program: every degree and knob as an integer decision of one CP-SAT model (DESIGN 7).

Leaf costs come in through small tables, each tied to its few degrees; products (stage size, GPUs, slots) are
multiplication constraints; what the placement blocks decide enters by its lower bounds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from ortools.sat.python import cp_model

from solver.cost.horizon import LARGEST_PRODUCT, MAX_OBJECTIVE, MAX_REQUEST_NS, MAX_TOKEN_NS, SHARED_PRODUCT
from solver.cost.leaves import Leaves
from solver.cost.limits import limits_of
from solver.cost.metrics import THROUGHPUT_SCALE, Utopia
from solver.degrees import Domains
from solver.search.bounds import Bounds
from solver.search.choice import Expr
from solver.search.degree_vars import DegreeVars, TiePart, mixed_radix
from solver.search.interrupts import keeping_interrupts
from solver.search.metric_vars import MetricVars, weighed
from solver.search.phase import PhaseVars, build_phase, longest_pass_ns
from solver.search.pruning import build_tables, prune
from solver.search.stage_vars import StageVars
from solver.search.tables import PhaseTables, tables_digest
from solver.strategy import Strategy


@dataclass(frozen=True)
class SearchLimits:
    """Parameters of one CP-SAT call.

    One round of presolve and no linear relaxation: on these programs (tables with a literal per row, shares of the
    objective as one inequality) further rounds and relaxations cost more than they save; see docs/search.md.
    """

    workers: int
    seed: int
    time_s: float | None
    gap: float = 0.0
    """Relative gap at which to stop; what is then not closed is FEASIBLE, never OPTIMAL."""


@dataclass(frozen=True)
class ProgramResult:
    """Outcome of one CP-SAT call: `value` and `bound` are exact integers; `strategy` is absent when none was found."""

    status: str
    strategy: Strategy | None
    value: int
    bound: int


class InvalidModelError(RuntimeError):
    """CP-SAT refuses the model, most likely because a domain overflows 64 bits: our bug, never an answer."""


class Program:
    """The model of one problem with the bounds known so far."""

    def __init__(
        self,
        leaves: Leaves,
        domains: Domains,
        bounds: Bounds,
        utopia: Utopia | None,
        upper: int | None,
        model: cp_model.CpModel | None = None,
    ) -> None:
        """`model` absent means one of its own; several programs may share one (:mod:`solver.search.scenarios`)."""
        problem = leaves.problem
        self.problem, self.leaves, self.domains, self.upper = problem, leaves, domains, upper
        self.largest_product = LARGEST_PRODUCT if model is None else SHARED_PRODUCT
        self._open: list[TiePart] = []
        self._busy: cp_model.IntVar | None = None
        self.model = cp_model.CpModel() if model is None else model
        model = self.model
        most_gpus = problem.gpu_budget
        if problem.objective.name == "gpus" and upper is not None:
            most_gpus = min(most_gpus, upper)
        self.degrees = DegreeVars(model, problem, domains, bounds, most_gpus)
        d = self.degrees
        self.tables = self._tables(bounds, utopia, upper)
        self.decode: PhaseVars = build_phase(model, leaves, d, self.tables[0])
        self.prefill: PhaseVars = build_phase(model, leaves, d, self.tables[1])
        self.stages = self._stages()

        step = model.new_int_var(0, longest_pass_ns(leaves, "decode"), "step")
        model.add(step >= self.decode.path + leaves.host_ns)
        if d.max_pp > 1:
            slow = self.stages.slowest["decode"]
            for m in d.micro_batches.values:
                model.add(step >= m * slow + leaves.host_ns).only_enforce_if(d.micro_batches.is_(m))
        slowest_pass = self.stages.slowest["prefill"]
        ttft = self.prefill.path + (leaves.chunks - 1) * slowest_pass + leaves.chunks * leaves.prefill_host_ns
        ttft = ttft + leaves.transfer_ns
        round_ns = model.new_int_var(0, MAX_REQUEST_NS, "round")
        model.add(round_ns >= leaves.chunks * (slowest_pass + leaves.prefill_host_ns))
        most_rounds = max(domains.batch) * max(domains.micro_batches)
        rounds = model.new_int_var(1, most_rounds, "rounds")
        for p in d.prefill_batch.values:
            model.add(p * rounds >= d.sequences).only_enforce_if(d.prefill_batch.is_(p))
        others = model.new_int_var(0, MAX_REQUEST_NS + MAX_TOKEN_NS, "other_rounds")
        model.add_multiplication_equality(others, [rounds - 1, round_ns])
        self.metrics = MetricVars(model, leaves, step, ttft, round_ns, others)
        if self.largest_product < THROUGHPUT_SCALE * MAX_REQUEST_NS:  # of several programs in one model
            model.add(THROUGHPUT_SCALE * self.metrics.cycle <= self.largest_product)
        self.objective = self._objective(utopia)
        self._shares()
        self._rate_limits()
        for memory_cut in bounds.memory_cuts:
            model.add_bool_or(d.leaner_than(memory_cut.strategy))
        for cut in bounds.strategy_cuts:
            differs = d.differs_from(cut.strategy)
            if cut.value is None:
                model.add_bool_or(differs)
            else:
                reached = model.new_bool_var("cut")
                model.add(self.objective >= cut.value).only_enforce_if(reached)
                model.add_bool_or([reached, *differs])

    def forbid(self, strategies: tuple[Strategy, ...]) -> None:
        """Exclude the degrees of these strategies, whatever their knobs."""
        for strategy in strategies:
            self.model.add_bool_or(self.degrees.other_degrees_than(strategy))

    def _shares(self) -> None:
        """Redundant bounds of the objective by the tables' shares.

        Where the objective counts GPU time, a pipeline of ``pp`` stages with ``m`` micro-batches wastes the factor
        ``pp / m``, and the stage with most layers of the main kind sets the pace of all.
        """
        model, d, decode, prefill = self.model, self.degrees, self.decode, self.prefill
        model.add(self.objective >= decode.share + prefill.share)
        by_time = any(
            table.rates.time for table in self.tables
        )  # not of one phase alone: a decode of one token has none
        if d.max_pp == 1 or by_time or not any(table.rates.gpu_time for table in self.tables):
            return
        layers = self.problem.llm.layers.count(self.tables[0].main_kind)
        for pp in d.pp.values:
            most = -(-layers // pp) * pp
            for m in d.micro_batches.values:
                if pp == 1 or m > pp:
                    continue
                given = [d.pp.is_(pp), d.micro_batches.is_(m)]
                if m < pp:
                    spread = pp * decode.share + m * prefill.share
                    model.add(m * self.objective >= spread).only_enforce_if(*given)
                if most > layers:
                    uneven = most * (decode.main_share + prefill.main_share)
                    model.add(layers * self.objective >= uneven).only_enforce_if(*given)

    def _tables(self, bounds: Bounds, utopia: Utopia | None, upper: int | None) -> list[PhaseTables]:
        """Cost tables of both phases, without the rows that a known plan's objective excludes."""
        tables = build_tables(self.leaves, self.domains, bounds, utopia, self.degrees.shapes, self.degrees.layout_rows)
        self.tables_digest = tables_digest(tables)
        pruned = prune(tables, self.domains, self.degrees.shapes, upper)
        self.root_bound = pruned.root
        """No objective is below this: the cheapest stage shape in both phases."""
        for pp, micro in pruned.dead:
            self.model.add_bool_or([~self.degrees.pp.is_(pp), ~self.degrees.micro_batches.is_(micro)])
        if pruned.excludes_all:
            self.model.add_bool_or([])
        return tables

    def _stages(self) -> StageVars:
        """Slowest stages and memory."""
        return StageVars(self.model, self.leaves, self.degrees, self.decode, self.prefill)

    def _objective(self, utopia: Utopia | None) -> cp_model.IntVar:
        """The integer that is minimised; the same number as :func:`solver.cost.metrics.objective_value`."""
        model, d, name, metrics = self.model, self.degrees, self.problem.objective.name, self.metrics
        value = model.new_int_var(0, MAX_OBJECTIVE if self.upper is None else self.upper, "objective")
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
            latency = weighed(model, metrics.latency, latency_weight, "weighted_latency")
            model.add(value >= latency + weighed(model, efficiency, efficiency_weight, "weighted_efficiency"))
        return value

    def _rate_limits(self) -> None:
        """Least throughput and efficiency, as products and by the tables' shares."""
        model, d, cycle = self.model, self.degrees, self.metrics.cycle
        for limit in limits_of(self.problem):
            if not limit.is_rate or limit.at_most >= MAX_OBJECTIVE:
                continue
            if limit.metric == "throughput":
                self._at_most_ratio(limit.at_most, THROUGHPUT_SCALE * cycle, d.active)
            else:
                self._at_most_ratio(limit.at_most, self._gpu_time(cycle), d.active_per_share)
            parts = (self.decode, self.prefill)
            decode, prefill = (phase.limit_shares[limit.metric] for phase in parts)
            model.add(decode + prefill <= limit.at_most)
            if not self.tables[0].limit_rates[limit.metric].gpu_time:
                continue
            for pp in d.pp.values:
                for m in (m for m in d.micro_batches.values if m < pp):
                    idle = pp * decode + m * prefill <= m * limit.at_most
                    model.add(idle).only_enforce_if(d.pp.is_(pp), d.micro_batches.is_(m))

    def _gpu_time(self, cycle: Expr) -> cp_model.IntVar:
        """``cycle`` times the GPUs that `active_per_share` sequences keep busy."""
        if self._busy is not None:
            return self._busy
        whole = self.model.new_int_var(0, MAX_REQUEST_NS + MAX_TOKEN_NS, "cycle")
        self.model.add(whole == cycle)
        busy = self.model.new_int_var(0, self.largest_product, "gpu_time")
        self.model.add_multiplication_equality(busy, [whole, self.degrees.gpus_per_share])
        self._busy = busy
        return busy

    def _at_least_ratio(self, value: cp_model.IntVar, numerator: Expr, denominator: Expr | int) -> None:
        """``value * denominator >= numerator``."""
        if isinstance(denominator, int):
            # A wider ratio would overflow 64 bits and make the whole model invalid.
            ratio = self.model.new_int_var(0, min(MAX_OBJECTIVE, self.largest_product // denominator), "ratio")
            self.model.add(ratio * denominator >= numerator)
            self.model.add(value >= ratio)
            return
        product = self.model.new_int_var(0, self.largest_product, "ratio")
        self.model.add_multiplication_equality(product, [value, denominator])
        self.model.add(product >= numerator)

    def _at_most_ratio(self, limit: int, numerator: Expr, denominator: cp_model.IntVar | int) -> None:
        """``numerator <= limit * denominator``; in coarser units, so a touch weaker, where 64 bits demand it."""
        most = denominator if isinstance(denominator, int) else denominator.proto.domain[-1]
        unit = max(1, -(-limit * most // 2**60))
        if unit > 1:
            coarse = self.model.new_int_var(0, 2**61 // unit, "numerator")
            self.model.add(unit * coarse >= numerator)
            numerator = coarse
        self.model.add(numerator <= -(-limit // unit) * denominator)

    # --- use ------------------------------------------------------------------------------------------------------

    def at_least(self, value: int) -> None:
        """The objective is known to be at least `value`."""
        self.model.add(self.objective >= value)

    def hint(self, strategy: Strategy) -> None:
        """Start from a strategy; never changes the optimum."""
        self.model.clear_hints()  # type: ignore[no-untyped-call]
        self.degrees.hint(strategy)

    @property
    def digest(self) -> str:
        """SHA-256 of the model's text form."""
        return hashlib.sha256(str(self.model.proto).encode()).hexdigest()

    def solve(self, limits: SearchLimits, progress: Callable[[int | None, int], None]) -> ProgramResult:
        """Minimise the objective and, in the same number, as much of the tie-break as stays below 2^53."""
        parts = self.degrees.tie_parts()
        room = MAX_OBJECTIVE // (self.upper + 1) if self.upper is not None else 1
        folded: list[TiePart] = []
        for part in parts:
            if mixed_radix([*folded, part])[1] > room:
                break
            folded.append(part)
        self._open = parts[len(folded) :]
        tie, scale = mixed_radix(folded)
        self._minimise(scale * self.objective + tie)
        result = self._run(limits, lambda value, bound: progress(value and value // scale, bound // scale))
        found = None if result.strategy is None else result.value // scale
        if result.status == "OPTIMAL" and folded:
            self.model.add(tie == result.value % scale)
        return replace(result, value=found or 0, bound=-(-(result.bound - scale + 1) // scale))

    def solve_any(self, limits: SearchLimits) -> ProgramResult:
        """Any solution at all; INFEASIBLE is a proof that there is none. Its value and bound say nothing."""
        self._target: Expr = 0
        self.model.clear_objective()  # type: ignore[no-untyped-call]
        return self._run(limits, lambda _value, _bound: None)

    def solve_memory(self, limits: SearchLimits) -> ProgramResult:
        """Minimise the KiB of the fullest rank instead of the objective."""
        peak = self.model.new_int_var(0, self.leaves.memory.capacity_kib, "peak_kib")
        for held, given in self.stages.held:
            constraint = self.model.add(peak >= held)
            if given:
                constraint.only_enforce_if(*given)
        self._minimise(peak)
        return self._run(limits, lambda _value, _bound: None)

    def solve_ties(self, limits: SearchLimits) -> ProgramResult:
        """After :meth:`solve` proved its optimum: minimise the rest of the tie-break with the objective held there."""
        result = ProgramResult("UNKNOWN", None, 0, 0)
        while self._open:
            group = [self._open.pop(0)]
            while self._open and mixed_radix([*group, self._open[0]])[1] < MAX_OBJECTIVE:
                group.append(self._open.pop(0))
            expression, _ = mixed_radix(group)
            self._minimise(expression)
            result = self._run(replace(limits, gap=0.0), lambda _value, _bound: None)
            if result.status != "OPTIMAL" or result.strategy is None:
                return result
            self.model.add(expression == result.value)
            self.hint(result.strategy)
        return result

    def _minimise(self, expression: Expr) -> None:
        self._target = expression
        self.model.minimize(expression)

    def hold(self, value: int) -> None:
        """Keep the objective at its proved optimum."""
        self.model.add(self.objective <= value)

    def _run(self, limits: SearchLimits, progress: Callable[[int | None, int], None]) -> ProgramResult:
        found = minimise(self.model, self._target, limits, progress)
        strategy = None if found.solver is None else self.degrees.strategy(found.solver)
        return ProgramResult(found.status, strategy, found.value, found.bound)


@dataclass(frozen=True)
class Minimum:
    """Outcome of :func:`minimise`: exact integers, and the solver to read a solution from (absent without one)."""

    status: str
    solver: cp_model.CpSolver | None
    value: int
    bound: int


def minimise(
    model: cp_model.CpModel, target: Expr, limits: SearchLimits, progress: Callable[[int | None, int], None]
) -> Minimum:
    """One CP-SAT call on a model whose objective is `target`."""
    solver = cp_model.CpSolver()
    parameters = solver.parameters
    parameters.num_workers = limits.workers
    parameters.random_seed = limits.seed
    parameters.relative_gap_limit = limits.gap
    parameters.absolute_gap_limit = 0.0
    parameters.max_presolve_iterations = 1
    parameters.linearization_level = 0
    if limits.time_s is not None:
        parameters.max_time_in_seconds = max(0.01, limits.time_s)
    solver.best_bound_callback = lambda bound: progress(None, int(bound))
    with keeping_interrupts():
        status = solver.solve(model, _Watch(progress))
    name = solver.status_name(status)
    if name == "MODEL_INVALID":
        raise InvalidModelError(f"the program is invalid: {model.validate()[:500]}")
    bound = int(solver.response_proto.inner_objective_lower_bound)
    if name not in ("OPTIMAL", "FEASIBLE"):
        return Minimum(name, None, 0, bound)
    value = solver.value(target)
    if limits.gap == 0 and name == "OPTIMAL":
        bound = value
    return Minimum("OPTIMAL" if bound >= value else "FEASIBLE", solver, value, min(bound, value))


class _Watch(cp_model.CpSolverSolutionCallback):
    """Reports every solution and its bound."""

    def __init__(self, progress: Callable[[int | None, int], None]) -> None:
        super().__init__()
        self._progress = progress

    def on_solution_callback(self) -> None:
        self._progress(int(self.objective_value), int(self.best_objective_bound))
