"""The judge's verdict for people."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from solver.plan import Plan
from solver.report.terminal import bullets, plural
from solver.scenarioplan import ScenarioPlan
from solver.verify import Verification


def show_verdict(console: Console, plan: Plan, verdict: Verification) -> None:
    """Confirmed or convicted, by which rules, in how many seconds."""
    what = f"{plan.strategy.label} on {plural(plan.metrics.gpus_used, 'GPU')}, claimed {plan.status}"
    _show(console, what, verdict)
    if not verdict.findings and verdict.configurations is None and plan.status == "OPTIMAL":
        console.print(
            Text("The plan is what it says; --exhaustive also confirms that nothing better exists.", style="dim")
        )


def show_scenario_verdict(console: Console, plan: ScenarioPlan, verdict: Verification) -> None:
    """The same for a plan for several scenarios."""
    _show(
        console, f"{plan.launched.label} for {plural(len(plan.scenarios), 'scenario')}, claimed {plan.status}", verdict
    )


def _show(console: Console, what: str, verdict: Verification) -> None:
    word = ("CONFIRMED", "bold green") if verdict.ok else ("CONVICTED", "bold red")
    console.print(Text.assemble(word, "  ", what))
    checked = f"{plural(len(verdict.checks), 'check')} in {verdict.seconds:.2f} s"
    if verdict.configurations is not None:
        checked += f"; {plural(verdict.configurations, 'configuration')} enumerated"
    console.print(Text(f"{checked}: {', '.join(verdict.checks)}", style="dim"))
    if verdict.findings:
        console.print()
        bullets(console, [str(finding) for finding in verdict.findings], "red")
