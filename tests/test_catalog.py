"""The catalog: every file of it loads, names and sizes are understood, mistakes are one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
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
    "deepseek-v3.2": "deepseek-ai--DeepSeek-V3.2",
    "glm-5": "zai-org--GLM-5",
    "gpt-oss-120b": "openai--gpt-oss-120b",
    "gpt-oss-20b": "openai--gpt-oss-20b",
    "kimi-k2": "moonshotai--Kimi-K2-Instruct",
    "kimi-k2.5": "moonshotai--Kimi-K2.5",
    "llama-3.1-405b": "meta-llama--Meta-Llama-3.1-405B",
    "llama-3.1-70b": "meta-llama--Meta-Llama-3.1-70B",
    "llama-3.1-8b": "meta-llama--Meta-Llama-3.1-8B",
    "llama-4-maverick": "meta-llama--Llama-4-Maverick-17B-128E-Instruct",
    "llama-4-scout": "meta-llama--Llama-4-Scout-17B-16E-Instruct",
    "minimax-m2.5": "MiniMaxAI--MiniMax-M2.5",
    "mixtral-8x22b": "mistralai--Mixtral-8x22B-v0.1",
    "mixtral-8x7b": "mistralai--Mixtral-8x7B-v0.1",
    "qwen3-235b-a22b": "Qwen--Qwen3-235B-A22B",
    "qwen3-235b-a22b-fp8": "Qwen--Qwen3-235B-A22B-FP8",
    "qwen3-30b-a3b": "Qwen--Qwen3-30B-A3B",
    "qwen3-30b-a3b-fp8": "Qwen--Qwen3-30B-A3B-FP8",
    "qwen3-32b": "Qwen--Qwen3-32B",
    "qwen3.5-397b-a17b": "Qwen--Qwen3.5-397B-A17B",
}
PUBLISHED_BILLIONS = {
    "deepseek-r1": 671,
    "deepseek-v2": 236,
    "deepseek-v2-lite": 15.7,
    "deepseek-v3": 671,
    "deepseek-v3.2": 671,
    "glm-4.5": 355,
    "glm-4.5-air": 106,
    "glm-4.6": 355,
    "glm-5": 744,
    "gpt-oss-120b": 116.8,
    "gpt-oss-20b": 20.9,
    "kimi-k2": 1030,
    "kimi-k2.5": 1030,
    "llama-2-13b": 13.0,
    "llama-2-70b": 69,
    "llama-2-7b": 6.74,
    "llama-3.1-405b": 405.9,
    "llama-3.1-70b": 70.6,
    "llama-3.1-8b": 8.03,
    "llama-3.2-1b": 1.24,
    "llama-3.2-3b": 3.21,
    "llama-4-maverick": 400,
    "llama-4-scout": 108,
    "minimax-m2.5": 229,
    "mistral-7b": 7.25,
    "mistral-small-24b": 23.6,
    "mixtral-8x22b": 140.6,
    "mixtral-8x7b": 46.7,
    "qwen2.5-32b": 32.8,
    "qwen2.5-72b": 72.7,
    "qwen2.5-7b": 7.62,
    "qwen3-0.6b": 0.6,
    "qwen3-1.7b": 1.72,
    "qwen3-14b": 14.8,
    "qwen3-235b-a22b": 235,
    "qwen3-235b-a22b-2507": 235,
    "qwen3-235b-a22b-fp8": 235,
    "qwen3-30b-a3b": 30.5,
    "qwen3-30b-a3b-2507": 30.5,
    "qwen3-30b-a3b-fp8": 30.5,
    "qwen3-32b": 32.8,
    "qwen3-4b": 4.02,
    "qwen3-4b-2507": 4.02,
    "qwen3-8b": 8.19,
    "qwen3-coder-480b-a35b": 480,
    "qwen3-next-80b-a3b": 80,
    "qwen3.5-397b-a17b": 397,
}
"""Parameters that the model cards state, in billions."""


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_every_entry_loads_under_its_own_name(kind: str, name: str) -> None:
    entry = catalog.describe(kind, name)
    assert entry.name == name
    assert entry.source
    assert entry.summary
    assert entry.text.startswith("name = ")


def test_the_promised_names_are_there() -> None:
    assert set(LLMS_FROM_CONFIGS) <= set(PUBLISHED_BILLIONS)
    assert set(PUBLISHED_BILLIONS) | {"reference", "reference-declared"} == set(catalog.names("llm"))
    nvidia = ("a100", "a100-40gb", "h100", "h200", "h800", "h20", "l40s", "rtx-pro-6000", "b200", "b300")
    racks = ("gb200-nvl72", "gb300-nvl72")
    others = ("mi300x", "mi325x", "mi355x", "ascend-910b", "reference")
    assert set(catalog.names("cluster")) == {*nvidia, *racks, *others}
    assert catalog.names("workload") == ("batch", "chat", "long-context", "reference")
    assert {"default", "reference"} <= set(catalog.names("calibration"))


@pytest.mark.parametrize(("name", "stem"), LLMS_FROM_CONFIGS.items())
def test_llm_entries_equal_their_public_config(name: str, stem: str) -> None:
    file = CONFIGS / f"{stem}_config.json"
    if not file.exists():
        pytest.skip("the public config.json files are not here")
    entry = catalog.load_llm(name)
    assert parse_config(json.loads(file.read_text()), name, entry.source) == entry


@pytest.mark.parametrize(("name", "billions"), PUBLISHED_BILLIONS.items())
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
            assert calibration.origin_of(coefficient).source
    # What is fitted says how well it predicts, but for the global file: it serves hardware that was not measured.
    provenances = {origin.provenance for origin in calibration.origins.values()}
    assert ("fitted" in provenances and name != "default") == (calibration.error is not None)
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
        ("h2000x8", "closest: h200"),
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


IDS = {
    # exact ids of published checkpoints -> entry, and attention, dense FFN and expert weights of that checkpoint
    "deepseek-ai/DeepSeek-R1": ("deepseek-r1", "fp8 fp8 fp8"),
    "deepseek-ai/DeepSeek-R1-0528": ("deepseek-r1", "fp8 fp8 fp8"),
    "deepseek-ai/DeepSeek-V3.1": ("deepseek-v3", "fp8 fp8 fp8"),
    "nvidia/DeepSeek-R1-NVFP4": ("deepseek-r1", "bf16 bf16 nvfp4"),
    "nvidia/DeepSeek-R1-0528-NVFP4-v2": ("deepseek-r1", "bf16 bf16 nvfp4"),
    "nvidia/DeepSeek-V3.1-NVFP4": ("deepseek-v3", "bf16 bf16 nvfp4"),
    "meta-llama/Llama-3.1-70B": ("llama-3.1-70b", "bf16 bf16 bf16"),
    "meta-llama/Meta-Llama-3.1-70B-Instruct": ("llama-3.1-70b", "bf16 bf16 bf16"),
    "meta-llama/Llama-3.3-70B-Instruct-FP8": ("llama-3.1-70b", "fp8 fp8 bf16"),
    "nvidia/Llama-3.1-8B-Instruct-FP8": ("llama-3.1-8b", "fp8 fp8 bf16"),
    "RedHatAI/Meta-Llama-3.1-70B-Instruct-quantized.w4a16": ("llama-3.1-70b", "int4 int4 bf16"),
    "RedHatAI/Qwen3-32B-FP8-dynamic": ("qwen3-32b", "fp8 fp8 bf16"),
    "meta-llama/Llama-2-7b-chat-hf": ("llama-2-7b", "fp16 fp16 fp16"),
    "zhipuai/GLM-5": ("glm-5", "bf16 bf16 bf16"),
    "zai-org/GLM-4.6": ("glm-4.6", "bf16 bf16 bf16"),
    "moonshotai/Kimi-K2.5": ("kimi-k2.5", "bf16 bf16 int4"),
    "nvidia/Kimi-K2.5-NVFP4": ("kimi-k2.5", "bf16 bf16 nvfp4"),
    "MiniMaxAI/MiniMax-M2": ("minimax-m2.5", "fp8 fp8 fp8"),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": ("mixtral-8x7b", "bf16 bf16 bf16"),
    "openai/gpt-oss-120b": ("gpt-oss-120b", "bf16 bf16 mxfp4"),
    "Qwen/Qwen3-32B-AWQ": ("qwen3-32b", "int4 int4 bf16"),
    "nvidia/Qwen3-32B-NVFP4": ("qwen3-32b", "nvfp4 nvfp4 bf16"),
    # an alias or entry that knows more comes before the suffix is dropped
    "Qwen/Qwen3-235B-A22B-FP8": ("qwen3-235b-a22b-fp8", "fp8 fp8 fp8"),
    "Qwen/Qwen3-235B-A22B-Instruct-2507": ("qwen3-235b-a22b-2507", "bf16 bf16 bf16"),
    "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8": ("qwen3-235b-a22b-2507", "fp8 fp8 fp8"),
}


@pytest.mark.parametrize(("name", "expected"), IDS.items())
def test_hugging_face_ids_find_their_entry(name: str, expected: tuple[str, str]) -> None:
    entry, weights = expected
    assert catalog.entry_name("llm", name) == entry
    llm = catalog.load_llm(name)
    assert f"{llm.dtypes.attention} {llm.dtypes.dense} {llm.dtypes.experts}" == weights
    assert llm.total_parameters == catalog.load_llm(entry).total_parameters
    assert catalog.describe("llm", name).text == catalog.describe("llm", entry).text


@pytest.mark.parametrize(
    "name",
    [
        "mistralai/Mistral-7B-Instruct-v0.1",  # another vocabulary than v0.3: a version is never dropped
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",  # another network
        "-fp8",
        "somewhere/else/qwen3-32b",  # a path that is not there, not an id
        "nobody/" + "x" * 10_000,
    ],
)
def test_ids_of_other_networks_stay_unknown(name: str) -> None:
    assert catalog.entry_name("llm", name) is None
    with pytest.raises(CatalogError, match="no llm"):
        catalog.load_llm(name)


def test_a_file_comes_before_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Qwen" / "Qwen3-32B").mkdir(parents=True)
    config = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2}
    (tmp_path / "Qwen" / "Qwen3-32B" / "config.json").write_text(
        json.dumps({**config, "vocab_size": 10, "intermediate_size": 16})
    )
    assert catalog.load_llm("Qwen/Qwen3-32B").num_layers == 64
    monkeypatch.chdir(tmp_path)
    assert catalog.load_llm("Qwen/Qwen3-32B").num_layers == 2


@pytest.mark.parametrize("kind", catalog.KINDS)
def test_no_two_entries_share_a_spelling(kind: str) -> None:
    spellings = []
    for name in catalog.names(kind):
        aliases = tomllib.loads(catalog.describe(kind, name).text).get("aliases", [])
        words = {alias.lower().rpartition("/")[2] for alias in aliases} | {name}
        assert all(catalog.entry_name(kind, alias) == name for alias in aliases)
        spellings.extend(sorted(words))
    assert len(spellings) == len(set(spellings))


def test_aliases_must_be_names(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(catalog.describe("llm", "llama-3.1-70b").text)
    assert catalog.load_llm(file) == catalog.load_llm("llama-3.1-70b")  # a copy of an entry may keep its aliases
    file.write_text('aliases = "x"\n' + catalog.describe("llm", "qwen3-32b").text)
    with pytest.raises(CatalogError, match="aliases must be a list of names, got 'x'"):
        catalog.load_llm(file)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("a100_sxm", "a100"),
        ("h100_sxm", "h100"),
        ("H200_SXM", "h200"),
        ("h20_sxm", "h20"),
        ("l40s", "l40s"),
        ("b200_sxm", "b200"),
        ("b300_sxm", "b300"),
        ("gb200", "gb200-nvl72"),
        ("gb300", "gb300-nvl72"),
        ("h200_sxmx4", "h200x4"),
        ("gb200x8", "gb200-nvl72x8"),
    ],
)
def test_system_names_of_the_field(alias: str, name: str) -> None:
    assert catalog.load_cluster(alias) == catalog.load_cluster(name)
    assert catalog.describe("cluster", alias).record == catalog.load_cluster(name)


@pytest.mark.parametrize(
    ("name", "gigabytes", "mebibytes"),
    [("h100", 80, 81559), ("h200", 141, 143771), ("b200", 180, 183359), ("gb200", 186, 189471), ("b300", 288, 275040)],
)
def test_memory_is_what_the_driver_reports(name: str, gigabytes: int, mebibytes: int) -> None:
    memory = catalog.load_gpu(name).memory
    assert memory == mebibytes * 2**20
    assert memory >= gigabytes * 10**9  # the label on the box counts fewer bytes


@pytest.mark.parametrize(("num_gpus", "whole"), [(1, 1), (3, 3), (8, 8), (9, 16), (12, 16), (16, 16)])
def test_whole_sizes_of_nodes(num_gpus: int, whole: int) -> None:
    cluster = catalog.load_cluster("h200")
    assert catalog.whole_size(cluster, num_gpus) == whole
    assert catalog.sized(cluster, whole).num_gpus == whole


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
    file.write_text(catalog.describe("cluster", "h200").text.replace('gpu = "h200"', 'gpu = "h2000"'))
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
