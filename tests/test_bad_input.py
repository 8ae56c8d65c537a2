"""Malformed input: each ends with exit code 2 and one clear sentence, without a traceback, and changes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from solver.specs import catalog
from tests.command_line import SMALL, error_line, run

LLM = {
    "name": "own", "source": "test", "num_layers": 4, "hidden_size": 256, "num_heads": 8, "num_kv_heads": 4,
    "head_dim": 32, "vocab_size": 1000, "moe": {"num_experts": 8, "top_k": 2, "expert_width": 512},
}  # fmt: skip
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "num_experts": 128,
    "num_experts_per_tok": 8, "moe_intermediate_size": 768, "intermediate_size": 6144, "torch_dtype": "bfloat16",
    "max_position_embeddings": 40960,
}  # fmt: skip
GPU = 'name = "own"\nsource = "test"\nmemory = "80 GB"\nmemory_bandwidth = "3 TB/s"\n[peak]\nbf16 = "900 TFLOP/s"\n'
CLUSTER = (
    'name = "own"\nsource = "test"\ngpu = "h100"\nnum_gpus = 16\ngpus_per_node = 8\n'
    '[[levels]]\nname = "nvlink"\ngpus = 8\nbandwidth = "450 GB/s"\nlatency = "1 us"\nsource = "test"\n'
    '[[levels]]\nname = "network"\nbandwidth = "400 Gbit/s"\nlatency = "5 us"\nsource = "test"\n'
)
WORKLOAD = 'name = "own"\nsource = "test"\nisl = 512\nosl = 64\nconcurrency = 8\n'


def toml(record: Mapping[str, object]) -> bytes:
    """A flat record with tables as TOML."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in record.items() if not isinstance(value, dict)]
    for key, value in record.items():
        if isinstance(value, dict):
            lines += [f"[{key}]", *(f"{name} = {json.dumps(item)}" for name, item in value.items())]
    return "\n".join(lines).encode()


def test_the_files_are_good_before_they_are_spoilt(tmp_path: Path) -> None:
    """Otherwise a case below could fail for another reason than its own."""
    for name, content in (
        ("llm.toml", toml(LLM)), ("config.json", json.dumps(CONFIG).encode()), ("cluster.toml", CLUSTER.encode()),
        ("gpu.toml", GPU.encode()), ("workload.toml", WORKLOAD.encode()),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
    assert catalog.load_llm(tmp_path / "llm.toml").name == "own"
    assert catalog.load_llm(str(tmp_path / "config.json")).num_layers == 48
    assert catalog.load_cluster(tmp_path / "cluster.toml").num_gpus == 16
    assert catalog.load_gpu(tmp_path / "gpu.toml").memory == 80 * 10**9
    assert catalog.load_workload(tmp_path / "workload.toml").isl == 512


def spoilt(text: str, old: str, new: str) -> bytes:
    """`text` with one passage replaced."""
    assert old in text
    return text.replace(old, new, 1).encode()


SOLVE = ("solve", *SMALL)
QWEN = ("solve", "--llm", "qwen3-30b-a3b", "--cluster", "h200x8")

FLAGS: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown command": (("optimise",), "optimise"),
    "unknown option": (("solve", "--speed", "9"), "--speed"),
    "surplus argument": (("solve", "EP8"), "EP8"),
    "option without a value": (("solve", "--llm"), "--llm"),
    "isl not a number": (("solve", "--isl", "many"), "--isl"),
    "isl zero": (("solve", "--isl", "0"), "isl"),
    "isl negative": (("solve", "--isl", "-5"), "isl"),
    "isl huge": (("solve", "--isl", "99999999999999999999"), "isl"),
    "osl zero": (("solve", "--osl", "0"), "osl"),
    "concurrency zero": (("solve", "--concurrency", "0"), "concurrency"),
    "concurrency negative": (("solve", "--concurrency", "-1"), "--concurrency"),
    "concurrency fraction": (("solve", "--concurrency", "1.5"), "--concurrency"),
    "concurrency word": (("solve", "--concurrency", "lots"), "free"),
    "concurrency huge": (("solve", "--concurrency", "999999999"), "concurrency"),
    "prefix hit rate of one": (("solve", "--prefix-hit-rate", "1"), "prefix_hit_rate"),
    "prefix hit rate negative": (("solve", "--prefix-hit-rate", "-0.1"), "prefix_hit_rate"),
    "prefix hit rate NaN": (("solve", "--prefix-hit-rate", "nan"), "prefix_hit_rate"),
    "prompt beyond the context": ((*SOLVE, "--isl", "1000000"), "max_context"),
    "objective unknown": (("solve", "--objective", "cost"), "objective"),
    "latency weight above one": (("solve", "--objective", "weighted", "--latency-weight", "2"), "latency_weight"),
    "latency weight NaN": (("solve", "--objective", "weighted", "--latency-weight", "nan"), "latency_weight"),
    "latency weight of another objective": (("solve", "--latency-weight", "0.3"), "weighted"),
    "slo without a unit": (("solve", "--slo-tpot", "50"), "50 ms"),
    "slo with a wrong unit": (("solve", "--slo-tpot", "50 GB"), "GB"),
    "slo negative": (("solve", "--slo-ttft", "-1 s"), "negative"),
    "slo zero": (("solve", "--slo-latency", "0 s"), "request_latency"),
    "slo NaN": (("solve", "--slo-ttft", "nan s"), "nan"),
    "slo infinite": (("solve", "--slo-ttft", "1e99 s"), "1e99"),
    "gpus zero": (("solve", "--gpus", "0"), "--gpus 0"),
    "gpus negative": (("solve", "--gpus-exact", "-8"), "--gpus-exact"),
    "gpus beyond the cluster": (("solve", "--cluster", "h200x64", "--gpus", "128"), "--cluster h200x128"),
    "gpus exact beyond the cluster": (("solve", "--gpus-exact", "4096"), "--cluster referencex4096"),
    "gpus both ways": (("solve", "--gpus", "8", "--gpus-exact", "8"), "not both"),
    "engine unknown": (("solve", "--engine", "ollama"), "engine"),
    "fix without a value": (("solve", "--fix", "attn_tp"), "name=value"),
    "fix with an unknown name": (("solve", "--fix", "tp=8"), "tp"),
    "fix not a number": (("solve", "--fix", "attn_tp=eight"), "attn_tp"),
    "fix zero": (("solve", "--fix", "pp=0"), "pp"),
    "fix twice": (("solve", "--fix", "pp=1", "--fix", "pp=2"), "twice"),
    "fix an unknown mesh order": (("solve", "--fix", "mesh_order=dp-tp-pp"), "mesh_order"),
    "redundant experts negative": (("solve", "--redundant-experts", "-1"), "redundant_experts"),
    "redundant experts of a dense LLM": (
        ("solve", "--llm", "llama-3.1-70b", "--cluster", "h200x8", "--redundant-experts", "4"), "no experts",
    ),
    "reading unknown": (("solve", "--reading", "as-hoped"), "reading"),
    "reading of an LLM that declares nothing": ((*QWEN, "--reading", "as-declared"), "declared_parameters"),
    "space unknown": (("solve", "--space", "everything"), "space"),
    "max pp zero": (("solve", "--max-pp", "0"), "max_pp"),
    "time limit zero": (("solve", "--time-limit", "0"), "--time-limit"),
    "time limit NaN": (("solve", "--time-limit", "nan"), "--time-limit"),
    "workers zero": (("solve", "--workers", "0"), "--workers"),
    "seed negative": (("solve", "--seed", "-1"), "--seed"),
    "llm unknown": (("solve", "--llm", "qwen3-30b"), "qwen3-30b-a3b"),
    "llm empty": (("solve", "--llm", ""), "llm"),
    "llm is no llm but a missing file": (("solve", "--llm", "absent.toml"), "absent.toml"),
    "llm is a folder without a config": (("solve", "--llm", "."), "config.json"),
    "cluster unknown": (("solve", "--cluster", "h300"), "h"),
    "cluster of no GPUs": (("solve", "--cluster", "h200x0"), "from 1"),
    "cluster of half a node": (("solve", "--cluster", "h200x12"), "8 or 16"),
    "cluster of too many GPUs": (("solve", "--cluster", "h200x99999999999"), "number of GPUs"),
    "workload unknown": (("solve", "--workload", "talk"), "chat"),
    "calibration unknown": (("solve", "--calibration", "guess"), "default"),
    "expert loads missing": ((*SOLVE, "--expert-loads", "absent.csv"), "absent.csv"),
    "expert loads of another type": ((*SOLVE, "--expert-loads", "loads.xlsx"), ".csv"),
    "out without a folder": ((*SOLVE, "--out", "absent/plan.json"), "no folder"),
    "out is a folder": ((*SOLVE, "--out", "."), "folder"),
    "out is empty": ((*SOLVE, "--out", ""), "--out"),
    "out has a zero byte": ((*SOLVE, "--out", "a\0b"), "--out"),
    "out is a device": ((*SOLVE, "--out", os.devnull, "--force"), "regular file"),
    "no strategy": (("evaluate",), "label"),
    "label malformed": (("evaluate", "EP64TP8"), "EP64TP8"),
    "label with zero": (("evaluate", "EP0-TP8"), "EP0"),
    "label twice the same": (("evaluate", "TP8-TP8"), "TP8"),
    "label with a broken identity": (("evaluate", "A8x2-E4x8-PP1-R1"), "A8x2"),
    "label of an illegal strategy": (("evaluate", "TP3"), "[heads]"),
    "label beyond the cluster": (("evaluate", "EP64-TP8-PP2-DP200"), "[gpu-count]"),
    "label and degrees": (("evaluate", "TP8", "--strategy", "attn_tp=8"), "not both"),
    "degrees with an unknown name": (("evaluate", "--strategy", "tp=8"), "tp"),
    "degrees not a number": (("evaluate", "--strategy", "attn_tp=x"), "attn_tp"),
    "degrees without a value": (("evaluate", "--strategy", "attn_tp=8,pp="), "pp"),
    "degrees with a broken identity": (("evaluate", "--strategy", "attn_tp=8,moe_tp=4"), "identity"),
    "check label malformed": (("check", "best"), "best"),
    "check document missing": (("check", "--document", "absent.md"), "absent.md"),
    "check label and document": (("check", "TP8", "--document", "x.md"), "not both"),
    "verify without a plan": (("verify",), "PLAN.json"),
    "verify a missing plan": (("verify", "absent.json"), "absent.json"),
    "verify a folder": (("verify", "."), "folder"),
    "placement in an unknown format": (("placement", "absent.json", "--format", "yaml"), "jsonl"),
    "catalog of an unknown kind": (("catalog", "list", "engine"), "engine"),
    "catalog entry unknown": (("catalog", "show", "gpu", "h300"), "h300"),
    "catalog entry is a path": (("catalog", "show", "llm", "../llm/reference.toml"), "reference"),
    "schema without a folder": (("schema", "--out", "absent/schema.json"), "no folder"),
}  # fmt: skip

FILES: dict[str, tuple[str, bytes, tuple[str, ...], str]] = {
    "llm not TOML": ("x.toml", b"= = =", ("solve", "--llm", "x.toml"), "not TOML"),
    "llm not UTF-8": ("x.toml", b'name = "\xff\xfe"', ("solve", "--llm", "x.toml"), "UTF-8"),
    "llm empty file": ("x.toml", b"", ("solve", "--llm", "x.toml"), "missing"),
    "llm without layers": (
        "x.toml", toml({key: value for key, value in LLM.items() if key != "num_layers"}),
        ("solve", "--llm", "x.toml"), "num_layers",
    ),
    "llm with an unknown key": ("x.toml", toml({"colour": "red", **LLM}), ("solve", "--llm", "x.toml"), "colour"),
    "llm with text for a number": (
        "x.toml", toml({**LLM, "num_layers": "four"}), ("solve", "--llm", "x.toml"), "num_layers",
    ),
    "llm with more active experts than experts": (
        "x.toml", toml({**LLM, "moe": {"num_experts": 8, "top_k": 9, "expert_width": 512}}),
        ("solve", "--llm", "x.toml"), "top_k",
    ),
    "llm that contradicts itself without a reading": (
        "x.toml", toml({**LLM, "declared_parameters": 10**12}), ("solve", "--llm", "x.toml"), "reading",
    ),
    "llm with a huge number": ("x.toml", toml({**LLM, "hidden_size": 10**30}), ("solve", "--llm", "x.toml"), "2^63"),
    "llm with NaN": ("x.toml", b"num_layers = nan\n", ("solve", "--llm", "x.toml"), "finite"),
    "config not JSON": ("config.json", b"{", ("solve", "--llm", "config.json"), "JSON"),
    "config is a list": ("config.json", b"[]", ("solve", "--llm", "config.json"), "config.json"),
    "config of an unknown architecture": (
        "config.json", json.dumps({**CONFIG, "architectures": ["NovelNet"], "model_type": "novel"}).encode(),
        ("solve", "--llm", "config.json"), "ovel",
    ),
    "config without a hidden size": (
        "config.json", json.dumps({k: v for k, v in CONFIG.items() if k != "hidden_size"}).encode(),
        ("solve", "--llm", "config.json"), "hidden_size",
    ),
    "config with NaN": (
        "config.json", json.dumps(CONFIG).replace("2048", "NaN").encode(), ("solve", "--llm", "config.json"), "NaN",
    ),
    "config with a negative size": (
        "config.json", json.dumps({**CONFIG, "num_hidden_layers": -1}).encode(),
        ("solve", "--llm", "config.json"), "-1",
    ),
    "cluster without a unit": (
        "x.toml", spoilt(CLUSTER, '"450 GB/s"', "450"), ("solve", "--cluster", "x.toml"), "bandwidth",
    ),
    "cluster with an unknown unit": (
        "x.toml", spoilt(CLUSTER, "450 GB/s", "450 Gb/s"), ("solve", "--cluster", "x.toml"), "Gb/s",
    ),
    "cluster with a negative latency": (
        "x.toml", spoilt(CLUSTER, "1 us", "-1 us"), ("solve", "--cluster", "x.toml"), "negative",
    ),
    "cluster of an unknown GPU": ("x.toml", spoilt(CLUSTER, "h100", "h99"), ("solve", "--cluster", "x.toml"), "h99"),
    "cluster of a broken node": (
        "x.toml", spoilt(CLUSTER, "num_gpus = 16", "num_gpus = 12"), ("solve", "--cluster", "x.toml"), "8 or 16",
    ),
    "cluster that repeats a key": ("x.toml", (CLUSTER + CLUSTER).encode(), ("solve", "--cluster", "x.toml"), "TOML"),
    "workload without lengths": (
        "x.toml", spoilt(WORKLOAD, "isl = 512\n", ""), ("solve", "--workload", "x.toml"), "isl",
    ),
    "workload with two kinds of lengths": (
        "x.toml", (WORKLOAD + "isl_list = [1, 2]\n").encode(), ("solve", "--workload", "x.toml"), "exactly one",
    ),
    "workload with a fractional length": (
        "x.toml", spoilt(WORKLOAD, "512", "512.5"), ("solve", "--workload", "x.toml"), "isl",
    ),
    "calibration without coefficients": (
        "x.toml", b'name = "x"\nsource = "y"\n', ("solve", "--calibration", "x.toml"), "missing",
    ),
    "loads of another shape": ("x.csv", b"1,2\n3,4\n", (*SOLVE, "--expert-loads", "x.csv"), "[48, 128]"),
    "loads with text": ("x.csv", b"1,2\n3,many\n", (*SOLVE, "--expert-loads", "x.csv"), "many"),
    "loads negative": ("x.json", b"[[1, -2]]", (*SOLVE, "--expert-loads", "x.json"), "-2"),
    "loads NaN": ("x.csv", b"1,nan\n", (*SOLVE, "--expert-loads", "x.csv"), "nan"),
    "loads ragged": ("x.json", b"[[1, 2], [3]]", (*SOLVE, "--expert-loads", "x.json"), "lengths"),
    "loads all zero": (
        "x.csv", (",".join(["0"] * 128) + "\n").encode() * 48, (*SOLVE, "--expert-loads", "x.csv"), "zero",
    ),
    "loads not an array": ("x.npy", b"\x93NUMPY", (*SOLVE, "--expert-loads", "x.npy"), "NumPy"),
    "loads with no key": ("x.json", b'{"a": 1}', (*SOLVE, "--expert-loads", "x.json"), "logical_count"),
    "loads of a dense LLM": (
        "x.csv", b"1,2\n", ("solve", "--llm", "llama-3.1-70b", "--cluster", "h200x8", "--expert-loads", "x.csv"),
        "no experts",
    ),
    "out exists": ("plan.json", b"mine", (*SOLVE, "--out", "plan.json"), "--force"),
    "schema out exists": ("schema.json", b"mine", ("schema", "--out", "schema.json"), "--force"),
    "out below a file": ("plan.json", b"mine", (*SOLVE, "--out", "plan.json/x"), "--out"),
    "document without a strategy": ("x.md", b"# Hello\n", ("check", "--document", "x.md"), "strategy"),
    "document not UTF-8": ("x.md", b"\xff\xfe\x00", ("check", "--document", "x.md"), "UTF-8"),
    "document with an illegal label": ("x.md", b"# EP0-TP8 wins\n", ("check", "--document", "x.md"), "EP0-TP8"),
    "plan not JSON": ("p.json", b"{'a': 1}", ("verify", "p.json"), "p.json"),
    "plan empty": ("p.json", b"", ("verify", "p.json"), "p.json"),
    "plan is a list": ("p.json", b"[]", ("verify", "p.json"), "p.json"),
    "plan is another document": ("p.json", b'{"schema_version": "1.0"}', ("verify", "p.json"), "missing"),
    "plan not UTF-8": ("p.json", b"\xff\xfe{", ("placement", "p.json"), "UTF-8"),
    "plan nested deeply": ("p.json", b"[" * 100_000, ("placement", "p.json"), "p.json"),
}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", FLAGS)
def test_bad_flags(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, word = FLAGS[case]
    monkeypatch.chdir(tmp_path)
    sentence = error_line(run(*arguments))
    assert word in sentence
    assert len(sentence) < 600
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("case", FILES)
def test_bad_files(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, content, arguments, word = FILES[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    sentence = error_line(run(*arguments))
    assert word in sentence
    assert len(sentence) < 600
    assert contents(tmp_path) == {name: content}


# --- plan documents -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan_text() -> str:
    result = run("solve", *SMALL, "--json", "--no-progress")
    assert result.code == 0
    return result.out


PLAN_EDITS: dict[str, tuple[tuple[str | int, ...], object, str]] = {
    "another schema version": (("schema_version",), "9.0", "schema_version"),
    "an unknown status": (("status",), "CERTAIN", "status"),
    "an unknown key": (("colour",), "red", "colour"),
    "a negative metric": (("metrics", "tpot_ns"), -1, "tpot_ns"),
    "text for a metric": (("metrics", "ttft_ns"), "soon", "ttft_ns"),
    "NaN": (("metrics", "throughput_tokens_per_s"), float("nan"), "throughput_tokens_per_s"),
    "infinity": (("objective", "value"), float("inf"), "value"),
    "a degree of zero": (("strategy", "attn_tp"), 0, "attn_tp"),
    "a huge degree": (("strategy", "replicas"), 10**30, "replicas"),
    "a size without a unit": (("problem", "cluster", "gpu", "memory"), 141, "memory"),
    "no placement": (("placement",), None, "placement"),
    "a stage without layers": (("placement", "stage_layers"), [0], "stage_layers"),
    "a node without GPUs": (("placement", "gpus_per_node"), 0, "gpus_per_node"),
    "a negative expert": (("placement", "expert_maps"), [[[-1]]], "expert_maps"),
}


def edited(text: str, path: tuple[str | int, ...], value: object) -> bytes:
    """A plan document with one value replaced."""
    document = json.loads(text)
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize("command", ["verify", "placement"])
@pytest.mark.parametrize("case", PLAN_EDITS)
def test_bad_plan_documents(case: str, command: str, plan_text: str) -> None:
    path, value, word = PLAN_EDITS[case]
    assert word in error_line(run(command, "-", stdin=edited(plan_text, path, value)))


@pytest.mark.parametrize("command", ["verify", "placement"])
def test_a_truncated_plan(command: str, plan_text: str) -> None:
    assert "stdin" in error_line(run(command, "-", stdin=plan_text[: len(plan_text) // 2].encode()))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("placement", "stage_layers"), [24, 24]),
        (("placement", "map_of_layer"), [7] * 48),
        (("placement", "expert_maps"), []),
        (("placement", "bins"), [[0]]),
        (("strategy", "pp"), 2),
        (("strategy", "replicas"), 2**24),
    ],
)
def test_a_map_that_the_judge_convicts_is_not_expanded(path: tuple[str, ...], value: object, plan_text: str) -> None:
    text = edited(plan_text, path, value)
    assert "convicts" in error_line(run("placement", "-", stdin=text))
    assert run("verify", "-", stdin=text).code == 4


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    assert "not writable" in error_line(run("schema", "--out", folder / "schema.json"))
    assert contents(tmp_path) == {}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    assert "regular file" in error_line(run("solve", "--llm", tmp_path / "pipe.toml"))
    assert "regular file" in error_line(run("schema", "--out", tmp_path / "pipe.toml", "--force"))


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "large.toml"
    with open(path, "wb") as file:
        file.truncate(17 * 2**20)
    assert "MiB" in error_line(run("solve", "--llm", path))
