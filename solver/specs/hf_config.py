"""Hugging Face ``config.json`` -> :class:`Llm`. Knows families of networks; refuses the others by name.

Facts about the keys of each family were read from the public ``config.json`` files and the ``transformers`` library.
The raw JSON is read, never a config that ``transformers`` filled with defaults.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from solver.errors import SpecError, UnknownArchitectureError
from solver.specs.dtypes import DType
from solver.specs.files import decode, parse_json, read_bytes, shown
from solver.specs.hf_quantization import Quantisation, read_quantisation
from solver.specs.llm import AttentionKind, Dtypes, Indexer, Linear, Llm, Mla, Moe

AttentionRule = Literal["full", "window", "upper_window", "alternate", "chunked", "hybrid", "latent", "sparse"]
MoeRule = Literal["none", "all", "first_k", "step", "interleave"]
SharedRule = Literal["none", "count", "width", "implicit"]

MAX_LAYERS = 2000
NESTED = ("text_config", "llm_config", "language_config")
"""Where multimodal configs keep the text network."""

LAYERS = ("num_hidden_layers", "n_layers")
HIDDEN = ("hidden_size", "d_model")
HEADS = ("num_attention_heads", "n_heads")
KV_HEADS = ("num_key_value_heads", "n_head_kv", "num_kv_heads", "attn_config.kv_n_heads")
VOCABULARY = ("vocab_size",)
CONTEXT = ("max_position_embeddings", "max_seq_len")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "ffn_config.moe_num_experts")
# `top_k` is not an alias: in Kimi-K2.5 it is the sampling default.
TOP_K = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "ffn_config.moe_top_k")
SHARED_WIDTH = ("shared_expert_intermediate_size", "shared_intermediate_size")
MTP = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")
LATENT = ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
INDEX = ("index_topk", "index_n_heads", "index_head_dim")
LINEAR = ("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")

LAYER_TYPES: dict[str, AttentionKind] = {
    "full_attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "sliding",
    "linear_attention": "linear",
}
BASE_DTYPES: dict[str, DType] = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "bf16"}
"""Checkpoints in 32 bit are served in 16 bit."""


@dataclass(frozen=True)
class Family:
    """How the configs of one ``model_type`` are read."""

    attention: AttentionRule = "full"
    moe: MoeRule = "none"
    shared: SharedRule = "none"
    expert_width: tuple[str, ...] = ("moe_intermediate_size",)
    dense_width: tuple[str, ...] = ("intermediate_size",)
    output_gate: bool = False
    """Whether full attention has an output gate unless ``attn_output_gate`` says otherwise."""

    @property
    def is_latent(self) -> bool:
        """Whether attention is multi-head latent attention."""
        return self.attention in ("latent", "sparse")


_WIDE = ("intermediate_size",)
_DEEPSEEK = Family("latent", "first_k", "count")
_DEEPSEEK_SPARSE = Family("sparse", "first_k", "count")
_QWEN_DENSE = Family("upper_window")
_QWEN2_MOE = Family("upper_window", "step", "width")
_QWEN3_MOE = Family("upper_window", "step")
_QWEN_HYBRID = Family("hybrid", "step", "width", output_gate=True)
_LLAMA4 = Family("chunked", "interleave", "implicit", _WIDE, ("intermediate_size_mlp",))

FAMILIES: dict[str, Family] = {
    "dbrx": Family("full", "all", expert_width=("ffn_config.ffn_hidden_size",)),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v32": _DEEPSEEK_SPARSE,
    "glm4_moe": Family("full", "first_k", "count"),
    "glm_moe_dsa": _DEEPSEEK_SPARSE,
    "gpt_oss": Family("alternate", "all", expert_width=_WIDE),
    "kimi_k2": _DEEPSEEK,
    "llama": Family(),
    "llama4_text": _LLAMA4,
    "minimax_m2": Family("window", "all", "width", _WIDE),
    "mistral": Family("window"),
    "mixtral": Family("window", "all", expert_width=_WIDE),
    "olmoe": Family("full", "all", expert_width=_WIDE),
    "qwen2": _QWEN_DENSE,
    "qwen2_moe": _QWEN2_MOE,
    "qwen3": _QWEN_DENSE,
    "qwen3_5_moe_text": _QWEN_HYBRID,
    "qwen3_5_text": Family("hybrid", output_gate=True),
    "qwen3_moe": _QWEN3_MOE,
    "qwen3_next": _QWEN_HYBRID,
    "qwen3_vl_moe_text": _QWEN3_MOE,
    "qwen3_vl_text": _QWEN_DENSE,
}


class _Fields:
    """Typed access to the keys of a config, with fallbacks to the root of a nested one."""

    def __init__(self, data: Mapping[str, object], root: Mapping[str, object], where: str) -> None:
        self.data, self.root, self.where = data, root, where

    def get(self, *keys: str) -> object:
        """Value of the first key that is present and not null; a dot descends into a table."""
        for key in keys:
            value: object = self.data
            for part in key.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if value is not None:
                return value
        return None

    def inherited(self, *keys: str) -> object:
        """The same, looking at the root when the text config has none of the keys."""
        own = self.get(*keys)
        return own if own is not None else _Fields(self.root, self.root, self.where).get(*keys)

    def optional(self, *keys: str, low: int = 1, high: int = 10**9) -> int | None:
        """A whole number in [low, high], or None when absent."""
        value = self.get(*keys)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise SpecError(f"{self.where}: {keys[0]} must be a whole number from {low} to {high}, got {shown(value)}")
        return value

    def count(self, *keys: str, default: int | None = None, low: int = 1, high: int = 10**9) -> int:
        """A whole number in [low, high]; `default` when absent."""
        value = self.optional(*keys, low=low, high=high)
        if value is not None:
            return value
        if default is None:
            raise SpecError(f"{self.where}: {' | '.join(keys)} is missing")
        return default

    def flag(self, key: str, default: bool) -> bool:
        """A boolean; `default` when absent."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise SpecError(f"{self.where}: {key} must be true or false, got {shown(value)}")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers; empty when absent."""
        value = self.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in value):
            raise SpecError(f"{self.where}: {key} must be a list of whole numbers, got {shown(value)}")
        return tuple(value)

    def texts(self, key: str, length: int) -> tuple[str, ...]:
        """A list of `length` texts; empty when absent."""
        value = self.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise SpecError(f"{self.where}: {key} must be a list of texts, got {shown(value)}")
        if len(value) != length:
            raise SpecError(f"{self.where}: {key} has {len(value)} entries for {length} layers")
        return tuple(value)


def read_config(path: str | Path) -> Llm:
    """The network of a ``config.json``, or of the one in a folder.

    Raises
    ------
    UnknownArchitectureError
        The ``model_type`` is not known, or the config lacks keys that its family needs.
    SpecError
        The file cannot be read, is not JSON, or has values that make no sense.
    """
    file = Path(path)
    if os.path.isdir(file):
        file = file / "config.json"
    data = parse_json(decode(read_bytes(file), str(file)), str(file))
    if not isinstance(data, dict):
        raise SpecError(f"{file}: a config.json must hold one JSON object, got {type(data).__name__}")
    stem = file.stem.removesuffix("config").rstrip("_-.")
    name = stem or file.resolve().parent.name or "unnamed"
    return parse_config(data, name[:200], str(file))


def parse_config(data: Mapping[str, object], name: str, source: str) -> Llm:
    """The network that a parsed ``config.json`` describes; `source` names the file in messages and in the record.

    Raises
    ------
    UnknownArchitectureError, SpecError
        As :func:`read_config`.
    """
    if not isinstance(data, Mapping):
        raise SpecError(f"{source}: a config.json must hold one JSON object, got {type(data).__name__}")
    nested = next((value for key in NESTED if isinstance(value := data.get(key), Mapping) and value), None)
    fields = _Fields(data if nested is None else nested, data, source)
    family = _family(fields)
    num_layers = fields.count(*LAYERS, high=MAX_LAYERS)
    heads = fields.count(*HEADS)
    kinds, window = _attention(fields, family, num_layers)
    moe_layers = _moe_layers(fields, family, num_layers)
    moe = _moe(fields, family) if moe_layers else None
    dtypes, block, notes = _dtypes(fields, num_layers, moe_layers)
    mtp = fields.count(*MTP, default=0, low=0, high=64) if fields.flag("use_mtp", True) else 0
    tied = fields.inherited("tie_word_embeddings")
    if tied is not None and not isinstance(tied, bool):
        raise SpecError(f"{source}: tie_word_embeddings must be true or false, got {shown(tied)}")
    if family.attention == "chunked" and window is not None:
        notes = (*notes, "Chunked-attention layers are costed as sliding-window layers of the chunk size.")
    record: dict[str, object] = {
        "name": name,
        "source": source,
        "assumptions": notes,
        "num_layers": num_layers,
        "hidden_size": fields.count(*HIDDEN),
        "num_heads": heads,
        "num_kv_heads": fields.count(*KV_HEADS, default=heads),
        "head_dim": _head_dim(fields, family, heads),
        "vocab_size": fields.count(*VOCABULARY),
        "tie_embeddings": bool(tied),
        "attention_output_gate": fields.flag("attn_output_gate", family.output_gate),
        "dense_width": fields.count(*family.dense_width) if len(moe_layers) < num_layers else 0,
        "mla": _mla(fields) if family.is_latent else None,
        "indexer": _indexer(fields) if family.attention == "sparse" else None,
        "linear": _linear(fields) if "linear" in kinds else None,
        "moe": moe,
        "moe_layers": None if len(moe_layers) in (0, num_layers) else moe_layers,
        "attention_kinds": kinds,
        "sliding_window": window,
        "max_context": fields.optional(*CONTEXT),
        "num_mtp_layers": mtp,
        "dtypes": dtypes,
        "quant_block": block,
    }
    return Llm.read(record, source)


def _family(fields: _Fields) -> Family:
    """The family of the config, once every key that it needs is known to be there."""
    kind = fields.inherited("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    wanted = [LAYERS, HIDDEN, HEADS, VOCABULARY]
    if family is None:
        wanted += [EXPERTS, TOP_K]
    elif family.moe != "none":
        wanted += [EXPERTS, TOP_K, family.expert_width]
    if family is not None:
        if family.moe == "none":
            wanted.append(family.dense_width)
        if family.is_latent:
            wanted += [(key,) for key in LATENT]
        if family.attention == "sparse":
            wanted += [(key,) for key in INDEX]
        if family.attention == "hybrid":
            wanted += [(key,) for key in LINEAR]
    missing = [" | ".join(keys) for keys in wanted if fields.get(*keys) is None]
    if family is None:
        named = f"model_type {shown(kind)} is not known" if kind is not None else "model_type is missing"
        lacks = f" and the fields {', '.join(missing)} are missing" if missing else ""
        raise UnknownArchitectureError(
            f"{fields.where}: {named}{lacks}; known: {', '.join(FAMILIES)} (describe another network in a TOML file)"
        )
    if missing:
        raise UnknownArchitectureError(
            f"{fields.where}: a config of model_type {shown(kind)} needs the missing fields {', '.join(missing)}"
        )
    return family


def _head_dim(fields: _Fields, family: Family, heads: int) -> int:
    """Dimension of one query head; latent attention has its own (its ``head_dim`` key means nothing)."""
    if family.is_latent:
        return fields.count("qk_nope_head_dim") + fields.count("qk_rope_head_dim")
    own = fields.optional("head_dim")
    if own is not None:
        return own
    hidden = fields.count(*HIDDEN)
    if hidden % heads:
        raise SpecError(
            f"{fields.where}: head_dim is missing and hidden_size = {hidden} is not a multiple of "
            f"num_attention_heads = {heads}"
        )
    return hidden // heads


def _mla(fields: _Fields) -> Mla:
    return Mla(
        kv_lora_rank=fields.count("kv_lora_rank"),
        qk_rope_head_dim=fields.count("qk_rope_head_dim"),
        qk_nope_head_dim=fields.count("qk_nope_head_dim"),
        v_head_dim=fields.count("v_head_dim"),
        q_lora_rank=fields.optional("q_lora_rank"),
    )


def _indexer(fields: _Fields) -> Indexer:
    return Indexer(
        top_k=fields.count("index_topk"),
        num_heads=fields.count("index_n_heads"),
        head_dim=fields.count("index_head_dim"),
    )


def _linear(fields: _Fields) -> Linear:
    return Linear(
        num_key_heads=fields.count("linear_num_key_heads"),
        num_value_heads=fields.count("linear_num_value_heads"),
        key_head_dim=fields.count("linear_key_head_dim"),
        value_head_dim=fields.count("linear_value_head_dim"),
        conv_kernel=fields.count("linear_conv_kernel_dim", default=4),
    )


def _attention(fields: _Fields, family: Family, num_layers: int) -> tuple[tuple[AttentionKind, ...], int | None]:
    """Attention kinds as their shortest repeating pattern (empty when all are full), and the window of sliding ones."""
    layers = range(num_layers)
    window = fields.optional("sliding_window")
    kinds: list[AttentionKind] = ["full"] * num_layers
    listed = () if family.is_latent else fields.texts("layer_types", num_layers)
    if listed:
        unknown = sorted(set(listed) - LAYER_TYPES.keys())
        if unknown:
            raise UnknownArchitectureError(f"{fields.where}: layer_types has the unknown kind {shown(unknown[0])}")
        kinds = [LAYER_TYPES[text] for text in listed]
    elif family.attention == "sparse":
        kinds = ["sparse"] * num_layers
    elif family.attention == "hybrid":
        interval = fields.count("full_attention_interval", default=4)
        kinds = ["full" if (i + 1) % interval == 0 else "linear" for i in layers]
    elif family.attention == "alternate":
        kinds = ["sliding" if i % 2 == 0 else "full" for i in layers]
    elif family.attention == "window" and window is not None:
        kinds = ["sliding"] * num_layers if fields.flag("use_sliding_window", True) else kinds
    elif family.attention == "upper_window" and window is not None and fields.flag("use_sliding_window", False):
        first = fields.count("max_window_layers", default=num_layers, low=0)
        kinds = ["sliding" if i >= first else "full" for i in layers]
    elif family.attention == "chunked":
        kinds = _chunked(fields, num_layers)
    if family.attention == "chunked":
        window = fields.optional("attention_chunk_size")
    return _pattern(kinds), window if "sliding" in kinds else None


def _chunked(fields: _Fields, num_layers: int) -> list[AttentionKind]:
    """Llama 4: layers with rotary positions see one chunk, the others (every fourth by default) see everything."""
    if fields.optional("attention_chunk_size") is None:
        return ["full"] * num_layers
    rotary = fields.integers("no_rope_layers")
    if rotary and len(rotary) != num_layers:
        raise SpecError(f"{fields.where}: no_rope_layers has {len(rotary)} entries for {num_layers} layers")
    interval = fields.count("no_rope_layer_interval", default=4)
    return ["sliding" if (rotary[i] if rotary else (i + 1) % interval) else "full" for i in range(num_layers)]


def _pattern(kinds: list[AttentionKind]) -> tuple[AttentionKind, ...]:
    """The shortest prefix that, repeated, gives `kinds`; empty for full attention everywhere."""
    if set(kinds) == {"full"}:
        return ()
    size = next(p for p in range(1, len(kinds) + 1) if all(kinds[i] == kinds[i - p] for i in range(p, len(kinds))))
    return tuple(kinds[:size])


def _moe_layers(fields: _Fields, family: Family, num_layers: int) -> tuple[int, ...]:
    """0-based indices of the MoE layers."""
    layers = range(num_layers)
    if family.moe == "none":
        return ()
    if family.moe == "first_k":
        listed = fields.texts("mlp_layer_types", num_layers)
        if listed:
            return tuple(i for i in layers if listed[i] != "dense")
        first = fields.count("first_k_dense_replace", default=0, low=0)
        if isinstance(fields.get("moe_layer_freq"), list):
            marks = fields.integers("moe_layer_freq")
            if len(marks) != num_layers:
                raise SpecError(f"{fields.where}: moe_layer_freq has {len(marks)} entries for {num_layers} layers")
            return tuple(i for i in layers if i >= first and marks[i])
        every = fields.count("moe_layer_freq", default=1)
        return tuple(i for i in layers if i >= first and i % every == 0)
    if family.moe == "step":
        dense = set(fields.integers("mlp_only_layers"))
        every = fields.count("decoder_sparse_step", default=1)
        return tuple(i for i in layers if i not in dense and (i + 1) % every == 0)
    if family.moe == "interleave":
        given = fields.integers("moe_layers")
        if given:
            return tuple(sorted(set(given)))
        every = fields.count("interleave_moe_layer_step", default=1)
        return tuple(i for i in layers if (i + 1) % every == 0)
    return tuple(layers)


def _moe(fields: _Fields, family: Family) -> Moe:
    """Experts, shared experts and router groups."""
    width = fields.count(*family.expert_width)
    shared = 0
    if family.shared == "count":
        shared = width * fields.count("n_shared_experts", "num_shared_experts", default=0, low=0, high=10**4)
    elif family.shared == "width":
        shared = fields.count(*SHARED_WIDTH, default=0, low=0)
    elif family.shared == "implicit":
        shared = width
    groups = 1 if fields.get("topk_method") == "greedy" else fields.count("n_group", default=1)
    allowed = fields.count("topk_group", default=groups) if groups > 1 else 1
    record: dict[str, object] = {
        "num_experts": fields.count(*EXPERTS),
        "top_k": fields.count(*TOP_K),
        "expert_width": width,
        "shared_width": shared,
        "num_groups": groups,
        "groups_per_token": allowed,
    }
    return Moe.read(record, fields.where)


def _dtypes(
    fields: _Fields, num_layers: int, moe_layers: tuple[int, ...]
) -> tuple[Dtypes, int | None, tuple[str, ...]]:
    """Formats by part, the quantisation block that a TP slice must hold whole, and what was decided for the caller.

    Activations and the KV cache keep 16 bits, as engines do by default; tokens travel to the experts in fp8 when the
    experts are fp8 with block scales (as DeepEP is used), in 16 bits otherwise.
    """
    stated = fields.inherited("dtype", "torch_dtype")
    text = stated.removeprefix("torch.") if isinstance(stated, str) else stated
    if text is not None and (not isinstance(text, str) or text not in (*BASE_DTYPES, "auto")):
        raise SpecError(f"{fields.where}: torch_dtype {shown(stated)} is not known; known: {', '.join(BASE_DTYPES)}")
    base = BASE_DTYPES.get(str(text), "bf16")
    block = fields.inherited("quantization_config", "compression_config")
    if block is None:
        found = Quantisation(attention=base, dense=base, experts=base)
    elif isinstance(block, Mapping):
        found = read_quantisation(block, base, num_layers, moe_layers, fields.where)
    else:
        raise SpecError(f"{fields.where}: quantization_config must be a table, got {shown(block)}")
    dispatch: DType = "fp8" if moe_layers and found.block_scaled_fp8 else base
    notes = [] if found.kv else [f"The KV cache is {base}, the engines' default; the config does not state it."]
    if dispatch == "fp8":
        notes.append("Tokens are dispatched to the experts in fp8 with block scales, as the experts are stored.")
    dtypes = Dtypes(
        attention=found.attention,
        dense=found.dense,
        experts=found.experts if moe_layers else base,
        embedding=base,
        kv=found.kv or base,
        activation=base,
        dispatch=dispatch,
    )
    return dtypes, found.block, tuple(notes)
