"""The ranked alternatives of a plan: on the terminal, and as a section of its report."""

from __future__ import annotations

from rich.console import Console

from solver.plan import Alternative, Plan
from solver.report.answer import objective_text
from solver.report.document import Block, Grid, Paragraph
from solver.report.terminal import headed, heading


def why_words(other: Alternative, most: int = 2) -> str:
    """The terms that differ most, as shares of the winner's objective."""
    return ", ".join(f"{each.share:+.1%} {each.term}" for each in other.why[:most]) or "nothing differs"


def verdict(plan: Plan) -> str:
    """What is proved of the ranks."""
    stated = plan.alternatives
    if stated is None:
        return ""
    if stated.complete:
        return "Proved: each is the best of all degrees not ranked before it, and no other degrees have a plan."
    short = "" if len(stated.ranked) == stated.asked else f" The search was cut short of {stated.asked}."
    return f"Proved: each is the best of all degrees not ranked before it.{short}"


def show_alternatives(console: Console, plan: Plan) -> None:
    """Rank, strategy, objective, distance, GPUs and reasons."""
    if plan.alternatives is None:
        return
    heading(console, "Alternatives", "the next best plans of other degrees, with their best knobs")
    columns = [("", "r"), ("strategy", "l"), (plan.objective.name, "r"), ("loses", "r"), ("GPUs", "r"), ("why", "w")]
    table = headed(columns)
    for other in plan.alternatives.ranked:
        table.add_row(
            "", str(other.rank), other.strategy.full_label, objective_text(plan.objective, other.objective),
            f"{other.distance:.1%}", f"{other.metrics.gpus_used:,}", why_words(other),
        )  # fmt: skip
    if plan.alternatives.ranked:
        console.print(table)
    console.print(f"  {verdict(plan)}")


def alternatives_blocks(plan: Plan) -> list[Block]:
    """The same as a table of a report."""
    if plan.alternatives is None:
        return []
    rows = [
        (
            str(other.rank), other.strategy.full_label, objective_text(plan.objective, other.objective),
            f"{other.distance:.2%}", f"{other.metrics.gpus_used:,}", why_words(other, len(other.why)),
        )
        for other in plan.alternatives.ranked
    ]  # fmt: skip
    table = Grid(("Rank", "Strategy", plan.objective.name.capitalize(), "Loses", "GPUs", "Why"), tuple(rows))
    return [*([table] if rows else []), Paragraph(verdict(plan))]
