"""The bar of `explain`: on 36 infeasible problems the named set is minimal and every relaxation is tight.

Run it with the Python that has the package: ``.venv/bin/python benchmarks/explain.py``. It prints one row per problem
as a Markdown table; ``--only NAME`` takes those whose name contains NAME. What is checked of every explanation, each
by new solves with another seed, none by what the explanation remembers:

- *minimal*: the set alone (all other constraints dropped) has no plan, and dropping any one member of it gives one,
  whose strategy breaks no rule that is left, fits the memory and meets the limits;
- *tight*: every relaxation has a plan at its value that the judge confirms, and none one step nearer to what was
  asked; the judge's own enumeration, which shares no code with the search, is asked, too, where the space is small;
- *none*: an axis that "cannot help" has no plan at a far value (1 PiB of memory, 4096 GPUs, one token, ...);
- the document passes ``verify``.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass

from solver import Ask, ExplainOptions, NoPlan, Plan, SolveOptions, explain, solve, verify, verify_explanation
from solver.explanation import Explanation, Relaxation
from solver.legality import violations
from solver.search.explain.axes import axes_of
from solver.search.explain.constraints import Constraint, constraints_of, without
from solver.search.explain.decide import AnyPlan
from solver.search.program import SearchLimits
from solver.specs.problem import Problem
from solver.verify.exhaustive import Enumeration

SEED = 7
MOST_ENUMERATED = 20_000_000
"""Configurations up to which the judge's enumeration is asked."""
FARTHEST = {
    "gpus": 4096, "memory": 2**50, "ttft": 10**13, "tpot": 10**13, "request_latency": 10**13,
    "concurrency": 1, "isl": 1, "osl": 1,
}  # fmt: skip
"""Values at which an axis that cannot help is tried."""
DENSE = {"llm": "qwen3-32b", "cluster": "h200x8", "isl": 1024, "osl": 64, "concurrency": "8"}
SMALL = {"llm": "llama-3.1-8b", "cluster": "l40sx4", "isl": 1024, "osl": 64, "concurrency": "4"}
MOE = {"llm": "qwen3-30b-a3b", "cluster": "h200x8", "isl": 1024, "osl": 64, "concurrency": "8"}
LARGE = {"llm": "llama-3.1-405b", "cluster": "h200x2", "isl": 512, "osl": 64, "concurrency": "1"}

PROBLEMS: dict[str, dict[str, object]] = {
    # memory
    "memory: 405B on two GPUs": LARGE,
    "memory: 70B on one GPU": {**DENSE, "llm": "llama-3.1-70b", "cluster": "l40sx2"},
    "memory: KV of long prompts": {**SMALL, "cluster": "l40sx1", "isl": 120000, "concurrency": "8"},
    "memory: KV of many sequences": {**SMALL, "cluster": "l40sx1", "concurrency": "400"},
    "memory: whole experts on one rank": {**MOE, "cluster": "l40sx4", "fix": ("moe_ep=1", "moe_tp=1", "pp=1")},
    "memory: one stage of TP 1": {**DENSE, "cluster": "a100-40gbx8", "fix": ("attn_tp=1", "pp=1")},
    # heads and widths
    "heads: TP 7": {**DENSE, "fix": ("attn_tp=7",)},
    "heads: TP 3": {**MOE, "fix": ("attn_tp=3",)},
    "KV heads: TP 6 of 6 groups": {**SMALL, "cluster": "h200x8", "llm": "llama-3.2-3b", "fix": ("attn_tp=6",)},
    "width: expert TP 5": {**MOE, "fix": ("moe_tp=5",)},
    "width: quantisation blocks": {**MOE, "llm": "qwen3-30b-a3b-fp8", "fix": ("moe_tp=8", "moe_ep=1")},
    "experts: more ranks than replicas": {**MOE, "cluster": "h200x256", "fix": ("moe_ep=256",)},
    # limits
    "TTFT": {**DENSE, "isl": 8192, "slo_ttft": "50 ms"},
    "TPOT": {**DENSE, "slo_tpot": "1 ms"},
    "request latency": {**DENSE, "osl": 512, "slo_latency": "1 s"},
    "TTFT and TPOT on few GPUs": {**DENSE, "cluster": "h200x2", "slo_ttft": "60 ms", "slo_tpot": "14 ms"},
    "TPOT of many sequences": {**SMALL, "concurrency": "256", "slo_tpot": "15 ms"},
    "TTFT of a fixed TP": {**DENSE, "fix": ("attn_tp=1", "pp=1"), "isl": 4096, "slo_ttft": "200 ms"},
    # GPUs
    "GPUs: exactly 7 in twos": {**DENSE, "gpus_exact": 7, "fix": ("attn_tp=2", "pp=1")},
    "GPUs: at most 3 of 8": {**DENSE, "llm": "llama-3.1-70b", "cluster": "a100-40gbx8", "gpus": 3},
    "GPUs: more than there are": {**MOE, "fix": ("attn_tp=8", "replicas=2")},
    "GPUs: a prime number": {**DENSE, "cluster": "h200x16", "gpus_exact": 13, "fix": ("attn_tp=4",)},
    "GPUs: too few replicas for the sequences": {**SMALL, "concurrency": "9000", "fix": ("batch=8",)},
    # data types
    "data type: fp8 on A100": {**MOE, "llm": "qwen3-30b-a3b-fp8", "cluster": "a100x8"},
    "data type: fp8 DeepSeek on A100": {**MOE, "llm": "deepseek-v3", "cluster": "a100x32"},
    "data type and memory": {**MOE, "llm": "qwen3-235b-a22b-fp8", "cluster": "a100x2"},
    # engine profiles
    "engine: vLLM, TP and EP": {**MOE, "engine": "vllm", "fix": ("moe_tp=2", "moe_ep=4")},
    "engine: TensorRT-LLM, DP and TP": {**MOE, "engine": "trtllm", "fix": ("attn_tp=2", "attn_dp=4")},
    "engine: SGLang, EP 6": {**MOE, "cluster": "h200x6", "engine": "sglang", "fix": ("moe_ep=6",)},
    "engine: Megatron, overlap": {**MOE, "engine": "megatron", "fix": ("decode_overlap=true",)},
    "engine: redundant experts": {**MOE, "engine": "sglang", "redundant_experts": 3, "fix": ("moe_ep=4",)},
    # combinations
    "pins: against the identity": {**MOE, "fix": ("attn_tp=4", "attn_dp=1", "moe_tp=2", "moe_ep=4")},
    "pins: more micro-batches than stages": {**DENSE, "fix": ("pp=2", "micro_batches=4")},
    "TP beyond the domain": {**DENSE, "cluster": "h200x16", "fix": ("attn_tp=16",)},
    "depth beyond the space": {**DENSE, "cluster": "h200x32", "gpus_exact": 32, "fix": ("attn_tp=1", "replicas=1")},
    "memory and TPOT": {**SMALL, "cluster": "l40sx2", "isl": 30000, "concurrency": "16", "slo_tpot": "40 ms"},
    "memory, TTFT and engine": {
        **MOE, "cluster": "l40sx2", "isl": 16000, "concurrency": "64", "slo_ttft": "1 s", "engine": "vllm",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One problem: what its explanation says, and what was found against it."""

    name: str
    members: str
    proved: int
    impossible: int
    open: int
    enumerated: int
    faults: tuple[str, ...]
    user_s: float
    wall_s: float


def examine(name: str, words: dict[str, object]) -> Row:
    """Explain one problem and check every claim anew."""
    problem = Ask.read(words, name).problem()
    begun, cpu = time.monotonic(), time.process_time()
    answer = explain(problem, None, ExplainOptions())
    wall_s, user_s = time.monotonic() - begun, time.process_time() - cpu
    faults: list[str] = []
    enumerated = 0
    if answer.status != "INFEASIBLE":
        faults.append(f"it has a plan: {answer.status}")
    else:
        faults += minimality(problem, answer)
        for relaxation in answer.relaxations:
            found, count = tightness(problem, relaxation)
            faults += found
            enumerated += count
        faults += [str(finding) for finding in verify_explanation(answer).findings]
    statuses = [relaxation.status for relaxation in answer.relaxations]
    return Row(
        name, ", ".join(member.name for member in answer.members), statuses.count("PROVED"),
        statuses.count("IMPOSSIBLE"), statuses.count("OPEN"), enumerated, tuple(faults), user_s, wall_s,
    )  # fmt: skip


def minimality(problem: Problem, answer: Explanation) -> list[str]:
    """The set alone excludes every plan; without any one of its members there is one."""
    named = {member.name for member in answer.members}
    everything = constraints_of(problem)
    outside = [constraint for constraint in everything if constraint.name not in named]
    faults = [] if named else ["no constraint is named"]
    if _has_plan(problem, outside) != "none":
        faults.append("the set alone does not exclude every plan")
    for constraint in everything:
        if constraint.name in named and _has_plan(problem, [*outside, constraint]) != "plan":
            faults.append(f"dropping {constraint.name} gives no plan")
    return faults


def _has_plan(problem: Problem, dropped: list[Constraint]) -> str:
    """Plan, none, or what is wrong with the plan."""
    case = without(problem, dropped)
    outcome = AnyPlan(case, SearchLimits(1, SEED, None)).run()
    if outcome.best is None:
        return "none" if outcome.status == "INFEASIBLE" else outcome.status
    broken = [v for v in violations(case.problem, outcome.best.strategy) if v.rule not in case.waived]
    broken += outcome.best.violations
    return "plan" if not broken else f"broken: {broken[0]}"


def tightness(problem: Problem, relaxation: Relaxation) -> tuple[list[str], int]:
    """Faults of one relaxation, and how many times the judge's enumeration was asked."""
    axis, value, excluded = axes_of(problem)[relaxation.axis], relaxation.value, relaxation.excluded
    if relaxation.status == "IMPOSSIBLE":
        farthest = axis.at(FARTHEST[axis.name])
        proved = AnyPlan(without(farthest, []), SearchLimits(1, SEED, None)).run().status == "INFEASIBLE"
        return [] if proved else [f"{axis.name}: it helps at {FARTHEST[axis.name]}"], 0
    if relaxation.status == "OPEN":
        return [], 0
    assert value is not None
    if excluded is None:
        return [f"{axis.name}: no excluded value"], 0
    faults = []
    there = solve(axis.at(value), SolveOptions(seed=SEED))
    if not isinstance(there, Plan) or not verify(there).ok:
        faults.append(f"{axis.name}: no plan at {value}")
    before = axis.at(excluded)
    if AnyPlan(without(before, []), SearchLimits(1, SEED, None)).run().status != "INFEASIBLE":
        faults.append(f"{axis.name}: a plan at {excluded}, too")
    if not isinstance(solve(before, SolveOptions(seed=SEED)), NoPlan):
        faults.append(f"{axis.name}: solve finds a plan at {excluded}")
    space = Enumeration(before)
    if not any(len(rows) for rows in space.rows.values()):
        return faults, 1  # no legal degrees at all, memory and limits aside
    if space.configurations > MOST_ENUMERATED:
        return faults, 0
    if space.minimum("latency") is not None:
        faults.append(f"{axis.name}: the judge's enumeration finds a plan at {excluded}")
    return faults, 1


def main() -> None:
    """Examine all problems, or those named, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="problems whose name contains this")
    parser.add_argument("--part", default="1/1", help="as in 2/4: the second quarter of the problems")
    arguments = parser.parse_args()
    part, parts = (int(number) for number in arguments.part.split("/"))
    chosen = {name: words for name, words in PROBLEMS.items() if arguments.only in name}
    chosen = dict(list(chosen.items())[part - 1 :: parts])
    print("| problem | minimal set | relaxations proved / cannot help / open | enumerated | user s | wall s | |")
    print("|---|---|---|---|---|---|---|")
    failed = 0
    for name, words in chosen.items():
        row = examine(name, words)
        failed += bool(row.faults)
        verdict = "pass" if not row.faults else "FAIL: " + "; ".join(row.faults)
        counts = f"{row.proved} / {row.impossible} / {row.open}"
        seconds = f"{row.user_s:.1f} | {row.wall_s:.1f}"
        print(f"| {row.name} | {row.members} | {counts} | {row.enumerated} | {seconds} | {verdict} |", flush=True)
    print(f"\n{len(chosen) - failed} of {len(chosen)} problems pass")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
