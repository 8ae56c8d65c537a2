"""Deployments as launch files and reports: every GPU once, roles, ports, routers, refusals; nothing left to chance."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import launchers
import pytest
from command_line import error_line, run
from plans import small_cluster, small_problem, small_workload

from solver import (
    Ask,
    Deploying,
    DeploymentPlan,
    ExportError,
    deploy,
    expand_deployment,
    export,
    verify_deployment,
)
from solver.deployment import Run
from solver.export import TARGETS, ExportOptions, sglang
from solver.export.deployment import ROUTER_PORT
from solver.export.fleet import FLEET_TARGETS
from solver.export.ready import fleets_of
from solver.legality import violations

ENGINES = ("vllm", "sglang", "trtllm")
ON_GPUS = ("torchrun", "slurm", "mpi", "ray", "csv", "jsonl")
"""Targets besides the engine that name the GPU of every process."""


@cache
def made(engine: str, mode: str, memory: str = "200 MB", num_gpus: int = 7) -> DeploymentPlan:
    """Nodes of four GPUs. With 200 MB an instance is one GPU, with 40 MB it takes one or two nodes."""
    workload = small_workload(isl=100, isl_list=None, concurrency=None)
    cluster = small_cluster(-(-num_gpus // 4) * 4, 4, memory)
    problem = small_problem(cluster=cluster, engine=engine, workload=workload)
    found = deploy(problem.model_copy(update={"gpus_at_most": num_gpus}), Deploying(mode=mode))  # type: ignore[arg-type]
    assert isinstance(found, DeploymentPlan)
    return found


@cache
def mixed() -> DeploymentPlan:
    """Two sizes of decode instances and nine prefill instances of one GPU, on two nodes of eight."""
    ask = Ask(
        llm="qwen3-30b-a3b", cluster="h200x16", engine="vllm", workload="chat", isl=4096, osl=256, slo_ttft="2 s",
        slo_tpot="30 ms",
    )  # fmt: skip
    found = deploy(ask.problem(), Deploying(mode="disaggregated"))
    assert isinstance(found, DeploymentPlan)
    assert len(found.groups) == 3
    return found


@cache
def apart() -> DeploymentPlan:
    """Two clusters of four GPUs, both used."""
    workload = small_workload(isl=100, isl_list=None, concurrency=None)
    cheap = small_problem(cluster=small_cluster(4, 4), workload=workload, engine="sglang")
    dear = cheap.model_copy(update={"cluster": cheap.cluster.model_copy(update={"name": "dear"})})
    most = deploy(cheap, Deploying(mode="aggregated"))
    assert isinstance(most, DeploymentPlan)
    asked = Deploying(mode="aggregated", goal="cost", request_rate=1.2 * most.metrics.requests_per_s, prices=(1.0, 3.0))
    found = deploy([cheap, dear], asked)
    assert isinstance(found, DeploymentPlan)
    assert {group.size.site for group in found.groups} == {0, 1}
    return found


def documents() -> list[tuple[str, DeploymentPlan]]:
    """One GPU an instance, several nodes an instance, both modes, mixed sizes."""
    small = [(engine, made(engine, mode)) for engine in ENGINES for mode in ("aggregated", "disaggregated")]
    large = [
        ("trtllm", made("trtllm", "disaggregated", "40 MB", 16)),
        ("vllm", made("vllm", "disaggregated", "40 MB", 16)),
    ]
    return [*small, *large, ("vllm", mixed())]


def written(plan: DeploymentPlan, target: str, folder: Path, **options: Any) -> Path:
    launchers.write(export(plan, target, ExportOptions(**options)), folder)
    return folder


# --- places -----------------------------------------------------------------------------------------------------------


def test_every_gpu_is_launched_once_by_every_target(tmp_path: Path) -> None:
    for number, (engine, plan) in enumerate(documents()):
        wanted = sorted((r.node, r.local_gpu) for _, _, r in expand_deployment(plan))
        assert len(wanted) == plan.metrics.gpus_used
        for target in (engine, *ON_GPUS):
            folder = written(plan, target, tmp_path / str(number) / target)
            assert sorted(launchers.launched(target, folder)) == wanted, (number, target)


def test_the_count_of_launched_gpus_can_fail(tmp_path: Path) -> None:
    # Two instances on one GPU are noticed.
    plan = made("vllm", "disaggregated")
    folder = written(plan, "vllm", tmp_path)
    script = folder / "node-0.sh"
    script.write_text(script.read_text().replace("CUDA_VISIBLE_DEVICES=3", "CUDA_VISIBLE_DEVICES=2"))
    wanted = sorted((r.node, r.local_gpu) for _, _, r in expand_deployment(plan))
    assert sorted(launchers.launched("vllm", folder)) != wanted


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_tables_say_what_the_document_says(form: str, tmp_path: Path) -> None:
    """Read back, row by row: place, instance, role, coordinates, layers, experts."""
    for plan in (mixed(), made("trtllm", "disaggregated", "40 MB", 16)):
        folder = written(plan, form, tmp_path / plan.digest[:6])
        if form == "csv":
            with open(folder / "ranks.csv", newline="") as file:
                rows: list[dict[str, Any]] = list(csv.DictReader(file))
        else:
            rows = [json.loads(line) for line in (folder / "ranks.jsonl").read_text().splitlines()]
        names = ("stage", "first_layer", "last_layer", "attn_tp_rank", "attn_dp_rank", "moe_tp_rank", "moe_ep_rank")
        found = {int(row["gpu"]): row for row in rows}
        assert len(found) == len(rows) == plan.metrics.gpus_used
        numbers: dict[tuple[int, int], str] = {}
        for index, group in enumerate(plan.groups):
            for other, instance, record in expand_deployment(plan):
                if other != group:
                    continue
                row = found[record.gpu]
                assert (row["role"], int(row["node"]), int(row["local_gpu"])) == (
                    group.size.role, record.node, record.local_gpu,
                )  # fmt: skip
                assert [int(row[name]) for name in names] == [getattr(record, name) for name in names]
                assert numbers.setdefault((index, instance), str(row["replica"])) == str(row["replica"])
                if form == "jsonl":
                    assert row["experts"] == {str(k): list(v) for k, v in record.experts.items()}
        assert len(set(numbers.values())) == len(numbers) == sum(group.count for group in plan.groups)


@pytest.mark.parametrize(("target", "variable"), [("slurm", "SLURM_PROCID"), ("mpi", "OMPI_COMM_WORLD_RANK")])
def test_every_task_knows_its_instance(target: str, variable: str, tmp_path: Path) -> None:
    # The wrapper itself, run as every task: instances are complete, of one role, and meet at an address of their own.
    plan = mixed()
    folder = written(plan, target, tmp_path)
    script = folder / ("task.sh" if target == "slurm" else "rank.sh")
    show = "echo $REPLICA $RANK $WORLD_SIZE $ROLE $CUDA_VISIBLE_DEVICES $MASTER_ADDR:$MASTER_PORT"
    told: dict[str, list[list[str]]] = {}
    for task, (_, gpu) in enumerate(launchers.job_places(target, folder)):
        done = subprocess.run(
            ["bash", str(script), "bash", "-c", show],
            env={**os.environ, variable: str(task)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        replica, *rest = done.stdout.split()
        assert rest[3] == str(gpu)
        told.setdefault(replica, []).append(rest)
    sizes = Counter((group.size.role, group.size.gpus) for group in plan.groups for _ in range(group.count))
    assert Counter((rows[0][2], len(rows)) for rows in told.values()) == sizes
    meeting = [{row[4] for row in rows} for rows in told.values()]
    assert all(len(place) == 1 for place in meeting)
    assert len(set().union(*meeting)) == len(told)
    for rows in told.values():
        assert sorted(int(row[0]) for row in rows) == list(range(int(rows[0][1])))


# --- roles ------------------------------------------------------------------------------------------------------------


def roles_of(plan: DeploymentPlan) -> dict[launchers.Place, str]:
    """Role of every GPU."""
    return {(r.node, r.local_gpu): group.size.role for group, _, r in expand_deployment(plan)}


def started(plan: DeploymentPlan, engine: str, folder: Path) -> list[tuple[str, launchers.Started]]:
    """Every command with the role that the plan gives its GPUs."""
    roles = roles_of(plan)
    found = []
    for command in launchers.read_scripts(written(plan, engine, folder)):
        own = {roles[command.node, int(gpu)] for gpu in command.env["CUDA_VISIBLE_DEVICES"].split(",")}
        assert len(own) == 1
        found.append((own.pop(), command))
    return found


def routed(folder: Path) -> list[str]:
    """Words of the router's command."""
    text = re.sub(r"\\\n\s*", " ", (folder / "router.sh").read_text())
    return text.split("exec ")[1].split()


@pytest.mark.parametrize("memory", ["200 MB", "40 MB"])
def test_vllm_pools_have_their_connector(memory: str, tmp_path: Path) -> None:
    plan = made("vllm", "disaggregated", memory, 7 if memory == "200 MB" else 16)
    names = {"prefill": "kv_producer", "decode": "kv_consumer"}
    leads: dict[str, list[str]] = {"prefill": [], "decode": []}
    for role, command in started(plan, "vllm", tmp_path):
        config = json.loads(command.text("--kv-transfer-config") or "")
        assert config == {"kv_connector": "NixlConnector", "kv_role": names[role]}
        assert command.env["VLLM_NIXL_SIDE_CHANNEL_HOST"] == f"node{command.node}"
        if "--headless" not in command.argv:
            leads[role].append(f"http://node{command.node}:{command.option('--port')}")
    router = routed(tmp_path)
    assert "--vllm-pd-disaggregation" in router
    for role, urls in leads.items():
        assert sorted(router[i + 1] for i, word in enumerate(router) if word == f"--{role}") == sorted(urls)
        assert len(urls) == sum(group.count for group in plan.groups if group.size.role == role)


def test_sglang_pools_have_their_mode_and_bootstrap_port(tmp_path: Path) -> None:
    plan = made("sglang", "disaggregated")
    wanted = []
    for role, command in started(plan, "sglang", tmp_path):
        assert command.text("--disaggregation-mode") == role
        assert command.text("--disaggregation-transfer-backend") == "mooncake"
        url = f"http://node{command.node}:{command.option('--port')}"
        wanted.append((role, url, command.text("--disaggregation-bootstrap-port")))
        # a decode server prefills nothing, so no chunk is planned for it
        assert (command.text("--chunked-prefill-size") is None) == (role == "decode")
    router = routed(tmp_path)
    assert "--pd-disaggregation" in router
    found = [(w[2:], router[i + 1], router[i + 2] if w == "--prefill" else None)
             for i, w in enumerate(router) if w in ("--prefill", "--decode")]  # fmt: skip
    assert sorted(found, key=str) == sorted(wanted, key=str)


@pytest.mark.parametrize("memory", ["200 MB", "40 MB"])
def test_trtllm_servers_are_behind_one_front(memory: str, tmp_path: Path) -> None:
    plan = made("trtllm", "disaggregated", memory, 7 if memory == "200 MB" else 16)
    front: dict[str, list[str]] = {"context_servers": [], "generation_servers": []}
    for role, command in started(plan, "trtllm", tmp_path):
        config = launchers.read_yaml(tmp_path / (command.text("--config") or ""))
        assert config["cache_transceiver_config"]["max_tokens_in_buffer"] >= 100
        assert config.get("disable_overlap_scheduler", False) == (role == "prefill")
        key = {"prefill": "context_servers", "decode": "generation_servers"}[role]
        front[key].append(f"node{command.node}:{command.option('--port')}")
    document = launchers.read_yaml(tmp_path / "disaggregated.yaml")
    for key, urls in front.items():
        assert document[key]["num_instances"] == len(urls)
        assert sorted(document[key]["urls"]) == sorted(urls)
    assert routed(tmp_path) == ["trtllm-serve", "disaggregated", "-c", "disaggregated.yaml"]


def test_aggregated_instances_have_no_role(tmp_path: Path) -> None:
    for engine in ENGINES:
        plan = made(engine, "aggregated")
        for role, command in started(plan, engine, tmp_path / engine):
            assert role == "aggregated"
            assert not [w for w in command.argv if "disagg" in w or "kv-transfer" in w]
    urls = [word for word in routed(tmp_path / "vllm") if word.startswith("http://")]
    assert len(set(urls)) == len(urls) == 7
    assert len((tmp_path / "trtllm/endpoints.txt").read_text().splitlines()) == 2 + 7


def test_a_prefill_instance_holds_the_prompts_that_leave() -> None:
    # p prompts in each of two stages, and p on their way out: (pp + 1) * p, as the ledger counts them.
    plan = made("trtllm", "disaggregated", "40 MB", 16)
    (fleet,) = fleets_of(plan, "trtllm", ExportOptions())
    pool = next(part.pool for part in fleet.parts if part.pool.role == "prefill")
    assert pool.strategy.pp == 2
    assert (pool.sequences_per_rank, pool.cached_sequences) == (2 * pool.strategy.batch, 3 * pool.strategy.batch)
    decode = next(part.pool for part in fleet.parts if part.pool.role == "decode")
    assert decode.cached_sequences == decode.strategy.batch * decode.strategy.micro_batches
    assert decode.step_tokens == decode.sequences_per_rank < pool.step_tokens


# --- ports ------------------------------------------------------------------------------------------------------------

SGLANG_FURTHER = (13, *range(233, 240))
"""Ports that SGLang 0.5.23 takes above its HTTP port for attention DP on one node."""


def test_no_port_is_taken_twice_on_a_node(tmp_path: Path) -> None:
    plans = [*documents(), ("vllm", made("vllm", "aggregated", "200 MB", 16)), ("sglang", made("sglang", "aggregated"))]
    for number, (engine, plan) in enumerate(plans):
        taken: Counter[tuple[int, int]] = Counter()
        for _, command in started(plan, engine, tmp_path / str(number)):
            place = command.node
            for flag in ("--port", "--data-parallel-rpc-port", "--master-port", "--disaggregation-bootstrap-port"):
                if flag in command.argv and "--headless" not in command.argv:
                    taken[place, command.option(flag)] += 1
            if engine == "sglang":
                taken.update((place, command.option("--port") + further) for further in SGLANG_FURTHER)
            if side := command.env.get("VLLM_NIXL_SIDE_CHANNEL_PORT"):
                taken.update((place, int(side) + rank) for rank in range(command.option("--data-parallel-size")))
        taken[0, 30000 + ROUTER_PORT] += 1
        assert [port for port, times in taken.items() if times > 1] == []
        assert max(port for _, port in taken) <= 65535


# --- pods -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_pods_have_the_gpus_and_the_role(engine: str, tmp_path: Path) -> None:
    plan = made(engine, "disaggregated")
    gpus: Counter[str] = Counter()
    for file in written(plan, "kubernetes", tmp_path).glob("*/leaderworkerset.yaml"):
        manifest = launchers.read_yaml(file)
        assert manifest["metadata"]["name"].endswith(file.parent.name)
        template = manifest["spec"]["leaderWorkerTemplate"]
        leader = template["leaderTemplate"]
        container = leader["spec"]["containers"][0]
        role = leader["metadata"]["labels"]["role"]
        each = int(container["resources"]["limits"]["nvidia.com/gpu"]) * template["size"]
        gpus[role] += manifest["spec"]["replicas"] * each
        assert container["command"][container["command"].index("--port") + 1] == "30000"
        assert leader["metadata"]["labels"]["deployment"] == f"plan-{plan.digest[:12]}"
        port = leader["metadata"].get("annotations", {}).get("sglang.ai/bootstrap-port")
        command = container["command"]
        flag = "--disaggregation-bootstrap-port"
        assert port == (command[command.index(flag) + 1] if flag in command else None)
        if engine == "vllm":
            env = {entry["name"]: entry for entry in container["env"]}
            assert env["VLLM_NIXL_SIDE_CHANNEL_HOST"]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert gpus == {pool.role: pool.gpus for pool in plan.metrics.pools}


@pytest.mark.parametrize("engine", ENGINES)
def test_dynamo_components_have_the_role(engine: str, tmp_path: Path) -> None:
    plan = made(engine, "disaggregated")
    graph = launchers.read_yaml(written(plan, "dynamo", tmp_path) / "dynamo.yaml")
    front, *workers = graph["spec"]["components"]
    assert front["type"] == "frontend"
    assert sorted((w["type"], w["replicas"]) for w in workers) == sorted((g.size.role, g.count) for g in plan.groups)
    for worker in workers:
        command = worker["podTemplate"]["spec"]["containers"][0]["command"]
        assert command[command.index("--disaggregation-mode") + 1] == worker["type"]
        assert command.count("--disaggregation-mode") == 1
        name = worker["podTemplate"]["spec"]["volumes"][0]["configMap"]["name"]
        config = launchers.read_yaml(tmp_path / f"configmap.{worker['name']}.yaml")
        assert config["metadata"]["name"] == name


def test_llmd_has_a_section_for_each_pool(tmp_path: Path) -> None:
    values = launchers.read_yaml(written(made("vllm", "disaggregated"), "llm-d", tmp_path) / "llm-d-values.yaml")
    pools = {pool.role: pool.instances for pool in made("vllm", "disaggregated").metrics.pools}
    assert {role: values[role]["replicas"] for role in pools} == pools
    for role, name in (("prefill", "kv_producer"), ("decode", "kv_consumer")):
        args = values[role]["containers"][0]["args"]
        assert json.loads(args[args.index("--kv-transfer-config") + 1])["kv_role"] == name
    folder = written(made("vllm", "aggregated"), "llm-d", tmp_path / "one")
    values = launchers.read_yaml(folder / "llm-d-values.yaml")
    assert values["prefill"] == {"create": False}


# --- what is written --------------------------------------------------------------------------------------------------


def test_two_clusters_have_a_folder_each(tmp_path: Path) -> None:
    plan = apart()
    names = tuple(f"host{i}" for i in range(2))
    folder = written(plan, "sglang", tmp_path, hosts=names)
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["dear", "tiny"]
    for name, host in (("tiny", "host0"), ("dear", "host1")):
        text = (folder / name / "node-0.sh").read_text()
        assert f"node 0 ({host})" in text
    launched = sum(len(launchers.launched("sglang", folder / name)) for name in ("tiny", "dear"))
    assert launched == plan.metrics.gpus_used
    with pytest.raises(ExportError, match="1 host names are given, the cluster has 2 nodes"):
        export(plan, "sglang", ExportOptions(hosts=("a",)))


def test_every_file_names_the_deployment_and_scripts_are_shell(tmp_path: Path) -> None:
    plan = mixed()
    for target in TARGETS:
        try:
            result = export(plan, target)
        except ExportError:
            continue
        assert result.digest == plan.digest
        for file in result.files:
            known = result.digest[:12] in file.path or result.digest[:12] in file.text
            assert known or file.path.startswith(("moe_load", "tasks")), (target, file.path)
        launchers.write(result, tmp_path / target)
        for script in [*(tmp_path / target).rglob("*.sh"), *(tmp_path / target).rglob("*.sbatch")]:
            done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, ""), script


def test_the_readme_has_shares_and_an_order_of_starting() -> None:
    readme = export(mixed(), "vllm").files[-1]
    assert readme.path == "README.md"
    rows = [line.split("|")[1:-1] for line in readme.text.splitlines() if re.match(r"\| (prefill|decode)-", line)]
    counts = {f"{g.size.role}-{g.size.gpus}": g.count for g in mixed().groups}
    shares: Counter[str] = Counter()
    for row in rows:
        shares[row[1].strip()] += counts[row[0].strip()] * float(row[6].strip().rstrip("%"))  # type: ignore[assignment]
    assert shares["prefill"] == pytest.approx(100, abs=0.1)
    assert shares["decode"] == pytest.approx(100, abs=0.1)
    assert readme.text.index("`node-N.sh`") < readme.text.index("`/health`") < readme.text.index("run `router.sh`")


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_what_a_target_cannot_express_is_refused_with_the_alternative() -> None:
    plan, sizes = made("trtllm", "disaggregated"), mixed()
    for document, target, sentence in (
        (plan, "megatron", "--mode aggregated"),
        (plan, "kubernetes", "export to dynamo"),
        (sizes, "llm-d", "--max-shapes 1"),
        (made("any", "disaggregated"), "kubernetes", "name one with --engine"),
        (plan, "k3s", "unknown target"),
    ):
        with pytest.raises(ExportError, match=sentence) as caught:
            export(document, target)
        assert "\n" not in str(caught.value)


def test_pools_that_an_engine_cannot_pair_are_refused() -> None:
    # Stages in vLLM, unequal ones in SGLang; two stages on both sides are fine for SGLang.
    plan = made("sglang", "disaggregated", "40 MB", 16)
    (fleet,) = fleets_of(plan, "sglang", ExportOptions())
    pools = {part.pool.role: part for part in fleet.parts}
    assert {part.pool.strategy.pp for part in fleet.parts} == {2}
    sglang.check_pools([part.pool for part in fleet.parts])
    for part in pools.values():
        other = part.pool.problem.model_copy(update={"engine": "vllm"})
        assert "engine-pool-stages" in {violation.rule for violation in violations(other, part.pool.strategy)}
    with pytest.raises(ExportError, match="vllm cannot launch this plan"):
        export(plan, "llm-d")
    (other,) = fleets_of(made("sglang", "disaggregated"), "sglang", ExportOptions())
    single = next(part.pool for part in other.parts if part.pool.role == "prefill")
    with pytest.raises(ExportError, match="one pipeline stage or as many as the prefill servers"):
        sglang.check_pools([single, pools["decode"].pool])


def test_a_deployment_found_for_vllm_can_be_exported_to_it() -> None:
    # What fits two GPUs fits them as stages, too; only without stages can the pools of vLLM be paired.
    plan = made("vllm", "disaggregated", "40 MB", 16)
    assert {group.plan.strategy.pp for group in plan.groups} == {1}
    assert made("sglang", "disaggregated", "40 MB", 16).metrics.rate_nhz >= plan.metrics.rate_nhz
    assert verify_deployment(plan, exhaustive=True).ok
    assert export(plan, "vllm").files


def moved(plan: DeploymentPlan, group: int, first: int) -> DeploymentPlan:
    """The document with a group's instances elsewhere; nobody asks the judge."""
    groups = list(plan.groups)
    runs = (Run(first=first, step=1, count=groups[group].count),)
    groups[group] = groups[group].model_copy(update={"starts": runs})
    return plan.model_copy(update={"groups": tuple(groups)})


def test_instances_that_straddle_nodes_are_refused() -> None:
    # Four ranks from GPU 1 on: three on one node, one on the next.
    plan = made("vllm", "disaggregated", "40 MB", 16)
    index = next(i for i, group in enumerate(plan.groups) if group.size.gpus == 4)
    with pytest.raises(ExportError, match=r"begins at GPU 1 .* export to slurm"):
        list(fleets_of(moved(plan, index, 1), "vllm", ExportOptions()))


def test_ray_refuses_gpus_that_it_would_not_hand_out() -> None:
    plan = made("sglang", "aggregated")
    (fleet,) = fleets_of(moved(plan, 0, 1), "ray", ExportOptions())
    with pytest.raises(ExportError, match="from the first one on, and node0 uses 1, 2, 3"):
        FLEET_TARGETS["ray"](fleet)


def test_a_convicted_deployment_is_not_exported() -> None:
    plan = made("vllm", "aggregated")
    forged = plan.model_copy(update={"metrics": plan.metrics.model_copy(update={"gpus_idle": 3})})
    with pytest.raises(ExportError, match="verify convicts"):
        export(forged, "vllm")


def test_side_channels_need_room_below_the_last_port() -> None:
    with pytest.raises(ExportError, match="give a lower --port than 64500"):
        export(made("vllm", "disaggregated"), "vllm", ExportOptions(port=64500))


# --- reports and command line -----------------------------------------------------------------------------------------

SECTIONS = ("Summary", "Question", "Pools", "Instances", "Map", "Proof", "Modes", "Idle GPUs", "Validation", "Warnings")


def test_the_commands_take_either_document(tmp_path: Path) -> None:
    plan = mixed()
    file = tmp_path / "deployment.json"
    file.write_text(plan.model_dump_json())
    done = run("export", file, "--to", "csv", "--out", tmp_path / "out")
    assert done.code == 0
    assert f"files of deployment {plan.digest[:12]}" in done.err
    line = error_line(run("report", file, "--out", tmp_path / "r.md", "--compare", "EP8-TP1-PP1-DP8"))
    assert "--compare" in line
    assert not (tmp_path / "r.md").exists()


def test_reports_have_every_part(tmp_path: Path) -> None:
    plan = mixed()
    file = tmp_path / "deployment.json"
    file.write_text(plan.model_dump_json())
    assert run("report", file, "--out", tmp_path / "r.md").code == 0
    assert run("report", file, "--out", tmp_path / "r.html").code == 0
    text, page = (tmp_path / "r.md").read_text(), (tmp_path / "r.html").read_text()
    for title in SECTIONS:
        assert f"## {title}\n" in text
        assert f">{title}</h2>" in page
    assert f"{plan.metrics.requests_per_s:.4g} requests/s" in text
    for group in plan.groups:
        assert group.plan.strategy.full_label.removesuffix("-R1") in text
    # Two nodes of eight, none idle: seven GPUs decode in two instances, nine prefill alone.
    signs = "".join(row.split(" | ")[2] for row in text.splitlines() if row.startswith("| h200x16 |"))
    assert {"DDDD", "DDD"} < set(re.split(r"[^D]+", signs))
    assert signs.count("D") == 7
    assert "." not in signs
    assert "P\\|P\\|P\\|P\\|P\\|P\\|P\\|P" in text


def test_the_page_is_self_contained_and_draws_every_gpu(tmp_path: Path) -> None:
    for number, plan in enumerate((mixed(), made("vllm", "disaggregated"), apart())):
        file = tmp_path / f"{number}.json"
        file.write_text(plan.model_dump_json())
        assert run("report", file, "--out", tmp_path / "r.html", "--force").code == 0
        page = (tmp_path / "r.html").read_text()
        assert not re.search(r"(src|href)='(?!#|data:)|https?://|<script", page)
        drawn = re.findall(r"title='GPU (\d+)( = node|: idle)", page)
        used = [gpu for gpu, rest in drawn if rest == " = node"]
        assert len(used) == plan.metrics.gpus_used
        assert len(drawn) == sum(problem.cluster.num_gpus for problem in plan.problems)
        firsts = sum(group.count for group in plan.groups)
        assert page.count("class='gpu first'") == firsts
