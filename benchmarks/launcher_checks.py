"""Solve plans with every engine profile, export them, and put the exports before the launchers' own code.

usage: launcher_checks.py --checks DIR --configs DIR [--work DIR] [--only WORD]

DIR of ``--checks`` is a prepared check environment: ``vllm_check.py``, ``sgl_check.py``, ``mcore_check.py``,
``trtllm_check.py``, ``crd_validate.py`` with the launchers' sources and a Python environment in ``venv``, the CRDs in
``../crds``. DIR of ``--configs`` holds Hugging Face ``ORG--NAME_config.json`` files. Nothing here needs a GPU.

Every line of the result is (what, how many, rejected or misplaced); the exit code is 1 when anything is.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import launchers

from solver import (
    Ask,
    Deploying,
    DeploymentPlan,
    Plan,
    SolveOptions,
    SolverError,
    deploy,
    expand_deployment,
    export,
    solve,
)
from solver.export import ExportOptions
from solver.specs.llm import Llm

CONFIG_OF_LLM = {
    "deepseek-v3": "deepseek-ai--DeepSeek-V3",
    "deepseek-r1": "deepseek-ai--DeepSeek-R1",
    "kimi-k2": "moonshotai--Kimi-K2-Instruct",
    "qwen3-235b-a22b": "Qwen--Qwen3-235B-A22B",
    "qwen3-30b-a3b": "Qwen--Qwen3-30B-A3B",
    "qwen3-32b": "Qwen--Qwen3-32B",
    "llama-3.1-70b": "meta-llama--Meta-Llama-3.1-70B",
    "llama-3.1-405b": "meta-llama--Meta-Llama-3.1-405B",
    "mixtral-8x7b": "mistralai--Mixtral-8x7B-v0.1",
    "gpt-oss-120b": "openai--gpt-oss-120b",
}
ENGINES = ("vllm", "sglang", "trtllm", "megatron")
SECONDS = 30.0
"""Time limit of one solve; a plan that is not proved by then is exported all the same."""


@dataclass(frozen=True)
class Case:
    """A question whose plan is exported."""

    llm: str
    cluster: str
    engine: str
    concurrency: int
    redundant: int = 0
    fix: tuple[str, ...] = ()
    loads: bool = False

    @property
    def name(self) -> str:
        """A file name."""
        parts = [self.llm, self.cluster, self.engine, str(self.concurrency), f"r{self.redundant}", *self.fix]
        return re.sub(r"[^\w.-]", "", "-".join([*parts, "loads" if self.loads else ""]).strip("-").replace("=", ""))


def cases() -> Iterator[Case]:
    """Eight LLMs and more, 1 to 256 GPUs, every engine, with and without replicas and loads, uneven stages."""
    for engine in ENGINES:
        yield Case("qwen3-30b-a3b", "h200x1", engine, 8)
        yield Case("qwen3-32b", "h200x2", engine, 16)
        yield Case("llama-3.1-70b", "h200x8", engine, 64)
        yield Case("llama-3.1-70b", "h200x8", engine, 16, fix=("pp=3", "attn_tp=2"))
        yield Case("llama-3.1-405b", "h200x16", engine, 32, fix=("pp=4",))
        yield Case("mixtral-8x7b", "h200x8", engine, 64)
        yield Case("gpt-oss-120b", "h200x8", engine, 64)
        yield Case("qwen3-235b-a22b", "h200x32", engine, 256)
        yield Case("qwen3-235b-a22b", "h200x16", engine, 64, fix=("pp=4",))
        yield Case("deepseek-v3", "h200x32", engine, 512)
        yield Case("deepseek-v3", "h200x32", engine, 64, fix=("pp=2",))
        yield Case("deepseek-r1", "h200x256", engine, 2048)
        yield Case("kimi-k2", "h200x64", engine, 512)
        yield Case("qwen3-30b-a3b", "h200x8", engine, 32, fix=("pp=2", "attn_dp=2"))
        if engine != "megatron":
            yield Case("deepseek-v3", "h200x32", engine, 512, redundant=32)
            yield Case("deepseek-r1", "h200x64", engine, 512, redundant=64)
            yield Case("qwen3-30b-a3b", "h200x8", engine, 64, redundant=16, loads=True)
            yield Case("qwen3-235b-a22b", "h200x16", engine, 128, loads=True)


def plan_of(case: Case, work: Path) -> Plan | None:
    """The plan of a case; kept in a file."""
    file = work / "plans" / f"{case.name}.json"
    if file.exists():
        return Plan.parse(file.read_text())
    loads = launchers.skewed_loads(case.llm, work / "loads.json") if case.loads else None
    ask = Ask(
        llm=case.llm,
        cluster=case.cluster,
        engine=case.engine,
        isl=1024,
        osl=256,
        concurrency=str(case.concurrency),
        objective="throughput",
        redundant_experts=case.redundant,
        fix=case.fix,
        expert_loads=None if loads is None else str(loads),
    )
    answer = solve(ask.problem(), SolveOptions(time_limit_s=SECONDS))
    if not isinstance(answer, Plan):
        print(f"no plan: {case.name}: {answer}", flush=True)
        return None
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(answer.model_dump_json())
    return answer


DEPLOYMENTS = (
    ("qwen3-30b-a3b", "h200x16", 256, "30 ms", "disaggregated"),
    ("qwen3-30b-a3b", "h200x8", 512, "30 ms", "aggregated"),
    ("qwen3-32b", "h200x16", 256, "30 ms", "disaggregated"),
    ("llama-3.1-70b", "h200x16", 512, "50 ms", "aggregated"),
    ("llama-3.1-70b", "h200x32", 512, "50 ms", "disaggregated"),
    ("gpt-oss-120b", "h200x16", 512, "30 ms", "disaggregated"),
    ("deepseek-v3", "h200x64", 512, "50 ms", "disaggregated"),
    ("deepseek-v3", "h200x64", 512, "50 ms", "aggregated"),
)
"""LLM, cluster, tokens out, TPOT, mode of deployments; each with every engine that has two pools."""


def check_deployments(
    given: argparse.Namespace, lines: dict[str, list[dict[str, object]]], manifests: list[Path], tally: Tally
) -> None:
    """Export deployments; every GPU of the document is launched once by every target, manifests and commands follow."""
    for llm, cluster, osl, tpot, mode in DEPLOYMENTS:
        for engine in ("vllm", "sglang", "trtllm"):
            case = Case(llm, cluster, engine, 0, fix=(mode,))
            if given.only not in f"deployment-{case.name}":
                continue
            ask = Ask(llm=llm, cluster=cluster, engine=engine, workload="chat", isl=4096, osl=osl, slo_ttft="2 s",
                      slo_tpot=tpot)  # fmt: skip
            found = deploy(ask.problem(), Deploying(mode=mode), SolveOptions(time_limit_s=SECONDS))
            tally.add("deployments", isinstance(found, DeploymentPlan), f"{case.name}: {found}")
            if not isinstance(found, DeploymentPlan):
                continue
            wanted = sorted((record.node, record.local_gpu) for _, _, record in expand_deployment(found))
            weights = str(weights_folder(llm, given.configs, given.work.resolve()))
            for target in (engine, "slurm", "mpi", "ray", "torchrun", "csv", "jsonl", "kubernetes", "dynamo"):
                folder = given.work.resolve() / "deployments" / case.name / target
                try:
                    launchers.write(export(found, target, ExportOptions(weights=weights)), folder)
                except SolverError as error:
                    meant = (
                        (engine, target) == ("trtllm", "kubernetes")
                        or "connector" in str(error)
                        or "decode servers" in str(error)
                    )
                    tally.add("refusals by name that are meant" if meant else "deployment exports", meant, str(error))
                    continue
                tally.add("deployment exports", True)
                if target in ("kubernetes", "dynamo"):
                    manifests += [*folder.glob("*/leaderworkerset.yaml"), *folder.glob("dynamo.yaml")]
                    continue
                launched = sorted(launchers.launched(target, folder))
                tally.add("deployments: GPUs launched once", launched == wanted, f"{case.name} to {target}")
                if target == engine and engine in lines:
                    lines[engine] += engine_lines(case, folder)
                if target == engine == "trtllm":
                    lint_trtllm(given.checks.resolve(), found.problems[0].llm, folder, tally)


def weights_folder(llm: str, configs: Path, work: Path) -> Path:
    """A folder with the LLM's config.json, as an engine wants it."""
    name = CONFIG_OF_LLM[llm]
    folder = work / "models" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes((configs / f"{name}_config.json").read_bytes())
    return folder


class Tally:
    """Counts of what was examined and what failed."""

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = {}
        self.failures: list[str] = []

    def add(self, what: str, ok: bool, why: str = "") -> None:
        """One examined thing."""
        count = self.counts.setdefault(what, [0, 0])
        count[0] += 1
        count[1] += not ok
        if not ok:
            self.failures.append(f"{what}: {why}")

    def show(self) -> int:
        """Print the table; the exit code."""
        print("| what | examined | rejected or misplaced |\n|---|---|---|")
        for what, (total, bad) in self.counts.items():
            print(f"| {what} | {total} | {bad} |")
        for failure in self.failures[:40]:
            print("FAILED", failure[:600])
        return int(bool(self.failures))


def batch(
    checks: Path, program: str, lines: list[dict[str, object]], tally: Tally, what: str
) -> list[dict[str, object]]:
    """Run a batch checker of the environment on command lines; its answers in order."""
    if not lines:
        return []
    file = checks / f"shardwright_{program}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = subprocess.run(
        [str(checks / "venv/bin/python"), program, "--mem-gib", "141", "--batch", file.name],
        cwd=checks, capture_output=True, text=True, check=False,
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")][:-1]
    for line, answer in zip(lines, answers, strict=False):
        tally.add(what, bool(answer.get("ok")), f"{line['name']}: {answer.get('msg')} [{shlex.join(line['args'])}]")
    for line in lines[len(answers) :]:
        tally.add(what, False, f"{line['name']}: no answer ({done.stderr[-300:]})")
    return answers


def engine_lines(case: Case, folder: Path) -> list[dict[str, object]]:
    """The engine commands of an export, as the checker takes them."""
    lines: list[dict[str, object]] = []
    for command in launchers.read_scripts(folder):
        words = command.argv[2:] if case.engine == "vllm" else command.argv[3:]
        gpus = len(command.env.pop("CUDA_VISIBLE_DEVICES").split(","))
        words = [str(folder / word) if word.startswith("expert-location.") else word for word in words]
        line = {"name": f"{case.name} node {command.node}", "args": words, "gpus": gpus, "env": command.env}
        if case.engine == "sglang" and "--init-expert-location" in words:
            line["expert_map"] = True
        lines.append(line)
    return lines


def check_megatron(checks: Path, plan: Plan, folder: Path, tally: Tally, name: str) -> None:
    """Groups of the real group construction, rank by rank for a few ranks, against the plan."""
    strategy = plan.strategy.strategy()
    for rank in sorted({0, strategy.instance_gpus - 1, strategy.instance_gpus // 3}):
        spec = launchers.megatron_spec(folder, rank, plan.problem.llm.num_layers)
        done = subprocess.run(
            [str(checks / "venv/bin/python"), "mcore_check.py", json.dumps(spec)],
            cwd=checks, capture_output=True, text=True, check=False,
        )  # fmt: skip
        answer = (
            json.loads(done.stdout.splitlines()[-1])
            if done.stdout.strip()
            else {"ok": False, "msg": done.stderr[-300:]}
        )
        wanted = launchers.megatron_groups(plan, rank)
        wrong = {key: (answer.get(key), ranks) for key, ranks in wanted.items() if answer.get(key) != ranks}
        tally.add(
            "Megatron groups", bool(answer["ok"]) and not wrong, f"{name} rank {rank}: {answer.get('msg')} {wrong}"
        )


def lint_trtllm(checks: Path, llm: Llm, folder: Path, tally: Tally) -> None:
    """Transcribed rules on every configuration of an export."""
    sizes = [str(llm.num_layers), str(llm.moe.num_experts), str(llm.moe_layer_indices[0])] if llm.moe else []
    for config in sorted(folder.glob("trtllm*.yaml")):
        done = subprocess.run(
            [str(checks / "venv/bin/python"), str(checks / "trtllm_check.py"), config.name, *sizes],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        tally.add("TensorRT-LLM YAML (lint)", done.returncode == 0, f"{config}: {done.stdout}{done.stderr[-300:]}")


def main() -> int:
    """Run everything that the environment allows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checks", type=Path, required=True)
    parser.add_argument("--configs", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("launcher-checks"))
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    work, checks, began = given.work.resolve(), given.checks.resolve(), time.monotonic()
    tally, lines = Tally(), {"vllm": [], "sglang": []}  # type: ignore[var-annotated]
    kept: list[tuple[Case, Plan, Path]] = []
    manifests: list[Path] = []
    for case in cases():
        if given.only not in case.name:
            continue
        plan = plan_of(case, work)
        tally.add("plans solved", plan is not None, case.name)
        if plan is None:
            continue
        weights = str(weights_folder(case.llm, given.configs, work))
        targets = [case.engine, "slurm", "mpi", "ray", "torchrun", "csv", "jsonl"]
        if case.engine != "megatron":
            targets += ["kubernetes", "dynamo"]
        for target in targets:
            try:
                result = export(plan, target, ExportOptions(weights=weights))
            except SolverError as error:
                expected = case.engine == "trtllm" and target == "kubernetes" and "MPI" in str(error)
                what = "refusals by name that are meant" if expected else "exports"
                tally.add(what, expected, f"{case.name} to {target}: {error}")
                continue
            tally.add("exports", True)
            folder = work / "exports" / case.name / target
            launchers.write(result, folder)
            manifests += folder.glob("leaderworkerset.yaml") if target == "kubernetes" else folder.glob("dynamo.yaml")
            if target in ("kubernetes", "dynamo"):
                continue  # pods have no fixed GPU
            wrong = launchers.misplaced(plan, target, folder)
            tally.add(f"rank -> GPU map, {target}", not wrong, f"{case.name}: {wrong[:2]}")
        own = work / "exports" / case.name / case.engine
        if case.engine in lines:
            lines[case.engine] += engine_lines(case, own)
        kept.append((case, plan, own))
    check_deployments(given, lines, manifests, tally)
    print(f"{len(kept)} plans exported after {time.monotonic() - began:.0f} s", flush=True)
    batch(checks, "vllm_check.py", lines["vllm"], tally, "vLLM commands")
    answers = batch(checks, "sgl_check.py", lines["sglang"], tally, "SGLang commands")
    for line, answer in zip(lines["sglang"], answers, strict=False):
        if "expert_map" in line:
            found = answer.get("expert_map") or {}
            tally.add("SGLang expert locations read", not found.get("missing_logical", 1), f"{line['name']}: {found}")
    for case, plan, folder in kept:
        if case.engine == "megatron":
            check_megatron(checks, plan, folder, tally, case.name)
        if case.engine == "trtllm":
            lint_trtllm(checks, plan.problem.llm, folder, tally)
    if manifests:
        crds = f"{checks.parent / 'crds/lws.yaml'},{checks.parent / 'crds/dgd.yaml'}"
        done = subprocess.run(
            [sys.executable, str(checks / "crd_validate.py"), crds, *map(str, manifests)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                answer = json.loads(line)
                tally.add(f"{answer['kind']} by its CRD", answer["ok"], f"{answer['file']}: {answer['errors']}")
        if not done.stdout:
            tally.add("CRD validation", False, done.stderr[-300:])
    print(f"{time.monotonic() - began:.0f} s in all")
    return tally.show()


if __name__ == "__main__":
    sys.exit(main())
