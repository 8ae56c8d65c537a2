"""The judge of deployments: every entry of the document, its own answer to the mix, what it leaves open."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from plans import small_cluster, small_problem
from test_deploy import every_mix, served, small_workload

from solver import Deploying, DeploymentPlan, Problem, deploy, verify_deployment
from solver.deployment import ROLES, InstanceSize
from solver.specs.deploying import Mode
from solver.verify import mix, packed
from solver.verify.mix import Mixes

MIX_SEEDS = range(200)
SITE_SEEDS = range(60)
Leaf = tuple[str | int, ...]


def question(gpus: int, domain: int, at_most: int | None = None, **workload: Any) -> Problem:
    """A small cluster and a stream of requests."""
    problem = small_problem(cluster=small_cluster(gpus, domain), workload=small_workload(concurrency=None, **workload))
    return problem.model_copy(update={"gpus_at_most": at_most})


@cache
def answered(name: str) -> DeploymentPlan:
    """Deployments of different kinds."""
    most = question(8, 4, 7)
    if name == "pools":
        found = deploy(most, Deploying(mode="disaggregated"))
    elif name == "fewest":
        found = deploy(
            question(4, 4), Deploying(goal="gpus", request_rate=answered("pools").metrics.requests_per_s / 3)
        )
    elif name == "efficient":
        found = deploy(question(4, 4), Deploying(goal="efficiency", max_shapes=1))
    else:
        rate = answered("pools").metrics.requests_per_s / 2
        near = question(4, 4)
        far = near.model_copy(update={"cluster": near.cluster.model_copy(update={"name": "far"})})
        found = deploy([near, far], Deploying(goal="cost", mode="aggregated", request_rate=rate, prices=(1.0, 1.5)))
    assert isinstance(found, DeploymentPlan)
    return found


# --- every entry ------------------------------------------------------------------------------------------------------

UNCONVICTED = {
    # True as well: the same deployment answers that question, or sits at another place that is as good
    # (a run of one place has no use for its step; a cluster that is not used may have another price).
    "asked.max_shapes",
    "asked.request_rate",
    "asked.prices.#",
    "groups.#.starts.#.first",
    "groups.#.starts.#.step",
    # True as well: a bound that is raised is still a bound (lowered ones are convicted below, by enumeration), and no
    # plan of a size that is not used is in the document (rates that are raised are convicted below, by enumeration).
    "certificate.sizes.#.bound_nhz",
    "certificate.sizes.#.rate_nhz",
    # Less is claimed: of the mode that lost, a worse mix; of two modes, a weaker bound that does not decide.
    "certificate.modes.#.value",
    "certificate.modes.#.bound",
    # The log of the search: what it did, and how long that took. Nothing follows from it.
    "certificate.mixes",
    "certificate.wall_s",
    "groups.#.plan.certificate.wall_s.tables",
    "groups.#.plan.certificate.wall_s.program",
    "groups.#.plan.certificate.wall_s.blocks",
    "groups.#.plan.certificate.wall_s.total",
    "groups.#.plan.certificate.iterations",
    "groups.#.plan.certificate.iterations.#.program_value",
    "groups.#.plan.certificate.iterations.#.realised_value",
    "groups.#.plan.certificate.iterations.#.label",
    "groups.#.plan.certificate.iterations.#.cut",
    # Words of a plan and the size of its space: their numbers are judged elsewhere, or decide nothing.
    "groups.#.plan.breakdown.decode.#.name",
    "groups.#.plan.breakdown.prefill.#.name",
    "groups.#.plan.certificate.space.definition",
    "groups.#.plan.certificate.space.configurations",
    "groups.#.plan.operator_sources",  # older documents have none
    "groups.#.plan.warnings",  # one that the plan of another group repeats; of the whole they are judged
}
"""Entries whose change need not be convicted, and why not."""


def leaves(node: object, path: Leaf = ()) -> Iterator[tuple[Leaf, object]]:
    """Every entry of a document with a changed value: numbers one more, texts and lists one shorter."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, (*path, key))
    elif isinstance(node, list):
        if node:
            yield path, node[:-1]
        for index, value in enumerate(node):
            yield from leaves(value, (*path, index))
    elif isinstance(node, bool):
        yield path, not node
    elif isinstance(node, int | float):
        yield path, node + 1
    elif isinstance(node, str):
        yield path, node[:-1] if node else "x"
    else:
        yield path, 1


def changed(document: dict[str, Any], path: Leaf, value: object) -> DeploymentPlan | None:
    """The document with one entry replaced; None where that is no deployment document."""
    found = at = copy.copy(document)
    for key in path[:-1]:
        at[key] = copy.copy(at[key])  # type: ignore[index]
        at = at[key]  # type: ignore[index]
    at[path[-1]] = value  # type: ignore[index]
    try:
        return DeploymentPlan.model_validate(found)
    except ValueError:
        return None


@pytest.mark.parametrize("name", ["pools", "fewest", "efficient", "cheapest"])
def test_every_entry_is_judged(name: str) -> None:
    """One entry changed, all of them in turn: convicted, but for the few of which the list above says why not."""
    plan = answered(name)
    assert verify_deployment(plan).ok, verify_deployment(plan).findings
    document = json.loads(plan.model_dump_json())
    escaped, looked = set(), Counter[str]()
    for path, value in leaves(document):
        words = ".".join("#" if isinstance(key, int) else key for key in path)
        looked[words] += 1
        if words in UNCONVICTED or looked[words] > 3:  # three entries of every list
            continue
        other = changed(document, path, value)
        if other is None or other == plan:
            continue
        if len(plan.problems) > 1 and words.startswith("problems."):
            continue  # the question about a cluster that is not used is another question
        if verify_deployment(other).ok:
            escaped.add(words)
    assert not escaped


@pytest.mark.parametrize("name", ["pools", "fewest"])
def test_bounds_and_rates_of_sizes_are_enumerated(name: str) -> None:
    """A bound below what a size can do, or a rate above it, is convicted by enumeration (a bound above is true)."""
    document = json.loads(answered(name).model_dump_json())
    for index, entry in enumerate(document["certificate"]["sizes"]):
        if entry["proof"] != "program":
            continue
        for key, step in (("rate_nhz", 1), ("bound_nhz", -1)):
            found = changed(document, ("certificate", "sizes", index, key), entry[key] + step)
            assert found is not None
            assert not verify_deployment(found, exhaustive=True).ok, (entry, key)


def test_no_size_may_be_left_out() -> None:
    """Without the claim about a size that has plans, nothing is known of the mixes with it."""
    document = json.loads(answered("pools").model_dump_json())
    used = [group["size"] for group in document["groups"]]
    sizes = document["certificate"]["sizes"]
    gone = next(entry for entry in sizes if entry["bound_nhz"] > 0 and entry["size"] not in used)
    found = changed(document, ("certificate", "sizes"), [entry for entry in sizes if entry is not gone])
    assert found is not None
    findings = verify_deployment(found).findings
    assert any(f.rule == "sizes" and "nothing is claimed" in f.sentence for f in findings), findings


def test_clusters_must_be_asked_the_same() -> None:
    """Several clusters serve one stream of requests; pins and exact numbers of GPUs are refused, too."""
    plan = answered("cheapest")
    other = plan.problems[1].model_copy(update={"redundant_experts": 1})
    verdict = verify_deployment(plan.model_copy(update={"problems": (plan.problems[0], other)}))
    assert {finding.rule for finding in verdict.findings} == {"question"}
    exact = tuple(problem.model_copy(update={"gpus_exact": 4}) for problem in plan.problems)
    assert "question" in {f.rule for f in verify_deployment(plan.model_copy(update={"problems": exact})).findings}


# --- the mix ----------------------------------------------------------------------------------------------------------


def drawn(rng: random.Random, mode: Mode, sites: int = 1) -> tuple[list[Problem], dict[InstanceSize, int]]:
    """Small clusters and made-up rates."""
    problems, rates = [], dict[InstanceSize, int]()
    for site in range(sites):
        domain = rng.choice([2, 3, 4])
        gpus = domain * rng.randint(1, 3 if sites == 1 else 2)
        at_most = rng.choice([None, rng.randint(1, gpus)])
        problems.append(question(gpus, domain, at_most))
        for role in ROLES[mode]:
            for size in rng.sample(range(1, gpus + 1), min(3, gpus)):
                taken = -(-size // domain) + (rng.random() < 0.2 and size > domain)
                rates[InstanceSize(site=site, role=role, gpus=size, domains=taken)] = rng.randint(1, 40) * size
    return problems, rates


def few(counts: dict[InstanceSize, int], mode: Mode, shapes: int | None) -> bool:
    """Whether no pool has more sizes than are allowed."""
    return shapes is None or all(sum(size.role == role for size in counts) <= shapes for role in ROLES[mode])


@pytest.mark.parametrize("seed", MIX_SEEDS)
def test_the_judges_mixes_equal_every_multiset(seed: int) -> None:
    """Most requests, most per GPU and fewest GPUs: reached by the judge's arithmetic, and one more is not."""
    rng = random.Random(seed)
    mode: Mode = rng.choice(["aggregated", "disaggregated"])
    (problem,), rates = drawn(rng, mode)
    shapes = rng.choice([None, None, 1, 2])
    own = Mixes([problem], mode, rates, shapes)
    true = [(served(mode, m, rates), sum(s.gpus * n for s, n in m.items())) for m in every_mix(problem, list(rates))
            if few(m, mode, shapes)]  # fmt: skip
    most = max(rate for rate, _ in true)
    assert own.serve(most + 1) is False
    assert most == 0 or own.serve(most) is True
    demand = max(1, round(most * rng.choice([0.3, 0.7, 1.0])))
    fewest = min((gpus for rate, gpus in true if rate >= demand), default=None)
    if fewest is None:
        assert own.serve_within(demand, [3], 10**6) is False
    else:
        assert own.serve_within(demand, [3], 3 * fewest) is True
        assert own.serve_within(demand, [3], 3 * fewest - 1) is False
    best = max((rate // gpus for rate, gpus in true if gpus), default=0)
    assert best == 0 or own.serve_per_gpu(best) is True
    assert own.serve_per_gpu(best + 1) is False


@pytest.mark.parametrize("seed", SITE_SEEDS)
def test_combinations_of_clusters_equal_every_pair(seed: int) -> None:
    """Two clusters, two prices: the least money for a demand is that of the best pair of mixes."""
    rng = random.Random(seed)
    mode: Mode = rng.choice(["aggregated", "disaggregated"])
    problems, rates = drawn(rng, mode, sites=2)
    weights = [rng.randint(1, 5), rng.randint(1, 5)]
    parts = []
    for site, problem in enumerate(problems):
        own = {size: rate for size, rate in rates.items() if size.site == site}
        mixes = every_mix(problem, list(own))
        parts.append({(served(mode, m, own), weights[site] * sum(s.gpus * n for s, n in m.items())) for m in mixes})
    pairs = [(a + b, x + y) for a, x in parts[0] for b, y in parts[1]]
    most = max(rate for rate, _ in pairs)
    judged = Mixes(problems, mode, rates)
    assert judged.serve(most + 1) is False
    if most == 0:
        return
    assert judged.serve(most) is True
    demand = max(1, round(most * rng.choice([0.4, 0.8, 1.0])))
    least = min(money for rate, money in pairs if rate >= demand)
    assert judged.serve_within(demand, weights, least) is True
    assert judged.serve_within(demand, weights, least - 1) is False


def test_a_cheaper_combination_of_clusters_is_convicted() -> None:
    """Neither cluster alone is cheaper than claimed, both together are: so say the bounds, twice as high."""
    plan = answered("cheapest")
    document = json.loads(plan.model_dump_json())
    used = [group["size"] for group in document["groups"]]
    for entry in document["certificate"]["sizes"]:
        if entry["size"] not in used and entry["bound_nhz"]:
            entry.update(bound_nhz=2 * entry["bound_nhz"])
    verdict = verify_deployment(DeploymentPlan.model_validate(document))
    assert "mix" in {finding.rule for finding in verdict.findings}


def test_sizes_that_leave_a_rest_are_packed() -> None:
    """Domains of 8: five instances of 3 GPUs have 15 of 16 GPUs, but only two fit a domain, so there are four."""
    three = InstanceSize(role="aggregated", gpus=3, domains=1)
    judged = Mixes([question(16, 8, 15)], "aggregated", {three: 30})
    assert judged.serve(120) is True
    assert judged.serve(121) is False


def test_few_shapes_are_judged() -> None:
    """With one size per pool the mix is judged, too: a better size that is claimed to be possible convicts."""
    problem = question(8, 4, 7)
    plan = deploy(problem, Deploying(mode="aggregated", max_shapes=1))
    assert isinstance(plan, DeploymentPlan)
    verdict = verify_deployment(plan)
    assert verdict.ok
    assert "mix" in verdict.checks
    assert not verdict.unjudged
    document = json.loads(plan.model_dump_json())
    used = [group["size"] for group in document["groups"]]
    for entry in document["certificate"]["sizes"]:
        if entry["size"] not in used and entry["bound_nhz"]:
            entry["bound_nhz"] *= 3
    assert "mix" in {f.rule for f in verify_deployment(DeploymentPlan.model_validate(document)).findings}


def test_what_is_too_large_is_not_called_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the judge's arithmetic gives up, the check is not listed, and the verdict says what is open."""
    monkeypatch.setattr(mix, "MAX_GPUS", 3)
    verdict = verify_deployment(answered("pools"))
    assert verdict.ok
    assert "mix" not in verdict.checks
    assert "better disaggregated mix" in verdict.unjudged[0]
    monkeypatch.undo()
    monkeypatch.setattr(packed, "MAX_FOUND", 0)
    seven = Mixes([question(8, 4, 7)], "disaggregated", {
        InstanceSize(role="prefill", gpus=3, domains=1): 30, InstanceSize(role="decode", gpus=2, domains=1): 20,
    })  # fmt: skip
    assert seven.serve(20) is None
    assert seven.serve(10**6) is False, "what no packing could reach is refuted without one"
