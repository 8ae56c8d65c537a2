"""Launch commands read as degrees; anything but one plain known command is refused with one sentence, and never run."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from command_line import error_line, run
from hypothesis import given, settings
from hypothesis import strategies as st
from launchers import Started, read_scripts, write
from plans import build_plan, small_llm, small_problem, small_workload

from solver import SolverError, export
from solver.importer import read_sglang, read_trtllm, read_vllm
from solver.strategy import Strategy

SGLANG = "python3 -m sglang.launch_server --model-path m"


@pytest.mark.parametrize(
    ("command", "label"),
    [
        ("vllm serve m", "A1x1-E1x1-PP1-R1"),
        # EP spans DP x TP; without it all of them cut the experts
        ("vllm serve m -tp 8 -dp 2 -ep", "A8x2-E1x16-PP1-R1"),
        ("vllm serve m --tensor_parallel_size=8 --data-parallel-size 2", "A8x2-E16x1-PP1-R1"),
        ("VLLM_PP_LAYER_PARTITION=29,32 vllm serve m -pp 2 -tp 4", "A4x1-E4x1-PP2-R1"),
        ("python -m vllm.entrypoints.openai.api_server --model m -tp 2", "A2x1-E2x1-PP1-R1"),
        ("vllm serve m \\\n  -tp 2 \\\n  -ep", "A2x1-E1x2-PP1-R1"),
    ],
)
def test_vllm(command: str, label: str) -> None:
    launch = read_vllm(command)
    assert (launch.weights, launch.strategy.full_label) == ("m", label)


@pytest.mark.parametrize(
    ("words", "label"),
    [
        ("", "A1x1-E1x1-PP1-R1"),
        ("--tp 16 --attn-dp-size 8 --ep-size 4 --pp-size 2", "A2x8-E4x4-PP2-R1"),
        # the deprecated spelling of attention DP, and plain replicas
        ("--tp-size 8 --dp-size 8 --enable-dp-attention --ep 8", "A1x8-E1x8-PP1-R1"),
        ("--tp-size 2 --dp-size 4", "A2x1-E2x1-PP1-R4"),
        # an all-to-all backend makes EP the whole of TP
        ("--tp-size 8 --attn-dp-size 8 --moe-a2a-backend deepep", "A1x8-E1x8-PP1-R1"),
    ],
)
def test_sglang(words: str, label: str) -> None:
    launch = read_sglang(f"{SGLANG} {words}")
    assert (launch.weights, launch.strategy.full_label) == ("m", label)
    assert read_sglang(f"sglang serve --model-path m {words}").strategy == launch.strategy


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("tensor_parallel_size: 8\nmoe_expert_parallel_size: 4\n", "A8x1-E2x4-PP1-R1"),
        ("tensor_parallel_size: 8\nenable_attention_dp: true\nmoe_expert_parallel_size: 8\n", "A1x8-E1x8-PP1-R1"),
        ('{"tensor_parallel_size": 4, "pipeline_parallel_size": 2, "moe_tensor_parallel_size": 2}', "A4x1-E2x2-PP2-R1"),
    ],
)
def test_trtllm(text: str, label: str) -> None:
    assert read_trtllm(text).strategy.full_label == label


def test_dense_llms_read_data_parallelism_as_replicas() -> None:
    assert read_vllm("vllm serve m -tp 4 -dp 2", is_moe=False).strategy == Strategy(attn_tp=4, replicas=2)
    assert read_sglang(f"{SGLANG} --tp 4 --attn-dp-size 2", is_moe=False).strategy == Strategy(attn_tp=2, replicas=2)


def test_redundant_experts_and_exchange() -> None:
    vllm = read_vllm("vllm serve m -dp 4 -ep --all2all-backend deepep_low_latency --enable-eplb "
                     "--eplb-config '{\"num_redundant_experts\": 32}'")  # fmt: skip
    assert (vllm.redundant_experts, vllm.dispatch) == (32, "all_to_all")
    assert read_vllm("vllm serve m -dp 4 -ep --eplb-config.num_redundant_experts 8").redundant_experts == 8
    sglang = read_sglang(f"{SGLANG} --tp 4 --ep 4 --ep-num-redundant-experts 16 --moe-a2a-backend none")
    assert (sglang.redundant_experts, sglang.dispatch) == (16, "gather")


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_an_export_is_read_back(engine: str, tmp_path: Path) -> None:
    problem = small_problem(engine=engine, workload=small_workload(isl=100, concurrency=8), llm=small_llm())
    strategy = Strategy(attn_dp=4, moe_ep=4, batch=2)
    write(export(build_plan(problem, strategy), engine), tmp_path)
    if engine == "trtllm":
        launch = read_trtllm((tmp_path / "trtllm.yaml").read_text())
    else:
        command: Started = read_scripts(tmp_path)[0]
        text = " ".join(f"'{word}'" for word in command.argv)
        launch = (read_vllm if engine == "vllm" else read_sglang)(text if engine == "vllm" else text.replace("'", ""))
    assert launch.strategy.full_label == strategy.full_label


HOSTILE = (
    "", "vllm", "vllm serve m; rm -rf /", "vllm serve m && reboot", "vllm serve `id`", "vllm serve $(id)",
    "vllm serve m | tee x", "vllm serve m > /etc/passwd", "vllm serve 'm", "vllm serve m --tensor-paralel-size 2",
    "vllm serve m -tp 99999999999999999999", "vllm serve m -tp -1", "vllm serve m -tp 0", "vllm serve m -tp 1e3",
    "vllm serve m -tp", "vllm serve m --eplb-config '[1]'", "vllm serve m --eplb-config.num_redundant_experts -5",
    "vllm serve m --eplb-config '{'", "rm -rf /", "vllm serve m -pcp 2", "vllm serve m\nreboot", "x" * 70000,
    "vllm serve " + "[" * 5000,
)  # fmt: skip


@pytest.mark.parametrize("command", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_vllm_commands_are_refused_with_one_sentence(command: str) -> None:
    assert 10 < len(error_line(run("check", "--vllm", command))) < 400


@pytest.mark.parametrize(
    "text",
    [
        "", "[1, 2]", "a: &x [1]\nb: *x", "tensor_parallel_size: 0", "tensor_parallel_size: 1e9", "x: [" + "[" * 3000,
        "tensor_parallel_size: 8\nmoe_expert_parallel_size: 3", "!!python/object/apply:os.system ['id']", "{", "1: 2",
        "tensor_parallel_size: 99999999999999999999999", "tensor_parallel_size: true", "\0", "a:\n\t- b",
    ],
)  # fmt: skip
def test_hostile_files_are_refused_with_one_sentence(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    assert 10 < len(error_line(run("check", "--trtllm", file, "--llm", "qwen3-30b-a3b"))) < 400


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in (read_vllm, read_sglang, read_trtllm):
        for prefix in ("", "vllm serve m ", f"{SGLANG} "):
            with contextlib.suppress(SolverError):
                assert read(prefix + text).strategy.gpus >= 1


def test_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import subprocess

    def forbidden(*_args: object, **_options: object) -> None:
        raise AssertionError("a process was started")

    for module, name in ((os, "system"), (subprocess, "Popen"), (os, "posix_spawn"), (os, "execvp")):
        monkeypatch.setattr(module, name, forbidden)
    mark = tmp_path / "mark"
    for command in HOSTILE[:23]:
        run("check", "--vllm", command.replace("reboot", f"touch {mark}").replace("id", f"touch {mark}"))
    assert not mark.exists()


def test_check_compares_with_the_optimum() -> None:
    asked = (
        "--cluster",
        "h200x8",
        "--isl",
        "512",
        "--osl",
        "64",
        "--concurrency",
        "8",
        "--fix",
        "pp=1",
        "--max-pp",
        "1",
    )
    result = run("check", "--vllm", "vllm serve Qwen/Qwen3-30B-A3B -tp 8", "--json", *asked)
    assert result.code == 0
    answer = json.loads(result.out)
    assert answer["launch"]["strategy"]["moe_tp"] == 8
    best, mine = answer["optimum"]["metrics"], answer["evaluation"]["metrics"]
    assert answer["gain"] == pytest.approx(1 - best["request_latency_ns"] / mine["request_latency_ns"])
    assert answer["gain"] >= 0
    assert best["gpus_used"] <= 8
    shown = run("check", "--vllm", "vllm serve Qwen/Qwen3-30B-A3B -tp 8", *asked)
    assert shown.code == 0
    assert "yours" in shown.out


def test_an_unknown_llm_is_named() -> None:
    assert "--model" in error_line(run("check", "--vllm", "vllm serve nobody/knows-it"))
