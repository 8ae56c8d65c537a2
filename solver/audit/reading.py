"""The problem and the strategy that a document describes; what it does not state is taken from a base and named."""

from __future__ import annotations

from collections.abc import Iterator

from solver.audit.claims import Claims
from solver.errors import SpecError
from solver.specs.calibration import Calibration
from solver.specs.catalog import sized
from solver.specs.hardware import Cluster
from solver.specs.llm import DECLARED_TOLERANCE, Llm
from solver.specs.problem import Problem
from solver.specs.workload import Workload
from solver.strategy import Strategy, parse_label

DIMENSIONS = ("num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "vocab_size")
EXPERT_DIMENSIONS = ("num_experts", "top_k", "expert_width", "matrices_per_expert")
DENSE_WIDTH_FACTOR = 4
"""FFN columns per hidden column of a dense network that states none (the original transformer's ratio)."""


def problem_of(claims: Claims, base: Problem) -> Problem:
    """The problem that a document describes: its facts over those of `base`.

    Whatever the document does not state keeps the value of `base` and is listed among the assumptions. A document that
    states no dimension of its network is about the network of `base`.

    Raises
    ------
    SpecError
        The stated facts contradict one another or are impossible; one sentence.
    """
    return Problem.read(
        {
            **base.model_dump(),
            "llm": _llm(claims, base.llm).model_dump(),
            "cluster": _cluster(claims, base.cluster).model_dump(),
            "workload": _workload(claims, base.workload).model_dump(),
            "calibration": _calibration(claims, base.calibration).model_dump(),
            "gpus_exact": None,
            "gpus_at_most": None,
        },
        claims.source,
    )


def proposed_strategy(problem: Problem, claims: Claims) -> Strategy:
    """The strategy of the document's label, with batches large enough for the workload.

    A product label is read as ``attn_tp = moe_tp = TP``, ``moe_ep = attn_dp = EP``, ``replicas = DP``; but when the
    document's GPU count is ``TP x PP x DP`` and ``EP = TP x DP``, it is in the notation of the engines: experts over
    all ranks of a stage, ``moe_tp = 1``. Claimed all-to-alls choose that exchange.

    Raises
    ------
    SpecError
        The claims have no label.
    """
    if claims.label is None:
        raise SpecError(f"{claims.source} names no strategy: give a label such as EP64-TP8-PP2-DP2")
    strategy = parse_label(claims.label)
    sizes = claims.product_degrees
    if sizes is not None and not problem.llm.is_moe and sizes["EP"] == 1:
        strategy = Strategy(attn_tp=sizes["TP"], pp=sizes["PP"], replicas=sizes["DP"])
    elif sizes is not None and claims.num_gpus is not None:
        ranks = sizes["TP"] * sizes["DP"]
        if sizes["EP"] == ranks > 1 and claims.num_gpus == ranks * sizes["PP"]:
            strategy = Strategy(attn_tp=sizes["TP"], attn_dp=sizes["DP"], moe_ep=sizes["EP"], pp=sizes["PP"])
    micro_batches = min(claims.micro_batches or 1, strategy.pp)
    groups = strategy.replicas * strategy.attn_dp * micro_batches
    batch = -(-(problem.workload.concurrency or 1) // groups)
    changes: dict[str, int | str] = {"batch": batch, "micro_batches": micro_batches}
    if claims.all_to_all_count and strategy.moe_ep > 1:
        changes |= {"decode_dispatch": "all_to_all", "prefill_dispatch": "all_to_all"}
    return Strategy.model_validate({**strategy.model_dump(), **changes})


def _unstated(what: str, value: object, base: str) -> str:
    return f"{what} = {value}, as in {base!r}: the document does not state it."


def _llm(claims: Claims, base: Llm) -> Llm:
    """The network: the document's dimensions over those of `base`."""
    facts = claims.facts
    if not any(getattr(facts, name) is not None for name in (*DIMENSIONS, *EXPERT_DIMENSIONS, "dense_width")):
        return base
    data, assumptions = base.model_dump(), list[str]()
    own = {name: getattr(facts, name) for name in DIMENSIONS}
    if own["num_kv_heads"] is None and own["num_heads"] is not None:
        data["num_kv_heads"] = own["num_heads"]
        assumptions.append(f"{own['num_heads']} KV heads, one per query head: the document does not state them.")
        own.pop("num_kv_heads")
    if own["head_dim"] is None and own["num_heads"] is not None and own["hidden_size"] is not None:
        own["head_dim"] = own["hidden_size"] // own["num_heads"] or None
    for name, value in own.items():
        if value is None:
            assumptions.append(_unstated(name, data[name], base.name))
        else:
            data[name] = value
    if facts.is_moe is False or (base.moe is None and facts.num_experts is None):
        width = facts.dense_width or DENSE_WIDTH_FACTOR * int(data["hidden_size"])
        if facts.dense_width is None:
            assumptions.append(f"dense_width = {width}, four times the hidden size: the document does not state it.")
        data.update(moe=None, moe_layers=None, dense_width=width)
    else:
        data["moe"], more = _moe(claims, base)
        assumptions += more
        if facts.num_layers is not None:
            data["moe_layers"] = None
        if facts.dense_width is not None:
            data["dense_width"] = facts.dense_width
    if facts.dtype is not None:
        data["dtypes"] = {**dict.fromkeys(data["dtypes"], facts.dtype), **_wide(facts.dtype)}
    data.update(
        name="document", source=claims.source, assumptions=(), declared_parameters=claims.declared_parameters,
        reading=None if claims.declared_parameters is None else (base.reading or "as-dimensioned"),
    )  # fmt: skip
    llm = Llm.read(data, claims.source)
    if llm.declared_gap > DECLARED_TOLERANCE:
        assumptions.append(f"The parameter count is read {llm.reading}: the document contradicts itself.")
    return Llm.read({**data, "assumptions": tuple(assumptions)}, claims.source)


def _wide(dtype: str) -> dict[str, str]:
    """Caches, activations and embeddings of an 8- or 4-bit network stay 16-bit."""
    if dtype in ("fp32", "bf16", "fp16"):
        return {}
    return dict.fromkeys(("embedding", "kv", "activation", "dispatch"), "bf16")


def _moe(claims: Claims, base: Llm) -> tuple[dict[str, object], list[str]]:
    """The experts: the document's numbers over those of `base`, and what had to be taken from there."""
    facts = claims.facts
    default: dict[str, object] = {
        "num_experts": 8, "top_k": min(2, facts.num_experts or 2), "matrices_per_expert": 3,
        "expert_width": DENSE_WIDTH_FACTOR * (facts.hidden_size or base.hidden_size),
    }  # fmt: skip
    moe = default if base.moe is None else base.moe.model_dump()
    assumptions = []
    for name in EXPERT_DIMENSIONS:
        value = getattr(facts, name)
        if value is None:
            assumptions.append(_unstated(name, moe[name], base.name))
        else:
            moe[name] = value
    if facts.num_experts is not None:
        moe.update(num_groups=1, groups_per_token=1)
    return moe, assumptions


def _cluster(claims: Claims, base: Cluster) -> Cluster:
    """The cluster: the document's numbers over those of `base`."""
    facts = claims.facts
    data = base.model_dump()
    gpu = data["gpu"]
    assumptions = []
    if facts.peak_flop_per_s is not None:
        gpu["peak"] = {unit: f"{round(facts.peak_flop_per_s)} FLOP/s" for unit in ("bf16", *gpu["peak"])}
    else:
        assumptions.append(_unstated("peak FLOP/s", ", ".join(gpu["peak"].values()), base.name))
    for key, stated in (("memory", facts.gpu_memory_bytes), ("memory_bandwidth", facts.memory_bandwidth_bytes_per_s)):
        if stated is None:
            assumptions.append(_unstated(f"GPU {key}", gpu[key], base.name))
        else:
            gpu[key] = f"{round(stated)} B" + ("/s" if key == "memory_bandwidth" else "")
    levels = data["levels"]
    if facts.gpus_per_node is None:
        assumptions.append(_unstated("gpus_per_node", base.gpus_per_node, base.name))
    else:
        data["gpus_per_node"] = facts.gpus_per_node
        if len(levels) > 1:
            levels = ({**levels[0], "gpus": facts.gpus_per_node}, levels[-1])
    for level, stated in ((levels[0], facts.scale_up_bytes_per_s), (levels[-1], facts.network_bytes_per_s)):
        if stated is None:
            assumptions.append(_unstated(f"link {level['name']!r} bandwidth", level["bandwidth"], base.name))
        else:
            level["bandwidth"] = f"{round(stated)} B/s"
    total = facts.num_gpus or claims.num_gpus or base.num_gpus
    node = facts.gpus_per_node or 1
    data.update(source=claims.source, assumptions=tuple(assumptions), levels=levels)
    if node > 1 and facts.gpus_per_node is not None:
        data["num_gpus"] = -(-total // node) * node
    cluster = Cluster.read(data, claims.source)
    return cluster if cluster.num_gpus == total else sized(cluster, total)


def _workload(claims: Claims, base: Workload) -> Workload:
    """The workload: batch and lengths of the document; sequence lengths are prompt plus output."""
    facts = claims.facts
    if facts.batch_size is None and facts.sequence_max is None and facts.output_length is None:
        return base
    data = base.model_dump()
    assumptions = []
    data["osl"] = osl = facts.output_length or base.osl
    if facts.output_length is None:
        assumptions.append(f"{osl} output tokens per request, as in {base.name!r}: the document does not state them.")
    data["concurrency"] = facts.batch_size or base.concurrency
    if facts.batch_size is None:
        assumptions.append(_unstated("concurrency", base.concurrency, base.name))
    if facts.sequence_max is not None:
        low, high = (max(1, length - osl) for length in (facts.sequence_min or facts.sequence_max, facts.sequence_max))
        data.update(isl=None, isl_list=None, isl_range={"min": low, "max": high})
        assumptions.append(f"Prompts from {low} to {high} tokens, evenly spread: stated lengths less the output.")
    elif base.isl_list is not None and data["concurrency"] != base.concurrency:
        data.update(isl=base.mean_isl, isl_list=None)
        assumptions.append(_unstated("prompt length", base.mean_isl, base.name))
    else:
        assumptions.append(_unstated("prompt lengths", f"{base.prompt_lengths[0]} to {base.longest_isl}", base.name))
    data.update(name="document", source=claims.source, assumptions=(*assumptions, *_routing(base)))
    return Workload.read(data, claims.source)


def _routing(base: Workload) -> Iterator[str]:
    if base.expert_loads is None:
        yield "Uniform routing, no prefix cache unless stated: the document states neither."


def _calibration(claims: Claims, base: Calibration) -> Calibration:
    """Efficiencies: the stated MFU and bandwidth utilisation over those of `base`."""
    data = base.model_dump()
    origins = data["origins"]
    stated = {"provenance": "assumed", "source": f"stated by {claims.source}"}
    if claims.mfu is not None:
        data["gemm_efficiency"], origins["gemm_efficiency"] = {"bf16": claims.mfu}, stated
        if not claims.mfu_prefill_only:
            data["attention_efficiency"], origins["attention_efficiency"] = claims.mfu, stated
    if claims.facts.bandwidth_utilization is not None:
        for name in ("memory_efficiency", "cache_efficiency"):
            data[name], origins[name] = claims.facts.bandwidth_utilization, stated
    return Calibration.read(data, claims.source)
