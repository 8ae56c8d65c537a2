"""The plan that comes nearest: every limit of the problem beside what the plan needs of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from solver.cost.leaves import Leaves
from solver.explanation import Attempt, Excess, Relaxation
from solver.plan import PlannedStrategy
from solver.search.explain.conflict import Shrinker
from solver.search.explain.constraints import Constraint
from solver.search.realise import Realised
from solver.specs.problem import Problem
from solver.strategy import Strategy


@dataclass(frozen=True)
class Needs:
    """What a strategy takes and serves."""

    strategy: Strategy
    ttft_ns: int
    tpot_ns: int
    request_latency_ns: int
    memory_kib: int
    longest_isl: int
    osl: int


def nearest(problem: Problem, relaxations: Sequence[Relaxation]) -> Attempt | None:
    """The plan of the relaxation that changes its number least, relatively; None when no single one helps."""
    helpful = [r for r in relaxations if r.plan is not None and r.value is not None]
    if not helpful:
        return None
    least = min(helpful, key=lambda r: abs((r.value or 0) - r.asked) / max(r.asked, r.value or 1))
    plan = least.plan
    assert plan is not None
    metrics, workload = plan.metrics, plan.problem.workload
    needs = Needs(
        plan.strategy.strategy(), metrics.ttft_ns, metrics.tpot_ns, metrics.request_latency_ns,
        max(ledger.total_kib for ledger in plan.memory), workload.longest_isl, workload.osl,
    )  # fmt: skip
    return _attempt(problem, needs, (least.axis,))


def realised_attempt(problem: Problem, realised: Realised, gives: tuple[str, ...], served: Problem) -> Attempt:
    """The attempt of a plan that keeps all constraints but those that it gives up."""
    figures = realised.figures
    kib = max(ledger.total_kib for ledger in realised.ledgers)
    needs = Needs(
        realised.strategy, figures.ttft_ns, figures.tpot_ns, figures.request_latency_ns, kib,
        served.workload.longest_isl, served.workload.osl,
    )  # fmt: skip
    return _attempt(problem, needs, gives)


def _attempt(problem: Problem, needs: Needs, gives: tuple[str, ...]) -> Attempt:
    slo, workload = problem.workload.slo, problem.workload
    limits = [
        Excess(name=name, unit="ns", asked=limit, needed=needed, kept=needed <= limit)
        for name, limit, needed in (
            ("TTFT", slo.ttft, needs.ttft_ns),
            ("TPOT", slo.tpot, needs.tpot_ns),
            ("request latency", slo.request_latency, needs.request_latency_ns),
        )
        if limit is not None
    ]
    capacity, gpus, budget = Leaves(problem).memory.capacity_kib, needs.strategy.gpus, problem.gpu_budget
    fits = needs.memory_kib <= capacity
    counted = gpus == budget if problem.gpus_exact is not None else gpus <= budget
    limits += [
        Excess(name="memory", unit="KiB per GPU", asked=capacity, needed=needs.memory_kib, kept=fits),
        Excess(name="GPUs", unit="GPUs", asked=budget, needed=gpus, kept=counted),
    ]
    wanted, slots = workload.concurrency, needs.strategy.slots
    if wanted is not None:
        limits.append(Excess(name="slots", unit="sequences", asked=wanted, needed=slots, kept=slots >= wanted))
    for name, asked, served in (
        ("prompt", workload.longest_isl, needs.longest_isl),
        ("output", workload.osl, needs.osl),
    ):
        limits.append(Excess(name=name, unit="tokens", asked=asked, needed=served, kept=served >= asked))
    return Attempt(strategy=PlannedStrategy.of(needs.strategy), gives=gives, limits=tuple(limits))


class Corrector:
    """A smallest group to give up together: all other constraints have a plan, with any of the group added none."""

    def __init__(self, shrinker: Shrinker) -> None:
        self.shrinker = shrinker
        self.kept: list[Constraint] = []
        self.plan: Realised | None = None
        self.is_open = False

    def correct(self) -> tuple[Constraint, ...]:
        """The constraints of the group; those that a caller can do least about are kept first."""
        self._add(list(self.shrinker.constraints))
        return tuple(c for c in self.shrinker.constraints if c not in self.kept)

    def _add(self, block: list[Constraint]) -> None:
        asked = self.shrinker.alone([*self.kept, *block], f"with {', '.join(c.name for c in block)}")
        self.is_open = self.is_open or asked.is_open
        if asked.plan is not None:
            self.kept += block
            self.plan = asked.plan
        elif len(block) > 1:
            middle = len(block) // 2
            self._add(block[:middle])
            self._add(block[middle:])
