"""A deployment's report: the sections of the terminal view for Markdown and HTML, with a map of every GPU."""

from __future__ import annotations

import html as escape
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from solver.deployment import ROLES, DeploymentPlan, InstanceGroup, InstanceSize, Run, expand_deployment
from solver.expansion import GpuRecord
from solver.report.deployed import (
    LEGEND,
    claim_rows,
    goal_words,
    group_cells,
    group_columns,
    map_lines,
    proof_words,
    question_words,
    unmapped,
    value_words,
)
from solver.report.document import Block, Bullets, Chart, Document, Grid, Paragraph, Section
from solver.report.html import page
from solver.report.terminal import plural, rate
from solver.specs.deploying import NHZ
from solver.units import short_bytes, short_ns
from solver.verify import Verification

MAX_MAPPED = 16384
"""Most GPUs that the map draws; of a larger deployment, the first ones."""

COLOURS = {
    "aggregated": ("#4477aa", "#6699cc", "#225588"),
    "prefill": ("#cc6633", "#ee9966", "#994411"),
    "decode": ("#228866", "#55bb99", "#115544"),
}
"""Shades of a role, by turns for its groups; told apart by the colour-blind, too."""
STYLE = (
    "<style>.gpu.first{box-shadow:inset 3px 0 0 var(--ink)}"
    ".sites h4{margin:14px 0 4px}.sites .row{display:flex;flex-wrap:wrap;gap:6px}"
    ".keys span{margin-right:16px;font-size:13px}.keys i{display:inline-block;width:11px;height:11px;"
    "border-radius:2px;margin-right:5px}</style>"
)


def deployment_document(deployment: DeploymentPlan, verdict: Verification, targets: tuple[str, ...]) -> Document:
    """The report; `targets` launch the deployment."""
    sections = [
        Section("Summary", tuple(_summary(deployment))),
        Section("Question", (Bullets(question_words(deployment)),)),
        Section("Pools", tuple(_pools(deployment))),
        Section("Instances", tuple(_instances(deployment))),
        Section("Map", tuple(_maps(deployment))),
        Section("Proof", (Grid(("", ""), tuple(claim_rows(deployment))),)),
        Section("Modes", tuple(_modes(deployment))),
        Section("Idle GPUs", (Paragraph(f"{deployment.idle}." if deployment.idle else "None."),)),
        Section("Validation", tuple(_validation(verdict))),
        Section("Warnings", (Bullets(deployment.warnings) if deployment.warnings else Paragraph("None."),)),
        Section(
            "Launch files",
            (
                Paragraph(
                    "Each command writes the files of one launcher; every file names this deployment. What a launcher "
                    "cannot express is refused by name, with the alternative."
                ),
                Bullets(tuple(f"export deployment.json --to {target} --out {target}/" for target in targets)),
            ),
        ),
    ]
    return Document(
        f"{deployment.mode.capitalize()} deployment of {deployment.problems[0].llm.name} on "
        f"{plural(deployment.metrics.gpus_used, 'GPU')}",
        f"shardwright deployment {deployment.digest}",
        tuple(sections),
    )


def deployment_html(document: Document, deployment: DeploymentPlan) -> str:
    """The whole page, without scripts."""
    return page(document, lambda _chart: _drawn(deployment))


def _summary(deployment: DeploymentPlan) -> Iterator[Block]:
    m = deployment.metrics
    rows = [
        ("Status", f"{deployment.status}, {proof_words(deployment)}"),
        ("Goal", deployment.asked.goal),
        ("Serves", value_words(deployment)),
        ("Efficiency", rate(m.efficiency_tokens_per_s_per_gpu, "tokens/s/GPU")),
        ("GPUs", f"{m.gpus_used:,} used, {m.gpus_idle:,} idle"),
    ]
    count = sum(group.count for group in deployment.groups)
    yield Paragraph(
        f"{deployment.problems[0].llm.name} is served {deployment.mode} by {plural(count, 'instance')} of "
        f"{plural(len(deployment.groups), 'kind')}, under the cost model and in the space that the certificate names."
    )
    yield Grid(("", ""), tuple(rows))


def _pools(deployment: DeploymentPlan) -> Iterator[Block]:
    header = ("pool", "GPUs", "instances", "could serve", "used", "TTFT worst", "TTFT mean", "TPOT worst", "TPOT mean")
    rows = tuple(
        (
            pool.role,
            f"{pool.gpus:,}",
            f"{pool.instances:,}",
            f"{pool.rate_nhz / NHZ:.4g} requests/s",
            f"{pool.utilisation:.1%}",
            *(short_ns(ns) if ns else "-" for ns in (
                pool.ttft_ns, pool.mean_ttft_ns, pool.tpot_ns, pool.mean_tpot_ns)),
        )
        for pool in deployment.metrics.pools
    )  # fmt: skip
    yield Grid(header, rows)


def _instances(deployment: DeploymentPlan) -> Iterator[Block]:
    header = ("count", *group_columns(deployment)[1:], "memory", "begin at GPU")
    rows = []
    for group in deployment.groups:
        fullest = max(group.plan.memory, key=lambda stage: stage.total_kib / stage.capacity_kib)
        memory = f"{short_bytes(fullest.total_kib * 1024)}, {fullest.total_kib / fullest.capacity_kib:.0%}"
        starts = "; ".join(_run(run) for run in group.starts)
        count, *cells = group_cells(deployment, group)
        rows.append((count.removesuffix(" x"), *cells, memory, starts))
    yield Grid(header, tuple(rows), "Memory of the fullest rank, and its share of what is usable.")


def _run(run: Run) -> str:
    last = run.first + run.step * (run.count - 1)
    if run.count == 1:
        return str(run.first)
    if run.step == 1:
        return f"{run.first}-{last}"
    return f"{run.first}, {run.first + run.step}{f', ..., {last}' if run.count > 2 else ''}"


def _maps(deployment: DeploymentPlan) -> Iterator[Block]:
    rows: list[tuple[str, ...]] = []
    for site, problem in enumerate(deployment.problems):
        rows += [(problem.cluster.name, line.domains, line.signs) for line in map_lines(deployment, site)]
        if more := unmapped(deployment, site):
            rows.append((problem.cluster.name, f"... {more} more", ""))
    note = f"{LEGEND[0].upper()}{LEGEND[1:]}."
    yield Chart("gpus", "Every GPU", Grid(("cluster", "domains", "GPUs"), tuple(rows), note))


def _modes(deployment: DeploymentPlan) -> Iterator[Block]:
    claim = deployment.certificate
    rows = tuple(
        (
            mode.mode,
            ", ".join(ROLES[mode.mode]),
            "-" if mode.value is None else goal_words(claim.goal, mode.value),
            "cannot serve" if mode.bound is None else goal_words(claim.goal, mode.bound),
        )
        for mode in claim.modes
    )
    yield Grid(("mode", "pools", "best mix found", "bound"), rows, "No mix of the mode is better than its bound.")


def _validation(verdict: Verification) -> Iterator[Block]:
    word = "all hold" if verdict.ok else "the deployment is convicted"
    yield Paragraph(f"verify examined {plural(len(verdict.checks), 'check')}: {word}.")
    if verdict.findings:
        yield Bullets(tuple(str(finding) for finding in verdict.findings))


# --- the map ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A GPU that holds something."""

    colour: str
    begins: bool
    """Whether it is the first one of its instance."""
    text: str


def _drawn(deployment: DeploymentPlan) -> str:
    """A square per GPU, node by node; the pointer tells what it holds."""
    colours = _colours(deployment)
    held: list[dict[int, Cell]] = [{} for _ in deployment.problems]
    for group, instance, record in expand_deployment(deployment):
        if record.gpu < MAX_MAPPED:
            text = f"{_place(record)}\n{_named(group)}, instance {instance + 1} of {group.count}\n{_rank(record)}"
            begins = record.stage == record.attn_tp_rank == record.attn_dp_rank == 0
            held[group.size.site][record.gpu] = Cell(colours[group.size], begins, text)
    keys = [(colours[group.size], f"{group.count} x {_named(group)}") for group in deployment.groups]
    keys.append(("var(--idle)", "idle"))
    legend = "".join(
        f"<span><i style='background:{colour}'></i>{escape.escape(words)}</span>" for colour, words in keys
    )
    sites = "".join(_site(deployment, site, cells) for site, cells in enumerate(held))
    legend += "<span>a bar begins an instance</span>"
    return f"{STYLE}<div class='sites' role='img' aria-label='Every GPU'><div class='keys'>{legend}</div>{sites}</div>"


def _colours(deployment: DeploymentPlan) -> dict[InstanceSize, str]:
    found: dict[InstanceSize, str] = {}
    turns: Counter[str] = Counter()
    for group in deployment.groups:
        shades = COLOURS[group.size.role]
        found[group.size] = shades[turns[group.size.role] % len(shades)]
        turns[group.size.role] += 1
    return found


def _site(deployment: DeploymentPlan, site: int, held: dict[int, Cell]) -> str:
    """The nodes of one cluster, as many as are drawn."""
    cluster = deployment.problems[site].cluster
    per_node = cluster.gpus_per_node
    nodes = min(cluster.num_nodes, MAX_MAPPED // per_node)
    boxes = []
    for node in range(nodes):
        cells = "".join(_square(gpu, held.get(gpu)) for gpu in range(node * per_node, (node + 1) * per_node))
        columns = f"grid-template-columns:repeat({min(per_node, 8)},14px)"
        boxes.append(f"<div class='node' style='{columns}'><b>{node}</b>{cells}</div>")
    title = f"<h4>{escape.escape(cluster.name)}</h4>" if len(deployment.problems) > 1 else ""
    left = f"<p class='note'>{cluster.num_nodes - nodes:,} more nodes</p>" if nodes < cluster.num_nodes else ""
    return f"{title}<div class='row'>{''.join(boxes)}</div>{left}"


def _square(gpu: int, cell: Cell | None) -> str:
    if cell is None:
        return f"<div class='gpu' title='GPU {gpu}: idle'></div>"
    kind = "gpu first" if cell.begins else "gpu"
    return f"<div class='{kind}' style='background:{cell.colour}' title='{escape.escape(cell.text, quote=True)}'></div>"


def _named(group: InstanceGroup) -> str:
    return f"{group.size.role}, {plural(group.size.gpus, 'GPU')}, {group.plan.strategy.full_label}"


def _place(record: GpuRecord) -> str:
    return f"GPU {record.gpu} = node {record.node}, local {record.local_gpu}"


def _rank(record: GpuRecord) -> str:
    return (
        f"stage {record.stage}, layers {record.first_layer}-{record.last_layer}; "
        f"attention TP {record.attn_tp_rank}, DP {record.attn_dp_rank}; "
        f"experts TP {record.moe_tp_rank}, EP {record.moe_ep_rank}"
    )
