"""The command line: every command, its streams, its exit codes. Answers are statuses and numbers, never layouts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest

import solver
from solver import Ask
from solver.plan import Plan
from tests.command_line import SMALL, error_line, run

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("solve", "evaluate", "check", "verify", "placement", "catalog", "schema")


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A proved plan of the small problem, as `solve --out` wrote it."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    result = run("solve", *SMALL, "--out", path)
    assert result.code == 0, result.err
    assert "OPTIMAL" in result.out
    assert f"plan written to {path}" in result.err
    return path


@pytest.fixture
def document(plan_file: Path) -> dict[str, object]:
    loaded: dict[str, object] = json.loads(plan_file.read_text())
    return loaded


# --- help and version ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), *((c,) for c in COMMANDS), ("catalog", "list"), ("catalog", "show")])
def test_help_of_every_command(command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.code == 0
    assert "Usage" in result.out
    assert result.err == ""


def test_root_help_names_every_command_and_exit_code() -> None:
    out = run("--help").out
    assert all(command in out for command in COMMANDS)
    assert "3 infeasible" in out


def test_no_command_shows_the_help() -> None:
    assert "Usage" in run().out


def test_version() -> None:
    result = run("--version")
    assert result.code == 0
    assert result.out.startswith("shardwright ")


def test_solve_options_are_the_fields_of_ask() -> None:
    """Every field of Ask is an option of solve, so that a question in Python can be asked on the command line."""
    out = run("solve", "--help", columns=200).out
    for field in Ask.model_fields:
        assert f"--{field.replace('_', '-')}" in out


@pytest.mark.parametrize("arguments", [("--help",), ("solve", "--help"), ("catalog", "list")])
def test_help_and_catalog_import_neither_solver_nor_arrays(arguments: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom solver.cli import main\n"
        f"try:\n    main({list(arguments)!r})\nexcept SystemExit:\n    pass\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'ortools', 'numpy'}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr.strip() == "[]"


# --- package ------------------------------------------------------------------------------------------------------


def test_every_public_name_is_there() -> None:
    assert all(getattr(solver, name) is not None for name in solver.__all__)
    assert list(solver.__all__) == sorted(solver.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = solver.nothing


def test_verify_stays_the_function_whatever_is_imported_first() -> None:
    code = "import solver.verify.finding\nfrom solver import verify\nassert callable(verify), verify"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# --- solve --------------------------------------------------------------------------------------------------------


def test_solve_json_is_the_plan_document(document: dict[str, object]) -> None:
    result = run("solve", *SMALL, "--json", "--no-progress")
    assert result.code == 0
    assert result.err == ""
    answer = json.loads(result.out)
    for key in ("status", "objective", "strategy", "metrics", "memory", "placement"):
        assert answer[key] == document[key], key
    assert answer["objective"]["bound"] == answer["objective"]["value"]
    assert answer["objective"]["gap"] == 0


def test_stable_keys_of_the_plan(document: dict[str, object]) -> None:
    keys = {
        "": "schema_version status objective strategy metrics memory placement assumptions warnings certificate",
        "objective": "name value bound gap",
        "strategy": "attn_tp attn_dp moe_tp moe_ep pp replicas micro_batches label",
        "metrics": "ttft_ns tpot_ns request_latency_ns throughput_tokens_per_s efficiency_tokens_per_s_per_gpu "
        "gpus_used",
    }
    for where, names in keys.items():
        table = document[where] if where else document
        assert isinstance(table, dict)
        assert set(names.split()) <= set(table), where


def test_command_and_function_give_the_same_plan(plan_file: Path) -> None:
    ask = Ask(llm="qwen3-30b-a3b", cluster="h200x8", isl=512, osl=64, concurrency="8", fix=("pp=1",))
    answer = solver.solve(ask.problem())
    assert isinstance(answer, Plan)
    written = Plan.parse(plan_file.read_text())
    assert (answer.strategy, answer.metrics, answer.placement) == (written.strategy, written.metrics, written.placement)


@pytest.mark.parametrize("columns", [80, 120])
def test_human_output_says_what_an_engineer_needs(columns: int) -> None:
    out = run("solve", *SMALL, columns=columns).out
    for part in (
        "Strategy",
        "Metrics",
        "Why it wins",
        "Memory",
        "Proof",
        "Placement",
        "Warnings",
        "Assumptions",
        "Next",
    ):
        assert f"\n{part}" in out, part
    assert "OPTIMAL" in out
    assert "gap 0" in out
    assert "routed experts" in out
    assert "\x1b" not in out  # no colours in a pipe
    assert max(len(line.rstrip()) for line in out.splitlines()) <= columns


def test_time_limit_gives_the_best_so_far_or_unknown() -> None:
    """In a tenth of a second a hard problem is not proved: exit code 4 and no claim of optimality."""
    hard = ("--llm", "deepseek-v3", "--cluster", "h200x256", "--workload", "batch", "--objective", "throughput")
    result = run("solve", *hard, "--slo-tpot", "50 ms", "--time-limit", "0.1", "--json", "--no-progress")
    answer = json.loads(result.out)
    assert answer["status"] in ("FEASIBLE", "UNKNOWN")
    assert result.code == 4
    if answer["status"] == "FEASIBLE":
        assert answer["objective"]["gap"] > 0


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_returns_the_best_plan_with_its_gap(tmp_path: Path) -> None:
    """A problem that takes seconds, interrupted as soon as the first plan is known."""
    arguments = (
        "--llm", "deepseek-v3", "--cluster", "h200x256", "--objective", "throughput", "--isl", "2048", "--osl", "64",
        "--concurrency", "free", "--slo-tpot", "50 ms",
    )  # fmt: skip
    code = (
        "import sys, os, signal, threading\nfrom solver.report import progress\n"
        "import solver.cli.plans\n"
        "def occasional(console, objective):\n"
        "    once = []\n"
        "    def report(p):\n"
        "        if p.value is not None and not once:\n"
        "            once.append(1)\n"
        "            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "    return report\n"
        "progress._occasional = occasional\n"
        "from solver.cli import main\n"
        f"main({['solve', *arguments, '--json', '--out', str(tmp_path / 'plan.json')]!r})\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert process.returncode == 4, process.stderr[-800:]
    assert "Traceback" not in process.stderr
    answer = json.loads(process.stdout)
    assert answer["status"] == "FEASIBLE"
    assert answer["objective"]["gap"] > 0
    assert json.loads((tmp_path / "plan.json").read_text()) == answer


# --- infeasible ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "rule", "number"),
    [
        (("--slo-tpot", "1 us"), "slo-tpot", "0.001 ms"),
        (("--slo-ttft", "1 us"), "slo-ttft", "0.001 ms"),
        (("--slo-latency", "1 us"), "slo-request-latency", "0.001 ms"),
        (("--fix", "attn_tp=3"), "attn_tp = 3", "32 query heads"),
        (("--fix", "moe_ep=64"), "moe_ep", "64"),
    ],
)
def test_infeasible_names_the_constraint_with_its_numbers(changes: tuple[str, ...], rule: str, number: str) -> None:
    result = run("solve", *SMALL, *changes, columns=400)
    assert result.code == 3
    assert "INFEASIBLE" in result.out
    assert rule in result.out
    assert number in result.out


def test_infeasible_for_lack_of_memory() -> None:
    """405 billion parameters do not fit two GPUs of 141 GB in any split."""
    result = run(
        "solve", "--llm", "llama-3.1-405b", "--cluster", "h200x2", "--isl", "512", "--osl", "64", "--concurrency", "1",
        "--fix", "pp=1", "--json",
    )  # fmt: skip
    assert result.code == 3
    answer = json.loads(result.out)
    assert answer["status"] == "INFEASIBLE"
    assert any(reason.startswith("[memory]") and "GiB" in reason for reason in answer["reasons"])


def test_infeasible_for_an_exact_gpu_count() -> None:
    """A dense LLM with one stage and TP 2 uses two GPUs per replica: an even number, never seven."""
    result = run(
        "solve", "--llm", "qwen3-32b", "--cluster", "h200x8", "--isl", "512", "--osl", "64", "--concurrency", "8",
        "--fix", "pp=1", "--fix", "attn_tp=2", "--gpus-exact", "7", "--json",
    )  # fmt: skip
    assert result.code == 3
    assert any("gpu-count" in reason and "7" in reason for reason in json.loads(result.out)["reasons"])


def test_a_gap_that_is_reached_is_success() -> None:
    done = run("solve", *SMALL, "--gap", "0.9", "--json", "--no-progress")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["objective"]["gap"] <= 0.9
    assert document["certificate"]["parameters"]["relative_gap_limit"] == 0.9


@pytest.mark.parametrize(
    "wrong", [("--gap", "1.5"), ("--gap", "-0.1"), ("--gap", "nan"), ("--gap", "0.1", "--ties", "2")]
)
def test_a_gap_that_means_nothing_is_refused(wrong: tuple[str, ...]) -> None:
    assert "--gap" in error_line(run("solve", *SMALL, *wrong))


def test_infeasible_writes_no_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    result = run("solve", *SMALL, "--slo-tpot", "1 us", "--out", path)
    assert result.code == 3
    assert not path.exists()
    assert "not written" in result.err


# --- files --------------------------------------------------------------------------------------------------------


def test_out_is_checked_before_solving_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("mine")
    begun = time.monotonic()
    assert "--force" in error_line(run("solve", "--out", path))
    assert time.monotonic() - begun < 60
    assert path.read_text() == "mine"
    assert os.listdir(tmp_path) == ["plan.json"]


def test_force_replaces_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("mine")
    assert run("solve", *SMALL, "--out", path, "--force", "--no-progress").err == ""
    assert Plan.parse(path.read_text()).status == "OPTIMAL"
    assert os.listdir(tmp_path) == ["plan.json"]


def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan_file: Path) -> None:
    path = tmp_path / "map.csv"
    path.write_text("mine")

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert "No space left" in error_line(run("placement", plan_file, "--out", path, "--force"))
    assert path.read_text() == "mine"
    assert os.listdir(tmp_path) == ["map.csv"]


# --- evaluate -----------------------------------------------------------------------------------------------------


def test_evaluating_the_winner_gives_its_metrics(document: dict[str, object]) -> None:
    strategy, metrics = document["strategy"], document["metrics"]
    assert isinstance(strategy, dict)
    result = run("evaluate", strategy["label"], *SMALL, "--json")
    assert result.code == 0
    answer = json.loads(result.out)
    assert answer["metrics"] == metrics
    assert answer["violations"] == []


def test_degrees_are_the_same_as_the_label() -> None:
    by_label = run("evaluate", "A2x4-E1x8-PP1-R1", *SMALL, "--json")
    by_degrees = run("evaluate", "--strategy", "attn_tp=2,attn_dp=4,moe_ep=8", *SMALL, "--json")
    assert by_label.code == by_degrees.code == 0
    assert by_label.out == by_degrees.out


def test_a_strategy_with_knobs_is_taken_as_given() -> None:
    answer = json.loads(run("evaluate", "--strategy", "attn_dp=8,moe_ep=8,batch=3", *SMALL, "--json").out)
    assert answer["strategy"]["batch"] == 3
    assert answer["strategy"]["decode_dispatch"] == "gather"


def test_evaluate_reports_broken_memory_and_is_done() -> None:
    """140 GB of weights on one GPU of 80 GB: a result, not a failure."""
    result = run(
        "evaluate", "TP1", "--llm", "llama-3.1-70b", "--cluster", "h100x8", "--isl", "512", "--osl", "64",
        "--concurrency", "8",
    )  # fmt: skip
    assert result.code == 0
    assert "[memory]" in result.out
    assert "Broken rules" in result.out


# --- check --------------------------------------------------------------------------------------------------------


def test_check_without_arguments_audits_the_reference_claims() -> None:
    result = run("check", "--json")
    assert result.code == 0
    report = json.loads(result.out)
    assert report["label"] == "EP64-TP8-PP2-DP2"
    assert report["legal"] is True
    assert report["errors"] > 5
    assert all(finding["arithmetic"] for finding in report["findings"] if finding["severity"] == "error")


def test_check_for_people_shows_rules_and_arithmetic() -> None:
    out = run("check", columns=120).out
    assert "EP64-TP8-PP2-DP2" in out
    assert "error" in out
    assert "M2" in out


def test_check_of_a_label_has_no_claims_to_doubt() -> None:
    report = json.loads(run("check", "EP64-TP8-PP2-DP2", "--json").out)
    assert report["errors"] == 0


def test_check_strict_turns_errors_into_an_exit_code() -> None:
    assert run("check", "--strict").code == 3
    assert run("check", "EP64-TP8-PP2-DP2", "--strict").code == 0


def test_check_names_the_broken_rule() -> None:
    report = json.loads(run("check", "EP64-TP3", "--json").out)
    assert report["legal"] is False
    assert "heads" in {finding["rule"] for finding in report["findings"]}


def test_check_document_from_file_and_stdin(tmp_path: Path) -> None:
    text = "# Strategy EP8-TP4-PP1-DP2\n\n- **Layers**: 16\n- **Experts**: 64\n- **Total GPUs**: 64\n"
    path = tmp_path / "strategy.md"
    path.write_text(text)
    from_file = run("check", "--document", path, "--json")
    from_stdin = run("check", "--document", "-", "--json", stdin=text.encode())
    assert from_file.code == from_stdin.code == 0
    assert json.loads(from_file.out)["label"] == json.loads(from_stdin.out)["label"] == "EP8-TP4-PP1-DP2"


# --- verify and placement -----------------------------------------------------------------------------------------


def test_verify_confirms_from_file_and_stdin(plan_file: Path) -> None:
    assert run("verify", plan_file).code == 0
    result = run("verify", "-", "--json", stdin=plan_file.read_bytes())
    assert result.code == 0
    verdict = json.loads(result.out)
    assert verdict["ok"] is True
    assert verdict["findings"] == []


def test_verify_exhaustive_counts_configurations(plan_file: Path) -> None:
    verdict = json.loads(run("verify", plan_file, "--exhaustive", "--json").out)
    assert verdict["ok"] is True
    assert verdict["configurations"] > 1000


def test_verify_convicts_a_better_claim(document: dict[str, object]) -> None:
    metrics = document["metrics"]
    assert isinstance(metrics, dict)
    metrics["tpot_ns"] -= 1
    result = run("verify", "-", stdin=json.dumps(document).encode())
    assert result.code == 4
    assert "CONVICTED" in result.out
    assert "[metrics]" in result.out


def test_placement_has_one_record_per_gpu(plan_file: Path, document: dict[str, object]) -> None:
    metrics = document["metrics"]
    assert isinstance(metrics, dict)
    lines = run("placement", plan_file, "--format", "jsonl").out.splitlines()
    records = [json.loads(line) for line in lines]
    assert len({record["gpu"] for record in records}) == len(records) == metrics["gpus_used"]
    assert {"node", "local_gpu", "replica", "stage", "experts", "sequences"} <= set(records[0])
    csv = run("placement", "-", "--format", "csv", stdin=plan_file.read_bytes()).out.splitlines()
    assert len(csv) == len(records) + 1
    assert csv[0].split(",")[0] == "gpu"
    assert {len(row.split(",")) for row in csv} == {13}
    assert len(run("placement", plan_file).out.splitlines()) == len(records) + 1


def test_placement_to_a_file_is_what_stdout_gets(plan_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "map.jsonl"
    result = run("placement", plan_file, "--format", "jsonl", "--out", path)
    assert (result.code, result.out) == (0, "")
    assert path.read_text() == run("placement", plan_file, "--format", "jsonl").out


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_reader_that_goes_away_is_no_error(plan_file: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "solver", "placement", str(plan_file), "--format", "jsonl"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 128 + signal.SIGPIPE


# --- catalog and schema -------------------------------------------------------------------------------------------


def test_catalog_lists_and_shows_every_entry() -> None:
    rows = json.loads(run("catalog", "list", "--json").out)
    assert {row["kind"] for row in rows} == {"llm", "gpu", "cluster", "workload", "calibration"}
    assert all(row["source"] and row["summary"] for row in rows)
    text = run("catalog", "list").out
    assert all(row["name"] in text for row in rows)
    for row in rows:
        shown = run("catalog", "show", row["kind"], row["name"])
        assert shown.code == 0
        assert "source" in shown.out
    assert {row["kind"] for row in json.loads(run("catalog", "list", "gpu", "--json").out)} == {"gpu"}


def test_catalog_show_json_can_be_read_back() -> None:
    entry = json.loads(run("catalog", "show", "cluster", "h200x64", "--json").out)
    assert solver.Cluster.model_validate(entry["record"]).num_gpus == 64


def test_schema_accepts_a_real_plan_and_refuses_another(document: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    assert run("schema", "--out", path).code == 0
    schema = json.loads(path.read_text())
    assert schema == json.loads(run("schema").out)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(document)
    assert not validator.is_valid({**document, "status": "CERTAIN"})
    assert not validator.is_valid({key: value for key, value in document.items() if key != "metrics"})


# --- Ask ----------------------------------------------------------------------------------------------------------


def test_ask_without_words_is_the_reference_problem() -> None:
    assert Ask().problem() == solver.reference_problem()


def test_a_replaced_workload_keeps_no_stale_assumptions() -> None:
    workload = Ask(isl=512, osl=64, concurrency="free").problem().workload
    assert (workload.isl, workload.isl_range, workload.concurrency) == (512, None, None)
    assert workload.assumptions == ()
    assert "osl = 64" in workload.source
    partly = Ask(osl=128).problem().workload
    assert partly.isl_range is not None
    assert "replaced osl = 128" in partly.assumptions[-1]


def test_both_readings_of_the_reference() -> None:
    believed = Ask(reading="as-declared").problem().llm
    assert believed.total_parameters == pytest.approx(30e9, rel=1e-3)
    assert Ask(reading="as-dimensioned").problem() == solver.reference_problem()
    assert Ask(llm="reference-declared", reading="as-dimensioned").problem() == solver.reference_problem()


def test_slos_and_counts_reach_the_problem() -> None:
    problem = Ask(
        slo_tpot="50 ms", gpus=512, engine="vllm", max_pp=4, fix=("attn_tp=8",), redundant_experts=2
    ).problem()
    assert problem.workload.slo.tpot == 50_000_000
    assert problem.gpu_budget == 512
    assert problem.space.max_pp == 4
    assert problem.pins.attn_tp == 8
    assert Ask(gpus_exact=1024).problem().gpus_exact == 1024
    weighted = Ask(objective="weighted", latency_weight=0.25).problem()
    assert weighted.objective.latency_weight == 0.25


# --- our bugs -----------------------------------------------------------------------------------------------------


def test_an_internal_error_is_one_line_and_70(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError("our\nbug")

    monkeypatch.setattr("solver.api.check", broken)
    monkeypatch.delenv("SHARDWRIGHT_DEBUG", raising=False)
    result = run("check", "EP64-TP8-PP2-DP2")
    assert result.code == 70
    assert result.err == "internal error: ZeroDivisionError: our bug; please report\n"
    monkeypatch.setenv("SHARDWRIGHT_DEBUG", "1")
    assert "Traceback" in run("check", "EP64-TP8-PP2-DP2").err


def test_interrupted_outside_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("solver.api.check", interrupted)
    result = run("check", "EP64-TP8-PP2-DP2")
    assert (result.code, result.err) == (130, "interrupted\n")
