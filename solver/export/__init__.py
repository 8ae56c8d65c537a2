"""Plans and deployments as files that launchers accept. What a launcher cannot express is refused by name, with the
alternative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from solver.deployment import DeploymentPlan
from solver.errors import ExportError
from solver.export import bench, kubernetes, megatron, mpi, ranks, ray, sglang, slurm, torchrun, trtllm, vllm
from solver.export.deployment import Deployment
from solver.export.files import ExportFile
from solver.export.fleet import FLEET_TARGETS
from solver.export.readme import fleet_notes, fleet_readme, plan_notes, plan_readme
from solver.export.ready import ENGINE_OF_TARGET, ExportOptions, deployment_of, fleets_of
from solver.plan import Plan
from solver.verify import verify
from solver.verify.deployment import verify_deployment

__all__ = [
    "ENGINE_OF_TARGET",
    "TARGETS",
    "Export",
    "ExportFile",
    "ExportOptions",
    "bench_script",
    "deployment_of",
    "export",
]

TARGETS: Mapping[str, Callable[[Deployment], list[ExportFile]]] = {
    "vllm": vllm.files,
    "sglang": sglang.files,
    "trtllm": trtllm.files,
    "megatron": megatron.files,
    "torchrun": torchrun.files,
    "slurm": slurm.files,
    "mpi": mpi.files,
    "ray": ray.files,
    "kubernetes": kubernetes.lws_files,
    "dynamo": kubernetes.dynamo_files,
    "llm-d": kubernetes.llmd_files,
    "csv": ranks.csv_files,
    "jsonl": ranks.jsonl_files,
}
BENCH = "bench"
"""Not a launcher: the scripts of :func:`bench_script`."""


@dataclass(frozen=True)
class Export:
    """The files of one target, and what the target leaves to the engine."""

    target: str
    digest: str
    files: tuple[ExportFile, ...]
    notes: tuple[str, ...]


def export(plan: Plan | DeploymentPlan, target: str, options: ExportOptions | None = None) -> Export:
    """Files that launch a plan, or all instances of a deployment, with one target.

    Raises
    ------
    ExportError
        The target is unknown, cannot express the document (the sentence names what and the alternative), or the
        document is one that verify convicts.
    """
    if target not in TARGETS:
        raise ExportError(f"unknown target {target[:60]!r}; known: {', '.join(TARGETS)}")
    options = options or ExportOptions()
    if isinstance(plan, DeploymentPlan):
        return _export_fleets(plan, target, options)
    return _export(plan, target, TARGETS[target], options)


def bench_script(plan: Plan, options: ExportOptions | None = None) -> Export:
    """Scripts that measure the deployed plan with the engine's own benchmark and append a row for ``calibrate``.

    Raises
    ------
    ExportError
        The plan's engine has no serving benchmark, or verify convicts the plan.
    """
    return _export(plan, BENCH, bench.bench_files, options or ExportOptions())


def _export(
    plan: Plan, target: str, files_of: Callable[[Deployment], list[ExportFile]], options: ExportOptions
) -> Export:
    verdict = verify(plan)
    if not verdict.ok:
        raise ExportError(f"the plan is not exported, because verify convicts it: {verdict.findings[0]}")
    deployment = deployment_of(plan, target, options)
    files = files_of(deployment)
    notes = plan_notes(deployment)
    readme = plan_readme(deployment, target, files, notes)
    return Export(target, deployment.digest, (*files, ExportFile("README.md", readme)), notes)


def _export_fleets(plan: DeploymentPlan, target: str, options: ExportOptions) -> Export:
    """The files of every cluster; each in a folder of its own where there are several."""
    verdict = verify_deployment(plan)
    if not verdict.ok:
        raise ExportError(f"the deployment is not exported, because verify convicts it: {verdict.findings[0]}")
    fleets = list(fleets_of(plan, target, options))
    files = [
        ExportFile(f"{fleet.cluster}/{file.path}" if len(fleets) > 1 else file.path, file.text, file.executable)
        for fleet in fleets
        for file in FLEET_TARGETS[target](fleet)
    ]
    notes = fleet_notes(fleets)
    readme = fleet_readme(plan, fleets, target, files, notes)
    return Export(target, plan.digest, (*files, ExportFile("README.md", readme)), notes)
