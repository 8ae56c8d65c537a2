"""Rules M and U: what a GPU holds."""

from __future__ import annotations

from collections.abc import Iterator

from solver.audit.case import TOLERANCE, Case, either, is_close, size
from solver.audit.finding import Finding
from solver.audit.legality import memory_blocks
from solver.cost.ledger import stage_ledgers
from solver.cost.machine import BYTES_PER_KIB
from solver.specs.dtypes import num_bytes

LOW_USE = 0.1
"""Share of the memory below which its use is called low."""


def findings(case: Case) -> Iterator[Finding]:
    """The claimed memory per GPU against what the strategy puts there, and how much of the memory is used."""
    stated = case.claims.memory_per_gpu_bytes
    if stated is not None:
        yield from _data_parallel(case, stated)
        matches = any(is_close(stated, candidate, TOLERANCE) for candidate in _candidates(case))
        if not matches:
            yield from _sharding(case, stated)
        yield from _vocabulary(case)
        if not _counts_cache(case, stated):
            yield from _cache(case)
        yield from _total(case, stated)
    yield from _utilisation(case)


def _candidates(case: Case) -> Iterator[float]:
    """Every memory per GPU that a careful author could state."""
    for variant in case.variants:
        for vocabulary in (0.0, case.vocabulary_per_gpu, 2 * case.vocabulary_per_gpu):
            weights = case.weights_per_gpu(variant) + vocabulary
            yield weights
            for sequences in case.sequence_readings:
                for length in (case.longest, case.mean_length):
                    yield weights + case.cache_per_gpu(sequences, length)
    if case.has_times:
        for ledger in stage_ledgers(case.leaves, case.strategy, memory_blocks(case, best=False)):
            yield float(ledger.total_kib * BYTES_PER_KIB)


def _counts_cache(case: Case, stated: float) -> bool:
    """Whether the claimed memory includes the KV cache."""
    counted = case.claims.kv_cache_counted
    if counted is not None:
        return counted
    weights = max(case.weights_per_gpu(variant) for variant in case.variants) + 2 * case.vocabulary_per_gpu
    return stated > (1 + TOLERANCE) * weights


def _data_parallel(case: Case, stated: float) -> Iterator[Finding]:
    """M1: weights divided by all GPUs although replicas hold copies."""
    gpus, replicas = case.claims.num_gpus or case.strategy.gpus, case.strategy.replicas
    declared = case.claims.declared_parameters
    weights = case.claims.weight_bytes or (declared and declared * num_bytes(case.llm.dtypes.experts))
    if not weights or replicas == 1 or not is_close(stated * gpus, weights, 0.02):
        return
    yield case.find(
        "M1",
        "error",
        f"Data parallelism replicates weights, it does not shard them: {replicas} replicas hold {replicas} copies.",
        f"{size(weights)} / {gpus} GPUs = {size(weights / gpus)}; even on its own terms {size(weights)} / ({gpus} / "
        f"{replicas}) = {size(weights)} / {gpus // replicas} = {size(weights * replicas / gpus)}",
    )


def _sharding(case: Case, stated: float) -> Iterator[Finding]:
    """M2: the claimed number matches no way of adding up what a GPU holds."""
    s = case.strategy
    whole = case.attention_parameters * num_bytes(case.llm.dtypes.attention)
    parts = [
        f"attention {size(whole)} / (TP {s.attn_tp} x PP {s.pp}) = {size(case.attention_per_gpu)} on every GPU "
        f"({s.attn_dp * s.replicas} copies)"
    ]
    if case.llm.moe is not None:
        experts = either([f"{size(case.experts_per_gpu(v))} ({v.name})" for v in case.variants])
        parts.append(f"experts / (EP {s.moe_ep} x TP {s.moe_tp} x PP {s.pp}) = {experts}")
    if case.dense_per_gpu:
        parts.append(f"dense FFN and shared experts {size(case.dense_per_gpu)}")
    sums = either([f"{size(case.weights_per_gpu(v))}" for v in case.variants])
    parts.append(f"sum {sums} before embedding, LM head and KV cache")
    yield case.find(
        "M2",
        "error",
        f"{size(stated)} per GPU matches no reading of the strategy: EP does not shard attention, TP and PP do.",
        "; ".join(parts),
    )


def _vocabulary(case: Case) -> Iterator[Finding]:
    """M3: one number for all GPUs although only the first and the last stage hold the vocabulary."""
    held, pp = case.vocabulary_per_gpu, case.strategy.pp
    others = [case.weights_per_gpu(variant) for variant in case.variants]
    if case.claims.embedding_counted or pp == 1 or held < TOLERANCE * min(others):
        return
    matrix = case.llm.vocabulary_parameters * num_bytes(case.llm.dtypes.embedding)
    larger = ", more than all other weights on the GPU" if held > max(others) else ""
    yield case.find(
        "M3",
        "warning",
        f"The first stage holds the embedding and the last one the LM head, {size(held)} per GPU{larger}; "
        "the document does not mention them.",
        f"{case.llm.vocab_size} tokens x {case.llm.hidden_size} x {num_bytes(case.llm.dtypes.embedding):g} bytes = "
        f"{size(matrix)} per matrix, / TP {case.strategy.attn_tp} = {size(held)}; other weights "
        f"{either([size(other) for other in others])}",
    )


def _cache(case: Case) -> Iterator[Finding]:
    """M4: the KV cache is not counted."""
    llm, sequences = case.llm, case.num_sequences
    whole = case.cache_bytes(1, sequences, case.longest)
    weights = [case.body_bytes(variant) for variant in case.variants]
    if whole < TOLERANCE * min(weights):
        return
    token = case.cache_bytes(1, 1, 1)
    formula = f"{size(token)} per token and sequence over all layers"
    if llm.mla is None and all(layer.attention == "full" for layer in llm.layers):
        formula = (
            f"2 x {llm.num_kv_heads} KV heads x {llm.head_dim} x {num_bytes(llm.dtypes.kv):g} bytes x {llm.num_layers} "
            f"layers = {token:.0f} bytes ({token / 1024:g} KiB) per token"
        )
    largest = "the largest consumer of memory" if whole > max(weights) else "no small consumer"
    yield case.find(
        "M4",
        "error",
        f"The KV cache is not counted, but it is {largest}: {size(whole)} at full length.",
        f"{formula}; {sequences} sequences x {case.longest} tokens = {size(whole)} (mean length "
        f"{case.mean_length:.0f}: "
        f"{size(case.cache_bytes(1, sequences, case.mean_length))}); weights {either([size(w) for w in weights])}",
    )


def _total(case: Case, stated: float) -> Iterator[Finding]:
    """M5: weights and KV cache together are more than claimed."""
    weights = [case.weights_per_gpu(variant) for variant in case.variants]
    caches = [case.cache_per_gpu(sequences, case.longest) for sequences in case.sequence_readings]
    if stated >= (1 - TOLERANCE) * (min(weights) + min(caches)):
        return
    readings = "; ".join(
        f"{sequences:g} sequences x {case.longest} tokens per GPU: KV {size(cache)} + weights {size(max(weights))} = "
        f"{size(cache + max(weights))}"
        for sequences, cache in zip(case.sequence_readings, caches, strict=True)
    )
    totals = [size(cache + max(weights)) for cache in caches]
    yield case.find(
        "M5",
        "error",
        f"A GPU holds {' to '.join(totals)} of weights and KV cache at full length, not {size(stated)}"
        f"{', depending on what sequences per GPU means' if len(totals) > 1 else ''}.",
        f"{readings} (embedding, LM head, activations and reserves come on top)",
    )


def _utilisation(case: Case) -> Iterator[Finding]:
    """U1: a small share of the memory is used."""
    s, memory = case.strategy, case.problem.cluster.gpu.memory
    claimed = case.claims.memory_utilization
    whole = s.gpus * memory
    if case.needed_bytes >= LOW_USE * whole:
        return
    weights = case.claims.weight_bytes
    other = ""
    if weights is not None:
        more = weights + case.cache_bytes(1, case.num_sequences, case.longest)
        other = f", {max(1, -int(-more // memory))} with the declared {size(weights)} of weights"
    praised = claimed is not None and claimed < LOW_USE
    claim = f"A utilisation of {claimed:.3%} is waste, not efficiency" if praised else "Little of the memory is used"
    yield case.find(
        "U1",
        "warning" if praised else "note",
        f"{claim}: {case.gpus_needed} GPU{'s' if case.gpus_needed > 1 else ''} hold all weights and the KV cache of "
        "all "
        "sequences at full length.",
        f"{size(case.needed_bytes)} needed of {s.gpus} x {size(memory)} = {size(whole)} "
        f"({case.needed_bytes / whole:.3%}); {size(case.needed_bytes)} / {size(memory)} -> {case.gpus_needed} "
        f"GPUs{other}",
    )
