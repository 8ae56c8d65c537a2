"""Exports: every shard on the GPU of the plan, by each launcher's own arithmetic; refusals by name; honest files."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import launchers
import pytest
from command_line import error_line, run
from plans import build_plan, small_cluster, small_llm, small_problem, small_workload

from solver import ExportError, Plan
from solver.api import read_measurements
from solver.expansion import expand
from solver.export import TARGETS, ExportOptions, bench_script, deployment_of, export
from solver.legality import violations
from solver.specs.workload import Workload
from solver.strategy import Strategy

LOADS = {"source": "test", "counts": [[8, 1, 7, 2, 6, 3, 5, 4]] * 4}
SEND: dict[str, Any] = {"decode_dispatch": "all_to_all", "prefill_dispatch": "all_to_all"}

# (engine, strategy, changes of the problem, layers of the stages)
CASES: tuple[tuple[str, Strategy, dict[str, Any], tuple[int, ...] | None], ...] = (
    # one GPU; one node shared by four instances; an instance on three of four GPUs
    ("vllm", Strategy(batch=8), {}, None),
    ("vllm", Strategy(attn_tp=1, replicas=4, batch=2), {}, None),
    ("vllm", Strategy(attn_dp=3, moe_ep=3, batch=3), {}, None),
    # TP over a node, DP over nodes; experts cut instead of dealt
    ("vllm", Strategy(attn_tp=2, attn_dp=4, moe_ep=8, batch=2, **SEND), {}, None),
    ("vllm", Strategy(attn_tp=2, attn_dp=4, moe_tp=8, batch=2), {"space": {"tp_across_domains": True}}, None),
    # DP 2 x PP 2 x TP 4: a data-parallel rank takes two nodes; uneven stages
    ("vllm", Strategy(attn_tp=4, attn_dp=2, moe_ep=8, pp=2, mesh_order="tp-pp-dp", batch=4), {}, (1, 3)),
    # DP 2 x PP 2 x TP 1: an instance of four ranks on one node, DP slowest
    ("vllm", Strategy(attn_dp=2, moe_ep=2, pp=2, mesh_order="tp-pp-dp", replicas=2, batch=2), {}, (3, 1)),
    # redundant experts: the plugin's map
    ("vllm", Strategy(attn_dp=4, moe_ep=4, batch=2, **SEND), {"redundant_experts": 4}, None),
    ("sglang", Strategy(batch=8), {}, None),
    ("sglang", Strategy(attn_tp=2, attn_dp=2, moe_tp=2, moe_ep=2, replicas=2, batch=2), {}, None),
    ("sglang", Strategy(attn_tp=1, attn_dp=8, moe_tp=2, moe_ep=4, batch=1), {}, None),
    ("sglang", Strategy(attn_tp=2, attn_dp=4, moe_tp=1, moe_ep=8, pp=2, batch=2, **SEND), {}, (3, 1)),
    ("sglang", Strategy(attn_dp=2, moe_ep=2, pp=2, batch=4), {"redundant_experts": 2}, (1, 3)),
    ("sglang", Strategy(attn_dp=4, moe_ep=4, batch=2, **SEND),
     {"redundant_experts": 4, "llm": small_llm(moe_layers=[1, 3], dense_width=512)}, None),
    ("trtllm", Strategy(batch=8), {}, None),
    ("trtllm", Strategy(attn_tp=4, moe_tp=2, moe_ep=2, replicas=3, batch=3), {}, None),
    ("trtllm", Strategy(attn_dp=8, moe_ep=8, batch=1, **SEND), {"redundant_experts": 8}, None),
    ("trtllm", Strategy(attn_dp=4, moe_ep=4, pp=2, batch=2, **SEND),
     {"redundant_experts": 4, "llm": small_llm(moe_layers=[1, 3], dense_width=512)}, (3, 1)),
    ("megatron", Strategy(batch=8), {}, None),
    ("megatron", Strategy(attn_tp=2, attn_dp=2, moe_tp=2, moe_ep=2, pp=2, batch=4), {}, (1, 3)),
    ("megatron", Strategy(attn_tp=4, attn_dp=2, moe_tp=1, moe_ep=8, pp=2, batch=4, **SEND), {}, (2, 2)),
)  # fmt: skip
DENSE = ("vllm", "sglang", "trtllm", "megatron")
RANK_TARGETS = ("torchrun", "slurm", "mpi", "ray", "csv", "jsonl")


def made(engine: str, strategy: Strategy, changes: dict[str, Any], stages: tuple[int, ...] | None) -> Plan:
    asked = {"engine": engine, "workload": small_workload(isl=100, concurrency=8), "space": {"name": "all"}}
    problem = small_problem(**{**asked, **changes})
    assert violations(problem, strategy) == []
    return build_plan(problem, strategy, stage_layers=stages)


def written(plan: Plan, target: str, folder: Path, **options: Any) -> Path:
    launchers.write(export(plan, target, ExportOptions(**options)), folder)
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1].full_label}")
def test_every_shard_is_on_the_gpu_of_the_plan(case: Any, tmp_path: Path) -> None:
    plan = made(*case)
    for target in (case[0], *RANK_TARGETS):
        folder = written(plan, target, tmp_path / target)
        assert launchers.misplaced(plan, target, folder) == [], target


@pytest.mark.parametrize("engine", DENSE)
def test_dense_llms_too(engine: str, tmp_path: Path) -> None:
    llm = small_llm(moe=None, dense_width=512)
    plan = made(engine, Strategy(attn_tp=2, pp=2, replicas=2, batch=4), {"llm": llm}, (3, 1))
    for target in (engine, *RANK_TARGETS):
        assert launchers.misplaced(plan, target, written(plan, target, tmp_path / target)) == []


def test_racks_of_small_nodes(tmp_path: Path) -> None:
    # One scale-up domain of 16 GPUs in nodes of 4: a stage of 8 ranks is two nodes.
    base = small_cluster(16, 16)
    cluster = base.model_validate({**base.model_dump(), "gpus_per_node": 4})
    for engine, order in (("vllm", "tp-pp-dp"), ("sglang", "tp-dp-pp"), ("megatron", "tp-dp-pp")):
        strategy = Strategy(attn_tp=2, attn_dp=4, moe_ep=8, pp=2, mesh_order=order, batch=2)  # type: ignore[arg-type]
        plan = made(engine, strategy, {"cluster": cluster}, (1, 3))
        assert launchers.misplaced(plan, engine, written(plan, engine, tmp_path / engine)) == []


def test_plans_without_an_engine_go_to_any_rank_launcher(tmp_path: Path) -> None:
    # Six ranks on nodes of four: no engine counts nodes like that, but ranks can be placed one by one.
    plan = made("any", Strategy(attn_tp=2, attn_dp=3, moe_ep=6, batch=3), {"cluster": small_cluster(16, 4)}, None)
    for target in RANK_TARGETS:
        assert launchers.misplaced(plan, target, written(plan, target, tmp_path / target)) == [], target


def test_a_swapped_gpu_is_noticed(tmp_path: Path) -> None:
    # The comparison itself must be able to fail: swap two GPUs, two layers, two experts, two hosts.
    plan = made("sglang", Strategy(attn_dp=2, moe_ep=2, pp=2, batch=4), {"redundant_experts": 2}, (1, 3))
    for find, put in (("CUDA_VISIBLE_DEVICES=0,1,2,3", "CUDA_VISIBLE_DEVICES=1,0,2,3"), ("=1,3", "=3,1")):
        folder = written(plan, "sglang", tmp_path / find[-1])
        script = folder / "node-0.sh"
        assert find in script.read_text()
        script.write_text(script.read_text().replace(find, put))
        assert launchers.misplaced(plan, "sglang", folder)
    folder = written(plan, "sglang", tmp_path / "map")
    location = next(folder.glob("expert-location.*"))
    rows = json.loads(location.read_text())["physical_to_logical_map"]
    rows[2][0], rows[2][-1] = rows[2][-1], rows[2][0]
    location.write_text(json.dumps({"physical_to_logical_map": rows}))
    assert launchers.misplaced(plan, "sglang", folder)
    folder = written(plan, "slurm", tmp_path / "slurm")
    devices = next(folder.glob("devices.*"))
    devices.write_text("1\n0\n2\n3\n")
    assert launchers.misplaced(plan, "slurm", folder)


# --- what is written --------------------------------------------------------------------------------------------------


def test_every_file_names_the_plan() -> None:
    plan = made("vllm", Strategy(attn_dp=4, moe_ep=4, batch=2, **SEND), {"redundant_experts": 4}, None)
    for target in TARGETS:
        if target in ("sglang", "trtllm", "megatron", "llm-d"):
            continue
        result = export(plan, target)
        for file in result.files:
            assert result.digest[:12] in file.path or result.digest[:12] in file.text, (target, file.path)
    assert "shardwright plan" in export(plan, "vllm").files[0].text


def test_the_digest_is_that_of_the_content() -> None:
    plan = made("vllm", Strategy(batch=8), {}, None)
    again = Plan.parse(plan.model_dump_json(indent=3))
    assert export(plan, "csv").digest == export(again, "csv").digest
    other = made("vllm", Strategy(batch=8, prefill_batch=1, decode_allreduce="tree"), {}, None)
    assert export(plan, "csv").digest != export(other, "csv").digest


@pytest.mark.parametrize("target", ["vllm", "torchrun", "slurm", "mpi"])
def test_scripts_are_valid_shell(target: str, tmp_path: Path) -> None:
    plan = made("vllm", Strategy(attn_dp=2, moe_ep=2, replicas=3, batch=2), {}, None)
    folder = written(plan, target, tmp_path, weights="/data/a folder/it's")
    for script in [*folder.glob("*.sh"), *folder.glob("*.sbatch")]:
        done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), script


def test_weights_are_quoted(tmp_path: Path) -> None:
    plan = made("vllm", Strategy(batch=8), {}, None)
    nasty = "x'; echo owned; echo '"
    folder = written(plan, "vllm", tmp_path, weights=nasty)
    assert launchers.read_scripts(folder)[0].argv[2] == nasty


def test_slurm_tasks_find_their_gpu(tmp_path: Path) -> None:
    # The wrapper itself, run with Slurm's variables: task 5 is rank 1 of replica 1.
    plan = made("sglang", Strategy(attn_dp=4, moe_ep=4, replicas=2, batch=1), {}, None)
    folder = written(plan, "slurm", tmp_path)
    show = "echo $REPLICA $RANK $WORLD_SIZE $CUDA_VISIBLE_DEVICES $MASTER_ADDR"
    for target, variable in (("slurm", "SLURM_PROCID"), ("mpi", "OMPI_COMM_WORLD_RANK")):
        folder = written(plan, target, tmp_path / target)
        script = "task.sh" if target == "slurm" else "rank.sh"
        done = subprocess.run(
            ["bash", str(folder / script), "bash", "-c", show],
            env={**os.environ, variable: "5", "MASTER_ADDR": "node1"}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.split() == ["1", "1", "4", "1", "node1"]


def test_scopes_of_batch_numbers() -> None:
    # attn_dp 4, batch 2: vLLM counts sequences per DP rank, SGLang over all of them; chunks likewise.
    problem = {"workload": small_workload(isl=100, concurrency=8, prefill_chunk_tokens=512)}
    strategy = Strategy(attn_dp=4, moe_ep=4, batch=2)
    vllm = launchers.Started(0, {}, shlex.split(_script(made("vllm", strategy, problem, None), "vllm")))
    sglang = launchers.Started(0, {}, shlex.split(_script(made("sglang", strategy, problem, None), "sglang")))
    assert (vllm.option("--max-num-seqs"), vllm.option("--max-num-batched-tokens")) == (2, 512)
    assert (sglang.option("--max-running-requests"), sglang.option("--chunked-prefill-size")) == (8, 4 * 512)
    assert vllm.option("--max-model-len") == sglang.option("--context-length") == 116


@pytest.mark.parametrize("port", [30000, 31000])
def test_the_router_of_a_plan_listens_where_no_instance_does(port: int) -> None:
    # SGLang's router would take port 30000 by itself: that of the first instance.
    plan = made("sglang", Strategy(attn_dp=2, moe_ep=2, replicas=2, batch=2), {}, None)
    files = {file.path: file.text for file in export(plan, "sglang", ExportOptions(port=port)).files}
    words = shlex.split(files["router.sh"].replace("\\\n", " "))
    assert words[words.index("--port") + 1] == str(port + 999)
    assert words[words.index("--host") + 1] == "0.0.0.0"
    workers = words[words.index("--worker-urls") + 1 :]
    assert [word.rsplit(":", 1)[1] for word in workers if word.startswith("http")] == [str(port), str(port + 10)]


def test_sglang_reserves_what_the_ledger_reserves() -> None:
    # Whatever is neither weights nor cache must fit beside the static share of the usable memory.
    plan = made("sglang", Strategy(attn_dp=4, moe_ep=4, batch=2), {}, None)
    words = launchers.Started(0, {}, shlex.split(_script(plan, "sglang")))
    share = float(words.text("--mem-fraction-static") or "nan")
    kept = {"kv_cache", "attention", "kv_head_replication", "routed_experts", "shared_experts", "dense_layers",
            "norms_and_router", "embedding", "lm_head"}  # fmt: skip
    work = max(sum(kib for item, kib in s.items_kib.items() if item not in kept) for s in plan.memory)
    memory = plan.problem.cluster.gpu.memory / 1024
    assert share <= plan.problem.calibration.usable_memory - work / memory < share + 0.011


def _script(plan: Plan, target: str) -> str:
    text = next(file.text for file in export(plan, target).files if file.path == "node-0.sh")
    return text.replace("\\\n", " ").split("exec ")[1]


def test_overlap_of_one_phase_is_a_threshold_in_vllm() -> None:
    strategy = Strategy(attn_dp=4, moe_ep=4, batch=2, **SEND, prefill_overlap=True)
    words = launchers.Started(0, {}, shlex.split(_script(made("vllm", strategy, {}, None), "vllm")))
    assert words.option("--dbo-prefill-token-threshold") == 2
    assert words.option("--dbo-decode-token-threshold") > 10**6


def test_plugin_is_a_package_that_registers(tmp_path: Path) -> None:
    import tomllib

    plan = made("vllm", Strategy(attn_dp=4, moe_ep=4, batch=2, **SEND), {"redundant_experts": 4}, None)
    folder = written(plan, "vllm", tmp_path)
    project = tomllib.loads((folder / "plugin/pyproject.toml").read_text())
    entry = project["project"]["entry-points"]["vllm.general_plugins"]
    module, function = next(iter(entry.values())).split(":")
    names: dict[str, Any] = {}
    exec((folder / f"plugin/{module}.py").read_text(), names)
    names[function]()  # without its variable it does nothing, and imports neither torch nor vllm


def test_kubernetes_pods_run_the_engine_words(tmp_path: Path) -> None:
    plan = made("sglang", Strategy(attn_dp=8, moe_ep=8, replicas=2, batch=1), {}, None)
    manifest = launchers.read_yaml(written(plan, "kubernetes", tmp_path) / "leaderworkerset.yaml")
    template = manifest["spec"]["leaderWorkerTemplate"]
    assert (manifest["spec"]["replicas"], template["size"]) == (2, 2)
    leader = template["leaderTemplate"]["spec"]["containers"][0]
    worker = template["workerTemplate"]["spec"]["containers"][0]
    assert leader["resources"]["limits"] == {"nvidia.com/gpu": "4"}
    assert leader["command"][leader["command"].index("--dist-init-addr") + 1] == "$(LWS_LEADER_ADDRESS):30001"
    env = {"LWS_LEADER_ADDRESS": "lead", "LWS_WORKER_INDEX": "1", "PATH": os.environ["PATH"]}
    line = worker["command"][2].replace("exec python3", "printf '%s\\n'")
    words = subprocess.run(["bash", "-c", line], env=env, capture_output=True, text=True, check=True).stdout.split()
    assert words[words.index("--node-rank") + 1] == "1"
    assert words[words.index("--dist-init-addr") + 1] == "lead:30001"


def test_pods_find_the_plugin_and_the_map(tmp_path: Path) -> None:
    # The config map, laid out as the volume says, is a Python path on which the entry point is found.
    plan = made("vllm", Strategy(attn_dp=4, moe_ep=4, batch=2, **SEND), {"redundant_experts": 4}, None)
    folder = written(plan, "kubernetes", tmp_path / "export")
    data = launchers.read_yaml(folder / "configmap.yaml")["data"]
    pod = launchers.read_yaml(folder / "leaderworkerset.yaml")["spec"]["leaderWorkerTemplate"]["leaderTemplate"]["spec"]
    for item in pod["volumes"][0]["configMap"]["items"]:
        path = tmp_path / "plan" / item["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(data[item["key"]])
    env = {pair["name"]: pair["value"] for pair in pod["containers"][0]["env"]}
    assert (env["PYTHONPATH"], pod["containers"][0]["workingDir"]) == ("/plan", "/plan")
    assert (tmp_path / "plan" / env["SHARDWRIGHT_EXPERT_MAP"]).is_file()
    look = (
        "from importlib.metadata import entry_points as e; print([p.load() for p in e(group='vllm.general_plugins')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", look],
        env={"PYTHONPATH": str(tmp_path / "plan")}, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "register" in done.stdout
    assert "export to kubernetes" in refusal(plan, "llm-d")


def test_vllm_pods_start_at_their_rank(tmp_path: Path) -> None:
    # DP 8 over two nodes of four: the second pod's first rank is 4 times its index.
    plan = made("vllm", Strategy(attn_dp=8, moe_ep=8, batch=1), {}, None)
    manifest = launchers.read_yaml(written(plan, "kubernetes", tmp_path) / "leaderworkerset.yaml")
    worker = manifest["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]["containers"][0]
    assert "--data-parallel-start-rank $((LWS_WORKER_INDEX * 4))" in worker["command"][2]


# --- measuring --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_the_benchmark_measures_the_planned_point(engine: str, tmp_path: Path) -> None:
    plan = made(engine, Strategy(attn_dp=4, moe_ep=4, replicas=2, batch=1), {}, None)
    launchers.write(bench_script(plan), tmp_path)
    line = next(row for row in (tmp_path / "bench.sh").read_text().splitlines() if "--random-input-len" in row)
    command = launchers.Started(0, {}, shlex.split(line))
    assert (command.option("--random-input-len"), command.option("--random-output-len")) == (100, 16)
    assert command.option("--max-concurrency") == 4  # eight sequences on two replicas
    (tmp_path / "result.json").write_text('{"mean_ttft_ms": 12.5, "mean_tpot_ms": 3.25, "output_throughput": 80.0}\n')
    (tmp_path / "out.csv").touch()  # an empty file gets its header
    for _ in range(2):
        subprocess.run(["python3", "collect.py", "result.json", "out.csv"], cwd=tmp_path, check=True)
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert len(rows) == 2
    assert (rows[0]["attn_dp"], rows[0]["moe_ep"], rows[0]["gpus"], rows[0]["concurrency"]) == ("4", "4", "4", "4")
    assert (rows[1]["measured_ttft_ms"], rows[1]["measured_tpot_ms"]) == ("12.5", "3.25")
    assert (rows[0]["speculative_draft"], rows[0]["admission_steps"]) == ("", "")
    assert read_measurements(tmp_path / "out.csv")[0].tpot_ns == 3_250_000
    (tmp_path / "old.csv").write_text("id,llm\n")
    old = ["python3", "collect.py", "result.json", "old.csv"]
    refused = subprocess.run(old, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "old.csv has other columns than id, llm" in refused.stderr
    assert (tmp_path / "old.csv").read_text() == "id,llm\n"


@pytest.mark.parametrize(
    ("engine", "options"),
    [
        ("vllm", {"--random-prefix-len": 25, "--random-input-len": 75, "--random-output-len": 16}),
        ("sglang", {"--gsp-system-prompt-len": 25, "--gsp-question-len": 75, "--gsp-output-len": 16}),
        ("trtllm", {"--gsp-system-prompt-len": 25, "--gsp-question-len": 75, "--gsp-prompts-per-group": 64}),
    ],
)
def test_cached_prefixes_are_measured_with_a_common_prefix(
    engine: str, options: dict[str, int], tmp_path: Path
) -> None:
    workload = small_workload(isl=100, concurrency=8, prefix_hit_rate=0.25)
    plan = made(engine, Strategy(attn_dp=4, moe_ep=4, batch=2), {"workload": workload}, None)
    launchers.write(bench_script(plan), tmp_path)
    script = (tmp_path / "bench.sh").read_text()
    assert "100 tokens in (25 of them in common), 16 out, 8 at a time" in script
    command = launchers.Started(0, {}, shlex.split(next(row for row in script.splitlines() if "--model" in row)))
    assert {name: command.option(name) for name in options} == options
    (tmp_path / "result.json").write_text('{"mean_ttft_ms": 1.5, "mean_tpot_ms": 3.25, "output_throughput": 80.0}\n')
    subprocess.run(["python3", "collect.py", "result.json", "out.csv"], cwd=tmp_path, check=True)
    assert read_measurements(tmp_path / "out.csv")[0].prefix_hit_rate == 0.25


def test_nothing_to_measure_with_is_said() -> None:
    with pytest.raises(ExportError, match="no serving benchmark"):
        bench_script(made("megatron", Strategy(batch=8), {}, None))


# --- refusals ---------------------------------------------------------------------------------------------------------


def refusal(plan: Plan, target: str, **options: Any) -> str:
    with pytest.raises(ExportError) as caught:
        export(plan, target, ExportOptions(**options))
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_what_a_target_cannot_express_is_refused_with_the_alternative() -> None:
    mixed = made("any", Strategy(attn_tp=4, moe_tp=2, moe_ep=2, batch=8), {}, None)
    assert "engine-vllm-moe" in refusal(mixed, "vllm")
    assert "--engine vllm" in refusal(mixed, "vllm")
    assert "TensorRT" not in refusal(mixed, "trtllm")
    assert "EP fastest" in refusal(mixed, "trtllm")
    split = made("any", Strategy(attn_dp=2, moe_ep=2, batch=4, decode_dispatch="all_to_all"), {}, None)
    assert "engine-phases" in refusal(split, "sglang")
    assert "name one with --engine" in refusal(split, "kubernetes")
    piped = made("vllm", Strategy(pp=2, batch=8), {}, None)
    assert "pp = 2" in refusal(piped, "llm-d")
    replicated = made("sglang", Strategy(attn_dp=2, moe_ep=2, batch=4), {"redundant_experts": 2}, None)
    assert "engine-expert-map" in refusal(replicated, "megatron")
    assert "unknown target" in refusal(replicated, "k3s")
    assert "2 host names are given" in refusal(replicated, "csv", hosts=("a", "b"))


def test_a_convicted_plan_is_not_exported() -> None:
    plan = made("vllm", Strategy(batch=8), {}, None)
    forged = plan.model_copy(update={"metrics": plan.metrics.model_copy(update={"tpot_ns": 1})})
    assert "verify convicts" in refusal(forged, "vllm")


def test_loads_on_an_engine_that_cannot_move_experts_are_illegal() -> None:
    workload = Workload.read({**small_workload(isl=100, concurrency=8).model_dump(), "expert_loads": LOADS}, "test")
    for engine, name in (("megatron", "tiny"), ("vllm", "gpt-oss-tiny"), ("sglang", "mixtral-tiny")):
        problem = small_problem(engine=engine, workload=workload, llm=small_llm(name=name))
        rules = {v.rule for v in violations(problem, Strategy(attn_dp=2, moe_ep=2, batch=4))}
        assert rules == {"engine-expert-map"}
        assert violations(problem, Strategy(attn_tp=2, moe_tp=2, batch=8)) == []
    problem = small_problem(engine="vllm", workload=workload)
    assert violations(problem, Strategy(attn_dp=2, moe_ep=2, batch=4)) == []
    piped = Strategy(attn_dp=2, moe_ep=2, pp=2, mesh_order="tp-pp-dp", batch=4)
    assert {v.rule for v in violations(problem, piped)} == {"engine-expert-map"}


# --- command line -----------------------------------------------------------------------------------------------------


def test_the_command_writes_a_folder_once(tmp_path: Path) -> None:
    plan = made("vllm", Strategy(attn_dp=4, moe_ep=4, batch=2), {}, None)
    file = tmp_path / "plan.json"
    file.write_text(plan.model_dump_json())
    out = tmp_path / "launch"
    first = run("export", file, "--to", "vllm", "--out", out)
    assert (first.code, first.out) == (0, "")
    assert os.access(out / "node-0.sh", os.X_OK)
    assert "give --force" in error_line(run("export", file, "--to", "csv", "--out", out))
    assert run("export", file, "--to", "csv", "--out", out, "--force").code == 0
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "ranks.csv"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_no_export_wrote_is_never_replaced(tmp_path: Path) -> None:
    plan = made("vllm", Strategy(batch=8), {}, None)
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    line = error_line(run("export", tmp_path / "plan.json", "--to", "csv", "--out", mine, "--force"))
    assert "does not look like an export" in line
    assert (mine / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("text", ["a b\n", "a\na\n", "$(reboot)\n", "-x\n"])
def test_host_files_are_checked(text: str, tmp_path: Path) -> None:
    plan = made("vllm", Strategy(batch=8), {}, None)
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    (tmp_path / "hosts").write_text(text)
    line = error_line(
        run("export", tmp_path / "plan.json", "--to", "csv", "--out", tmp_path / "x", "--hosts", tmp_path / "hosts")
    )
    assert re.search("host", line)


def test_hosts_name_the_nodes() -> None:
    plan = made("vllm", Strategy(attn_dp=8, moe_ep=8, batch=1), {}, None)
    deployment = deployment_of(plan, "vllm", ExportOptions(hosts=("alpha", "beta", "gamma", "delta")))
    assert [deployment.host(node) for node in deployment.nodes] == ["alpha", "beta"]
    text = "".join(file.text for file in export(plan, "vllm", ExportOptions(hosts=("alpha", "beta", "c", "d"))).files)
    assert "--data-parallel-address alpha" in re.sub(r"\s*\\\n\s*", " ", text)
    assert "node0" not in text


def test_the_map_of_the_plan_is_the_expansion() -> None:
    plan = made("vllm", Strategy(attn_dp=4, moe_ep=4, batch=2), {}, None)
    assert len(launchers.planned(plan)) == len(list(expand(plan))) == 4
