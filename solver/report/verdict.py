"""The judge's verdict for people."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from solver.deployment import DeploymentPlan
from solver.front import Front
from solver.plan import Plan
from solver.report.terminal import bullets, plural
from solver.scenarioplan import ScenarioPlan
from solver.verify import Verification
from solver.verify.front import FrontVerification


def show_verdict(console: Console, plan: Plan | DeploymentPlan, verdict: Verification) -> None:
    """Confirmed or convicted, by which rules, in how many seconds."""
    name = plan.strategy.label if isinstance(plan, Plan) else f"{plan.mode} deployment"
    what = f"{name} on {plural(plan.metrics.gpus_used, 'GPU')}, claimed {plan.status}"
    _show(console, what, verdict, plan.metrics.gpus_used)
    if not verdict.findings and verdict.configurations is None and plan.status == "OPTIMAL":
        console.print(
            Text("The plan is what it says; --exhaustive also confirms that nothing better exists.", style="dim")
        )


def show_scenario_verdict(console: Console, plan: ScenarioPlan, verdict: Verification) -> None:
    """The same for a plan for several scenarios."""
    what = f"{plan.launched.label} for {plural(len(plan.scenarios), 'scenario')}, claimed {plan.status}"
    _show(console, what, verdict, plan.launched.strategy().gpus)


def _show(console: Console, what: str, verdict: Verification, gpus: int) -> None:
    word = ("CONFIRMED", "bold green") if verdict.ok else ("CONVICTED", "bold red")
    console.print(Text.assemble(word, "  ", what))
    checked = f"{plural(len(verdict.checks), 'check')} in {verdict.seconds:.2f} s"
    if verdict.records:
        checked += f"; {plural(verdict.records, 'rank')} of {gpus:,} expanded"
    if verdict.configurations is not None:
        checked += f"; {plural(verdict.configurations, 'configuration')} enumerated"
    console.print(Text(f"{checked}: {', '.join(verdict.checks)}", style="dim"))
    for words in verdict.unjudged:
        console.print(Text(f"Not judged: {words}.", style="yellow"))
    if verdict.findings:
        console.print()
        bullets(console, [str(finding) for finding in verdict.findings], "red")


def show_front_verdict(console: Console, front: Front, verdict: FrontVerification) -> None:
    """Confirmed or convicted, and what was enumerated."""
    word = ("CONFIRMED", "bold green") if verdict.ok else ("CONVICTED", "bold red")
    what = f"front of {front.first} and {front.second}, {plural(len(front.points), 'point')}, claimed {front.status}"
    console.print(Text.assemble(word, "  ", what))
    checked = f"{plural(verdict.plans, 'plan')} judged in {verdict.seconds:.2f} s"
    if verdict.enumerations is not None:
        checked += f"; {plural(verdict.enumerations, 'degree space')} enumerated"
    console.print(Text(checked, style="dim"))
    if verdict.findings:
        console.print()
        bullets(console, [str(finding) for finding in verdict.findings], "red")
    elif verdict.enumerations is None:
        words = "The points are what they say; --exhaustive also confirms that none is dominated and none missing."
        console.print(Text(words, style="dim"))
