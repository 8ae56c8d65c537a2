"""The public journeys, each on one screen. ``solver.search`` (and OR-tools with it) is imported only to solve."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from solver.audit import AuditReport, Claims, proposed_strategy
from solver.audit import audit as _audit
from solver.expertmap import ExpertPlacement
from solver.plan import Evaluation, GpuRecord, NoPlan, Plan, expand
from solver.specs import catalog
from solver.specs.placing import Placing
from solver.specs.problem import Objective, Problem
from solver.specs.windows import LoadWindow
from solver.strategy import Strategy, parse_label
from solver.verify import verify

if TYPE_CHECKING:
    from solver.search.loop import Progress

__all__ = [
    "PlaceOptions", "SolveOptions", "check", "evaluate", "place", "placement", "reference_problem", "solve", "verify",
]  # fmt: skip


@dataclass(frozen=True)
class SolveOptions:
    """How hard :func:`solve` looks; it never changes what is claimed, only whether it is proved in time."""

    workers: int | None = None
    """Threads of CP-SAT; absent means 1 (as fast as two on these programs, and exactly reproducible)."""
    seed: int = 0
    time_limit_s: float | None = None
    """Seconds; absent means until proved."""
    on_progress: Callable[[Progress], None] | None = None
    """Called with objective, bound, gap and elapsed time whenever they improve."""


@dataclass(frozen=True)
class PlaceOptions:
    """How hard :func:`place` looks."""

    time_limit_s: float = 30.0
    seed: int = 0
    turns: int = 1000
    """Most turns of the search; with time for all of them the result depends on the seed alone."""
    workers: int = 1
    """Processes among which the layers are dealt."""


def reference_problem(objective: Objective | None = None) -> Problem:
    """The reference deployment: 30B MoE, 2048 GPUs, 128 sequences of 128 to 10240 tokens (entry `reference`)."""
    cluster = catalog.load_cluster("reference")
    return Problem(
        llm=catalog.load_llm("reference"),
        cluster=cluster,
        workload=catalog.load_workload("reference"),
        calibration=catalog.load_calibration(cluster.calibration),
        objective=objective or Objective(),
    )


def solve(problem: Problem | None = None, options: SolveOptions | None = None) -> Plan | NoPlan:
    """Find the provably best plan of a problem (of the reference deployment when none is given).

    Returns a :class:`Plan` with status OPTIMAL (proved) or FEASIBLE (time limit or Ctrl-C; its true gap is stated), or
    a :class:`NoPlan` with status INFEASIBLE (proved; names the constraints) or UNKNOWN. Infeasible is an answer, not an
    exception.
    """
    from solver.search.run import SearchOptions, search

    options = options or SolveOptions()
    how = SearchOptions(options.workers, options.seed, options.time_limit_s)
    return search(problem or reference_problem(), how, options.on_progress or (lambda _progress: None))


def place(
    windows: Sequence[LoadWindow], placing: Placing, options: PlaceOptions | None = None
) -> ExpertPlacement:
    """Place expert replicas on ranks from measured loads; the independent judge has passed what is returned.

    Raises
    ------
    SpecError
        The question makes no sense.
    NoPlacementError
        No placement exists, proved.
    RuntimeError
        The judge convicts the placement: a bug of this package.
    """
    from solver.place.run import run_place
    from solver.place.static import Effort
    from solver.verify.expert_map import judge_placement

    options = options or PlaceOptions()
    effort = Effort(options.time_limit_s, options.seed, turns=options.turns, workers=options.workers)
    placed = run_place(placing, tuple(windows), effort)
    verdict = judge_placement(placed, windows, placing.current)
    if not verdict.ok:
        raise RuntimeError(f"the judge convicts the placement: {verdict.findings[0]}")
    return placed


def evaluate(problem: Problem, strategy: Strategy | str) -> Evaluation:
    """Metrics, ledger and placement of a strategy the caller names; nothing is claimed about other strategies.

    A :class:`Strategy` is taken exactly as given. A label (``EP64-TP8-PP2-DP2``) leaves batch, micro-batches and the
    other knobs open; they are set to the best for the problem's objective with those degrees.

    Raises
    ------
    StrategyError
        The strategy breaks a rule of legality; the sentence names the rule and its numbers. Memory and SLOs that do not
        hold are reported in ``violations`` instead.
    """
    from solver.search.evaluate import evaluate_label, evaluate_strategy

    if isinstance(strategy, str):
        return evaluate_label(problem, parse_label(strategy))
    return evaluate_strategy(problem, strategy)


def check(problem: Problem, strategy: Strategy | str, claims: Claims | None = None) -> AuditReport:
    """Audit a proposed strategy, and the claims made for it: legality, memory, arithmetic. Every finding says why."""
    if isinstance(strategy, str):
        claims = (claims or Claims(source=f"label {strategy}")).model_copy(update={"label": strategy})
        return _audit(problem, proposed_strategy(problem, claims), claims)
    return _audit(problem, strategy, claims)


def placement(plan: Plan) -> Iterator[GpuRecord]:
    """One record per used GPU: node, stage, ranks, layers, experts, sequences; streams."""
    return expand(plan)
