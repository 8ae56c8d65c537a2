"""The claim of a deployment: value and bounds, every size with what is known of it, and that no mix is better."""

from __future__ import annotations

import math
from collections.abc import Iterator

from solver.degrees import domains_of
from solver.deployment import (
    EFFICIENCY_STEP,
    ROLES,
    InstanceGroup,
    InstanceSize,
    ModeClaim,
    instance_problem,
    least_value,
    pool_problem,
    rate_nhz,
    rate_unit,
    whole_rate,
)
from solver.specs.deploying import UNITS, Mode
from solver.specs.problem import Problem, Role
from solver.verify.deployment_case import Case
from solver.verify.exhaustive import HUGE, Enumeration
from solver.verify.finding import Finding
from solver.verify.legal import domains_taken, rows_of
from solver.verify.mix import Mixes

TOLERANCE = 1e-9
"""Relative, of the gap."""


def certificate(case: Case) -> Iterator[Finding]:
    """Value, bounds, gap, status, unit and digests agree with one another and with the plans."""
    plan, claim = case.plan, case.plan.certificate
    value = _value(case)
    if claim.goal != plan.asked.goal or plan.status != claim.status:
        yield Finding("status", "the certificate's goal or status is not the deployment's")
    if claim.unit != UNITS[plan.asked.goal]:
        yield Finding("certificate-value", f"the unit is {claim.unit!r}, the goal's is {UNITS[plan.asked.goal]!r}")
    if claim.value != value:
        yield Finding("certificate-value", f"the certificate's value is {claim.value}, recomputed {value}")
    wanted = "OPTIMAL" if claim.bound == claim.value else "FEASIBLE"
    if claim.status != wanted:
        yield Finding("status", f"bound {claim.bound} and value {claim.value} make {wanted}, not {claim.status}")
    gap = abs(claim.bound - claim.value) / claim.value if claim.value else 0.0
    if not math.isclose(claim.gap, gap, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        yield Finding("gap", f"the gap is {claim.gap}, recomputed {gap}")
    yield from _modes(case)
    yield from _one_fewer(case)
    yield from _sources(case)
    coarsest = 10 * rate_unit({entry.size: entry.bound_nhz for entry in claim.sizes if entry.bound_nhz > 0})
    if claim.unit_nhz > coarsest:
        yield Finding(
            "sizes", f"rates are counted in units of {claim.unit_nhz} nHz, the bounds ask for {coarsest} at most"
        )
    yield from _entries(case)


def _value(case: Case) -> int:
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


def _modes(case: Case) -> Iterator[Finding]:
    """The winner's value and the best bound are the whole's; no mode is better than its bound, or than the winner."""
    plan, claim = case.plan, case.plan.certificate
    sign = 1 if plan.asked.wants_more else -1
    if sorted(entry.mode for entry in claim.modes) != sorted(plan.asked.modes):
        yield Finding("mode", f"claims about {[e.mode for e in claim.modes]}, asked were {sorted(plan.asked.modes)}")
    bounds = [entry.bound for entry in claim.modes if entry.bound is not None]
    best = max(bounds, key=lambda bound: sign * bound, default=None)
    if best != claim.bound:
        yield Finding("bound", f"the best of the modes' bounds is {best}, the whole's is {claim.bound}")
    if sign * claim.value > sign * claim.bound:
        yield Finding("bound", f"the value {claim.value} is better than its own bound {claim.bound}")
    for entry in claim.modes:
        if entry.mode == plan.mode and entry.value != claim.value:
            yield Finding("mode", f"the value of {entry.mode} is {entry.value}, the deployment's is {claim.value}")
        if entry.value is None:
            continue
        if sign * entry.value > sign * claim.value:
            yield Finding("mode", f"{entry.mode} reaches {entry.value}, better than the deployment's {claim.value}")
        if entry.bound is None or sign * entry.value > sign * entry.bound:
            yield Finding("bound", f"{entry.mode} reaches {entry.value}, better than its bound {entry.bound}")


def _one_fewer(case: Case) -> Iterator[Finding]:
    """What one GPU fewer serves is said of the fewest GPUs, in whole units, and is less than the demand."""
    plan, claim, fewer = case.plan, case.plan.certificate, case.plan.certificate.one_fewer_nhz
    if fewer is None:
        return
    if claim.goal != "gpus":
        yield Finding("demand", f"one GPU fewer is said to serve {fewer} nHz, but the goal is {claim.goal}")
    if fewer % claim.unit_nhz:
        yield Finding("demand", f"one GPU fewer is said to serve {fewer} nHz, no whole units of {claim.unit_nhz}")
    if fewer >= plan.asked.demand_nhz:
        yield Finding("demand", f"with one GPU less {fewer} nHz might be served, enough for the demand")


def _sources(case: Case) -> Iterator[Finding]:
    """Digests, versions and parameters are those of the plans; no gap counts as none."""
    claim = case.plan.certificate
    plans = [group.plan.certificate for group in case.plan.groups]
    if claim.digests != tuple(plan.digests for plan in plans):
        yield Finding("digest", "the digests are not those of the instances' plans, in their order")
    for name in ("versions", "parameters"):
        if any(getattr(plan, name) != getattr(claim, name) for plan in plans):
            yield Finding("parameters", f"the {name} of the whole are not those of the instances' plans")
    if claim.parameters.relative_gap_limit or claim.parameters.absolute_gap_limit:
        yield Finding("parameters", "the limits of the gap are not 0: what is called proved might not be the best")


def _entries(case: Case) -> Iterator[Finding]:
    """Every size once; those that are used with the rate of their plan and no worse bound than it has."""
    claim = case.plan.certificate
    entries = {entry.size: entry for entry in claim.sizes}
    if len(entries) < len(claim.sizes):
        yield Finding("sizes", f"{len(claim.sizes)} claims about {len(entries)} sizes")
    for entry in claim.sizes:
        words = f"{entry.size.role} instances of {entry.size.gpus} GPUs"
        if entry.rate_nhz > entry.bound_nhz:
            yield Finding("bound", f"{words} serve {entry.rate_nhz} nHz, above their own bound {entry.bound_nhz}")
        if (entry.proof == "infeasible") != (entry.bound_nhz == 0):
            yield Finding("sizes", f"{words} are bounded by {entry.bound_nhz} nHz and called {entry.proof}")
    for group in case.plan.groups:
        stated = entries.get(group.size)
        rate, bound = _claimed_by(group)
        if stated is None:
            yield Finding("sizes", f"the certificate has no claim about {group.size.role} of {group.size.gpus} GPUs")
        elif stated.rate_nhz != rate or stated.bound_nhz > bound:
            yield Finding("sizes", f"rate and bound of {group.size.gpus} GPUs are not those of their plan")


def _claimed_by(group: InstanceGroup) -> tuple[int, int]:
    claim = group.plan.certificate
    return rate_nhz(max(1, claim.value)), rate_nhz(max(1, claim.bound))


def every_size(case: Case) -> Iterator[Finding]:
    """There is a claim about every size that an instance can have; what is left out has no plan at all."""
    claimed = {entry.size for entry in case.plan.certificate.sizes}
    for site, problem in enumerate(case.plan.problems):
        for role in _roles(case):
            for gpus, taken in sorted(_widths(problem, role)):
                size = InstanceSize(site=site, role=role, gpus=gpus, domains=taken)
                if size in claimed:
                    continue
                if Enumeration(instance_problem(problem, size)).minimum("throughput") is not None:
                    yield Finding(
                        "sizes", f"nothing is claimed about {role} instances of {gpus} GPUs in {taken} domains"
                    )


def _roles(case: Case) -> list[Role]:
    return [role for mode in case.plan.asked.modes for role in ROLES[mode]]


def _widths(problem: Problem, role: Role) -> set[tuple[int, int]]:
    """(GPUs, domains) of every instance of the degree space."""
    pool = pool_problem(problem, role)
    domains = domains_of(pool)
    widths: set[tuple[int, int]] = set()
    for pp in () if domains.is_empty else domains.pp:
        rows = rows_of(pool, domains, pp)
        widths |= set(zip((pp * rows.stage_gpus).tolist(), domains_taken(pool, rows).tolist(), strict=True))
    return widths


# --- the mix ----------------------------------------------------------------------------------------------------------


def mixes(case: Case) -> tuple[list[Finding], list[str]]:
    """No mix at the claimed bounds is better than a mode's bound, and the value of each mode is one of its rates.

    Returns what is found, and what is not judged because it is too large for the judge's own arithmetic.
    """
    findings, unjudged = list[Finding](), list[str]()
    claim = case.plan.certificate
    for entry in claim.modes:
        bounds, rates = (_mixes_of(case, entry.mode, name) for name in ("bound_nhz", "rate_nhz"))
        better = _is_better(case, entry, bounds)
        if better:
            findings.append(
                Finding("mix", f"{entry.mode} instances at their claimed bounds might do better than {entry.bound}")
            )
        elif better is None:
            unjudged.append(f"whether a better {entry.mode} mix exists: there are too many for the judge")
        if entry.value is not None and _reaches(case, entry.value, rates) is False:
            findings.append(Finding("mix", f"no {entry.mode} mix of the claimed plans reaches {entry.value}"))
        if claim.one_fewer_nhz is not None:
            more = bounds.serve_within(
                claim.one_fewer_nhz // claim.unit_nhz + 1, [1] * len(case.plan.problems), case.gpus - 1
            )
            if more:
                findings.append(
                    Finding("mix", f"with {case.gpus - 1} GPUs {entry.mode} may serve more than {claim.one_fewer_nhz}")
                )
            elif more is None:
                unjudged.append(f"what {entry.mode} mixes on one GPU fewer serve: there are too many for the judge")
    return findings, unjudged


def _mixes_of(case: Case, mode: Mode, name: str) -> Mixes:
    claim = case.plan.certificate
    rates = {
        entry.size: whole_rate(getattr(entry, name), entry.size, claim.unit_nhz)
        for entry in claim.sizes
        if entry.size.role in ROLES[mode]
    }
    rates = {size: rate for size, rate in rates.items() if rate > 0}
    return Mixes(case.plan.problems, mode, rates, case.plan.asked.max_shapes)


def _is_better(case: Case, entry: ModeClaim, bounds: Mixes) -> bool | None:
    """Whether a mix is better than a mode's bound; than nothing at all where it is said that none does."""
    asked, unit, bound = case.plan.asked, case.plan.certificate.unit_nhz, entry.bound
    if asked.goal == "throughput":
        return bounds.serve((bound or 0) // unit + 1)
    if asked.goal == "efficiency":
        return bounds.serve_per_gpu((bound or 0) // unit + EFFICIENCY_STEP)
    weights = _weights(case)
    whole = sum(weight * problem.gpu_budget for weight, problem in zip(weights, case.plan.problems, strict=True))
    return bounds.serve_within(_demand(case), weights, whole if bound is None else bound - 1)


def _reaches(case: Case, value: int, rates: Mixes) -> bool | None:
    """Whether a mix of the claimed plans has a value."""
    asked, unit = case.plan.asked, case.plan.certificate.unit_nhz
    if asked.goal == "throughput":
        return rates.serve(-(-value // unit))
    if asked.goal == "efficiency":
        return rates.serve_per_gpu(-(-value // unit))
    return rates.serve_within(_demand(case), _weights(case), value)


def _weights(case: Case) -> list[int]:
    """What a GPU of every cluster counts."""
    asked = case.plan.asked
    return [asked.price_micro(site) if asked.prices else 1 for site in range(len(case.plan.problems))]


def _demand(case: Case) -> int:
    return -(-case.plan.asked.demand_nhz // case.plan.certificate.unit_nhz)


# --- exhaustive -------------------------------------------------------------------------------------------------------


def enumerated(case: Case) -> tuple[list[Finding], int]:
    """Every size of every pool, its degree space enumerated: no plan above the size's bound, one at its rate."""
    findings, total = list[Finding](), 0
    entries = {entry.size: entry for entry in case.plan.certificate.sizes}
    for site, problem in enumerate(case.plan.problems):
        for role in _roles(case):
            least: dict[int, int] = {}
            for gpus, taken in sorted(_widths(problem, role)):
                size = InstanceSize(site=site, role=role, gpus=gpus, domains=taken)
                entry = entries.get(size)
                least[gpus] = max(least.get(gpus, 0), 0 if entry is None else entry.bound_nhz)
                space = Enumeration(instance_problem(problem, size))
                total += space.configurations
                allowed = min(HUGE, least_value(least[gpus]) + 1)  # picoseconds that the bound admits
                found = space.below("throughput", allowed, (0, 0), first=True)
                words = f"{role} instances of {gpus} GPUs in {taken} domains"
                if found.best is not None or found.open_bound < allowed:
                    rule = "exhaustive-optimum" if found.best is not None else "exhaustive-open"
                    findings.append(Finding(rule, f"{words} serve more than the claimed bound of {least[gpus]} nHz"))
                if entry is not None and entry.rate_nhz:
                    beyond = min(HUGE, least_value(entry.rate_nhz - 1) + 1)
                    reached = space.below("throughput", beyond, (0, 0), first=True)
                    if reached.best is None and reached.open_bound >= beyond:
                        findings.append(
                            Finding("exhaustive-optimum", f"no {words} serve the claimed rate of {entry.rate_nhz} nHz")
                        )
    return findings, total
