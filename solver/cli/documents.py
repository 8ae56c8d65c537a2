"""Documents that commands are given: which kind a text is, and what takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from solver.cli.files import STANDARD, read_text
from solver.errors import PlanError

if TYPE_CHECKING:
    from rich.console import Console

    from solver.deployment import DeploymentPlan
    from solver.front import Front
    from solver.plan import Plan
    from solver.scenarioplan import ScenarioPlan
    from solver.verify import Verification
    from solver.verify.front import FrontVerification


def read_document(path: str) -> str:
    """Text of a document file or of stdin."""
    from solver.specs.document import MAX_DOCUMENT_BYTES

    return read_text(path, MAX_DOCUMENT_BYTES)


def name_of(path: str) -> str:
    """A path in the words of an error."""
    return "stdin" if path == STANDARD else path


def read_plan(path: str) -> Plan:
    """The plan of a file or of stdin.

    Raises
    ------
    SpecError, PlanError
        It cannot be read, or is no plan document.
    """
    from solver.plan import Plan

    document = read_either(path)
    if not isinstance(document, Plan):
        raise PlanError(f"{name_of(path)} is a deployment; this command takes the plan of one strategy")
    return document


def read_either(path: str) -> Plan | DeploymentPlan:
    """The plan, or the deployment, of a file or of stdin: the document says which it is.

    Raises
    ------
    SpecError, PlanError
        It cannot be read, or is neither; the sentence says what is, or how to make one of what it is.
    """
    from solver.deployment import DeploymentPlan
    from solver.plan import Plan
    from solver.specs.document import kind_of

    text, where = read_document(path), name_of(path)
    kind = kind_of(text)
    if kind == "deployment":
        return DeploymentPlan.parse(text, where)
    if kind == "scenario-plan":
        from solver.scenarioplan import ScenarioPlan

        raise PlanError(f"{where} {_instead_of_scenarios(ScenarioPlan.parse(text, where))}")
    other = {
        "front": "is a front of several plans: name one point by its limits, and have solve write its plan",
        "explanation": "is an explanation, not a plan: have solve write the plan that it speaks of",
        "what-if": "is a what-if, which has no plans: have solve write the plan for one of its values",
        "expert-placement": "is an expert placement, not a plan: verify --loads judges it, place writes its formats",
        "expert-slot-budget": "is a budget of expert slots, not a plan: verify --loads judges it",
    }.get(kind or "")
    if other is not None:
        raise PlanError(f"{where} {other}")
    return Plan.parse(text, where)


def _instead_of_scenarios(document: ScenarioPlan) -> str:
    """How a plan for several scenarios becomes one that can be launched."""
    from solver.scenarioplan import COMMON

    launched = document.launched.strategy()
    names = [name for name in COMMON if "overlap" not in name or getattr(launched, name)]
    fixed = " ".join(f"--fix {name}={getattr(launched, name)}" for name in names)
    scenario = max(document.scenarios, key=lambda result: result.plan.strategy.batch).name
    return (
        f"is a plan for {len(document.scenarios)} scenarios, of which each has placement and batches of its own: solve "
        f"one scenario (as {scenario!r}, which has the largest batch) with the common decisions, {fixed}, and give "
        "that plan"
    )


# --- the judge --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """A verdict, and how it is shown."""

    verdict: Verification | FrontVerification
    show: Callable[[Console], None]


def judge(path: str, *, exhaustive: bool, full: bool) -> Judged:
    """Judge a document of any kind.

    Raises
    ------
    SpecError, PlanError
        It cannot be read, or is of a kind that holds nothing to be judged.
    """
    from solver.specs.document import kind_of

    text, where = read_document(path), name_of(path)
    kind = kind_of(text)
    if kind == "what-if":
        raise PlanError(
            f"{where} is a what-if: it has the values and winners of every solve, but no plans that could be judged; "
            "have solve write the plan for a value of interest, and verify that"
        )
    if kind in ("expert-placement", "expert-slot-budget"):
        raise PlanError(f"{where} is an expert placement; name the loads it was made for with --loads")
    if kind == "front":
        return _front(text, where, exhaustive=exhaustive)
    if kind == "explanation":
        return _explanation(text, where)
    if kind == "scenario-plan":
        return _scenarios(text, where, exhaustive=exhaustive)
    return _plan(text, where, kind == "deployment", exhaustive=exhaustive, full=full)


def _plan(text: str, where: str, is_deployment: bool, *, exhaustive: bool, full: bool) -> Judged:
    from solver import api
    from solver.deployment import DeploymentPlan
    from solver.plan import Plan
    from solver.report.verdict import show_verdict

    if is_deployment:
        deployment = DeploymentPlan.parse(text, where)
        verdict = api.verify_deployment(deployment, exhaustive=exhaustive)
        return Judged(verdict, lambda console: show_verdict(console, deployment, verdict))
    plan = Plan.parse(text, where)
    judged = api.verify(plan, exhaustive=exhaustive, full=full)
    return Judged(judged, lambda console: show_verdict(console, plan, judged))


def _front(text: str, where: str, *, exhaustive: bool) -> Judged:
    from solver import api
    from solver.front import Front
    from solver.report.verdict import show_front_verdict

    front = Front.parse(text, where)
    verdict = api.verify_front(front, exhaustive=exhaustive)
    return Judged(verdict, lambda console: show_front_verdict(console, front, verdict))


def _explanation(text: str, where: str) -> Judged:
    from solver import api
    from solver.explanation import Explanation
    from solver.report.explained import show_explained_verdict

    explanation = Explanation.parse(text, where)
    verdict = api.verify_explanation(explanation)
    return Judged(verdict, lambda console: show_explained_verdict(console, explanation, verdict))


def _scenarios(text: str, where: str, *, exhaustive: bool) -> Judged:
    from solver import api
    from solver.report.verdict import show_scenario_verdict
    from solver.scenarioplan import ScenarioPlan

    plan = ScenarioPlan.parse(text, where)
    verdict = api.verify(plan, exhaustive=exhaustive)
    return Judged(verdict, lambda console: show_scenario_verdict(console, plan, verdict))


def read_front(path: str) -> Front:
    """The front of a file or of stdin.

    Raises
    ------
    SpecError, PlanError
        It cannot be read, or is no front document.
    """
    from solver.front import Front

    return Front.parse(read_document(path), name_of(path))
