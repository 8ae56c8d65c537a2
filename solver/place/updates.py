"""Updates of a running map: as few moves as a goal needs, or what is best within bytes over all layers.

Shape suffixes: L layers, K windows, E logical experts, R ranks, N slots, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from ortools.sat.python import cp_model

from solver.place import clock as time
from solver.place.exact import UNITS, Model, Rules, whole_weights
from solver.place.migrate import Budget, home_lre, migrate, moves_bound_l
from solver.place.robust import Aim
from solver.place.state import Bools, Floats, Ints, Shelf, State
from solver.place.static import Effort

STEPS = 12
"""Parts of the time that one number of moves gets."""
LADDER = (1, 2, 4, 8, 16, 32, 64, 128)
"""Moves per layer among which an update in bytes chooses."""
CHOICE_SECONDS = 5.0
WITHIN = 1e-9
"""Relative rounding of an objective that meets its goal."""


@dataclass(frozen=True)
class Update:
    """Placements, the moves they were allowed, and the fewest that reach the goal (-1: none does, proved)."""

    slot_ln: Ints
    budget: Budget
    fewest_l: Ints | None = None


@dataclass(frozen=True)
class Judged:
    """Windows and aim by which a placement's objective is computed."""

    load_lke: Floats
    aim: Aim
    shelf: Shelf

    def value_l(self, slot_ln: Ints, layers: Ints | None = None) -> Floats:
        """Objective of some layers."""
        load = self.load_lke if layers is None else self.load_lke[layers]
        state = State(self.shelf, load, np.zeros_like(load[:, 0]), slot_ln)
        return self.aim.value_l(state.rank_load_lkr().max(axis=2))

    @property
    def mean_le(self) -> Floats:
        """Weighted mixture of the windows."""
        mixture: Floats = np.average(self.load_lke, axis=1, weights=self.aim.weight_k)
        return mixture


def fewest_moves(judged: Judged, start_ln: Ints, budget: Budget, goal_l: Floats, effort: Effort) -> Update:
    """Fewest moves found with which every layer reaches its goal, from `start_ln` (the repaired current map).

    `budget.moves_l` are the fewest that repair the map; more are tried, twice as many each time, then halved.
    """
    most = judged.shelf.num_slots
    mean_le = judged.mean_le
    least_l = np.maximum(_least_l(mean_le, budget, judged.shelf, goal_l, most), budget.moves_l)
    best_ln, share = start_ln.copy(), effort.seconds / STEPS
    tried_l = np.maximum(np.where(least_l > most, most, least_l), 1)
    reached_l = judged.value_l(best_ln) <= goal_l * (1 + WITHIN)
    failed_l = np.maximum(least_l - 1, budget.moves_l - 1)
    used_l = _moves_l(best_ln, budget, judged)

    def attempt(part: Ints, moves_l: Ints) -> Bools:
        limits = Budget(budget.current_ln[part], moves_l, goal_l=goal_l[part])
        found = migrate(mean_le[part], start_ln[part], judged.shelf, limits, Effort(share, effort.seed, effort.gap))
        value, old = judged.value_l(found, part), judged.value_l(best_ln[part], part)
        good: Bools = value <= goal_l[part] * (1 + WITHIN)
        better = good | (~reached_l[part] & (value < old))
        best_ln[part[better]] = found[better]
        used_l[part[better]] = _moves_l(found, limits, judged)[better]
        return good

    while not reached_l.all() and time.monotonic() < effort.deadline:
        part = np.flatnonzero(~reached_l)
        good = attempt(part, tried_l[part])
        reached_l[part] = good
        failed_l[part[~good]] = tried_l[part[~good]]
        if (tried_l[part[~good]] >= most).all():
            break
        tried_l[part[~good]] = np.minimum(2 * tried_l[part[~good]], most)
    while time.monotonic() < effort.deadline:
        part = np.flatnonzero(reached_l & (used_l - failed_l > 1))
        if not len(part):
            break
        middle = (used_l[part] + failed_l[part]) // 2
        good = attempt(part, middle)
        failed_l[part[~good]] = middle[~good]
    return Update(best_ln, replace(budget, moves_l=used_l), np.where(least_l > most, -1, least_l))


def _moves_l(slot_ln: Ints, budget: Budget, judged: Judged) -> Ints:
    experts = judged.load_lke.shape[2]
    now, old = (home_lre(slots, judged.shelf, experts) for slots in (slot_ln, budget.current_ln))
    moves: Ints = (now & ~old).sum(axis=(1, 2))
    return moves


def _least_l(load_le: Floats, budget: Budget, shelf: Shelf, goal_l: Floats, most: int) -> Ints:
    """Fewest moves that the bound on the curve lets reach the goal; one more than `most` where none do.

    The mixture's busiest rank is no fuller than the windows' mean or worst: what it cannot reach, they cannot.
    """
    layers = len(load_le)
    if (budget.current_ln < 0).any():
        return np.zeros(layers, dtype=np.int64)
    low_l, high_l = np.full(layers, -1), np.full(layers, most + 1)
    while (high_l - low_l > 1).any():
        for layer in np.flatnonzero(high_l - low_l > 1):
            middle = int(low_l[layer] + high_l[layer]) // 2
            bound = moves_bound_l(load_le[[layer]], budget.current_ln[[layer]], shelf, middle)[0]
            if bound <= goal_l[layer] * (1 + WITHIN):
                high_l[layer] = middle
            else:
                low_l[layer] = middle
    return high_l.astype(np.int64)


def least_moves(
    load_ke: Floats, slot_n: Ints, rules: Rules, goal: tuple[Aim, float], seconds: float
) -> tuple[Ints, int]:
    """Fewest moves of a small layer that reach an objective, by CP-SAT: slots, and a lower bound (-1: none do)."""
    aim, value = goal
    model = Model(load_ke, rules)
    slack = int(rules.shelf.slots_r.max())
    if aim.name == "worst":
        for top in model.top_k:
            model.model.add(top <= int(value * (1 + WITHIN) * UNITS) + slack)
    else:
        parts = whole_weights(aim.weight_k)
        weights = np.floor(aim.weight_k * parts + 1e-6).astype(int)
        whole = sum(int(w) * top for w, top in zip(weights, model.top_k, strict=True))
        model.model.add(whole <= int(value * (1 + WITHIN) * UNITS * parts) + slack * parts)
    model.model.minimize(model.moves)
    model.hint(slot_n)
    status, found, bound = model.solve(seconds)
    if status == "INFEASIBLE":
        return slot_n, -1
    return (slot_n, 0) if found is None else (found, int(bound))


def within_bytes(
    judged: Judged, start_ln: Ints, budget: Budget, whole: tuple[int | None, Ints | None], effort: Effort
) -> Update:
    """Best found update with at most so many moves over all layers, and so many onto every rank.

    Every layer is migrated with several numbers of moves; CP-SAT chooses one of them per layer. `budget.moves_l` are
    the most moves per layer; `start_ln` keeps all limits.
    """
    total, receive_r = whole
    layers = len(start_ln)
    most_l = budget.moves_l if total is None else np.minimum(budget.moves_l, total)
    start_l = _moves_l(start_ln, budget, judged)
    caps = None if receive_r is None else np.tile(receive_r, (layers, 1))
    steps = [step for step in LADDER if step < int(most_l.max())] + [int(most_l.max())]
    if layers == 1:
        steps = steps[-1:]
    candidates, share = [start_ln], effort.seconds / max(1, len(steps))
    for step in steps:
        moves_l = np.maximum(np.minimum(most_l, step), start_l)
        limits = replace(budget, moves_l=moves_l, receive_lr=caps)
        candidates.append(
            migrate(judged.mean_le, candidates[-1], judged.shelf, limits, Effort(share, effort.seed, effort.gap))
        )
    new_clr = np.stack([_new_lr(slots, budget, judged) for slots in candidates])
    value_cl = np.stack([judged.value_l(slots) for slots in candidates])
    choice_l = _choose(value_cl, new_clr, total, receive_r)
    slot_ln = np.stack([candidates[choice][layer] for layer, choice in enumerate(choice_l)])
    used_lr = np.stack([new_clr[choice, layer] for layer, choice in enumerate(choice_l)])
    if layers == 1:
        return Update(slot_ln, replace(budget, moves_l=most_l, receive_lr=caps))
    return Update(slot_ln, replace(budget, moves_l=used_lr.sum(axis=1), receive_lr=used_lr))


def _new_lr(slot_ln: Ints, budget: Budget, judged: Judged) -> Ints:
    """Replicas that every rank loads."""
    experts = judged.load_lke.shape[2]
    now, old = (home_lre(slots, judged.shelf, experts) for slots in (slot_ln, budget.current_ln))
    new: Ints = (now & ~old).sum(axis=2)
    return new


def _choose(value_cl: Floats, new_clr: Ints, total: int | None, receive_r: Ints | None) -> list[int]:
    """Candidate of every layer with the least sum of objectives within the limits; the first one of all is within."""
    model = cp_model.CpModel()
    count, layers = value_cl.shape
    pick = [[model.new_bool_var(f"pick_{layer}_{c}") for c in range(count)] for layer in range(layers)]
    for layer in range(layers):
        model.add_exactly_one(pick[layer])
        model.add_hint(pick[layer][0], 1)
    moves_cl = new_clr.sum(axis=2)
    every = [(c, layer) for layer in range(layers) for c in range(count)]
    if total is not None:
        model.add(sum(int(moves_cl[c, layer]) * pick[layer][c] for c, layer in every) <= total)
    if receive_r is not None:
        for rank, most in enumerate(receive_r):
            model.add(sum(int(new_clr[c, layer, rank]) * pick[layer][c] for c, layer in every) <= int(most))
    model.minimize(sum(round(float(value_cl[c, layer]) * 10**6) * pick[layer][c] for c, layer in every))
    solver = cp_model.CpSolver()
    solver.parameters.catch_sigint_signal = False  # Ctrl-C is for the clock of this room
    solver.parameters.max_time_in_seconds = CHOICE_SECONDS
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    if solver.status_name(solver.solve(model)) not in ("OPTIMAL", "FEASIBLE"):
        return [0] * layers
    return [next(c for c in range(count) if solver.boolean_value(row[c])) for row in pick]
