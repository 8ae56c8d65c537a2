"""Small problems, and honest plans built by hand: every number computed from the placement, bound = value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from solver.certificate import Certificate, Digests, Parameters, SpaceSize, Versions, WallTimes
from solver.cost.balance import expert_counts, load_factor_ppm, mean_ppm, rank_loads, sequence_tokens, slots_per_rank
from solver.cost.layers import Blocks, PhaseTimes
from solver.cost.leaves import PPM, Leaves
from solver.cost.ledger import stage_ledgers
from solver.cost.metrics import NATURAL_UNITS, OBJECTIVE_UNITS, THROUGHPUT_SCALE, figures_of, objective_value
from solver.plan import Breakdown, Component, Metrics, ObjectiveClaim, Placement, Plan, PlannedStrategy
from solver.specs.calibration import Calibration
from solver.specs.hardware import Cluster
from solver.specs.llm import Llm
from solver.specs.problem import Problem
from solver.specs.workload import Workload
from solver.strategy import Strategy, moe_tp_is_fastest, num_slots, packing_of

LLM: dict[str, Any] = {
    "name": "tiny",
    "source": "test",
    "num_layers": 4,
    "hidden_size": 256,
    "num_heads": 8,
    "num_kv_heads": 4,
    "head_dim": 32,
    "vocab_size": 1000,
    "moe": {"num_experts": 8, "top_k": 2, "expert_width": 512},
}
CALIBRATION: dict[str, Any] = {
    "name": "test",
    "source": "test",
    "gemm_efficiency": {"bf16": 0.6},
    "gemm_half_rows": 8.0,
    "grouped_gemm_half_rows": 16.0,
    "attention_efficiency": 0.5,
    "memory_efficiency": 0.8,
    "cache_efficiency": 0.7,
    "link_efficiency": 0.8,
    "launch": "1500 ns",
    "host_step": "20 us",
    "host_sequence": "500 ns",
    "host_prefill": "30 us",
    "host_prefill_kernel": "2 us",
    "routing_noise": 0.8,
    "collective_base": "3 us",
    "overlap_sm_share": 0.15,
    "overlap_sync": "2 us",
    "usable_memory": 0.9,
    "framework_reserve": "10 MB",
    "communicator_reserve": "5 MB",
    "graph_reserve": "5 MB",
    "origins": {"*": {"provenance": "assumed", "source": "test"}},
}


def small_llm(**changes: Any) -> Llm:
    """Four MoE layers of eight experts."""
    return Llm.read({**LLM, **changes}, "test")


def small_cluster(num_gpus: int = 16, domain: int = 4, memory: str = "200 MB") -> Cluster:
    """Scale-up domains of four slow GPUs, so that every term of the cost model matters."""
    return Cluster.read(
        {
            "name": "tiny",
            "source": "test",
            "gpu": {
                "name": "tiny",
                "source": "test",
                "peak": {"bf16": "5 TFLOP/s"},
                "memory": memory,
                "memory_bandwidth": "100 GB/s",
            },
            "num_gpus": num_gpus,
            "gpus_per_node": domain,
            "levels": [
                {"name": "inside", "gpus": domain, "bandwidth": "50 GB/s", "latency": "1 us", "source": "test"},
                {"name": "between", "bandwidth": "5 GB/s", "latency": "5 us", "source": "test"},
            ],
        },
        "test",
    )


def small_workload(**changes: Any) -> Workload:
    """Eight sequences of 100 to 450 tokens."""
    lengths = (
        {}
        if {"isl", "isl_list", "isl_range"} & set(changes)
        else {"isl_list": [100, 150, 200, 250, 300, 350, 400, 450]}
    )
    return Workload.read({"name": "tiny", "source": "test", "osl": 16, "concurrency": 8, **lengths, **changes}, "test")


def small_problem(**changes: Any) -> Problem:
    """The tiny LLM on the tiny cluster; any field of :class:`Problem` may be replaced."""
    parts: dict[str, Any] = {
        "llm": small_llm(),
        "cluster": small_cluster(),
        "workload": small_workload(),
        "calibration": Calibration.read(CALIBRATION, "test"),
        **changes,
    }
    return Problem(**parts)


def dealt_experts(problem: Problem, moe_ep: int) -> tuple[tuple[int, ...], ...]:
    """One map: experts in order, redundant ones again from the first, next slot on the first rank that may take it."""
    assert problem.llm.moe is not None
    room = slots_per_rank(num_slots(problem.llm, problem.redundant_experts), moe_ep)
    held: list[list[int]] = [[] for _ in room]
    for index in range(sum(room)):
        expert = index % problem.llm.moe.num_experts
        free = [r for r in range(moe_ep) if len(held[r]) < room[r] and expert not in held[r]]
        held[free[0]].append(expert)
    return tuple(tuple(rank) for rank in held)


def dealt_sequences(problem: Problem, strategy: Strategy) -> tuple[tuple[int, ...], ...] | None:
    """Longest first, round the bins; None when the sequences are equal."""
    if problem.workload.is_uniform:
        return None
    bins = strategy.replicas * strategy.attn_dp * strategy.micro_batches
    order = range(len(sequence_tokens(problem)) - 1, -1, -1)
    return tuple(tuple(order[b::bins]) for b in range(bins))


def build_plan(
    problem: Problem,
    strategy: Strategy,
    *,
    stage_layers: Sequence[int] | None = None,
    bins: tuple[tuple[int, ...], ...] | None = None,
    bound: int | None = None,
) -> Plan:
    """An honest plan of a legal strategy; `bound` below the value makes it FEASIBLE, else it claims to be OPTIMAL."""
    llm, leaves, packing = problem.llm, Leaves(problem), packing_of(problem, strategy)
    each, more = divmod(llm.num_layers, strategy.pp)
    stages = tuple(stage_layers or (each + (stage < more) for stage in range(strategy.pp)))
    bins = bins or dealt_sequences(problem, strategy)
    tokens = sequence_tokens(problem)
    load = strategy.batch * tokens[-1] if bins is None else max(sum(tokens[i] for i in members) for members in bins)
    maps = (dealt_experts(problem, strategy.moe_ep),) if llm.is_moe else ()
    factor = PPM
    if maps:
        factors = [load_factor_ppm(max(rank_loads(row, maps[0])), strategy.moe_ep) for row in expert_counts(problem)]
        factor = mean_ppm(factors)
    blocks = Blocks(load, factor, stages)
    decode, prefill = (PhaseTimes(leaves, strategy, packing, phase, blocks) for phase in ("decode", "prefill"))
    figures = figures_of(problem, strategy, decode, prefill)
    name, osl = problem.objective.name, problem.workload.osl
    value = objective_value(name, figures)
    bound = value if bound is None else bound
    rate = figures.throughput_tokens_per_s(osl)
    scale = {"throughput": 1e9 * osl * THROUGHPUT_SCALE, "efficiency": 1e9 * osl}.get(name)
    shown = {"throughput": rate, "efficiency": rate / figures.gpus}.get(name, float(value))
    gap, status = (value - bound) / value, "OPTIMAL" if bound == value else "FEASIBLE"
    decode_stages = decode.stage_times()
    path = sum(decode_stages) + (strategy.pp - 1) * decode.hop_ns + decode.return_ns
    step = max(path, strategy.micro_batches * max(decode_stages))
    return Plan(
        status=status,  # type: ignore[arg-type]
        objective=ObjectiveClaim(
            name=name,
            unit=NATURAL_UNITS[name],
            sense="minimise" if scale is None else "maximise",
            value=shown,
            bound=float(bound) if scale is None else (shown if bound == value else scale / bound),
            gap=gap,
        ),
        strategy=PlannedStrategy.of(strategy),
        metrics=Metrics(
            ttft_ns=figures.ttft_ns,
            tpot_ns=figures.tpot_ns,
            request_latency_ns=figures.request_latency_ns,
            throughput_tokens_per_s=rate,
            efficiency_tokens_per_s_per_gpu=rate / figures.gpus,
            gpus_used=figures.gpus,
            decode_step_ns=figures.decode_ns,
            prefill_round_ns=figures.round_ns,
            rounds_per_cycle=figures.rounds,
            cycle_ns=figures.cycle_ns,
            active_sequences=figures.active,
        ),
        breakdown=Breakdown(
            decode=(Component(name="stages", ns=step), Component(name="host", ns=leaves.host_ns)),
            prefill=(Component(name="all", ns=figures.ttft_ns),),
        ),
        memory=stage_ledgers(leaves, strategy, blocks),
        placement=Placement(
            domain_gpus=problem.cluster.domain_gpus,
            gpus_per_node=problem.cluster.gpus_per_node,
            stage_layers=stages,
            moe_tp_fastest=moe_tp_is_fastest(problem.engine),
            expert_maps=maps,
            map_of_layer=(0,) * llm.num_moe_layers,
            num_sequences=problem.workload.concurrency or strategy.slots,
            bins=bins,
            load_tokens=load,
            lambda_ppm=factor,
        ),
        assumptions=(),
        warnings=(),
        problem=problem,
        certificate=Certificate(
            status=status,  # type: ignore[arg-type]
            objective_name=name,
            objective_unit=OBJECTIVE_UNITS[name],
            value=value,
            bound=bound,
            gap=gap,
            space=SpaceSize(name=problem.space.name, definition="test", domains={}, configurations=1),
            iterations=(),
            digests=Digests(problem=problem.digest, cost_tables="", program=""),
            versions=Versions(shardwright="test", ortools="test", python="test"),
            parameters=Parameters(seed=0, workers=1, time_limit_s=None),
            wall_s=WallTimes(tables=0, program=0, blocks=0, total=0),
        ),
    )
