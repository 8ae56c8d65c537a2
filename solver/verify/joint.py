"""The exhaustive check of a plan for several scenarios: no single deployment of the space is below the claimed bound.

Every combination of common degrees is bounded in every scenario by the arrays of :mod:`solver.verify.exhaustive`, each
scenario with the batches and switches that suit it best; the bounds add up. What stays below the claim is taken apart:
by replicas with exact splits, then by the switches that the scenarios must share and, where they differ, by the split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations, pairwise, product
from math import comb

import numpy as np

from solver.cost.horizon import SHARED_PRODUCT, in_horizon
from solver.cost.layers import Blocks
from solver.cost.ledger import stage_ledgers
from solver.cost.limits import is_within, limits_of
from solver.cost.machine import Ints
from solver.cost.metrics import evaluate_times, objective_value
from solver.cost.scenarios import Yardstick
from solver.legality import violations
from solver.scenarioplan import ScenarioPlan
from solver.specs.problem import MESH_ORDERS, Dispatch
from solver.strategy import Strategy, packing_of
from solver.verify.exhaustive import FEWER_IS_BETTER, HUGE, Enumeration, Selection
from solver.verify.finding import Finding
from solver.verify.legal import Rows
from solver.verify.realise import Judge

MODES: tuple[tuple[Dispatch, bool], ...] = (("gather", False), ("all_to_all", False), ("all_to_all", True))
"""How a phase runs its MoE layers: dispatch and overlap."""
MAX_SPLITS = 3000
"""Splits of the layers into stages that are tried one by one."""
MAX_OPEN = 3
"""Deployments left open that are named."""
CELLS = 2**19


@dataclass(frozen=True)
class Degrees:
    """Common degrees whose bound is below the claim."""

    pp: int
    row: int
    micro: int
    replicas: int
    total: int


def confirm_joint(plan: ScenarioPlan) -> list[Finding]:
    """Findings of the enumeration: a deployment below the claimed bound, or one that could not be excluded."""
    problems = [result.plan.problem for result in plan.scenarios]
    yardstick = Yardstick.of(plan.claim.over, plan.asked.parts, [result.own_bound for result in plan.scenarios])
    spaces = [Enumeration(problem) for problem in problems]
    for pp, rows in spaces[0].rows.items():
        for other in spaces[1:]:
            if not _same_rows(rows, other.rows[pp]):
                return [Finding("scenario-open", f"with pp = {pp} the scenarios have different stage shapes")]
    return list(_Joint(spaces, yardstick, plan.claim.bound).findings())


def _same_rows(mine: Rows, theirs: Rows) -> bool:
    return all(np.array_equal(getattr(mine, field.name), getattr(theirs, field.name)) for field in fields(Rows))


class _Joint:
    """The common degrees of several scenarios against one claim."""

    def __init__(self, spaces: Sequence[Enumeration], yardstick: Yardstick, claim: int) -> None:
        self.spaces, self.yardstick, self.claim = tuple(spaces), yardstick, claim
        self.name = spaces[0].problem.objective.name
        self.most = [min(yardstick.most(s, max(0, claim - 1)), yardstick.largest) for s in range(len(spaces))]
        """A scenario above this makes every total at least the claim."""

    def findings(self) -> Iterator[Finding]:
        """At most a few deployments that contradict the claim or stay open."""
        named = 0
        for degrees in self._by_replicas(self._below()):
            for finding in self._examined(degrees):
                yield finding
                named += 1
                if named >= MAX_OPEN:
                    return

    # --- bounds by common degrees -------------------------------------------------------------------------------------

    def _totals(self, values: Sequence[Ints]) -> Ints:
        """Totals of bounds [scenario][degrees]; HUGE where one scenario alone is beyond its share."""
        beyond = np.logical_or.reduce([value > most for value, most in zip(values, self.most, strict=True)])
        capped = [np.minimum(value, most) for value, most in zip(values, self.most, strict=True)]
        if self.yardstick.over == "expected":
            total: Ints = np.asarray(self.yardstick.parts, dtype=np.int64) @ np.stack(capped)
        else:
            scale = self.yardstick.scale
            regrets = [-(-scale * (value - own) // own) for value, own in zip(capped, self.yardstick.own, strict=True)]
            total = np.maximum.reduce(regrets)
        found: Ints = np.where(beyond, HUGE, total)
        return found

    def _below(self) -> Iterator[Degrees]:
        """Degrees below the claim with the loads of the most replicas and the GPUs of the fewest."""
        first = self.spaces[0]
        for pp, rows in first.rows.items():
            size = max(1, CELLS // max(len(space.batches) * len(space.prompts) for space in self.spaces))
            for micro, begin in product((m for m in first.domains.micro_batches if m <= pp), range(0, len(rows), size)):
                index = np.arange(begin, min(begin + size, len(rows)), dtype=np.int64)
                values = [self._least(space, pp, index, micro, None) for space in self.spaces]
                total = self._totals(values)
                for at in np.nonzero(total < self.claim)[0].tolist():
                    yield Degrees(pp, int(index[at]), micro, 0, int(total[at]))

    def _least(self, space: Enumeration, pp: int, row: Ints, micro: int, replicas: Ints | None) -> Ints:
        """Least bound of one scenario over its batches; exact splits where the replicas are given."""
        zero = np.zeros((1, 1, 1), dtype=np.int64)
        at = Selection(
            row[:, None, None],
            np.arange(len(space.batches), dtype=np.int64)[None, :, None],
            np.arange(len(space.prompts), dtype=np.int64)[None, None, :],
            zero + micro, zero, zero,
        )  # fmt: skip
        least, most = space.replica_range(pp, at)
        if replicas is None:
            legal = least <= most
            at = replace(at, load_replicas=np.maximum(most, 1), gpu_replicas=np.maximum(least, 1))
        else:
            count = replicas[:, None, None]
            legal = (least <= count) & (count <= most)
            at = replace(at, load_replicas=count, gpu_replicas=count)
        bound = space.bounds(pp, at, self.name, (0, 0), refine=replicas is not None)
        value: Ints = np.where(legal, bound, HUGE).reshape(len(row), -1).min(axis=1)
        return value

    def _by_replicas(self, below: Iterator[Degrees]) -> Iterator[Degrees]:
        """The same taken apart by replicas: only the most where more of them never hurt."""
        for degrees in below:
            rows = self.spaces[0].rows[degrees.pp]
            low, high = int(rows.least[degrees.row]), int(rows.most[degrees.row])
            low = low if self.name in FEWER_IS_BETTER else high
            for begin in range(low, high + 1, 64):
                replicas = np.arange(begin, min(begin + 64, high + 1), dtype=np.int64)
                row = np.full_like(replicas, degrees.row)
                values = [self._least(space, degrees.pp, row, degrees.micro, replicas) for space in self.spaces]
                total = self._totals(values)
                for at in np.nonzero(total < self.claim)[0].tolist():
                    yield replace(degrees, replicas=int(replicas[at]), total=int(total[at]))

    # --- one deployment -----------------------------------------------------------------------------------------------

    def _examined(self, degrees: Degrees) -> Iterator[Finding]:
        """Every way to run these degrees, common switches and splits included, with the blocks at proved bounds."""
        num_layers = self.spaces[0].problem.llm.num_layers
        if comb(num_layers - 1, degrees.pp - 1) > MAX_SPLITS:
            label = self._strategy(degrees, self.spaces[0], (0, 0)).full_label
            yield Finding(
                "scenario-open",
                f"{label} has a lower bound of {degrees.total}, below the claimed {self.claim}, and too many splits "
                "of its layers to try each",
            )
            return
        for decode, prefill in product(MODES, MODES):
            for split in combinations(range(1, num_layers), degrees.pp - 1):
                layout = tuple(after - before for before, after in pairwise((0, *split, num_layers)))
                values, exact = [], True
                for s, space in enumerate(self.spaces):
                    value, closed = self._value(space, s, degrees, (decode, prefill), layout)
                    values.append(np.asarray([value]))
                    exact = exact and closed
                    if value > self.most[s]:
                        break
                if len(values) < len(self.spaces) or int(self._totals(values)[0]) >= self.claim:
                    continue
                rule = "scenario-optimum" if exact else "scenario-open"
                strategy = self._strategy(degrees, self.spaces[0], (0, 0))
                yield Finding(
                    rule,
                    f"{strategy.full_label} with {degrees.micro} micro-batches, stages of {layout}, decode by {decode} "
                    f"and prefill by {prefill} has the total {int(self._totals(values)[0])}, below the claimed "
                    f"{self.claim}",
                )
                return

    def _value(
        self,
        space: Enumeration,
        scenario: int,
        degrees: Degrees,
        modes: tuple[tuple[Dispatch, bool], tuple[Dispatch, bool]],
        layout: tuple[int, ...],
    ) -> tuple[int, bool]:
        """Least objective integer of a scenario over batches and all-reduces, and whether its blocks are closed."""
        domains, problem = space.domains, space.problem
        judge = Judge(space.leaves, space.blocks, domains, self.name, (0, 0))
        best, closed = HUGE, True
        for batch, prompts in product(range(len(space.batches)), range(len(space.prompts))):
            plain = self._strategy(degrees, space, (batch, prompts))
            if problem.workload.concurrency is not None and plain.slots < problem.workload.concurrency:
                continue
            if not self._near(space, scenario, degrees, (batch, prompts)):
                continue
            bins = plain.replicas * plain.attn_dp * plain.micro_batches
            load = space.blocks.load_interval(bins, plain.batch)
            factor = space.blocks.lambda_interval(plain.moe_ep) if problem.llm.is_moe else None
            blocks = Blocks(load.lower, 10**6 if factor is None else factor.lower, layout)
            closed = closed and load.lower == load.upper and (factor is None or factor.lower == factor.upper)
            for algorithms in product(domains.decode_allreduce, domains.prefill_allreduce):
                best = min(best, _priced(judge, _with_knobs(plain, modes, algorithms), blocks))
        return best, closed

    def _near(self, space: Enumeration, scenario: int, degrees: Degrees, at: tuple[int, int]) -> bool:
        """Whether the bound of these batches leaves the total a chance to stay below the claim."""
        row, batch, prompts, micro, replicas = (
            np.full((1, 1, 1), value, dtype=np.int64)
            for value in (degrees.row, at[0], at[1], degrees.micro, degrees.replicas)
        )
        selection = Selection(row, batch, prompts, micro, replicas, replicas)
        bound = space.bounds(degrees.pp, selection, self.name, (0, 0), refine=False)
        return int(bound.reshape(-1)[0]) <= self.most[scenario]

    def _strategy(self, degrees: Degrees, space: Enumeration, at: tuple[int, int]) -> Strategy:
        rows = space.rows[degrees.pp]
        return Strategy(
            attn_tp=int(rows.attn_tp[degrees.row]),
            attn_dp=int(rows.attn_dp[degrees.row]),
            moe_tp=int(rows.moe_tp[degrees.row]),
            moe_ep=int(rows.moe_ep[degrees.row]),
            pp=degrees.pp,
            replicas=degrees.replicas,
            micro_batches=degrees.micro,
            batch=int(space.batches[at[0]]),
            prefill_batch=int(space.prompts[at[1]]),
            mesh_order=MESH_ORDERS[int(rows.order[degrees.row])],
        )


def _with_knobs(
    strategy: Strategy,
    modes: tuple[tuple[Dispatch, bool], tuple[Dispatch, bool]],
    algorithms: tuple[str, str],
) -> Strategy:
    (sent, hidden), (prefill_sent, prefill_hidden) = modes
    return strategy.model_copy(
        update={
            "decode_dispatch": sent, "decode_overlap": hidden, "prefill_dispatch": prefill_sent,
            "prefill_overlap": prefill_hidden, "decode_allreduce": algorithms[0], "prefill_allreduce": algorithms[1],
        }
    )  # fmt: skip


def _priced(judge: Judge, strategy: Strategy, blocks: Blocks) -> int:
    """Objective integer; HUGE where the strategy is illegal, does not fit, or misses an SLO."""
    problem = judge.leaves.problem
    if violations(problem, strategy):
        return HUGE
    figures = evaluate_times(judge.leaves, strategy, packing_of(problem, strategy), blocks)
    if not is_within(limits_of(problem), figures) or not in_horizon(problem, figures, SHARED_PRODUCT):
        return HUGE
    if any(ledger.total_kib > ledger.capacity_kib for ledger in stage_ledgers(judge.leaves, strategy, blocks)):
        return HUGE
    return objective_value(judge.name, figures, judge.weights)
