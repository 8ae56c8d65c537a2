"""Ray: a placement group with one bundle per rank, each bound to its node by a label, and a script that creates it.

Nodes are started with ``ray start --labels host=NAME``. Ray hands out the GPUs of a node in the order of free ones, so
the script starts the actors of a node by ascending GPU.
"""

from __future__ import annotations

import json

from solver.export.deployment import Launch
from solver.export.files import ExportFile, comment_head

SCRIPT = '''"""Create the placement group of the plan and start one actor per rank on its bundle.

usage: place.py [ADDRESS]; nodes are started with: ray start --labels host=NAME ...
Bundle k belongs to rank k (replica after replica); actors of a node start by ascending GPU.
"""

import json
import sys
from pathlib import Path

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

PLAN = json.loads((Path(__file__).parent / "placement.json").read_text())


@ray.remote(num_gpus=1, num_cpus=0)
class Worker:
    """Stands for one rank; replace it by your own actor."""

    def where(self):
        return ray.get_runtime_context().get_node_id(), ray.get_gpu_ids()


def create():
    """The placement group, once every bundle sits on its node."""
    group = placement_group(
        PLAN["bundles"], strategy=PLAN["strategy"], bundle_label_selector=PLAN["bundle_label_selector"]
    )
    if not group.wait(timeout_seconds=PLAN["timeout_s"]):
        raise SystemExit("the placement group stays pending: are all nodes up, with their labels host=NAME?")
    return group


def workers(group):
    """One actor per rank, in rank order; those of a node are created by ascending GPU."""
    started = {}
    for rank in sorted(range(len(PLAN["gpus"])), key=lambda rank: PLAN["gpus"][rank]):
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
        started[rank] = Worker.options(scheduling_strategy=place).remote()
        ray.get(started[rank].where.remote())
    return [started[rank] for rank in range(len(started))]


if __name__ == "__main__":
    ray.init(address=sys.argv[1] if len(sys.argv) > 1 else "auto")
    names = {node["NodeID"]: node["Labels"].get("host") for node in ray.nodes()}
    for rank, (node, gpus) in enumerate(ray.get([worker.where.remote() for worker in workers(create())])):
        print(json.dumps({"rank": rank, "host": names[node], "gpus": gpus}))
'''
TIMEOUT_S = 120


def files(deployment: Launch) -> list[ExportFile]:
    """The placement group as data, and the script."""
    seats = [seat for instance in deployment.instances for seat in instance.seats]
    counts = {node: sum(len(share.seats) for _, share in deployment.shares_of(node)) for node in deployment.nodes}
    document = {
        "plan": deployment.digest,
        "strategy": "PACK",
        "timeout_s": TIMEOUT_S,
        "nodes": [{"name": deployment.host(node), "gpus": counts[node]} for node in deployment.nodes],
        "bundles": [{"GPU": 1} for _ in seats],
        "bundle_label_selector": [{"host": deployment.host(seat.record.node)} for seat in seats],
        "gpus": [seat.record.gpu for seat in seats],
    }
    return [
        ExportFile("placement.json", json.dumps(document) + "\n"),
        ExportFile("place.py", f"{comment_head(deployment.origin)}{SCRIPT}", executable=True),
    ]
