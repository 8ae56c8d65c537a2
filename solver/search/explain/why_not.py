"""Why a strategy that the caller names is not the answer: a rule, the limits, or the terms by which it loses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from solver.cost.metrics import Utopia
from solver.explanation import Demand, Term, WhyNot
from solver.legality import Violation, violations
from solver.packing import canonical_mesh
from solver.plan import NoPlan, ObjectiveClaim, Plan
from solver.search.explain.conflict import Shrinker
from solver.search.explain.constraints import constraints_of
from solver.search.explain.decide import Decider
from solver.search.explain.reasons import summary
from solver.specs.problem import Pins, Problem
from solver.strategy import Strategy, parse_label
from solver.units import short_ns

Solve = Callable[[Problem, Utopia | None], Plan | NoPlan]
"""The best plan of a problem, with given utopia values where its objective is ``weighted``."""
DEGREES = ("attn_tp", "attn_dp", "moe_tp", "moe_ep", "pp", "replicas")
DEPENDS_ON_KNOBS = frozenset(
    {"concurrency", "mesh-order", "engine-mesh", "engine-phases", "packing", "pin", "tp-domain"}
)
"""Rules that other knobs (batch, mesh order, dispatch) may keep where plain ones break them."""


@dataclass(frozen=True)
class Named:
    """What the caller named: decisions, and the degrees as a strategy where all are given."""

    text: str
    pins: dict[str, int | str | bool]
    degrees: Strategy | None


def named_decisions(problem: Problem, named: Strategy | str) -> Named:
    """Decisions of a complete strategy, of a label, or of ``name=value,...``.

    Raises
    ------
    StrategyError, SpecError
        The text is none of these.
    """
    if isinstance(named, Strategy):
        values = {name: getattr(named, name) for name in Pins.model_fields}
        return Named(named.full_label, values, named)
    if "=" in named:
        parts = tuple(part for part in named.split(",") if part.strip())
        return Named(named, Pins.parse(parts).given(), None)
    degrees = parse_label(named)
    if not problem.llm.is_moe and degrees.moe_tp == degrees.attn_tp and degrees.attn_dp == 1:
        degrees = degrees.model_copy(update={"moe_tp": 1, "moe_ep": 1})
    return Named(named, {name: getattr(degrees, name) for name in DEGREES}, degrees)


class Against:
    """One named strategy against the winner."""

    def __init__(self, decider: Decider, winner: Plan, solve: Solve) -> None:
        self.decider, self.winner, self.solve, self.problem = decider, winner, solve, winner.problem

    def explain(self, strategy: Strategy | str) -> WhyNot:
        """The reason, proved."""
        named = named_decisions(self.problem, strategy)
        clash = self._clash(named)
        rule = clash or next(self._broken(named), None)
        if rule is not None:
            demand = Demand(name=rule.rule, sentence=rule.sentence)
            return WhyNot(asked=named.text, verdict="rule", sentence=f"it breaks a rule: {rule}", broken=(demand,))
        pins = Pins(**{**self.problem.pins.given(), **named.pins})
        pinned = self.problem.model_copy(update={"pins": pins})
        known = self.winner.certificate.utopia  # of the whole space, so that both objectives have the same weights
        utopia = None if known is None else Utopia(known.latency_ns, known.inverse_efficiency_ns)
        answer = self.solve(pinned, utopia)
        if isinstance(answer, Plan):
            return self._compared(named, answer)
        if answer.status == "UNKNOWN":
            return WhyNot(asked=named.text, verdict="open", sentence="the time was over before it was priced")
        return self._excluded(named, pinned)

    def _clash(self, named: Named) -> Violation | None:
        for name, value in self.problem.pins.given().items():
            if named.pins.get(name, value) != value:
                return Violation("pin", f"{name} = {named.pins[name]}, but the caller fixed {value}")
        return None

    def _broken(self, named: Named) -> Iterator[Violation]:
        """Rules that the degrees break whatever the knobs."""
        if named.degrees is None:
            return
        if set(named.pins) - set(DEGREES):
            yield from violations(self.problem, named.degrees)
            return
        s = named.degrees
        plain = s.model_copy(update={"mesh_order": canonical_mesh(s.mesh_order, s.attn_tp, s.attn_dp, s.pp)})
        for violation in violations(self.problem, plain):
            if violation.rule not in DEPENDS_ON_KNOBS:
                yield violation

    def _excluded(self, named: Named, pinned: Problem) -> WhyNot:
        """No plan has the named decisions: the minimal set of other constraints that sees to it."""
        shrinker = Shrinker(self.decider, pinned, constraints_of(pinned, given=named.pins))
        conflict = shrinker.shrink()
        broken = tuple(
            Demand(name=member.constraint.name, sentence=member.constraint.demand) for member in conflict.members
        )
        if not broken:
            return WhyNot(
                asked=named.text,
                verdict="excluded",
                sentence="these decisions contradict one another: no strategy has them",
            )
        meaning = summary(len(broken), is_minimal=conflict.is_minimal)
        words = " and ".join(demand.sentence for demand in broken)
        return WhyNot(
            asked=named.text,
            verdict="excluded",
            sentence=f"no plan has these decisions under {words} ({meaning})",
            broken=broken,
        )

    def _compared(self, named: Named, answer: Plan) -> WhyNot:
        mine, best = answer.certificate.value, self.winner.certificate.value
        terms = tuple(terms_of(self.winner, answer))
        claim = answer.objective
        if answer.strategy == self.winner.strategy:
            verdict, sentence = "wins", "it is the winner"
        elif mine == best:
            verdict = "ties"
            sentence = (
                f"it ties with {self.winner.strategy.full_label} and loses the tie-break: fewer GPUs, then fewer "
                "stages, then the smaller degrees"
            )
        elif answer.status != "OPTIMAL":
            verdict, sentence = "open", f"its best knobs are not proved; so far its {claim.name} is {_natural(claim)}"
        else:
            worse = abs(claim.value / self.winner.objective.value - 1) if self.winner.objective.value else 0.0
            verdict = "loses"
            sentence = (
                f"with its best knobs (proved) its {claim.name} is {_natural(claim)}, {worse:.2%} worse than "
                f"{self.winner.strategy.full_label}"
            )
            largest = max(terms, key=lambda term: term.named - term.winner, default=None)
            if largest is not None and largest.named > largest.winner:
                sentence += f"; most of it is {largest.name}"
        return WhyNot(asked=named.text, verdict=verdict, sentence=sentence, terms=terms, named=answer)


def _natural(claim: ObjectiveClaim) -> str:
    return short_ns(claim.value) if claim.unit == "ns" else f"{claim.value:,.6g} {claim.unit}"


@dataclass(frozen=True)
class Weights:
    """How often the objective counts a decode step, a prefill, and the interference of prefills with one token."""

    unit: str
    decode: float
    prefill: float
    interference: float


def terms_of(winner: Plan, named: Plan) -> Iterator[Term]:
    """Parts of the objective of both, in the unit of the minimised integer; they add up to it."""
    mine, best = _parts(named), _parts(winner)
    unit = _weights(winner).unit
    for name in dict.fromkeys((*best, *mine)):
        values = best.get(name, 0.0), mine.get(name, 0.0)
        if any(abs(value) > 1e-9 for value in values):
            yield Term(name=name, unit=unit, winner=values[0], named=values[1])


def _weights(plan: Plan) -> Weights:
    """Derivation: :mod:`solver.cost.metrics`; `weighted` and `gpus` are explained by the latency."""
    osl, name, metrics = plan.problem.workload.osl, plan.problem.objective.name, plan.metrics
    if name == "ttft":
        return Weights("ns", 0, 1, 0)
    if name == "tpot":
        return Weights("ns", 1, 0, 1)
    if name == "throughput":
        return Weights("ns of the deployment per request", osl / metrics.active_sequences, 0, 0)
    if name == "efficiency":
        return Weights("GPU-ns per request", osl * metrics.gpus_used / metrics.active_sequences, 0, 0)
    return Weights("ns", osl - 1, 1, osl - 1)


def _parts(plan: Plan) -> dict[str, float]:
    """Parts by name. Speculation divides the decode step, so its components are scaled to the time per token."""
    weights, metrics = _weights(plan), plan.metrics
    parts: dict[str, float] = {}
    step = sum(component.ns for component in plan.breakdown.decode)
    if weights.decode and step:
        for component in plan.breakdown.decode:
            share = component.ns * metrics.decode_step_ns / step
            parts[f"decode: {component.name}"] = weights.decode * share
    if weights.prefill:
        for component in plan.breakdown.prefill:
            parts[f"prefill: {component.name}"] = weights.prefill * component.ns
    if weights.interference:
        parts["decode: waiting for prefills of others"] = weights.interference * (
            metrics.tpot_ns - metrics.decode_step_ns
        )
    if plan.problem.objective.name in ("throughput", "efficiency"):
        prefills = metrics.rounds_per_cycle * metrics.prefill_round_ns
        per_token = weights.decode / plan.problem.workload.osl
        parts["prefill rounds"] = prefills * per_token
    return parts
