"""The judge of deployments: every instance's plan, the layout, the sums, and the claim about the mix.

`exhaustive` adds the bounds of all sizes, each by an enumeration of its degree space.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from solver.degrees import domains_of
from solver.deployment import (
    EFFICIENCY_STEP,
    ROLES,
    DeploymentPlan,
    InstanceGroup,
    InstanceSize,
    instance_problem,
    pool_problem,
    rate_nhz,
    rate_unit,
    shares_domain,
    whole_rate,
)
from solver.errors import SpecError
from solver.specs.deploying import NHZ, Mode
from solver.verify import Verification, verify
from solver.verify.exhaustive import HUGE, Enumeration
from solver.verify.finding import Finding
from solver.verify.legal import domains_taken, rows_of
from solver.verify.mix import reaches

TOLERANCE = 1e-9
"""Relative, of rates that are divisions of exact integers."""
MAX_BUDGETS = 128
"""Numbers of GPUs whose best efficiency is asked for one by one."""
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
    case = _Case(deployment)
    try:
        for rule in (_questions, _plans, _sizes, _layout, _demand, _metrics, _certificate, _mix):
            checks.append(rule.__name__.removeprefix("_"))
            findings += rule(case)
            if rule is _sizes and findings:
                break  # what follows adds up what these rules have not passed
    except SpecError as error:
        findings.append(Finding("question", str(error)))
    configurations: int | None = None
    if exhaustive and not findings:
        checks.append("exhaustive")
        found, configurations = _enumerated(case)
        findings += found
    return Verification(not findings, tuple(findings), tuple(checks), configurations, time.monotonic() - begun)


@dataclass(frozen=True)
class _Case:
    """A deployment under judgement."""

    plan: DeploymentPlan

    @cached_property
    def offered(self) -> dict[tuple[int, str], int]:
        """nHz by cluster and pool, from the claimed plans."""
        found: dict[tuple[int, str], int] = {}
        for group in self.plan.groups:
            key = (group.size.site, group.size.role)
            found[key] = found.get(key, 0) + self.true_rate(group) * group.count
        return found

    def true_rate(self, group: InstanceGroup) -> int:
        """Whole units of what one instance serves."""
        unit = self.plan.certificate.unit_nhz
        return whole_rate(rate_nhz(max(1, group.plan.certificate.value)), group.size, unit) * unit

    def rate_of(self, site: int) -> int:
        """nHz that a cluster serves: the lesser of its pools."""
        return min(self.offered.get((site, role), 0) for role in ROLES[self.plan.mode])

    @property
    def rate(self) -> int:
        """nHz of the whole."""
        return sum(self.rate_of(site) for site in range(len(self.plan.problems)))

    @property
    def gpus(self) -> int:
        """GPUs that hold an instance."""
        return sum(group.size.gpus * group.count for group in self.plan.groups)


# --- instances --------------------------------------------------------------------------------------------------------


def _questions(case: _Case) -> Iterator[Finding]:
    """Every group answers the deployment's question for its size."""
    plan = case.plan
    if plan.mode not in plan.asked.modes:
        yield Finding("mode", f"the deployment is {plan.mode}, {plan.asked.mode} is asked for")
    if plan.asked.prices and len(plan.asked.prices) != len(plan.problems):
        yield Finding("question", f"{len(plan.asked.prices)} prices for {len(plan.problems)} clusters")
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


def _plans(case: _Case) -> Iterator[Finding]:
    """Every instance's plan stands by itself."""
    for group in case.plan.groups:
        for finding in verify(group.plan).findings:
            where = f"{group.size.role} instances of {group.size.gpus} GPUs: "
            yield Finding(finding.rule, where + finding.sentence)


def _sizes(case: _Case) -> Iterator[Finding]:
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


def _layout(case: _Case) -> Iterator[Finding]:
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


def _demand(case: _Case) -> Iterator[Finding]:
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


def _metrics(case: _Case) -> Iterator[Finding]:
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
        same = claim == value
        if claim is not None and value is not None:
            same = math.isclose(claim, value, rel_tol=TOLERANCE)
        if not same:
            yield Finding("deployment-metrics", f"{name} is {claim}, recomputed {value}")
    if sorted(pool.role for pool in stated.pools) != sorted({group.size.role for group in plan.groups}):
        yield Finding("deployment-metrics", "the pools are not those of the instances")
    for pool in stated.pools:
        yield from _pool(case, pool.role)


def _pool(case: _Case, role: str) -> Iterator[Finding]:
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
        if not math.isclose(getattr(stated, name), value, rel_tol=TOLERANCE):
            yield Finding("deployment-metrics", f"{name} of the {role} pool is {getattr(stated, name)}, not {value}")


# --- the claim --------------------------------------------------------------------------------------------------------


def _value(case: _Case) -> int:
    """The goal's integer."""
    asked, unit = case.plan.asked, case.plan.certificate.unit_nhz
    if asked.goal == "throughput":
        return case.rate
    if asked.goal == "efficiency":
        step = EFFICIENCY_STEP * unit
        return case.rate // (step * max(1, case.gpus)) * step
    if asked.goal == "gpus":
        return case.gpus
    return sum(asked.price_micro(g.size.site) * g.size.gpus * g.count for g in case.plan.groups)


def _certificate(case: _Case) -> Iterator[Finding]:
    """Value, bound, gap and status agree with one another and with the sizes' claims."""
    plan, claim = case.plan, case.plan.certificate
    value, more = _value(case), claim.goal in ("throughput", "efficiency")
    if claim.goal != plan.asked.goal or plan.status != claim.status:
        yield Finding("status", "the certificate's goal or status is not the deployment's")
    if claim.value != value:
        yield Finding("certificate-value", f"the certificate's value is {claim.value}, recomputed {value}")
    if (claim.bound < claim.value) if more else (claim.bound > claim.value):
        yield Finding("bound", f"the value {claim.value} is better than its own bound {claim.bound}")
    wanted = "OPTIMAL" if claim.bound == claim.value else "FEASIBLE"
    if claim.status != wanted:
        yield Finding("status", f"bound {claim.bound} and value {claim.value} make {wanted}, not {claim.status}")
    gap = abs(claim.bound - claim.value) / claim.value if claim.value else 0.0
    if not math.isclose(claim.gap, gap, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        yield Finding("gap", f"the gap is {claim.gap}, recomputed {gap}")
    coarsest = 10 * rate_unit({entry.size: entry.bound_nhz for entry in claim.sizes if entry.bound_nhz > 0})
    if claim.unit_nhz > coarsest:
        yield Finding(
            "sizes", f"rates are counted in units of {claim.unit_nhz} nHz, the bounds ask for {coarsest} at most"
        )
    fewer = claim.one_fewer_nhz
    if claim.goal == "gpus" and fewer is not None and fewer >= plan.asked.demand_nhz:
        yield Finding("demand", f"with one GPU less {fewer} nHz might be served, enough for the demand")
    stated = {mode.mode: mode.bound for mode in claim.modes}
    if set(stated) != set(plan.asked.modes):
        yield Finding("mode", f"claims about {sorted(stated)}, asked were {sorted(plan.asked.modes)}")
    for bound in stated.values():
        if bound is not None and ((bound > claim.bound) if more else (bound < claim.bound)):
            yield Finding("bound", f"a mode's bound {bound} is better than the whole's {claim.bound}")
    sizes = {entry.size: entry for entry in claim.sizes}
    for group in plan.groups:
        entry = sizes.get(group.size)
        if entry is None or entry.proof != "program":
            yield Finding("sizes", f"the certificate has no proof for {group.size.role} of {group.size.gpus} GPUs")
        elif (entry.rate_nhz, entry.bound_nhz) != _claimed_by(group):
            yield Finding("sizes", f"rate and bound of {group.size.gpus} GPUs are not those of their plan")
    for entry in claim.sizes:
        if entry.rate_nhz > entry.bound_nhz:
            yield Finding("bound", f"{entry.size.gpus} GPUs serve {entry.rate_nhz} nHz, above their own bound")


def _claimed_by(group: InstanceGroup) -> tuple[int, int]:
    certificate = group.plan.certificate
    return rate_nhz(max(1, certificate.value)), rate_nhz(max(1, certificate.bound))


def _mix(case: _Case) -> Iterator[Finding]:
    """No mix of instances at their claimed bounds is better than the certificate's bound."""
    plan, claim, unit = case.plan, case.plan.certificate, case.plan.certificate.unit_nhz
    for mode in plan.asked.modes:
        for site, problem in enumerate(plan.problems):
            bounds = {
                entry.size: entry.bound_nhz
                for entry in claim.sizes
                if entry.size.site == site and entry.size.role in ROLES[mode]
            }
            targets = [_target(case, mode, site)]
            if claim.goal == "efficiency":  # fewer GPUs may each serve more
                step = claim.bound // unit + EFFICIENCY_STEP
                targets += [(gpus, step * gpus) for gpus in range(1, min(targets[0][0], MAX_BUDGETS))]
            beaten = [
                (budget, target)
                for budget, target in targets
                if target is not None and reaches(problem, mode, bounds, unit, budget, target) is True
            ]
            for budget, target in beaten[:1]:
                yield Finding(
                    "mix",
                    f"instances at their claimed bounds might serve {target * unit} nHz {mode} on {budget} GPUs of "
                    f"{problem.cluster.name}, better than the claimed bound {claim.bound}",
                )


def _target(case: _Case, mode: Mode, site: int) -> tuple[int, int | None]:
    """GPUs, and units of requests that must be out of reach within them; None where one cluster does not decide."""
    plan, claim, unit = case.plan, case.plan.certificate, case.plan.certificate.unit_nhz
    budget, sites = plan.problems[site].gpu_budget, len(plan.problems)
    if plan.asked.max_shapes is not None:
        return budget, None  # fewer mixes than the judge would try
    if claim.goal == "throughput":
        own = claim.bound if sites == 1 else case.rate_of(site) if mode == plan.mode and not claim.gap else None
        return budget, None if own is None else own // unit + 1
    if claim.goal == "efficiency":
        return budget, (claim.bound // unit + EFFICIENCY_STEP) * budget
    if sites == 1 and claim.goal == "gpus":
        return claim.bound - 1, -(-plan.asked.demand_nhz // unit)
    if claim.goal == "cost":  # of several clusters each one alone
        price = max(1, plan.asked.price_micro(site))
        return min(budget, -(-claim.bound // price) - 1), -(-plan.asked.demand_nhz // unit)
    return budget, None


def _enumerated(case: _Case) -> tuple[list[Finding], int]:
    """Every size of every pool, its degree space enumerated: no plan above the size's bound, no size left out."""
    plan, findings, total = case.plan, list[Finding](), 0
    claimed = {entry.size: entry.bound_nhz for entry in plan.certificate.sizes}
    for site, problem in enumerate(plan.problems):
        for mode in plan.asked.modes:
            for role in ROLES[mode]:
                pool = pool_problem(problem, role)
                domains = domains_of(pool)
                widths: set[tuple[int, int]] = set()
                for pp in () if domains.is_empty else domains.pp:
                    rows = rows_of(pool, domains, pp)
                    widths |= set(zip((pp * rows.stage_gpus).tolist(), domains_taken(pool, rows).tolist(), strict=True))
                least: dict[int, int] = {}
                for gpus, taken in sorted(widths):
                    size = InstanceSize(site=site, role=role, gpus=gpus, domains=taken)
                    least[gpus] = max(least.get(gpus, 0), claimed.get(size, 0))
                    space = Enumeration(instance_problem(problem, size))
                    total += space.configurations
                    allowed = min(HUGE, NHZ * 10**12 // (least[gpus] + 1) + 1)  # picoseconds that the bound admits
                    found = space.below("throughput", allowed, (0, 0), first=True)
                    if found.best is not None or found.open_bound < allowed:
                        findings.append(
                            Finding(
                                "exhaustive-optimum" if found.best is not None else "exhaustive-open",
                                f"{role} instances of {gpus} GPUs in {taken} domains serve more than the claimed bound "
                                f"of {least[gpus]} nHz",
                            )
                        )
    return findings, total
