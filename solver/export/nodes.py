"""One script per node out of the commands that run there."""

from __future__ import annotations

from solver.export.deployment import Deployment
from solver.export.files import Command, ExportFile, node_script


def node_files(deployment: Deployment, started: list[Command]) -> list[ExportFile]:
    """A script for every node."""
    by_node: dict[int, list[Command]] = {}
    for command in started:
        by_node.setdefault(command.node, []).append(command)
    width = len(str(max(by_node)))
    return [
        ExportFile(
            f"node-{node:0{width}d}.sh",
            node_script(
                deployment.origin,
                f"node {node} ({deployment.host(node)}): replica {', '.join(str(c.replica) for c in own)}",
                own,
            ),
            executable=True,
        )
        for node, own in sorted(by_node.items())
    ]
