"""The judge on a plan for several scenarios: every scenario by the usual rules, and what holds the scenarios together.

Own optima are plans with certificates of their own and are judged as such, exhaustively when that is asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from pydantic import ValidationError

from solver.cost.metrics import natural_value, objective_value
from solver.cost.scenarios import TOTAL_UNITS, Yardstick, natural_total
from solver.errors import SpecError
from solver.plan import Plan
from solver.scenarioplan import COMMON, ScenarioPlan, ScenarioResult
from solver.specs.problem import Problem
from solver.specs.spec import one_sentence
from solver.strategy import Strategy
from solver.verify.claimed import FLOAT_TOLERANCE
from solver.verify.evidence import Evidence, evidence_of
from solver.verify.finding import Finding
from solver.verify.rules import COSTED, DEPLOYED, UNCOSTED

SCENARIO_RULES: dict[str, str] = {
    "scenario-question": "every scenario's problem is the base one with the scenario's workload, in the asked order",
    "scenario-weight": "the parts are those of the asked weights",
    "scenario-common": "all scenarios share what an engine fixes at start: common decisions, stages, expert maps",
    "scenario-launched": "the launched strategy is the common one with the largest batches",
    "scenario-value": "value, own optimum and regret of every scenario are the integers recomputed",
    "scenario-own": "the own optimum's plan is of the same problem, and its value and bound are the stated ones",
    "scenario-total": "the total is the weighted sum, or the largest regret, recomputed",
    "scenario-bound": "the bound is not above the value, nor below what the own bounds prove",
    "scenario-gap": "gap = (value - bound) / value",
    "scenario-optimum": "no single deployment of the space has a total below the claimed bound",
    "scenario-open": "no single deployment is left whose bound is below the claimed one and cannot be decided",
    "scenario-status": "OPTIMAL if and only if the bound equals the value and every own optimum is proved",
}
"""Rules beyond :data:`solver.verify.VERIFY_RULES`: id -> what it demands."""


def judge_scenarios(plan: ScenarioPlan) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """Findings on the deployment and on the whole, and the names of the rules examined; own plans are not judged."""
    try:
        strategies = tuple(result.plan.strategy.strategy() for result in plan.scenarios)
    except ValidationError as error:
        return (Finding("identity", one_sentence(error)),), ("identity",)
    findings = [*_question(plan)]
    checks = [rule.__name__ for rule in (*DEPLOYED, *COSTED)]
    if findings:  # nothing below means anything for other problems than the asked ones
        return tuple(findings), ("question",)
    for result, strategy in zip(plan.scenarios, strategies, strict=True):
        findings += [Finding(f.rule, f"{result.name}: {f.sentence}") for f in _deployed(result, strategy)]
    findings += [*_common(plan, strategies), *_launched(plan, strategies), *_own(plan)]
    findings += _totals(plan)
    return tuple(findings), (*checks, "question", "common", "launched", "own", "totals")


def _question(plan: ScenarioPlan) -> Iterator[Finding]:
    """The scenarios are those that were asked for."""
    try:
        problems: tuple[Problem, ...] = plan.asked.problems(plan.problem)
    except SpecError as error:
        yield Finding("scenario-question", str(error))
        return
    asked = [scenario.name for scenario in plan.asked.scenario]
    answered = [result.name for result in plan.scenarios]
    if asked != answered:
        yield Finding("scenario-question", f"asked are the scenarios {asked}, answered {answered}")
        return
    for result, problem in zip(plan.scenarios, problems, strict=True):
        for what, stated in (("deployment", result.plan.problem), ("own plan", result.own.problem)):
            if stated != problem:
                yield Finding("scenario-question", f"{result.name}: the {what} answers another problem")
    parts = tuple(result.part for result in plan.scenarios)
    if parts != plan.asked.parts:
        yield Finding("scenario-weight", f"the parts are {parts}, the weights make {plan.asked.parts}")


def _evidence(result: ScenarioResult, strategy: Strategy) -> Evidence:
    """The deployment as the usual rules read it: a plan whose claim nobody asks for."""
    deployed = result.plan
    plan: Plan = result.own.model_copy(
        update={
            "strategy": deployed.strategy, "metrics": deployed.metrics, "breakdown": deployed.breakdown,
            "memory": deployed.memory, "placement": deployed.placement, "closed_loop": deployed.closed_loop,
            "operator_sources": deployed.operator_sources, "problem": deployed.problem,
        }
    )  # fmt: skip
    return evidence_of(plan, strategy)


def _deployed(result: ScenarioResult, strategy: Strategy) -> Iterator[Finding]:
    """Every rule on one scenario, and its objective integer."""
    evidence = _evidence(result, strategy)
    findings = [finding for rule in DEPLOYED for finding in rule(evidence)]
    yield from findings
    if result.plan.violations:
        yield Finding("scenario-value", f"the document itself says: {result.plan.violations[0]}")
    if not evidence.is_complete or any(finding.rule in UNCOSTED for finding in findings):
        return
    for rule in COSTED:
        yield from rule(evidence)
    objective, osl = evidence.problem.objective.name, evidence.problem.workload.osl
    true = objective_value(objective, evidence.figures)
    if result.value != true:
        yield Finding("scenario-value", f"the value is {result.value}, recomputed {true}")
    for what, stated, integer in (
        ("natural", result.natural, result.value),
        ("own_natural", result.own_natural, result.own_value),
    ):
        if not math.isclose(stated, natural_value(objective, integer, osl), rel_tol=FLOAT_TOLERANCE):
            yield Finding(
                "scenario-value", f"{what} is {stated}, {integer} makes {natural_value(objective, integer, osl)}"
            )


def _common(plan: ScenarioPlan, strategies: tuple[Strategy, ...]) -> Iterator[Finding]:
    """What an engine fixes at start is the same everywhere."""
    first = plan.scenarios[0]
    for result, strategy in zip(plan.scenarios, strategies, strict=True):
        for name in COMMON:
            mine, theirs = getattr(strategy, name), getattr(strategies[0], name)
            if mine != theirs:
                yield Finding("scenario-common", f"{name} is {theirs} in {first.name} and {mine} in {result.name}")
        for name in ("stage_layers", "expert_maps", "map_of_layer"):
            if getattr(result.plan.placement, name) != getattr(first.plan.placement, name):
                yield Finding("scenario-common", f"{name} of {first.name} and of {result.name} differ")


def _launched(plan: ScenarioPlan, strategies: tuple[Strategy, ...]) -> Iterator[Finding]:
    true = launched_of(strategies)
    try:
        stated = plan.launched.strategy()
    except ValidationError as error:
        yield Finding("scenario-launched", one_sentence(error))
        return
    labels = (plan.launched.label, plan.launched.full_label) == (true.label, true.full_label)
    if stated != true or not labels:
        yield Finding(
            "scenario-launched", f"launched is {plan.launched.full_label}, the scenarios make {true.full_label}"
        )


def launched_of(strategies: tuple[Strategy, ...]) -> Strategy:
    """The first scenario's strategy with the largest batches of all."""
    largest = {name: max(getattr(s, name) for s in strategies) for name in ("batch", "prefill_batch")}
    return strategies[0].model_copy(update=largest)


def _own(plan: ScenarioPlan) -> Iterator[Finding]:
    """The yardsticks are what the own plans prove."""
    for result in plan.scenarios:
        certificate = result.own.certificate
        for what, stated, true in (
            ("own_value", result.own_value, certificate.value),
            ("own_bound", result.own_bound, max(1, certificate.bound)),
        ):
            if stated != true:
                yield Finding("scenario-own", f"{result.name}: {what} is {stated}, its own plan's {true}")


def _totals(plan: ScenarioPlan) -> Iterator[Finding]:
    """Regrets, total, bound, gap and status."""
    claim, results = plan.claim, plan.scenarios
    yardstick = Yardstick.of(claim.over, plan.asked.parts, [result.own_bound for result in results])
    values = [result.value for result in results]
    for result, regret in zip(results, yardstick.regrets(values), strict=True):
        if result.regret != regret:
            yield Finding("scenario-value", f"{result.name}: the regret is {result.regret}, recomputed {regret}")
    total, objective = yardstick.total(values), plan.problem.objective.name
    unit = TOTAL_UNITS[objective] if claim.over == "expected" else claim.unit
    natural = natural_total(objective, yardstick, total)
    if (claim.value, claim.scale, claim.unit) != (total, yardstick.scale, unit):
        yield Finding(
            "scenario-total",
            f"the total is {claim.value} {claim.unit} by the scale {claim.scale}, recomputed {total} {unit} by "
            f"{yardstick.scale}",
        )
    elif not math.isclose(claim.natural, natural, rel_tol=FLOAT_TOLERANCE, abs_tol=FLOAT_TOLERANCE):
        yield Finding("scenario-total", f"the total reads {claim.natural}, {total} makes {natural}")
    if claim.bound > claim.value:
        yield Finding("scenario-bound", f"the bound {claim.bound} is above the value {claim.value}")
    gap = (claim.value - claim.bound) / claim.value if claim.value else 0.0
    if not math.isclose(claim.gap, gap, rel_tol=FLOAT_TOLERANCE, abs_tol=FLOAT_TOLERANCE):
        yield Finding("scenario-gap", f"the gap is {claim.gap}, value and bound make {gap}")
    proved = claim.bound == claim.value and all(result.own.status == "OPTIMAL" for result in results)
    if plan.status != ("OPTIMAL" if proved else "FEASIBLE"):
        yield Finding(
            "scenario-status", f"status {plan.status}, value {claim.value}, bound {claim.bound}, own optima "
            f"{', '.join(sorted({result.own.status for result in results}))}"
        )  # fmt: skip
