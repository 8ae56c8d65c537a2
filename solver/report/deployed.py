"""What every view of a deployment says: words, rows of its tables, and what sits on each GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from solver.deployment import DeploymentPlan, InstanceGroup
from solver.expansion import expand
from solver.report.terminal import plural, rate
from solver.specs.deploying import MICRO, NHZ, Goal
from solver.units import gap_text, short_ns

MAP_DOMAINS = 32
"""Most scale-up domains that the map of a cluster shows in signs."""
SIGN_OF_ROLE = {"aggregated": "A", "prefill": "P", "decode": "D"}
LEGEND = "a line per domain: A aggregated, P prefill, D decode, . idle; | begins an instance"
GROUP_COLUMNS = ("", "pool", "GPUs", "strategy", "req/s", "TTFT", "TPOT", "batch")


@dataclass(frozen=True)
class MapLine:
    """Equal scale-up domains, one after the other, in signs."""

    domains: str
    signs: str


def proof_words(deployment: DeploymentPlan) -> str:
    """Proved, or how far from it."""
    if deployment.status == "OPTIMAL":
        return "proved optimal"
    return f"not proved, gap {gap_text(deployment.certificate.gap)}"


def value_words(deployment: DeploymentPlan) -> str:
    """What it serves, and for how much money."""
    m = deployment.metrics
    words = f"{m.requests_per_s:.4g} requests/s, {rate(m.throughput_tokens_per_s, 'tokens/s')}"
    if m.cost_per_hour is not None:
        return f"{m.cost_per_hour:,.2f} an hour for {words}"
    return words


def question_words(deployment: DeploymentPlan) -> tuple[str, ...]:
    """What was asked."""
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
    return tuple(parts)


def group_columns(deployment: DeploymentPlan) -> tuple[str, ...]:
    """Header of :func:`group_cells`."""
    return (*GROUP_COLUMNS, *([] if len(deployment.problems) == 1 else ["cluster"]))


def group_cells(deployment: DeploymentPlan, group: InstanceGroup) -> tuple[str, ...]:
    """A row of the table of instances."""
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


def map_lines(deployment: DeploymentPlan, site: int) -> Iterator[MapLine]:
    """One sign per GPU of the first domains of a cluster; equal neighbours are drawn once."""
    cluster = deployment.problems[site].cluster
    domain, lines = cluster.domain_gpus, min(cluster.num_domains, MAP_DOMAINS)
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
    shown = 0
    while shown < lines:
        line = _line(signs, starts, shown, domain)
        same = shown + 1
        while same < lines and _line(signs, starts, same, domain) == line:
            same += 1
        yield MapLine(str(shown) if same == shown + 1 else f"{shown}-{same - 1}", line)
        shown = same


def _line(signs: list[str], starts: set[int], index: int, domain: int) -> str:
    text = ""
    for gpu in range(index * domain, (index + 1) * domain):
        if gpu in starts and gpu % domain:
            text += "|"
        text += signs[gpu]
    return text


def unmapped(deployment: DeploymentPlan, site: int) -> int:
    """Domains that :func:`map_lines` leaves out."""
    return max(0, deployment.problems[site].cluster.num_domains - MAP_DOMAINS)


def goal_words(goal: Goal, integer: int) -> str:
    """The goal's integer in its unit."""
    if goal == "gpus":
        return plural(integer, "GPU")
    if goal == "cost":
        return f"{integer / MICRO:,.2f} an hour"
    return f"{integer / NHZ:.6g} requests/s{' per GPU' if goal == 'efficiency' else ''}"


def claim_rows(deployment: DeploymentPlan) -> list[tuple[str, str]]:
    """The proof in words."""
    claim = deployment.certificate
    value, bound = (goal_words(claim.goal, integer) for integer in (claim.value, claim.bound))
    rows = [
        ("value", f"{value}; bound {bound}; gap {gap_text(claim.gap)}"),
        ("claim", "no mix of instances within the clusters is better, whatever their sizes and degrees"),
    ]
    for mode in claim.modes:
        if mode.mode != deployment.mode:
            words = (
                "cannot serve at all" if mode.bound is None else f"is bounded by {goal_words(claim.goal, mode.bound)}"
            )
            rows.append(("other mode", f"{mode.mode} {words}"))
    if claim.one_fewer_nhz is not None:
        fewer = f"{deployment.metrics.gpus_used - 1} GPUs serve at most {claim.one_fewer_nhz / NHZ:.6g} requests/s"
        rows.append(("one GPU fewer", fewer))
    searched = sum(entry.proof == "program" for entry in claim.sizes)
    search = (
        f"{len(claim.sizes)} instance sizes, {searched} of them solved, the others bounded; {claim.mixes} integer "
        f"programs; {claim.wall_s:.2f} s"
    )
    return [*rows, ("search", search)]
