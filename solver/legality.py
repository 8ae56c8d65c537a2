"""Legality: the rules of strategies, each with an id, and a sentence with its numbers when it is broken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from solver.engines import (
    ENGINE_MESH,
    can_place_experts,
    can_speculate,
    exchange_switch,
    pairs_stages,
    sends_without_attention_dp,
    wants_map,
)
from solver.packing import canonical_mesh
from solver.specs.dtypes import NATIVE, WEIGHT_ONLY
from solver.specs.problem import (
    AllReduce,
    Dispatch,
    Engine,
    Phase,
    Problem,
)
from solver.strategy import (
    Strategy,
    StrategyFields,
    max_prefill_batch,
    moe_tp_is_fastest,
    new_prompt_tokens,
    num_slots,
    packing_of,
    pool_strategy,
    prefill_tokens,
)

RULES: dict[str, str] = {
    "identity": "attn_tp * attn_dp = moe_tp * moe_ep: attention and experts see the same ranks of a stage",
    "heads": "attn_tp divides the query heads",
    "kv-heads": "attn_tp and the KV heads divide one another (KV heads are replicated when attn_tp is larger)",
    "linear-heads": "attn_tp divides the value heads of linear-attention layers",
    "dense-width": "attn_tp divides the width of dense FFN layers and shared experts, in whole quantisation blocks",
    "expert-width": "moe_tp divides the expert width, in whole quantisation blocks",
    "experts": "every expert-parallel rank holds at least one expert replica",
    "redundancy": "an expert has at most one replica per rank, so replicas fit only if slots <= experts * moe_ep",
    "mesh-order": "the mesh order is the first of those that lay the ranks out alike",
    "tp-domain": "a TP group (of attention or experts) lies inside one scale-up domain unless tp_across_domains is set",
    "dense-degrees": "a dense LLM has attn_dp = moe_tp = moe_ep = 1 (use replicas instead)",
    "stages": "pp is at most the number of layers",
    "micro-batches": "micro_batches is at most pp (more only split the batch)",
    "concurrency": "the slots replicas * attn_dp * batch * micro_batches hold the asked concurrency",
    "gpu-count": "replicas * pp * G is within the GPU budget, or equals the exact number",
    "packing": "TP groups, stages and instances are packed into scale-up domains, and the domains suffice",
    "dispatch": "all_to_all needs moe_ep > 1; a stage of one rank or a dense LLM has nothing to dispatch",
    "all-reduce": "direct all-reduces need a calibration that times them (direct_sync)",
    "overlap": "two-batch overlap needs expert all_to_all and at least two tokens per rank",
    "prefill-batch": "prompts prefilled together fit the chunk budget and the slots of a rank",
    "dtype": "the GPU has the arithmetic unit of every data type",
    "memory": "every rank's ledger fits the usable memory",
    "horizon": "the model looks this far: TPOT up to 100 s, prefill passes up to 1,000 s, requests up to 100,000 s",
    "slo-ttft": "TTFT is within its SLO",
    "slo-tpot": "TPOT is within its SLO",
    "slo-request-latency": "request latency is within its SLO",
    "slo-throughput": "throughput is at least what is asked",
    "slo-efficiency": "throughput per GPU is at least what is asked",
    "pin": "a decision the caller fixed has that value",
    "engine-mesh": "the engine can launch this rank order",
    "engine-alignment": "the engine puts equally many consecutive ranks of every group on each of its nodes",
    "engine-vllm-moe": "vLLM shards experts by TP or by EP of the whole stage, never both",
    "engine-sglang-dispatch": "SGLang's all-to-all backends force ep = tp, so all_to_all needs moe_tp = 1",
    "engine-slots": "the engine needs (experts + redundant) % moe_ep = 0",
    "engine-trtllm-dp": "TensorRT-LLM's attention DP is all or nothing: attn_dp is 1 or the whole stage",
    "engine-overlap": "the engine has no two-batch overlap",
    "engine-phases": "the engine has one expert backend (SGLang also one overlap switch) for decode and prefill",
    "engine-exchange-dp": "vLLM and TensorRT-LLM exchange tokens by all-to-all only with attn_dp > 1",
    "engine-expert-map": "the engine places experts of this LLM in order and once, or needs pp = 1 to do otherwise",
    "engine-pool-stages": "vLLM moves KV cache only between pools without pipeline stages",
    "engine-speculation": "the engine drafts tokens for this LLM",
    "pool": "a pool runs one phase: the knobs of the other are the same, a prefill pool holds one batch of prompts "
    "per rank, a decode pool prefills nothing",
}


"""Every rule of legality: id -> what it demands."""


@dataclass(frozen=True)
class Violation:
    """A broken rule."""

    rule: str
    sentence: str

    def __str__(self) -> str:
        return f"[{self.rule}] {self.sentence}"


def attn_tp_violations(problem: Problem, attn_tp: int) -> Iterator[Violation]:
    """Why attention TP of this size is illegal whatever the other degrees."""
    llm = problem.llm
    if llm.num_heads % attn_tp:
        yield Violation("heads", f"attn_tp = {attn_tp} does not divide the {llm.num_heads} query heads")
    elif llm.mla is None and llm.num_kv_heads % attn_tp and attn_tp % llm.num_kv_heads:
        yield Violation(
            "kv-heads", f"attn_tp = {attn_tp} and the {llm.num_kv_heads} KV heads do not divide one another"
        )
    if llm.linear is not None and "linear" in llm.attention_kinds and llm.linear.num_value_heads % attn_tp:
        yield Violation(
            "linear-heads", f"attn_tp = {attn_tp} does not divide the {llm.linear.num_value_heads} linear value heads"
        )
    shared = 0 if llm.moe is None else llm.moe.shared_width
    block = (llm.quant_block or 1) if llm.dtypes.dense in ("fp8", "int8", "nvfp4", "mxfp4", "int4") else 1
    for what, width in (("dense FFN", llm.dense_width), ("shared-expert", shared)):
        if width % attn_tp:
            yield Violation("dense-width", f"attn_tp = {attn_tp} does not divide the {what} width {width}")
        elif width and width // attn_tp % block:
            yield Violation(
                "dense-width",
                f"attn_tp = {attn_tp} cuts the {what} width {width} into {width // attn_tp}, "
                f"not a multiple of the quantisation block {block}",
            )
    yield from _domain_violations(problem, "attn_tp", attn_tp)


def moe_tp_violations(problem: Problem, moe_tp: int) -> Iterator[Violation]:
    """Why expert TP of this size is illegal whatever the other degrees."""
    moe = problem.llm.moe
    if moe is None:
        if moe_tp != 1:
            yield Violation("dense-degrees", f"moe_tp = {moe_tp}, but {problem.llm.name} has no experts")
        return
    if moe.expert_width % moe_tp:
        yield Violation("expert-width", f"moe_tp = {moe_tp} does not divide the expert width {moe.expert_width}")
    elif problem.llm.quant_block is not None and moe.expert_width // moe_tp % problem.llm.quant_block:
        yield Violation(
            "expert-width",
            f"moe_tp = {moe_tp} cuts the expert width {moe.expert_width} into {moe.expert_width // moe_tp}, "
            f"not a multiple of the quantisation block {problem.llm.quant_block}",
        )
    yield from _domain_violations(problem, "moe_tp", moe_tp)


def moe_ep_violations(problem: Problem, moe_ep: int) -> Iterator[Violation]:
    """Why expert parallelism of this size is illegal whatever the other degrees."""
    moe, engine = problem.llm.moe, problem.engine
    if moe is None:
        if moe_ep != 1:
            yield Violation("dense-degrees", f"moe_ep = {moe_ep}, but {problem.llm.name} has no experts")
        return
    slots = num_slots(problem.llm, problem.redundant_experts)
    if moe_ep > slots:
        yield Violation("experts", f"moe_ep = {moe_ep} exceeds the {slots} expert replicas of a layer")
    if slots > moe.num_experts * moe_ep:
        yield Violation(
            "redundancy",
            f"{slots} expert replicas on moe_ep = {moe_ep} ranks: at most one replica of each of "
            f"{moe.num_experts} experts per rank is {moe.num_experts * moe_ep}",
        )
    strict = engine in ("sglang", "trtllm", "megatron") or (engine == "vllm" and wants_map(problem))
    if strict and slots % moe_ep:
        yield Violation("engine-slots", f"{engine}: {slots} expert slots do not divide by moe_ep = {moe_ep}")
    if wants_map(problem) and moe_ep > 1 and not can_place_experts(engine, problem.llm):
        yield Violation(
            "engine-expert-map",
            f"{engine} holds the experts of {problem.llm.name} in order and once, on moe_ep = {moe_ep} ranks: "
            f"no measured loads and no redundant experts ({problem.redundant_experts})",
        )


def _domain_violations(problem: Problem, name: str, size: int) -> Iterator[Violation]:
    domain = problem.cluster.domain_gpus
    if size > domain and not problem.space.tp_across_domains:
        yield Violation(
            "tp-domain",
            f"{name} = {size} exceeds the scale-up domain of {domain} GPUs (allow with tp_across_domains)",
        )


def dtype_violations(problem: Problem) -> Iterator[Violation]:
    """Data types of the LLM whose arithmetic unit the GPU lacks."""
    gpu, dtypes = problem.cluster.gpu, problem.llm.dtypes
    parts = [("attention", dtypes.attention), ("embedding", dtypes.embedding)]
    if problem.llm.num_moe_layers < problem.llm.num_layers or (problem.llm.moe and problem.llm.moe.shared_width):
        parts.append(("dense", dtypes.dense))
    if problem.llm.is_moe:
        parts.append(("experts", dtypes.experts))
    for part, dtype in parts:
        if NATIVE[dtype] not in gpu.peak and WEIGHT_ONLY.get(dtype) not in gpu.peak:
            yield Violation(
                "dtype",
                f"{part} weights are {dtype}, but {gpu.name} has no {NATIVE[dtype]} unit (only {', '.join(gpu.peak)})",
            )


def speculation_violations(problem: Problem) -> Iterator[Violation]:
    """Why the engine cannot draft tokens as the workload says."""
    drafts = problem.workload.speculative
    if drafts is not None and problem.engine != "any" and not can_speculate(problem.engine, problem.llm):
        yield Violation(
            "engine-speculation",
            f"the workload drafts {drafts.draft} tokens a step; {problem.engine} does so from multi-token-prediction "
            f"layers, of which {problem.llm.name} has {problem.llm.num_mtp_layers} (supported by vllm and sglang)",
        )


def all_reduce_violations(problem: Problem, decode: AllReduce | None, prefill: AllReduce | None) -> Iterator[Violation]:
    """All-reduces of the phases that the calibration does not time."""
    phases: tuple[tuple[Phase, AllReduce | None], ...] = (("decode", decode), ("prefill", prefill))
    for phase, algorithm in phases:
        if algorithm == "direct" and problem.runs(phase) and problem.calibration.direct_sync is None:
            name = problem.calibration.name
            yield Violation("all-reduce", f"{phase}_allreduce = direct, but calibration {name!r} has no direct_sync")


def violations(problem: Problem, strategy: Strategy) -> list[Violation]:
    """Every broken rule of a strategy, memory and SLOs excepted (they need the cost model)."""
    found = [
        *dtype_violations(problem),
        *speculation_violations(problem),
        *attn_tp_violations(problem, strategy.attn_tp),
        *moe_tp_violations(problem, strategy.moe_tp),
        *moe_ep_violations(problem, strategy.moe_ep),
        *_shape_violations(problem, strategy),
        *_packing_violations(problem, strategy),
        *_knob_violations(problem, strategy),
        *engine_violations(problem, strategy),
    ]
    if strategy != pool_strategy(problem, strategy):
        found.append(Violation("pool", _pool_sentence(problem, strategy)))
    for name, value in problem.pins.given().items():
        chosen = getattr(strategy, name)
        if name == "mesh_order" and chosen == canonical_mesh(
            problem.pins.mesh_order or "tp-dp-pp", strategy.attn_tp, strategy.attn_dp, strategy.pp
        ):
            continue
        if chosen != value:
            found.append(Violation("pin", f"{name} = {chosen}, but the caller fixed {value}"))
    return found


def _pool_sentence(problem: Problem, strategy: Strategy) -> str:
    wanted = pool_strategy(problem, strategy)
    differing = ", ".join(
        f"{name} = {getattr(strategy, name)} instead of {getattr(wanted, name)}"
        for name in StrategyFields.model_fields
        if getattr(strategy, name) != getattr(wanted, name)
    )
    return f"in a {problem.role} pool: {differing}"


def _shape_violations(problem: Problem, strategy: Strategy) -> Iterator[Violation]:
    llm = problem.llm
    if not llm.is_moe and strategy.attn_dp != 1:
        yield Violation(
            "dense-degrees", f"attn_dp = {strategy.attn_dp} on a dense LLM; use replicas = {strategy.attn_dp} instead"
        )
    if llm.is_moe and strategy.stage_gpus != strategy.moe_tp * strategy.moe_ep:
        yield Violation(
            "identity",
            f"attn_tp * attn_dp = {strategy.attn_tp} * {strategy.attn_dp} = {strategy.stage_gpus} ranks, but "
            f"moe_tp * moe_ep = {strategy.moe_tp} * {strategy.moe_ep} = {strategy.moe_tp * strategy.moe_ep}",
        )
    if strategy.pp > llm.num_layers:
        yield Violation("stages", f"pp = {strategy.pp} exceeds the {llm.num_layers} layers")
    if strategy.micro_batches > strategy.pp:
        yield Violation("micro-batches", f"micro_batches = {strategy.micro_batches} exceeds pp = {strategy.pp}")
    concurrency = problem.workload.concurrency
    if concurrency is not None and strategy.slots < concurrency:
        yield Violation(
            "concurrency",
            f"replicas * attn_dp * micro_batches * batch = {strategy.replicas} * {strategy.attn_dp} * "
            f"{strategy.micro_batches} * {strategy.batch} = {strategy.slots} slots for {concurrency} sequences",
        )
    budget = problem.gpu_budget
    if strategy.gpus > budget or (problem.gpus_exact is not None and strategy.gpus != budget):
        yield Violation(
            "gpu-count",
            f"replicas * pp * G = {strategy.replicas} * {strategy.pp} * {strategy.stage_gpus} = {strategy.gpus} GPUs, "
            f"{'exactly' if problem.gpus_exact is not None else 'at most'} {budget} are asked for",
        )


def _packing_violations(problem: Problem, strategy: Strategy) -> Iterator[Violation]:
    packing, cluster = packing_of(problem, strategy), problem.cluster
    needed = packing.domains(strategy.replicas)
    canonical = canonical_mesh(strategy.mesh_order, strategy.attn_tp, strategy.attn_dp, strategy.pp)
    if canonical != strategy.mesh_order:
        yield Violation("mesh-order", f"mesh_order = {strategy.mesh_order} lays ranks out like {canonical}: say that")
    if needed > cluster.num_domains:
        yield Violation(
            "packing",
            f"{strategy.replicas} instances of {strategy.instance_gpus} GPUs in mesh order {strategy.mesh_order} need "
            f"{needed} scale-up domains of {cluster.domain_gpus} GPUs, the cluster has {cluster.num_domains}",
        )
    if packing.members("tp") < min(strategy.attn_tp, cluster.domain_gpus):
        yield Violation(
            "tp-domain",
            f"attention TP groups of {strategy.attn_tp} have only {packing.members('tp')} ranks per domain in mesh "
            f"order {strategy.mesh_order}",
        )
    fits = moe_tp_fits(packing.stage_members, strategy.stage_gpus, strategy.moe_tp, problem.engine)
    if not fits and not problem.space.tp_across_domains:
        yield Violation(
            "tp-domain",
            f"expert TP groups of {strategy.moe_tp} leave their scale-up domain, which holds {packing.stage_members} "
            f"of the stage's {strategy.stage_gpus} ranks",
        )


def moe_tp_fits(stage_members: int, stage_gpus: int, moe_tp: int, engine: Engine) -> bool:
    """Whether every expert TP group lies inside one domain that holds `stage_members` ranks of the stage."""
    if stage_members >= stage_gpus or moe_tp == 1:
        return True
    return moe_tp_is_fastest(engine) and stage_members % moe_tp == 0


def _knob_violations(problem: Problem, strategy: Strategy) -> Iterator[Violation]:
    workload = problem.workload
    phases: tuple[tuple[Phase, Dispatch, bool, int], ...] = (
        ("decode", strategy.decode_dispatch, strategy.decode_overlap, strategy.batch * workload.tokens_per_step),
        ("prefill", strategy.prefill_dispatch, strategy.prefill_overlap, prefill_tokens(problem, strategy)),
    )
    yield from all_reduce_violations(problem, strategy.decode_allreduce, strategy.prefill_allreduce)
    for phase, dispatch, overlap, tokens in phases:
        if not problem.runs(phase):
            continue
        if dispatch == "all_to_all" and (not problem.llm.is_moe or strategy.moe_ep == 1):
            yield Violation("dispatch", f"{phase}_dispatch = all_to_all with moe_ep = {strategy.moe_ep}")
        if overlap and dispatch != "all_to_all":
            yield Violation("overlap", f"{phase}_overlap needs {phase}_dispatch = all_to_all, not {dispatch}")
        elif overlap and tokens < 2:
            yield Violation("overlap", f"{phase}_overlap needs two tokens per rank and step, there is {tokens}")
    limit = max_prefill_batch(problem)
    if strategy.prefill_batch > limit:
        yield Violation(
            "prefill-batch",
            f"prefill_batch = {strategy.prefill_batch} prompts of {new_prompt_tokens(problem)} tokens, "
            f"{workload.prefill_chunk_tokens} tokens per step allow {limit}",
        )
    if strategy.prefill_batch > strategy.batch * strategy.micro_batches:
        yield Violation(
            "prefill-batch",
            f"prefill_batch = {strategy.prefill_batch} > {strategy.batch * strategy.micro_batches} slots of a rank",
        )


def engine_violations(problem: Problem, strategy: Strategy) -> Iterator[Violation]:
    """Restrictions of the engine profile; ``any`` has none."""
    engine = problem.engine
    if engine == "any":
        return
    allowed = [canonical_mesh(o, strategy.attn_tp, strategy.attn_dp, strategy.pp) for o in ENGINE_MESH[engine]]
    order = canonical_mesh(strategy.mesh_order, strategy.attn_tp, strategy.attn_dp, strategy.pp)
    if order not in allowed:
        yield Violation(
            "engine-mesh", f"{engine} launches {' or '.join(ENGINE_MESH[engine])}, not {strategy.mesh_order}"
        )
    nodes = problem.cluster.gpus_per_node
    if not packing_of(problem, strategy).is_launchable(nodes):
        yield Violation(
            "engine-alignment",
            f"{engine} puts consecutive ranks on nodes, but attn_tp = {strategy.attn_tp}, "
            f"attn_dp = {strategy.attn_dp}, pp = {strategy.pp} do not fill nodes of {nodes} GPUs "
            f"in domains of {problem.cluster.domain_gpus} evenly",
        )
    sends = "all_to_all" in (strategy.decode_dispatch, strategy.prefill_dispatch)
    if engine == "vllm" and strategy.moe_tp > 1 and strategy.moe_ep > 1:
        yield Violation("engine-vllm-moe", f"vllm: moe_tp = {strategy.moe_tp} with moe_ep = {strategy.moe_ep}")
    if engine == "sglang" and strategy.moe_tp > 1 and sends:
        yield Violation("engine-sglang-dispatch", f"sglang: all_to_all with moe_tp = {strategy.moe_tp}")
    if engine == "trtllm" and strategy.attn_dp > 1 and strategy.attn_tp > 1:
        yield Violation("engine-trtllm-dp", f"trtllm: attn_dp = {strategy.attn_dp} with attn_tp = {strategy.attn_tp}")
    if sends and strategy.attn_dp == 1 and not sends_without_attention_dp(engine):
        yield Violation("engine-exchange-dp", f"{engine}: all_to_all with attn_dp = 1")
    decode = exchange_switch(engine, strategy.decode_dispatch, strategy.decode_overlap)
    prefill = exchange_switch(engine, strategy.prefill_dispatch, strategy.prefill_overlap)
    if decode != prefill:
        yield Violation(
            "engine-phases",
            f"{engine} has one expert backend for both phases of its moe_ep = {strategy.moe_ep} ranks, not "
            f"{' with overlap = '.join(map(str, decode))} in decode and "
            f"{' with overlap = '.join(map(str, prefill))} in prefill",
        )
    if engine == "vllm" and strategy.pp > 1 and problem.llm.is_moe and wants_map(problem):
        yield Violation(
            "engine-expert-map", f"vllm places experts by loads or replicas only with pp = 1, not {strategy.pp}"
        )
    yield from pool_stage_violations(problem, strategy.pp)
    if engine in ("trtllm", "megatron") and (strategy.decode_overlap or strategy.prefill_overlap):
        yield Violation("engine-overlap", f"{engine} has no two-batch overlap switch")


def pool_stage_violations(problem: Problem, pp: int) -> Iterator[Violation]:
    """Whether the instances of one pool may have so many stages."""
    if problem.role != "aggregated" and pp > 1 and not pairs_stages(problem.engine):
        yield Violation(
            "engine-pool-stages",
            f"{problem.engine} moves KV cache only between instances without pipeline stages: pp = {pp} in a "
            f"{problem.role} pool",
        )
