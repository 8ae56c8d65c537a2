"""The catalog: every file of it loads, names and sizes are understood, mistakes are one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from solver.errors import CatalogError, SpecError
from solver.specs import catalog
from solver.specs.hf_config import parse_config

CONFIGS = Path(__file__).parents[1].parent / "shared" / "data" / "hf_configs"

ENTRIES = [(kind, name) for kind in catalog.KINDS for name in catalog.names(kind)]
LLMS_FROM_CONFIGS = {
    "deepseek-r1": "deepseek-ai--DeepSeek-R1",
    "deepseek-v3": "deepseek-ai--DeepSeek-V3",
    "glm-5": "zai-org--GLM-5",
    "gpt-oss-120b": "openai--gpt-oss-120b",
    "kimi-k2": "moonshotai--Kimi-K2-Instruct",
    "llama-3.1-405b": "meta-llama--Meta-Llama-3.1-405B",
    "llama-3.1-70b": "meta-llama--Meta-Llama-3.1-70B",
    "llama-4-maverick": "meta-llama--Llama-4-Maverick-17B-128E-Instruct",
    "minimax-m2.5": "MiniMaxAI--MiniMax-M2.5",
    "mixtral-8x22b": "mistralai--Mixtral-8x22B-v0.1",
    "mixtral-8x7b": "mistralai--Mixtral-8x7B-v0.1",
    "qwen3-235b-a22b": "Qwen--Qwen3-235B-A22B",
    "qwen3-30b-a3b": "Qwen--Qwen3-30B-A3B",
    "qwen3-32b": "Qwen--Qwen3-32B",
}


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_every_entry_loads_under_its_own_name(kind: str, name: str) -> None:
    entry = catalog.describe(kind, name)
    assert entry.name == name
    assert entry.source
    assert entry.summary
    assert entry.text.startswith("name = ")


def test_the_promised_names_are_there() -> None:
    assert set(LLMS_FROM_CONFIGS) | {"reference", "reference-declared"} == set(catalog.names("llm"))
    for name in ("reference", "h100", "h200", "b200", "gb200-nvl72", "h800", "a100", "mi300x", "ascend-910b"):
        assert name in catalog.names("cluster")
    assert catalog.names("workload") == ("batch", "chat", "long-context", "reference")
    assert catalog.names("calibration") == ("default", "reference")


@pytest.mark.parametrize(("name", "stem"), LLMS_FROM_CONFIGS.items())
def test_llm_entries_equal_their_public_config(name: str, stem: str) -> None:
    file = CONFIGS / f"{stem}_config.json"
    if not file.exists():
        pytest.skip("the public config.json files are not here")
    entry = catalog.load_llm(name)
    assert parse_config(json.loads(file.read_text()), name, entry.source) == entry


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("deepseek-v3", 671),
        ("deepseek-r1", 671),
        ("kimi-k2", 1030),
        ("qwen3-235b-a22b", 235),
        ("qwen3-30b-a3b", 30.5),
        ("mixtral-8x7b", 46.7),
        ("mixtral-8x22b", 140.6),
        ("gpt-oss-120b", 116.8),
        ("llama-3.1-70b", 70.6),
        ("llama-3.1-405b", 405.9),
        ("qwen3-32b", 32.8),
        ("llama-4-maverick", 400),
        ("glm-5", 744),
        ("minimax-m2.5", 229),
    ],
)
def test_parameters_agree_with_the_published_size(name: str, billions: float) -> None:
    assert catalog.load_llm(name).total_parameters == pytest.approx(billions * 1e9, rel=0.01)


def test_the_reference_hardware_is_the_documents() -> None:
    cluster = catalog.load_cluster("reference")
    assert (cluster.num_gpus, cluster.gpu.memory, cluster.gpu.memory_bandwidth) == (2048, 64 * 10**9, 18 * 10**11)
    assert cluster.gpu.peak == {"bf16": 400 * 10**12}
    assert len(cluster.assumptions) == 3
    calibration = catalog.load_calibration(cluster.calibration)
    assert (calibration.gemm_efficiency, calibration.memory_efficiency) == ({"bf16": 0.6}, 0.8)


@pytest.mark.parametrize("name", catalog.names("calibration"))
def test_every_coefficient_has_an_origin(name: str) -> None:
    calibration = catalog.load_calibration(name)
    for coefficient in type(calibration).model_fields:
        if coefficient not in ("name", "source", "origins"):
            assert calibration.origin_of(coefficient).provenance == "assumed"
    assert set(calibration.origins) - {"*"} <= set(type(calibration).model_fields)


def test_names_ignore_case() -> None:
    assert catalog.load_llm("DeepSeek-V3") == catalog.load_llm("deepseek-v3")
    assert catalog.load_cluster("H200x64").name == "h200x64"


@pytest.mark.parametrize(
    ("name", "num_gpus", "node", "domain"),
    [
        ("h200x64", 64, 8, 8),
        ("h800x144", 144, 8, 8),
        ("h200x4", 4, 4, 4),  # part of one node is a smaller node
        ("h200x1", 1, 1, 1),
        ("gb200-nvl72x72", 72, 4, 72),
        ("gb200-nvl72x36", 36, 4, 36),  # half a rack is a smaller domain
        ("gb200-nvl72x144", 144, 4, 72),
        ("mi300xx16", 16, 8, 8),  # the name itself ends with an x
        ("referencex131072", 131072, 8, 8),
    ],
)
def test_sized_clusters(name: str, num_gpus: int, node: int, domain: int) -> None:
    cluster = catalog.load_cluster(name)
    assert (cluster.name, cluster.num_gpus, cluster.gpus_per_node, cluster.scale_up_gpus) == (
        name,
        num_gpus,
        node,
        domain,
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("h200x12", "take 8 or 16"),
        ("gb200-nvl72x70", "take 68 or 72"),
        ("gb200-nvl72x76", "take 72 or 144"),
        ("h200x0", "from 1 to"),
        ("h200x99999999999", "from 1 to"),
        ("h20x8", "closest: h200"),
        ("mi300x64", "closest: mi300x"),
        ("nonsense", "known:"),
        ("", "known:"),
    ],
)
def test_impossible_clusters(name: str, words: str) -> None:
    with pytest.raises(CatalogError, match=words) as caught:
        catalog.load_cluster(name)
    assert "\n" not in str(caught.value)


def test_an_unknown_llm_names_the_closest() -> None:
    with pytest.raises(CatalogError, match="qwen3-32b"):
        catalog.load_llm("Qwen/Qwen3-32")


def test_an_unknown_kind() -> None:
    with pytest.raises(CatalogError, match="there are llm, gpu"):
        catalog.names("laptop")


def test_a_cluster_file_may_name_or_describe_its_gpu(tmp_path: Path) -> None:
    text = catalog.describe("cluster", "h200").text
    named, inlined = tmp_path / "named.toml", tmp_path / "inlined.toml"
    named.write_text(text)
    gpu = catalog.describe("gpu", "h200").text.replace("[peak]", "[gpu.peak]")
    inlined.write_text(text.replace('gpu = "h200"\n', "") + "\n[gpu]\n" + gpu)
    assert catalog.load_cluster(named) == catalog.load_cluster(inlined) == catalog.load_cluster("h200")


def test_a_cluster_file_with_an_unknown_gpu(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(catalog.describe("cluster", "h200").text.replace('gpu = "h200"', 'gpu = "h20"'))
    with pytest.raises(CatalogError, match="closest: h200"):
        catalog.load_cluster(str(file))


def test_an_llm_may_be_a_folder_with_a_config(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "vocab_size": 10,
        "intermediate_size": 16,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert catalog.load_llm(tmp_path).name == tmp_path.name
    assert catalog.load_llm(str(tmp_path / "config.json")).num_layers == 2


MALFORMED = {
    "empty": b"",
    "not-toml": b"name = ",
    "not-utf8": b'name = "\xff\xfe"',
    "json": b'{"name": "x"}',
    "nan": b"num_layers = nan",
    "huge-number": b"num_layers = 0x" + b"f" * 6000,
    "many-digits": b"num_layers = " + b"9" * 6000,
    "deep": b"a = " + b"[" * 90 + b"]" * 90,
    "very-deep": b"a = " + b"[" * 5000 + b"]" * 5000,
    "unknown-key": b'name = "x"\nsource = "y"\ncolour = "red"',
    "twice": b'name = "x"\nname = "y"',
    "too-large": b"#" * (16 * 2**20 + 1),
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize(
    "load", [catalog.load_llm, catalog.load_cluster, catalog.load_workload, catalog.load_calibration]
)
def test_malformed_files_are_one_sentence(tmp_path: Path, content: bytes, load: object) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        load(file)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="there is no file"):
        catalog.read_toml(tmp_path / "no.toml")
    with pytest.raises(CatalogError, match="is a folder"):
        catalog.read_toml(tmp_path)
    with pytest.raises(SpecError, match="there is no file"):
        catalog.load_llm(tmp_path)
    with pytest.raises(CatalogError, match="not a regular file"):
        catalog.read_toml("/dev/null")


def test_the_catalog_does_not_import_heavy_libraries() -> None:
    code = "import sys, solver.specs.catalog; assert not {'numpy', 'ortools'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
