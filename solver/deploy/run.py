"""The search for a deployment: mixes of bounds, the sizes they want solved, mixes of plans, until both agree.

Every size starts with its closed-form bound. The integer program over the bounds says what no deployment exceeds, and
which sizes decide that; those are solved by the program of :mod:`solver.search` (one instance each), which replaces
their bounds by proved rates. It ends when the best mix of bounds uses proved sizes only: then nothing is better. With
several serving modes only the one with the highest bound is looked at; the others end when their bound is beaten.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from solver.certificate import Status
from solver.deploy.mix import Mix, MixProgram
from solver.deploy.sizes import size_bounds
from solver.deployment import (
    ROLES,
    InstanceSize,
    instance_problem,
    least_value,
    pool_problem,
    rate_nhz,
    rate_unit,
    replaces,
    whole_rate,
)
from solver.search.loop import INTERRUPT_MARGIN_S, Loop, Outcome, Progress
from solver.search.program import SearchLimits
from solver.search.run import DEFAULT_WORKERS, SearchOptions
from solver.specs.deploying import MICRO, NHZ, Deploying, Goal, Mode
from solver.specs.problem import Problem

MAX_SEEDS = 8
"""Sizes of one pool that are solved before the first mix."""
MAX_FIRST_MIXES = 6
"""Mixes of bounds and first plans that are tried for a first mix of plans."""
MIN_MIX_S = 1.0
"""A mix of plans gets at least so long, even after the time limit: without it there is no answer."""
MIN_SHARE_S = 0.2
"""A size is searched for at least so long."""


@dataclass
class Known:
    """What is known of a size: the rate of its best plan so far, and a bound that no plan exceeds."""

    bound: int
    rate: int = 0
    outcome: Outcome | None = None
    """The search that found it."""
    is_started: bool = False
    """A first plan was looked for."""
    is_searched: bool = False
    """Looked at to the end."""
    given_up: int = 0
    """How often its share of the time ended before."""
    is_dominated: bool = False
    """Instances of a smaller size that is searched serve as much in its place."""

    @property
    def is_settled(self) -> bool:
        """Whether nothing more need be known of it."""
        return self.is_searched or self.is_dominated


@dataclass
class Front:
    """One serving mode: its best mix of plans, and the goal's integer that no mix exceeds."""

    mode: Mode
    best: Mix | None = None
    bound: int | None = None
    """Absent: nothing is known yet, or nothing can be served."""
    is_impossible: bool = False
    """Proved: not even the bounds of all sizes reach what is asked."""
    is_closed: bool = False
    is_seeded: bool = False


@dataclass
class DeployOutcome:
    """Result of the search."""

    status: Status
    winner: Front | None
    fronts: list[Front]
    known: dict[InstanceSize, Known]
    unit_nhz: int
    one_fewer_nhz: int | None = None
    """Requests that no mix with one GPU less exceeds, for the goal `gpus`."""
    mixes: int = 0
    wall_s: float = 0.0
    interrupted: bool = False


@dataclass(frozen=True)
class DeployProgress(Progress):
    """What a caller sees while it waits, in the goal's unit."""

    goal: Goal

    @property
    def gap(self) -> float | None:
        """Relative distance of value and bound; absent before the first mix."""
        return None if not self.value else abs(self.bound - self.value) / self.value

    def natural(self, integer: int) -> float:
        """Tokens per second (and GPU), GPUs, or price per hour."""
        if self.goal == "gpus":
            return float(integer)
        return integer / MICRO if self.goal == "cost" else integer * self.osl / NHZ

    @property
    def unit(self) -> str:
        """What follows a natural value."""
        return " per hour" if self.goal == "cost" else super().unit


def deploy_search(
    problems: Sequence[Problem],
    asked: Deploying,
    options: SearchOptions,
    on_progress: Callable[[Progress], None],
) -> DeployOutcome:
    """Find and prove the best deployment of a question on one or more clusters."""
    return _Search(problems, asked, options, on_progress).run()


@dataclass
class _Search:
    problems: Sequence[Problem]
    asked: Deploying
    options: SearchOptions
    on_progress: Callable[[Progress], None]
    known: dict[InstanceSize, Known] = field(default_factory=dict)
    loops: dict[InstanceSize, Loop] = field(default_factory=dict)
    """Searches of sizes that were begun and may go on."""
    mixes: int = 0

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self.sign = 1 if self.asked.wants_more else -1
        self.fronts = [Front(mode) for mode in self.asked.modes]
        self.unit_nhz = 1

    def run(self) -> DeployOutcome:
        """Refine the most promising mode until no other can be better."""
        interrupted, fewer = False, None
        try:
            self._bounds()
            is_limited = self.options.time_limit_s is not None
            if len(self.fronts) > 1 or is_limited:
                for front in self.fronts:
                    self._mix_of_bounds(front, 4)
                    front.is_closed = front.is_impossible
            if is_limited:
                self._begin()
            while not self._is_late():
                promising = self._most_promising()
                if promising is None:
                    break
                self._refine(promising)
        except KeyboardInterrupt:
            interrupted = True
            self._keep_what_is_there()
        outcome = self._outcome(interrupted)
        if outcome.status == "OPTIMAL" and self.asked.goal == "gpus":
            try:
                fewer = self._one_fewer(outcome)
            except KeyboardInterrupt:
                outcome.interrupted = True
        outcome.one_fewer_nhz, outcome.mixes = fewer, self.mixes
        outcome.wall_s = time.monotonic() - self.started
        return outcome

    def _keep_what_is_there(self) -> None:
        """After Ctrl-C: a mix of the plans so far for every mode; a second Ctrl-C ends that, too."""
        try:
            for front in self.fronts:
                self._keep_best(front)
        except KeyboardInterrupt:
            return

    def _bounds(self) -> None:
        for site, problem in enumerate(self.problems):
            for mode in self.asked.modes:
                for role in ROLES[mode]:
                    for size, bound in size_bounds(pool_problem(problem, role), site).items():
                        self.known[size] = Known(bound)
        self.unit_nhz = rate_unit({size: known.bound for size, known in self.known.items()})
        for front in self.fronts:
            front.bound = self._trivial_bound(front)
            front.is_closed = front.is_impossible = front.bound is None

    def _trivial_bound(self, front: Front) -> int | None:
        """What no mix exceeds before any is looked at; None where a pool has no size at all."""
        best = dict.fromkeys(ROLES[front.mode], 0.0)
        for size, known in self.known.items():
            if size.role in best:
                best[size.role] = max(best[size.role], known.bound / size.gpus)
        if not all(best.values()):
            return None
        per_gpu = int(min(best.values())) + 1
        if self.asked.goal == "throughput":
            return per_gpu * sum(problem.gpu_budget for problem in self.problems)
        return per_gpu if self.asked.goal == "efficiency" else 1

    # --- one mode -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """With little time: a first mix for every mode, of plans that closed forms find, before anything is proved.

        The mode with the best bound goes first; once a mix is there, a mode that would come too late is left out.
        """
        for front in sorted(self.fronts, key=lambda front: -self.sign * (front.bound or 0)):
            if front.is_closed or (self._best() is not None and self._is_late()):
                continue
            for _ in range(MAX_FIRST_MIXES):
                if front.best is not None and self._is_late():
                    break
                # What is not known yet is taken at its bound, so the mix says which plan to look for next.
                rates = {
                    size: known.rate if known.is_started else known.bound
                    for size, known in self.known.items()
                    if known.is_started or not known.is_dominated
                }
                program = self._program(front.mode, rates, self.asked)
                mix = program.solve(self._limits(MIN_MIX_S), ())
                missing = [size for size in ({} if mix is None else mix.counts) if not self.known[size].is_started]
                for size in missing:
                    self._start(size)
                self._keep_best(front)
                if not missing:
                    break

    def _refine(self, front: Front) -> None:
        """Solve the sizes that the best mix of bounds wants, then mix again."""
        if not front.is_seeded:
            self._seed(front)
        mix = self._mix_of_bounds(front)
        if mix is None:
            front.is_closed = True  # impossible, or out of time with the last bound standing
            return
        wanted = [size for size in mix.counts if not self.known[size].is_searched]
        # Those that were given up least often first, of these what fills most of the cluster.
        wanted.sort(key=lambda size: (self.known[size].given_up, -size.gpus * mix.counts[size], size.sort_key))
        for done, size in enumerate(wanted):
            self._solve(size, len(wanted) - done)
            if self._is_late():
                break
        self._keep_best(front)
        if not wanted:
            front.is_closed = True

    def _seed(self, front: Front) -> None:
        """Solve the sizes that might serve most per GPU: what they reach rules most other sizes out."""
        front.is_seeded = True
        for site in range(len(self.problems)):
            for role in ROLES[front.mode]:
                own = [size for size in self.known if size.site == site and size.role == role]
                for done in range(MAX_SEEDS):
                    open_ = [size for size in own if not (self.known[size].is_settled or self.known[size].given_up)]
                    found = max((self.known[size].rate / size.gpus for size in own), default=0)
                    best = max(open_, key=lambda s: (self._efficiency(s), -s.gpus), default=None)
                    if best is None or self._efficiency(best) <= found or self._is_late():
                        break
                    self._solve(best, MAX_SEEDS - done)

    def _efficiency(self, size: InstanceSize) -> float:
        """Bound of the requests per GPU."""
        return self.known[size].bound / size.gpus

    def _mix_of_bounds(self, front: Front, sharers: int = 1) -> Mix | None:
        """The best mix if every size reached its bound, of searched sizes as far as possible."""
        open_ = {size for size, known in self.known.items() if not known.is_searched}
        bounds = {size: known.bound for size, known in self.known.items() if not known.is_dominated}
        program = self._program(front.mode, bounds, self.asked)
        mix = program.solve(replace(self._limits(), time_s=self._share(sharers)), program.without(open_))
        serves = mix is not None and (mix.bound > 0 or self.sign < 0)
        if mix is not None and serves:
            front.bound = mix.bound
        elif program.is_impossible or mix is not None:
            front.bound, front.is_impossible = None, True
            return None
        return mix

    def _one_fewer(self, outcome: DeployOutcome) -> int | None:
        """What the best mix of bounds serves with one GPU less than the fewest."""
        assert outcome.winner is not None
        assert outcome.winner.best is not None
        gpus = outcome.winner.best.gpus - 1
        most = Deploying(mode=self.asked.mode, max_shapes=self.asked.max_shapes)
        rates = [0]
        for mode in self.asked.modes:
            bounds = {size: known.bound for size, known in self.known.items() if not known.is_dominated}
            program = self._program(mode, bounds, most)
            mix = program.solve_within(gpus, self._limits())
            if mix is None and gpus > 0 and program.count:
                return None
            rates.append(0 if mix is None else mix.bound)
        return max(rates)

    def _mix_of_plans(self, mode: Mode, asked: Deploying) -> Mix | None:
        """The best mix of the plans at hand."""
        rates = {size: known.rate for size, known in self.known.items() if known.outcome is not None}
        program = self._program(mode, rates, asked)
        mix = program.solve(self._limits(MIN_MIX_S), program.plain())
        return None if mix is None or mix.rate_nhz == 0 else mix

    def _program(self, mode: Mode, rates: Mapping[InstanceSize, int], asked: Deploying) -> MixProgram:
        self.mixes += 1
        return MixProgram(self.problems, asked, mode, rates, self.unit_nhz)

    def _limits(self, at_least_s: float = 0.0) -> SearchLimits:
        """The time that is left, or a little more where a mix is worth it."""
        left = self._left()
        time_s = None if left is None else max(at_least_s, left)
        return SearchLimits(self.options.workers or DEFAULT_WORKERS, self.options.seed, time_s)

    def _keep_best(self, front: Front) -> None:
        mix = self._mix_of_plans(front.mode, self.asked)
        if mix is not None and (front.best is None or not self._better(front.best.value, mix.value)):
            front.best = mix
        self._report()

    # --- one size -----------------------------------------------------------------------------------------------------

    def _loop(self, size: InstanceSize) -> Loop:
        """The search for the best plan of a size, as far as it has come."""
        if size not in self.loops:
            problem = instance_problem(self.problems[size.site], size)
            loop = self.loops[size] = Loop(problem, self._limits(), lambda _progress: None, None)
            loop.outcome.bound = least_value(self.known[size].bound)
        return self.loops[size]

    def _start(self, size: InstanceSize) -> None:
        """A first plan of a size."""
        self.known[size].is_started = True
        self._learn(size, self._loop(size).start())

    def _solve(self, size: InstanceSize, sharers: int) -> None:
        """The best plan of a size; where time is limited, within a share of what is left, one of so many and a rest."""
        known, loop, begun, share = self.known[size], self._loop(size), time.monotonic(), self._share(sharers)
        loop.allow(replace(self._limits(), time_s=share))
        known.is_started = True
        try:
            outcome = loop.run()
        finally:
            self._learn(size, loop.outcome)
        ran_out = share is not None and time.monotonic() - begun >= share - INTERRUPT_MARGIN_S
        known.is_searched = outcome.status in ("OPTIMAL", "INFEASIBLE") or not ran_out
        known.given_up += not known.is_searched
        if outcome.interrupted:
            raise KeyboardInterrupt
        if known.is_searched:
            del self.loops[size]

    def _learn(self, size: InstanceSize, outcome: Outcome) -> None:
        """Rate and bound of what a search has found so far."""
        known = self.known[size]
        if outcome.best is not None:
            known.outcome, known.rate = outcome, rate_nhz(outcome.best.value)
        if outcome.status == "INFEASIBLE":
            known.bound = 0
        else:
            known.bound = min(known.bound, rate_nhz(max(1, outcome.bound)))
        if known.rate:
            self._rule_out(size)

    def _rule_out(self, size: InstanceSize) -> None:
        """Mark the sizes whose bound this one's plan reaches in their place."""
        domain = self.problems[size.site].cluster.domain_gpus
        rate = whole_rate(self.known[size].rate, size, self.unit_nhz)
        for other, known in self.known.items():
            if other == size or known.is_searched or (other.site, other.role) != (size.site, size.role):
                continue
            copies = replaces(size, other, domain)
            known.is_dominated |= copies * rate >= whole_rate(known.bound, other, self.unit_nhz)

    # --- the whole ----------------------------------------------------------------------------------------------------

    def _better(self, one: int, other: int) -> bool:
        return self.sign * one > self.sign * other

    def _best(self) -> Front | None:
        """The mode with the best mix of plans (the first of equals)."""
        found = [front for front in self.fronts if front.best is not None]
        return max(found, key=lambda front: self.sign * front.best.value, default=None)  # type: ignore[union-attr]

    def _most_promising(self) -> Front | None:
        """The open mode with the best bound, if that could still win."""
        best = self._best()
        if len(self.fronts) == 1 and not self.fronts[0].is_closed:
            return self.fronts[0]
        open_ = [front for front in self.fronts if not front.is_closed and front.bound is not None]
        if best is not None and best.best is not None:
            value = best.best.value
            open_ = [f for f in open_ if f is best or (f.bound is not None and self._better(f.bound, value))]
        return max(open_, key=lambda front: self.sign * (front.bound or 0), default=None)

    def _outcome(self, interrupted: bool) -> DeployOutcome:
        winner = self._best()
        if winner is None:
            impossible = all(front.is_impossible for front in self.fronts)
            status: Status = "INFEASIBLE" if impossible and not interrupted else "UNKNOWN"
        else:
            status = "OPTIMAL" if self._most_promising() is None and not interrupted else "FEASIBLE"
            if winner.best is not None and self.bound_of_all() == winner.best.value:
                status = "OPTIMAL"
            elif status == "OPTIMAL":
                status = "FEASIBLE"
        return DeployOutcome(
            status, winner, self.fronts, self.known, self.unit_nhz, mixes=self.mixes, interrupted=interrupted
        )

    def bound_of_all(self) -> int | None:
        """The goal's integer that no deployment of any mode exceeds."""
        bounds = [front.bound for front in self.fronts if front.bound is not None]
        return max(bounds, key=lambda bound: self.sign * bound, default=None)

    # --- time and talk ------------------------------------------------------------------------------------------------

    def _left(self) -> float | None:
        limit = self.options.time_limit_s
        return None if limit is None else max(0.05, limit - (time.monotonic() - self.started))

    def _share(self, sharers: int) -> float | None:
        """What one of so many gets of the time that is left, with a rest for what comes after them."""
        left = self._left()
        return None if left is None else max(MIN_SHARE_S, left / (sharers + 1))

    def _is_late(self) -> bool:
        left = self._left()
        return left is not None and left <= 0.05

    def _report(self) -> None:
        best, bound = self._best(), self.bound_of_all()
        value = None if best is None or best.best is None else best.best.value
        goal = self.asked.goal
        self.on_progress(
            DeployProgress(
                "mixing",
                value,
                bound or 0,
                time.monotonic() - self.started,
                goal if goal != "cost" else "gpus",
                self.problems[0].workload.osl,
                goal,
            )
        )
