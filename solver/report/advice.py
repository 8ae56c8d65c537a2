"""What could still be changed, each with the number that the cost model gives for it; and what is communicated."""

from __future__ import annotations

from dataclasses import dataclass, replace

from solver.cost.layers import Blocks, PhaseTimes
from solver.cost.leaves import PPM, Leaves, as_ints
from solver.cost.machine import Phase
from solver.cost.metrics import Figures, evaluate_times, objective_value
from solver.legality import violations
from solver.plan import Plan
from solver.specs.llm import LayerKind
from solver.specs.problem import Problem
from solver.strategy import Strategy, packing_of

PERFECT = PPM
"""Load factor of perfectly balanced experts."""


@dataclass(frozen=True)
class Advice:
    """One possible change: what it is, and the objective's integer (smaller is better) before and after it."""

    what: str
    before: int
    after: int
    latency_ns: int
    """Request latency with the change."""
    remark: str = ""

    @property
    def gain(self) -> float:
        """Share of the objective that the change saves (of the time per token for rates); negative when it costs."""
        return 1 - self.after / self.before if self.before else 0.0


@dataclass(frozen=True)
class Collective:
    """One kind of communication in one phase: operations per pass, bytes per rank and operation, time of each."""

    phase: Phase
    name: str
    group: int
    operations: int
    payload_bytes: int
    each_ns: int

    @property
    def total_ns(self) -> int:
        """Time of all of them on the path of a pass."""
        return self.operations * self.each_ns


def blocks_of(plan: Plan) -> Blocks:
    """The placement as the cost model sees it."""
    placement = plan.placement
    return Blocks(placement.load_tokens, placement.lambda_ppm, placement.stage_layers)


def collectives(plan: Plan) -> list[Collective]:
    """Communication of one decode step and of one prefill pass; kinds of layers are added up."""
    problem, strategy = plan.problem, plan.strategy.strategy()
    leaves = Leaves(problem)
    found: list[Collective] = []
    phases: tuple[Phase, ...] = ("decode", "prefill")
    for phase in phases:
        times = PhaseTimes(leaves, strategy, packing_of(problem, strategy), phase, blocks_of(plan))
        token_bytes = leaves.comm.token_bytes
        by_name: dict[tuple[str, int, int, int], int] = {}
        for kind in problem.llm.kinds:
            count = problem.llm.layers.count(kind)
            for name, group, number, payload, each in _of_layer(leaves, strategy, times, kind):
                if each:
                    key = (name, group, payload, each)
                    by_name[key] = by_name.get(key, 0) + number * count
        found += [
            Collective(phase, name, group, number, payload, each)
            for (name, group, payload, each), number in by_name.items()
        ]
        if times.hop_ns:
            payload = round(times.group_tokens * token_bytes / strategy.attn_tp)
            found.append(Collective(phase, "pipeline hop", 2, strategy.pp - 1, payload, times.hop_ns))
        if phase == "decode" and times.return_ns:
            found.append(Collective(phase, "return of sampled tokens", 2, 1, 4 * times.group_tokens, times.return_ns))
    return found


def _of_layer(
    leaves: Leaves, strategy: Strategy, times: PhaseTimes, kind: LayerKind
) -> list[tuple[str, int, int, int, int]]:
    """(name, group size, operations, bytes per rank, ns each) of one layer."""
    layer, vector = times.layer(kind), leaves.comm.token_bytes
    reduces = leaves.num_allreduces(kind.ffn, times.dispatch)
    payload = round(times.group_tokens * vector)
    rows = [(f"{times.allreduce} all-reduce", strategy.attn_tp, reduces, payload, layer.allreduce_ns // reduces)]
    if kind.ffn == "moe" and layer.exchange_ns:
        name = {"all_to_all": "dispatch + combine (all-to-all)", "gather": "gather + reduce-scatter"}[times.dispatch]
        if times.dispatch == "gather" and strategy.attn_dp == 1:
            name = "all-reduce of the experts' output"
        tokens = strategy.attn_dp * times.group_tokens
        sent = payload if name.startswith("all-reduce") else tokens * (leaves.comm.dispatch_bytes + vector)
        if times.dispatch == "all_to_all":
            copies = float(leaves.comm.destinations(as_ints(strategy.moe_ep)[0])) * strategy.moe_tp
            sent = sent * copies / strategy.stage_gpus
        rows.append((name, strategy.stage_gpus, 1, round(sent), layer.exchange_ns))
    return rows


def figures(problem: Problem, strategy: Strategy, blocks: Blocks) -> Figures:
    """Metrics of a strategy with given placement blocks."""
    return evaluate_times(Leaves(problem), strategy, packing_of(problem, strategy), blocks)


def _price(plan: Plan, figures_: Figures) -> int:
    """The objective integer; the request latency where the objective is weighted or counts GPUs."""
    name = plan.objective.name
    return objective_value("latency" if name in ("weighted", "gpus") else name, figures_)


def recommendations(plan: Plan) -> list[Advice]:
    """Changes to knobs, formats and balance, each priced by the cost model with everything else as planned."""
    problem, strategy, blocks = plan.problem, plan.strategy.strategy(), blocks_of(plan)
    before = _price(plan, figures(problem, strategy, blocks))
    found: list[Advice] = []

    def price(what: str, changed: Strategy, remark: str = "") -> None:
        if changed == strategy or violations(problem.model_copy(update={"pins": type(problem.pins)()}), changed):
            return
        then = figures(problem, changed, blocks)
        found.append(Advice(what, before, _price(plan, then), then.request_latency_ns, remark))

    for phase in ("decode", "prefill"):
        overlap = getattr(strategy, f"{phase}_overlap")
        word = "Switch two-batch overlap off" if overlap else "Overlap communication with computation (two batches)"
        price(f"{word} in {phase}", strategy.model_copy(update={f"{phase}_overlap": not overlap}))
        if strategy.attn_tp > 1:
            price(
                f"Hierarchical all-reduce in {phase}",
                strategy.model_copy(update={f"{phase}_allreduce": "hierarchical"}),
                f"now {getattr(strategy, f'{phase}_allreduce')}",
            )
    if strategy.pp > 1:
        for count in {strategy.pp, max(1, strategy.micro_batches // 2)} - {strategy.micro_batches}:
            batch = -(-strategy.batch * strategy.micro_batches // count)
            price(
                f"{count} micro-batches of {batch}",
                strategy.model_copy(update={"micro_batches": count, "batch": batch}),
                f"now {strategy.micro_batches} of {strategy.batch}",
            )
    if problem.llm.is_moe:
        found += _on_experts(plan, before)
    return sorted(found, key=lambda advice: -advice.gain)


def _on_experts(plan: Plan, before: int) -> list[Advice]:
    """Compression of the exchange, and what perfect balance of the experts could bring at most."""
    problem, strategy, blocks = plan.problem, plan.strategy.strategy(), blocks_of(plan)
    found = []
    dtypes = problem.llm.dtypes
    if dtypes.dispatch not in ("fp8", "int8") and "fp8" in problem.cluster.gpu.peak and strategy.moe_ep > 1:
        llm = problem.llm.model_copy(update={"dtypes": dtypes.model_copy(update={"dispatch": "fp8"})})
        then = figures(problem.model_copy(update={"llm": llm}), strategy, blocks)
        found.append(
            Advice(
                "Compress dispatched tokens to fp8",
                before,
                _price(plan, then),
                then.request_latency_ns,
                f"now {dtypes.dispatch}; costs accuracy",
            )
        )
    if blocks.lambda_ppm > PERFECT:
        then = figures(problem, strategy, replace(blocks, lambda_ppm=PERFECT))
        remark = (
            f"upper bound of what redundant experts can gain; the busiest rank now has {blocks.lambda_ppm / PPM:.3f} x"
        )
        found.append(
            Advice("Perfect balance of the experts", before, _price(plan, then), then.request_latency_ns, remark)
        )
    return found
