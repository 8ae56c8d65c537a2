"""One script per node out of the commands that run there."""

from __future__ import annotations

from collections.abc import Sequence

from solver.export.files import Command, ExportFile, node_script


def node_files(origin: str, hosts: Sequence[str], started: Sequence[Command]) -> list[ExportFile]:
    """A script for every node; `origin` is its first line, `hosts` names every node of the cluster."""
    by_node: dict[int, list[Command]] = {}
    for command in started:
        by_node.setdefault(command.node, []).append(command)
    width = len(str(max(by_node)))
    return [
        ExportFile(
            f"node-{node:0{width}d}.sh",
            node_script(
                origin,
                f"node {node} ({hosts[node]}): replica {', '.join(str(c.replica) for c in own)}",
                own,
            ),
            executable=True,
        )
        for node, own in sorted(by_node.items())
    ]
