"""A launch that exists beside the optimum, for people."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from solver.audit import AuditReport
from solver.importer import Launch
from solver.plan import Comparison, Metrics, Plan
from solver.report.audit import show_audit
from solver.report.terminal import bullets, headed, heading, plural, rate
from solver.units import short_ns


def show_comparison(console: Console, launch: Launch, audit: AuditReport, comparison: Comparison) -> None:
    """What was read, what the audit finds, and what the optimum would gain."""
    show_audit(console, audit)
    known = comparison.optimum if isinstance(comparison.optimum, Plan) else comparison.current
    problem = None if known is None else known.problem
    if problem is not None:
        workload = problem.workload
        many = "free concurrency" if workload.concurrency is None else f"{workload.concurrency} concurrent"
        heading(
            console,
            "Compared",
            f"{problem.llm.name} on {problem.cluster.name}; {workload.mean_isl} tokens in, {workload.osl} out, {many}",
        )
    table = headed([("", "l"), ("strategy", "l"), ("GPUs", "r"), ("TTFT", "r"), ("TPOT", "r"), ("throughput", "r")])
    if comparison.current is not None:
        table.add_row("", "yours", comparison.current.strategy.full_label, *_cells(comparison.current.metrics))
    if isinstance(comparison.optimum, Plan):
        table.add_row("", "optimum", comparison.optimum.strategy.full_label, *_cells(comparison.optimum.metrics))
    console.print(table)
    console.print(Text(f"  {gain_sentence(comparison)}", style="bold"))
    notes = [*launch.notes, *([comparison.broken] if comparison.broken else [])]
    notes += comparison.current.violations if comparison.current is not None else ()
    if notes:
        heading(console, "Notes")
        bullets(console, notes)


def _cells(metrics: Metrics) -> tuple[str, ...]:
    return (
        f"{metrics.gpus_used:,}",
        short_ns(metrics.ttft_ns),
        short_ns(metrics.tpot_ns),
        rate(metrics.throughput_tokens_per_s, "tokens/s"),
    )


def gain_sentence(comparison: Comparison) -> str:
    """One sentence: what the optimum gains over the launch under the cost model."""
    optimum = comparison.optimum
    if not isinstance(optimum, Plan):
        return f"No plan on as many GPUs ({optimum.status.lower()}): {optimum.reasons[0] if optimum.reasons else ''}"
    proved = "" if optimum.status == "OPTIMAL" else f" (not proved, gap {optimum.objective.gap:.1%})"
    if comparison.gain is None:
        return f"The launch cannot be evaluated; the optimum is {optimum.strategy.full_label}{proved}."
    better = {"maximise": "more", "minimise": "less"}[optimum.objective.sense]
    if abs(comparison.gain) < 5e-4:
        return f"Nothing to gain in {optimum.objective.name} on {plural(optimum.metrics.gpus_used, 'GPU')}{proved}."
    return (
        f"The optimum on at most as many GPUs has {abs(comparison.gain):.1%} {better} {optimum.objective.name} "
        f"under the cost model{proved}."
    )
