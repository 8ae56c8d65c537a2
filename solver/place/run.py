"""``solver place``: from load windows to a placement document, by the parts of this room.

Shape suffixes: L layers, K windows, E logical experts, N slots.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from solver.expertmap import CurvePoint, ExpertPlacement, Move, PlacedLayer, WindowReport
from solver.place.advice import advise, worth
from solver.place.bounds import binding_of, layer_bound
from solver.place.dispatch import dispatch_bound
from solver.place.exact import Rules, is_small, least_load, least_traffic
from solver.place.finish import SMALL_SECONDS, dispatch_parallel, place_parallel, robust_parallel
from solver.place.migrate import Stage, home_lre, migrate, ordered_moves, stages, stay_in_place
from solver.place.repair import Fewest, refill, require_feasible
from solver.place.robust import Aim
from solver.place.split import best_split, split_busiest_lk
from solver.place.state import Floats, Ints, Shelf, State
from solver.place.static import Effort, busiest
from solver.place.traffic import lower_traffic, traffic_bound_l, traffic_l
from solver.specs.placing import Placing
from solver.specs.windows import LoadWindow

OPTIMAL_GAP = 1e-6
"""Relative gap below which a layer is called OPTIMAL: proofs round to billionths of a layer's load."""
TRAFFIC_SECONDS = 2.0
"""Time of CP-SAT for the traffic of one small layer."""
SEARCH_SHARE = 0.9
"""Share of the time limit for the searches; linear programs, judge and document take the rest."""
HELD_OUT_SHARE = 0.5
"""Share of the time that goes to the placements without one window each."""


@dataclass(frozen=True)
class Task:
    """A checked question in arrays: loads normalised to a mean rank load of 1, and the shelf of living ranks."""

    placing: Placing
    windows: tuple[LoadWindow, ...]
    load_lke: Floats
    shelf: Shelf
    aim: Aim
    effort: Effort

    @staticmethod
    def of(placing: Placing, windows: tuple[LoadWindow, ...], effort: Effort) -> Task:
        """Arrays of a question.

        Raises
        ------
        SpecError
            The question makes no sense.
        NoPlacementError
            No placement exists, proved.
        """
        placing.check(windows)
        alive = placing.alive
        load_lke = np.stack([window.count_le for window in windows], axis=1).astype(np.float64)
        load_lke *= len(alive) / load_lke.sum(axis=2, keepdims=True)
        units = placing.unit_of_rank
        shelf = Shelf.of(
            tuple(placing.slots_of_rank[rank] for rank in alive),
            None if units is None else _renumber([units[rank] for rank in alive]),
        )
        require_feasible(load_lke.shape[2], shelf, placing)
        weight_k = np.array([window.weight for window in windows])
        aim = Aim(weight_k / weight_k.sum(), placing.aim.split()[0], placing.quantile)
        return Task(placing, windows, load_lke, shelf, aim, effort)

    @property
    def slots(self) -> Ints:
        """Slots of the living ranks, in the numbering of all slots."""
        lost = set(self.placing.dead)
        ranks = [rank for rank, count in enumerate(self.placing.slots_of_rank) for _ in range(count)]
        return np.array([slot for slot, rank in enumerate(ranks) if rank not in lost])

    @property
    def mean_le(self) -> Floats:
        """Weighted mixture of the windows."""
        mixture: Floats = np.average(self.load_lke, axis=1, weights=self.aim.weight_k)
        return mixture


def _renumber(values: list[int]) -> tuple[int, ...]:
    order = {value: at for at, value in enumerate(sorted(set(values)))}
    return tuple(order[value] for value in values)


@dataclass(frozen=True)
class Placed:
    """Slots of the living ranks, the objective's bound per layer, the split, and the least number of moves."""

    slot_ln: Ints
    bound_l: Floats
    share_ln: Floats | None = None
    fewest: Fewest | None = None
    stages: tuple[Stage, ...] = ()
    """Placements of the curve, of which this one is the one with the allowed moves."""


def run_place(placing: Placing, windows: tuple[LoadWindow, ...], effort: Effort) -> ExpertPlacement:
    """Answer of ``solver place``.

    Raises
    ------
    SpecError
        The question makes no sense.
    NoPlacementError
        No placement exists; the sentence proves it by counting.
    """
    task = Task.of(placing, windows, replace(effort, seconds=SEARCH_SHARE * effort.seconds))
    effort = task.effort
    held_out = len(windows) > 1 and placing.current is None
    main = replace(effort, seconds=effort.seconds * (1 - HELD_OUT_SHARE)) if held_out else effort
    placed = _place(replace(task, effort=main))
    held = _held_out(task) if held_out else {}
    return _document(task, placed, held)


def _place(task: Task) -> Placed:
    """The placement: from scratch or from the current one, then traffic, then the split."""
    placing = task.placing
    if placing.current is not None:
        placed = _from_current(task)
    elif len(task.windows) == 1:
        found = place_parallel(task.load_lke[:, 0], task.shelf, _before_split(task))
        placed = Placed(found.slot_ln, found.bound_l)
    else:
        robust = robust_parallel(task.load_lke, task.shelf, task.aim, _before_split(task))
        placed = Placed(robust.slot_ln, robust.bound_l)
    if is_small(task.load_lke.shape[2], task.shelf) and task.aim.name != "quantile":
        placed = _close(task, placed)
    if placing.traffic_tolerance is not None and placing.nodes > 1:
        placed = replace(placed, slot_ln=_less_traffic(task, placed.slot_ln))
    return _split(task, placed) if placing.weighted else placed


def _split(task: Task, placed: Placed) -> Placed:
    """The placement that allows the best splits, where none is in force and traffic is free; then the split."""
    load_lke, shelf, aim, slot_ln = task.load_lke, task.shelf, task.aim, placed.slot_ln
    split = best_split(load_lke, slot_ln, shelf, aim)
    share_ln = split.share_ln
    if task.placing.current is None and task.placing.traffic_tolerance is None:
        slot_ln, share_ln = slot_ln.copy(), share_ln.copy()
        begun = time.monotonic()
        effort = replace(task.effort, seconds=max(0.1, task.effort.deadline - begun), begun=begun)
        other_ln = dispatch_parallel(load_lke, slot_ln, shelf, aim, effort)
        other = best_split(load_lke, other_ln, shelf, aim)
        # One window has one split: what counts is its optimum. Several have a split each.
        better = other.optimum_l < split.optimum_l if len(task.windows) == 1 else np.ones(len(slot_ln), dtype=bool)
        slot_ln[better], share_ln[better] = other_ln[better], other.share_ln[better]
    return replace(placed, slot_ln=slot_ln, share_ln=share_ln, bound_l=_split_bound_l(task))


def _before_split(task: Task) -> Effort:
    """Effort for the even split: with weighted dispatch, half of the time."""
    return replace(task.effort, seconds=task.effort.seconds / 2) if task.placing.weighted else task.effort


def _close(task: Task, placed: Placed) -> Placed:
    """CP-SAT on the layers whose bound is not met, in equal parts of the time that is left."""
    slot_ln, bound_l = placed.slot_ln.copy(), placed.bound_l.copy()
    load_lke, shelf = task.load_lke, task.shelf
    state = State(shelf, load_lke, np.zeros_like(task.mean_le), slot_ln)
    value_l = task.aim.value_l(state.rank_load_lkr().max(axis=2))
    open_l = np.flatnonzero(value_l > bound_l * (1 + OPTIMAL_GAP))
    for at, layer in enumerate(open_l):
        left = (task.effort.deadline - time.monotonic()) / (len(open_l) - at)
        rules = _rules(task, int(layer), placed.fewest)
        solved = least_load(load_lke[layer], slot_ln[layer], rules, task.aim, left)
        part = State(shelf, load_lke[[layer]], np.zeros_like(task.mean_le[[layer]]), solved.slot_n[None])
        value = float(task.aim.value_l(part.rank_load_lkr().max(axis=2))[0])
        if value <= value_l[layer]:
            slot_ln[layer], value_l[layer] = solved.slot_n, value
        bound_l[layer] = min(max(bound_l[layer], solved.bound), value_l[layer])
    if task.placing.current is not None:
        slot_ln = stay_in_place(np.array(task.placing.current)[:, task.slots], slot_ln, shelf)
    return replace(placed, slot_ln=slot_ln, bound_l=bound_l)


def _rules(task: Task, layer: int, fewest: Fewest | None) -> Rules:
    """Rules of one layer for CP-SAT."""
    if task.placing.current is None:
        return Rules(task.shelf)
    before = np.array(task.placing.current)[:, task.slots]
    home = home_lre(before, task.shelf, task.load_lke.shape[2])[layer]
    return Rules(task.shelf, home, int(_allowed_l(task, fewest)[layer]))


def _less_traffic(task: Task, slot_ln: Ints) -> Ints:
    """The traffic lowered within the tolerance: by swaps, and by CP-SAT where the layers are small."""
    tolerance = task.placing.traffic_tolerance or 0.0
    node_r, shelf, load_lke = _nodes(task), task.shelf, task.load_lke
    lowered = lower_traffic(load_lke, slot_ln, shelf, node_r, tolerance)
    if not is_small(load_lke.shape[2], shelf) or task.placing.current is not None:
        return lowered
    state = State(shelf, load_lke, np.zeros_like(task.mean_le), slot_ln)
    limit_lk = state.rank_load_lkr().max(axis=2) * (1 + tolerance)
    for layer in range(len(lowered)):
        hint, limit_k = lowered[layer], limit_lk[layer]
        solved = least_traffic(load_lke[layer], hint, Rules(shelf), node_r, limit_k, TRAFFIC_SECONDS)
        lowered[layer] = solved.slot_n
    return lowered


def _split_bound_l(task: Task) -> Floats:
    """Lower bound under any split."""
    least = 2 if task.shelf.spread else 1
    bound_lk = [[dispatch_bound(load_e, task.shelf, least) for load_e in load_ke] for load_ke in task.load_lke]
    return task.aim.value_l(np.maximum(bound_lk, 1.0)) * (1 - 1e-9)


def _nodes(task: Task) -> Ints:
    domain = task.placing.domain_of_rank
    return np.array([domain[rank] for rank in task.placing.alive])


def _from_current(task: Task) -> Placed:
    """Repair what a loss took, then improve within the allowed moves."""
    assert task.placing.current is not None
    before = np.array(task.placing.current)[:, task.slots]
    start, fewest = refill(task.mean_le, before, task.shelf)
    repaired = stay_in_place(before, start, task.shelf)
    if task.placing.max_moves is not None:
        fewest.require(task.placing.max_moves)
    effort = task.effort
    if is_small(task.load_lke.shape[2], task.shelf):
        effort = replace(effort, seconds=min(effort.seconds, SMALL_SECONDS))
    allowed_l = _allowed_l(task, fewest)
    curve: tuple[Stage, ...] = ()
    if task.placing.curve and not task.placing.dead:
        numbers = sorted({*task.placing.curve, int(allowed_l[0])})
        curve = stages(task.mean_le, before, task.shelf, numbers, effort)
        slot_ln = next(stage.slot_ln for stage in curve if stage.moves == allowed_l[0])
    else:
        slot_ln = migrate(task.mean_le, before, repaired, task.shelf, allowed_l, effort)
    return Placed(stay_in_place(before, slot_ln, task.shelf), place_bound_l(task), fewest=fewest, stages=curve)


def _allowed_l(task: Task, fewest: Fewest | None) -> Ints:
    """Most moves of every layer: as asked; after a loss the fewest that repair it; else as many as there are slots."""
    layers = len(task.load_lke)
    if task.placing.max_moves is not None:
        return np.full(layers, task.placing.max_moves, dtype=np.int64)
    if task.placing.dead and fewest is not None:
        return fewest.moves_l
    return np.full(layers, task.shelf.num_slots, dtype=np.int64)


def place_bound_l(task: Task) -> Floats:
    """Closed-form bound of the aim, whatever the moves."""
    least = 2 if task.shelf.spread else 1
    bound_lk = np.array([[layer_bound(load_e, task.shelf, least) for load_e in load_ke] for load_ke in task.load_lke])
    return task.aim.value_l(bound_lk)


@dataclass(frozen=True)
class HeldOut:
    """Balancedness in a window that the placement did not see: with the even split, and split anew for it."""

    even: float
    resplit: float


def _held_out(task: Task) -> dict[int, HeldOut]:
    """Leave one window out: place without it, judge on it."""
    count = len(task.windows)
    begun = time.monotonic()
    left = task.effort.seconds * HELD_OUT_SHARE
    result = {}
    for out in range(count):
        if out and (time.monotonic() - begun) * (out + 1) / out > 1.5 * left:
            break  # another placement would not fit the time limit
        keep = np.array([k for k in range(count) if k != out])
        weight_k = task.aim.weight_k[keep] / task.aim.weight_k[keep].sum()
        aim = replace(task.aim, weight_k=weight_k)
        seconds = max(0.0, left - (time.monotonic() - begun)) / (count - out)
        effort = Effort(0.8 * seconds, task.effort.seed, workers=task.effort.workers, engine=task.effort.engine)
        if task.placing.weighted:
            effort = replace(effort, seconds=effort.seconds / 2)
        seen = task.load_lke[:, keep]
        slot_ln = robust_parallel(seen, task.shelf, aim, effort).slot_ln
        if task.placing.weighted:
            slot_ln = dispatch_parallel(seen, slot_ln, task.shelf, aim, replace(effort, begun=time.monotonic()))
        unseen = task.load_lke[:, [out]]
        even = State(task.shelf, unseen, np.zeros_like(unseen[:, 0]), slot_ln).rank_load_lkr().max(axis=2)
        again = best_split(unseen, slot_ln, task.shelf, Aim(np.ones(1)))
        split = split_busiest_lk(unseen, slot_ln, again.share_ln, task.shelf)
        result[out] = HeldOut(float((1 / even).mean()), float((1 / split).mean()))
    return result


def _document(task: Task, placed: Placed, held: dict[int, HeldOut]) -> ExpertPlacement:
    """The document of a placement."""
    placing, windows = task.placing, task.windows
    slot_ln = placed.slot_ln if placing.current is not None else _sorted(placed.slot_ln, task.shelf)
    share_ln = placed.share_ln
    if share_ln is not None:
        order = np.argsort(task.shelf.rank_n * 100_000 + placed.slot_ln, axis=1, kind="stable")
        share_ln = np.take_along_axis(share_ln, order, 1) if placing.current is None else share_ln
        busiest_lk = split_busiest_lk(task.load_lke, slot_ln, share_ln, task.shelf)
    else:
        state = State(task.shelf, task.load_lke, np.zeros_like(task.mean_le), slot_ln)
        busiest_lk = state.rank_load_lkr().max(axis=2)
    tokens = len(windows) == 1
    scale_l = windows[0].count_le.sum(axis=1) / len(placing.alive) if tokens else np.ones(len(slot_ln))
    objective_l = task.aim.value_l(busiest_lk)
    bound_l = np.minimum(placed.bound_l, objective_l)
    balance_lk = 1 / busiest_lk
    layers = _layers(task, slot_ln, (objective_l, bound_l, balance_lk @ task.aim.weight_k), scale_l)
    full = np.full((len(slot_ln), sum(placing.slots_of_rank)), -1, dtype=np.int64)
    full[:, task.slots] = slot_ln
    split = None
    if share_ln is not None:
        shares = np.zeros(full.shape)
        shares[:, task.slots] = share_ln
        split = tuple(tuple(row) for row in shares.tolist())
    reports = tuple(
        WindowReport(
            name=window.name, weight=window.weight, balancedness=float(balance_lk[:, k].mean()),
            held_out=held[k].even if k in held else None, held_out_split=held[k].resplit if k in held else None,
        )
        for k, window in enumerate(windows)
    )  # fmt: skip
    document = ExpertPlacement(
        status="OPTIMAL" if all(layer.status == "OPTIMAL" for layer in layers) else "FEASIBLE",
        num_layers=len(slot_ln),
        num_experts=task.load_lke.shape[2],
        ranks=placing.ranks,
        slots_of_rank=placing.slots_of_rank,
        domain_of_rank=placing.domain_of_rank,
        survives=placing.survive,
        rack_of_rank=placing.rack_of_rank if placing.survive == "rack" else (),
        dead_ranks=tuple(sorted(set(placing.dead))),
        aim=placing.aim,
        unit="tokens" if tokens else "mean rank load",
        balancedness=float(np.mean([layer.balancedness for layer in layers])),
        worst_balancedness=min(layer.balancedness for layer in layers),
        physical_to_logical_map=tuple(tuple(row) for row in full.tolist()),
        split=split,
        layers=layers,
        windows=reports,
        max_moves=placing.max_moves,
        fewest_moves=None if placed.fewest is None or not placing.dead else int(placed.fewest.moves_l.sum()),
        moves=_moves(task, full),
        curve=_curve(task, placed) if placing.curve else None,
        seed=task.effort.seed,
        wall_s=time.monotonic() - task.effort.begun,
    )
    said = advise(document)
    if placing.tokens_per_step is not None:
        said += worth(document, task.load_lke, placing.tokens_per_step, placing.top_k)
    return document.model_copy(update={"advice": said})


def _sorted(slot_ln: Ints, shelf: Shelf) -> Ints:
    order = np.argsort(shelf.rank_n * 100_000 + slot_ln, axis=1, kind="stable")
    return np.take_along_axis(slot_ln, order, 1)


def _layers(
    task: Task, slot_ln: Ints, figures: tuple[Floats, Floats, Floats], scale_l: Floats
) -> tuple[PlacedLayer, ...]:
    """Report of every layer from its objective, bound and balancedness."""
    placing = task.placing
    objective_l, bound_l, balance_l = figures
    moves_l, traffic, least = None, None, None
    if placing.current is not None:
        before = np.array(placing.current)[:, task.slots]
        experts = task.load_lke.shape[2]
        now, old = (home_lre(slots, task.shelf, experts) for slots in (slot_ln, before))
        moves_l = (now & ~old).sum(axis=(1, 2))
    if placing.nodes > 1:
        traffic = traffic_l(task.mean_le, slot_ln, task.shelf, _nodes(task))
        least = np.minimum(traffic_bound_l(task.mean_le, task.shelf, _nodes(task)), traffic)
    reports = []
    for at in range(len(slot_ln)):
        objective, bound = float(objective_l[at] * scale_l[at]), float(bound_l[at] * scale_l[at])
        gap = (objective - bound) / objective
        reports.append(
            PlacedLayer(
                status="OPTIMAL" if gap <= OPTIMAL_GAP else "FEASIBLE",
                objective=objective,
                bound=bound,
                gap=gap,
                balancedness=float(balance_l[at]),
                binding=binding_of(task.mean_le[at], task.shelf, 2 if task.shelf.spread else 1),
                moves=None if moves_l is None else int(moves_l[at]),
                traffic=None if traffic is None else float(traffic[at]),
                traffic_bound=None if least is None else float(least[at]),
            )
        )
    return tuple(reports)


def _moves(task: Task, full_ln: Ints) -> tuple[Move, ...] | None:
    """Ordered moves of all layers from the current map."""
    if task.placing.current is None:
        return None
    lost = set(task.placing.dead)
    ranks = [rank for rank, count in enumerate(task.placing.slots_of_rank) for _ in range(count)]
    moves: list[Move] = []
    for layer, row in enumerate(task.placing.current):
        old = [-1 if ranks[slot] in lost else expert for slot, expert in enumerate(row)]
        moves += ordered_moves(layer, old, full_ln[layer].tolist(), ranks)
    return tuple(moves)


def _curve(task: Task, placed: Placed) -> tuple[CurvePoint, ...]:
    """Balance against moves, on the mixture of the windows; after a loss, moves beyond those of the repair."""
    before = np.array(task.placing.current)[:, task.slots]
    numbers = sorted(set(task.placing.curve))
    points = placed.stages
    if not points:
        before, _ = refill(task.mean_le, before, task.shelf)
        points = stages(task.mean_le, before, task.shelf, numbers, replace(task.effort, begun=time.monotonic()))
    experts = task.mean_le.shape[1]
    now, old = (home_lre(slots, task.shelf, experts) for slots in (placed.slot_ln, before))
    top_l, moves_l = busiest(task.mean_le, placed.slot_ln, task.shelf), (now & ~old).sum(axis=(1, 2))
    points = tuple(stage.with_map(placed.slot_ln, top_l, moves_l) for stage in points if stage.moves in numbers)
    return tuple(
        CurvePoint(
            moves=stage.moves,
            balancedness=float((1 / stage.busiest_l).mean()),
            bound=min(1.0, float((1 / stage.bound_l).mean())),
        )
        for stage in points
    )
