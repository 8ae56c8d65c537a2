"""Claims and facts out of a Markdown document: bold keys, tables and a few sentences that say the same."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from solver.audit.claims import Claims, Facts
from solver.audit.markdown import (
    MAX_DOCUMENT_BYTES,
    Line,
    bytes_in,
    factor_in,
    flop_in,
    is_negated,
    lines_of,
    number_in,
    parameters_in,
    rate_in,
    share_in,
)
from solver.errors import SpecError, StrategyError
from solver.specs.files import decode, read_bytes
from solver.specs.spec import one_sentence
from solver.strategy import parse_label

Value = int | float | str | bool | None
Parse = Callable[[str], float | None]


@dataclass(frozen=True)
class Entry:
    """A field and where it is read: in the value behind a key that matches."""

    field: str
    key: re.Pattern[str]
    parse: Parse
    heading: str = ""
    """Word that an enclosing heading must have."""
    whole: bool = False
    """Whether the number must be a whole one."""


def _entry(field: str, key: str, parse: Parse, heading: str = "", whole: bool = False) -> Entry:
    return Entry(field, re.compile(key), parse, heading, whole)


def _count(field: str, key: str) -> Entry:
    return _entry(field, key, number_in, whole=True)


_NUM = r"(?:num(?:ber of)? |total )?"
FACTS = (
    _count("num_layers", rf"{_NUM}(?:transformer |decoder |moe )?layers"),
    _count("num_experts", rf"{_NUM}(?:routed |moe )?experts(?: per (?:moe )?layer)?"),
    _count("top_k", r"(?:router )?top-?k|(?:active |activated )?experts per token|active experts"),
    _count("expert_width", r"(?:moe|experts?) (?:hidden|ffn|intermediate)?(?: ?(?:size|width|dimension))?"),
    _count("matrices_per_expert", r"matrices per expert"),
    _count("dense_width", r"(?:dense )?(?:ffn|intermediate|mlp)(?: hidden)? (?:size|width|dimension)"),
    _count("hidden_size", r"(?:token|hidden|model|embedding) (?:dimension|size|width)"),
    _count("num_heads", rf"{_NUM}(?:attention |query )?heads"),
    _count("num_kv_heads", rf"{_NUM}(?:kv|key-value|key/value) heads"),
    _count("head_dim", r"(?:attention )?head (?:dimension|dim|size)"),
    _count("vocab_size", r"vocab(?:ulary)?(?: size)?"),
    _count("num_gpus", r"(?:total |number of |available |cluster )?gpus"),
    _count("gpus_per_node", r"gpus per node|node size"),
    _entry("peak_flop_per_s", r"(?:.{0,20}gpu )?(?:peak )?comput.{0,20}|peak.{0,20}", flop_in),
    _entry("memory_bandwidth_bytes_per_s", r".{0,10}(?:vram|memory|hbm) bandwidth", rate_in),
    _entry("bandwidth_utilization", r".{0,10}(?:vram|memory|hbm) bandwidth", share_in),
    _entry("gpu_memory_bytes", r"(?:single |available )?gpu memory(?: capacity)?|vram(?: capacity)?|hbm", bytes_in),
    _entry("scale_up_bytes_per_s", r".{0,20}(?:nvlink|scale-up|intra-node).{0,20}", rate_in),
    _entry(
        "network_bytes_per_s", r".{0,20}(?:network|infiniband|roce|scale-out|inter-node|interconnect).{0,20}", rate_in
    ),
    _count("batch_size", r"(?:global )?batch size|concurrency|concurrent sequences"),
    _count("output_length", r"(?:output|generation)(?: sequence| token)? lengths?|output tokens|osl"),
)
CLAIMS = (
    _count("num_gpus", r"(?:total )?gpus (?:required|used|needed)"),
    _entry("declared_parameters", r"(?:total )?parameters(?: count)?|model size", parameters_in, whole=True),
    _entry("weight_bytes", r"(?:model )?weights?(?: size| memory)?", bytes_in),
    _entry("memory_per_gpu_bytes", r"memory (?:usage )?per gpu|per-gpu memory(?: usage)?", bytes_in),
    _entry("memory_utilization", r"(?:gpu )?memory (?:utilization|efficiency)", share_in),
    _entry("memory_utilization", r"utilization", share_in, "memory"),
    _entry("sequences_per_gpu", r"sequences per gpu", number_in),
    _entry("experts_per_gpu", r"experts per gpu(?: per layer)?", number_in),
    _entry("layers_per_stage", r"layers per (?:pipeline )?stage", number_in),
    _count("all_to_all_count", r"all-?to-?alls?(?: operations| calls| count)?"),
    _count("all_reduce_count", r"all-?reduces?(?: operations| calls| count)?"),
    _count("send_recv_count", r"(?:send[-/ ]?recv|point-to-point|p2p)(?: operations| transfers| count)?"),
    _entry("communication_factor", r"(?:total )?communication factor", number_in),
    _entry("latency_reduction", r".{0,20}latency (?:reduction|improvement|speed-?up)", factor_in),
    _entry("throughput_increase", r".{0,20}throughput (?:increase|improvement|gain)", factor_in),
    _entry("mfu", r"mfu.{0,20}|.{0,20}mfu", share_in),
    _count("micro_batches", r"micro-?batches"),
)

_PRODUCT = r"(?:EP|TP|PP|DP)[0-9]{1,7}"
_LABEL = re.compile(
    rf"(?<![A-Za-z0-9-])(A[0-9]{{1,8}}x[0-9]{{1,8}}-E[0-9]{{1,8}}x[0-9]{{1,8}}-PP[0-9]{{1,8}}-R[0-9]{{1,8}}"
    rf"|{_PRODUCT}(?:[-_/,+ ] ?{_PRODUCT}){{1,3}})(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"[-_/,+ ] ?(?=[A-Z])")
_WAY = re.compile(r"\((ep|tp|pp|dp)\)")
_EQUATION = re.compile(r"\b(ep|tp|pp|dp)(?: ?[x× ·]? ?(?:ep|tp|pp|dp)\b){3}")
_RESULT = re.compile(r"= ?([0-9]{1,8})(?: gpus)?$")
_RANGE = re.compile(r"([0-9]{1,8}) ?(?:-|–|to|\.\.) ?([0-9]{1,8})")
_HEADS = re.compile(r"([0-9]{1,6}) ?(?:heads?)? ?[x×] ?([0-9]{1,6})")
_TOP_K = re.compile(r"\btop-([0-9]{1,4})\b")
_DTYPE = re.compile(r"\b(fp32|bf16|fp16|fp8|int8|nvfp4|mxfp4|int4)\b")
_NAMED_PARAMETERS = re.compile(
    r"([0-9]{1,6}(?:\.[0-9]{1,3})? ?(?:B|T|billion|trillion))(?: MoE| dense)?(?:[ -]| LLM )(?:param|model)"
)
_ENGINES = {"vllm": "vllm", "sglang": "sglang", "tensorrt-llm": "trtllm", "trt-llm": "trtllm", "megatron": "megatron"}
_GOOD = re.compile(r"\b(?:perfect|perfectly|even|evenly|uniform|uniformly|balanced)\b")
_BAD = re.compile(r"\b(?:uneven|unbalanced|imbalanced|imbalance|skewed|not|never|no)\b")
_BENEFIT = re.compile(r"\b(?:minimi[sz]|reduc|cut|lower|shorten|accelerat|eliminat|improv)")
_LATENCY = re.compile(r"\blatenc|\bsequential depend|\bper-token time")
_AGAINST = re.compile(r"\b(?:versus|vs|compared|against|baseline|relative to|over)\b")
_EMBEDDING = re.compile(r"\bembeddings?\b|\blm head\b")
_SLO = re.compile(r"\bslo\b|\bservice[- ]level|\b(?:ttft|tpot|latency) (?:target|limit|below|under|<)")
MAX_RECOMMENDATIONS = 50


def read_document(path: str | Path) -> Claims:
    """Claims of a file.

    Raises
    ------
    SpecError
        The file cannot be read, is larger than 4 MiB or no text, or names no strategy.
    """
    return read_claims(decode(read_bytes(path, MAX_DOCUMENT_BYTES), str(path)), str(path))


def read_claims(text: str, source: str) -> Claims:
    """Claims and facts of a Markdown document; what it does not say stays absent.

    The first value of a key counts. Keys are read from ``- **Key**: value``, ``| Key | value |`` and ``Key: value``.

    Raises
    ------
    SpecError
        Too large, not text, no recognisable strategy label, or a number that is out of range.
    """
    lines = lines_of(text, source)
    label = _label(lines, source)
    facts = _facts(lines)
    values: dict[str, Value | tuple[str, ...] | Facts] = {
        **_entries(lines, CLAIMS),
        **_equations(lines),
        **_memory_claims(lines),
        **_balance_claims(lines),
        **_performance_claims(lines),
    }
    if "declared_parameters" not in values:
        named = (_NAMED_PARAMETERS.search(line.text) for line in lines)
        found = next((match for match in named if match is not None), None)
        if found is not None and (count := parameters_in(found[1])):
            values["declared_parameters"] = round(count)
    try:
        stated = Facts.model_validate(facts)
        return Claims.model_validate(
            {
                **values,
                "source": source,
                "label": label,
                "recommendations": _recommendations(lines),
                "engines": _engines(lines),
                "missing_inputs": _missing(lines, stated),
                "facts": stated,
            }
        )
    except ValidationError as error:
        raise SpecError(f"{source}: {one_sentence(error)}") from error


def _label(lines: Sequence[Line], source: str) -> str:
    """The strategy's label: the first in a heading, else the most frequent one, else sizes such as ``(TP): 8-way``."""
    everywhere: Counter[str] = Counter()
    for line in lines:
        for match in _LABEL.finditer(line.text):
            label = _SEPARATOR.sub("-", match[1].upper())
            label = label.replace("X", "x")
            if line.is_heading:
                return _checked(label, source)
            everywhere[label] += 1
    if everywhere:
        return _checked(max(everywhere, key=lambda name: everywhere[name]), source)
    sizes: dict[str, int] = {}
    for line in lines:
        name = _WAY.search(line.key)
        size = number_in(line.value)
        if name is not None and size is not None and size.is_integer():
            sizes.setdefault(name[1].upper(), int(size))
    if len(sizes) < 2:
        raise SpecError(f"{source} names no strategy: it has no label such as EP64-TP8-PP2-DP2 or A8x64-E8x64-PP2-R2")
    return _checked("-".join(f"{name}{size}" for name, size in sizes.items()), source)


def _checked(label: str, source: str) -> str:
    try:
        parse_label(label)
    except StrategyError as error:
        raise SpecError(f"{source}: {error}") from error
    return label


def _entries(lines: Sequence[Line], entries: Sequence[Entry]) -> dict[str, Value]:
    """The first value of every field whose key occurs."""
    values: dict[str, Value] = {}
    for line in lines:
        if not line.key or not line.value:
            continue
        for entry in entries:
            if entry.field in values or not entry.key.fullmatch(line.key) or not line.under(entry.heading):
                continue
            number = entry.parse(line.value)
            if number is None or (entry.whole and not number.is_integer()):
                continue
            values[entry.field] = int(number) if entry.whole else number
    return values


def _facts(lines: Sequence[Line]) -> dict[str, Value]:
    """Dimensions, including those that several keys or a sentence may state."""
    facts = _entries(lines, FACTS)
    facts["is_moe"] = any("expert" in line.lower or "moe" in line.lower for line in lines)
    for line in lines:
        if line.key.endswith("heads") and (match := _HEADS.search(line.value)):
            facts.setdefault("head_dim", int(match[2]))
        if re.fullmatch(r"(?:sequence|context) lengths?", line.key) and (first := number_in(line.value)) is not None:
            pair = _RANGE.search(line.value)
            facts.setdefault("sequence_min", int(pair[1]) if pair else int(first))
            facts.setdefault("sequence_max", int(pair[2]) if pair else int(first))
        if line.key in ("precision", "data type", "dtype", "weights format"):
            match = _DTYPE.search(line.value.lower())
            if match is not None:
                facts.setdefault("dtype", match[1])
        if match := _TOP_K.search(line.lower):
            facts.setdefault("top_k", int(match[1]))
    return facts


def _equations(lines: Sequence[Line]) -> dict[str, Value]:
    """How many GPUs the strategy is said to use, and whether as the product of its degrees."""
    values: dict[str, Value] = {}
    for line in lines:
        lower = line.lower
        if "unlimited" in lower and not is_negated(lower):
            values["unlimited_gpus"] = True
        if "gpu" in lower and _EQUATION.search(lower):
            values["product_equation"] = True
            if (result := _RESULT.search(lower)) is not None:
                values["num_gpus"] = int(result[1])
    return values


def _memory_claims(lines: Sequence[Line]) -> dict[str, Value]:
    """Whether the KV cache and the embedding are counted."""
    values: dict[str, Value] = {}
    for line in lines:
        if line.key in ("kv cache", "kv cache memory", "kv cache size", "kv cache per gpu"):
            values.setdefault("kv_cache_counted", bytes_in(line.value) is not None)
        if line.key not in ("embedding dimension", "embedding size") and _EMBEDDING.search(line.lower):
            values["embedding_counted"] = True
    return values


def _balance_claims(lines: Sequence[Line]) -> dict[str, Value]:
    """Balance of experts, layers, sequences and memory: claimed, denied or not mentioned."""
    values: dict[str, Value] = {}
    for line in lines:
        nearest = line.headings[-1] if line.headings else ""
        if "balanc" in line.key:
            subject = line.key
        elif "balanc" in nearest and line.key in ("status", "balance", "validation"):
            subject = nearest
        else:
            continue
        value = line.value.lower()
        if _BAD.search(value):
            balanced = False
        elif _GOOD.search(value):
            balanced = True
        else:
            continue
        for word in ("expert", "layer", "batch", "memory"):
            if word in subject:
                values.setdefault(f"{word}_balanced", balanced)
    return values


def _performance_claims(lines: Sequence[Line]) -> dict[str, Value]:
    """Claims made in sentences rather than in numbers."""
    values: dict[str, Value] = {}
    for line in lines:
        lower = line.lower
        advice = line.under("recommendation")
        if "mfu" in line.key and "prefill" in lower and "decode" not in lower:
            values["mfu_prefill_only"] = True
        if ("latency" in line.key or "throughput" in line.key) and _AGAINST.search(line.value.lower()):
            values["baseline_stated"] = True
        if "all-reduce" in line.key and ("fold" in lower or "combine" in lower):
            values["all_reduce_folded"] = True
        if line.key.endswith("readiness") or "ready for" in lower:
            values.setdefault("ready", "ready" in lower and not is_negated(lower))
        if advice or is_negated(lower) or not _BENEFIT.search(lower):
            continue
        pipeline = re.search(r"\bpp\b|\bpipeline\b", lower) or line.under("pipeline")
        if pipeline and _LATENCY.search(lower):
            values["pipeline_cuts_latency"] = True
        if "bubble" in lower:
            values["pipeline_removes_bubbles"] = True
        if re.search(r"\btp\b|\btensor parallel", lower) and _LATENCY.search(lower):
            values["tensor_parallel_cuts_latency"] = True
    return values


def _recommendations(lines: Sequence[Line]) -> tuple[str, ...]:
    """List items under headings about recommendations."""
    found = [line.text[:200] for line in lines if line.is_item and line.under("recommendation")]
    return tuple(found[:MAX_RECOMMENDATIONS])


def _engines(lines: Sequence[Line]) -> tuple[str, ...]:
    """Engines that the document names, in a fixed order."""
    named = {engine for line in lines for word, engine in _ENGINES.items() if word in line.lower}
    return tuple(sorted(named))


def _missing(lines: Sequence[Line], facts: Facts) -> tuple[str, ...]:
    """Names of the inputs that a cost needs and the document does not state."""
    links = facts.scale_up_bytes_per_s is not None and facts.network_bytes_per_s is not None
    stated = {
        "top_k": facts.top_k is not None or not facts.is_moe,
        "matrices_per_expert": facts.matrices_per_expert is not None or not facts.is_moe,
        "vocab_size": facts.vocab_size is not None,
        "num_kv_heads": facts.num_kv_heads is not None,
        "interconnect": links or facts.network_bytes_per_s is not None,
        "node_size": facts.gpus_per_node is not None,
        "output_length": facts.output_length is not None,
        "slo": any(_SLO.search(line.lower) for line in lines),
        "arrival_rate": any("arrival rate" in line.lower or "requests per second" in line.lower for line in lines),
    }
    return tuple(name for name, known in stated.items() if not known)
