"""The joint program: the program of every scenario in one model, equal in what an engine fixes at its start.

Every scenario keeps its own tables, loads, batches and metrics; the common decisions and the sizes of the stages are
tied value by value. Since each program is a relaxation of its scenario (blocks at valid lower bounds), and a deployment
is a solution of all of them at once, the joint optimum is a lower bound on every deployment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ortools.sat.python import cp_model

from solver.cost.horizon import MAX_OBJECTIVE
from solver.cost.scenarios import Yardstick
from solver.search.choice import Choice, Expr, Value
from solver.search.degree_vars import TiePart, mixed_radix
from solver.search.loop import Loop
from solver.search.program import Minimum, Program, SearchLimits, minimise
from solver.search.scenarios.deployed import Least, Strategies

COMMON_CHOICES = (
    "attn_tp", "attn_dp", "moe_tp", "moe_ep", "pp", "micro_batches", "mesh_order", "decode_mode", "prefill_mode",
)  # fmt: skip
OWN_CHOICES = ("batch", "prefill_batch", "decode_allreduce", "prefill_allreduce")
TIE_CHOICES = (
    "pp", "attn_tp", "moe_tp", "moe_ep", "micro_batches", "mesh_order", "decode_mode", "prefill_mode",
)  # fmt: skip
"""Order of the tie-break among common decisions, after the GPUs; replicas and attention DP follow from these."""


@dataclass(frozen=True)
class JointResult:
    """Outcome of one call: `value` and `bound` are exact integers; `strategies` is absent when none was found."""

    status: str
    strategies: Strategies | None
    value: int
    bound: int


@dataclass(frozen=True)
class Known:
    """What is known before the program is built."""

    total: int | None
    """Total of the best deployment; nothing worse is looked for."""
    bound: int
    """No total is below this."""
    cuts: tuple[Least, ...]
    dead_shapes: tuple[tuple[int, int, int, int], ...]
    """Stage shapes that no deployment as good as the best one has."""


class JointProgram:
    """The model of all scenarios with what is known so far."""

    def __init__(self, loops: Sequence[Loop], yardstick: Yardstick, known: Known) -> None:
        self.loops, self.yardstick, self.known = tuple(loops), yardstick, known
        self.model = cp_model.CpModel()
        self.parts: list[Program] = []
        for s, loop in enumerate(self.loops):
            upper = yardstick.largest
            if known.total is not None:
                upper = min(upper, yardstick.most(s, known.total))
            part = Program(loop.leaves, loop.outcome.domains, loop.bounds, None, upper, self.model)
            self.model.add(part.objective >= loop.outcome.bound)
            self.parts.append(part)
        self._tie()
        self._forbid_shapes()
        self.expected: Expr = sum(
            part * program.objective for part, program in zip(yardstick.parts, self.parts, strict=True)
        )
        self.total = self.expected if yardstick.over == "expected" else self._regret()
        self.model.add(self.total >= known.bound)
        if known.total is not None:
            self.model.add(self.total <= known.total)
        for cut in known.cuts:
            self._cut(cut)
        self._open = self._tie_parts()
        """What the tie-break has not decided yet."""

    # --- constraints --------------------------------------------------------------------------------------------------

    def _tie(self) -> None:
        """The common decisions of all scenarios are equal."""
        first = self.parts[0]
        for other in self.parts[1:]:
            for name in COMMON_CHOICES:
                _equal(self.model, getattr(first.degrees, name), getattr(other.degrees, name))
            self.model.add(first.degrees.replicas == other.degrees.replicas)
            for mine, theirs in zip(first.stages.sizes, other.stages.sizes, strict=True):
                _equal(self.model, mine, theirs)

    def _forbid_shapes(self) -> None:
        degrees = self.parts[0].degrees
        for shape in self.known.dead_shapes:
            choices = zip((degrees.attn_tp, degrees.moe_tp, degrees.moe_ep, degrees.attn_dp), shape, strict=True)
            literals = [choice.literals.get(value) for choice, value in choices]
            if all(literal is not None for literal in literals):
                self.model.add_bool_or([~literal for literal in literals if literal is not None])

    def _regret(self) -> cp_model.IntVar:
        """The largest relative regret; the same number as :meth:`Yardstick.regrets` gives."""
        scale, most = self.yardstick.scale, []
        for own, program in zip(self.yardstick.own, self.parts, strict=True):
            upper = program.upper or 0
            most.append(max(0, -(-scale * (upper - own) // own)))
        largest = self.model.new_int_var(0, max(most), "regret")
        for s, (own, program, limit) in enumerate(zip(self.yardstick.own, self.parts, most, strict=True)):
            regret = self.model.new_int_var(0, limit, f"regret.{s}")
            self.model.add(own * regret >= scale * program.objective - scale * own)
            self.model.add(largest >= regret)
        return largest

    def _cut(self, cut: Least) -> None:
        """These strategies together cost at least so much, or are infeasible."""
        differs = [
            literal
            for program, strategy in zip(self.parts, cut.strategies, strict=True)
            for literal in program.degrees.differs_from(strategy)
        ]
        if cut.total is None:
            self.model.add_bool_or(differs)
            return
        reached = self.model.new_bool_var("joint_cut")
        self.model.add(self.total >= cut.total).only_enforce_if(reached)
        self.model.add(self.expected >= cut.expected).only_enforce_if(reached)
        self.model.add_bool_or([reached, *differs])

    # --- use ----------------------------------------------------------------------------------------------------------

    def hint(self, strategies: Strategies) -> None:
        """Start from a deployment; never changes the optimum."""
        self.model.clear_hints()  # type: ignore[no-untyped-call]
        for program, strategy in zip(self.parts, strategies, strict=True):
            program.degrees.hint(strategy)

    @property
    def digest(self) -> str:
        """SHA-256 of the model's text form."""
        return hashlib.sha256(str(self.model.proto).encode()).hexdigest()

    def solve(self, limits: SearchLimits, progress: Callable[[int | None, int], None]) -> JointResult:
        """Least total; with the weighted sum, as much of the tie-break as fits the same number."""
        if self.yardstick.over == "expected":
            return self._folded(self.known.total, limits, progress)
        return self._minimise(self.total, limits, progress)

    def solve_expected(self, total: int, upper: int, limits: SearchLimits) -> JointResult:
        """Least weighted sum among the deployments of a total, of which one has `upper`."""
        self.model.add(self.total <= total)
        self.model.add(self.expected <= upper)
        return self._folded(upper, limits, lambda _value, _bound: None)

    def _folded(
        self, upper: int | None, limits: SearchLimits, progress: Callable[[int | None, int], None]
    ) -> JointResult:
        """Least weighted sum and, in the same number, as much of the tie-break as stays below 2^53."""
        room = 1 if upper is None else MAX_OBJECTIVE // (upper + 1)
        folded: list[TiePart] = []
        while self._open and mixed_radix([*folded, self._open[0]])[1] <= room:
            folded.append(self._open.pop(0))
        tie, scale = mixed_radix(folded)
        target = scale * self.expected + tie
        result = self._minimise(target, limits, lambda value, bound: progress(value and value // scale, bound // scale))
        if result.status == "OPTIMAL" and folded:
            self.model.add(tie == result.value % scale)
        bound = -(-(result.bound - scale + 1) // scale)
        return replace(result, value=result.value // scale, bound=bound)

    def solve_ties(self, total: int, expected: int, limits: SearchLimits) -> JointResult:
        """The lexicographically smallest of the deployments of a total and a weighted sum."""
        self.model.add(self.total <= total)
        self.model.add(self.expected <= expected)
        result = JointResult("UNKNOWN", None, 0, 0)
        while self._open:
            group = [self._open.pop(0)]
            while self._open and mixed_radix([*group, self._open[0]])[1] < MAX_OBJECTIVE:
                group.append(self._open.pop(0))
            expression, _ = mixed_radix(group)
            result = self._minimise(expression, limits, lambda _value, _bound: None)
            if result.status != "OPTIMAL" or result.strategies is None:
                return result
            self.model.add(expression == result.value)
            self.hint(result.strategies)
        return result

    def _tie_parts(self) -> list[TiePart]:
        first = self.parts[0].degrees
        choices = [getattr(first, name) for name in TIE_CHOICES]
        for program in self.parts:
            choices += [getattr(program.degrees, name) for name in OWN_CHOICES]
        return [TiePart(first.gpus, first.budget + 1), *(TiePart(c.index(), len(c.values)) for c in choices)]

    def _minimise(self, target: Expr, limits: SearchLimits, progress: Callable[[int | None, int], None]) -> JointResult:
        self.model.minimize(target)
        found: Minimum = minimise(self.model, target, limits, progress)
        solver = found.solver
        strategies = None if solver is None else tuple(part.degrees.strategy(solver) for part in self.parts)
        return JointResult(found.status, strategies, found.value, found.bound)


def _equal(model: cp_model.CpModel, mine: Choice[Value], theirs: Choice[Value]) -> None:
    """Two decisions take the same value; values that only one of them has are excluded."""
    for value in {**mine.literals, **theirs.literals}:
        a, b = mine.literals.get(value), theirs.literals.get(value)
        if a is not None and b is not None:
            model.add(a == b)
        else:
            lone = a if a is not None else b
            assert lone is not None
            model.add(lone == 0)
