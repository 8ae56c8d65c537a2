"""The sections of a plan's report: question, answer, proof, balance, communication, recommendations, files.

Titles are those of the deployment document that started the project, so that the two can be laid side by side.
"""

from __future__ import annotations

from solver.front import Front
from solver.plan import Evaluation, Plan
from solver.report.advice import collectives, recommendations
from solver.report.alternatives import alternatives_blocks
from solver.report.answer import limit_words, objective_text, proof_words
from solver.report.document import Block, Bullets, Chart, Document, Grid, Paragraph, Section
from solver.report.fronts import front_section
from solver.report.terminal import plural, rate
from solver.units import gap_text, short_bytes, short_ns
from solver.verify import Verification

KIB = 1024


def document_of(
    plan: Plan,
    verdict: Verification,
    targets: tuple[str, ...],
    reference: Evaluation | None = None,
    front: Front | None = None,
) -> Document:
    """The report of a plan; `targets` launch it, `reference` is a strategy to compare with, `front` shows rivals."""
    strategy, problem = plan.strategy, plan.problem
    sections = [
        Section("Executive Summary", tuple(_summary(plan, reference))),
        Section("Hardware Environment Analysis", ()),
        Section("Available Resources", tuple(_hardware(plan)), 3),
        Section("Performance Targets", tuple(_targets(plan)), 3),
        Section("Model Configuration Analysis", ()),
        Section("Model Architecture", tuple(_architecture(plan)), 3),
        Section("Memory Requirements", tuple(_memory(plan)), 3),
        Section(f"Optimal Parallel Strategy: {strategy.label}", ()),
        Section("Strategy Composition", tuple(_composition(plan)), 3),
        Section("Total GPU Utilization", tuple(_gpus(plan)), 3),
        Section("Load Balancing Analysis", tuple(_balance(plan))),
        Section("Performance Optimization", tuple(_performance(plan))),
        Section("Communication Optimization", tuple(_communication(plan)), 3),
        *([Section("Comparison with a reference", tuple(_comparison(plan, reference)), 3)] if reference else []),
        *([Section("Alternatives", tuple(alternatives_blocks(plan)), 3)] if plan.alternatives else []),
        *([front_section(front)] if front is not None else []),
        Section("Implementation Details", ()),
        Section("Prefill Phase Strategy", (Bullets(_phase(plan, "prefill")),), 3),
        Section("Decode Phase Strategy", (Bullets(_phase(plan, "decode")),), 3),
        Section("Placement", (Chart("map", "Every GPU of the cluster"),), 3),
        Section("Optimization Recommendations", tuple(_recommendations(plan))),
        Section("Validation Results", tuple(_validation(plan, verdict))),
        Section("Assumptions and Warnings", tuple(_remarks(plan))),
        Section("Conclusion", (Paragraph(_conclusion(plan)),)),
        Section("Deployment Files Generated", tuple(_files(targets))),
    ]
    return Document(
        f"{strategy.label} for {problem.llm.name} on {plural(plan.metrics.gpus_used, 'GPU')}",
        f"shardwright plan {plan.digest}",
        tuple(sections),
    )


def _claim(plan: Plan) -> str:
    value = objective_text(plan.objective, plan.objective.value)
    if plan.status == "OPTIMAL":
        return f"{plan.objective.name} {value}, proved optimal: no strategy and placement in the space is better"
    bound = objective_text(plan.objective, plan.objective.bound)
    return f"{plan.objective.name} {value}; bound {bound}, {proof_words(plan)}"


def _summary(plan: Plan, reference: Evaluation | None) -> list[Block]:
    m = plan.metrics
    rows = [
        ("Status", plan.status),
        ("Objective", _claim(plan)),
        ("TTFT", short_ns(m.ttft_ns)),
        ("TPOT", short_ns(m.tpot_ns)),
        ("Request latency", short_ns(m.request_latency_ns)),
        ("Throughput", rate(m.throughput_tokens_per_s, "tokens/s")),
        ("Efficiency", rate(m.efficiency_tokens_per_s_per_gpu, "tokens/s/GPU")),
        ("GPUs used", f"{m.gpus_used:,} of {plan.problem.cluster.num_gpus:,}"),
    ]
    blocks: list[Block] = [
        Paragraph(
            f"{plan.problem.llm.name} is best served on {plan.problem.cluster.name} by {plan.strategy.label} = "
            f"{plan.strategy.full_label}, under the cost model and in the search space that the certificate names."
        ),
        Grid(("", ""), tuple(rows)),
    ]
    if reference is not None:
        theirs = reference.metrics
        blocks.append(
            Paragraph(
                f"The reference {reference.strategy.label} takes {short_ns(theirs.request_latency_ns)} per request on "
                f"{theirs.gpus_used:,} GPUs: {theirs.request_latency_ns / m.request_latency_ns:.2f} times as long."
            )
        )
    return blocks


def _hardware(plan: Plan) -> list[Block]:
    cluster, calibration = plan.problem.cluster, plan.problem.calibration
    gpu = cluster.gpu
    peaks = ", ".join(f"{unit} {value / 1e12:g} TFLOP/s" for unit, value in gpu.peak.items())
    rows = [
        ("GPUs", f"{cluster.num_gpus:,} x {gpu.name}, {cluster.gpus_per_node} per node"),
        ("Peak", peaks),
        ("GEMM efficiency", ", ".join(f"{unit} {share:.0%}" for unit, share in calibration.gemm_efficiency.items())),
        ("Memory bandwidth", f"{gpu.memory_bandwidth / 1e12:g} TB/s at {calibration.memory_efficiency:.0%}"),
        ("Memory", f"{short_bytes(gpu.memory)}, {calibration.usable_memory:.0%} usable"),
    ]  # fmt: skip
    rows += [
        (f"Link: {level.name}", f"{level.bandwidth / 1e9:g} GB/s per GPU and direction, {short_ns(level.latency)}"
         + (f", joins {level.gpus}" if level.gpus else ""))
        for level in cluster.levels
    ]  # fmt: skip
    return [Grid(("Resource", "Value"), tuple(rows))]


def _targets(plan: Plan) -> list[Block]:
    workload = plan.problem.workload
    lengths = workload.prompt_lengths
    low, high = lengths[0], workload.longest_isl
    limits = limit_words(plan.problem)
    return [
        Bullets(
            (
                f"Objective: {plan.objective.sense} {plan.objective.name}",
                f"Prompts of {low if low == high else f'{low} to {high}'} tokens, {workload.osl} tokens out, "
                + ("concurrency free" if workload.concurrency is None else f"{workload.concurrency} concurrent"),
                "Limits: " + ("; ".join(limits) or "none"),
            )
        )
    ]


def _architecture(plan: Plan) -> list[Block]:
    llm = plan.problem.llm
    rows = [
        ("Parameters", f"{llm.total_parameters / 1e9:.2f} B"),
        ("Layers", f"{llm.num_layers}, {llm.num_moe_layers} of them with experts"),
        ("Hidden size", f"{llm.hidden_size}"),
        ("Attention", f"{llm.num_heads} heads, {llm.num_kv_heads} KV heads, head dimension {llm.head_dim}"),
        ("Formats", f"attention {llm.dtypes.attention}, experts {llm.dtypes.experts}, KV {llm.dtypes.kv}"),
    ]
    if llm.moe is not None:
        moe = llm.moe
        rows.append(("Experts", f"{moe.num_experts} per layer, {moe.top_k} per token, width {moe.expert_width}"))
    return [Grid(("", ""), tuple(rows))]


def _memory(plan: Plan) -> list[Block]:
    names = [name for name in plan.memory[0].items_kib if any(stage.items_kib.get(name) for stage in plan.memory)]
    names.sort(key=lambda name: -max(stage.items_kib.get(name, 0) for stage in plan.memory))
    header = ("Item", *(f"stage {stage.stage}" for stage in plan.memory))
    rows = [(name.replace("_", " "), *(_kib(s.items_kib.get(name, 0)) for s in plan.memory)) for name in names]
    rows.append(("sum", *(_kib(stage.total_kib) for stage in plan.memory)))
    rows.append(("usable", *(_kib(stage.capacity_kib) for stage in plan.memory)))
    return [Chart("memory", "Memory of the fullest rank, by stage"), Grid(header, tuple(rows))]


def _kib(kib: int) -> str:
    return short_bytes(kib * KIB) if kib else "0"


def _composition(plan: Plan) -> list[Block]:
    s = plan.strategy
    experts = (
        f"Experts: TP {s.moe_tp} x EP {s.moe_ep} on the same ranks, {s.decode_dispatch.replace('_', '-')} in decode, "
        f"{s.prefill_dispatch.replace('_', '-')} in prefill"
    )
    items = [
        f"Attention: TP {s.attn_tp} x DP {s.attn_dp} in each stage",
        *([experts] if plan.problem.llm.is_moe else []),
        f"Pipeline: {plural(s.pp, 'stage')} of {', '.join(map(str, plan.placement.stage_layers))} layers",
        f"Replicas: {s.replicas} independent instances",
        f"Batch: {s.batch} sequences per attention-DP rank and micro-batch, {plural(s.micro_batches, 'micro-batch')}",
        f"Rank order: {s.mesh_order} (fastest first)",
    ]
    return [Bullets(tuple(items))]


def _gpus(plan: Plan) -> list[Block]:
    s = plan.strategy.strategy()
    return [
        Paragraph(
            f"{s.replicas} replicas x {s.pp} stages x ({s.attn_tp} attention TP x {s.attn_dp} attention DP) = "
            f"{s.gpus:,} GPUs; the cluster has {plan.problem.cluster.num_gpus:,}."
        )
    ]


def _balance(plan: Plan) -> list[Block]:
    s, placement = plan.strategy.strategy(), plan.placement
    stages = [f"{count}" for count in placement.stage_layers]
    decode = {c.name: c.ns for c in plan.breakdown.decode}
    waiting = next((ns for name, ns in decode.items() if name.startswith("waiting")), 0)
    used = [stage.total_kib / stage.capacity_kib for stage in plan.memory]
    rows = [
        ("Layers", f"{' + '.join(stages)} per stage", f"waiting for the slowest stage {short_ns(waiting)} per step"),
        ("Sequences", f"{placement.num_sequences:,} on {s.replicas * s.attn_dp * s.micro_batches:,} bins",
         f"heaviest bin {placement.load_tokens:,} context tokens"),
        ("Memory", f"{min(used):.1%} to {max(used):.1%} of the usable memory", "fullest rank of each stage"),
    ]  # fmt: skip
    if plan.problem.llm.is_moe:
        moe = plan.problem.llm.moe
        slots = (moe.num_experts if moe else 0) + plan.problem.redundant_experts
        loads = "measured loads" if plan.problem.workload.expert_loads else "uniform routing (no loads were given)"
        per_rank = f"{slots / s.moe_ep:g} expert slots per EP rank"
        rows.insert(0, ("Experts", per_rank, f"busiest rank {placement.lambda_ppm / 1e6:.3f} x the mean under {loads}"))
    return [Grid(("Load", "Split", "Balance"), tuple(rows)), Chart("balance", "Load of the expert-parallel ranks")]


def _performance(plan: Plan) -> list[Block]:
    names = list(dict.fromkeys(c.name for c in (*plan.breakdown.decode, *plan.breakdown.prefill)))
    decode = {c.name: c.ns for c in plan.breakdown.decode}
    prefill = {c.name: c.ns for c in plan.breakdown.prefill}
    total = (sum(decode.values()), sum(prefill.values()))
    names.sort(key=lambda name: -decode.get(name, 0))
    rows = [(name, _share(decode.get(name), total[0]), _share(prefill.get(name), total[1])) for name in names]
    rows.append(("sum", short_ns(total[0]), short_ns(total[1])))
    blocks: list[Block] = [
        Chart("times", "Time of one decode step and of one prefill"),
        Grid(("Component", "decode step", "prefill"), tuple(rows)),
    ]
    if plan.runners_up:
        header = ("Runner-up", plan.objective.name, "GPUs")
        runners = tuple((r.label, objective_text(plan.objective, r.objective), f"{r.gpus:,}") for r in plan.runners_up)
        blocks += [
            Chart("runners", "The plan and its runners-up"),
            Grid(header, runners, "scored on the way; others may lie between"),
        ]
    return blocks


def _share(ns: int | None, total: int) -> str:
    return "" if ns is None else f"{short_ns(ns)} ({ns / total:.0%})" if total else short_ns(ns)


def _communication(plan: Plan) -> list[Block]:
    rows = tuple(
        (c.phase, c.name, f"{c.group}", f"{c.operations}", short_bytes(c.payload_bytes), short_ns(c.each_ns),
         short_ns(c.total_ns))
        for c in collectives(plan)
    )  # fmt: skip
    if not rows:
        return [Paragraph("One GPU per instance: nothing is communicated.")]
    header = ("Phase", "Collective", "Ranks", "Operations", "Bytes per rank", "Time each", "Time in all")
    return [Grid(header, rows, "per pass over all layers, before overlap; times include the latency of each call")]


def _comparison(plan: Plan, reference: Evaluation | None) -> list[Block]:
    if reference is None:
        return []
    mine, theirs = plan.metrics, reference.metrics
    rows = [
        (name, short_ns(getattr(theirs, key)), short_ns(getattr(mine, key)),
         f"{getattr(theirs, key) / max(1, getattr(mine, key)):.2f} x")
        for name, key in (("TTFT", "ttft_ns"), ("TPOT", "tpot_ns"), ("Request latency", "request_latency_ns"))
    ]  # fmt: skip
    rows.append(
        ("Throughput", rate(theirs.throughput_tokens_per_s, "tokens/s"), rate(mine.throughput_tokens_per_s, "tokens/s"),
         f"{theirs.throughput_tokens_per_s / mine.throughput_tokens_per_s:.2f} x")
    )  # fmt: skip
    rows.append(("GPUs", f"{theirs.gpus_used:,}", f"{mine.gpus_used:,}", f"{theirs.gpus_used / mine.gpus_used:.2f} x"))
    blocks: list[Block] = [Grid(("", reference.strategy.label, plan.strategy.label, "ratio"), tuple(rows))]
    if reference.violations:
        blocks.append(Bullets(reference.violations))
    return blocks


def _phase(plan: Plan, phase: str) -> tuple[str, ...]:
    s = plan.strategy
    allreduce, dispatch = getattr(s, f"{phase}_allreduce"), getattr(s, f"{phase}_dispatch")
    items = [
        f"All-reduce over attention TP {s.attn_tp}: {allreduce}" if s.attn_tp > 1 else "No tensor parallelism",
        f"Two-batch overlap: {'on' if getattr(s, f'{phase}_overlap') else 'off'}",
    ]
    if plan.problem.llm.is_moe:
        items.insert(1, f"Experts reached by {'all-to-all' if dispatch == 'all_to_all' else 'gather and reduce'}")
    if phase == "prefill":
        items.append(
            f"{plural(s.prefill_batch, 'prompt')} at a time per attention-DP rank, steps of at most "
            f"{plan.problem.workload.prefill_chunk_tokens:,} tokens"
        )
    else:
        items.append(f"{plural(s.micro_batches, 'micro-batch')} of {s.batch} sequences in flight")
    return tuple(items)


def _recommendations(plan: Plan) -> list[Block]:
    rows = tuple(
        (a.what, f"{a.gain:+.2%}", short_ns(a.latency_ns), a.remark or ("worth it" if a.gain > 0 else "leave as it is"))
        for a in recommendations(plan)
    )
    if not rows:
        return [Paragraph("No single knob, format or balance is left to change.")]
    name = plan.objective.name
    measure = {"throughput": "time per token", "efficiency": "GPU time per token"}.get(name, name)
    measure = "request latency" if name in ("latency", "weighted", "gpus") else measure
    note = (
        f"What the change alone would save of the {measure} under the cost model, all else as planned; "
        "negative: it would cost. A positive one is outside of the objective, the limits or the space of the search."
    )
    return [Grid(("Change", "Saves", "Request latency then", "Remark"), rows, note)]


def _validation(plan: Plan, verdict: Verification) -> list[Block]:
    c = plan.certificate
    seconds = "" if c.wall_s is None else f", {c.wall_s.total:.2f} s"
    rows = [
        ("verify", f"{len(verdict.checks)} rules examined, {'all hold' if verdict.ok else 'the plan is convicted'}"),
        ("value / bound", f"{c.value:,} / {c.bound:,} {c.objective_unit}, gap {gap_text(c.gap)}"),
        ("space", f"{c.space.name}: {c.space.configurations:,} configurations, with every placement of each"),
        ("search", f"{plural(len(c.iterations), 'iteration')}{seconds}, OR-Tools {c.versions.ortools}"),
        ("problem digest", c.digests.problem),
    ]
    blocks: list[Block] = [Grid(("Check", "Result"), tuple(rows))]
    if verdict.findings:
        blocks.append(Bullets(tuple(str(finding) for finding in verdict.findings)))
    return blocks


def _remarks(plan: Plan) -> list[Block]:
    blocks: list[Block] = []
    if plan.warnings:
        blocks.append(Bullets(plan.warnings))
    if plan.assumptions:
        blocks += [Paragraph("Assumed, because the sources do not say:"), Bullets(plan.assumptions)]
    return blocks or [Paragraph("None.")]


def _conclusion(plan: Plan) -> str:
    word = "is the proved optimum" if plan.status == "OPTIMAL" else "is the best plan found"
    return (
        f"{plan.strategy.label} {word} for {plan.problem.llm.name} on {plan.problem.cluster.name}: {_claim(plan)}. The "
        f"claim holds for this cost model (calibration {plan.problem.calibration.name}) and this space; run verify to "
        "re-examine it without the solver."
    )


def _files(targets: tuple[str, ...]) -> list[Block]:
    return [
        Paragraph("Each command writes the files of one launcher; every file names this plan."),
        Bullets(tuple(f"export plan.json --to {target} --out {target}/" for target in targets)),
    ]
