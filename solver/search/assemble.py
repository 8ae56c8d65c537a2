"""From a realised strategy and the loop's record to the plan document."""

from __future__ import annotations

from typing import TYPE_CHECKING

from solver.certificate import (
    Certificate,
    Digests,
    Parameters,
    SpaceSize,
    Status,
    UtopiaValues,
    Versions,
    WallTimes,
)
from solver.cost.closed_loop import predict_strategy
from solver.cost.layers import Blocks, PhaseTimes
from solver.cost.leaves import Leaves
from solver.cost.machine import Phase
from solver.cost.metrics import NATURAL_UNITS, OBJECTIVE_UNITS, Figures, Utopia, natural_value
from solver.cost.sources import operator_sources, source_notes
from solver.degrees import Domains
from solver.plan import (
    Breakdown,
    ClosedLoopMetrics,
    Component,
    Metrics,
    ObjectiveClaim,
    Placement,
    Plan,
    PlannedStrategy,
    RunnerUp,
)
from solver.search.realise import Realised
from solver.search.shapes import space_size
from solver.specs.problem import Problem
from solver.strategy import Strategy, moe_tp_is_fastest, packing_of

if TYPE_CHECKING:
    from solver.search.loop import Outcome
    from solver.search.program import SearchLimits


def assemble(problem: Problem, outcome: Outcome, limits: SearchLimits, utopia: Utopia | None, total_s: float) -> Plan:
    """The plan of a loop that found one."""
    realised = outcome.best
    assert realised is not None
    status: Status = outcome.status
    strategy, figures, name = realised.strategy, realised.figures, problem.objective.name
    gap = max(0.0, (realised.value - outcome.bound) / realised.value) if realised.value else 0.0
    osl = problem.workload.osl
    rate = name in ("throughput", "efficiency")
    metrics = metrics_of(problem, figures)
    value = {
        "throughput": metrics.throughput_tokens_per_s,
        "efficiency": metrics.efficiency_tokens_per_s_per_gpu,
    }.get(name, natural_value(name, realised.value, osl))
    bound = value if status == "OPTIMAL" else natural_value(name, max(1, outcome.bound), osl)
    leaves = Leaves(problem)
    sources = operator_sources(problem, strategy, realised.blocks)
    return Plan(
        status=status,
        objective=ObjectiveClaim(
            name=name,
            unit=NATURAL_UNITS[name],
            sense="maximise" if rate else "minimise",
            value=value,
            bound=bound,
            gap=gap,
        ),
        strategy=PlannedStrategy.of(strategy),
        metrics=metrics,
        breakdown=breakdown_of(leaves, strategy, realised.blocks),
        memory=realised.ledgers,
        placement=placement_of(problem, realised),
        assumptions=problem.assumptions,
        warnings=(*warnings_of(problem, realised), *source_notes(problem, sources)),
        runners_up=_runners_up(problem, outcome),
        closed_loop=closed_loop_of(leaves, strategy, realised.blocks) if problem.role == "aggregated" else None,
        operator_sources=sources,
        problem=problem,
        certificate=Certificate(
            status=status,
            objective_name=name,
            objective_unit=OBJECTIVE_UNITS[name],
            value=realised.value,
            bound=outcome.bound,
            gap=gap,
            space=space_of(problem, outcome.domains),
            utopia=None
            if utopia is None
            else UtopiaValues(latency_ns=utopia.latency_ns, inverse_efficiency_ns=utopia.inverse_efficiency_ns),
            iterations=tuple(outcome.iterations),
            digests=Digests(problem=problem.digest, cost_tables=outcome.tables_digest, program=outcome.program_digest),
            versions=Versions.here(),
            parameters=Parameters(
                seed=limits.seed, workers=limits.workers, time_limit_s=limits.time_s, relative_gap_limit=limits.gap
            ),
            wall_s=WallTimes(
                tables=round(outcome.tables_s, 4),
                program=round(outcome.program_s, 4),
                blocks=round(outcome.blocks_s, 4),
                total=round(total_s, 4),
            ),
        ),
    )


def closed_loop_of(leaves: Leaves, strategy: Strategy, blocks: Blocks) -> ClosedLoopMetrics:
    """What a closed-loop client would measure of a strategy."""
    loop = predict_strategy(leaves, strategy, packing_of(leaves.problem, strategy), blocks.lambda_ppm)
    concurrency = leaves.problem.workload.concurrency
    return ClosedLoopMetrics(
        concurrency=strategy.slots if concurrency is None else concurrency,
        ttft_ns=int(loop.ttft_ns),
        tpot_ns=int(loop.tpot_ns),
        wait_ns=int(loop.wait_ns),
        resident_per_replica=int(loop.resident),
    )


def metrics_of(problem: Problem, figures: Figures) -> Metrics:
    """The document form of the metrics."""
    throughput = figures.throughput_tokens_per_s(problem.workload.osl)
    return Metrics(
        ttft_ns=figures.ttft_ns,
        tpot_ns=figures.tpot_ns,
        request_latency_ns=figures.request_latency_ns,
        throughput_tokens_per_s=throughput,
        efficiency_tokens_per_s_per_gpu=throughput / figures.gpus,
        gpus_used=figures.gpus,
        decode_step_ns=figures.decode_ns,
        prefill_round_ns=figures.round_ns,
        rounds_per_cycle=figures.rounds,
        cycle_ns=figures.cycle_ns,
        active_sequences=figures.active,
    )


def breakdown_of(leaves: Leaves, strategy: Strategy, blocks: Blocks) -> Breakdown:
    """Components whose sum is the decode step (before speculation) and the TTFT."""
    parts: dict[Phase, tuple[Component, ...]] = {}
    packing = packing_of(leaves.problem, strategy)
    phases: tuple[Phase, Phase] = ("decode", "prefill")
    for phase in phases:
        times = PhaseTimes(leaves, strategy, packing, phase, blocks)
        each = [(count, times.layer(kind)) for kind, count in leaves.problem.llm.layers_of_kind.items()]
        stages = times.stage_times()
        items = {
            "attention projections, dense and shared FFN": sum(n * t.projection_ns for n, t in each),
            "attention core": sum(n * t.core_ns for n, t in each),
            "routed experts": sum(n * t.expert_ns for n, t in each),
            "all-reduce": sum(n * t.allreduce_ns for n, t in each),
            "expert exchange": sum(n * t.exchange_ns for n, t in each),
            "hidden by overlap": -sum(n * t.hidden_ns for n, t in each),
            "embedding": times.embedding_ns,
            "LM head": times.head_ns,
            "pipeline hops": (strategy.pp - 1) * times.hop_ns,
        }
        if phase == "decode":
            items["pipeline hops"] += times.return_ns
            path = sum(stages) + items["pipeline hops"]
            items["waiting for the slowest stage"] = max(0, strategy.micro_batches * max(stages) - path)
            items["host"] = leaves.host_ns
        else:
            items["further chunks"] = (leaves.chunks - 1) * max(stages)
            items["host"] = leaves.chunks * leaves.prefill_host_ns
            items["KV transfer"] = leaves.transfer_ns
        parts[phase] = tuple(Component(name=name, ns=ns) for name, ns in items.items() if ns)
    return Breakdown(decode=parts["decode"], prefill=parts["prefill"])


def placement_of(problem: Problem, realised: Realised) -> Placement:
    """The document form of the placement: equal expert maps are stored once."""
    maps: list[tuple[tuple[int, ...], ...]] = []
    map_of_layer: list[int] = []
    if realised.experts is not None:
        seen: dict[tuple[tuple[int, ...], ...], int] = {}
        for layer in realised.experts.layers:
            if layer.slots_of_rank not in seen:
                seen[layer.slots_of_rank] = len(maps)
                maps.append(layer.slots_of_rank)
            map_of_layer.append(seen[layer.slots_of_rank])
        if len(map_of_layer) == 1:
            map_of_layer *= problem.llm.num_moe_layers
    concurrency = problem.workload.concurrency
    return Placement(
        domain_gpus=problem.cluster.domain_gpus,
        gpus_per_node=problem.cluster.gpus_per_node,
        stage_layers=realised.blocks.stage_layers,
        moe_tp_fastest=moe_tp_is_fastest(problem.engine),
        expert_maps=tuple(maps),
        map_of_layer=tuple(map_of_layer),
        num_sequences=realised.strategy.slots if concurrency is None else concurrency,
        bins=None if realised.batches is None else realised.batches.bins,
        load_tokens=realised.blocks.load_tokens,
        lambda_ppm=realised.blocks.lambda_ppm,
    )


def warnings_of(problem: Problem, realised: Realised) -> tuple[str, ...]:
    """What the reader must know before acting on the plan."""
    found: list[str] = []
    llm, workload, name = problem.llm, problem.workload, problem.objective.name
    if llm.declared_gap > 0.05:
        found.append(f"{llm.declared_sentence()}; solved in the reading {llm.reading}.")
    assumed = problem.calibration.assumed
    if assumed:
        which = ", ".join(assumed) if problem.calibration.error is not None else "its efficiencies among them"
        found.append(
            f"Calibration {problem.calibration.name!r} rests on assumed values, not on measurements ({which})."
        )
    if workload.concurrency is not None and name == "throughput":
        found.append(
            f"With a fixed concurrency of {workload.concurrency} Little's law ties throughput to latency: this is the "
            "plan with the shortest cycle; leave the concurrency free to ask for capacity."
        )
    if not workload.is_uniform or workload.isl is None:
        found.append(f"TTFT, TPOT and latency are those of the mean prompt of {workload.mean_isl} tokens.")
    used = realised.figures.gpus
    budget = problem.gpu_budget
    if used < budget and problem.gpus_exact is None and name in ("latency", "ttft", "tpot", "throughput"):
        found.append(f"{budget - used} of {budget} GPUs stay idle: no strategy in the space does better with them.")
    if realised.experts is not None and workload.expert_loads is None:
        found.append("Experts are placed for uniform routing: no expert loads were given.")
    if not realised.is_exact:
        found.append("A placement block was not closed: its bound, not its value, enters the proof.")
    return tuple(found)


def _runners_up(problem: Problem, outcome: Outcome) -> tuple[RunnerUp, ...]:
    assert outcome.best is not None
    winner = outcome.best.strategy.full_label
    return tuple(
        RunnerUp(
            label=strategy.label,
            full_label=strategy.full_label,
            objective=natural_value(problem.objective.name, value, problem.workload.osl),
            gpus=strategy.gpus,
        )
        for value, strategy in outcome.runners_up
        if strategy.full_label != winner
    )[:5]


def space_of(problem: Problem, domains: Domains) -> SpaceSize:
    """Definition and size of the searched space."""
    shown = {
        name: getattr(domains, name)
        for name in (
            "attn_tp", "moe_tp", "moe_ep", "pp", "batch", "micro_batches", "prefill_batch", "mesh_order",
            "decode_allreduce", "prefill_allreduce", "decode_dispatch", "prefill_dispatch", "decode_overlap",
            "prefill_overlap",
        )
    }  # fmt: skip
    return SpaceSize(
        name=problem.space.name,
        definition=(
            "attn_dp = moe_tp * moe_ep / attn_tp where integral (1 for a dense LLM), every number of replicas from 1 "
            f"to the budget of {problem.gpu_budget} GPUs, the listed values of every other decision, every placement "
            "of experts, layers and sequences"
        ),
        domains=shown,
        configurations=space_size(problem, domains),
    )
