"""The judge of deployments: every instance's plan, the layout, the sums, and the claim about the mix.

`exhaustive` adds the bounds of all sizes, each by an enumeration of its degree space.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

from solver.deployment import (
    ROLES,
    DeploymentPlan,
    InstanceSize,
    deployment_warnings,
    idle_text,
    instance_problem,
    shares_domain,
)
from solver.errors import SpecError
from solver.specs.deploying import NHZ, check_question
from solver.verify import Verification, verify
from solver.verify.deployment_case import Case
from solver.verify.deployment_claim import certificate, enumerated, every_size, mixes
from solver.verify.finding import Finding

TOLERANCE = 1e-9
"""Relative, of rates that are divisions of exact integers."""
MAX_GPUS = 2**20
"""GPUs of one cluster whose owners are written down."""


def verify_deployment(deployment: DeploymentPlan, *, exhaustive: bool = False) -> Verification:
    """Judge a deployment without the solver.

    Parameters
    ----------
    deployment : the document; nothing in it is believed but the problems and what was asked
    exhaustive : enumerate the degree space of every instance size, too
    """
    begun = time.monotonic()
    findings: list[Finding] = []
    checks: list[str] = []
    unjudged: list[str] = []
    configurations: int | None = None
    case = Case(deployment)
    try:
        for rule in RULES:
            checks.append(rule.__name__.removeprefix("_").replace("_", " "))
            findings += rule(case)
            if rule in GROUNDS and findings:
                break  # what follows adds up what these rules have not passed
        else:
            beaten, unjudged = mixes(case)
            findings += beaten
            checks += [] if unjudged else ["mix"]
        if exhaustive and not findings:
            checks.append("exhaustive")
            found, configurations = enumerated(case)
            findings += found
    except SpecError as error:
        findings.append(Finding("question", str(error)))
    seconds = time.monotonic() - begun
    return Verification(not findings, tuple(findings), tuple(checks), configurations, seconds, unjudged=tuple(unjudged))


# --- instances --------------------------------------------------------------------------------------------------------


def _questions(case: Case) -> Iterator[Finding]:
    """Every group answers the deployment's question for its size."""
    plan = case.plan
    check_question(plan.problems, plan.asked)
    if plan.mode not in plan.asked.modes:
        yield Finding("mode", f"the deployment is {plan.mode}, {plan.asked.mode} is asked for")
    for group in plan.groups:
        size = group.size
        if size.site >= len(plan.problems):
            yield Finding("instance-question", f"an instance sits on cluster {size.site} of {len(plan.problems)}")
        elif size.role not in ROLES[plan.mode]:
            yield Finding("instance-question", f"a {size.role} instance in a deployment that is {plan.mode}")
        elif group.plan.problem != instance_problem(plan.problems[size.site], size):
            yield Finding(
                "instance-question",
                f"the plan of the {size.role} instances of {size.gpus} GPUs answers another question than the best "
                "instance of that size",
            )


def _plans(case: Case) -> Iterator[Finding]:
    """Every instance's plan stands by itself."""
    for group in case.plan.groups:
        for finding in verify(group.plan).findings:
            where = f"{group.size.role} instances of {group.size.gpus} GPUs: "
            yield Finding(finding.rule, where + finding.sentence)


def _sizes(case: Case) -> Iterator[Finding]:
    """Rates, GPUs and domains of an instance are those of its plan; no size comes twice."""
    seen: set[InstanceSize] = set()
    for group in case.plan.groups:
        size = group.size
        if size in seen:
            yield Finding("sizes", f"two groups of {size.role} instances of {size.gpus} GPUs")
        seen.add(size)
        if group.plan.strategy.strategy().gpus != size.gpus:
            yield Finding("sizes", f"an instance of {group.plan.strategy.full_label} has not {size.gpus} GPUs")
        if group.rate_nhz != case.true_rate(group):
            yield Finding("sizes", f"rate_nhz is {group.rate_nhz}, the plan makes {case.true_rate(group)}")


def _layout(case: Case) -> Iterator[Finding]:
    """Every instance has GPUs of its own: large ones whole domains, small ones a place inside one."""
    plan = case.plan
    for site, problem in enumerate(plan.problems):
        cluster, domain = problem.cluster, problem.cluster.domain_gpus
        whole: set[int] = set()
        shared: dict[int, list[tuple[int, int]]] = {}
        used = 0
        for group in (g for g in plan.groups if g.size.site == site):
            size = group.size
            used += size.gpus * group.count
            firsts = list(group.first_gpus()) if sum(run.count for run in group.starts) <= MAX_GPUS else []
            if len(firsts) != group.count:
                yield Finding(
                    "layout", f"{group.count} {size.role} instances of {size.gpus} GPUs, {len(firsts)} places"
                )
            for first in firsts:
                start, offset = divmod(first, domain)
                if shares_domain(size, domain):
                    shared.setdefault(start, []).append((offset, offset + size.gpus))
                    continue
                taken = range(start, start + size.domains)
                if offset or not whole.isdisjoint(taken):
                    yield Finding("layout", f"an instance of {size.gpus} GPUs at GPU {first} has no domains of its own")
                whole.update(taken)
        last = max([*whole, *shared], default=-1)
        if last >= cluster.num_domains:
            yield Finding("layout", f"domain {last} is used, {cluster.name} has {cluster.num_domains}")
        if used > problem.gpu_budget:
            yield Finding("gpu-count", f"{used} GPUs are used, at most {problem.gpu_budget} may be")
        for index, places in shared.items():
            places.sort()
            overlap = any(end > begin for (_, end), (begin, _) in pairwise(places))
            if overlap or places[-1][1] > domain or index in whole:
                yield Finding("layout", f"the instances in domain {index} do not fit its {domain} GPUs side by side")
                break


# --- sums -------------------------------------------------------------------------------------------------------------


def _demand(case: Case) -> Iterator[Finding]:
    """What was asked is served, with as few sizes as asked."""
    plan, asked = case.plan, case.plan.asked
    if case.rate < asked.demand_nhz:
        yield Finding("demand", f"{case.rate} nHz are served, {asked.demand_nhz} are asked for")
    if case.rate == 0:
        yield Finding("demand", "nothing is served: a pool is missing")
    for role in ROLES[plan.mode]:
        kinds = len([group for group in plan.groups if group.size.role == role])
        if asked.max_shapes is not None and kinds > asked.max_shapes:
            yield Finding("demand", f"{kinds} sizes of {role} instances, at most {asked.max_shapes} are asked for")


def _metrics(case: Case) -> Iterator[Finding]:
    """Every sum again."""
    plan, stated = case.plan, case.plan.metrics
    tokens = case.rate / NHZ * plan.problems[0].workload.osl
    cost = (
        sum(plan.asked.prices[g.size.site] * g.size.gpus * g.count for g in plan.groups) if plan.asked.prices else None
    )
    true: dict[str, float | int | None] = {
        "rate_nhz": case.rate,
        "requests_per_s": case.rate / NHZ,
        "throughput_tokens_per_s": tokens,
        "efficiency_tokens_per_s_per_gpu": tokens / max(1, case.gpus),
        "gpus_used": case.gpus,
        "gpus_idle": sum(problem.gpu_budget for problem in plan.problems) - case.gpus,
        "cost_per_hour": cost,
    }
    for name, value in true.items():
        claim = getattr(stated, name)
        if not _same(claim, value):
            yield Finding("deployment-metrics", f"{name} is {claim}, recomputed {value}")
    if sorted(pool.role for pool in stated.pools) != sorted({group.size.role for group in plan.groups}):
        yield Finding("deployment-metrics", "the pools are not those of the instances")
    for pool in stated.pools:
        yield from _pool(case, pool.role)


def _pool(case: Case, role: str) -> Iterator[Finding]:
    stated = next(pool for pool in case.plan.metrics.pools if pool.role == role)
    groups = [group for group in case.plan.groups if group.size.role == role]
    offered = sum(case.true_rate(group) * group.count for group in groups)
    true: dict[str, float | int] = {
        "gpus": sum(group.size.gpus * group.count for group in groups),
        "instances": sum(group.count for group in groups),
        "rate_nhz": offered,
        "utilisation": case.rate / max(1, offered),
    }
    for name in ("ttft_ns", "tpot_ns"):
        times = [(case.true_rate(g) * g.count, int(getattr(g.plan.metrics, name))) for g in groups]
        true[name] = max((ns for _, ns in times), default=0)
        true[f"mean_{name}"] = -(-sum(rate * ns for rate, ns in times) // max(1, offered))
    for name, value in true.items():
        if not _same(getattr(stated, name), value):
            yield Finding("deployment-metrics", f"{name} of the {role} pool is {getattr(stated, name)}, not {value}")


def _same(claim: float | None, value: float | None) -> bool:
    """Integers are equal, floats are divisions of the same integers."""
    if isinstance(claim, float) and isinstance(value, float):
        return math.isclose(claim, value, rel_tol=TOLERANCE)
    return claim == value


def _words(case: Case) -> Iterator[Finding]:
    """Sentences with numbers in them, written again."""
    plan = case.plan
    budget = sum(problem.gpu_budget for problem in plan.problems)
    idle = idle_text(plan.asked, plan.status, budget - case.gpus, budget)
    if plan.idle != idle:
        yield Finding("deployment-words", f"idle is {plan.idle!r}, the numbers make {idle!r}")
    warnings = deployment_warnings(plan.problems, plan.groups)
    if plan.warnings != warnings:
        yield Finding("deployment-words", "the warnings are not those of the instances' plans and of the mode")


RULES: tuple[Callable[[Case], Iterator[Finding]], ...] = (
    _questions, _plans, _sizes, _layout, _demand, _metrics, _words, certificate, every_size,
)  # fmt: skip
"""In this order."""
GROUNDS = (_questions, _plans, _sizes)
"""Rules without which the others have nothing to stand on."""
