"""Hugging Face configs: real ones become the right network, hostile ones one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from solver.errors import SpecError, UnknownArchitectureError
from solver.specs.hf_config import FAMILIES, parse_config, read_config
from solver.specs.llm import Llm

SHARED = Path(__file__).parents[1].parent / "shared"
CONFIGS = sorted((SHARED / "data" / "hf_configs").glob("*.json"))
FACTS = SHARED / "launchers" / "facts" / "hf_models_extracted.json"

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "max_position_embeddings": 4096,
}
EXPERTS: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
QWEN: dict[str, Any] = {**LLAMA, **EXPERTS, "model_type": "qwen3_moe"}
DEEPSEEK: dict[str, Any] = {
    **LLAMA,
    "model_type": "deepseek_v3",
    "num_key_value_heads": 4,
    "head_dim": 7,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "num_nextn_predict_layers": 1,
}
LLAMA4: dict[str, Any] = {
    **LLAMA,
    "model_type": "llama4_text",
    "num_hidden_layers": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 1,
    "intermediate_size_mlp": 256,
    "interleave_moe_layer_step": 2,
    "attention_chunk_size": 512,
}


def parse(base: dict[str, Any], **changes: Any) -> Llm:
    return parse_config({**base, **changes}, "x", "test")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_real_configs_agree_with_the_facts(file: Path) -> None:
    llm = read_config(file)
    repo = llm.name.replace("--", "/")
    if not FACTS.exists() or repo not in (facts := json.loads(FACTS.read_text())):
        pytest.skip("no facts about this config")
    fact = facts[repo]
    assert (llm.num_layers, llm.num_heads, llm.num_kv_heads) == (fact["layers"], fact["heads"], fact["kv_heads"])
    assert (llm.hidden_size, llm.head_dim) == (fact["hidden"], fact["head_dim"])
    if fact["moe"] is None:
        assert llm.moe is None
        return
    assert llm.moe is not None
    assert (llm.moe.num_experts, llm.moe.top_k) == (fact["moe"]["experts"], fact["moe"]["top_k"])
    assert (llm.moe.expert_width, llm.num_moe_layers) == (fact["moe"]["expert_ff"], fact["moe"]["moe_layers"])
    assert llm.moe_layer_indices[0] == fact["moe"]["first_moe_layer"]
    assert llm.moe.shared_width == fact["moe"]["shared_ff"]
    assert llm.num_mtp_layers == fact["moe"]["mtp_layers"]


@pytest.mark.parametrize(
    ("stem", "billions"),
    [
        ("Qwen--Qwen3.5-397B-A17B", 397),
        ("deepseek-ai--DeepSeek-V3.2", 671),
        ("meta-llama--Llama-4-Scout-17B-16E-Instruct", 108),
        ("meta-llama--Meta-Llama-3.1-8B", 8.03),
        ("moonshotai--Kimi-K2.5", 1030),
        ("openai--gpt-oss-20b", 20.9),
    ],
)
def test_parameters_of_further_configs(stem: str, billions: float) -> None:
    file = SHARED / "data" / "hf_configs" / f"{stem}_config.json"
    if not file.exists():
        pytest.skip("the public config.json files are not here")
    assert read_config(file).total_parameters == pytest.approx(billions * 1e9, rel=0.01)


def test_dense_llama() -> None:
    llm = parse(LLAMA)
    assert (llm.num_layers, llm.head_dim, llm.dense_width, llm.moe) == (4, 16, 128, None)
    assert not llm.tie_embeddings


def test_absent_kv_heads_are_as_many_as_heads() -> None:
    assert parse(LLAMA, num_key_value_heads=None).num_kv_heads == 4


def test_window_of_qwen_needs_its_switch() -> None:
    qwen = {**LLAMA, "model_type": "qwen2", "sliding_window": 512, "max_window_layers": 2}
    assert parse(qwen).attention_kinds == ()
    assert parse(qwen, use_sliding_window=True).attention_kinds == ("full", "full", "sliding", "sliding")


def test_window_of_mistral_needs_no_switch() -> None:
    mistral = {**LLAMA, "model_type": "mistral"}
    assert parse(mistral, sliding_window=512).attention_kinds == ("sliding",)
    assert parse(mistral, sliding_window=None).sliding_window is None


def test_layer_types_become_their_shortest_pattern() -> None:
    types = ["sliding_attention", "full_attention"] * 2
    llm = parse(LLAMA, model_type="qwen3", layer_types=types, sliding_window=512)
    assert llm.attention_kinds == ("sliding", "full")


def test_sparse_steps_and_dense_exceptions_of_qwen_moe() -> None:
    # MoE where (layer + 1) % 2 == 0, except layer 3
    assert parse(QWEN, decoder_sparse_step=2, mlp_only_layers=[3]).moe_layer_indices == (1,)
    assert parse(QWEN).moe_layers is None


def test_transformers_5_renames_the_experts_of_qwen() -> None:
    assert parse({**QWEN, "num_experts": None}, num_local_experts=8) == parse(QWEN)


def test_top_k_is_the_sampling_default_not_the_router() -> None:
    llm = parse(DEEPSEEK, top_k=50)
    assert llm.moe is not None
    assert llm.moe.top_k == 2


def test_deepseek() -> None:
    llm = parse(DEEPSEEK)
    assert llm.moe is not None
    assert llm.mla is not None
    assert llm.moe_layers == (1, 2, 3)
    assert (llm.moe.shared_width, llm.moe.num_groups, llm.moe.groups_per_token) == (64, 4, 2)
    assert llm.head_dim == 24  # 16 + 8: the key head_dim = 7 means nothing here
    assert llm.mla.q_lora_rank is None
    assert llm.num_mtp_layers == 1


def test_moe_layer_frequency_as_number_and_as_list() -> None:
    assert parse(DEEPSEEK, moe_layer_freq=2).moe_layers == (2,)
    assert parse(DEEPSEEK, moe_layer_freq=[0, 1, 0, 1]).moe_layers == (1, 3)


def test_greedy_routing_ignores_groups() -> None:
    moe = parse(DEEPSEEK, topk_method="greedy").moe
    assert moe is not None
    assert moe.num_groups == 1


def test_sparse_indexer() -> None:
    llm = parse(DEEPSEEK, model_type="deepseek_v32", index_topk=64, index_n_heads=2, index_head_dim=16)
    assert llm.attention_kinds == ("sparse",)
    assert llm.indexer is not None
    assert (llm.indexer.top_k, llm.indexer.num_heads, llm.indexer.head_dim) == (64, 2, 16)


def test_llama4_chunks_three_of_four_layers_and_interleaves_experts() -> None:
    llm = parse_config({"model_type": "llama4", "text_config": LLAMA4}, "x", "test")
    assert llm.attention_kinds == ("sliding", "sliding", "sliding", "full")
    assert llm.sliding_window == 512
    assert llm.moe_layers == (1, 3, 5, 7)
    assert llm.moe is not None
    assert (llm.moe.expert_width, llm.moe.shared_width, llm.dense_width) == (128, 128, 256)


def test_llama4_may_list_its_rotary_layers() -> None:
    assert parse(LLAMA4, no_rope_layers=[1, 0] * 4).attention_kinds == ("sliding", "full")
    assert parse(LLAMA4, attention_chunk_size=None).attention_kinds == ()


def test_hybrid_layers() -> None:
    linear = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_conv_kernel_dim": 4,
    }
    llm = parse(QWEN, model_type="qwen3_next", shared_expert_intermediate_size=16, **linear)
    assert llm.attention_kinds == ("linear", "linear", "linear", "full")
    assert llm.attention_output_gate
    assert llm.moe is not None
    assert llm.moe.shared_width == 16


def test_dbrx_keeps_its_keys_elsewhere() -> None:
    dbrx = {
        "model_type": "dbrx",
        "n_layers": 40,
        "d_model": 6144,
        "n_heads": 48,
        "vocab_size": 100352,
        "max_seq_len": 32768,
        "attn_config": {"kv_n_heads": 8},
        "ffn_config": {"moe_num_experts": 16, "moe_top_k": 4, "ffn_hidden_size": 10752},
    }
    # DBRX is published with 132 B parameters
    assert parse_config(dbrx, "dbrx", "test").total_parameters == pytest.approx(132e9, rel=0.01)


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def test_block_fp8_also_dispatches_in_fp8() -> None:
    llm = parse(DEEPSEEK, quantization_config=FP8)
    assert (llm.dtypes.attention, llm.dtypes.dense, llm.dtypes.experts) == ("fp8", "fp8", "fp8")
    assert (llm.dtypes.embedding, llm.dtypes.kv, llm.dtypes.activation) == ("bf16", "bf16", "bf16")
    assert (llm.dtypes.dispatch, llm.quant_block) == ("fp8", 128)


def test_fp8_without_blocks_dispatches_in_16_bits() -> None:
    llm = parse(DEEPSEEK, quantization_config={"quant_method": "fp8"})
    assert (llm.dtypes.experts, llm.dtypes.dispatch, llm.quant_block) == ("fp8", "bf16", None)


def test_mxfp4_is_for_experts() -> None:
    llm = parse(
        LLAMA, **EXPERTS, model_type="gpt_oss", sliding_window=128, quantization_config={"quant_method": "mxfp4"}
    )
    assert (llm.dtypes.experts, llm.dtypes.attention, llm.dtypes.dense) == ("mxfp4", "bf16", "bf16")


@pytest.mark.parametrize(
    ("skipped", "attention", "experts"),
    [
        (["lm_head", "gate"], "int4", "int4"),  # a name part, not a piece of gate_proj
        (["self_attn"], "bf16", "int4"),
        ([f"model.layers.{i}.self_attn.o_proj" for i in range(4)], "bf16", "int4"),
        (["model.layers.0.self_attn.o_proj"], "int4", "int4"),  # one layer of four is not the majority
        (["model.layers.*.self_attn"], "bf16", "int4"),
        (["model.layers.*self_attn*"], "bf16", "int4"),
        (["re:.*self_attn.*", "re:.*mlp\\.(gate|up|down)_proj.*"], "bf16", "int4"),
        (["re:.*experts.*"], "int4", "bf16"),
    ],
)
def test_unconverted_modules_keep_16_bits(skipped: list[str], attention: str, experts: str) -> None:
    block = {
        "quant_method": "compressed-tensors",
        "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 32}}},
        "ignore": skipped,
    }
    llm = parse(QWEN, quantization_config=block)
    assert (llm.dtypes.attention, llm.dtypes.experts, llm.quant_block) == (attention, experts, 32)


@pytest.mark.parametrize(
    ("block", "dtype"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4"),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "int8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
        (
            {
                "quant_method": "modelopt",
                "config_groups": {"g": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}},
            },
            "nvfp4",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"num_bits": 8, "type": "int"}, "targets": ["Linear"]}},
            },
            "int8",
        ),
    ],
)
def test_formats(block: dict[str, Any], dtype: str) -> None:
    assert parse(LLAMA, quantization_config=block).dtypes.attention == dtype


def test_a_stated_kv_format_is_kept() -> None:
    block = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}
    llm = parse(LLAMA, quantization_config=block)
    assert (llm.dtypes.kv, llm.assumptions) == ("fp8", ())


def test_half_precision_checkpoints_stay_half() -> None:
    dtypes = parse(LLAMA, torch_dtype="float16").dtypes
    assert set(dtypes.model_dump().values()) == {"fp16"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**LLAMA, "model_type": "mamba"}, "'mamba'"),
        ({"model_type": "nemotron_h"}, "num_hidden_layers"),
        ({"hidden_size": 64}, "model_type is missing"),
        ({**LLAMA, "model_type": ["llama"]}, "not known"),
        ({"model_type": "llama"}, "hidden_size"),
        ({**LLAMA, "model_type": "mixtral"}, "num_local_experts"),
        ({**DEEPSEEK, "kv_lora_rank": None}, "kv_lora_rank"),
        ({**DEEPSEEK, "model_type": "deepseek_v32"}, "index_topk"),
        ({**QWEN, "model_type": "qwen3_next"}, "linear_num_key_heads"),
        ({**LLAMA, "layer_types": ["mamba"] * 4}, "mamba"),
    ],
)
def test_unknown_architectures_name_what_is_missing(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UnknownArchitectureError) as caught:
        parse_config(config, "x", "test")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_VALUES: list[Any] = [-1, 0, 1.5, "4", True, 10**12, [4], {"a": 1}, float("inf")]


@pytest.mark.parametrize("value", BAD_VALUES, ids=repr)
@pytest.mark.parametrize(
    "key", ["num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "kv_lora_rank"]
)
def test_hostile_numbers(key: str, value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        parse(DEEPSEEK, **{key: value})
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": "full_attention"},
        {"layer_types": ["full_attention"] * 3},
        {"layer_types": [1, 2, 3, 4]},
        {"tie_word_embeddings": "yes"},
        {"torch_dtype": "float3"},
        {"torch_dtype": 16},
        {"hidden_size": 63},
        {"num_key_value_heads": 3},
        {"quantization_config": "fp8"},
        {"quantization_config": {}},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128]}},
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, -1]}},
        {"quantization_config": {"quant_method": "fp8", "modules_to_not_convert": "lm_head"}},
        {"quantization_config": {"quant_method": "fp8", "modules_to_not_convert": [1]}},
        {"quantization_config": {"quant_method": "fp8", "ignore": ["re:("]}},
        {"quantization_config": {"quant_method": "fp8", "ignore": ["re:(a+)+$"]}},
        {"quantization_config": {"quant_method": "awq", "bits": 3}},
        {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 1.5}},
        {"quantization_config": {"quant_method": "compressed-tensors"}},
        {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"g": 1}}},
        {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {}}}}},
        {"quantization_config": {"quant_method": "modelopt", "quant_algo": "MIXED"}},
    ],
)
def test_hostile_values(changes: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        parse(LLAMA, **changes)
    assert "\n" not in str(caught.value)


HOSTILE = {
    "empty": b"",
    "text": b"hello",
    "list": b"[1, 2]",
    "null": b"null",
    "twice": b'{"model_type": "llama", "model_type": "qwen3"}',
    "nan": b'{"model_type": "llama", "hidden_size": NaN}',
    "infinite": b'{"model_type": "llama", "hidden_size": 1e999}',
    "many-digits": b'{"hidden_size": ' + b"9" * 6000 + b"}",
    "big-integer": b'{"hidden_size": ' + b"9" * 30 + b"}",
    "deep": b"[" * 500 + b"]" * 500,
    "very-deep": b'{"a": ' * 100_000,
    "not-utf8": b'{"model_type": "\xff"}',
    "cut": b'{"model_type": "llama", "hidden',
    "too-large": b'{"a": "' + b"x" * (17 * 2**20) + b'"}',
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        read_config(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("key", sorted(DEEPSEEK))
def test_any_key_may_be_missing(key: str) -> None:
    config = {name: value for name, value in DEEPSEEK.items() if name != key}
    try:
        parse_config(config, "x", "test")
    except SpecError as error:
        assert key in str(error)  # noqa: PT017 (either outcome is fine, a traceback is not)


def test_the_name_of_a_network_is_that_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my-llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    assert read_config(folder).name == "my-llama"
    assert read_config(folder / "config.json").name == "my-llama"


def test_families_are_sorted() -> None:
    assert list(FAMILIES) == sorted(FAMILIES)
