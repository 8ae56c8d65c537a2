"""The whole journey: search, document, or the reasons for none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from solver.deploy.assemble import assemble_deployment
from solver.deploy.run import DeployOutcome, deploy_search
from solver.deployment import ROLES, DeploymentPlan, pool_problem
from solver.plan import NoPlan
from solver.search.explain.reasons import reasons_for_none
from solver.search.loop import Progress
from solver.search.program import SearchLimits
from solver.search.run import DEFAULT_WORKERS, SearchOptions
from solver.specs.deploying import NHZ, Deploying, check_question
from solver.specs.problem import Problem

REASON_SECONDS = 60.0
"""Time for the reasons of all pools that nothing can fill."""


def run_deploy(
    problems: Sequence[Problem],
    asked: Deploying,
    options: SearchOptions,
    on_progress: Callable[[Progress], None],
) -> DeploymentPlan | NoPlan:
    """Find and prove the best deployment.

    Raises
    ------
    SpecError
        The question contradicts itself, or the clusters' questions differ in more than hardware.
    """
    check_question(problems, asked)
    started = time.monotonic()
    outcome = deploy_search(problems, asked, options, on_progress)
    if outcome.winner is not None:
        return assemble_deployment(problems, asked, outcome, options)
    reasons: tuple[str, ...] = ("an interrupt or the time limit ended the search before any mix was found",)
    if outcome.status == "INFEASIBLE":
        reasons = _as_far_as_it_goes(_reasons(problems, asked, outcome, options))
    return NoPlan(
        status="INFEASIBLE" if outcome.status == "INFEASIBLE" else "UNKNOWN",
        reasons=reasons,
        problem_digest=problems[0].digest,
        wall_s=time.monotonic() - started,
    )


def _as_far_as_it_goes(reasons: Iterator[str]) -> tuple[str, ...]:
    """The reasons that are found before Ctrl-C: the proof that there is no deployment stands without them."""
    found: list[str] = []
    try:
        found.extend(reasons)
    except KeyboardInterrupt:
        found.append("proved; an interrupt ended the search for further reasons")
    return tuple(found)


def _reasons(
    problems: Sequence[Problem], asked: Deploying, outcome: DeployOutcome, options: SearchOptions
) -> Iterator[str]:
    """Why no mix does: pools that nothing can fill, or a demand beyond the clusters."""
    possible = {(size.site, size.role) for size, known in outcome.known.items() if known.bound > 0}
    empty = [
        (role, problem)
        for mode in asked.modes
        for role in ROLES[mode]
        for site, problem in enumerate(problems)
        if (site, role) not in possible
    ]
    whole = REASON_SECONDS if options.time_limit_s is None else min(REASON_SECONDS, options.time_limit_s)
    ends = time.monotonic() + whole
    for done, (role, problem) in enumerate(empty):
        share = max(0.1, ends - time.monotonic()) / (len(empty) - done)
        limits = SearchLimits(options.workers or DEFAULT_WORKERS, options.seed, share)
        for sentence in reasons_for_none(pool_problem(problem, role), limits):
            yield f"{role} instances on {problem.cluster.name}: {sentence}"
    if asked.request_rate is not None:
        most = Deploying(mode=asked.mode, max_shapes=asked.max_shapes)
        best = deploy_search(problems, most, options, lambda _progress: None)
        if best.winner is not None and best.winner.best is not None:
            gpus = sum(problem.gpu_budget for problem in problems)
            yield (
                f"[demand] {asked.request_rate:g} requests/s are asked for; the most that {gpus} GPUs serve is "
                f"{best.winner.best.rate_nhz / NHZ:.6g} ({best.winner.mode}): lower the demand or add GPUs"
            )
        return
    if empty:
        return
    budgets = ", ".join(f"{problem.gpu_budget} of {problem.cluster.name}" for problem in problems)
    yield f"[gpu-count] no complete deployment fits the GPUs ({budgets}): give it more of them or another mode"
