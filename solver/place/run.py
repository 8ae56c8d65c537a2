"""``solver place``: from load windows to a placement document, by the parts of this room.

Shape suffixes: L layers, K windows, E logical experts, N slots.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np

from solver.expertmap import CurvePoint, ExpertPlacement, Move, PlacedLayer, WindowReport
from solver.place import clock
from solver.place.advice import advise
from solver.place.bounds import binding_of, layer_bound
from solver.place.changes import Change, change, moved_bytes, with_goals
from solver.place.dispatch import dispatch_bound
from solver.place.exact import Pins, Rules, is_small, least_load
from solver.place.finish import dispatch_parallel, place_parallel, robust_parallel
from solver.place.groups import pinned_instead, pins_of, place_pinned, require_slots
from solver.place.migrate import home_lre, ordered_moves, stages, stay_in_place
from solver.place.repair import refill, require_feasible
from solver.place.robust import Aim
from solver.place.split import best_split, split_busiest_lk
from solver.place.state import Floats, Ints, Shelf, State
from solver.place.static import Effort, busiest
from solver.place.topology import Ground, reroute_parallel, wires, with_levels
from solver.place.traffic import traffic_bound_l, traffic_l
from solver.place.updates import Judged
from solver.place.worth import LayerTime, balance_worth, timed, worth_said
from solver.specs.placing import Placing
from solver.specs.windows import LoadWindow

OPTIMAL_GAP = 1e-6
"""Relative gap below which a layer is called OPTIMAL: proofs round to billionths of a layer's load."""
PLACE_SHARE = 0.4
"""Share of the search's time before traffic is lowered, where that is asked for."""
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
        placing.topology.require_pins(placing.nodes, placing.racks, placing.survive)
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

    @property
    def judged(self) -> Judged:
        """What the objective depends on beside the placement."""
        return Judged(self.load_lke, self.aim, self.shelf)

    @property
    def ground(self) -> Ground:
        """What the traffic depends on beside the placement."""
        return Ground.of(self.placing, self.load_lke, self.mean_le, self.shelf)

    @property
    def aims_at_split(self) -> bool:
        """Whether the placement is searched for the splits that it allows: where nothing else ties it down."""
        free = self.placing.current is None and self.placing.traffic_tolerance is None
        return self.placing.weighted and free and not self.placing.topology.pin_groups

    @property
    def pins(self) -> Pins | None:
        """Groups that must stay on one node."""
        if not self.placing.topology.pin_groups:
            return None
        return pins_of(self.load_lke.shape[2], self.placing.topology.groups, _nodes(self))


def _renumber(values: list[int]) -> tuple[int, ...]:
    order = {value: at for at, value in enumerate(sorted(set(values)))}
    return tuple(order[value] for value in values)


@dataclass(frozen=True)
class Placed:
    """Slots of the living ranks, the objective's bound per layer, the split, the update, and the traffic lowered."""

    slot_ln: Ints
    bound_l: Floats
    share_ln: Floats | None = None
    change: Change | None = None
    plain_l: Floats | None = None
    """Objective before the traffic was lowered."""
    traffic: dict[int, tuple[float | None, ...]] = field(default_factory=dict)
    """Proved bounds of the traffic of a layer's levels."""


def run_place(
    placing: Placing, windows: tuple[LoadWindow, ...], effort: Effort, time_ns: LayerTime | None = None
) -> ExpertPlacement:
    """Answer of ``solver place``; with `time_ns` what balance is worth is priced, too.

    Raises
    ------
    SpecError
        The question makes no sense.
    NoPlacementError
        No placement exists; the sentence proves it by counting.
    """
    task = Task.of(placing, windows, replace(effort, seconds=SEARCH_SHARE * effort.seconds))
    effort = task.effort
    held_out = len(windows) > 1 and placing.current is None and task.pins is None
    main = replace(effort, seconds=effort.seconds * (1 - HELD_OUT_SHARE)) if held_out else effort
    effort.enter("placing", len(task.load_lke))
    placed = _place(replace(task, effort=main))
    held = _held_out(task) if held_out and not clock.stopped() else {}
    return _document(task, placed, held, time_ns)


def _place(task: Task) -> Placed:
    """The placement: from scratch or from the current one, then traffic, then the split."""
    placing, effort = task.placing, task.effort
    lowers = placing.traffic_tolerance is not None and bool(task.ground.levels)
    if lowers:
        task = replace(task, effort=replace(effort, seconds=PLACE_SHARE * effort.seconds))
    placed = _from_current(task) if placing.current is not None else _anew(task)
    if is_small(task.load_lke.shape[2], task.shelf) and task.aim.name != "quantile":
        placed = _close(task, placed)
    if lowers:
        placed = _less_traffic(task, placed, effort.deadline)
    return _split(task, placed) if placing.weighted else placed


def _split(task: Task, placed: Placed) -> Placed:
    """The placement that allows the best splits, where nothing else was asked of it; then the split."""
    load_lke, shelf, aim, slot_ln = task.load_lke, task.shelf, task.aim, placed.slot_ln
    split = best_split(load_lke, slot_ln, shelf, aim)
    share_ln = split.share_ln
    if task.aims_at_split:
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
    """Effort for the even split: half of the time where a placement for the best splits follows."""
    return replace(task.effort, seconds=task.effort.seconds / 2) if task.aims_at_split else task.effort


def _anew(task: Task) -> Placed:
    """A placement from scratch."""
    if task.pins is not None:
        require_slots(task.pins, task.shelf)
        pinned = place_pinned(task.load_lke, task.shelf, task.pins, task.aim, task.effort)
        return Placed(pinned.slot_ln, np.maximum(pinned.bound_l, place_bound_l(task)))
    if len(task.windows) == 1:
        found = place_parallel(task.load_lke[:, 0], task.shelf, _before_split(task))
        return Placed(found.slot_ln, found.bound_l)
    robust = robust_parallel(task.load_lke, task.shelf, task.aim, _before_split(task))
    return Placed(robust.slot_ln, robust.bound_l)


def _close(task: Task, placed: Placed) -> Placed:
    """CP-SAT on the layers whose bound is not met, in equal parts of the time that is left."""
    slot_ln, bound_l = placed.slot_ln.copy(), placed.bound_l.copy()
    load_lke, shelf = task.load_lke, task.shelf
    state = State(shelf, load_lke, np.zeros_like(task.mean_le), slot_ln)
    value_l = task.aim.value_l(state.rank_load_lkr().max(axis=2))
    open_l = np.flatnonzero(value_l > bound_l * (1 + OPTIMAL_GAP))
    for at, layer in enumerate(open_l):
        if clock.stopped():
            break
        left = (task.effort.deadline - time.monotonic()) / (len(open_l) - at)
        rules = _rules(task, int(layer), placed.change)
        solved = least_load(load_lke[layer], slot_ln[layer], rules, task.aim, left)
        part = State(shelf, load_lke[[layer]], np.zeros_like(task.mean_le[[layer]]), solved.slot_n[None])
        value = float(task.aim.value_l(part.rank_load_lkr().max(axis=2))[0])
        if value <= value_l[layer]:
            slot_ln[layer], value_l[layer] = solved.slot_n, value
        if placed.change is None or not placed.change.joint:
            bound_l[layer] = min(max(bound_l[layer], solved.bound), value_l[layer])
    if task.placing.current is not None:
        slot_ln = stay_in_place(np.array(task.placing.current)[:, task.slots], slot_ln, shelf)
    return replace(placed, slot_ln=slot_ln, bound_l=bound_l)


def _rules(task: Task, layer: int, update: Change | None) -> Rules:
    """Rules of one layer for CP-SAT."""
    return Rules(task.shelf, pins=task.pins) if update is None else update.rules(task.judged, layer)


def _less_traffic(task: Task, placed: Placed, deadline: float) -> Placed:
    """The traffic lowered within the tolerance."""
    tolerance = task.placing.traffic_tolerance or 0.0
    plain_l = task.judged.value_l(placed.slot_ln)
    rules = [_rules(task, layer, placed.change) for layer in range(len(plain_l))]
    seconds = max(0.0, deadline - time.monotonic())
    effort = replace(task.effort, seconds=seconds, begun=time.monotonic())
    lowered = reroute_parallel(task.ground, placed.slot_ln, tolerance, rules, effort)
    slot_ln = lowered.slot_ln
    if task.placing.current is not None:
        slot_ln = stay_in_place(np.array(task.placing.current)[:, task.slots], slot_ln, task.shelf)
    return replace(placed, slot_ln=slot_ln, plain_l=plain_l, traffic=lowered.bounds)


def _split_bound_l(task: Task) -> Floats:
    """Lower bound under any split."""
    least = 2 if task.shelf.spread else 1
    bound_lk = [[dispatch_bound(load_e, task.shelf, least) for load_e in load_ke] for load_ke in task.load_lke]
    return task.aim.value_l(np.maximum(bound_lk, 1.0)) * (1 - 1e-9)


def _nodes(task: Task) -> Ints:
    """Node of every living rank, numbered without gaps."""
    domain = task.placing.domain_of_rank
    return np.array(_renumber([domain[rank] for rank in task.placing.alive]))


def _from_current(task: Task) -> Placed:
    """Repair what a loss took, then improve within the allowed moves."""
    before = np.array(task.placing.current)[:, task.slots]

    def anew() -> Floats:
        half = replace(task, effort=replace(task.effort, seconds=task.effort.seconds / 2))
        scratch = _anew(half)
        free = replace(half, placing=replace(task.placing, current=None))
        if is_small(task.load_lke.shape[2], task.shelf):
            scratch = _close(free, scratch)
        return task.judged.value_l(scratch.slot_ln)

    update = change(task.placing, task.judged, before, anew, task.effort)
    return Placed(update.slot_ln, place_bound_l(task), change=update)


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
        own = Effort(0.8 * seconds, task.effort.seed, workers=task.effort.workers, engine=task.effort.engine)
        effort = replace(own, watch=task.effort.watch)
        if task.aims_at_split:
            effort = replace(effort, seconds=effort.seconds / 2)
        effort.enter(f"without window {task.windows[out].name}", len(task.load_lke))
        seen = task.load_lke[:, keep]
        slot_ln = robust_parallel(seen, task.shelf, aim, effort).slot_ln
        if task.aims_at_split:
            slot_ln = dispatch_parallel(seen, slot_ln, task.shelf, aim, replace(effort, begun=time.monotonic()))
        if clock.stopped():
            break
        unseen = task.load_lke[:, [out]]
        even = State(task.shelf, unseen, np.zeros_like(unseen[:, 0]), slot_ln).rank_load_lkr().max(axis=2)
        again = best_split(unseen, slot_ln, task.shelf, Aim(np.ones(1)))
        split = split_busiest_lk(unseen, slot_ln, again.share_ln, task.shelf)
        result[out] = HeldOut(float((1 / even).mean()), float((1 / split).mean()))
    return result


def _document(task: Task, placed: Placed, held: dict[int, HeldOut], time_ns: LayerTime | None) -> ExpertPlacement:
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
    layers = with_levels(task.ground, slot_ln, placed.traffic, layers)
    layers = with_goals(layers, placed.change, placed.plain_l, scale_l)
    full = np.full((len(slot_ln), sum(placing.slots_of_rank)), -1, dtype=np.int64)
    full[:, task.slots] = slot_ln
    split = None
    if share_ln is not None:
        shares = np.zeros(full.shape)
        shares[:, task.slots] = share_ln
        split = tuple(tuple(row) for row in shares.tolist())
    moves = _moves(task, full)
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
        fewest_moves=int(placed.change.fewest.moves_l.sum()) if placed.change is not None and placing.dead else None,
        moves=moves,
        moved_bytes=None if moves is None else moved_bytes(placing.moving, [move.rank for move in moves]),
        moves_for=placing.moving.asked,
        wires=wires(placing, task.ground),
        grouping=pinned_instead(placing, task.ground, task.aim, task.effort),
        curve=_curve(task, placed) if placing.curve else None,
        seed=task.effort.seed,
        wall_s=time.monotonic() - task.effort.begun,
    )
    said, worth = advise(document), None
    if placing.tokens_per_step is not None:
        worth = balance_worth(document, task.load_lke, placing.tokens_per_step, placing.top_k)
        worth = timed(worth, document, time_ns)
        said += worth_said(document, worth)
    return document.model_copy(update={"advice": said, "worth": worth, "interrupted": clock.stopped()})


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
    points = () if placed.change is None else placed.change.stages
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
