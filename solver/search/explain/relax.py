"""The least change of one number that makes a plan possible: found, proved, or proved impossible."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

from solver.explanation import AxisName
from solver.search.explain.axes import MEMORY_STEP_BYTES, Axis
from solver.search.explain.constraints import (
    UNLIMITED_GPUS,
    UNLIMITED_MEMORY_BYTES,
    Case,
    allowed_size,
    with_concurrency,
    with_slo,
)
from solver.search.explain.decide import AnyPlan, Decider
from solver.search.loop import Loop, Outcome
from solver.search.program import SearchLimits
from solver.search.realise import Realised
from solver.specs.problem import Objective, ObjectiveName, Problem
from solver.strategy import num_chunks

CONSTRAINT_OF_AXIS: dict[AxisName, tuple[str, ...]] = {
    "gpus": ("gpu-count", "cluster-size"),
    "memory": ("memory",),
    "ttft": ("slo-ttft",),
    "tpot": ("slo-tpot",),
    "request_latency": ("slo-request-latency",),
    "concurrency": ("concurrency",),
    "isl": ("prompt-length",),
}
"""What an axis relaxes. The output length is no constraint: a shorter output helps some limits and hurts others."""
DEPENDS_ON_OUTPUT = ("memory", "slo-tpot", "slo-request-latency")
"""Constraints that the output length enters."""
NEAREST_COUNTS = 64
"""How far from an exact number of GPUs other numbers are tried."""
PROBES_OF_OUTPUT = 12
"""Output lengths that are tried between one token and the asked ones before the bisection."""


@dataclass(frozen=True)
class Found:
    """The outcome on one axis, without its plan."""

    value: int | None
    excluded: int | None
    argument: str
    is_impossible: bool = False
    is_open: bool = False

    def because(self, argument: str) -> Found:
        """The same with the argument of a finished search."""
        return self if self.is_open else replace(self, argument=argument)


def impossible(argument: str) -> Found:
    """No value of the axis helps, proved."""
    return Found(None, None, argument, is_impossible=True)


def unknown(argument: str, value: int | None = None, excluded: int | None = None) -> Found:
    """Not decided; perhaps with a value that helps."""
    return Found(value, excluded, argument, is_open=True)


class LeastMemory(AnyPlan):
    """The least KiB of the fullest rank over all strategies: a lower bound from one program, and its realisation."""

    def least(self) -> tuple[int, Realised | None]:
        """(bound in KiB, the strategy that reaches it in the program, with its placement)."""
        program = self._program()
        result = program.solve_memory(self._limits())
        found = None if result.strategy is None else self.realise(result.strategy)
        return max(0, result.bound), None if found is None or found.violations else found


class Relaxer:
    """Looks along one axis at a time. The problem is known to have no plan."""

    def __init__(self, decider: Decider, problem: Problem, members: Collection[str]) -> None:
        self.decider, self.problem, self.members = decider, problem, frozenset(members)

    def relax(self, axis: Axis) -> Found:
        """The least change on an axis."""
        relaxes = CONSTRAINT_OF_AXIS.get(axis.name)
        if relaxes is not None and not self.members.intersection(relaxes):
            return impossible(self._outside(axis))
        if axis.name == "gpus":
            return self._exactly(axis) if self.problem.gpus_exact is not None else self._gpus(axis)
        if axis.name == "memory":
            return self._memory(axis)
        if axis.name == "concurrency":
            return self._concurrency(axis)
        if axis.name == "isl":
            return self._prompts(axis)
        if axis.name == "osl":
            return self._output(axis)
        return self._slo(axis)

    def _outside(self, axis: Axis) -> str:
        """Why an axis whose constraint is not in the set cannot help: the set was excluded with it dropped."""
        if axis.name == "isl":
            return (
                "the set above excludes every plan with prompts of one token (proved); longer are taken to be no easier"
            )
        if axis.name == "concurrency" and self.problem.workload.isl is None:
            return (
                "the set above excludes every plan of any number of mean prompts (proved); taken of the real ones, too"
            )
        return "the set above excludes every plan whatever this is"

    # --- GPUs -----------------------------------------------------------------------------------------------------

    def _gpus(self, axis: Axis) -> Found:
        cluster = self.problem.cluster
        if axis.asked < cluster.num_gpus:
            whole = self.problem.model_copy(update={"gpus_at_most": None})
            outcome = self._loop(whole, "gpus")
            if outcome.status == "OPTIMAL" and outcome.best is not None:
                fewest = outcome.best.value
                return Found(fewest, fewest - 1, "the fewest GPUs were minimised: proved optimal")
            if outcome.best is not None:
                return unknown("the time was over before the fewest GPUs were proved", outcome.best.value, axis.asked)
            if outcome.status != "INFEASIBLE":
                return unknown("the time was over")
        sizes = [cluster.num_gpus]
        while sizes[-1] < UNLIMITED_GPUS:
            sizes.append(allowed_size(cluster, 2 * sizes[-1]))
            asked = self.decider.ask_problem(axis.at(sizes[-1]), f"a cluster of {sizes[-1]} GPUs")
            if asked.plan is not None:
                return self._between_clusters(axis, sizes[-2], sizes[-1])
            if asked.is_open:
                return unknown(f"the time was over at {sizes[-1]} GPUs", None, sizes[-2])
        return impossible(
            f"no cluster of {cluster.num_gpus} to {sizes[-1]:,} GPUs has a plan: proved at every doubling; a plan of a "
            "smaller one would be a plan of a larger one"
        )

    def _between_clusters(self, axis: Axis, low: int, high: int) -> Found:
        """Bisection over the sizes that a cluster of this hardware may have."""
        cluster = self.problem.cluster
        domain = cluster.scale_up_gpus
        sizes = [low]
        while sizes[-1] < high:
            sizes.append(allowed_size(cluster, sizes[-1] + 1))
        found = self._bisect(lambda index: axis.at(sizes[index]), 0, len(sizes) - 1)
        return replace(
            found.because(
                f"clusters grow by nodes of {cluster.gpus_per_node} GPUs and scale-up domains of {domain}; the size "
                "before has no plan (proved), and a plan of a smaller cluster would be a plan of it"
            ),
            value=None if found.value is None else sizes[found.value],
            excluded=None if found.excluded is None else sizes[found.excluded],
        )

    def _exactly(self, axis: Axis) -> Found:
        """The nearest other number of GPUs that can be used exactly; every nearer one is excluded."""
        for distance in range(1, NEAREST_COUNTS + 1):
            for count in (axis.asked - distance, axis.asked + distance):
                if count < 1:
                    continue
                cluster = self.problem.cluster
                if count > cluster.num_gpus and allowed_size(cluster, count) != count:
                    continue
                asked = self.decider.ask_problem(axis.at(count), f"exactly {count} GPUs")
                nearer = axis.asked + (distance - 1 if count > axis.asked else 1 - distance)
                if asked.plan is not None:
                    return Found(
                        count, nearer, "the nearest number that can be used exactly: every nearer one has none"
                    )
                if asked.is_open:
                    return unknown("the time was over")
        return unknown(f"no number of GPUs within {NEAREST_COUNTS} of {axis.asked} can be used exactly (proved)")

    # --- memory, SLOs -----------------------------------------------------------------------------------------------

    def _memory(self, axis: Axis) -> Found:
        top = self.decider.ask_problem(axis.at(UNLIMITED_MEMORY_BYTES), "unlimited memory")
        if top.is_none:
            return impossible("even 1 PiB per GPU admits no plan (proved), and less never admits more")
        if top.plan is None or self.decider.clock.is_over:
            return unknown("the time was over")
        self.decider.asked += 1
        try:
            bound_kib, least = LeastMemory(Case(axis.at(UNLIMITED_MEMORY_BYTES)), self.decider.clock.next()).least()
        except KeyboardInterrupt:
            self.decider.interrupted = True
            return unknown("it was interrupted")
        reached = [plan for plan in (top.plan, least) if plan is not None]
        high = min(self._steps(axis, _kib(plan)) for plan in reached)
        low = min(high, self._steps(axis, bound_kib)) - 1  # one step below what every strategy needs
        low = max(0, low)
        found = self._bisect(lambda step: axis.at(axis.asked + step * axis.step), low, high)
        return replace(
            found.because("the fullest rank's memory was minimised; more memory never excludes a plan"),
            value=None if found.value is None else axis.asked + found.value * axis.step,
            excluded=None if found.excluded is None else axis.asked + found.excluded * axis.step,
        )

    def _steps(self, axis: Axis, kib: int) -> int:
        """Steps above the asked memory that a ledger of so many KiB needs."""
        usable = self.problem.calibration.usable_memory
        step = max(0, math.floor((kib * 1024 / usable - axis.asked) / axis.step) - 1)
        while int((axis.asked + step * MEMORY_STEP_BYTES) * usable) // 1024 < kib:
            step += 1
        return step

    def _slo(self, axis: Axis) -> Found:
        objectives: dict[str, ObjectiveName] = {"ttft": "ttft", "tpot": "tpot", "request_latency": "latency"}
        free = self.problem.model_copy(update={"workload": with_slo(self.problem.workload, axis.name, None)})
        outcome = self._loop(free, objectives[axis.name])
        if outcome.status == "INFEASIBLE":
            return impossible("without this limit there is no plan either (proved)")
        if outcome.best is None:
            return unknown("the time was over")
        if outcome.status != "OPTIMAL":
            return unknown(
                f"not proved: no plan is below {outcome.bound} ns",
                outcome.best.value,
                max(axis.asked, outcome.bound - 1),
            )
        return Found(outcome.best.value, outcome.best.value - 1, "it was minimised: proved optimal")

    def _loop(self, problem: Problem, objective: ObjectiveName) -> Outcome:
        self.decider.asked += 1
        self.decider.on_question(f"the least {objective}")
        asked = problem.model_copy(update={"objective": Objective(name=objective)})
        if self.decider.clock.is_over or self.decider.interrupted:
            return Loop(asked, SearchLimits(1, 0, 0.0), lambda _progress: None, None).outcome
        outcome = Loop(asked, self.decider.clock.next(), lambda _progress: None, None).run()
        self.decider.interrupted = self.decider.interrupted or outcome.interrupted
        return outcome

    # --- demand -----------------------------------------------------------------------------------------------------

    def _concurrency(self, axis: Axis) -> Found:
        workload = self.problem.workload
        free = self.problem.model_copy(update={"workload": with_concurrency(workload, None)})
        equal = workload.isl is not None
        if equal and self.decider.ask_problem(free, "any concurrency").is_none:
            return impossible("with the number of sequences free there is no plan either (proved)")
        if (one := self.decider.ask_problem(axis.at(1), "one sequence")).plan is None:
            words = "one sequence alone has no plan"
            if one.is_open:
                return unknown("the time was over")
            return impossible(f"{words} (proved)") if equal else unknown(f"{words} (proved); others were not tried")
        found = self._bisect(axis.at, axis.asked, 1)
        return found.because("found by bisection; fewer sequences are taken to be never harder")

    def _prompts(self, axis: Axis) -> Found:
        """Prompts of equally many chunks are the harder the longer; fewer chunks of more tokens may be harder."""
        tried = axis.asked
        for shortest in self._chunk_ends(axis):
            asked = self.decider.ask_problem(axis.at(shortest), f"prompts of {shortest} tokens")
            if asked.is_open:
                return unknown("the time was over", None, tried)
            if asked.plan is not None:
                found = self._bisect(axis.at, tried, shortest)
                return found.because(
                    "found by bisection; with equally many prefill chunks a longer prompt is taken to be never easier"
                )
            tried = shortest
        return impossible("the shortest prompt of every number of prefill chunks has no plan (proved)")

    def _chunk_ends(self, axis: Axis) -> Iterator[int]:
        """The shortest prompt of every number of chunks, most chunks first."""
        longest = axis.asked
        while longest >= 1:
            chunks, low, high = num_chunks(axis.at(longest)), 1, longest
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if num_chunks(axis.at(middle)) == chunks else (middle + 1, high)
            yield low
            longest = low - 1

    def _output(self, axis: Axis) -> Found:
        """A shorter output eases every limit but one: a TPOT, of which fewer tokens share the waiting for prefills."""
        if self.problem.workload.slo.tpot is not None:
            return self._output_by_probes(axis)
        one = self.decider.ask_problem(axis.at(1), "outputs of one token")
        if one.is_open:
            return unknown("the time was over")
        if one.plan is None:
            return impossible("one token has no plan (proved), and without a limit on the TPOT fewer are never harder")
        return self._bisect(axis.at, axis.asked, 1).because("found by bisection; fewer tokens are never harder")

    def _output_by_probes(self, axis: Axis) -> Found:
        """Lengths between one token and the asked ones, longest first, then bisection."""
        if not self.members.intersection(DEPENDS_ON_OUTPUT):
            return impossible("nothing in the set above depends on the output")
        tried = axis.asked
        for value in sorted(
            {round(axis.asked ** (k / PROBES_OF_OUTPUT)) for k in range(PROBES_OF_OUTPUT)}, reverse=True
        ):
            asked = self.decider.ask_problem(axis.at(value), f"outputs of {value} tokens")
            if asked.is_open:
                return unknown("the time was over", None, tried)
            if asked.plan is not None:
                found = self._bisect(axis.at, tried, value)
                return found.because(
                    "found by probes and bisection; lengths between probes without a plan are taken to have none"
                )
            tried = value
        return unknown("no probe between one token and the asked ones has a plan; lengths between them were not tried")

    # --- bisection ----------------------------------------------------------------------------------------------------

    def _bisect(self, at: Callable[[int], Problem], without: int, with_plan: int) -> Found:
        """Neighbours between an excluded value and one that has a plan; each is asked."""
        low, high = without, with_plan
        while abs(high - low) > 1:
            middle = (low + high) // 2
            asked = self.decider.ask_problem(at(middle), f"{middle}")
            if asked.is_open:
                return unknown("the time was over", high, low)
            low, high = (low, middle) if asked.plan is not None else (middle, high)
        return Found(high, low, "")


def _kib(plan: Realised) -> int:
    return max(ledger.total_kib for ledger in plan.ledgers)
