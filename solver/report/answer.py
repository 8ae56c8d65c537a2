"""The answer of a search, and the evaluation of a named strategy, for people."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from rich.console import Console
from rich.text import Text

from solver.cost.limits import limits_of
from solver.cost.metrics import error_band
from solver.expansion import expand
from solver.plan import ClosedLoopMetrics, Evaluation, Metrics, NoPlan, ObjectiveClaim, Plan, PlannedStrategy
from solver.report.placement import experts_text, sequences_text
from solver.report.shares import show_memory, show_times
from solver.report.terminal import STYLE_OF_STATUS, bullets, grid, headed, heading, plural, rate
from solver.specs.problem import Problem
from solver.units import gap_text, short_ns

FIRST_RECORDS = 4
"""GPUs that the summary of the placement shows."""
RATE_OF_OBJECTIVE = {"throughput": "tokens/s", "efficiency": "tokens/s/GPU"}


def show_plan(
    console: Console, plan: Plan, program: str, out: str | None, also: Callable[[Console, Plan], None] | None = None
) -> None:
    """Everything an engineer needs to act on a plan; `program` and `out` make the next commands.

    `also` shows what belongs after the proof.
    """
    console.print(
        Text.assemble(
            (plan.status, STYLE_OF_STATUS[plan.status]),
            "  ",
            (plan.strategy.label, "bold"),
            f"  on {plural(plan.metrics.gpus_used, 'GPU')}: {_objective_words(plan)}, {proof_words(plan)}",
        )
    )
    _question(console, plan.problem)
    _strategy(console, plan.strategy, plan.problem, plan.placement.stage_layers)
    _metrics(console, plan.metrics)
    _credibility(console, plan)
    heading(console, "Why it wins", "time of one decode step, and of one prefill, by component")
    show_times(console, plan.breakdown)
    show_memory(console, plan.memory)
    _proof(console, plan)
    if also is not None:
        also(console, plan)
    _runners_up(console, plan)
    _placement(console, plan)
    _remarks(console, "Warnings", plan.warnings, "yellow")
    _remarks(console, "Assumptions", plan.assumptions)
    _next(console, program, out)


def show_evaluation(console: Console, evaluation: Evaluation) -> None:
    """Metrics, times and memory of a strategy that the caller named."""
    broken = evaluation.violations
    verdict = (f"breaks {plural(len(broken), 'rule')}", "bold red") if broken else ("meets every rule", "bold green")
    console.print(
        Text.assemble(
            ("EVALUATED", "bold"),
            "  ",
            (evaluation.strategy.label, "bold"),
            f"  on {plural(evaluation.metrics.gpus_used, 'GPU')}: ",
            verdict,
        )
    )
    _question(console, evaluation.problem)
    _remarks(console, "Broken rules", broken, "red")
    _strategy(console, evaluation.strategy, evaluation.problem, evaluation.placement.stage_layers)
    _metrics(console, evaluation.metrics)
    _closed_loop(console, evaluation.closed_loop)
    heading(console, "Time", "of one decode step, and of one prefill, by component")
    show_times(console, evaluation.breakdown)
    show_memory(console, evaluation.memory)
    _remarks(console, "Assumptions", evaluation.assumptions)


def _closed_loop(console: Console, loop: ClosedLoopMetrics | None) -> None:
    """What a benchmark client would measure, queueing included."""
    if loop is None:
        return
    waits = f", {short_ns(loop.wait_ns)} of it waiting for KV cache" if loop.wait_ns else ""
    console.print(
        f"  A closed-loop client with {loop.concurrency} requests in flight would measure TTFT "
        f"{short_ns(loop.ttft_ns)}{waits}, TPOT {short_ns(loop.tpot_ns)}."
    )


def _credibility(console: Console, plan: Plan) -> None:
    """Expected error of the prediction, and the strategies it does not tell from the winner."""
    _closed_loop(console, plan.closed_loop)
    percent, source = error_band(plan.problem, plan.problem.objective.name)
    heading(console, "How far to trust it", f"error of {percent:g} %: {source}")
    ties = plan.ties
    if ties is None:
        console.print("  --ties N lists the strategies that this error does not tell from the winner.")
        return
    if not ties.tied:
        console.print(
            "  Proved: no other degrees come within it."
            if ties.complete
            else "  The search for ties was cut short: nothing is proved about other degrees."
        )
        return
    table = headed([("", "l"), ("", "l"), ("objective", "r"), ("", "r"), ("GPUs", "r")])
    for tie in ties.tied:
        worse = tie.objective / plan.objective.value - 1
        table.add_row(
            "", tie.strategy.label, tie.strategy.full_label, objective_text(plan.objective, tie.objective),
            f"{worse:+.1%}", str(tie.gpus),
        )  # fmt: skip
    console.print(table)
    console.print("  Proved: no other degrees come within it." if ties.complete else "  There may be more of them.")


def show_no_plan(console: Console, answer: NoPlan) -> None:
    """Why there is no plan."""
    meaning = "proved: no strategy satisfies every constraint" if answer.status == "INFEASIBLE" else "nothing is proved"
    console.print(
        Text.assemble((answer.status, STYLE_OF_STATUS[answer.status]), f"  {meaning} ({answer.wall_s:.1f} s)")
    )
    console.print()
    bullets(console, answer.reasons)


# --- parts ------------------------------------------------------------------------------------------------------------


def objective_text(claim: ObjectiveClaim, value: float) -> str:
    """A value of the objective in a readable unit."""
    if claim.unit == "ns":
        return short_ns(value)
    if claim.name in RATE_OF_OBJECTIVE:
        return rate(value, RATE_OF_OBJECTIVE[claim.name])
    return plural(round(value), "GPU") if claim.name == "gpus" else f"{value:,.6g}"


def limit_words(problem: Problem) -> list[str]:
    """Every SLO as ``TTFT <= 2 s`` or ``throughput >= 1,200 tokens/s``."""
    osl, words = problem.workload.osl, []
    for limit in limits_of(problem):
        value = limit.text(limit.at_most, osl) if limit.is_rate else short_ns(limit.at_most)
        words.append(f"{limit.words} {'>=' if limit.is_rate else '<='} {value}")
    return words


def proof_words(plan: Plan) -> str:
    """What is proved of a plan, in a few words."""
    gap, asked = plan.objective.gap, plan.certificate.parameters.relative_gap_limit
    if plan.status == "OPTIMAL":
        return "proved optimal"
    return f"proved within {gap_text(gap)} of the optimum" if gap <= asked else f"not proved, gap {gap_text(gap)}"


def _objective_words(plan: Plan) -> str:
    if plan.objective.name == "gpus":
        return "the fewest GPUs" if plan.status == "OPTIMAL" else "as few GPUs as were found"
    return f"{plan.objective.name} {objective_text(plan.objective, plan.objective.value)}"


def _question(console: Console, problem: Problem) -> None:
    """One line that says what was asked."""
    workload, cluster = problem.workload, problem.cluster
    low, high = workload.prompt_lengths[0], workload.longest_isl
    lengths = f"{high}" if low == high else f"{low} to {high}"
    many = "free concurrency" if workload.concurrency is None else f"{workload.concurrency} concurrent"
    pins = [f"{name} = {value} fixed" for name, value in problem.pins.given().items()]
    parts = [
        f"{problem.llm.name} on {plural(cluster.num_gpus, f'{cluster.gpu.name} GPU')}",
        f"{lengths} tokens in, {workload.osl} out, {many}", *limit_words(problem), *pins,
        *([] if problem.engine == "any" else [f"engine {problem.engine}"]),
    ]  # fmt: skip
    console.print(Text("; ".join(parts), style="dim"))


def _strategy(console: Console, strategy: PlannedStrategy, problem: Problem, stage_layers: tuple[int, ...]) -> None:
    names = dict.fromkeys((strategy.label, strategy.full_label))
    heading(console, "Strategy", " = ".join(names))
    table = grid("l", "w")
    plain = strategy.strategy()
    table.add_row(
        "", "GPUs",
        f"{plain.gpus:,} of {problem.cluster.num_gpus:,} = {plural(plain.replicas, 'replica')} x "
        f"{plural(plain.pp, 'stage')} x {plural(plain.stage_gpus, 'rank')}",
    )  # fmt: skip
    table.add_row("", "attention", f"TP {plain.attn_tp} x DP {plain.attn_dp} in each stage")
    if problem.llm.is_moe:
        table.add_row("", "experts", f"TP {plain.moe_tp} x EP {plain.moe_ep} on the same ranks")
    if plain.pp > 1:
        table.add_row("", "layers", f"{' + '.join(map(str, stage_layers))} per stage")
    table.add_row(
        "", "batch",
        f"{plural(plain.batch, 'sequence')} per attention-DP rank and micro-batch, "
        f"{plural(plain.micro_batches, 'micro-batch')}, {plural(plain.slots, 'slot')} in all; prefill "
        f"{plural(plain.prefill_batch, 'prompt')} at a time",
    )  # fmt: skip
    table.add_row("", "mesh order", f"{plain.mesh_order} (fastest-varying rank first)")
    for phase, reduce, dispatch, overlap in (
        ("decode", plain.decode_allreduce, plain.decode_dispatch, plain.decode_overlap),
        ("prefill", plain.prefill_allreduce, plain.prefill_dispatch, plain.prefill_overlap),
    ):
        words = [f"{reduce} all-reduce"]
        if problem.llm.is_moe:
            words += [
                f"expert dispatch by {dispatch.replace('_', '-')}",
                f"two-batch overlap {'on' if overlap else 'off'}",
            ]
        table.add_row("", phase, ", ".join(words))
    console.print(table)


def _metrics(console: Console, metrics: Metrics) -> None:
    heading(console, "Metrics")
    rows = (
        ("TTFT", short_ns(metrics.ttft_ns), "throughput", rate(metrics.throughput_tokens_per_s, "tokens/s")),
        (
            "TPOT",
            short_ns(metrics.tpot_ns),
            "efficiency",
            rate(metrics.efficiency_tokens_per_s_per_gpu, "tokens/s/GPU"),
        ),
        (
            "request latency",
            short_ns(metrics.request_latency_ns),
            "resident sequences",
            f"{metrics.active_sequences:,}",
        ),
    )
    table = grid("l", "r", "l", "r")
    for row in rows:
        table.add_row("", *row)
    console.print(table)


def _proof(console: Console, plan: Plan) -> None:
    claim, certificate = plan.objective, plan.certificate
    heading(console, "Proof")
    table = grid("l", "w")
    better = f"a {'larger' if claim.sense == 'maximise' else 'smaller'} {claim.name}"
    if claim.name in ("gpus", "weighted"):
        better = "fewer GPUs" if claim.name == "gpus" else "a smaller weighted ratio"
    table.add_row(
        "", "objective",
        f"{claim.name} {objective_text(claim, claim.value)}; bound "
        f"{objective_text(claim, claim.bound) if certificate.bound > 0 else 'none yet'}; gap {gap_text(claim.gap)}",
    )  # fmt: skip
    table.add_row(
        "", "claim",
        f"no strategy and placement in the space has {better}"
        + ("" if plan.status == "OPTIMAL" else " than the bound; the plan itself is not proved optimal"),
    )  # fmt: skip
    space = certificate.space
    table.add_row("", "space", f"{space.name}, {space.configurations:,} configurations, with every placement of each")
    wall = certificate.wall_s
    seconds = "" if wall is None else (
        f", {wall.total:.2f} s (tables {wall.tables:.2f}, program {wall.program:.2f}, placement {wall.blocks:.2f})"
    )  # fmt: skip
    table.add_row(
        "", "search",
        f"{plural(len(certificate.iterations), 'iteration')}{seconds}; OR-tools {certificate.versions.ortools}, "
        f"{plural(certificate.parameters.workers, 'worker')}, seed {certificate.parameters.seed}",
    )  # fmt: skip
    console.print(table)


def _runners_up(console: Console, plan: Plan) -> None:
    shown = set() if plan.ties is None else {tie.strategy.label for tie in plan.ties.tied}
    if plan.alternatives is not None:
        shown |= {other.strategy.label for other in plan.alternatives.ranked}
    others = [other for other in plan.runners_up if other.label not in shown]
    if not others:
        return
    heading(console, "Runners-up", "strategies that the search evaluated; others may lie between")
    table = headed([("strategy", "l"), (plan.objective.name, "r"), ("distance", "r"), ("GPUs", "r")])
    for other in others:
        distance = other.objective / plan.objective.value - 1 if plan.objective.value else 0.0
        table.add_row(
            "", other.label, objective_text(plan.objective, other.objective), f"{distance:+.1%}", f"{other.gpus:,}"
        )
    console.print(table)


def _placement(console: Console, plan: Plan) -> None:
    used = plan.metrics.gpus_used
    heading(console, "Placement", f"the first {min(FIRST_RECORDS, used)} of {plural(used, 'GPU')}")
    numbers = [(title, "r") for title in ("GPU", "node", "replica", "stage", "layers", "attn", "experts")]
    table = headed([*numbers, ("holds experts", "w"), ("sequences", "w")])
    for record in islice(expand(plan), FIRST_RECORDS):
        table.add_row(
            "", str(record.gpu), f"{record.node}.{record.local_gpu}", str(record.replica), str(record.stage),
            f"{record.first_layer}-{record.last_layer}", f"tp{record.attn_tp_rank} dp{record.attn_dp_rank}",
            f"tp{record.moe_tp_rank} ep{record.moe_ep_rank}", _short(experts_text(record.experts)),
            _short(sequences_text(record.sequences)),
        )  # fmt: skip
    console.print(table)


def _short(text: str, limit: int = 40) -> str:
    if not text:
        return "none"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _remarks(console: Console, title: str, sentences: tuple[str, ...], style: str = "") -> None:
    if sentences:
        heading(console, title)
        bullets(console, sentences, style)


def _next(console: Console, program: str, out: str | None) -> None:
    heading(console, "Next")
    file = out or "plan.json"
    lines = [] if out else [f"{program} solve ... --out {file}"]
    lines += [f"{program} verify {file} --exhaustive", f"{program} placement {file} --format csv"]
    for line in lines:
        console.print(Text(f"  {line}"))
