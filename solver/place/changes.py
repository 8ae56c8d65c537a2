"""From a current placement: repair what a loss took, then change as much as is allowed, or as little as is needed.

Shape suffixes: L layers, N slots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from solver.errors import NoPlacementError
from solver.expertmap import MovedBytes, PlacedLayer
from solver.place import clock as time
from solver.place.exact import Rules, is_small
from solver.place.finish import SMALL_SECONDS
from solver.place.migrate import Budget, Stage, home_lre, migrate, stages, stay_in_place
from solver.place.repair import Fewest, refill
from solver.place.state import Floats, Ints
from solver.place.static import Effort
from solver.place.updates import Judged, Update, fewest_moves, least_moves, within_bytes
from solver.specs.moving import Moving
from solver.specs.placing import Placing

EXACT_SECONDS = 10.0
"""Most time of CP-SAT for the fewest moves of one small layer."""
MEETS = 1e-7
"""Relative rounding of an objective that meets its goal in billionths."""


@dataclass(frozen=True)
class Change:
    """An update: its placements, what they were allowed, the least moves of a repair, and the goal."""

    slot_ln: Ints
    budget: Budget
    fewest: Fewest
    goal_l: Floats | None = None
    least_l: Ints | None = None
    """No fewer moves reach the goal; -1 where none do."""
    stages: tuple[Stage, ...] = ()
    """Placements of the curve that was asked, of which this one is that of the allowed moves."""
    joint: bool = False
    """Whether layers share a limit: a bound under the moves of one layer is then none of the whole."""

    def rules(self, judged: Judged, layer: int) -> Rules:
        """Rules of one layer."""
        budget = self.budget
        home = home_lre(budget.current_ln[[layer]], judged.shelf, judged.load_lke.shape[2])[0]
        receive = None if budget.receive_lr is None else budget.receive_lr[layer]
        return Rules(judged.shelf, home, int(budget.moves_l[layer]), receive)


def change(placing: Placing, judged: Judged, before_ln: Ints, anew: Callable[[], Floats], effort: Effort) -> Change:
    """The current placement repaired and updated; `anew` gives the objectives of a placement made from scratch.

    Raises
    ------
    NoPlacementError
        No repair exists within the allowed moves or bytes, proved by counting.
    SpecError
        No repair was found within the bytes that a rank may receive.
    """
    moving, shelf = placing.moving, judged.shelf
    room_r = None if moving.receives is None else np.full(shelf.num_ranks, moving.receives, dtype=np.int64)
    start_ln, fewest = refill(judged.mean_le, before_ln, shelf, None if room_r is None else room_r.copy())
    repaired_ln = stay_in_place(before_ln, start_ln, shelf)
    if placing.max_moves is not None:
        fewest.require(placing.max_moves)
    _require_bytes(moving, int(fewest.moves_l.sum()))
    small = is_small(judged.load_lke.shape[2], shelf)
    if small:
        effort = replace(effort, seconds=min(effort.seconds, SMALL_SECONDS))
    budget = Budget(before_ln, _allowed_l(placing, judged, fewest))
    if moving.has_goal:
        goal_l = (1 + moving.within) * anew() if moving.within is not None else np.full(len(before_ln), 1.0)
        goal_l = goal_l if moving.goal is None else goal_l / moving.goal
        found = _fewest(judged, repaired_ln, replace(budget, moves_l=fewest.moves_l), goal_l, effort)
        slot_ln = stay_in_place(before_ln, found.slot_ln, shelf)
        return Change(slot_ln, found.budget, fewest, goal_l, found.fewest_l)
    if moving.limits_bytes:
        found = within_bytes(judged, repaired_ln, budget, (moving.moves, room_r), effort)
        joint = len(before_ln) > 1
        return Change(stay_in_place(before_ln, found.slot_ln, shelf), found.budget, fewest, joint=joint)
    curve: tuple[Stage, ...] = ()
    if placing.curve and not placing.dead:
        allowed = int(budget.moves_l[0])
        curve = stages(judged.mean_le, before_ln, shelf, sorted({*placing.curve, allowed}), effort)
        slot_ln = next(stage.slot_ln for stage in curve if stage.moves == allowed)
    else:
        slot_ln = migrate(judged.mean_le, repaired_ln, shelf, budget, effort)
    return Change(stay_in_place(before_ln, slot_ln, shelf), budget, fewest, stages=curve)


def _allowed_l(placing: Placing, judged: Judged, fewest: Fewest) -> Ints:
    """Most moves of every layer: as asked; after a loss the fewest that repair it; else as many as there are slots."""
    layers = len(judged.load_lke)
    if placing.max_moves is not None:
        return np.full(layers, placing.max_moves, dtype=np.int64)
    if placing.dead and not placing.moving.limits_bytes:
        return fewest.moves_l
    return np.full(layers, judged.shelf.num_slots, dtype=np.int64)


def _require_bytes(moving: Moving, least: int) -> None:
    """Raise :class:`NoPlacementError` where a repair needs more bytes than may be moved."""
    if moving.moves is not None and least > moving.moves:
        each = moving.expert_bytes or 1
        raise NoPlacementError(
            f"no placement exists: the repair loads at least {least} experts of {each:,} bytes, {least * each:,} bytes "
            f"in all, but --move-bytes allows {moving.move_bytes:,}"
        )


def _fewest(judged: Judged, start_ln: Ints, budget: Budget, goal_l: Floats, effort: Effort) -> Update:
    """Fewest moves by search, proved by CP-SAT where the layers are small; then the best balance with so many."""
    found = fewest_moves(judged, start_ln, budget, goal_l, replace(effort, begun=time.monotonic()))
    slot_ln, moves_l = found.slot_ln, found.budget.moves_l.copy()
    assert found.fewest_l is not None
    least_l = found.fewest_l.copy()
    if is_small(judged.load_lke.shape[2], judged.shelf):
        home_l = home_lre(budget.current_ln, judged.shelf, judged.load_lke.shape[2])
        missed_l = judged.value_l(slot_ln) > goal_l * (1 + MEETS)
        for layer in np.flatnonzero(((moves_l > least_l) | missed_l) & (least_l >= 0)):
            rules = Rules(judged.shelf, home_l[layer], judged.shelf.num_slots)
            goal = (judged.aim, float(goal_l[layer]))
            solved, bound = least_moves(judged.load_lke[layer], slot_ln[layer], rules, goal, EXACT_SECONDS)
            least_l[layer] = bound if bound < 0 else max(bound, least_l[layer])
            if judged.value_l(solved[None], np.array([layer]))[0] <= goal_l[layer] * (1 + MEETS):
                slot_ln[layer] = solved
                new = home_lre(solved[None], judged.shelf, judged.load_lke.shape[2])[0] & ~home_l[layer]
                moves_l[layer] = int(new.sum())
    else:
        left = Effort(max(0.0, effort.deadline - time.monotonic()), effort.seed, effort.gap)
        slot_ln = migrate(judged.mean_le, slot_ln, judged.shelf, replace(budget, moves_l=moves_l), left)
        worse = judged.value_l(slot_ln) > np.maximum(judged.value_l(found.slot_ln), 0.0)
        slot_ln[worse] = found.slot_ln[worse]
    return Update(slot_ln, replace(budget, moves_l=moves_l), least_l)


def moved_bytes(moving: Moving, move_ranks: list[int]) -> MovedBytes | None:
    """Bytes that an update moves, from the rank of every move; absent where the bytes of an expert are not known."""
    if moving.expert_bytes is None:
        return None
    most = max((move_ranks.count(rank) for rank in set(move_ranks)), default=0)
    return MovedBytes(
        expert_bytes=moving.expert_bytes, move_bytes=moving.move_bytes, receive_bytes=moving.receive_bytes,
        moved_bytes=len(move_ranks) * moving.expert_bytes, most_received_bytes=most * moving.expert_bytes,
    )  # fmt: skip


def with_goals(
    layers: tuple[PlacedLayer, ...], update: Change | None, plain_l: Floats | None, scale_l: Floats
) -> tuple[PlacedLayer, ...]:
    """Reports with the goal of the moves, and the objective before traffic was lowered, in the document's unit."""
    result = []
    for at, report in enumerate(layers):
        more: dict[str, object] = {}
        if plain_l is not None:
            more["plain_objective"] = float(plain_l[at] * scale_l[at])
        if update is not None and update.goal_l is not None and update.least_l is not None:
            more["moves_goal"] = float(update.goal_l[at] * scale_l[at])
            more["moves_bound"] = None if update.least_l[at] < 0 else int(update.least_l[at])
        result.append(report.model_copy(update=more))
    return tuple(result)
