"""An audit for people: findings with their arithmetic, the worst first within each group of rules."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from solver.audit import AuditReport
from solver.report.terminal import grid, plural

STYLE_OF_SEVERITY = {"error": "bold red", "warning": "yellow", "note": "dim"}


def show_audit(console: Console, report: AuditReport) -> None:
    """Verdict, then every finding: severity, rule, title, sentence, arithmetic."""
    legal = ("legal", "bold green") if report.legal else ("illegal", "bold red")
    notes = len(report.findings) - report.errors - report.warnings
    counts = f"{plural(report.errors, 'error')}, {plural(report.warnings, 'warning')}, {plural(notes, 'note')}"
    full = "" if report.label == report.strategy.full_label else f" = {report.strategy.full_label}"
    console.print(
        Text.assemble(
            ("AUDIT", "bold"),
            "  ",
            (report.label, "bold"),
            f"{full} on {plural(report.strategy.gpus, 'GPU')}: ",
            legal,
            f"; {counts}",
        )
    )
    table = grid("l", "l", "w")
    for finding in report.findings:
        table.add_row("", "", "", "")
        style = STYLE_OF_SEVERITY[finding.severity]
        table.add_row("", Text(finding.severity, style=style), finding.rule, Text(finding.title, style="bold"))
        table.add_row("", "", "", finding.sentence)
        if finding.arithmetic:
            table.add_row("", "", "", Text(finding.arithmetic, style="dim"))
    console.print(table)
