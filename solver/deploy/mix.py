"""The mix: how many instances of every size, as an integer program with whole-node packing.

An instance that needs several scale-up domains has them to itself; smaller ones share domains. Which numbers of small
instances fit into so many domains is bin packing with few sizes, in its arc-flow form: a unit of flow is a domain, an
arc of length g an instance of g GPUs in it, larger instances first.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ortools.sat.python import cp_model

from solver.deployment import EFFICIENCY_STEP, ROLES, InstanceSize, shares_domain, whole_rate
from solver.search.choice import Expr
from solver.search.interrupts import keeping_interrupts
from solver.search.loop import INTERRUPT_MARGIN_S
from solver.search.program import SearchLimits
from solver.specs.deploying import Deploying, Mode
from solver.specs.problem import Problem

MAX_TOTAL = 2**61
"""Sums that CP-SAT adds up stay below this."""
MIN_SOLVE_S = 0.05
"""Every solve gets at least so long."""


@dataclass(frozen=True)
class Mix:
    """Numbers of instances by size, and the goal's integer; `bound` limits it from the other side."""

    counts: dict[InstanceSize, int]
    fills: tuple[tuple[tuple[int, ...], ...], ...]
    """Per cluster, the domains that small instances share: GPUs of each instance, larger ones first."""
    rate_nhz: int
    gpus: int
    value: int
    bound: int


class MixProgram:
    """One mode's integer program for given rates."""

    def __init__(
        self,
        problems: Sequence[Problem],
        asked: Deploying,
        mode: Mode,
        rates: Mapping[InstanceSize, int],
        unit_nhz: int,
    ) -> None:
        self.problems, self.asked, self.mode, self.unit_nhz = problems, asked, mode, unit_nhz
        rated = {size: whole_rate(rate, size, unit_nhz) for size, rate in rates.items() if size.role in ROLES[mode]}
        self.rates = {size: rate for size, rate in rated.items() if rate > 0}
        self.model = cp_model.CpModel()
        self.count = {
            size: self.model.new_int_var(0, self._most(size), f"{size.role}{size.gpus}@{size.site}")
            for size in sorted(self.rates, key=lambda size: size.sort_key)
        }
        self.gpus = total(size.gpus * count for size, count in self.count.items())
        self.arcs: list[dict[tuple[int, int], cp_model.IntVar]] = [{} for _ in problems]
        for site in range(len(problems)):
            self._room(site)
        self._few_shapes()
        self.rate = self._rate()
        self.is_impossible = False
        """Proved by :meth:`solve`: no mix does what is asked."""
        self.ends: float | None = None
        """When :meth:`solve` must be done."""

    def _most(self, size: InstanceSize) -> int:
        problem = self.problems[size.site]
        return problem.gpu_budget // size.gpus

    # --- packing ------------------------------------------------------------------------------------------------------

    def _room(self, site: int) -> None:
        """GPU budget and domains of one cluster."""
        problem, model = self.problems[site], self.model
        domain = problem.cluster.domain_gpus
        own = {size: count for size, count in self.count.items() if size.site == site}
        model.add(total(size.gpus * count for size, count in own.items()) <= problem.gpu_budget)
        whole = [(size.domains, count) for size, count in own.items() if not shares_domain(size, domain)]
        small: dict[int, list[cp_model.IntVar]] = {}
        for size, count in own.items():
            if shares_domain(size, domain):
                small.setdefault(size.gpus, []).append(count)
        bins: Expr = self._arc_flow(site, domain, small) if small else 0
        model.add(total(domains * count for domains, count in whole) + bins <= problem.cluster.num_domains)

    def _arc_flow(self, site: int, domain: int, small: Mapping[int, list[cp_model.IntVar]]) -> Expr:
        """Domains that hold the small instances."""
        model, most = self.model, self.problems[site].cluster.num_domains
        into: dict[int, list[cp_model.IntVar]] = {}
        out: dict[int, list[cp_model.IntVar]] = {}
        reached = {0}
        for gpus in sorted(small, reverse=True):
            used = []
            for start in range(domain - gpus + 1):  # rising: a later arc of the same size starts where one ended
                if start in reached:
                    arc = model.new_int_var(0, most, f"{gpus}@{site}:{start}")
                    self.arcs[site][start, gpus] = arc
                    out.setdefault(start, []).append(arc)
                    into.setdefault(start + gpus, []).append(arc)
                    reached.add(start + gpus)
                    used.append(arc)
            model.add(total(used) == total(small[gpus]))
        bins = model.new_int_var(0, most, f"domains@{site}")
        model.add(total(out[0]) <= bins)
        for node in reached - {0}:
            model.add(total(out.get(node, [])) <= total(into[node]))
        return bins

    def _few_shapes(self) -> None:
        limit = self.asked.max_shapes
        if limit is None:
            return
        for role in ROLES[self.mode]:
            used = []
            for size, count in self.count.items():
                if size.role == role:
                    used.append(self.model.new_bool_var(f"uses {role}{size.gpus}@{size.site}"))
                    self.model.add(count <= self._most(size) * used[-1])
            self.model.add(total(used) <= limit)

    # --- rates --------------------------------------------------------------------------------------------------------

    def _rate(self) -> cp_model.IntVar:
        """Requests served: of a disaggregated cluster the lesser of what its pools offer."""
        model = self.model
        rate = model.new_int_var(0, MAX_TOTAL, "rate")
        parts: list[cp_model.IntVar] = []
        for site in range(len(self.problems)):
            part = model.new_int_var(0, MAX_TOTAL // len(self.problems), f"rate@{site}")
            for role in ROLES[self.mode]:
                offered = [
                    self.rates[size] * count
                    for size, count in self.count.items()
                    if size.role == role and size.site == site
                ]
                model.add(part <= total(offered))
            parts.append(part)
        model.add(rate == total(parts))
        return rate

    # --- solving ------------------------------------------------------------------------------------------------------

    def solve(self, limits: SearchLimits, ties: Sequence[Expr]) -> Mix | None:
        """The best mix, ties broken by these expressions (smaller is better); None when none reaches the demand."""
        self.ends = None if limits.time_s is None else time.monotonic() + limits.time_s
        if not self.count:
            self.is_impossible = True
            return None
        if self.asked.goal == "efficiency":
            return self._most_efficient(limits, ties)
        if self.asked.goal == "throughput":
            return self._lexicographic(limits, -self.rate, ties, scale=-self.unit_nhz)
        self.model.add(self.rate >= -(-self.asked.demand_nhz // self.unit_nhz))
        if self.asked.goal == "gpus":
            return self._lexicographic(limits, self.gpus, ties)
        price = total(self.asked.price_micro(size.site) * size.gpus * n for size, n in self.count.items())
        return self._lexicographic(limits, price, ties)

    def solve_within(self, gpus: int, limits: SearchLimits) -> Mix | None:
        """The best mix on at most so many GPUs."""
        self.model.add(self.gpus <= gpus)
        return self.solve(limits, ())

    def plain(self) -> tuple[Expr, ...]:
        """Fewer GPUs, then more requests, then fewer different sizes, then fewer instances."""
        different = []
        for size, count in self.count.items():
            used = self.model.new_bool_var(f"any {size.role}{size.gpus}@{size.site}")
            self.model.add(count <= self._most(size) * used)
            different.append(used)
        return self.gpus, -self.rate, total(different), total(self.count.values())

    def without(self, sizes: Collection[InstanceSize]) -> tuple[Expr, ...]:
        """As few instances of these sizes as possible."""
        return (total(count for size, count in self.count.items() if size in sizes),)

    def _most_efficient(self, limits: SearchLimits, ties: Sequence[Expr]) -> Mix | None:
        """Largest whole number of steps per GPU (:data:`EFFICIENCY_STEP` units each) that some mix reaches."""
        self.model.add(total(self.count.values()) >= 1)
        highest = self._highest_step()
        reached, beyond = 0, highest + 1
        while beyond - reached > 1:
            # Large budgets come close to the highest step; from there the search halves what is open.
            step = highest if beyond > highest else (reached + beyond) // 2
            enough = self.model.new_bool_var(f"step {step}")
            self.model.add(self.rate >= step * EFFICIENCY_STEP * self.gpus).only_enforce_if(enough)
            self.model.add_assumptions([enough])
            self.model.clear_objective()  # type: ignore[no-untyped-call]
            solver, status = self._run(limits)
            self.model.clear_assumptions()
            if status in ("OPTIMAL", "FEASIBLE"):
                reached = max(step, solver.value(self.rate) // (EFFICIENCY_STEP * solver.value(self.gpus)))
            elif status == "INFEASIBLE":
                beyond = step
            else:
                break
        if reached == 0:
            self.is_impossible = beyond == 1
            return None
        self.model.add(self.rate >= reached * EFFICIENCY_STEP * self.gpus)
        found = self._lexicographic(limits, 0, ties)
        scale = EFFICIENCY_STEP * self.unit_nhz
        return None if found is None else replace(found, value=reached * scale, bound=(beyond - 1) * scale)

    def _highest_step(self) -> int:
        """No mix serves more per GPU than its best instances, in disaggregated pools of any proportion."""
        worst = 0.0
        for role in ROLES[self.mode]:
            best = max((rate / size.gpus for size, rate in self.rates.items() if size.role == role), default=0.0)
            if best == 0:
                return 0
            worst += 1 / best
        return int(1 / worst * (1 + 1e-12) / EFFICIENCY_STEP)

    def _lexicographic(self, limits: SearchLimits, first: Expr, others: Sequence[Expr], scale: int = 1) -> Mix | None:
        """Minimise one expression after the other; the value is the first one's, times `scale`."""
        found: Mix | None = None
        for target in (first, *others):
            self.model.minimize(target)
            solver, status = self._run(limits)
            if status not in ("OPTIMAL", "FEASIBLE"):
                self.is_impossible = found is None and status == "INFEASIBLE"
                return found
            value, proved = solver.value(target), int(solver.response_proto.inner_objective_lower_bound)
            if found is None:
                bound = value if status == "OPTIMAL" else proved
                found = Mix({}, (), 0, 0, scale * value, scale * bound)
            rate, gpus = solver.value(self.rate) * self.unit_nhz, solver.value(self.gpus)
            found = Mix(self._chosen(solver), self._fills(solver), rate, gpus, found.value, found.bound)
            if status != "OPTIMAL":
                return found
            self.model.add(target <= value)
            self.model.clear_hints()  # type: ignore[no-untyped-call]
            for size, count in self.count.items():
                self.model.add_hint(count, found.counts.get(size, 0))
        return found

    def _run(self, limits: SearchLimits) -> tuple[cp_model.CpSolver, str]:
        """Solve the model as it stands.

        Raises
        ------
        KeyboardInterrupt
            CP-SAT, which takes Ctrl-C for itself, stopped unproved before its time.
        """
        begun = time.monotonic()
        left = None if self.ends is None else max(MIN_SOLVE_S, self.ends - begun)
        solver = _solver(replace(limits, time_s=left))
        with keeping_interrupts():
            status = solver.status_name(solver.solve(self.model))
        is_late = left is not None and time.monotonic() - begun >= left - INTERRUPT_MARGIN_S
        if status in ("FEASIBLE", "UNKNOWN") and not is_late:
            raise KeyboardInterrupt
        return solver, status

    def _chosen(self, solver: cp_model.CpSolver) -> dict[InstanceSize, int]:
        chosen = {size: solver.value(count) for size, count in self.count.items()}
        return {size: count for size, count in chosen.items() if count}

    def _fills(self, solver: cp_model.CpSolver) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """The flow of every cluster, taken apart into domains."""
        fills = []
        for arcs in self.arcs:
            flow = {key: solver.value(arc) for key, arc in arcs.items()}
            domains = []
            while any(flow[start, gpus] for start, gpus in flow if start == 0):
                held, node = [], 0
                while True:
                    gpus = max((g for start, g in flow if start == node and flow[start, g]), default=0)
                    if gpus == 0:
                        break
                    flow[node, gpus] -= 1
                    held.append(gpus)
                    node += gpus
                domains.append(tuple(held))
            fills.append(tuple(domains))
        return tuple(fills)


def total(terms: Iterable[Expr]) -> Expr:
    """Sum of expressions; 0 of none."""
    return sum(terms, 0)


def _solver(limits: SearchLimits) -> cp_model.CpSolver:
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = limits.workers
    solver.parameters.random_seed = limits.seed
    solver.parameters.linearization_level = 2  # these are knapsacks: without the linear relaxation they do not close
    solver.parameters.relative_gap_limit = 0.0
    solver.parameters.absolute_gap_limit = 0.0
    if limits.time_s is not None:
        solver.parameters.max_time_in_seconds = limits.time_s
    return solver
