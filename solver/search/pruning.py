"""Rows of the cost tables that no plan as good as a known one can use.

Both phases run on the same stage shape. For every shape, group size and mode the least time of a step follows from the
tables; with the cheapest way the shape has in the other phase it bounds every strategy of that shape. Rows that only
belong to combinations above the known objective, or beyond an SLO, are left out. The result is an equivalent program.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from solver.cost.leaves import PPM, Leaves
from solver.cost.limits import Limit, limits_of
from solver.cost.machine import Floats, Phase
from solver.cost.metrics import Utopia
from solver.degrees import Domains
from solver.search.bounds import Bounds
from solver.search.joint import Bools, Goals, Shape, Times, joint_bounds
from solver.search.tables import MODES, Column, PhaseRates, PhaseTables, Rates, phase_modes, phase_rates
from solver.specs.problem import AllReduce, ObjectiveName

OVERLAP = MODES.index("overlap")


@dataclass(frozen=True)
class Cells:
    """Least share and time of every (shape, group size, mode): arrays [shapes, groups, modes], inf where impossible."""

    share: Floats
    time_ns: Floats
    main_ns: Floats
    """One layer of the commonest kind."""
    gpus_per_sequence: Floats
    """GPUs of a stage per sequence of its step; broadcasts with the others."""
    groups: list[int]

    def share_of(self, rates: Rates) -> Floats:
        """Least integer of a metric with these rates, a touch lower for rounding."""
        possible = np.isfinite(self.time_ns)
        time = np.where(possible, self.time_ns, 0.0)
        share = (rates.time * time + rates.gpu_time * time * self.gpus_per_sequence) * (1 - 1e-9)
        return np.where(possible, share, np.inf)


def build_tables(
    leaves: Leaves,
    domains: Domains,
    bounds: Bounds,
    utopia: Utopia | None,
    shapes: list[Shape],
    layout: list[tuple[int, int]],
) -> list[PhaseTables]:
    """Cost tables of both phases. `layout` lists the reachable (stage GPUs, ranks of a stage in one domain)."""
    tables = []
    phases: tuple[tuple[Phase, tuple[int, ...], tuple[AllReduce, ...]], ...] = (
        ("decode", domains.batch, domains.decode_allreduce),
        ("prefill", domains.prefill_batch, domains.prefill_allreduce),
    )
    for phase, groups, algorithms in phases:
        own = phase_rates(leaves.problem.objective.name, leaves, domains, phase, utopia)
        limits = limits_of(leaves.problem)
        rates = PhaseRates(own, {x.metric: phase_rates(x.metric, leaves, domains, phase) for x in limits})
        table = PhaseTables(leaves, bounds, phase, rates, phase_modes(leaves.problem, domains, phase))
        tables.append(table)
        if not leaves.problem.runs(phase):
            continue
        table.build_group(domains.attn_tp, groups, algorithms)
        if leaves.problem.llm.is_moe:
            table.build_expert(shapes, layout, groups)
    return tables


@dataclass(frozen=True)
class Pruned:
    """What pruning proved."""

    root: int
    """No objective is below this."""
    dead: tuple[tuple[int, int], ...]
    """(stages, micro-batches) that no plan as good as the known one has."""
    excludes_all: bool = False
    """No combination is within the limits and as good as the known plan: the bounds are the proof."""


def prune(tables: list[PhaseTables], domains: Domains, shapes: list[Shape], upper: int | None) -> Pruned:
    """Drop rows in place; `upper` is a known plan's objective."""
    leaves = tables[0].leaves
    objective, limits = leaves.problem.objective.name, limits_of(leaves.problem)
    cells = [cells_of(phase, shapes) for phase in tables]
    for cell, late in zip(cells, beyond_limits(tables, cells, limits), strict=True):
        cell.share[late] = np.inf
    cheapest = [cell.share.min(axis=(1, 2)) for cell in cells]
    root = float((cheapest[0] + cheapest[1]).min())
    if upper is None and not limits:
        return Pruned(int(root) if np.isfinite(root) else 0, ())
    highest = np.inf if upper is None else float(upper)
    alive: list[Bools] = [
        np.asarray(np.isfinite(cell.share) & (cell.share + other[:, None, None] <= highest))
        for cell, other in zip(cells, reversed(cheapest), strict=True)
    ]
    if leaves.problem.role != "aggregated":  # a pool runs one phase: there is nothing to look at together
        phase, kept = next(pair for pair in zip(tables, alive, strict=True) if leaves.problem.runs(pair[0].phase))
        _keep(phase, shapes, kept)
        return Pruned(int(root) if np.isfinite(root) else 0, (), excludes_all=not kept.any())
    least = [np.where(a, cell.time_ns, np.inf).min(axis=2) for a, cell in zip(alive, cells, strict=True)]
    goals: dict[ObjectiveName, float] = {}
    for limit in limits:
        goals[limit.metric] = float(limit.at_most)
    if upper is not None and objective != "weighted":
        goals[objective] = min(highest, goals.get(objective, np.inf))
    joint = joint_bounds(
        leaves, domains, shapes, Times(least[0], least[1], cells[0].groups, cells[1].groups), Goals(goals, objective)
    )
    for phase, before, axis in zip(tables, alive, (2, 1), strict=True):
        _keep(phase, shapes, before & np.expand_dims(np.any(joint.alive, axis=axis), 2))
    if not joint.alive.any():
        return Pruned(int(root) if np.isfinite(root) else 0, (), excludes_all=True)
    return Pruned(int(max(root, joint.root)) if np.isfinite(root) else 0, joint.dead)


def beyond_limits(tables: list[PhaseTables], cells: list[Cells], limits: tuple[Limit, ...]) -> list[Bools]:
    """By phase, the cells that miss a limit whatever the other phase does."""
    late = [np.zeros(cell.time_ns.shape, dtype=np.bool_) for cell in cells]
    for limit in limits:
        shares = [cell.share_of(table.limit_rates[limit.metric]) for table, cell in zip(tables, cells, strict=True)]
        others = [share.min(axis=(1, 2))[:, None, None] for share in reversed(shares)]
        late = [
            before | (mine + other > limit.at_most) for before, mine, other in zip(late, shares, others, strict=True)
        ]
    return late


def _groups(phase: PhaseTables) -> list[int]:
    return sorted(set(phase.group["group"].tolist()))


def cells_of(phase: PhaseTables, shapes: list[Shape]) -> Cells:
    """Bounds of every combination from the element-wise least of the matching rows."""
    leaves = phase.leaves
    if not leaves.problem.runs(phase.phase):
        nothing = np.zeros((len(shapes), 1, 1))
        return Cells(nothing, nothing.copy(), nothing.copy(), nothing, [1])
    llm, groups = leaves.problem.llm, _groups(phase)
    size = (len(shapes), len(groups), len(MODES))
    tp = np.array([shape[0] for shape in shapes], dtype=np.int64)
    by_group, left = _least(phase.group, ("attn_tp", "group", "mode"))
    by_expert, right = _least(phase.expert, ("moe_tp", "moe_ep", "tokens", "mode"))
    missing = (len(by_group), len(by_expert))
    ours = np.full(size, missing[0], dtype=np.int64)
    theirs = np.full(size, missing[1], dtype=np.int64)
    for s, (attn_tp, moe_tp, moe_ep, dp) in enumerate(shapes):
        for g, group in enumerate(groups):
            for mode in range(len(MODES)):
                ours[s, g, mode] = by_group.get((attn_tp, group, mode), missing[0])
                key = (moe_tp, moe_ep, dp * group * phase.unit, mode)
                theirs[s, g, mode] = by_expert.get(key, missing[1])
    if not phase.expert:
        right = {name: np.zeros(1) for name in ("plain", "busy", "sent")}
        theirs[:] = 0
    overlap = np.arange(len(MODES)) == OVERLAP
    total = left["embedding"][ours] + left["head"][ours] + float(leaves.pass_host_ns(phase.phase))
    for kind in llm.kinds:
        name, core = f"{kind.attention}.{kind.ffn}", left.get(f"core.{kind.attention}")
        plain = left[f"plain.{name}"][ours] + (0.0 if core is None else core[ours])
        if kind.ffn == "moe":
            busy = left[f"busy.{name}"][ours] + right["busy"][theirs] + (0.0 if core is None else core[ours])
            sent = left[f"sent.{name}"][ours] + right["sent"][theirs]
            halves = np.maximum(busy * (PPM / leaves.busy_ppm), sent) + leaves.sync_ns
            plain = np.where(overlap, halves, plain + right["plain"][theirs])
        if kind == phase.main_kind:
            main = plain
        total = total + llm.layers.count(kind) * plain
    if llm.is_moe:  # a single attention group reduces, several gather
        alone = np.array([shape[3] == 1 for shape in shapes])
        for name, ways in (("reduce", alone), ("gather", ~alone)):
            mode = MODES.index(name)
            total[:, :, mode] = np.where(ways[:, None], total[:, :, mode], np.inf)
    per_gpu = tp[:, None, None] / np.array(groups, dtype=np.float64)[None, :, None]
    cells = Cells(total, total, main, per_gpu, groups)
    return replace(cells, share=cells.share_of(phase.rates))


def _row_keys(table: Column, names: tuple[str, ...]) -> list[tuple[int, ...]]:
    return list(zip(*(table[name].tolist() for name in names), strict=True))


def _least(table: Column, names: tuple[str, ...]) -> tuple[dict[tuple[int, ...], int], dict[str, Floats]]:
    """Position of every distinct key, and per column the least entry by position (inf behind the last)."""
    if not table:
        return {}, {}
    keys = _row_keys(table, names)
    position = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    where = np.array([position[key] for key in keys], dtype=np.int64)
    least = {}
    for column, values in table.items():
        least[column] = np.full(len(position) + 1, np.inf)
        np.minimum.at(least[column], where, values.astype(np.float64))
    return position, least


def _keep(phase: PhaseTables, shapes: list[Shape], alive: Bools) -> None:
    """Keep the rows that an alive (shape, group, mode) needs; a single one where none is alive."""
    if not alive.any():
        for name in ("group", "expert"):
            setattr(phase, name, {column: values[:1] for column, values in getattr(phase, name).items()})
        return
    groups, group_keys, expert_keys = _groups(phase), set(), set()
    for s, g, mode in zip(*(axis.tolist() for axis in np.nonzero(alive)), strict=True):
        attn_tp, moe_tp, moe_ep, dp = shapes[s]
        group_keys.add((attn_tp, groups[g], mode))
        expert_keys.add((moe_tp, moe_ep, dp * groups[g] * phase.unit, mode))
    for name, columns, keys in (
        ("group", ("attn_tp", "group", "mode"), group_keys),
        ("expert", ("moe_tp", "moe_ep", "tokens", "mode"), expert_keys),
    ):
        table: Column = getattr(phase, name)
        if table:
            mask = np.array([key in keys for key in _row_keys(table, columns)])
            setattr(phase, name, {column: values[mask] for column, values in table.items()})
