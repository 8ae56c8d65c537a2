"""The answer for several scenarios, for people."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from solver.report.terminal import STYLE_OF_STATUS, bullets, grid, headed, heading, plural, rate
from solver.scenarioplan import COMMON, ScenarioPlan, ScenarioResult
from solver.specs.problem import ObjectiveName
from solver.specs.workload import Workload
from solver.units import gap_text, short_ns

PINNED = tuple(name for name in COMMON if name != "attn_dp")
"""Decisions that name the deployment to the command solve; attention DP follows."""


def show_scenarios(console: Console, plan: ScenarioPlan, program: str, out: str | None) -> None:
    """The deployment, what it is worth in every scenario, and what each could have had alone."""
    claim = plan.claim
    proof = "proved optimal" if plan.status == "OPTIMAL" else f"not proved, gap {gap_text(claim.gap)}"
    console.print(
        Text.assemble(
            (plan.status, STYLE_OF_STATUS[plan.status]),
            "  ",
            (plan.launched.label, "bold"),
            f"  on {plural(plan.launched.strategy().gpus, 'GPU')} for {plural(len(plan.scenarios), 'scenario')}: "
            f"{total_words(plan)}, {proof}",
        )
    )
    console.print(Text(f"{plan.problem.llm.name} on {plan.problem.cluster.name}; {plan.asked.source}", style="dim"))
    if plan.asked.reduction is not None:
        console.print(Text(str(plan.asked.reduction), style="dim"))
    _scenarios(console, plan)
    _limits(console, plan)
    _launched(console, plan)
    _proof(console, plan)
    if plan.warnings:
        heading(console, "Warnings")
        bullets(console, plan.warnings, "yellow")
    heading(console, "Next")
    fixes = " ".join(f"--fix {name}={_word(getattr(plan.launched, name))}" for name in PINNED)
    lines = [f"{program} solve ... {fixes} --out plan.json"]
    lines += [f"{program} verify {out} --exhaustive"] if out else []
    for line in lines:
        console.print(Text(f"  {line}"))


def total_words(plan: ScenarioPlan) -> str:
    """What was minimised, in words and a readable unit."""
    name, natural = plan.problem.objective.name, plan.claim.natural
    if plan.claim.over == "regret":
        return f"largest regret {natural:.3%} of the {name}"
    if plan.claim.unit == "ns":
        return f"expected {name} {short_ns(natural)}"
    return f"expected {name} {natural:,.4g} {plan.claim.unit}"


def _word(value: int | str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _value(name: ObjectiveName, natural: float) -> str:
    if name in ("latency", "ttft", "tpot"):
        return short_ns(natural)
    if name == "gpus":
        return plural(round(natural), "GPU")
    return rate(natural, "tokens/s" if name == "throughput" else "tokens/s/GPU")


def lengths(workload: Workload) -> str:
    """Prompt and output tokens, as in ``128 to 10240 > 64``."""
    low, high = workload.prompt_lengths[0], workload.longest_isl
    return f"{low if low == high else f'{low} to {high}'} > {workload.osl}"


def _scenarios(console: Console, plan: ScenarioPlan) -> None:
    name, parts = plan.problem.objective.name, sum(result.part for result in plan.scenarios)
    heading(console, "Scenarios", f"{name} of this deployment, and of the best one for the scenario alone")
    table = headed(
        [("scenario", "w"), ("weight", "r"), ("in > out", "r"), ("at once", "r"), (name, "r"), ("alone", "r"),
         ("regret", "r")]
    )  # fmt: skip
    for result in plan.scenarios:
        table.add_row(
            "", result.name, f"{result.part / parts:.1%}", lengths(result.plan.problem.workload),
            f"{result.plan.metrics.active_sequences:,}", _value(name, result.natural), _value(name, result.own_natural),
            f"{result.regret / plan.claim.scale:.2%}",
        )  # fmt: skip
    console.print(table)
    heading(console, "Alone", "what each scenario would have had")
    alone = grid("l", "w")
    for result in plan.scenarios:
        label, gpus = result.own.strategy.label, result.own.metrics.gpus_used
        alone.add_row("", result.name, f"{label} on {plural(gpus, 'GPU')}, {result.own.status}")
    console.print(alone)


def _limits(console: Console, plan: ScenarioPlan) -> None:
    heading(console, "In each scenario", "what the running engine adapts, times, memory of the fullest GPU")
    table = headed(
        [("scenario", "w"), ("batch", "r"), ("prompts", "r"), ("TTFT", "r"), ("TPOT", "r"), ("latency", "r"),
         ("tokens/s", "r"), ("memory", "r")]
    )  # fmt: skip
    for result in plan.scenarios:
        metrics, strategy = result.plan.metrics, result.plan.strategy
        table.add_row(
            "", result.name, f"{strategy.batch:,}", str(strategy.prefill_batch), short_ns(metrics.ttft_ns),
            short_ns(metrics.tpot_ns), short_ns(metrics.request_latency_ns),
            f"{metrics.throughput_tokens_per_s:,.0f}", f"{_fullest(result):.1%}",
        )  # fmt: skip
    console.print(table)


def _fullest(result: ScenarioResult) -> float:
    return max(ledger.total_kib / ledger.capacity_kib for ledger in result.plan.memory)


def _launched(console: Console, plan: ScenarioPlan) -> None:
    launched = plan.launched
    heading(console, "Launched", " = ".join(dict.fromkeys((launched.label, launched.full_label))))
    table = grid("l", "w")
    table.add_row(
        "", "batch",
        f"at most {plural(launched.batch, 'sequence')} per attention-DP rank and micro-batch, "
        f"{plural(launched.micro_batches, 'micro-batch')}; prefill at most {plural(launched.prefill_batch, 'prompt')}",
    )  # fmt: skip
    layers = plan.scenarios[0].plan.placement.stage_layers
    if launched.pp > 1:
        table.add_row("", "layers", f"{' + '.join(map(str, layers))} per stage")
    table.add_row("", "mesh order", launched.mesh_order)
    if plan.problem.llm.is_moe:
        for phase, dispatch, overlap in (
            ("decode", launched.decode_dispatch, launched.decode_overlap),
            ("prefill", launched.prefill_dispatch, launched.prefill_overlap),
        ):
            words = f"expert dispatch by {dispatch.replace('_', '-')}, two-batch overlap {'on' if overlap else 'off'}"
            table.add_row("", phase, words)
    console.print(table)


def _proof(console: Console, plan: ScenarioPlan) -> None:
    claim = plan.claim
    heading(console, "Proof")
    table = grid("l", "w")
    what = "weighted sum of the objective integers" if claim.over == "expected" else "largest regret integer"
    table.add_row("", "objective", f"{what} {claim.value:,}; bound {claim.bound:,}; gap {gap_text(claim.gap)}")
    table.add_row("", "claim", "no single deployment in the space does better over these scenarios and weights")
    alone = [result.own.status for result in plan.scenarios]
    table.add_row("", "alone", f"{alone.count('OPTIMAL')} of {len(alone)} own optima are proved, each by a plan inside")
    wall = claim.wall_s
    table.add_row(
        "", "search",
        f"{plural(len(claim.iterations), 'iteration')}, {wall.total:.2f} s (tables {wall.tables:.2f}, program "
        f"{wall.program:.2f}, placement {wall.blocks:.2f}); OR-tools {claim.versions.ortools}",
    )  # fmt: skip
    console.print(table)
