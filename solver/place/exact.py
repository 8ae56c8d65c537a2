"""CP-SAT on small layers, all rules at once: windows, survival, moves, traffic. What is found is optimal or bounded.

Loads are integers in billionths of the mean rank load, rounded up. Shape suffixes: K windows, E logical experts,
R ranks, N slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ortools.sat.python import cp_model

from solver.place.robust import Aim
from solver.place.state import Bools, Floats, Ints, Shelf

UNITS = 10**9
"""One mean rank load."""
WEIGHTS = 10**4
"""The weights of all windows together, where they are no simple fractions."""
MAX_EXACT_VARIABLES = 700
"""Largest model (experts x ranks x replica counts) that is built."""
MAX_SECONDS = 10.0


@dataclass(frozen=True)
class Pins:
    """Groups of experts that stay on one node each, equally many on every node."""

    group_e: Ints
    node_r: Ints


@dataclass(frozen=True)
class Rules:
    """What a placement of one layer must keep: moves counted from `home_re` (absent: free), groups pinned to nodes."""

    shelf: Shelf
    home_re: Bools | None = None
    max_moves: int = 0
    receive_r: Ints | None = None
    """Most replicas that a rank may load."""
    pins: Pins | None = None

    @property
    def least(self) -> int:
        """Fewest replicas of an expert."""
        return 2 if self.shelf.spread else 1


@dataclass(frozen=True)
class Solved:
    """Slots of a layer and the proved lower bound of what was minimised; infinite where nothing was proved."""

    slot_n: Ints
    bound: float


def is_small(num_experts: int, shelf: Shelf) -> bool:
    """Whether the model of a layer is worth building."""
    most = min(shelf.num_ranks, shelf.num_slots - num_experts + 1)
    return num_experts * shelf.num_ranks * most <= MAX_EXACT_VARIABLES


class Model:
    """Variables and rules of one layer; `x_re[r][e]` says that rank r holds expert e."""

    def __init__(self, load_ke: Floats, rules: Rules) -> None:
        self.load_ke, self.rules, self.model = load_ke, rules, cp_model.CpModel()
        shelf, experts = rules.shelf, load_ke.shape[1]
        self.ranks, self.experts = shelf.num_ranks, experts
        most = min(self.ranks, shelf.num_slots - rules.least * (experts - 1))
        model = self.model
        self.x_re = [[model.new_bool_var(f"x_{r}_{e}") for e in range(experts)] for r in range(self.ranks)]
        self.z_rec: list[list[list[tuple[int, cp_model.IntVar]]]] = [[[] for _ in range(experts)] for _ in self.x_re]
        for e in range(experts):
            counts = {c: model.new_bool_var(f"count_{e}_{c}") for c in range(rules.least, most + 1)}
            model.add_exactly_one(counts.values())
            model.add(sum(row[e] for row in self.x_re) == sum(c * lit for c, lit in counts.items()))
            for r in range(self.ranks):
                for c, lit in counts.items():
                    part = model.new_bool_var(f"z_{r}_{e}_{c}")
                    model.add_implication(part, lit)
                    self.z_rec[r][e].append((c, part))
                model.add(sum(part for _, part in self.z_rec[r][e]) == self.x_re[r][e])
        for r in range(self.ranks):
            model.add(sum(self.x_re[r]) == int(shelf.slots_r[r]))
        if shelf.spread:
            for unit in range(int(shelf.domain_r.max()) + 1):
                outside = np.flatnonzero(shelf.domain_r != unit)
                for e in range(experts):
                    model.add_at_least_one(self.x_re[r][e] for r in outside)
        if rules.home_re is not None:
            new_r = [[self.x_re[r][e] for e in range(experts) if not rules.home_re[r, e]] for r in range(self.ranks)]
            self.moves = sum(x for new in new_r for x in new)
            model.add(self.moves <= rules.max_moves)
            if rules.receive_r is not None:
                for new, most_new in zip(new_r, rules.receive_r, strict=True):
                    model.add(sum(new) <= int(most_new))
        if rules.pins is not None:
            self._pin(rules.pins)
        self.top_k = [model.new_int_var(0, UNITS * self.ranks, f"top_{k}") for k in range(len(load_ke))]
        for k, load_e in enumerate(load_ke):
            for r in range(self.ranks):
                terms = [
                    -(-round(load_e[e] * UNITS) // c) * part for e in range(experts) for c, part in self.z_rec[r][e]
                ]
                model.add(sum(terms) <= self.top_k[k])

    def _pin(self, pins: Pins) -> None:
        """Every group has one node, every node equally many groups, and ranks hold experts of their node's groups."""
        groups, nodes = int(pins.group_e.max()) + 1, int(pins.node_r.max()) + 1
        on_gn = [[self.model.new_bool_var(f"on_{g}_{n}") for n in range(nodes)] for g in range(groups)]
        for on_n in on_gn:
            self.model.add_exactly_one(on_n)
        for node in range(nodes):
            self.model.add(sum(on_n[node] for on_n in on_gn) == groups // nodes)
        for rank, row in enumerate(self.x_re):
            for expert, x in enumerate(row):
                self.model.add_implication(x, on_gn[int(pins.group_e[expert])][int(pins.node_r[rank])])

    def hint(self, slot_n: Ints) -> None:
        """Start from a placement."""
        rank_n = self.rules.shelf.rank_n
        held = {(int(r), int(e)) for r, e in zip(rank_n, slot_n, strict=True)}
        for r, row in enumerate(self.x_re):
            for e, x in enumerate(row):
                self.model.add_hint(x, int((r, e) in held))

    def solve(self, seconds: float) -> tuple[str, Ints | None, float]:
        """(Status, slots, proved bound of the objective)."""
        solver = cp_model.CpSolver()
        solver.parameters.max_time_in_seconds = min(max(seconds, 0.01), MAX_SECONDS)
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = 0
        solver.parameters.catch_sigint_signal = False  # Ctrl-C is for the clock of this room
        status = solver.status_name(solver.solve(self.model))
        if status not in ("OPTIMAL", "FEASIBLE"):
            return status, None, float("-inf")
        held = [[e for e in range(self.experts) if solver.boolean_value(row[e])] for row in self.x_re]
        slots = np.array([e for rank in held for e in rank], dtype=np.int64)
        return status, slots, float(solver.response_proto.inner_objective_lower_bound)


def least_load(load_ke: Floats, slot_n: Ints, rules: Rules, aim: Aim, seconds: float) -> Solved:
    """Least aim over the windows (mean or worst) of one layer, from a placement as hint."""
    model = Model(load_ke, rules)
    if aim.name == "worst":
        worst = model.model.new_int_var(0, UNITS * model.ranks, "worst")
        for top in model.top_k:
            model.model.add(top <= worst)
        model.model.minimize(worst)
        scale = UNITS
    else:
        parts = whole_weights(aim.weight_k)
        weights = np.floor(aim.weight_k * parts + 1e-6).astype(int)
        model.model.minimize(sum(int(w) * top for w, top in zip(weights, model.top_k, strict=True)))
        scale = UNITS * parts
    model.hint(slot_n)
    status, slots, bound = model.solve(seconds)
    # Every share was rounded up, by less than a unit; weights were rounded down.
    proved = bound / scale - int(rules.shelf.slots_r.max()) / UNITS
    return Solved(slot_n if slots is None else slots, proved if status != "UNKNOWN" else float("-inf"))


def whole_weights(weight_k: Floats) -> int:
    """Smallest number of parts that makes all weights whole; else :data:`WEIGHTS`, and weights are rounded down."""
    for parts in range(1, 1001):
        if np.abs(weight_k * parts - np.round(weight_k * parts)).max() < 1e-9:
            return parts
    return WEIGHTS
