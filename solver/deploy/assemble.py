"""From the search's outcome to the deployment document."""

from __future__ import annotations

from collections.abc import Sequence

from solver.certificate import Parameters, Versions
from solver.deploy.layout import lay_out
from solver.deploy.mix import Mix
from solver.deploy.run import DeployOutcome, Known
from solver.deployment import (
    DeploymentCertificate,
    DeploymentMetrics,
    DeploymentPlan,
    InstanceGroup,
    InstanceSize,
    ModeClaim,
    PoolMetrics,
    SizeClaim,
    deployment_warnings,
    idle_text,
    instance_problem,
    whole_rate,
)
from solver.plan import Plan
from solver.search.assemble import assemble
from solver.search.program import SearchLimits
from solver.search.run import DEFAULT_WORKERS, SearchOptions
from solver.specs.deploying import NHZ, UNITS, Deploying
from solver.specs.problem import Problem, Role


def assemble_deployment(
    problems: Sequence[Problem], asked: Deploying, outcome: DeployOutcome, options: SearchOptions
) -> DeploymentPlan:
    """The document of a search that found a mix."""
    winner = outcome.winner
    assert winner is not None
    assert winner.best is not None
    mix = winner.best
    limits = SearchLimits(options.workers or DEFAULT_WORKERS, options.seed, options.time_limit_s)
    starts = lay_out(problems, mix)
    groups = tuple(
        InstanceGroup(
            size=size,
            count=mix.counts[size],
            rate_nhz=whole_rate(outcome.known[size].rate, size, outcome.unit_nhz) * outcome.unit_nhz,
            starts=starts[size],
            plan=_plan(problems, size, outcome.known[size], limits),
        )
        for size in sorted(mix.counts, key=lambda size: size.sort_key)
    )
    sign = 1 if asked.wants_more else -1
    bounds = [front.bound for front in outcome.fronts if front.bound is not None]
    bound = max(bounds, key=lambda b: sign * b, default=mix.value)
    budget = sum(problem.gpu_budget for problem in problems)
    return DeploymentPlan(
        status=outcome.status,
        mode=winner.mode,
        asked=asked,
        problems=tuple(problems),
        groups=groups,
        metrics=_metrics(problems, asked, mix, groups),
        idle=idle_text(asked, outcome.status, budget - mix.gpus, budget),
        warnings=deployment_warnings(problems, groups),
        certificate=DeploymentCertificate(
            status=outcome.status,
            goal=asked.goal,
            unit=UNITS[asked.goal],
            unit_nhz=outcome.unit_nhz,
            value=mix.value,
            bound=bound,
            gap=abs(bound - mix.value) / mix.value if mix.value else 0.0,
            modes=tuple(
                ModeClaim(mode=front.mode, value=None if front.best is None else front.best.value, bound=front.bound)
                for front in outcome.fronts
            ),
            sizes=tuple(
                _claim(size, outcome.known[size]) for size in sorted(outcome.known, key=lambda size: size.sort_key)
            ),
            one_fewer_nhz=outcome.one_fewer_nhz,
            mixes=outcome.mixes,
            digests=tuple(group.plan.certificate.digests for group in groups),
            versions=Versions.here(),
            parameters=Parameters(seed=limits.seed, workers=limits.workers, time_limit_s=limits.time_s),
            wall_s=round(outcome.wall_s, 4),
        ),
    )


def _plan(problems: Sequence[Problem], size: InstanceSize, known: Known, limits: SearchLimits) -> Plan:
    assert known.outcome is not None
    found = known.outcome
    seconds = found.tables_s + found.program_s + found.blocks_s
    return assemble(instance_problem(problems[size.site], size), found, limits, None, seconds)


def _claim(size: InstanceSize, known: Known) -> SizeClaim:
    if known.bound == 0:
        return SizeClaim(size=size, rate_nhz=0, bound_nhz=0, proof="infeasible")
    proof = "program" if known.is_searched else "tables"
    return SizeClaim(size=size, rate_nhz=known.rate, bound_nhz=known.bound, proof=proof)


def _metrics(
    problems: Sequence[Problem], asked: Deploying, mix: Mix, groups: Sequence[InstanceGroup]
) -> DeploymentMetrics:
    osl = problems[0].workload.osl
    throughput = mix.rate_nhz / NHZ * osl
    roles: list[Role] = list(dict.fromkeys(group.size.role for group in groups))
    cost = None
    if asked.prices:
        cost = sum(asked.prices[g.size.site] * g.size.gpus * g.count for g in groups)
    return DeploymentMetrics(
        rate_nhz=mix.rate_nhz,
        requests_per_s=mix.rate_nhz / NHZ,
        throughput_tokens_per_s=throughput,
        efficiency_tokens_per_s_per_gpu=throughput / mix.gpus,
        gpus_used=mix.gpus,
        gpus_idle=sum(problem.gpu_budget for problem in problems) - mix.gpus,
        cost_per_hour=cost,
        pools=tuple(pool_metrics(role, [g for g in groups if g.size.role == role], mix.rate_nhz) for role in roles),
    )


def pool_metrics(role: Role, groups: Sequence[InstanceGroup], rate_nhz: int) -> PoolMetrics:
    """What a pool offers. Its requests are dealt in proportion to what each instance serves."""
    offered = sum(group.rate_nhz * group.count for group in groups)
    shares = [(group.rate_nhz * group.count, group.plan.metrics) for group in groups]
    return PoolMetrics(
        role=role,
        gpus=sum(group.size.gpus * group.count for group in groups),
        instances=sum(group.count for group in groups),
        rate_nhz=offered,
        utilisation=rate_nhz / offered if offered else 0.0,
        ttft_ns=max(metrics.ttft_ns for _, metrics in shares),
        tpot_ns=max(metrics.tpot_ns for _, metrics in shares),
        mean_ttft_ns=-(-sum(rate * metrics.ttft_ns for rate, metrics in shares) // max(1, offered)),
        mean_tpot_ns=-(-sum(rate * metrics.tpot_ns for rate, metrics in shares) // max(1, offered)),
    )
