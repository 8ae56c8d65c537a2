"""A deployment for people: the pools, the instances, what the GPUs do, the proof."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from solver.deployment import DeploymentPlan, InstanceGroup
from solver.expansion import expand
from solver.report.terminal import STYLE_OF_STATUS, bar, bullets, grid, headed, heading, plural, rate
from solver.specs.deploying import MICRO, NHZ, Goal
from solver.units import short_ns

MAP_DOMAINS = 32
"""Most scale-up domains that the map shows."""
SIGN_OF_ROLE = {"aggregated": "A", "prefill": "P", "decode": "D"}


def show_deployment(console: Console, deployment: DeploymentPlan) -> None:
    """Everything an engineer needs to act on a deployment."""
    m, proof = deployment.metrics, "proved optimal"
    if deployment.status != "OPTIMAL":
        proof = f"not proved, gap {deployment.certificate.gap:.2%}"
    console.print(
        Text.assemble(
            (deployment.status, STYLE_OF_STATUS[deployment.status]),
            "  ",
            (f"{deployment.mode}, {plural(sum(g.count for g in deployment.groups), 'instance')}", "bold"),
            f"  on {plural(m.gpus_used, 'GPU')}: {_value(deployment)}, {proof}",
        )
    )
    _question(console, deployment)
    heading(console, "Instances")
    columns = [("", "r"), ("pool", "l"), ("GPUs", "r"), ("strategy", "l"), ("req/s", "r"), ("TTFT", "r"),
               ("TPOT", "r"), ("batch", "r")]  # fmt: skip
    table = headed(columns if len(deployment.problems) == 1 else [*columns, ("cluster", "l")])
    for group in deployment.groups:
        table.add_row("", *_group(deployment, group))
    console.print(table)
    _pools(console, deployment)
    _map(console, deployment)
    _proof(console, deployment)
    if deployment.idle:
        heading(console, "Idle GPUs")
        bullets(console, [deployment.idle + "."])
    if deployment.warnings:
        heading(console, "Warnings")
        bullets(console, deployment.warnings, "yellow")


def _value(deployment: DeploymentPlan) -> str:
    m = deployment.metrics
    words = f"{m.requests_per_s:.4g} requests/s, {rate(m.throughput_tokens_per_s, 'tokens/s')}"
    if m.cost_per_hour is not None:
        return f"{m.cost_per_hour:,.2f} an hour for {words}"
    return words


def _question(console: Console, deployment: DeploymentPlan) -> None:
    first, asked = deployment.problems[0], deployment.asked
    workload, slo = first.workload, first.workload.slo
    clusters = " + ".join(f"{p.gpu_budget:,} {p.cluster.gpu.name} GPUs" for p in deployment.problems)
    parts = [f"{first.llm.name} on {clusters}", f"{workload.mean_isl} tokens in, {workload.osl} out", asked.goal]
    if asked.request_rate is not None:
        parts.append(f"{asked.request_rate:g} requests/s")
    for name, limit in (("TTFT", slo.ttft), ("TPOT", slo.tpot), ("latency", slo.request_latency)):
        if limit is not None:
            parts.append(f"{name} <= {short_ns(limit)}")
    if first.engine != "any":
        parts.append(f"engine {first.engine}")
    console.print(Text("; ".join(parts), style="dim"))


def _group(deployment: DeploymentPlan, group: InstanceGroup) -> tuple[str, ...]:
    plan, strategy = group.plan, group.plan.strategy
    times = [short_ns(ns) if ns else "-" for ns in (plan.metrics.ttft_ns, plan.metrics.tpot_ns)]
    batch = strategy.prefill_batch if group.size.role == "prefill" else strategy.batch * strategy.micro_batches
    return (
        f"{group.count} x",
        group.size.role,
        str(group.size.gpus),
        strategy.full_label.removesuffix("-R1"),
        f"{group.rate_nhz / NHZ:.4g}",
        *times,
        str(batch),
        *([] if len(deployment.problems) == 1 else [deployment.problems[group.size.site].cluster.name]),
    )


def _pools(console: Console, deployment: DeploymentPlan) -> None:
    heading(console, "Pools", "what they could serve, and how much of it is used")
    table = grid("l", "r", "r", "r", "l")
    for pool in deployment.metrics.pools:
        table.add_row(
            "", pool.role, plural(pool.gpus, "GPU"), f"{pool.rate_nhz / NHZ:.4g} requests/s",
            f"{pool.utilisation:.1%}", bar(pool.utilisation, 20, console),
        )  # fmt: skip
    console.print(table)


def _map(console: Console, deployment: DeploymentPlan) -> None:
    """One sign per GPU of the first domains of every cluster."""
    heading(console, "Map", "a line per domain: A aggregated, P prefill, D decode, . idle; | begins an instance")
    for site, problem in enumerate(deployment.problems):
        domain, lines = problem.cluster.domain_gpus, min(problem.cluster.num_domains, MAP_DOMAINS)
        signs = ["."] * (domain * lines)
        starts: set[int] = set()
        for group in (g for g in deployment.groups if g.size.site == site):
            gpus = [record.gpu for record in expand(group.plan)]
            for first in group.first_gpus():
                if first >= len(signs):
                    break
                starts.add(first)
                for gpu in gpus:
                    if first + gpu < len(signs):
                        signs[first + gpu] = SIGN_OF_ROLE[group.size.role]
        table = grid("r", "l")
        shown = 0
        while shown < lines:
            line = _line(signs, starts, shown, domain)
            same = shown + 1
            while same < lines and _line(signs, starts, same, domain) == line:
                same += 1
            label = str(shown) if same == shown + 1 else f"{shown}-{same - 1}"
            table.add_row("", label, line)
            shown = same
        console.print(table)
        if lines < problem.cluster.num_domains:
            console.print(f"  ... {problem.cluster.num_domains - lines} more domains")


def _line(signs: list[str], starts: set[int], index: int, domain: int) -> str:
    text = ""
    for gpu in range(index * domain, (index + 1) * domain):
        if gpu in starts and gpu % domain:
            text += "|"
        text += signs[gpu]
    return text


def _in_words(goal: Goal, integer: int) -> str:
    """The goal's integer in its unit."""
    if goal == "gpus":
        return plural(integer, "GPU")
    if goal == "cost":
        return f"{integer / MICRO:,.2f} an hour"
    return f"{integer / NHZ:.6g} requests/s{' per GPU' if goal == 'efficiency' else ''}"


def _proof(console: Console, deployment: DeploymentPlan) -> None:
    claim = deployment.certificate
    heading(console, "Proof")
    table = grid("l", "w")
    searched = sum(entry.proof == "program" for entry in claim.sizes)
    value, bound = (_in_words(claim.goal, integer) for integer in (claim.value, claim.bound))
    table.add_row("", "value", f"{value}; bound {bound}; gap {'0' if claim.gap == 0 else f'{claim.gap:.3%}'}")
    table.add_row("", "claim", "no mix of instances within the clusters is better, whatever their sizes and degrees")
    for mode in claim.modes:
        if mode.mode != deployment.mode:
            words = (
                "cannot serve at all" if mode.bound is None else f"is bounded by {_in_words(claim.goal, mode.bound)}"
            )
            table.add_row("", "other mode", f"{mode.mode} {words}")
    if claim.one_fewer_nhz is not None:
        fewer = f"{deployment.metrics.gpus_used - 1} GPUs serve at most {claim.one_fewer_nhz / NHZ:.6g} requests/s"
        table.add_row("", "one GPU fewer", fewer)
    table.add_row(
        "", "search",
        f"{len(claim.sizes)} instance sizes, {searched} of them solved, the others bounded; {claim.mixes} integer "
        f"programs; {claim.wall_s:.2f} s",
    )  # fmt: skip
    console.print(table)
