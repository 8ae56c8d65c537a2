"""The public journeys, each on one screen. ``solver.search`` (and OR-tools with it) is imported only to solve."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from solver.audit import AuditReport, Claims, proposed_strategy
from solver.audit import audit as _audit
from solver.deployment import DeploymentPlan
from solver.errors import PlanError, SpecError, StrategyError
from solver.expansion import GpuRecord, expand
from solver.expertmap import ExpertPlacement
from solver.explanation import Explanation, WhatIf
from solver.front import Front, metric_pair
from solver.plan import Comparison, Evaluation, NoPlan, Plan
from solver.scenarioplan import ScenarioPlan
from solver.slotbudget import SlotBudget
from solver.specs import catalog
from solver.specs.calibration import Calibration
from solver.specs.deploying import Deploying
from solver.specs.measurements import Measurement, read_measurements, served_cluster
from solver.specs.placing import Placing
from solver.specs.problem import Objective, ObjectiveName, Pins, Problem
from solver.specs.scenarios import Over, Scenarios
from solver.specs.slots import SlotSweep, Spending
from solver.specs.vary import Vary
from solver.specs.windows import LoadWindow
from solver.strategy import Strategy, parse_label
from solver.verify import verify
from solver.verify.deployment import verify_deployment
from solver.verify.explained import verify_explanation
from solver.verify.front import verify_front

if TYPE_CHECKING:
    from solver.fitting.journey import CalibrationReport, Prediction
    from solver.place.progress import PlaceProgress
    from solver.place.static import Effort
    from solver.search.explain.journey import Watcher
    from solver.search.front import FrontProgress
    from solver.search.loop import Progress
    from solver.search.run import SearchOptions

__all__ = [
    "ExplainOptions",
    "ParetoOptions",
    "PlaceOptions",
    "SolveOptions",
    "calibrate",
    "check",
    "compare",
    "deploy",
    "evaluate",
    "explain",
    "pareto",
    "place",
    "placement",
    "predict",
    "read_measurements",
    "reference_problem",
    "solve",
    "solve_scenarios",
    "spend_slots",
    "verify",
    "verify_deployment",
    "verify_explanation",
    "verify_front",
    "what_if",
]


@dataclass(frozen=True)
class SolveOptions:
    """How hard :func:`solve` looks; it never changes what is claimed, only whether it is proved in time."""

    workers: int | None = None
    """Threads of CP-SAT; absent means 1 (as fast as two on these programs, and exactly reproducible)."""
    seed: int = 0
    time_limit_s: float | None = None
    """Seconds; absent means until proved."""
    gap: float = 0.0
    """Relative gap that is close enough (0.001 is 0.1 %): the search stops there, with status FEASIBLE and its gap."""
    ties: int = 0
    """List so many strategies of other degrees whose objective is within the calibration's error of the winner's; each
    is proved the next best by a solve of its own."""
    alternatives: int = 0
    """Rank so many plans of other degrees, each with its best knobs and placement, proved the next best."""
    on_progress: Callable[[Progress], None] | None = None
    """Called with objective, bound, gap and elapsed time whenever they improve."""


@dataclass(frozen=True)
class ExplainOptions:
    """How hard :func:`explain` and :func:`what_if` look; what a limit leaves open is reported as open."""

    workers: int | None = None
    """Threads of CP-SAT; absent means 1."""
    seed: int = 0
    time_limit_s: float | None = None
    """Seconds for all questions together; absent means until proved."""
    on_question: Callable[[str], None] | None = None
    """Called with a few words before every problem that is solved on the way."""


@dataclass(frozen=True)
class ParetoOptions:
    """How far :func:`pareto` goes; every point is proved whatever is chosen here."""

    points: int | None = None
    """So many points at most, both ends and evenly spread between them; absent means the whole front."""
    workers: int | None = None
    """Threads of CP-SAT; absent means 1."""
    seed: int = 0
    time_limit_s: float | None = None
    """Seconds; absent means until done."""
    resume: Front | None = None
    """A front of the same question to go on from; the judge examines its points first."""
    on_progress: Callable[[FrontProgress], None] | None = None
    """Called with every point that is found and every gap that is narrowed."""


@dataclass(frozen=True)
class PlaceOptions:
    """How hard :func:`place` looks."""

    time_limit_s: float = 30.0
    seed: int = 0
    turns: int = 1000
    """Most turns of the search; with time for all of them the result depends on the seed alone."""
    workers: int = 1
    """Processes among which the layers are dealt."""
    engine: Literal["local", "ray"] = "local"
    """Where these processes are: on this machine, or on a Ray cluster (extra ``ray``)."""
    address: str = "local"
    """Of the Ray cluster: ``local``, ``auto``, ``host:port`` or ``ray://host:port``."""
    on_progress: Callable[[PlaceProgress], None] | None = None
    """Called with layers settled, objective, bound and elapsed time, a few times a second."""


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
    how = SearchOptions(
        options.workers, options.seed, options.time_limit_s, options.gap, options.ties, options.alternatives
    )
    return search(problem or reference_problem(), how, options.on_progress or (lambda _progress: None))


def deploy(
    problems: Problem | Sequence[Problem], asked: Deploying | None = None, options: SolveOptions | None = None
) -> DeploymentPlan | NoPlan:
    """Fill whole clusters: the provably best mix of instances, in one pool or in a prefill and a decode pool.

    Parameters
    ----------
    problems : the question, once per cluster (they differ in cluster and calibration); degrees stay free, the
        workload's concurrency is not used: every slot is busy
    asked : serving mode, goal, demand, prices; absent means the most throughput of either mode
    options : as for :func:`solve`

    Returns a :class:`DeploymentPlan` with status OPTIMAL (no mix within the clusters is better) or FEASIBLE (its gap is
    stated), or a :class:`NoPlan`.

    Raises
    ------
    SpecError
        The question contradicts itself; one sentence.
    """
    from solver.deploy.journey import run_deploy
    from solver.search.run import SearchOptions

    options = options or SolveOptions()
    how = SearchOptions(options.workers, options.seed, options.time_limit_s)
    sites = (problems,) if isinstance(problems, Problem) else tuple(problems)
    return run_deploy(sites, asked or Deploying(), how, options.on_progress or (lambda _progress: None))


def pareto(
    problem: Problem | None = None,
    metrics: tuple[ObjectiveName, ObjectiveName] = ("latency", "throughput"),
    options: ParetoOptions | None = None,
) -> Front:
    """The exact Pareto front of two metrics: plans of which none is as good as another in both and better in one.

    Parameters
    ----------
    problem : the question, its objective ignored; the reference deployment when none is given
    metrics : two of latency, ttft, tpot, throughput, efficiency and gpus

    Returns a :class:`Front` with status COMPLETE (no point is missing, proved), PARTIAL (its gaps say where there may
    be more), INFEASIBLE (no plan at all, proved) or UNKNOWN. Each point holds a proved :class:`Plan`.

    Raises
    ------
    SpecError
        The metrics make no front, fewer than two points are asked for, or `resume` is about another question.
    PlanError
        The judge convicts `resume`.
    """
    from solver.search.front import FrontOptions, FrontSearch
    from solver.search.program import SearchLimits

    options, problem = options or ParetoOptions(), problem or reference_problem()
    if options.points is not None and options.points < 2:
        raise SpecError(f"a front of {options.points} points is none; ask for at least 2")
    first, second = metric_pair(*metrics, problem)
    known = options.resume
    if known is not None:
        asked = problem.model_copy(update={"objective": Objective(name=first)})
        if (known.first, known.second) != (first, second) or known.problem != asked:
            raise SpecError(
                f"the front to go on from is about {known.first} and {known.second} of problem "
                f"{known.problem.digest[:12]}, not about {first} and {second} of {asked.digest[:12]}"
            )
        verdict = verify_front(known)
        if not verdict.ok:
            raise PlanError(f"the judge convicts the front to go on from: {verdict.findings[0]}")
    how = FrontOptions(SearchLimits(options.workers or 1, options.seed, options.time_limit_s), options.points)
    progress = options.on_progress or (lambda _progress: None)
    return FrontSearch(problem, (first, second), how, progress, known).run()


def solve_scenarios(
    problem: Problem, scenarios: Scenarios, over: Over = "expected", options: SolveOptions | None = None
) -> ScenarioPlan | NoPlan:
    """Find the provably best single deployment for several request shapes (docs/scenarios.md).

    Parameters
    ----------
    problem : the question; every scenario replaces lengths, concurrency, hit rate or limits of its workload
    scenarios : request shapes with weights
    over : ``expected`` minimises the weighted mean of the objective, ``regret`` the largest relative distance of a
        scenario from the optimum that it would have alone
    options : as for :func:`solve`; `ties` is ignored

    Raises
    ------
    SpecError
        A scenario contradicts itself or the LLM, or the objective is ``weighted``.
    """
    from solver.search.run import SearchOptions
    from solver.search.scenarios.run import Asked, search_scenarios

    options = options or SolveOptions()
    how = SearchOptions(options.workers, options.seed, options.time_limit_s)
    asked = Asked(problem, scenarios, over, scenarios.problems(problem))
    return search_scenarios(asked, how, options.on_progress or (lambda _progress: None))


def explain(
    problem: Problem | None = None, why_not: Strategy | str | None = None, options: ExplainOptions | None = None
) -> Explanation:
    """Why a problem has no plan; where it has one, why a strategy that the caller names is not it.

    Infeasible: a minimal set of named constraints that excludes every plan, the plan that comes nearest, and the least
    change on every axis that alone makes a plan possible; each step is a proof, or is reported as open.

    Parameters
    ----------
    problem : of the reference deployment when none is given
    why_not : a complete strategy, a label (its knobs are set to the best), or decisions ``"attn_tp=4,pp=2"``

    Raises
    ------
    StrategyError, SpecError
        `why_not` names no strategy.
    """
    from solver.search.explain.journey import run_explain

    return run_explain(problem or reference_problem(), why_not, *_how(options or ExplainOptions()))


def what_if(problem: Problem, vary: Vary, options: ExplainOptions | None = None) -> WhatIf:
    """Breakpoints of the optimum along one parameter: intervals on which the winner's degrees stay the same.

    Raises
    ------
    SpecError
        A value of the parameter contradicts the problem.
    """
    from solver.search.explain.breakpoints import run_what_if

    return run_what_if(problem, vary, *_how(options or ExplainOptions()))


def _how(options: ExplainOptions) -> tuple[SearchOptions, Watcher]:
    from solver.search.explain.journey import Watcher
    from solver.search.run import SearchOptions

    how = SearchOptions(options.workers, options.seed, options.time_limit_s)
    return how, Watcher(options.on_question or (lambda _words: None), lambda _progress: None)


def place(
    windows: Sequence[LoadWindow],
    placing: Placing,
    options: PlaceOptions | None = None,
    sweep: SlotSweep | None = None,
    served: Problem | None = None,
) -> ExpertPlacement:
    """Place expert replicas on ranks from measured loads; the independent judge has passed what is returned.

    Ctrl-C ends the search with what it has (``interrupted`` says so); a second one raises ``KeyboardInterrupt``.

    Parameters
    ----------
    sweep : slots per rank to compare; with ``choose`` the fewest that are worth their memory are taken
    served : LLM and cluster that price a layer at ``placing.tokens_per_step``

    Raises
    ------
    SpecError
        The question makes no sense.
    NoPlacementError
        No placement exists, proved.
    EngineError
        There is no Ray cluster, or its work failed.
    RuntimeError
        The judge convicts the placement: a bug of this package.
    """
    from solver.place.clock import stopping
    from solver.place.run import run_place
    from solver.place.slots import run_slots
    from solver.place.worth import layer_time
    from solver.verify.expert_map import judge_placement

    windows = tuple(windows)
    with _effort(options or PlaceOptions()) as effort, stopping():
        placing.check(windows)
        time_ns = None if served is None else layer_time(served, windows, placing.ranks)
        if sweep is None:
            placed = run_place(placing, windows, effort, time_ns)
        else:
            placed = run_slots(placing, windows, effort, sweep, time_ns)
    verdict = judge_placement(placed, windows, placing.current, placing.topology.coactivation)
    if not verdict.ok:
        raise RuntimeError(f"the judge convicts the placement: {verdict.findings[0]}")
    return placed


@contextmanager
def _effort(options: PlaceOptions) -> Iterator[Effort]:
    """Time, seed and processes of a search for placements."""
    from solver.place.progress import Watch
    from solver.place.static import Effort
    from solver.workers.engine import engine_of

    with ExitStack() as until_placed:
        engine = None
        if options.engine != "local":
            engine = until_placed.enter_context(closing(engine_of(options.engine, options.address, options.workers, 1)))
        watch = None if options.on_progress is None else Watch(options.on_progress)
        effort = Effort(options.time_limit_s, options.seed, turns=options.turns, workers=options.workers, engine=engine)
        yield replace(effort, watch=watch)


def spend_slots(
    windows: Sequence[LoadWindow], placing: Placing, spending: Spending, options: PlaceOptions | None = None
) -> SlotBudget:
    """Spend a budget of redundant slots over the layers; `placing` names the most slots per rank of a layer.

    The independent judge has passed what is returned. Ctrl-C ends the search with what it has.

    Raises
    ------
    SpecError
        The question makes no sense.
    NoPlacementError
        The budget is below what any placement needs, proved by counting.
    RuntimeError
        The judge convicts the answer: a bug of this package.
    """
    from solver.place.clock import stopping
    from solver.place.spend import run_budget
    from solver.verify.slot_budget import judge_budget

    windows = tuple(windows)
    with _effort(options or PlaceOptions()) as effort, stopping():
        placed = run_budget(placing, windows, effort, spending)
    verdict = judge_budget(placed, windows)
    if not verdict.ok:
        raise RuntimeError(f"the judge convicts the budget: {verdict.findings[0]}")
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


def calibrate(
    measurements: Sequence[Measurement],
    base: Calibration | None = None,
    range_ratio: float = 1.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> CalibrationReport:
    """Fit the coefficients of the cost model to measured deployments of one GPU generation and engine.

    Parameters
    ----------
    measurements : rows of :func:`read_measurements`
    base : calibration to start from and to shrink towards; absent means the catalog's for that hardware and engine
    range_ratio : request lengths are uniform in ``[range_ratio, 1]`` of isl and osl (the engines' benchmark option)
    on_progress : called with (folds done, folds) during the cross-validation

    Raises
    ------
    SpecError
        Too few measurements, measurements of several generations or engines, or scipy is not installed.
    """
    from solver.fitting.journey import calibrate as fit

    if base is None and measurements:
        base = catalog.calibration_of(served_cluster(measurements[0]), measurements[0].engine)
    progress = on_progress or (lambda _done, _all: None)
    return fit(measurements, base or catalog.load_calibration("default"), range_ratio, progress)


def predict(
    measurements: Sequence[Measurement], calibration: Calibration | None = None, range_ratio: float = 1.0
) -> tuple[Prediction, ...]:
    """TTFT and TPOT that a closed-loop client would measure of many deployments, vectorised.

    The numbers are those of ``evaluate(...).closed_loop``, one deployment at a time. `calibration` absent means the
    catalog's for each row's hardware and engine.
    """
    from solver.fitting.journey import predict as batch

    return batch(measurements, calibration, range_ratio)


def check(problem: Problem, strategy: Strategy | str, claims: Claims | None = None) -> AuditReport:
    """Audit a proposed strategy, and the claims made for it: legality, memory, arithmetic. Every finding says why."""
    if isinstance(strategy, str):
        claims = (claims or Claims(source=f"label {strategy}")).model_copy(update={"label": strategy})
        return _audit(problem, proposed_strategy(problem, claims), claims)
    return _audit(problem, strategy, claims)


def compare(problem: Problem, strategy: Strategy, options: SolveOptions | None = None) -> Comparison:
    """Evaluate degrees with their best knobs, and solve the same problem on at most as many GPUs.

    Pins of the problem hold for the deployment only: the optimum is free to decide otherwise.
    """
    try:
        current, broken = evaluate(problem, strategy.full_label), ""
    except StrategyError as error:
        current, broken = None, str(error)
    most = min(strategy.gpus, problem.cluster.num_gpus)
    free = problem.model_copy(update={"pins": Pins(), "gpus_exact": None, "gpus_at_most": most})
    return Comparison(current, broken, solve(free, options))


def placement(plan: Plan) -> Iterator[GpuRecord]:
    """One record per used GPU: node, stage, ranks, layers, experts, sequences; streams."""
    return expand(plan)
