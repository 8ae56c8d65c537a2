"""Explanations: minimal sets, tight relaxations, why not, breakpoints; tiny problems with the answer argued.

The tiny cluster has domains of four GPUs of 200 MB; the tiny LLM has 8 query heads, 4 KV heads, 8 experts of width
512, 4 layers.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from command_line import SMALL, run
from oracle import brute_force
from plans import small_cluster, small_llm, small_problem, small_workload
from problems import draw

from solver import Plan, Vary, explain, solve, verify, verify_explanation, what_if
from solver.errors import SpecError, StrategyError
from solver.explanation import Explanation, Relaxation
from solver.legality import violations
from solver.search.explain.axes import axes_of
from solver.search.explain.constraints import allowed_size, constraints_of, with_concurrency, with_prompts, without
from solver.search.explain.decide import AnyPlan
from solver.search.program import SearchLimits
from solver.specs.problem import Objective, Pins, Problem, Space

LIMITS = SearchLimits(1, 3, None)


def uniform(**changes: Any) -> Any:
    return small_workload(isl=200, **changes)


PROBLEMS: dict[str, Problem] = {
    # 8 experts x 3 x 256 x 512 x 2 B x 4 layers = 25 MB of experts, 32 MB in all: not into 20 MB on one GPU.
    "memory": small_problem(cluster=small_cluster(1, 1, "40 MB"), workload=uniform()),
    # Without experts, TP 3 breaks two rules (8 query heads, 4 KV heads): either of them excludes it, one is named.
    "heads": small_problem(llm=small_llm(moe=None, dense_width=768), workload=uniform(), pins=Pins(attn_tp=3)),
    "ttft": small_problem(workload=uniform(slo={"ttft": "1 us"})),
    "both": small_problem(workload=uniform(slo={"ttft": "1 us", "tpot": "1 us"})),
    # Attention TP 2: an even number of GPUs, never 7, whatever else is fixed.
    "exact": small_problem(workload=uniform(), gpus_exact=7, pins=Pins(attn_tp=2, attn_dp=1, pp=1)),
    "dtype": small_problem(llm=small_llm(dtypes={"experts": "fp8"}), workload=uniform()),
    "engine": small_problem(workload=uniform(), engine="vllm", pins=Pins(moe_tp=2, moe_ep=2)),
    "identity": small_problem(workload=uniform(), pins=Pins(attn_tp=4, attn_dp=1, moe_tp=1, moe_ep=2)),
    "slots": small_problem(workload=uniform(concurrency=200), gpus_at_most=2, pins=Pins(batch=2)),
    "redundancy": small_problem(workload=uniform(), redundant_experts=8, pins=Pins(moe_ep=1)),
    # The calibration does not say how long a direct all-reduce waits.
    "all-reduce": small_problem(workload=uniform(), pins=Pins(decode_allreduce="direct")),
}
NAMES: dict[str, set[str]] = {
    "memory": {"cluster-size", "memory"},
    "heads": {"heads", "pin attn_tp"},
    "ttft": {"slo-ttft"},
    "both": {"slo-tpot"},
    "exact": {"pin attn_tp", "gpu-count"},
    "dtype": {"dtype"},
    "engine": {"engine", "pin moe_tp", "pin moe_ep"},
    "identity": {"pin attn_tp", "pin moe_tp", "pin moe_ep"},
    # 16 ranks, at most 4 micro-batches of 2 sequences; the limit of 2 GPUs excludes, too, but the cluster comes last.
    "slots": {"concurrency", "cluster-size", "pin batch"},
    "redundancy": {"redundancy", "pin moe_ep"},
    "all-reduce": {"pin decode_allreduce"},
}


@cache
def explained(name: str) -> Explanation:
    return explain(PROBLEMS[name])


def has_plan(problem: Problem, *dropped: str) -> bool:
    """Whether a plan exists without these constraints, by a search with another seed; it keeps every other rule."""
    case = without(problem, [c for c in constraints_of(problem) if c.name in dropped])
    outcome = AnyPlan(case, LIMITS).run()
    if outcome.best is None:
        assert outcome.status == "INFEASIBLE"
        return False
    assert not outcome.best.violations
    assert not [v for v in violations(case.problem, outcome.best.strategy) if v.rule not in case.waived]
    return True


# --- the minimal set ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_set_is_minimal(name: str) -> None:
    """All others dropped, the set excludes every plan; with any one member dropped, too, there is one."""
    problem, answer = PROBLEMS[name], explained(name)
    assert answer.status == "INFEASIBLE"
    members = [member.name for member in answer.members]
    assert all(member.needed and member.plan_without for member in answer.members)
    others = [c.name for c in constraints_of(problem) if c.name not in members]
    assert not has_plan(problem, *others)
    for member in answer.members:
        assert has_plan(problem, *others, member.name)
        assert member.alone == has_plan(problem, member.name)


@pytest.mark.parametrize("name", NAMES)
def test_the_set_names_what_it_must(name: str) -> None:
    assert {member.name for member in explained(name).members} == NAMES[name]


def test_a_pin_says_which_rule_it_breaks() -> None:
    sentences = [member.sentence for member in explained("all-reduce").members]
    assert len(sentences) == 1
    assert "has no direct_sync" in sentences[0]


def test_brute_force_agrees_that_dropping_a_limit_helps() -> None:
    """On random problems with memory and limits that bind, the enumeration confirms what explain says of each."""
    compared = 0
    for seed in (22, 24, 32, 52):
        problem = draw(seed)
        assert brute_force(problem).value is None
        answer = explain(problem)
        assert answer.members
        for relaxation in answer.relaxations:
            if relaxation.axis not in ("ttft", "tpot", "request_latency", "memory") or relaxation.status != "PROVED":
                continue
            axis = axes_of(problem)[relaxation.axis]
            assert relaxation.value is not None
            assert relaxation.excluded is not None
            assert brute_force(axis.at(relaxation.value)).value is not None
            assert brute_force(axis.at(relaxation.excluded)).value is None
            compared += 1
    assert compared >= 3


# --- relaxations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_relaxation_is_tight(name: str) -> None:
    """A plan at the value, none one step before it; and none far out where no value is said to help."""
    far = {"gpus": 512, "memory": 2**50, "ttft": 10**12, "tpot": 10**12, "request_latency": 10**12}
    for relaxation in explained(name).relaxations:
        axis = axes_of(PROBLEMS[name])[relaxation.axis]
        if relaxation.status == "IMPOSSIBLE":
            assert not has_plan(axis.at(far.get(axis.name, 1)))
        if relaxation.status != "PROVED":
            continue
        assert relaxation.value is not None
        assert relaxation.excluded is not None
        assert relaxation.plan is not None
        assert verify(relaxation.plan).ok
        assert has_plan(axis.at(relaxation.value))
        assert not has_plan(axis.at(relaxation.excluded))
        assert abs(relaxation.value - relaxation.excluded) == axis.step or axis.name == "gpus"


def of_axis(name: str, axis: str) -> Relaxation:
    return next(relaxation for relaxation in explained(name).relaxations if relaxation.axis == axis)


def test_a_single_missed_limit_is_relaxed_to_its_minimum() -> None:
    """Only the TTFT excludes: relaxing it to the least TTFT of all strategies is what solving for it gives."""
    best = solve(small_problem(workload=uniform(), objective=Objective(name="ttft")))
    assert isinstance(best, Plan)
    found = of_axis("ttft", "ttft")
    assert (found.status, found.value, found.excluded) == ("PROVED", best.certificate.value, best.certificate.value - 1)


def test_two_missed_limits_need_both() -> None:
    """Neither limit alone may give: the attempt gives up both, and says by how much."""
    answer = explained("both")
    assert {of_axis("both", axis).status for axis in ("ttft", "tpot")} == {"IMPOSSIBLE"}
    assert answer.attempt is not None
    assert set(answer.attempt.gives) == {"slo-ttft", "slo-tpot"}
    missed = {limit.name for limit in answer.attempt.limits if not limit.kept}
    assert missed == {"TTFT", "TPOT"}


def test_the_nearest_exact_number_is_found_on_either_side() -> None:
    found = of_axis("exact", "gpus")
    assert found.value in (6, 8)
    assert found.excluded == 7


def test_clusters_grow_by_what_can_be_bought() -> None:
    """Nodes of four GPUs: beyond one node only whole nodes; an allowed size is its own answer."""
    cluster = small_cluster(16, 4)
    assert [allowed_size(cluster, n) for n in (1, 3, 4, 5, 8, 9, 17)] == [1, 3, 4, 8, 8, 12, 20]


def test_shorter_prompts_and_fewer_sequences() -> None:
    listed = small_workload()
    assert with_prompts(listed, 200).isl_list == (100, 150, 200, 200, 200, 200, 200, 200)
    assert with_prompts(listed, 200).longest_isl == 200  # derived values are computed anew
    fewer = with_concurrency(listed, 3)
    assert (fewer.isl_list, fewer.concurrency, fewer.mean_isl) == ((100, 150, 200), 3, 150)
    assert with_concurrency(listed, None).isl == listed.mean_isl


# --- the document and its judge -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_judge_confirms_the_document(name: str) -> None:
    answer = explained(name)
    assert verify_explanation(answer).findings == ()
    assert Explanation.parse(answer.model_dump_json()) == answer


def test_the_judge_convicts_what_is_false() -> None:
    honest = explained("ttft")
    index = next(i for i, r in enumerate(honest.relaxations) if r.axis == "ttft")
    relaxation = honest.relaxations[index]
    assert relaxation.value is not None
    assert relaxation.plan is not None

    def changed(relaxed: Relaxation) -> Explanation:
        rest = [*honest.relaxations[:index], relaxed, *honest.relaxations[index + 1 :]]
        return honest.model_copy(update={"relaxations": tuple(rest)})

    cases = {
        "relaxed-problem": changed(relaxation.model_copy(update={"value": relaxation.value + 5})),
        "relaxed-tight": changed(relaxation.model_copy(update={"excluded": None})),
        "relaxed-asked": honest.model_copy(
            update={"problem": relaxation.plan.problem, "problem_digest": relaxation.plan.problem.digest}
        ),
        "digest": honest.model_copy(update={"problem_digest": "0" * 64}),
        "explained-status": honest.model_copy(update={"winner": relaxation.plan}),
        "metrics": changed(
            relaxation.model_copy(
                update={
                    "plan": relaxation.plan.model_copy(
                        update={"metrics": relaxation.plan.metrics.model_copy(update={"ttft_ns": 1})}
                    )
                }
            )
        ),
    }
    for rule, document in cases.items():
        assert any(rule in str(finding) for finding in verify_explanation(document).findings), rule
    loose = axes_of(honest.problem)["ttft"].at(relaxation.value + 10**6)
    plan = solve(loose)
    assert isinstance(plan, Plan)
    document = changed(
        relaxation.model_copy(
            update={"value": relaxation.value + 10**6, "excluded": relaxation.value + 10**6 - 1, "plan": plan}
        )
    )
    assert any(finding.rule == "relaxed-tight" for finding in verify_explanation(document).findings)


def test_a_time_limit_leaves_steps_open_and_says_so() -> None:
    from solver import ExplainOptions

    answer = explain(PROBLEMS["memory"], None, ExplainOptions(time_limit_s=1e-6))
    assert not answer.complete
    assert answer.status in ("INFEASIBLE", "UNKNOWN")
    assert all(r.status != "PROVED" for r in answer.relaxations)


# --- why not ------------------------------------------------------------------------------------------------------

FEASIBLE = small_problem(workload=uniform())


def test_why_not_names_the_rule() -> None:
    answer = explain(FEASIBLE, "attn_tp=2,attn_dp=2,moe_tp=1,moe_ep=2")
    assert answer.why_not is not None
    assert answer.why_not.verdict == "excluded"
    rule = explain(FEASIBLE, "A3x1-E3x1-PP1-R1").why_not
    assert rule is not None
    assert (rule.verdict, rule.broken[0].name) == ("rule", "heads")
    assert "8 query heads" in rule.sentence


@pytest.mark.parametrize("objective", ["latency", "ttft", "tpot", "throughput", "efficiency", "gpus", "weighted"])
def test_why_not_by_the_terms_of_the_objective(objective: str) -> None:
    """The named strategy loses, wins or ties by exactly the terms (the judge adds them up)."""
    problem = FEASIBLE.model_copy(update={"objective": Objective.read({"name": objective}, "test")})
    answer = explain(problem, "A1x1-E1x1-PP2-R4")
    why = answer.why_not
    assert why is not None
    assert why.named is not None
    assert why.named.strategy.full_label == "A1x1-E1x1-PP2-R4"
    assert why.verdict in ("loses", "ties", "wins")
    assert verify_explanation(answer).findings == ()
    if objective == "latency":
        assert why.verdict == "loses"
        assert sum(term.named for term in why.terms) == pytest.approx(why.named.certificate.value, rel=1e-6)


def test_the_winner_wins_and_memory_excludes() -> None:
    winner = solve(FEASIBLE)
    assert isinstance(winner, Plan)
    why = explain(FEASIBLE, winner.strategy.strategy()).why_not
    assert why is not None
    assert why.verdict == "wins"
    tight = small_problem(workload=uniform(), cluster=small_cluster(16, 4, "45 MB"))
    why = explain(tight, "A1x1-E1x1-PP1-R8").why_not
    assert why is not None
    assert why.verdict == "excluded"
    assert "memory" in {demand.name for demand in why.broken}


def test_a_nonsense_strategy_is_refused() -> None:
    with pytest.raises(StrategyError):
        explain(FEASIBLE, "EP0")
    with pytest.raises(SpecError):
        explain(FEASIBLE, "colour=blue")


# --- what if ------------------------------------------------------------------------------------------------------


def test_breakpoints_equal_a_sweep_of_every_value() -> None:
    """Every number of GPUs solved one by one gives the same winners; with nested choices every interval is proved."""
    problem = small_problem(workload=uniform(), space=Space(max_pp=2))
    answer = what_if(problem, Vary(parameter="gpus", first=1, last=16, points=3))
    assert answer.complete
    winners = {}
    for gpus in range(1, 17):
        plan = solve(problem.model_copy(update={"gpus_at_most": gpus}))
        assert isinstance(plan, Plan)
        winners[gpus] = plan.strategy.full_label.rsplit("-R", 1)[0]
    for interval in answer.intervals:
        if interval.proved:
            assert {winners[gpus] for gpus in range(interval.first, interval.last + 1)} == {interval.signature}
        assert winners[interval.first] == winners[interval.last] == interval.signature
    for point in answer.breakpoints:
        assert winners[point - 1] != winners[point]


def test_a_limit_has_its_breakpoint_at_the_proved_minimum() -> None:
    """Below the least TTFT there is no plan, from it on there is one: in whole microseconds, rounded up."""
    best = solve(small_problem(workload=uniform(), objective=Objective(name="ttft")))
    assert isinstance(best, Plan)
    least_us = -(-best.certificate.value // 1000)
    answer = what_if(FEASIBLE, Vary(parameter="ttft", first=least_us - 9, last=least_us + 9, points=2))
    assert answer.complete
    assert answer.intervals[0].status == "INFEASIBLE"
    assert answer.intervals[0].proved
    assert answer.breakpoints[0] == least_us


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("concurrency", 1, 4), ("isl", 50, 90), ("osl", 2, 8), ("hit-rate", 0, 50), ("memory", 150, 200),
        ("bandwidth", 50, 100), ("scale-up-bandwidth", 20, 50), ("scale-out-bandwidth", 500, 900), ("tpot", 1, 90000),
        ("latency", 1, 9000000),
    ],
)  # fmt: skip
def test_every_parameter_varies(name: str, first: int, last: int) -> None:
    step = max(1, (last - first) // 3)
    answer = what_if(
        FEASIBLE, Vary.read({"parameter": name, "first": first, "last": last, "step": step, "points": 2}, "t")
    )
    assert answer.complete
    assert len(answer.probes) >= 2
    assert answer.intervals[0].first == first


@pytest.mark.parametrize(
    "texts",
    [("colour", "1", "2"), ("gpus", "8", "4"), ("gpus", "x", "4"), ("memory", "40", "80"), ("hit-rate", "0", "100"),
     ("ttft", "1 ns", "2 ms")],
)  # fmt: skip
def test_a_malformed_parameter_is_refused(texts: tuple[str, str, str]) -> None:
    with pytest.raises(SpecError):
        Vary.parse(*texts)


def test_quantities_become_whole_units() -> None:
    assert Vary.parse("memory", "40 GiB", "80 GiB").first == 40 * 1024
    assert Vary.parse("tpot", "50 ms", "1 s", "1 ms").step == 1000


# --- command line ---------------------------------------------------------------------------------------------------


def test_explain_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "explanation.json"
    result = run("explain", *SMALL, "--fix", "attn_tp=3", "--out", file, columns=120)
    assert result.code == 3
    assert "pin attn_tp" in result.out
    assert "Relaxations" in result.out
    assert json.loads(file.read_text())["status"] == "INFEASIBLE"
    verdict = run("verify", file)
    assert verdict.code == 0
    assert "CONFIRMED" in verdict.out
    assert run("explain", *SMALL, "--fix", "attn_tp=3", "--out", file).code == 2  # it exists


def test_why_not_on_the_command_line() -> None:
    result = run("explain", *SMALL, "--why-not", "A1x8-E1x8-PP1-R1", columns=120)
    assert result.code == 0
    assert "Why not A1x8-E1x8-PP1-R1" in result.out
    answer = json.loads(run("explain", *SMALL, "--why-not", "attn_tp=3", "--json").out)
    assert answer["why_not"]["verdict"] == "excluded"


def test_what_if_on_the_command_line(tmp_path: Path) -> None:
    csv, svg, png = tmp_path / "a.csv", tmp_path / "a.svg", tmp_path / "a.png"
    common = ("what-if", *SMALL, "--vary", "gpus", "--from", "2", "--to", "8", "--points", "2")
    pytest.importorskip("matplotlib")
    result = run(*common, "--csv", csv, "--plot", svg, columns=120)
    assert result.code == 0
    assert "PROVED" in result.out
    assert csv.read_text().startswith("gpus,unit,status")
    assert "<svg" in svg.read_text()
    assert run(*common, "--plot", png, "--json").code == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    assert run(*common, "--plot", tmp_path / "a.txt").code == 2
    assert run("what-if", *SMALL, "--vary", "gpus", "--from", "8", "--to", "2").code == 2


def test_the_examples_of_the_page_run() -> None:
    page = Path(__file__).parents[1] / "docs/explain.md"
    for body in re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec(compile(body, str(page), "exec"), {})


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_interrupting_a_sweep_shows_what_is_known() -> None:
    """Ctrl-C while the third of a million values is solved: exit code 4, not complete, no traceback."""
    code = (
        "import os, signal, solver.search.explain.breakpoints as b\n"
        "from solver.cli import main\n"
        "real, calls = b.search, []\n"
        "def search(problem, options, progress):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 3:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(problem, options, progress)\n"
        "b.search = search\n"
        f"main({['what-if', *SMALL, '--vary', 'tpot', '--from', '1 us', '--to', '1 s', '--json']!r})\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 4, process.stderr[-800:]
    assert "Traceback" not in process.stderr
    answer = json.loads(process.stdout)
    assert not answer["complete"]
    assert 2 <= len(answer["probes"]) <= 3
