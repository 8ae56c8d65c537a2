"""The quantisation block of a Hugging Face ``config.json``: which part of the network is stored in which format.

Rule: a format covers every linear layer of attention, dense FFN and experts, except where the block's list of
unconverted modules names one of the part's projections in more than half of the (sampled) layers; such a part keeps
16 bits. Embedding, LM head, router and norms always keep 16 bits. A record has one format per part, so mixed parts are
rounded to the majority. MXFP4 is for experts only, and its groups of 32 do not bind TP slices: engines pad them.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from solver.errors import SpecError
from solver.specs.dtypes import DType
from solver.specs.files import shown

Part = Literal["attention", "dense", "experts"]

PREFIXES = ("model.layers", "model.language_model.layers", "language_model.model.layers")
MODULES: dict[str, tuple[str, ...]] = {
    "attention": ("self_attn.q_proj", "self_attn.q_b_proj", "self_attn.qkv_proj", "self_attn.o_proj"),
    "dense": ("mlp.gate_proj", "mlp.down_proj", "mlp.gate_up_proj", "feed_forward.down_proj"),
    "shared": ("mlp.shared_experts.down_proj", "mlp.shared_expert.down_proj", "feed_forward.shared_expert.down_proj"),
    "experts": ("mlp.experts.0.down_proj", "block_sparse_moe.experts.0.w2", "feed_forward.experts.0.down_proj"),
}
"""Projections that stand for a part, by the names that checkpoints use."""

LISTS = ("modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules")
NVFP4_GROUP = 16
SAMPLED_LAYERS = 9
MAX_PATTERNS = 20_000
MAX_WILD_PATTERNS = 2_000
MAX_EXPRESSIONS = 100
METHODS = ("fp8", "fbgemm_fp8", "mxfp4", "awq", "gptq", "compressed-tensors", "modelopt")


@dataclass(frozen=True)
class Quantisation:
    """Formats by part; `block` is the edge of the weight blocks (or groups) that a TP slice must hold whole."""

    attention: DType
    dense: DType
    experts: DType
    block: int | None = None
    block_scaled_fp8: bool = False
    """Whether experts are fp8 with block scales, as DeepSeek-style checkpoints are."""
    kv: DType | None = None
    """Format of the KV cache where the checkpoint states one."""


@dataclass(frozen=True)
class _Format:
    """One weight format and the modules it is for; no targets means every linear layer."""

    dtype: DType
    block: int | None = None
    targets: tuple[str, ...] = ()
    scaled_blocks: bool = False


class _Patterns:
    """A list of module names: literal (whole name parts), with wildcards, or ``re:`` expressions."""

    def __init__(self, patterns: tuple[str, ...], where: str) -> None:
        if len(patterns) > MAX_PATTERNS:
            raise SpecError(f"{where}: the quantisation block lists {len(patterns)} modules, more than {MAX_PATTERNS}")
        if sum(pattern.startswith("re:") for pattern in patterns) > MAX_EXPRESSIONS:
            raise SpecError(f"{where}: the quantisation block has more than {MAX_EXPRESSIONS} regular expressions")
        self.literals: set[str] = set()
        self.wild: list[re.Pattern[str]] = []
        for pattern in patterns:
            text = pattern.strip(".")
            if pattern.startswith("re:"):
                self.wild.append(_expression(pattern[3:], where))
            elif any(sign in text for sign in "*?["):
                if len(text) > 200 or text.count("*") > 8:
                    raise SpecError(f"{where}: the module pattern {shown(text)} is too long")
                self.wild.extend(re.compile(fnmatch.translate(form)) for form in (text, f"{text}.*", f"*.{text}"))
            elif text:
                self.literals.add(text)
        if len(self.wild) > MAX_WILD_PATTERNS * 3:
            raise SpecError(f"{where}: the quantisation block has {len(self.wild) // 3} patterns with wildcards")

    def match(self, path: str) -> bool:
        """Whether a pattern names the module at `path` or one that contains it."""
        parts = path.split(".")
        runs = (".".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1))
        return any(run in self.literals for run in runs) or any(wild.match(path) for wild in self.wild)


def _expression(text: str, where: str) -> re.Pattern[str]:
    """A compiled ``re:`` pattern; nested or many repetitions, which could run for ever, are refused."""
    if len(text) > 200 or len(re.findall(r"[*+{]", text)) > 3 or re.search(r"\)[*+{]", text):
        raise SpecError(f"{where}: the module pattern 're:{text[:60]}' is too complex")
    try:
        return re.compile(text)
    except re.error as fault:
        raise SpecError(f"{where}: the module pattern 're:{text[:60]}' is not a regular expression: {fault}") from fault


def read_quantisation(
    block: Mapping[str, object], base: DType, num_layers: int, moe_layers: tuple[int, ...], where: str
) -> Quantisation:
    """Formats that the quantisation block gives to attention, dense FFN (with shared experts) and routed experts.

    Parameters
    ----------
    block : the value of ``quantization_config``
    base : the 16-bit type of what is not converted
    num_layers, moe_layers : number of decoder layers, 0-based indices of the MoE ones
    where : the file, for error messages

    Raises
    ------
    SpecError
        The method or format is unknown, or the block is malformed.
    """
    formats = _formats(block, where)
    skipped = _Patterns(_skipped_modules(block, where), where)
    experts_only = str(block.get("quant_method")).lower() == "mxfp4"
    used: dict[str, _Format] = {}
    for part in ("attention", "dense", "experts"):
        paths = _sample_paths(part, num_layers, moe_layers)
        if (experts_only and part != "experts") or _mostly(skipped, paths):
            continue
        for form in formats:
            if not form.targets or _mostly(_Patterns(form.targets, where), paths):
                used[part] = form
                break
    dtypes: dict[str, DType] = {part: form.dtype for part, form in used.items()}
    experts = used.get("experts")
    return Quantisation(
        attention=dtypes.get("attention", base),
        dense=dtypes.get("dense", base),
        experts=dtypes.get("experts", base),
        block=max((form.block for form in used.values() if form.block is not None), default=None),
        block_scaled_fp8=experts is not None and experts.dtype == "fp8" and experts.scaled_blocks,
        kv=_kv_format(block),
    )


def _sample_paths(part: str, num_layers: int, moe_layers: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
    """Module paths of a part, one tuple of synonyms per sampled layer."""
    moe = set(moe_layers)
    dense = tuple(i for i in range(num_layers) if i not in moe)
    wanted: list[tuple[int, str]] = []
    if part == "attention":
        wanted = [(i, "attention") for i in _spread(tuple(range(num_layers)))]
    elif part == "experts":
        wanted = [(i, "experts") for i in _spread(moe_layers)]
    elif dense:
        wanted = [(i, "dense") for i in _spread(dense)]
    else:
        wanted = [(i, "shared") for i in _spread(moe_layers)]
    return tuple(
        tuple(f"{prefix}.{layer}.{module}" for prefix in PREFIXES for module in MODULES[kind]) for layer, kind in wanted
    )


def _spread(layers: tuple[int, ...]) -> tuple[int, ...]:
    """At most nine layers, first and last included, evenly spaced."""
    if len(layers) <= SAMPLED_LAYERS:
        return layers
    return tuple(layers[i * (len(layers) - 1) // (SAMPLED_LAYERS - 1)] for i in range(SAMPLED_LAYERS))


def _mostly(patterns: _Patterns, paths: tuple[tuple[str, ...], ...]) -> bool:
    """Whether the patterns name a projection of the part in more than half of the sampled layers."""
    named = sum(any(patterns.match(path) for path in synonyms) for synonyms in paths)
    return 2 * named > len(paths)


def _skipped_modules(block: Mapping[str, object], where: str) -> tuple[str, ...]:
    """The modules that the block leaves in 16 bits."""
    found: list[str] = []
    for key in LISTS:
        value = block.get(key)
        if value is None:
            continue
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise SpecError(f"{where}: quantization_config.{key} must be a list of module names, got {shown(value)}")
        found.extend(value)
    return tuple(found)


def _formats(block: Mapping[str, object], where: str) -> tuple[_Format, ...]:
    """The weight formats of the block, in its order."""
    method = block.get("quant_method")
    name = method.lower() if isinstance(method, str) else ""
    if name in ("fp8", "fbgemm_fp8"):
        edge = _block_edge(block.get("weight_block_size"), "weight_block_size", where)
        return (_Format("fp8", edge, scaled_blocks=edge is not None),)
    if name == "mxfp4":
        return (_Format("mxfp4"),)
    if name in ("awq", "awq_marlin", "gptq", "gptq_marlin"):
        return (_Format(_integer_format(block.get("bits"), where), _group(block.get("group_size"), where)),)
    if name == "compressed-tensors" or name.startswith("modelopt"):
        groups = block.get("config_groups")
        if groups is not None:
            return _group_formats(groups, where)
        if name.startswith("modelopt"):
            return (_algorithm_format(block.get("quant_algo"), where),)
        raise SpecError(f"{where}: quantization_config of compressed-tensors lacks config_groups")
    raise SpecError(
        f"{where}: quant_method {shown(method)} is not known; known: {', '.join(METHODS)} "
        "(or delete quantization_config to cost the 16-bit network)"
    )


def _group_formats(groups: object, where: str) -> tuple[_Format, ...]:
    """Formats of the ``config_groups`` of compressed-tensors and ModelOpt."""
    if not isinstance(groups, dict) or not groups or len(groups) > 64:
        raise SpecError(f"{where}: quantization_config.config_groups must be a table of groups, got {shown(groups)}")
    formats = []
    for key, group in groups.items():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            raise SpecError(f"{where}: quantization_config.config_groups.{key[:40]} has no table of weights")
        targets = group.get("targets") or []
        if not isinstance(targets, list) or not all(isinstance(item, str) for item in targets):
            raise SpecError(f"{where}: quantization_config.config_groups.{key[:40]}.targets must be a list of names")
        everything = not targets or "Linear" in targets
        formats.append(_weights_format(weights, () if everything else tuple(targets), where))
    return tuple(formats)


def _weights_format(weights: Mapping[str, object], targets: tuple[str, ...], where: str) -> _Format:
    """Format of one ``weights`` table: number of bits, kind of number, block or group."""
    bits, kind = weights.get("num_bits"), weights.get("type")
    structure = weights.get("block_structure")
    edge = _block_edge(structure, "block_structure", where) if isinstance(structure, list) else None
    group = _group(weights.get("group_size"), where)
    if (bits, kind) == (8, "float"):
        return _Format("fp8", edge, targets, scaled_blocks=edge is not None)
    if kind == "int" and bits in (4, 8):
        return _Format("int4" if bits == 4 else "int8", group, targets)
    if (bits, kind) == (4, "float"):
        return _Format("mxfp4", None, targets) if group == 32 else _Format("nvfp4", group or NVFP4_GROUP, targets)
    raise SpecError(f"{where}: weights of {shown(bits)} bits of type {shown(kind)} are not known")


def _algorithm_format(algorithm: object, where: str) -> _Format:
    """Format of a ModelOpt ``quant_algo``."""
    name = algorithm.upper() if isinstance(algorithm, str) else ""
    if name in ("NVFP4", "NVFP4_AWQ"):
        return _Format("nvfp4", NVFP4_GROUP)
    if name.startswith("FP8"):
        return _Format("fp8")
    if name in ("W4A16", "W4A16_AWQ"):
        return _Format("int4", 128)
    raise SpecError(f"{where}: quant_algo {shown(algorithm)} is not known; known: NVFP4, FP8, W4A16_AWQ")


def _integer_format(bits: object, where: str) -> DType:
    if bits == 4:
        return "int4"
    if bits == 8:
        return "int8"
    raise SpecError(f"{where}: quantization_config.bits must be 4 or 8, got {shown(bits)}")


def _group(size: object, where: str) -> int | None:
    """Weights per scale; absent and -1 (one group per column) mean no constraint."""
    if size is None or size == -1:
        return None
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 2**20:
        raise SpecError(f"{where}: group_size of the quantisation must be a positive whole number, got {shown(size)}")
    return size


def _block_edge(shape: object, key: str, where: str) -> int | None:
    """Larger edge of a weight block given as ``[rows, columns]``."""
    if shape is None:
        return None
    edges = [n for n in shape if isinstance(n, int) and not isinstance(n, bool)] if isinstance(shape, list) else []
    if not isinstance(shape, list) or len(shape) != 2 or len(edges) != 2 or not 1 <= min(edges) <= max(edges) <= 2**20:
        raise SpecError(f"{where}: quantization_config.{key} must be two positive whole numbers, got {shown(shape)}")
    return max(edges)


def _kv_format(block: Mapping[str, object]) -> DType | None:
    """Format of the KV cache where the block states one."""
    scheme = block.get("kv_cache_scheme")
    if isinstance(scheme, dict) and (scheme.get("num_bits"), scheme.get("type")) == (8, "float"):
        return "fp8"
    return "fp8" if block.get("kv_cache_quant_algo") == "FP8" else None
