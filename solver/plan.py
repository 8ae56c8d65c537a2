"""The plan document: strategy, placement, predicted metrics, memory ledger, certificate; and its expansion per GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from solver.certificate import Certificate, Status
from solver.specs.document import Document
from solver.specs.problem import ObjectiveName, Problem
from solver.specs.runs import numbers_of, runs_text
from solver.specs.spec import Spec
from solver.specs.workload import MAX_SEQUENCES
from solver.strategy import Strategy, StrategyFields
from solver.units import gap_text

READ_VERSIONS = frozenset({"1.0"})
"""Older documents that are read; what is written is of the newest version."""
MAX_BINS = 2**24

Natural = Annotated[int, Field(ge=0)]


def _newest_version(version: object) -> object:
    """The version under which a document of a known older one is kept once it is read."""
    return "1.1" if version in READ_VERSIONS else version


Version = Annotated[Literal["1.1"], BeforeValidator(_newest_version)]


class Deal(Spec):
    """Written form of bins: what every sequence is dealt to, instead of what every bin holds."""

    count: Annotated[int, Field(ge=0, le=MAX_BINS)]
    """Bins, empty ones included."""
    bin_of_sequence: str
    """Bin of sequence 0, 1, 2, ...; ``3-7`` and ``7-3`` count up and down by one."""

    @classmethod
    def of(cls, bins: tuple[tuple[int, ...], ...]) -> Deal | None:
        """The written form, from which :meth:`bins` gives back the same; None where a bin lacks order or a sequence."""
        owners = {sequence: index for index, members in enumerate(bins) for sequence in members}
        if list(map(owners.get, range(len(owners)))).count(None) or sum(map(len, bins)) != len(owners):
            return None
        if any(list(members) != sorted(members) for members in bins):
            return None
        return cls(count=len(bins), bin_of_sequence=runs_text([owners[i] for i in range(len(owners))]))

    def bins(self) -> tuple[tuple[int, ...], ...]:
        """Members of every bin, ascending.

        Raises
        ------
        ValueError
            The text is no list of runs, or names a bin that does not exist.
        """
        members: dict[int, list[int]] = {}
        for sequence, index in enumerate(numbers_of(self.bin_of_sequence, MAX_SEQUENCES)):
            if index >= self.count:
                raise ValueError(f"sequence {sequence} is dealt to bin {index} of {self.count}")
            members.setdefault(index, []).append(sequence)
        return tuple(tuple(members.get(index, ())) for index in range(self.count))


def _dealt(value: object) -> object:
    """Bins of their written form; anything else as it is."""
    if not isinstance(value, dict):
        return value
    return Deal.model_validate(value).bins()


def _deal(bins: tuple[tuple[int, ...], ...] | None) -> Deal | tuple[tuple[int, ...], ...] | None:
    return None if bins is None else Deal.of(bins) or bins


Bins = Annotated[
    tuple[tuple[Natural, ...], ...] | None,
    BeforeValidator(_dealt),
    PlainSerializer(_deal, return_type=Deal | tuple[tuple[int, ...], ...] | None, when_used="json"),
]
"""Sequences of every bin. In a document the :class:`Deal`; lists of sequences by bin are read, too."""


class PlannedStrategy(StrategyFields):
    """The chosen strategy with its two labels."""

    label: str
    full_label: str

    @classmethod
    def of(cls, strategy: Strategy) -> PlannedStrategy:
        """The document form of a strategy."""
        return cls(**strategy.model_dump(), label=strategy.label, full_label=strategy.full_label)

    def strategy(self) -> Strategy:
        """The strategy without its labels."""
        return Strategy(**self.model_dump(exclude={"label", "full_label"}))


class Metrics(Spec):
    """Predicted metrics (DESIGN 4) and the integers they follow from."""

    ttft_ns: Natural
    tpot_ns: Natural
    request_latency_ns: Natural
    throughput_tokens_per_s: float
    efficiency_tokens_per_s_per_gpu: float
    gpus_used: Natural
    decode_step_ns: Natural
    """Time per token of a decode step without prefill interference."""
    prefill_round_ns: Natural
    rounds_per_cycle: Natural
    cycle_ns: Natural
    active_sequences: Natural


class ClosedLoopMetrics(Spec):
    """Means that a closed-loop benchmark client measures, queueing included (docs/cost-model.md, "Closed loop")."""

    concurrency: Natural
    """Requests in flight over all replicas."""
    ttft_ns: Natural
    tpot_ns: Natural
    wait_ns: Natural
    """Part of the TTFT spent waiting for KV cache."""
    resident_per_replica: Natural
    """Requests of a replica whose KV cache fits at once."""


class OperatorSource(Spec):
    """Where the times of one operator of a strategy come from."""

    operator: str
    source: str
    """``analytic: calibration NAME``, or ``silicon: SYSTEM, ENGINE VERSION (PACKAGE)``."""


class Component(Spec):
    """A share of a phase's time on the path of one token or prompt."""

    name: str
    ns: int


class Breakdown(Spec):
    """Where the time of one decode step and of one prefill (all chunks) goes."""

    decode: tuple[Component, ...]
    prefill: tuple[Component, ...]


class StageLedger(Spec):
    """Memory of the fullest rank of one stage: a class of ranks, all `stage_gpus * replicas` of them alike."""

    stage: Natural
    first_layer: Natural
    num_layers: Annotated[int, Field(ge=1)]
    items_kib: dict[str, Natural]
    capacity_kib: Natural

    @property
    def total_kib(self) -> int:
        """Sum of the items."""
        return sum(self.items_kib.values())


class ObjectiveClaim(Spec):
    """The objective in the unit of its metric; the certificate has the exact integers."""

    name: ObjectiveName
    unit: str
    sense: Literal["minimise", "maximise"]
    value: float
    bound: float
    """Proved limit of the value: no plan in the space is better."""
    gap: float


class Placement(Spec):
    """GPU-to-shard map by symmetry class: one instance plus the rank arithmetic of :class:`~solver.packing.Packing`.

    Instance ranks are laid out by the strategy's mesh order into scale-up domains. `expert_maps[m][r]` lists the
    logical experts in the slots of expert-parallel rank r; `map_of_layer[i]` names the map of the i-th MoE layer.
    Sequences (numbered by ascending prompt length) are dealt to bins;
    bin ``(replica * attn_dp + dp_rank) * micro_batches + m``.
    `bins` absent means even dealing of equal sequences: the first ``num_sequences % bins`` bins get one more.
    """

    domain_gpus: Annotated[int, Field(ge=1)]
    gpus_per_node: Annotated[int, Field(ge=1)]
    stage_layers: tuple[Annotated[int, Field(ge=1)], ...]
    moe_tp_fastest: bool
    """Stage rank = ``moe_ep_rank * moe_tp + moe_tp_rank`` when true, else ``moe_tp_rank * moe_ep + moe_ep_rank``."""
    expert_maps: tuple[tuple[tuple[Natural, ...], ...], ...] = ()
    map_of_layer: tuple[Natural, ...] = ()
    num_sequences: Natural
    bins: Bins = None
    load_tokens: Natural
    """Context tokens of the heaviest bin in the middle of generation."""
    lambda_ppm: Natural
    """Mean over MoE layers of max / mean expert-rank load, parts per million."""


class RunnerUp(Spec):
    """A strategy the search evaluated that is not the winner."""

    label: str
    full_label: str
    objective: float
    gpus: Natural


class Tie(Spec):
    """A strategy of other degrees than the winner's, with its best knobs: proved the next best in its turn."""

    strategy: PlannedStrategy
    value: Natural
    """Objective integer, in the certificate's unit."""
    objective: float
    """The same in the unit of the plan's objective."""
    gpus: Natural


class Ties(Spec):
    """What the cost model cannot tell from the winner, as far as it was asked to look."""

    band_percent: Annotated[float, Field(ge=0)]
    """Strategies are listed whose objective is worse by at most so much."""
    at_most: Natural
    """The same as an objective integer."""
    source: str
    """Where the band comes from."""
    tied: tuple[Tie, ...]
    complete: bool
    """Whether it is proved that there is no other one (else the asked number, or the time limit, ended the list)."""


class Difference(Spec):
    """A cost term in which an alternative differs from the winner."""

    term: str
    share: float
    """What the alternative spends on it more than the winner, as a share of the winner's objective; negative: less."""


class Alternative(Spec):
    """The best plan with other degrees than all better-ranked ones, complete with its placement."""

    rank: Annotated[int, Field(ge=2)]
    """Proved: so many combinations of degrees, this one included, have a plan that is as good or better."""
    value: Natural
    """Objective integer, in the certificate's unit."""
    objective: float
    """The same in the unit of the plan's objective."""
    distance: Annotated[float, Field(ge=0)]
    """How much larger the integer is than the winner's: 0.1 is a tenth more time (or time per token, or GPUs)."""
    why: tuple[Difference, ...]
    """The terms of the objective that differ most, largest first."""
    strategy: PlannedStrategy
    metrics: Metrics
    breakdown: Breakdown
    memory: tuple[StageLedger, ...]
    placement: Placement


class Alternatives(Spec):
    """The next best plans of other degrees (attention TP and DP, expert TP and EP, stages), best first."""

    asked: Natural
    ranked: tuple[Alternative, ...]
    complete: bool
    """Whether it is proved that no other degrees have any plan."""


class Plan(Document):
    """One answer: proved (OPTIMAL), or the best found with its gap (FEASIBLE)."""

    noun: ClassVar[str] = "a plan"

    schema_version: Version = "1.1"
    status: Status
    objective: ObjectiveClaim
    strategy: PlannedStrategy
    metrics: Metrics
    breakdown: Breakdown
    memory: tuple[StageLedger, ...]
    placement: Placement
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]
    runners_up: tuple[RunnerUp, ...] = ()
    closed_loop: ClosedLoopMetrics | None = None
    ties: Ties | None = None
    alternatives: Alternatives | None = None
    operator_sources: tuple[OperatorSource, ...] = ()
    """What the times of this strategy rest on, by operator."""
    problem: Problem
    certificate: Certificate

    def __repr__(self) -> str:
        return (
            f"Plan({self.status}, {self.strategy.label}, {self.metrics.gpus_used} GPUs, {self.objective.name} = "
            f"{self.objective.value:g} {self.objective.unit}, gap {gap_text(self.objective.gap)})"
        )

    __str__ = __repr__

    def _repr_markdown_(self) -> str:
        m = self.metrics
        rows = [
            ("status", f"**{self.status}** (gap {gap_text(self.objective.gap)})"),
            ("strategy", f"`{self.strategy.label}` = `{self.strategy.full_label}`"),
            ("GPUs", str(m.gpus_used)),
            ("TTFT", f"{m.ttft_ns / 1e6:.3f} ms"),
            ("TPOT", f"{m.tpot_ns / 1e6:.3f} ms"),
            ("request latency", f"{m.request_latency_ns / 1e6:.3f} ms"),
            ("throughput", f"{m.throughput_tokens_per_s:,.1f} tokens/s"),
            ("efficiency", f"{m.efficiency_tokens_per_s_per_gpu:,.1f} tokens/s/GPU"),
        ]
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


class Evaluation(Spec):
    """Metrics and ledger of a strategy that the caller named; it may break memory or SLOs, and then says so."""

    schema_version: Version = "1.1"
    strategy: PlannedStrategy
    metrics: Metrics
    breakdown: Breakdown
    memory: tuple[StageLedger, ...]
    placement: Placement
    closed_loop: ClosedLoopMetrics
    violations: tuple[str, ...]
    """Broken memory and SLO rules with their numbers; empty when the strategy is a plan."""
    operator_sources: tuple[OperatorSource, ...]
    """What the times of this strategy rest on, by operator."""
    assumptions: tuple[str, ...]
    problem: Problem

    def __repr__(self) -> str:
        m = self.metrics
        return (
            f"Evaluation({self.strategy.full_label}, {m.gpus_used} GPUs, TTFT {m.ttft_ns / 1e6:.3f} ms, TPOT "
            f"{m.tpot_ns / 1e6:.3f} ms, {m.throughput_tokens_per_s:.1f} tokens/s, {len(self.violations)} violations)"
        )

    __str__ = __repr__


class NoPlan(Spec):
    """The answer when there is no plan: proved INFEASIBLE with the constraints that exclude every plan, or UNKNOWN."""

    schema_version: Literal["1.0"] = "1.0"
    status: Literal["INFEASIBLE", "UNKNOWN"]
    reasons: tuple[str, ...]
    """Constraints with their numbers, most telling first."""
    problem_digest: str
    wall_s: float

    def __repr__(self) -> str:
        return f"NoPlan({self.status}: {'; '.join(self.reasons)})"

    __str__ = __repr__


@dataclass(frozen=True)
class Comparison:
    """A deployment that exists beside the best one on as many GPUs."""

    current: Evaluation | None
    """Absent where the deployment breaks a rule of legality."""
    broken: str
    """Which; empty where it breaks none."""
    optimum: Plan | NoPlan

    @property
    def gain(self) -> float | None:
        """How much better the optimum is: 0.25 is a quarter less time, or a quarter more throughput."""
        if self.current is None or not isinstance(self.optimum, Plan):
            return None
        mine, best = self.current.metrics, self.optimum.metrics
        if self.optimum.objective.sense == "maximise":
            rate = "efficiency_tokens_per_s_per_gpu" if self.optimum.objective.name == "efficiency" else None
            name = rate or "throughput_tokens_per_s"
            return float(getattr(best, name) / getattr(mine, name)) - 1
        times = {"ttft": "ttft_ns", "tpot": "tpot_ns", "gpus": "gpus_used"}
        name = times.get(self.optimum.objective.name, "request_latency_ns")
        return 1 - float(getattr(best, name) / getattr(mine, name))
