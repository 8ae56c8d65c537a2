"""A deployment for people: the pools, the instances, what the GPUs do, the proof."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from solver.deployment import DeploymentPlan
from solver.report.deployed import (
    LEGEND,
    claim_rows,
    group_cells,
    group_columns,
    map_lines,
    proof_words,
    question_words,
    unmapped,
    value_words,
)
from solver.report.terminal import STYLE_OF_STATUS, bar, bullets, grid, headed, heading, plural
from solver.specs.deploying import NHZ

LEFT = ("pool", "strategy", "cluster")
"""Columns of text."""


def show_deployment(console: Console, deployment: DeploymentPlan) -> None:
    """Everything an engineer needs to act on a deployment."""
    console.print(
        Text.assemble(
            (deployment.status, STYLE_OF_STATUS[deployment.status]),
            "  ",
            (f"{deployment.mode}, {plural(sum(g.count for g in deployment.groups), 'instance')}", "bold"),
            f"  on {plural(deployment.metrics.gpus_used, 'GPU')}: {value_words(deployment)}, {proof_words(deployment)}",
        )
    )
    console.print(Text("; ".join(question_words(deployment)), style="dim"))
    heading(console, "Instances")
    table = headed([(name, "l" if name in LEFT else "r") for name in group_columns(deployment)])
    for group in deployment.groups:
        table.add_row("", *group_cells(deployment, group))
    console.print(table)
    _pools(console, deployment)
    _map(console, deployment)
    heading(console, "Proof")
    table = grid("l", "w")
    for row in claim_rows(deployment):
        table.add_row("", *row)
    console.print(table)
    if deployment.idle:
        heading(console, "Idle GPUs")
        bullets(console, [deployment.idle + "."])
    if deployment.warnings:
        heading(console, "Warnings")
        bullets(console, deployment.warnings, "yellow")


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
    heading(console, "Map", LEGEND)
    for site in range(len(deployment.problems)):
        table = grid("r", "l")
        for line in map_lines(deployment, site):
            table.add_row("", line.domains, line.signs)
        console.print(table)
        if more := unmapped(deployment, site):
            console.print(f"  ... {more} more domains")
