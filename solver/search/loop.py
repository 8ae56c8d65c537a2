"""The loop (logic-based Benders): program, placement blocks, cut, until program optimum = realised cost.

The program minimises the objective with every placement block at a valid lower bound, so its optimum bounds every
strategy with every placement. The blocks then realise its strategy; where they cost more than the bound that was
used, the bound is raised (or that strategy's true value is recorded) and the program is solved again. When both agree
nothing better exists. A second program with the objective held at its optimum breaks ties.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from solver.certificate import Iteration, Status
from solver.cost.horizon import in_horizon
from solver.cost.layers import Blocks
from solver.cost.leaves import Leaves
from solver.cost.ledger import stage_ledgers
from solver.cost.limits import is_within, limits_of
from solver.cost.metrics import Utopia, evaluate_times, natural_value, objective_value
from solver.degrees import Domains, domains_of
from solver.search.bounds import Bounds, MemoryCut, StrategyCut
from solver.search.clock import Clocked
from solver.search.incumbent import Scores, find_incumbent
from solver.search.interrupts import keeping_interrupts
from solver.search.program import Program, ProgramResult, SearchLimits
from solver.search.realise import BlockCache, Realised, memory_violations, realise
from solver.search.shapes import stage_shapes
from solver.search.shared import Known
from solver.search.stages import StagesProblem, solve_stages
from solver.specs.problem import ObjectiveName, Problem
from solver.strategy import Strategy, packing_of

MAX_TURNS = 200
"""Turns after which the loop reports what it has (each adds at least one cut; a handful is normal)."""


UNITS = {"throughput": " tokens/s", "efficiency": " tokens/s/GPU", "gpus": " GPUs"}
"""Of objectives that are no times."""
INTERRUPT_MARGIN_S = 0.05
"""A solve that ends unproved so long before its limit was interrupted."""


@dataclass(frozen=True)
class Progress:
    """What a caller sees while it waits."""

    phase: str
    value: int | None
    """Objective integer of the best plan so far."""
    bound: int
    elapsed_s: float
    objective: ObjectiveName
    osl: int

    def natural(self, integer: int) -> float:
        """An objective integer in the unit of its metric."""
        return natural_value(self.objective, integer, self.osl)

    @property
    def unit(self) -> str:
        """What follows a natural value; empty where the value is a time, or a share."""
        return UNITS.get(self.objective, "")

    @property
    def gap(self) -> float | None:
        """``(value - bound) / value``; absent before the first solution."""
        return None if not self.value else max(0.0, (self.value - self.bound) / self.value)


class ContradictionError(RuntimeError):
    """The program and the cost model disagree: our bug (or the solver's), never a claim."""


@dataclass
class Outcome:
    """Result of the loop."""

    status: Status
    best: Realised | None
    bound: int
    domains: Domains
    iterations: list[Iteration] = field(default_factory=list)
    runners_up: list[tuple[int, Strategy]] = field(default_factory=list)
    program_digest: str = ""
    tables_digest: str = ""
    tables_s: float = 0.0
    program_s: float = 0.0
    blocks_s: float = 0.0
    interrupted: bool = False


@dataclass(frozen=True)
class Beyond:
    """A search for further strategies: other degrees than these, and an objective of at most `at_most`."""

    taken: tuple[Strategy, ...]
    at_most: int

    def admits(self, strategy: Strategy, value: int) -> bool:
        """Whether a strategy with this objective is one of those that are looked for."""
        return value <= self.at_most and all(strategy.degrees != other.degrees for other in self.taken)


class Loop(Clocked[Outcome]):
    """One run of the loop on one problem."""

    waived: frozenset[str] = frozenset()
    """Rules of legality that do not hold: explanations drop them, and set this before the loop is made."""

    def __init__(
        self,
        problem: Problem,
        limits: SearchLimits,
        on_progress: Callable[[Progress], None],
        utopia: Utopia | None,
        beyond: Beyond | None = None,
        known: Known | None = None,
    ) -> None:
        self.beyond, self.known = beyond, known
        self.started = time.monotonic()
        self.problem, self.on_progress, self.utopia = problem, on_progress, utopia
        self.allow(limits)
        self.leaves = Leaves(problem) if known is None else known.leaves
        self.cache = BlockCache(self.leaves) if known is None else known.cache
        self.bounds = Bounds(problem) if known is None else known.bounds
        at_least = 0 if known is None else known.at_least
        self.outcome = Outcome("UNKNOWN", None, at_least, domains_of(problem, self.waived))
        self.is_started = False

    def start(self) -> Outcome:
        """A first plan by closed forms, if they find one, and no proof; :meth:`run` goes on from it."""
        outcome = self.outcome
        shapes = [] if outcome.domains.is_empty else stage_shapes(self.problem, outcome.domains)
        if not shapes:
            outcome.status = "INFEASIBLE"
            return outcome
        self._start(shapes)
        self.is_started = True
        outcome.status = "UNKNOWN" if outcome.best is None else "FEASIBLE"
        self._meet()
        return outcome

    def _meet(self) -> None:
        """A plan that reaches a proved bound is proved."""
        outcome = self.outcome
        if outcome.status == "FEASIBLE" and outcome.best is not None and outcome.bound >= outcome.best.value:
            outcome.status, outcome.bound = "OPTIMAL", outcome.best.value

    def run(self) -> Outcome:
        """Solve; Ctrl-C and the time limit end it with the best plan so far and its true gap."""
        outcome = self.outcome
        try:
            if not self.is_started and self.start().status == "INFEASIBLE":
                return outcome
            self._prove()
        except KeyboardInterrupt:
            outcome.interrupted = True
            if outcome.status != "OPTIMAL":
                outcome.status = "FEASIBLE" if outcome.best is not None else "UNKNOWN"
        self._meet()
        return outcome

    # --- parts --------------------------------------------------------------------------------------------------------

    def _start(self, shapes: list[tuple[int, int, int, int]]) -> None:
        """Incumbent from closed-form scores."""
        begun = time.monotonic()
        admits = None if self.beyond is None else self.beyond.admits
        scores = Scores(self.leaves, self.outcome.domains, self.bounds, self.utopia, admits, self.waived)
        scores.share(self.known)
        strategy = find_incumbent(scores, shapes)
        if strategy is not None:
            self._keep(self.realise(strategy))
        best_of_label: dict[str, tuple[int, Strategy]] = {}
        for known, value in scores.known.items():
            if value is not None and (
                known.full_label not in best_of_label or value < best_of_label[known.full_label][0]
            ):
                best_of_label[known.full_label] = (value, known)
        self.outcome.runners_up = sorted(best_of_label.values(), key=lambda pair: (pair[0], pair[1].sort_key))[:12]
        self.outcome.tables_s += time.monotonic() - begun

    def _prove(self) -> None:
        outcome = self.outcome
        if outcome.best is None:
            self._start_anywhere()
        for _ in range(MAX_TURNS):
            program = self._program()
            if self._is_close():
                break
            result = self._timed(lambda p=program: p.solve(self._limits(), self._report))  # type: ignore[misc]
            if result.status == "INFEASIBLE":
                self._excluded()
                return
            outcome.bound = max(outcome.bound, result.bound)
            self._note_interrupt(result)
            if result.strategy is None:
                break
            realised = self.realise(result.strategy)
            self._keep(realised)
            if result.status != "OPTIMAL":
                break
            agreed, cut = self._compare(result.value, realised)
            if agreed and self._break_ties(program, realised):
                outcome.status = "OPTIMAL"
                return
            if not agreed and not cut:
                break
        outcome.status = "FEASIBLE" if outcome.best is not None else "UNKNOWN"

    def _start_anywhere(self) -> None:
        """A first plan where the closed forms found none: without one CP-SAT may improve by single ns for minutes."""
        program = self._program()
        begun = time.monotonic()
        result = program.solve_any(self._limits())
        self.outcome.program_s += time.monotonic() - begun
        self._note_interrupt(result)
        if self.outcome.interrupted:
            raise KeyboardInterrupt
        if result.strategy is not None:
            self._keep(self.realise(result.strategy))

    def _note_interrupt(self, result: ProgramResult) -> None:
        """CP-SAT takes Ctrl-C for itself while it runs: then it stops unproved before its time."""
        closed = result.status == "FEASIBLE" and result.value - result.bound <= self.limits.gap * result.value
        stopped = result.status in ("FEASIBLE", "UNKNOWN") and not closed
        if stopped and time.monotonic() < self.deadline - INTERRUPT_MARGIN_S:
            self.outcome.interrupted = True

    def _is_close(self) -> bool:
        """Whether the best plan is within the gap that the caller accepts."""
        best, gap = self.outcome.best, self.limits.gap
        return gap > 0 and best is not None and best.value - self.outcome.bound <= gap * best.value

    def _excluded(self) -> None:
        """The program has no solution: proved infeasible, unless a plan is known."""
        best = self.outcome.best
        if best is not None:
            raise ContradictionError(
                f"the program calls {best.strategy.full_label} with objective {best.value} impossible, but its "
                "realisation exists"
            )
        self.outcome.status = "INFEASIBLE"

    def _compare(self, program_value: int, realised: Realised) -> tuple[bool, str]:
        """Whether the realisation costs what the program claimed; if not, the cut that was added (empty: none)."""
        if not realised.violations and realised.value < program_value:
            raise ContradictionError(
                f"{realised.strategy.full_label} costs {realised.value}, below the program's optimum {program_value}"
            )
        agreed = not realised.violations and realised.value == program_value
        cut = "" if agreed else self.learn(realised)
        self._record(program_value, realised, cut)
        return agreed, cut

    def _break_ties(self, program: Program, agreed: Realised) -> bool:
        """Settle the rest of the tie-break; False when a cut was added on the way and the loop must turn again."""
        outcome = self.outcome
        program.hold(agreed.value)
        program.hint(agreed.strategy)
        result = self._timed(lambda: program.solve_ties(self._limits()))
        winner = agreed
        if result.status == "OPTIMAL" and result.strategy is not None:
            winner = self.realise(result.strategy)
            if winner.violations or winner.value != agreed.value:
                agreed_again, cut = self._compare(agreed.value, winner)
                return agreed_again or not cut
        outcome.best = winner
        return True

    def _program(self) -> Program:
        begun = time.monotonic()
        best = self.outcome.best
        upper = best.value if best is not None else None
        if self.beyond is not None:
            upper = self.beyond.at_most if upper is None else min(upper, self.beyond.at_most)
        program = Program(self.leaves, self.outcome.domains, self.bounds, self.utopia, upper)
        if self.beyond is not None:
            program.forbid(self.beyond.taken)
        if best is not None:
            program.hint(best.strategy)
        self.outcome.bound = max(self.outcome.bound, program.root_bound)
        program.at_least(self.outcome.bound)
        self.outcome.tables_digest, self.outcome.program_digest = program.tables_digest, program.digest
        self.outcome.tables_s += time.monotonic() - begun
        return program

    def realise(self, strategy: Strategy) -> Realised:
        """The strategy with its placement blocks solved."""
        begun = time.monotonic()
        with keeping_interrupts():
            realised = realise(self.cache, strategy, self.utopia, min(self.deadline, time.monotonic() + 30))
        self.outcome.blocks_s += time.monotonic() - begun
        return realised

    def _keep(self, realised: Realised) -> None:
        best = self.outcome.best
        if realised.violations:
            return
        if self.beyond is not None and not self.beyond.admits(realised.strategy, realised.value):
            return
        key = (realised.value, realised.strategy.sort_key)
        if best is None or key < (best.value, best.strategy.sort_key):
            self.outcome.best = realised
            self._report(realised.value, self.outcome.bound)

    def _record(self, program_value: int, realised: Realised, cut: str) -> None:
        value = None if realised.violations else realised.value
        label = realised.strategy.full_label
        self.outcome.iterations.append(
            Iteration(program_value=program_value, realised_value=value, label=label, cut=cut)
        )

    def learn(self, realised: Realised) -> str:
        """Raise what the blocks proved; empty when nothing new could be said (the gap stays)."""
        strategy, said = realised.strategy, []
        if realised.experts is not None and self.bounds.raise_lambda(strategy.moe_ep, realised.experts.bound_ppm):
            said.append(f"load factor of {strategy.moe_ep} expert ranks >= {realised.experts.bound_ppm / 1e6:.6f}")
        bins = strategy.replicas * strategy.attn_dp * strategy.micro_batches
        if realised.batches is not None and self.bounds.raise_load(bins, strategy.batch, realised.batches.bound):
            said.append(f"heaviest of {bins} bins >= {realised.batches.bound} tokens")
        if not said and self.problem.workload.is_uniform and self._never_fits(realised):
            self.bounds.memory_cuts.append(MemoryCut(strategy))
            said.append(
                f"{strategy.full_label} with {strategy.batch} x {strategy.micro_batches} sequences fits no layout"
            )
        if not said:
            cut = self._strategy_cut(realised)
            if cut is None or cut in self.bounds.strategy_cuts:
                return ""
            self.bounds.strategy_cuts.append(cut)
            verdict = "infeasible" if cut.value is None else f">= {cut.value}"
            said.append(f"{strategy.full_label} with its knobs {verdict}")
        return "; ".join(said)

    def _never_fits(self, realised: Realised) -> bool:
        """Whether no stage layout of this strategy fits the memory, SLOs aside."""
        if not any(violation.rule == "memory" for violation in realised.violations):
            return False
        strategy, blocks = realised.strategy, realised.blocks
        packing = packing_of(self.problem, strategy)
        stages = StagesProblem(self.leaves, strategy, packing, blocks.load_tokens, blocks.lambda_ppm)
        return solve_stages(stages, self.utopia, with_slos=False) is None

    def _strategy_cut(self, realised: Realised) -> StrategyCut | None:
        """What is proved of this strategy with its blocks at their proved bounds and the best stage layout."""
        load = realised.batches.bound if realised.batches is not None else realised.blocks.load_tokens
        factor = realised.experts.bound_ppm if realised.experts is not None else realised.blocks.lambda_ppm
        strategy = realised.strategy
        packing = packing_of(self.problem, strategy)
        layout = solve_stages(StagesProblem(self.leaves, strategy, packing, load, factor), self.utopia)
        if layout is None:
            return StrategyCut(strategy, None)
        blocks = Blocks(load, factor, layout)
        figures = evaluate_times(self.leaves, strategy, packing, blocks)
        fits = not memory_violations(stage_ledgers(self.leaves, strategy, blocks))
        seen = is_within(limits_of(self.problem), figures) and in_horizon(self.problem, figures)
        if not fits or not seen:
            return StrategyCut(strategy, None)
        weights = self.utopia.weights(self.problem.objective.latency_weight) if self.utopia else (0, 0)
        return StrategyCut(strategy, objective_value(self.problem.objective.name, figures, weights))

    def _report(self, value: int | None, bound: int) -> None:
        best = self.outcome.best
        known = min((v for v in (value, best.value if best else None) if v is not None), default=None)
        problem = self.problem
        self.on_progress(
            Progress(
                "proving",
                known,
                max(bound, self.outcome.bound),
                time.monotonic() - self.started,
                problem.objective.name,
                problem.workload.osl,
            )
        )
