"""Random small problems by seed: every feature of the cost model and of the legality rules, limits that bind.

Sizes are such that brute force over degrees and placements takes well under a second. The hardware is slow and the
networks are small, so that computation, bandwidth, latency and launches all matter.
"""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

from plans import CALIBRATION

from solver.cost.balance import sequence_tokens
from solver.cost.layers import Blocks
from solver.cost.leaves import PPM, Leaves
from solver.cost.ledger import stage_ledgers
from solver.cost.metrics import Figures, evaluate_times
from solver.legality import violations
from solver.packing import canonical_mesh
from solver.specs.calibration import Calibration
from solver.specs.hardware import Cluster
from solver.specs.llm import Llm
from solver.specs.problem import ALL_REDUCES, ENGINES, OBJECTIVES, Problem
from solver.specs.workload import Workload
from solver.strategy import MESH_ORDERS, Strategy, packing_of

MAX_CANDIDATES = 2500
"""Joint values of degrees and knobs (before the rules) that a problem may have."""
ALWAYS = tuple(name for name in ALL_REDUCES if name != "direct")
"""All-reduces of every calibration."""
TRIALS = 120
"""Random strategies that are priced to place the limits (memory, SLOs) where they bind."""


def draw(seed: int) -> Problem:
    """The problem of a seed; equal seeds give equal problems. Most of them have a legal strategy."""
    rng = random.Random(seed)
    while True:
        problem = _draw(rng)
        priced = [_price(problem, strategy) for strategy in _samples(rng, problem)]
        if priced:
            return _limited(rng, problem, priced)
        if rng.random() < 0.05:
            return problem


def _draw(rng: random.Random) -> Problem:
    parts: dict[str, Any] = {}
    moe = rng.random() < 0.75
    cluster = _cluster(rng)
    llm = _llm(rng, moe=moe)
    parts["llm"] = Llm.read(llm, "test")
    parts["calibration"] = Calibration.read(_calibration(rng), "test")
    parts["redundant_experts"] = rng.choice([0, 0, 1, 2]) if moe else 0
    parts["engine"] = rng.choice(ENGINES) if rng.random() < 0.35 else "any"
    name = rng.choice(OBJECTIVES)
    parts["objective"] = {"name": name, "latency_weight": rng.choice([0.0, 0.2, 0.5, 0.9, 1.0])}
    gpus = cluster["num_gpus"]
    limit = rng.random()
    if limit < 0.2:
        parts["gpus_exact"] = rng.randint(1, gpus)
    elif limit < 0.4:
        parts["gpus_at_most"] = rng.randint(1, gpus)
    workload = _workload(rng, parts["llm"])
    if workload.get("concurrency") is None:
        max_batch = rng.randint(2, 5)
    else:
        max_batch = rng.randint(1, workload["concurrency"] + 1)
    parts["space"] = {
        "name": "all",
        "max_pp": min(llm["num_layers"], rng.randint(1, 3)),
        "max_batch": max_batch,
        "max_prefill_batch": rng.randint(1, 3),
        "tp_across_domains": rng.random() < 0.2,
    }
    parts["pins"] = _pins(rng, gpus, moe=moe)
    parts["cluster"], parts["workload"] = Cluster.read(cluster, "test"), Workload.read(workload, "test")
    return _shrunk(rng, parts)


# --- parts ------------------------------------------------------------------------------------------------------------


def _cluster(rng: random.Random) -> dict[str, Any]:
    domain = rng.choice([1, 2, 2, 3, 4, 4, 6, 8])
    domains = rng.choice([n for n in (1, 2, 3, 4) if n * domain <= 8])
    levels = [
        {"name": "inside", "gpus": domain, "bandwidth": f"{rng.choice([5, 20, 50])} GB/s",
         "latency": f"{rng.choice([300, 1000])} ns", "source": "test"},
    ]  # fmt: skip
    if rng.random() < 0.3:
        levels.append({"name": "rack", "gpus": 2 * domain, "bandwidth": "4 GB/s", "latency": "2 us", "source": "test"})
    levels.append(
        {"name": "between", "bandwidth": f"{rng.choice([500, 2000])} MB/s", "latency": f"{rng.choice([2, 9])} us",
         "source": "test"}
    )  # fmt: skip
    return {
        "name": "tiny",
        "source": "test",
        "gpu": {
            "name": "tiny",
            "source": "test",
            "peak": {"bf16": "2 TFLOP/s", **({"fp8": "4 TFLOP/s"} if rng.random() < 0.5 else {})},
            "memory": "8 GB",
            "memory_bandwidth": f"{rng.choice([20, 60])} GB/s",
        },
        "num_gpus": domain * domains,
        "gpus_per_node": domain,
        "levels": levels,
    }


def _llm(rng: random.Random, *, moe: bool) -> dict[str, Any]:
    layers = rng.randint(2, 6)
    heads = rng.choice([2, 4, 6, 8])
    llm: dict[str, Any] = {
        "name": "tiny",
        "source": "test",
        "num_layers": layers,
        "hidden_size": rng.choice([128, 256, 512]),
        "num_heads": heads,
        "num_kv_heads": rng.choice([k for k in (1, 2, 3, 4, 8) if heads % k == 0]),
        "head_dim": 32,
        "vocab_size": rng.choice([200, 3000, 20000]),
        "tie_embeddings": rng.random() < 0.3,
        "dense_width": rng.choice([384, 768, 1536]),
    }
    if moe:
        experts = rng.choice([2, 3, 4, 4, 5, 6])
        llm["moe"] = {
            "num_experts": experts,
            "top_k": rng.randint(1, min(3, experts)),
            "expert_width": rng.choice([96, 384, 512]),
            "matrices_per_expert": rng.choice([2, 3]),
            "shared_width": rng.choice([0, 0, 96, 384]),
        }
        if rng.random() < 0.45:  # dense prefix, or interleaved
            llm["moe_layers"] = list(range(rng.randint(1, layers - 1), layers, rng.choice([1, 1, 2])))
    attention = rng.random()
    if attention < 0.15:
        llm["mla"] = {"kv_lora_rank": 64, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32,
                      "q_lora_rank": rng.choice([None, 96])}  # fmt: skip
        if rng.random() < 0.5:
            llm["indexer"] = {"top_k": 64, "num_heads": 2, "head_dim": 16}
            llm["attention_kinds"] = ["sparse"]
    elif attention < 0.4:
        llm["sliding_window"] = rng.choice([64, 600])
        llm["attention_kinds"] = ["sliding", "full"] if rng.random() < 0.6 else ["full", "sliding"][:layers]
    elif attention < 0.5:
        llm["linear"] = {"num_key_heads": 2, "num_value_heads": 4, "key_head_dim": 32, "value_head_dim": 32}
        llm["attention_kinds"] = ["linear", "full"]
    if rng.random() < 0.3:
        llm["dtypes"] = {"experts": "fp8", "dense": rng.choice(["bf16", "fp8"]), "dispatch": "fp8", "kv": "fp8"}
        if rng.random() < 0.4:
            llm["quant_block"] = 96
    return llm


def _calibration(rng: random.Random) -> dict[str, Any]:
    rates = random.Random(repr(rng.getstate()))  # of its own, so that a new coefficient leaves all other draws alone
    return {
        **CALIBRATION,
        "grouped_gemm_half_rows": rng.choice([0.0, 4.0, 16.0]),
        "launch": f"{rng.choice([0, 500, 1500])} ns",
        "host_step": f"{rng.choice([0, 20])} us",
        "collective_base": f"{rng.choice([0, 3])} us",
        "overlap_sm_share": rng.choice([0.0, 0.1, 0.15]),
        "overlap_sync": f"{rng.choice([0, 100, 2000])} ns",
        "gemm_efficiency": rates.choice([{"bf16": 0.6}, {"bf16": 0.5, "fp8": 0.7, "fp8_block": 0.2}]),
        "gemm_half_rows": rates.choice([0.0, 8.0, 100.0]),
        "cache_efficiency": rates.choice([0.3, 0.8]),
        "host_sequence": f"{rates.choice([0, 3])} us",
        "host_prefill": f"{rates.choice([0, 50])} us",
        "host_prefill_kernel": f"{rates.choice([0, 4])} us",
        "routing_noise": rates.choice([0.0, 0.4, 1.0]),
        "routing_skew": rates.choice([0.0, 0.5]),
        "grouped_gemm_share": rates.choice([0.7, 1.0]),
        "elementwise_passes": rates.choice([0.0, 1.5]),
        "roofline_power": rates.choice([None, 2.0]),
        "grouped_block_share": rates.choice([0.6, 1.0]),
        "host_prefill_linear": f"{rates.choice([0, 40])} us",
        "direct_sync": rates.choice([None, "0 us", "2 us"]),
    }


def _workload(rng: random.Random, llm: Llm) -> dict[str, Any]:
    workload: dict[str, Any] = {"name": "tiny", "source": "test", "osl": rng.choice([1, 7, 30, 200])}
    kind, scale = rng.random(), rng.choice([40, 300, 2000])
    count = rng.randint(1, 6)
    if kind < 0.45:
        workload |= {"isl_list": [scale + rng.randint(0, 3 * scale) for _ in range(count)], "concurrency": count}
    elif kind < 0.55:
        workload |= {"isl_range": {"min": scale, "max": 3 * scale}, "concurrency": rng.choice([None, count])}
    elif kind < 0.75:
        workload |= {"isl": scale, "concurrency": count}
    else:
        workload |= {"isl": scale, "concurrency": None}
    if rng.random() < 0.4:
        workload["prefill_chunk_tokens"] = max(16, scale // rng.choice([1, 2, 3]))
    if rng.random() < 0.3:
        workload["prefix_hit_rate"] = rng.choice([0.3, 0.75])
    if rng.random() < 0.2:
        workload["speculative"] = {"draft": rng.randint(1, 3), "accepted": rng.choice([0.0, 0.6, 0.9])}
    if llm.moe is not None and rng.random() < 0.6:
        hot = rng.choice([1, 4, 30])
        counts = [
            [rng.randint(1, 20) * (hot if rng.random() < 0.3 else 1) for _ in range(llm.moe.num_experts)]
            for _ in range(llm.num_moe_layers)
        ]
        workload["expert_loads"] = {"source": "test", "counts": counts}
    return workload


def _pins(rng: random.Random, gpus: int, *, moe: bool) -> dict[str, Any]:
    pins: dict[str, Any] = {}
    if rng.random() < 0.3:
        name = rng.choice(["attn_tp", "attn_dp", "moe_tp", "moe_ep", "pp", "replicas", "batch", "micro_batches",
                           "prefill_batch"])  # fmt: skip
        pins[name] = rng.choice([1, 1, 2, min(3, gpus)])
    if rng.random() < 0.1:
        pins["mesh_order"] = rng.choice(MESH_ORDERS)
    for name, values in (
        ("decode_allreduce", ALWAYS),
        ("prefill_allreduce", ALWAYS),
        ("decode_dispatch", ("gather", "all_to_all")),
        ("prefill_dispatch", ("gather", "all_to_all")),
        ("decode_overlap", (False, True)),
        ("prefill_overlap", (False, True)),
    ):
        if rng.random() < (0.3 if moe or "allreduce" in name else 0.05):
            pins[name] = rng.choice(values)
    return pins


# --- sizes and limits -------------------------------------------------------------------------------------------------


def candidates(parts: dict[str, Any]) -> int:
    """Joint values of degrees and knobs before the rules; an estimate."""
    budget = parts.get("gpus_exact") or parts.get("gpus_at_most") or parts["cluster"].num_gpus
    space, pins, llm = parts["space"], parts["pins"], parts["llm"]
    moe = llm.is_moe
    shapes = 0
    for stage in range(1, budget + 1):
        tps = [t for t in range(1, stage + 1) if stage % t == 0 and llm.num_heads % t == 0 and (moe or t == stage)]
        tps = [t for t in tps if _free(pins, "attn_tp", t)]
        pairs = sum(1 for e in range(1, stage + 1) if stage % e == 0 and _free(pins, "moe_ep", e)) if moe else 1
        for pp in range(1, space["max_pp"] + 1):
            if not _free(pins, "pp", pp):
                continue
            replicas = budget // (stage * pp) if "replicas" not in pins else 1
            micro = pp if "micro_batches" not in pins else 1
            shapes += len(tps) * pairs * replicas * micro * (2 if pp > 1 and "mesh_order" not in pins else 1)
    knobs = 1
    for name in ("batch", "prefill_batch"):
        knobs *= 1 if name in pins else space[f"max_{name}"]
    for name in ("decode_allreduce", "prefill_allreduce"):
        knobs *= 1 if name in pins else len(ALWAYS) + (parts["calibration"].direct_sync is not None)
    for phase in ("decode", "prefill"):
        if moe and f"{phase}_dispatch" not in pins:
            knobs *= 3 if f"{phase}_overlap" not in pins else 2
    return shapes * knobs


def _free(pins: dict[str, Any], name: str, value: int) -> bool:
    return name not in pins or pins[name] == value


def _shrunk(rng: random.Random, parts: dict[str, Any]) -> Problem:
    """Pins one knob after another until the problem is small enough."""
    pins, space = parts["pins"], parts["space"]
    knobs: list[tuple[str, tuple[Any, ...]]] = [
        ("prefill_allreduce", ALWAYS[:2]), ("decode_allreduce", ALWAYS[:2]),
        ("prefill_dispatch", ("gather",)), ("decode_dispatch", ("gather", "all_to_all")),
    ]  # fmt: skip
    rng.shuffle(knobs)
    while candidates(parts) > MAX_CANDIDATES:
        if knobs:
            name, values = knobs.pop()
            pins.setdefault(name, rng.choice(values))
        elif space["max_prefill_batch"] > 1:
            space["max_prefill_batch"] -= 1
        elif space["max_batch"] > 2:
            space["max_batch"] -= 1
        elif space["max_pp"] > 1:
            space["max_pp"] -= 1
        else:
            pins["replicas"] = 1
            break
    return Problem(**parts)


def _limited(rng: random.Random, problem: Problem, priced: list[tuple[Figures, int]]) -> Problem:
    """The problem with memory and SLOs where they bind, measured on random legal strategies."""
    changes: dict[str, Any] = {}
    if rng.random() < 0.5:
        needed = sorted(kib for _, kib in priced)
        memory = needed[int(len(needed) * rng.random() ** 2)] + rng.choice([0, 0, -1, 50])
        usable = problem.calibration.usable_memory
        gpu = problem.cluster.gpu.model_copy(update={"memory": max(2**20, int((memory + 1) * 1024 / usable))})
        changes["cluster"] = problem.cluster.model_copy(update={"gpu": gpu})
    slo: dict[str, str] = {}
    for name in ("ttft", "tpot", "request_latency"):
        if rng.random() < 0.2:
            values = sorted(getattr(figures, f"{name}_ns") for figures, _ in priced)
            slo[name] = f"{max(1, int(values[int(len(values) * rng.random())] * rng.choice([0.9, 1, 1, 1.1])))} ns"
    slo |= _rates(random.Random(repr(rng.getstate())), problem.workload.osl, priced)
    if slo:
        changes["workload"] = Workload.read({**problem.workload.model_dump(), "slo": slo}, "test")
    return Problem(**{name: getattr(problem, name) for name in Problem.model_fields} | changes)


def _rates(rng: random.Random, osl: int, priced: list[tuple[Figures, int]]) -> dict[str, str]:
    """Least throughput and efficiency where they bind; drawn apart, so that they leave all other draws alone."""
    given: dict[str, str] = {}
    for name, unit, per_gpu in (("min_throughput", "tokens/s", False), ("min_efficiency", "tokens/s/GPU", True)):
        if rng.random() < 0.15:
            rates = sorted(Fraction(f.active * osl * 10**9, f.cycle_ns * (f.gpus if per_gpu else 1)) for f, _ in priced)
            exact = rates[int(len(rates) * rng.random())] * rng.choice([Fraction(1), Fraction(1), Fraction(9, 10)])
            given[name] = f"{exact.numerator * 10**6 // exact.denominator or 1}/{10**6} {unit}"
    return given


def _samples(rng: random.Random, problem: Problem) -> list[Strategy]:
    found = []
    budget, space = problem.gpu_budget, problem.space
    for _ in range(TRIALS):
        tp, moe_ep, pp = rng.randint(1, budget), rng.randint(1, budget), rng.randint(1, space.max_pp)
        moe_tp = rng.choice([1, 1, 2, 3, 4])
        stage = moe_tp * moe_ep if problem.llm.is_moe else tp
        if stage % tp or stage * pp > budget:
            continue
        batch = rng.randint(1, min(space.max_batch, problem.workload.concurrency or space.max_batch))
        dispatch = rng.choice(["gather", "all_to_all"]) if moe_ep > 1 else "gather"
        given: dict[str, Any] = {
            "attn_tp": tp, "attn_dp": stage // tp, "pp": pp, "batch": batch, "micro_batches": rng.randint(1, pp),
            "replicas": rng.randint(1, budget // (stage * pp)), "decode_dispatch": dispatch,
            "mesh_order": canonical_mesh(rng.choice(MESH_ORDERS), tp, stage // tp, pp),
        }  # fmt: skip
        if problem.llm.is_moe:
            given |= {"moe_tp": moe_tp, "moe_ep": moe_ep}
        knobs = ("decode_allreduce", "prefill_allreduce", "decode_overlap", "prefill_overlap", "prefill_dispatch")
        pinned = {name: value for name, value in problem.pins.given().items() if name in knobs}
        strategy = Strategy(**given | pinned)
        if not violations(problem, strategy):
            found.append(strategy)
    return found


def _price(problem: Problem, strategy: Strategy) -> tuple[Figures, int]:
    """Metrics and the fullest rank's KiB with even stages and balanced blocks."""
    each, more = divmod(problem.llm.num_layers, strategy.pp)
    layout = tuple(each + (stage < more) for stage in range(strategy.pp))
    bins = strategy.replicas * strategy.attn_dp * strategy.micro_batches
    tokens = sequence_tokens(problem)
    load = strategy.batch * tokens[-1]
    if not problem.workload.is_uniform:
        load = max(tokens[-1], -(-sum(tokens) // bins))
    leaves, blocks = Leaves(problem), Blocks(load, PPM, layout)
    figures = evaluate_times(leaves, strategy, packing_of(problem, strategy), blocks)
    return figures, max(ledger.total_kib for ledger in stage_ledgers(leaves, strategy, blocks))
