"""Sweeps: the file, engines, the folder that survives kills, tables and pictures."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import error_line, run
from sweep_work import halve, hang, sleep

from solver import Ask, EngineError, OutputError, Plan, SpecError, Sweep, SweepOptions, Swept, sweep, verify
from solver.certificate import Parameters, Versions
from solver.place.finish import robust_parallel
from solver.place.robust import Aim
from solver.place.state import Shelf
from solver.place.static import Effort
from solver.report.sweep_plots import pictures
from solver.report.sweep_progress import sweep_text
from solver.sweep import SweepProgress
from solver.sweep.store import Store, still_holds
from solver.sweep.tables import jsonl, parquet
from solver.swept import Outcome
from solver.workers.engine import LocalEngine

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "benchmarks/sweep_small.toml"
TINY = """
name = "tiny"
[problem]
llm = "qwen3-30b-a3b"
cluster = "h200x8"
osl = 64
fix = ["pp=1"]
[grid]
isl = [512, 1024]
[[case]]
concurrency = "8"
[[case]]
concurrency = "16"
slo_tpot = "1 us"
[[case]]
llm = "no-such-llm"
"""
"""Six questions: two with a plan, two that no GPU is fast enough for, two about an LLM that does not exist."""


def asked(text: str, tmp_path: Path) -> Sweep:
    file = tmp_path / "sweep.toml"
    file.write_text(text, encoding="utf-8")
    return Sweep.read(str(file))


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Everything of a folder that must not depend on how, where and how fast it was solved."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.parent.name != "timings"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Swept]:
    """The tiny sweep, solved by two processes."""
    folder = tmp_path_factory.mktemp("sweep")
    return folder / "out", sweep(asked(TINY, folder), str(folder / "out"), SweepOptions(processes=2))


# --- the file -----------------------------------------------------------------------------------------------------


def test_grid_is_crossed_and_the_last_axis_is_fastest(tmp_path: Path) -> None:
    found = asked("[problem]\nosl = 8\nisl = [1, 2]\n[grid]\nconcurrency = ['3', '4']\n", tmp_path)
    assert [(p.words["isl"], p.words["concurrency"]) for p in found.points] == [(1, "3"), (1, "4"), (2, "3"), (2, "4")]
    assert [p.at for p in found.points] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(p.words["osl"] == 8 for p in found.points)
    assert [(axis.name, axis.labels) for axis in found.axes] == [("isl", ("1", "2")), ("concurrency", ("3", "4"))]


def test_zipped_words_vary_together(tmp_path: Path) -> None:
    found = asked("[[zip]]\nisl = [1, 1]\nosl = [5, 6]\n[[zip]]\ngpus = [7, 8]\n", tmp_path)
    words = [(p.words["isl"], p.words["osl"], p.words["gpus"]) for p in found.points]
    assert words == [(1, 5, 7), (1, 5, 8), (1, 6, 7), (1, 6, 8)]
    assert found.axes[0].labels == ("1 5", "1 6")


def test_cases_replace_words_of_the_base(tmp_path: Path) -> None:
    found = asked("[problem]\nllm = 'a'\n[[case]]\nisl = 1\n[[case]]\nllm = 'b'\nengine = 'vllm'\n", tmp_path)
    assert [p.words for p in found.points] == [{"llm": "a", "isl": 1}, {"llm": "b", "engine": "vllm"}]


def test_a_list_of_decisions_is_one_value_and_a_list_of_lists_an_axis(tmp_path: Path) -> None:
    found = asked("[problem]\nfix = ['pp=1', 'attn_tp=2']\n", tmp_path)
    assert [p.words["fix"] for p in found.points] == [("pp=1", "attn_tp=2")]
    found = asked("[grid]\nfix = [['pp=1'], ['pp=2', 'attn_tp=2'], []]\n", tmp_path)
    assert found.axes[0].labels == ("pp=1", "pp=2,attn_tp=2", "")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[promlem]\nisl = 1\n", "'promlem' is unknown"),
        ("[problem]\nmodel = 'x'\n", "the word 'model' is unknown"),
        ("[grid]\nisl = 5\n", "give a list"),
        ("[grid]\nisl = []\n", "is empty"),
        ("[grid]\nisl = [5, 5]\n", "5 is listed twice"),
        ("[problem]\nisl = [1, 2]\n[grid]\nisl = [3, 4]\n", "'isl' varies along two axes"),
        ("[[zip]]\nisl = [1, 2]\nosl = [1]\n", "isl has 2, osl has 1"),
        ("[zip]\nisl = [1, 2]\n", "double brackets"),
        ("[problem]\nobjective = 'speed'\n", "question 0: objective"),
        ("[grid]\nisl = [" + ",".join(map(str, range(400))) + "]\nosl = [" + ",".join(map(str, range(400))) + "]\n",
         "160,000 questions"),
        ("name = 7\n", "give a text"),
        ("problem = 7\n", "must be a table"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_in_one_sentence(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as refused:
        asked(text, tmp_path)
    assert told in str(refused.value)


def test_a_sweep_of_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="1 to 100,000 questions, not 0"):
        Sweep.listed([])


def test_the_example_is_understood() -> None:
    found = Sweep.read(str(EXAMPLE))
    assert [axis.name for axis in found.axes] == ["cluster", "slo_tpot", "isl+osl"]
    assert len(found.points) == 4 * 5 * 2


# --- engines ------------------------------------------------------------------------------------------------------


def test_a_task_that_raises_or_kills_its_process_costs_only_itself() -> None:
    # Of 10..16, the odd 11 and 15 raise and 13 ends its process by SIGSEGV; the even ones have their half.
    done = {10 + one.index: one for one in LocalEngine(2).run(halve, range(10, 17))}
    assert {number: one.value for number, one in done.items() if one.value is not None} == {10: 5, 12: 6, 14: 7, 16: 8}
    assert done[11].error == "ArithmeticError: 11 is odd"
    assert done[13].died
    assert done[13].detail == "ended by SIGSEGV"
    assert not any(one.died for number, one in done.items() if number != 13)


def test_a_process_that_hangs_is_ended_by_the_system() -> None:
    (done,) = LocalEngine(1).run(hang, [0.05])
    assert (done.died, done.detail) == (True, "ended by SIGALRM")


def test_tasks_are_taken_as_they_are_needed() -> None:
    # Two per process are under way at most, so of 100 tasks only a few are made before the first result.
    made = []
    engine = LocalEngine(1).run(halve, (made.append(n) or 2 * n for n in range(100)))  # type: ignore[func-returns-value]
    with contextlib.closing(engine) as ended:
        next(ended)
        assert len(made) == 2


def test_closing_an_engine_ends_what_still_runs() -> None:
    before = set(multiprocessing.active_children())
    engine = LocalEngine(2).run(sleep, [0.0, 3600.0])
    assert next(engine).value == 0.0
    engine.close()
    assert set(multiprocessing.active_children()) <= before


def test_processes_divide_the_cores_by_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[LocalEngine.__module__], "usable_cores", lambda: 12)
    assert [LocalEngine(threads=threads).slots for threads in (1, 4, 5, 24)] == [12, 3, 2, 1]


def test_a_script_without_main_guard_is_told_so(tmp_path: Path) -> None:
    # Spawned processes import the script again: unguarded, they cannot start, and no problem is to blame for that.
    script = tmp_path / "unguarded.py"
    script.write_text(f"import solver\nsolver.sweep([solver.Ask()], {str(tmp_path / 'out')!r})\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "EngineError: worker processes do not start: a script that sweeps must do so below" in done.stderr
    assert list((tmp_path / "out/results").iterdir()) == []


# --- what comes out -----------------------------------------------------------------------------------------------


def test_every_question_has_an_outcome_with_its_reason(tiny: tuple[Path, Swept]) -> None:
    folder, swept = tiny
    assert [row.outcome.status for row in swept.rows] == ["OPTIMAL", "INFEASIBLE", "REFUSED"] * 2
    assert swept.counts == {"OPTIMAL": 2, "INFEASIBLE": 2, "REFUSED": 2}
    assert not swept.proved
    assert any("slo-tpot" in reason for reason in swept.rows[1].outcome.reasons)
    assert "no-such-llm" in swept.rows[2].outcome.reasons[0]
    for row in (swept.rows[0], swept.rows[3]):
        plan = Plan.parse((folder / f"plans/{row.outcome.digest}.json").read_text())
        assert plan.problem.digest == row.outcome.digest
        assert plan.certificate.wall_s is None
        assert verify(plan).ok
        assert row.outcome.answer is not None
        assert row.outcome.answer.value == plan.objective.value
    assert sorted(file.name for file in (folder / "plans").iterdir()) == sorted(
        f"{row.outcome.digest}.json" for row in swept.rows if row.outcome.answer
    )


def test_tables_agree(tiny: tuple[Path, Swept]) -> None:
    parquet_of = pytest.importorskip("pyarrow.parquet")
    folder, _ = tiny
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(6))
    assert [line["isl"] for line in lines] == [512] * 3 + [1024] * 3
    assert lines[0]["fix"] == ["pp=1"]
    assert lines[0]["gpus_used"] == 8
    assert lines[1]["objective_value"] is None
    table = parquet_of.read_table(folder / "results.parquet")
    assert table.to_pylist() == lines
    assert str(table.schema.field("tpot_ns").type) == "int64"


def test_the_manifest_says_what_was_asked(tiny: tuple[Path, Swept]) -> None:
    folder, swept = tiny
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["axes"][0] == {"name": "isl", "values": ["512", "1024"]}
    assert [point["digest"] for point in manifest["points"]] == [row.outcome.digest for row in swept.rows]
    assert manifest["parameters"] == {
        "seed": 0, "workers": 1, "time_limit_s": None, "relative_gap_limit": 0.0, "absolute_gap_limit": 0.0,
    }  # fmt: skip


def test_equal_questions_are_solved_once(tmp_path: Path) -> None:
    # The catalog reads names in any case, so both ask the same problem.
    one = Ask(llm="qwen3-30b-a3b", cluster="h200x8", isl=512, osl=64, concurrency="8", fix=("pp=1",))
    other = one.model_copy(update={"llm": "Qwen3-30B-A3B"})
    swept = sweep([one, other.problem()], str(tmp_path / "out"), SweepOptions(processes=1))
    assert len({row.outcome.digest for row in swept.rows}) == 1
    assert len(list((tmp_path / "out/results").iterdir())) == 1
    assert swept.proved


def test_without_extras_the_rest_is_written_and_the_extra_named(
    tiny: tuple[Path, Swept], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = tiny
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    swept = sweep(asked(TINY, tmp_path), str(folder))  # everything is there: nothing is solved
    assert swept.files == ("results.jsonl", "report.md")
    assert [note.split("install ")[1] for note in swept.notes] == ["shardwright[parquet]", "shardwright[report]"]


# --- taking a folder up -------------------------------------------------------------------------------------------


def test_a_rerun_solves_only_what_is_missing_or_damaged(tiny: tuple[Path, Swept], tmp_path: Path) -> None:
    folder, swept = tiny
    before = bytes_of(folder)
    plan = folder / f"plans/{swept.rows[0].outcome.digest}.json"
    plan.write_text(plan.read_text()[:-100])  # its digest no longer fits
    told: list[SweepProgress] = []
    again = sweep(asked(TINY, tmp_path), str(folder), SweepOptions(processes=1, on_progress=told.append))
    # Of the four problems three are reused; the two questions about no LLM make no problem and are refused again.
    assert again.reused == 3
    assert [progress.done for progress in told] == [5, 6]
    assert bytes_of(folder).keys() >= before.keys()
    assert plan.read_bytes() == before[f"plans/{plan.name}"]


def test_an_extended_sweep_solves_what_is_new(tiny: tuple[Path, Swept], tmp_path: Path) -> None:
    folder, _ = tiny
    more = asked(TINY.replace("isl = [512, 1024]", "isl = [256, 512, 1024]"), tmp_path)
    assert sweep(more, str(folder), SweepOptions(processes=1)).reused == 4


def test_what_a_time_limit_ended_is_solved_again_with_more_time(tmp_path: Path) -> None:
    # Throughput is not proved by the closed-form bounds alone, so that no time is too little.
    words = {"llm": "qwen3-30b-a3b", "cluster": "h200x8", "isl": 512, "osl": 64, "concurrency": "8"}
    one = [Ask(**words, objective="throughput")]
    out = str(tmp_path / "out")
    short = SweepOptions(processes=1, time_limit_s=1e-6)
    assert sweep(one, out, short).rows[0].outcome.status in ("UNKNOWN", "FEASIBLE")
    assert sweep(one, out, short).reused == 1
    assert sweep(one, out, replace(short, time_limit_s=60)).counts == {"OPTIMAL": 1}


def outcome(status: str, **changes: object) -> Outcome:
    return Outcome.model_validate(
        {"digest": "d", "status": status, "versions": VERSIONS, "parameters": LIMITED, **changes}
    )


VERSIONS = Versions(shardwright="1", ortools="9", python="3.11")
LIMITED = Parameters(seed=0, workers=1, time_limit_s=5)


@pytest.mark.parametrize(
    ("stored", "limit_s", "retry", "holds"),
    [
        (outcome("OPTIMAL"), 5, False, True),
        (outcome("OPTIMAL"), 60, False, True),  # proved is proved, however long one would look
        (outcome("INFEASIBLE"), 60, True, True),
        (outcome("FEASIBLE"), 5, False, True),
        (outcome("FEASIBLE"), 60, False, False),  # more time may prove more
        (outcome("UNKNOWN"), 60, False, False),
        (outcome("CRASHED"), 5, False, True),
        (outcome("CRASHED"), 5, True, False),
        (outcome("OPTIMAL", versions=VERSIONS.model_copy(update={"ortools": "8"})), 5, False, False),
        (outcome("OPTIMAL", versions=VERSIONS.model_copy(update={"python": "3.12"})), 5, False, True),
    ],
)
def test_what_is_kept_of_an_earlier_run(stored: Outcome, limit_s: float, retry: bool, holds: bool) -> None:
    now = LIMITED.model_copy(update={"time_limit_s": limit_s})
    assert still_holds(stored, VERSIONS, now, retry=retry) is holds


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="holds other files"):
        sweep([Ask()], str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_sweeps_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        Store(str(tmp_path / "out")).opened(),
        pytest.raises(OutputError, match="another sweep is writing"),
        Store(str(tmp_path / "out")).opened(),
    ):
        pass


def test_half_written_files_are_removed(tmp_path: Path) -> None:
    with Store(str(tmp_path / "out")).opened():
        (tmp_path / "out/results/.abc.json.0123.tmp").write_text("{")
    with Store(str(tmp_path / "out")).opened():
        assert list((tmp_path / "out/results").iterdir()) == []


def command(file: Path, out: Path) -> subprocess.Popen[str]:
    """The command line on two processes, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "solver", "sweep", str(file), "--out", str(out), "--processes", "2"],
        cwd=file.parent, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip


def wait_for_results(out: Path, number: int) -> None:
    deadline = time.monotonic() + 900
    while len(list(out.glob("results/[!.]*"))) < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lives(session: int) -> bool:
    """Whether any process of a session is left."""
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True


LONGER = TINY.replace("isl = [512, 1024]", "isl = [256, 512, 768, 1024, 1280]").replace("1 us", "20 ms")
"""Fifteen questions, ten with a plan."""


def test_a_killed_sweep_ends_with_the_results_of_an_undisturbed_one(tmp_path: Path) -> None:
    # Killed twice, after 7 and 10 outcomes (the five refused questions are there at once), then left alone.
    file = tmp_path / "sweep.toml"
    file.write_text(LONGER)
    for number in (7, 10):
        process = command(file, tmp_path / "killed")
        wait_for_results(tmp_path / "killed", number)
        process.kill()
        process.communicate()
    process = command(file, tmp_path / "killed")
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 4  # refused questions are no answers
    assert "from earlier runs" in out
    sweep(asked(LONGER, tmp_path), str(tmp_path / "calm"), SweepOptions(processes=1))
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "calm")


def test_ctrl_c_keeps_what_is_finished_and_leaves_no_process(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(LONGER)
    process = command(file, tmp_path / "out")
    wait_for_results(tmp_path / "out", 6)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    out, err = process.communicate(timeout=900)
    assert process.returncode == 130
    assert out == ""
    assert "the same command goes on from there" in err
    assert "Traceback" not in err
    deadline = time.monotonic() + 30  # the children of a process end just after it
    while lives(process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not lives(process.pid)
    assert not (tmp_path / "out/results.jsonl").exists()


# --- Ray ----------------------------------------------------------------------------------------------------------


def test_ray_gives_the_same_bytes(tiny: tuple[Path, Swept], tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    text = TINY.replace("isl = [512, 1024]", "isl = [512]")
    options = SweepOptions(engine="ray", processes=2)
    assert sweep(asked(text, tmp_path), str(tmp_path / "ray"), options).counts == {
        "OPTIMAL": 1, "INFEASIBLE": 1, "REFUSED": 1,
    }  # fmt: skip
    assert not ray.is_initialized()
    folder, _ = tiny
    for file in [*(tmp_path / "ray/results").iterdir(), *(tmp_path / "ray/plans").iterdir()]:
        assert file.read_bytes() == (folder / file.parent.name / file.name).read_bytes()
    timings = [json.loads(file.read_text()) for file in (tmp_path / "ray/timings").iterdir()]
    assert [timing["engine"] for timing in timings] == ["ray", "ray"]


def test_an_address_where_no_ray_listens_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(EngineError, match=r"no Ray cluster can be used at '127\.0\.0\.1:9'"):
        sweep([Ask()], str(tmp_path / "out"), SweepOptions(engine="ray", address="127.0.0.1:9"))


def test_without_ray_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"install shardwright\[ray\]"):
        sweep([Ask()], str(tmp_path / "out"), SweepOptions(engine="ray"))


# --- expert placement ---------------------------------------------------------------------------------------------


def test_layers_placed_on_an_engine_are_those_placed_here() -> None:
    # With time for all its turns the search depends on the seed alone, so where it runs changes nothing.
    load_lke = np.random.default_rng(0).gamma(2.0, size=(4, 2, 64))
    shelf, aim = Shelf.of((9,) * 8, None), Aim(np.array([0.5, 0.5]))
    here = robust_parallel(load_lke, shelf, aim, Effort(60, turns=3, workers=2))
    there = robust_parallel(load_lke, shelf, aim, Effort(60, turns=3, workers=2, engine=LocalEngine(2)))
    assert (here.slot_ln == there.slot_ln).all()
    assert (here.bound_l == there.bound_l).all()


# --- for people ---------------------------------------------------------------------------------------------------


def test_command_prints_the_summary_and_says_what_is_not_proved(tiny: tuple[Path, Swept], tmp_path: Path) -> None:
    folder, swept = tiny
    file = tmp_path / "sweep.toml"
    file.write_text(TINY)
    result = run("sweep", file, "--out", folder, columns=100)
    assert result.code == 4
    assert "Sweep tiny: 6 questions, 4 of them from earlier runs" in result.out
    assert "INFEASIBLE: [" in result.out
    assert "2 OPTIMAL, 2 INFEASIBLE, 2 REFUSED" in result.out
    assert "6 of 6" in result.err
    printed = run("sweep", file, "--out", folder, "--json", "--no-progress")
    assert (printed.out.encode(), printed.err) == (jsonl(swept), "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--engine", "slurm"), "--engine 'slurm'"),
        (("--address", "auto"), "belongs to --engine ray"),
        (("--processes", "0"), "--processes 0"),
        (("--threads", "0"), "--threads 0"),
        (("--time-limit", "0"), "--time-limit 0"),
        (("--plot", "isl"), "give one or two axes of cluster, slo_tpot, isl+osl"),
    ],
)
def test_wrong_options_are_refused(arguments: tuple[str, ...], told: str, tmp_path: Path) -> None:
    assert told in error_line(run("sweep", EXAMPLE, "--out", tmp_path / "out", *arguments))
    assert not (tmp_path / "out").exists()


def test_pictures_show_who_wins_where_and_where_nobody_does(tiny: tuple[Path, Swept]) -> None:
    pytest.importorskip("matplotlib")
    _, swept = tiny
    objective, winners = pictures(swept)
    assert (objective.name, winners.name) == ("objective", "winners")
    wins = Counter(row.outcome.answer.shape for row in swept.rows if row.outcome.answer is not None)
    assert wins.total() == 2
    assert all(f"{shape}, {times} x" in winners.svg for shape, times in wins.items())
    assert "infeasible, proved" in winners.svg
    assert "latency, ms" in objective.svg
    assert objective.png.startswith(b"\x89PNG")
    assert [picture.svg for picture in pictures(swept)] == [objective.svg, winners.svg]  # the same again
    across = pictures(swept, ("isl",))[1]  # one axis named: the other one makes panels
    assert "concurrency+slo_tpot+llm 8" in across.svg


def test_pictures_of_a_single_point_and_of_a_list(tiny: tuple[Path, Swept]) -> None:
    pytest.importorskip("matplotlib")
    _, swept = tiny
    assert pictures(replace(swept, axes=(), rows=(replace(swept.rows[0], at=()),))) == ()  # no axis to draw along
    assert pictures(replace(swept, rows=(swept.rows[1],))) == ()  # no plan, nothing to draw


def test_parquet_of_words_keeps_their_types(tiny: tuple[Path, Swept]) -> None:
    table = pytest.importorskip("pyarrow.parquet")
    import io

    schema = table.read_schema(io.BytesIO(parquet(tiny[1])))
    assert {name: str(schema.field(name).type) for name in ("isl", "llm", "fix", "slo_tpot", "gap")} == {
        "isl": "int64", "llm": "string", "fix": "list<element: string>", "slo_tpot": "string", "gap": "double",
    }  # fmt: skip


def test_progress_estimates_from_this_run_alone() -> None:
    # 60 of 100 are there, 40 of them from before: the 20 of this run took 10 s, so the other 40 take 20 s.
    progress = SweepProgress(done=60, reused=40, total=100, counts={"OPTIMAL": 60}, elapsed_s=10)
    assert progress.left_s == 20
    assert sweep_text(progress) == "60 OPTIMAL; 10 s, about 20 s left"
