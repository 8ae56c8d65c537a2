"""Least throughput and least efficiency: exact fractions, one meaning everywhere."""

from __future__ import annotations

from fractions import Fraction

import pytest
from command_line import SMALL, error_line, run
from oracle import brute_force
from plans import small_problem, small_workload
from problems import draw

from solver import Plan, solve, verify
from solver.cost.limits import limits_of
from solver.cost.metrics import Figures
from solver.specs.rates import parse_rate, rate_text
from solver.specs.workload import Slo


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("12000 tokens/s", Fraction(12000)),
        ("12,000 tokens/s", Fraction(12000)),
        ("0.125 tokens/s", Fraction(1, 8)),
        ("512000/7 tokens/s", Fraction(512000, 7)),
    ],
)
def test_rates_are_read_and_written_exactly(text: str, rate: Fraction) -> None:
    assert parse_rate(text) == rate
    assert parse_rate(rate_text(rate)) == rate
    assert Slo.model_validate_json(Slo(min_throughput=rate).model_dump_json()).min_throughput == rate


@pytest.mark.parametrize("text", ["12000", "tokens/s", "0 tokens/s", "-1 tokens/s", "1/0 tokens/s", "1e3 tokens/s",
                                  "nan tokens/s", "9" * 70 + " tokens/s", "5 tokens/s/GPU", 12000, None])  # fmt: skip
def test_what_is_no_rate_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"rate|zero"):
        parse_rate(text)


def test_a_limit_between_two_integers_is_decided_exactly() -> None:
    # 2 sequences, one token each, in 3 ns: 1500 ps a request, 2/3 tokens per ns. The limit of exactly that rate holds,
    # one part in 10^15 more does not, though both make the same objective integer.
    figures = Figures(1, 1, 1, cycle_ns=3, decode_ns=1, round_ns=1, rounds=1, active=2, gpus=1)
    for more, holds in ((0, True), (Fraction(1, 10**15), False)):
        least = Fraction(2, 3) * 10**9 * (1 + more)
        slo = Slo(min_throughput=least, min_efficiency=least)
        problem = small_problem(workload=small_workload(isl=8, osl=1, concurrency=2, slo=slo.model_dump()))
        assert [limit.at_most for limit in limits_of(problem)] == [1500, 2]
        assert [limit.holds(figures) for limit in limits_of(problem)] == [holds, holds]


def test_the_limit_changes_the_optimum_as_enumeration_says() -> None:
    # The fastest plan of some problem is not its most efficient one: asking for more efficiency than it has must lead
    # to the best of the others.
    for seed in range(200):
        problem = draw(seed)
        if problem.objective.name != "latency" or problem.workload.slo != Slo():
            continue
        free = solve(problem)
        if not isinstance(free, Plan):
            continue
        rate = Fraction(free.metrics.active_sequences * problem.workload.osl * 10**9,
                        free.metrics.cycle_ns * free.metrics.gpus_used)  # fmt: skip
        slo = Slo(min_efficiency=rate * Fraction(11, 10))
        asked = problem.model_copy(update={"workload": problem.workload.model_copy(update={"slo": slo})})
        true = brute_force(asked)
        if true.value is None:
            continue
        plan = solve(asked)
        assert isinstance(plan, Plan)
        assert plan.certificate.value == true.value > free.certificate.value
        assert verify(plan, exhaustive=True).ok
        return
    pytest.fail("no such problem")


def test_on_the_command_line() -> None:
    result = run("solve", *SMALL, "--min-throughput", "1", "--min-efficiency", "0.5 tokens/s/GPU", "--no-progress")
    assert result.code == 0
    assert "throughput >= 1 tokens/s; efficiency >= 0.5 tokens/s/GPU" in " ".join(result.out.split())
    none = run("solve", *SMALL, "--min-throughput", "1,000,000,000", "--no-progress")
    assert none.code == 3
    assert "[slo-throughput] at least 1e+09 tokens/s" in " ".join(none.out.split())
    assert "no rate" in error_line(run("solve", *SMALL, "--min-throughput", "fast"))
