"""Deployments: pools against brute force, mixes against every multiset of instances, the judge against mutations."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import pytest
from oracle import brute_force
from plans import small_cluster, small_problem
from plans import small_workload as any_workload
from problems import draw

from solver import (
    Deploying,
    DeploymentPlan,
    Problem,
    deploy,
    expand_deployment,
    verify,
    verify_deployment,
)
from solver.deploy.layout import runs_of
from solver.deploy.mix import MixProgram
from solver.deploy.run import deploy_search
from solver.deploy.sizes import size_bounds
from solver.deployment import (
    ROLES,
    InstanceSize,
    Run,
    instance_problem,
    pool_problem,
    rate_nhz,
    rate_unit,
    replaces,
    shares_domain,
    whole_rate,
)
from solver.errors import SpecError
from solver.legality import violations
from solver.plan import NoPlan, Plan
from solver.search.loop import Loop
from solver.search.program import SearchLimits
from solver.search.run import SearchOptions, search
from solver.specs.deploying import NHZ, Mode
from solver.specs.workload import Workload
from solver.strategy import Strategy
from solver.verify.exhaustive import Enumeration

LIMITS = SearchLimits(1, 0, None)
POOL_SEEDS = range(3000, 3040)
DEPLOY_SEEDS = range(4000, 4110)
MIX_SEEDS = range(150)


def small_workload(**changes: Any) -> Workload:
    """Prompts of 100 tokens, so that the concurrency can be free."""
    return any_workload(**{"isl": 100, "isl_list": None, **changes})


def quiet(_progress: object) -> None:
    """No progress is wanted."""


def stream(seed: int) -> Problem | None:
    """The question of a seed as a deployment can ask it; None where its workload cannot be a stream."""
    drawn = draw(seed)
    coupled = ("request_latency", "min_throughput", "min_efficiency")
    slo = drawn.workload.slo.model_copy(update=dict.fromkeys(coupled))
    if drawn.workload.isl_list is not None:
        return None
    workload = drawn.workload.model_copy(update={"slo": slo})
    return drawn.model_copy(update={"workload": workload, "pins": type(drawn.pins)(), "gpus_exact": None})


# --- pools ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", POOL_SEEDS)
def test_pools_equal_brute_force(seed: int) -> None:
    """The loop and the enumeration find what brute force over degrees and placements finds, in each role."""
    asked = stream(seed)
    if asked is None:
        pytest.skip("one length per sequence")
    rng = random.Random(seed)
    role = rng.choice(["prefill", "decode"])
    own = "ttft" if role == "prefill" else "tpot"
    name = rng.choice([own, "throughput", "efficiency", "gpus"])
    space = asked.space.model_copy(update={"max_pp": min(asked.space.max_pp, 2), "max_batch": 2})
    pool = pool_problem(asked.model_copy(update={"space": space}), role)  # type: ignore[arg-type]
    pool = pool.model_copy(update={"objective": type(pool.objective)(name=name)})
    truth = brute_force(pool).value
    outcome = Loop(pool, LIMITS, quiet, None).run()
    assert (None if outcome.best is None else outcome.best.value) == truth
    assert outcome.status == ("INFEASIBLE" if truth is None else "OPTIMAL")
    enumerated = Enumeration(pool).minimum(name)  # type: ignore[arg-type]
    assert (None if enumerated is None else enumerated.lower) == truth


def test_a_pool_pays_for_its_phase_alone() -> None:
    """On one strategy: a prefill pool has the TTFT of both plus the transfer, a decode pool the bare step."""
    whole = small_problem(workload=small_workload(concurrency=None))
    strategy = Strategy(attn_tp=2, attn_dp=1, moe_tp=2, moe_ep=1, batch=1)
    from solver import evaluate

    both = evaluate(whole, strategy)
    prefill = evaluate(pool_problem(whole, "prefill"), strategy)
    decode = evaluate(pool_problem(whole, "decode"), strategy)
    from solver.cost.leaves import Leaves

    transfer = Leaves(pool_problem(whole, "prefill")).transfer_ns
    assert transfer > 0
    assert prefill.metrics.ttft_ns == both.metrics.ttft_ns + transfer
    assert prefill.metrics.tpot_ns == prefill.metrics.decode_step_ns == 0
    assert decode.metrics.ttft_ns == decode.metrics.prefill_round_ns == 0
    assert decode.metrics.tpot_ns == both.metrics.decode_step_ns
    # One prompt in the single stage and one on its way out, without tokens to come; a decode pool holds one sequence.
    kv = [evaluation.memory[0].items_kib["kv_cache"] for evaluation in (both, prefill, decode)]
    assert kv[2] == kv[0]
    assert kv[1] < 2 * kv[0]
    assert prefill.memory[0].items_kib["activations"] == both.memory[0].items_kib["activations"]
    assert decode.memory[0].items_kib["activations"] == 0


def test_knobs_of_the_idle_phase_follow() -> None:
    """A decode pool whose prefill knobs differ says nothing that an engine could be told."""
    pool = pool_problem(small_problem(workload=small_workload(concurrency=None)), "decode")
    assert "pool" in {v.rule for v in violations(pool, Strategy(attn_tp=2, moe_tp=2, decode_allreduce="tree"))}
    assert "pool" in {v.rule for v in violations(pool, Strategy(attn_tp=2, moe_tp=2, batch=2, prefill_batch=2))}


@pytest.mark.parametrize(
    ("role", "changes", "words"),
    [
        ("prefill", {"workload": small_workload(concurrency=3)}, "free concurrency"),
        ("prefill", {"workload": small_workload(concurrency=None, slo={"tpot": "1 s"})}, "no tpot"),
        ("decode", {"workload": small_workload(concurrency=None), "objective": {"name": "ttft"}}, "no ttft"),
    ],
)
def test_impossible_pools_are_refused(role: str, changes: dict[str, Any], words: str) -> None:
    """A pool is asked only for what its phase has."""
    problem = small_problem(workload=small_workload(concurrency=None))
    with pytest.raises(SpecError, match=words):
        Problem.read({**dict(problem), **changes, "role": role}, "test")


# --- mixes ------------------------------------------------------------------------------------------------------------


def fits(domain: int, num_domains: int, small: tuple[int, ...], whole: int) -> bool:
    """Whether instances of these GPUs share the domains that `whole` leaves, by trying every place."""

    @cache
    def place(rest: tuple[int, ...], free: tuple[int, ...]) -> bool:
        if not rest:
            return True
        return any(
            place(rest[1:], tuple(sorted((*free[:i], room - rest[0], *free[i + 1 :]))))
            for i, room in enumerate(free)
            if room >= rest[0] and (i == 0 or free[i - 1] != room)
        )

    return whole <= num_domains and place(tuple(sorted(small, reverse=True)), (domain,) * (num_domains - whole))


def every_mix(problem: Problem, sizes: Sequence[InstanceSize]) -> Iterator[dict[InstanceSize, int]]:
    """Every multiset of instances that fits one cluster."""
    domain, budget = problem.cluster.domain_gpus, problem.gpu_budget

    def extend(index: int, chosen: dict[InstanceSize, int], left: int) -> Iterator[dict[InstanceSize, int]]:
        if index == len(sizes):
            small = [s.gpus for s, n in chosen.items() for _ in range(n) if shares_domain(s, domain)]
            whole = sum(s.domains * n for s, n in chosen.items() if not shares_domain(s, domain))
            if fits(domain, problem.cluster.num_domains, tuple(small), whole):
                yield {size: count for size, count in chosen.items() if count}
            return
        size = sizes[index]
        for count in range(left // size.gpus + 1):
            yield from extend(index + 1, {**chosen, size: count}, left - count * size.gpus)

    yield from extend(0, {}, budget)


def served(mode: Mode, counts: Mapping[InstanceSize, int], rates: Mapping[InstanceSize, int]) -> int:
    """Units of requests: the lesser of the pools."""
    return min(sum(rates[size] * count for size, count in counts.items() if size.role == role) for role in ROLES[mode])


@pytest.mark.parametrize("seed", MIX_SEEDS)
def test_mixes_equal_every_multiset(seed: int) -> None:
    """The integer program on made-up rates: all goals, both modes, shared and whole domains, budgets below the room."""
    rng = random.Random(seed)
    domain = rng.choice([2, 3, 4, 5])
    cluster = small_cluster(domain * rng.randint(1, 3), domain)
    problem = small_problem(cluster=cluster, workload=small_workload(concurrency=None))
    if rng.random() < 0.5:
        problem = problem.model_copy(update={"gpus_at_most": rng.randint(1, cluster.num_gpus)})
    mode: Mode = rng.choice(["aggregated", "disaggregated"])
    sizes = {
        InstanceSize(role=role, gpus=gpus, domains=-(-gpus // domain)): rng.randint(1, 60) * gpus
        for role in ROLES[mode]
        for gpus in rng.sample(range(1, cluster.num_gpus + 1), min(3, cluster.num_gpus))
    }
    goal = rng.choice(["throughput", "gpus", "cost"])
    mixes = [(served(mode, mix, sizes), mix) for mix in every_mix(problem, list(sizes))]
    best = max(rate for rate, _ in mixes)
    demand = max(1, round(best * rng.choice([0.3, 0.7, 1.0])))
    shapes = rng.choice([None, None, 1])
    words: dict[str, Any] = {"mode": mode, "goal": goal, "max_shapes": shapes}
    if goal != "throughput":
        words["request_rate"] = demand / NHZ
    if goal == "cost":
        words["prices"] = (2.5,)
    asked = Deploying(**words)
    mixes = [
        (rate, mix)
        for rate, mix in mixes
        if rate >= asked.demand_nhz
        and (shapes is None or all(sum(s.role == role for s in mix) <= shapes for role in ROLES[mode]))
    ]
    program = MixProgram([problem], asked, mode, sizes, 1)
    found = program.solve(LIMITS, program.plain())
    if goal == "throughput":
        true = max(rate for rate, _ in mixes)
        assert found is not None
        assert found.value == found.bound == found.rate_nhz == true
        fewest = min(sum(s.gpus * n for s, n in mix.items()) for rate, mix in mixes if rate == true)
        assert found.gpus == fewest
    elif not mixes:
        assert found is None
    else:
        fewest = min(sum(s.gpus * n for s, n in mix.items()) for _, mix in mixes)
        assert found is not None
        assert found.gpus == fewest
        assert found.value == (fewest if goal == "gpus" else 2_500_000 * fewest)
        assert found.rate_nhz == max(r for r, mix in mixes if sum(s.gpus * n for s, n in mix.items()) == fewest)


@pytest.mark.parametrize("seed", DEPLOY_SEEDS)
def test_deployments_equal_brute_force(seed: int) -> None:
    """The whole search against every multiset of the best instances, each found by the judge's enumeration."""
    asked = stream(seed)
    if asked is None:
        pytest.skip("one length per sequence")
    cluster = asked.cluster
    outcome = deploy_search([asked], Deploying(), SearchOptions(), quiet)
    bounds = {
        size: bound
        for mode in ROLES
        for role in ROLES[mode]
        for size, bound in size_bounds(pool_problem(asked, role), 0).items()
    }
    unit = rate_unit(bounds)
    best = 0
    for mode, roles in ROLES.items():
        rates: dict[InstanceSize, int] = {}
        for role in roles:
            found_before: dict[int, int] = {}
            for gpus in range(1, asked.gpu_budget + 1):
                for domains in range(1, cluster.num_domains + 1):
                    size = InstanceSize(role=role, gpus=gpus, domains=domains)
                    found = Enumeration(instance_problem(asked, size)).minimum("throughput")
                    rate = 0 if found is None or found.upper is None else rate_nhz(found.upper)
                    if rate > found_before.get(gpus, 0):  # else the same instance on fewer domains
                        found_before[gpus] = rate
                        rates[size] = whole_rate(rate, size, unit)
                        assert bounds[size] >= rate, "a closed-form bound is below a plan"
        if rates:
            best = max(best, *(served(mode, mix, rates) * unit for mix in every_mix(asked, list(rates))))
    if best == 0:
        assert outcome.status == "INFEASIBLE"
        return
    assert outcome.status == "OPTIMAL"
    assert outcome.winner is not None
    assert outcome.winner.best is not None
    assert outcome.winner.best.value == best


def test_dominance_counts_whole_domains() -> None:
    """Domains of 8: three instances of 5 GPUs fit where 24 GPUs sit, not four of them."""
    five, whole = InstanceSize(role="decode", gpus=5, domains=1), InstanceSize(role="decode", gpus=24, domains=3)
    assert replaces(five, whole, 8) == 3
    assert replaces(InstanceSize(role="decode", gpus=4, domains=1), whole, 8) == 6
    assert replaces(InstanceSize(role="decode", gpus=12, domains=2), whole, 8) == 1


def test_runs() -> None:
    """Arithmetic runs, as long as they go."""
    assert runs_of([0, 8, 16, 17]) == (Run(first=0, step=8, count=3), Run(first=17, step=1, count=1))
    assert runs_of([5]) == (Run(first=5, step=1, count=1),)
    assert runs_of([]) == ()


# --- documents --------------------------------------------------------------------------------------------------------


@cache
def answered() -> DeploymentPlan:
    """Seven GPUs in domains of four; disaggregated, so that both pools are there."""
    problem = small_problem(cluster=small_cluster(8, 4), workload=small_workload(concurrency=None))
    problem = problem.model_copy(update={"gpus_at_most": 7})
    found = deploy(problem, Deploying(mode="disaggregated"))
    assert isinstance(found, DeploymentPlan)
    return found


def test_a_deployment_is_confirmed() -> None:
    """Round trip, judge, and the map: every GPU once, within the budget."""
    found = answered()
    assert found.status == "OPTIMAL"
    again = DeploymentPlan.parse(found.model_dump_json())
    assert again == found
    verdict = verify_deployment(again, exhaustive=True)
    assert verdict.ok, verdict.findings
    gpus = [record.gpu for _, _, record in expand_deployment(found)]
    assert len(gpus) == len(set(gpus)) == found.metrics.gpus_used <= 7
    assert max(gpus) < 8
    for group in found.groups:
        assert verify(group.plan, exhaustive=True).ok


def changed(path: str, value: object) -> DeploymentPlan:
    """The deployment with one entry replaced; ``groups.0.count`` names it."""
    document = answered().model_dump(mode="json")
    at: Any = document
    *parents, last = path.split(".")
    for key in parents:
        at = at[int(key)] if key.isdigit() else at[key]
    at[int(last) if last.isdigit() else last] = value
    return DeploymentPlan.model_validate(document)


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        ("mode", "aggregated", "mode"),
        ("groups.0.count", 9, "layout"),
        ("groups.0.rate_nhz", 10**12, "sizes"),
        ("groups.0.size.gpus", 7, "instance-question"),
        ("groups.0.starts", [{"first": 3, "step": 1, "count": 1}], "layout"),
        ("groups.0.plan.metrics.tpot_ns", 1, "metrics"),
        ("groups.0.plan.strategy.batch", 1, "certificate-value"),
        ("metrics.rate_nhz", 10**13, "deployment-metrics"),
        ("metrics.gpus_idle", 5, "deployment-metrics"),
        ("metrics.pools.0.rate_nhz", 1, "deployment-metrics"),
        ("metrics.pools.1.mean_tpot_ns", 1, "deployment-metrics"),
        ("asked.mode", "aggregated", "mode"),
        ("problems.0.gpus_at_most", 2, "gpu-count"),
        ("problems.0.workload.osl", 9, "instance-question"),
        ("certificate.value", 1, "certificate-value"),
        ("certificate.bound", 1, "bound"),
        ("certificate.gap", 0.5, "gap"),
        ("certificate.goal", "efficiency", "status"),
        ("status", "FEASIBLE", "status"),
        ("certificate.sizes", [], "sizes"),
        ("certificate.modes", [], "mode"),
    ],
)
def test_mutations_are_convicted(path: str, value: object, rule: str) -> None:
    """Every entry is judged."""
    verdict = verify_deployment(changed(path, value))
    assert not verdict.ok
    assert rule in {finding.rule for finding in verdict.findings}, verdict.findings


def test_a_mix_below_its_bounds_is_convicted() -> None:
    """The claim of a worse mix to be the best is refuted from the sizes' own bounds."""
    found = answered()
    worse = found.model_dump(mode="json")
    for size in worse["certificate"]["sizes"]:
        size["bound_nhz"] *= 2
    rules = {finding.rule for finding in verify_deployment(DeploymentPlan.model_validate(worse)).findings}
    assert "mix" in rules


def test_bounds_that_are_too_low_are_convicted_by_enumeration() -> None:
    """A size that is said to be impossible, though it is not."""
    document = answered().model_dump(mode="json")
    used = [group["size"] for group in document["groups"]]
    for entry in document["certificate"]["sizes"]:
        if entry["size"] not in used and entry["bound_nhz"] > 0:
            entry.update(rate_nhz=0, bound_nhz=0, proof="infeasible")
    verdict = verify_deployment(DeploymentPlan.model_validate(document), exhaustive=True)
    assert "exhaustive-optimum" in {finding.rule for finding in verdict.findings}


# --- questions --------------------------------------------------------------------------------------------------------


def test_sizing_says_what_one_gpu_fewer_serves() -> None:
    """The fewest GPUs for a demand, and the proof that one fewer does not do."""
    problem = small_problem(cluster=small_cluster(8, 4), workload=small_workload(concurrency=None))
    most = deploy(problem, Deploying())
    assert isinstance(most, DeploymentPlan)
    demand = most.metrics.requests_per_s * 0.6
    found = deploy(problem, Deploying(goal="gpus", request_rate=demand))
    assert isinstance(found, DeploymentPlan)
    assert verify_deployment(found, exhaustive=True).ok
    assert found.metrics.requests_per_s >= demand
    assert found.certificate.one_fewer_nhz is not None
    assert found.certificate.one_fewer_nhz < demand * NHZ
    fewer = problem.model_copy(update={"gpus_at_most": found.metrics.gpus_used - 1})
    assert isinstance(deploy(fewer, Deploying(goal="gpus", request_rate=demand)), NoPlan)


def test_cheaper_gpus_win() -> None:
    """Two equal clusters: everything goes to the cheaper one until it is full."""
    cheap = small_problem(cluster=small_cluster(4, 4), workload=small_workload(concurrency=None))
    dear = cheap.model_copy(update={"cluster": cheap.cluster.model_copy(update={"name": "dear"})})
    most = deploy(cheap, Deploying(mode="aggregated"))
    assert isinstance(most, DeploymentPlan)
    rate = most.metrics.requests_per_s
    asked = Deploying(mode="aggregated", goal="cost", request_rate=0.9 * rate, prices=(1.0, 3.0))
    alone = deploy([cheap, dear], asked)
    assert isinstance(alone, DeploymentPlan)
    assert {group.size.site for group in alone.groups} == {0}
    assert verify_deployment(alone).ok
    asked = asked.model_copy(update={"request_rate": 1.2 * rate})
    both = deploy([cheap, dear], asked)
    assert isinstance(both, DeploymentPlan)
    assert {group.size.site for group in both.groups} == {0, 1}
    assert both.metrics.cost_per_hour is not None
    assert verify_deployment(both).ok


def test_a_demand_beyond_the_cluster_names_the_most() -> None:
    """Infeasible with the number that would do."""
    problem = small_problem(cluster=small_cluster(4, 4), workload=small_workload(concurrency=None))
    most = deploy(problem, Deploying())
    assert isinstance(most, DeploymentPlan)
    answer = deploy(problem, Deploying(goal="gpus", request_rate=most.metrics.requests_per_s * 2))
    assert isinstance(answer, NoPlan)
    assert answer.status == "INFEASIBLE"
    assert f"{most.metrics.requests_per_s:.6g}" in answer.reasons[0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"goal": "gpus"}, "needs a request rate"),
        ({"request_rate": 3.0}, "belongs to the goals gpus and cost"),
        ({"goal": "cost", "request_rate": 1.0}, "prices and the goal cost"),
        ({"request_rate": 0.0, "goal": "gpus"}, "request_rate"),
    ],
)
def test_contradictions_are_refused(words: dict[str, Any], sentence: str) -> None:
    """One sentence each."""
    with pytest.raises(SpecError, match=sentence):
        Deploying.read(words, "options")


def test_pins_and_coupled_limits_are_refused() -> None:
    """What a mix cannot keep."""
    problem = small_problem(workload=small_workload(concurrency=None))
    pinned = problem.model_copy(update={"pins": type(problem.pins)(attn_tp=2)})
    with pytest.raises(SpecError, match="attn_tp = 2"):
        deploy(pinned)
    limited = small_problem(workload=small_workload(concurrency=None, slo={"request_latency": "10 s"}))
    with pytest.raises(SpecError, match="couples the pools"):
        deploy(limited, Deploying(mode="disaggregated"))
    assert isinstance(deploy(limited, Deploying(mode="aggregated")), DeploymentPlan)


def test_engines_restrict_instances() -> None:
    """Every instance of an engine's deployment is one that the engine launches, in either pool."""
    problem = small_problem(cluster=small_cluster(8, 4), workload=small_workload(concurrency=None))
    found = deploy(problem.model_copy(update={"engine": "sglang"}), Deploying(mode="disaggregated"))
    assert isinstance(found, DeploymentPlan)
    assert verify_deployment(found, exhaustive=True).ok


def test_searches_of_pools_are_plans() -> None:
    """`search` answers a pool's question like any other."""
    pool = pool_problem(small_problem(workload=small_workload(concurrency=None)), "prefill")
    found = search(pool, SearchOptions(), quiet)
    assert isinstance(found, Plan)
    assert found.closed_loop is None
    assert verify(found, exhaustive=True).ok
