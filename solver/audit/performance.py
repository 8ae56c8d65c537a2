"""Rules T, R and O: latency, throughput, utilisation, advice, and the number of GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from solver.audit.case import TOLERANCE, Case, either, is_close, size
from solver.audit.finding import Finding
from solver.audit.occupancy import idle_share
from solver.cost.attention import CORE_KERNELS
from solver.cost.experts import EXPERT_KERNELS
from solver.cost.layers import Blocks, PhaseTimes
from solver.specs.dtypes import num_bytes
from solver.strategy import packing_of
from solver.units import short_ns

FEW_GPUS = 0.1
"""Share of the GPUs that suffices for the memory, below which the number of GPUs needs a reason."""


def findings(case: Case) -> Iterator[Finding]:
    """Claims about speed, and what the strategy wastes."""
    yield from _latency(case)
    yield from _throughput(case)
    yield from _mfu(case)
    yield from _bubble(case)
    yield from _slices(case)
    yield from _advice(case)
    yield from _size(case)


def _latency(case: Case) -> Iterator[Finding]:
    """T1: pipeline stages do not shorten a token's path; a factor needs a baseline."""
    c, s = case.claims, case.strategy
    false_pipeline = bool(c.pipeline_cuts_latency) and s.pp > 1
    unnamed = c.latency_reduction is not None and not c.baseline_stated
    if not (false_pipeline or unnamed):
        return
    sentences, parts = [], []
    if unnamed:
        sentences.append(f"{c.latency_reduction:g}x lower latency names no baseline.")
        degrees = (s.attn_tp, s.moe_ep, s.pp)
        if c.latency_reduction == min(degrees) > 1:
            parts.append(f"{c.latency_reduction:g} = min(TP, EP, PP) = min{degrees} is a degree, not a prediction")
    if false_pipeline:
        sentences.append("Pipeline parallelism does not shorten a token's path: it passes every layer in turn.")
        parts.append(_path(case) if case.has_times else f"{case.llm.num_layers} layers in a row, whatever PP is")
    arithmetic = "; ".join(parts) or f"{c.latency_reduction:g}x against nothing stated"
    yield case.find("T1", "error" if false_pipeline else "warning", " ".join(sentences), arithmetic)


def _path(case: Case) -> str:
    """The path of one token through all stages."""
    s, layers = case.strategy, case.llm.num_layers
    split = tuple(layers // s.pp + (stage < layers % s.pp) for stage in range(s.pp))
    blocks = Blocks(case.longest * s.batch, 10**6, split)
    times = PhaseTimes(case.leaves, s, packing_of(case.problem, s), "decode", blocks)
    stages = times.stage_times()
    hops = (s.pp - 1) * times.hop_ns + times.return_ns
    return (
        f"a token's step is the sum of the stages {' + '.join(short_ns(stage) for stage in stages)} = "
        f"{short_ns(sum(stages))}, plus {s.pp - 1} hop{'s' if s.pp > 2 else ''} and the return {short_ns(hops)}: "
        f"PP {s.pp} adds to it and takes nothing off"
    )


def _throughput(case: Case) -> Iterator[Finding]:
    """T2: more replicas, more GPUs."""
    stated, s = case.claims.throughput_increase, case.strategy
    if stated is None or case.claims.baseline_stated or s.replicas == 1 or not is_close(stated, s.replicas):
        return
    yield case.find(
        "T2",
        "warning",
        f"{stated:g}x throughput is bought with {s.replicas}x the GPUs: per GPU nothing is gained.",
        f"DP {s.replicas}: {stated:g}x tokens/s on {s.replicas} x {s.instance_gpus} = {s.gpus} GPUs = "
        f"{stated / s.replicas:.1f}x per GPU",
    )


def _mfu(case: Case) -> Iterator[Finding]:
    """T3: few rows per expert make decode a matter of bandwidth."""
    mfu, gpu, calibration = case.claims.mfu, case.problem.cluster.gpu, case.problem.calibration
    if mfu is None or case.claims.mfu_prefill_only:
        return
    dtype = case.llm.dtypes.experts if case.llm.is_moe else case.llm.dtypes.dense
    peak = case.leaves.machine.peak_flop_per_ns(dtype) * 1e9 if case.has_times else float(gpu.peak["bf16"])
    used = peak * mfu
    bandwidth = gpu.memory_bandwidth * calibration.memory_efficiency
    ridge = used / bandwidth
    rows = _rows(case)
    intensity = [2 * row / num_bytes(dtype) for row in rows]
    attainable = max(intensity) * bandwidth / peak
    if attainable > 0.5 * mfu:
        return
    flop = _step_flop(case)
    cluster = case.strategy.gpus * used
    yield case.find(
        "T3",
        "error",
        f"An MFU of {mfu:.0%} is out of reach in decode: at most {attainable:.1%} with so few rows per weight.",
        f"FFN weights see {either([f'{row:.1f}' for row in rows])} rows, so {either([f'{i:.1f}' for i in intensity])} "
        f"FLOP/B, against a ridge of {used / 1e12:g} TFLOP/s / {bandwidth / 1e12:g} TB/s = {ridge:.1f} FLOP/B; a "
        "whole decode "
        f"step of {case.num_sequences} sequences at {case.longest} tokens (LM head not counted) is {flop / 1e9:.0f} "
        "GFLOP = "
        f"{flop / cluster * 1e6:.2g} us of {case.strategy.gpus} GPUs at that rate",
    )


def _rows(case: Case) -> list[float]:
    """Rows that an active expert (or a dense FFN) sees in one decode step, per value of top-k."""
    moe = case.llm.moe
    if moe is None or not case.llm.is_moe:
        return [float(case.strategy.batch * case.problem.workload.tokens_per_step)]
    tokens = case.step_tokens
    return [tokens * k / moe.num_experts / (1 - idle_share(tokens, k, moe.num_experts)) for k in case.top_ks]


def _step_flop(case: Case) -> float:
    """FLOP of one decode step of all sequences, LM head left out."""
    llm = case.llm
    active = case.attention_parameters + case.dense_parameters
    if llm.moe is not None:
        active += llm.num_moe_layers * llm.moe.top_k * max(variant.expert_parameters for variant in case.variants)
    width = 2 * llm.head_dim if llm.mla is None else 2 * llm.mla.kv_lora_rank + llm.mla.qk_rope_head_dim
    core = 0.0
    for layer in llm.layers:
        windows = {"sliding": llm.sliding_window, "sparse": llm.indexer.top_k if llm.indexer else None}
        window = windows.get(layer.attention)
        length = 0 if layer.attention == "linear" else min(case.longest, window or case.longest)
        core += 2.0 * llm.num_heads * width * length
    return case.num_sequences * (2.0 * active + core)


def _bubble(case: Case) -> Iterator[Finding]:
    """T4: stages wait for one another when there are fewer micro-batches than stages."""
    p, m = case.strategy.pp, case.strategy.micro_batches
    if p == 1 or m >= p:
        return
    claimed = bool(case.claims.pipeline_removes_bubbles)
    idle = (p - 1) / (m + p - 1)
    more = (p - 1) / (p + p - 1)
    yield case.find(
        "T4",
        "warning" if claimed else "note",
        f"With {p} stages and {m} micro-batch{'es' if m > 1 else ''} in flight every stage idles {1 - m / p:.0%} of "
        "a decode "
        f"step{', so bubbles are not minimised' if claimed else ''}.",
        f"(p - 1) / (m + p - 1) = ({p} - 1) / ({m} + {p} - 1) = {idle:.0%} in a pipe that fills and drains; {p} "
        "micro-batches: "
        f"{more:.0%}",
    )


def _slices(case: Case) -> Iterator[Finding]:
    """T5: slices so small that reading them takes less than a launch."""
    llm, s, machine = case.llm, case.strategy, case.leaves.machine
    moe = llm.moe if llm.is_moe else None
    tp = s.attn_tp if moe is None else s.moe_tp
    width = llm.dense_width if moe is None else moe.expert_width
    whole = llm.dense_parameters * num_bytes(llm.dtypes.dense)
    if moe is not None:
        whole = max(variant.expert_parameters for variant in case.variants) * num_bytes(llm.dtypes.experts)
    read_ns = whole / tp / machine.bytes_per_ns
    if tp == 1 or read_ns >= machine.launch_ns:
        return
    reduces = 2 * llm.num_layers if s.attn_tp > 1 else 0
    collectives = reduces + (2 * llm.num_moe_layers if s.moe_ep > 1 else 0)
    dense_layers = llm.num_layers - llm.num_moe_layers
    attention = case.leaves.attention
    kernels = sum(attention.projection_kernels(layer.attention) + CORE_KERNELS for layer in llm.layers)
    kernels += llm.num_moe_layers * EXPERT_KERNELS + dense_layers * case.leaves.ffn.dense_kernels
    base = case.problem.calibration.collective_base
    claimed = bool(case.claims.tensor_parallel_cuts_latency)
    yield case.find(
        "T5",
        "warning" if claimed else "note",
        f"TP {tp} is over-sharded: reading a slice takes less time than launching the kernel that reads it.",
        f"{width} / {tp} = {width / tp:g} FFN columns and {llm.num_heads / s.attn_tp:g} heads per GPU; "
        f"{size(whole / tp)} per "
        f"{'expert ' if moe else ''}slice = {short_ns(read_ns)} read < {short_ns(machine.launch_ns)} launch; the "
        "floor is "
        f"{kernels} launches = {short_ns(kernels * machine.launch_ns)} + {collectives} small collectives = "
        f"{short_ns(collectives * base)} at least",
    )


def _advice(case: Case) -> Iterator[Finding]:
    """R1: recommendations that change nothing here."""
    s, machine, cluster = case.strategy, case.leaves.machine, case.problem.cluster
    token = case.leaves.comm.token_bytes
    payload = s.batch * case.problem.workload.tokens_per_step * token * (case.llm.moe.top_k if case.llm.moe else 1)
    link = machine.links[-1]
    wire_ns = payload / link.bytes_per_ns
    fixed_ns = link.latency_ns + case.problem.calibration.collective_base
    weights = max(case.weights_per_gpu(v) for v in case.variants) + 2 * case.vocabulary_per_gpu
    reasons = []
    for text in case.claims.recommendations:
        lower = text.lower()
        name = text.partition(":")[0]
        if "hierarchical" in lower and "reduce" in lower and s.attn_tp <= cluster.domain_gpus:
            reasons.append(f"{name!r}: TP {s.attn_tp} lies in one scale-up domain of {cluster.domain_gpus}: one level")
        if "compress" in lower and wire_ns < fixed_ns:
            reasons.append(
                f"{name!r}: {size(payload)} per rank and decode step = {short_ns(wire_ns)} on the wire against "
                f"{short_ns(fixed_ns)} "
                "of latency"
            )
        if "prefetch" in lower and "kv" not in lower and weights < (1 - TOLERANCE) * cluster.gpu.memory:
            reasons.append(f"{name!r}: all weights of a GPU, {size(weights)}, stay in its {size(cluster.gpu.memory)}")
    if reasons:
        yield case.find("R1", "warning", f"{len(reasons)} of the recommendations cannot help here.", "; ".join(reasons))


def _size(case: Case) -> Iterator[Finding]:
    """O1: a number of GPUs that no objective or constraint asks for."""
    used, needed = case.strategy.gpus, case.gpus_needed
    if needed > FEW_GPUS * used or (case.is_stated and not case.lacks("slo")):
        return
    claimed = case.is_stated
    why = "no objective, SLO or price in the document asks for them" if claimed else "memory does not ask for them"
    yield case.find(
        "O1",
        "warning" if claimed else "note",
        f"{used} GPUs are used, but {why}: any term for their cost removes most of them.",
        f"{needed} GPU{'s' if needed > 1 else ''} hold the {size(case.needed_bytes)} of weights and KV cache: "
        f"1 - {needed} / {used} = {1 - needed / used:.1%} fewer",
    )
