"""Weighted dispatch: the shares in which an expert's tokens go to its replicas, linear once the placement is fixed.

Shape suffixes: L layers, K windows, E logical experts, N slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ortools.linear_solver import pywraplp

from solver.errors import SolverError
from solver.place.robust import Aim
from solver.place.state import Floats, Ints, Shelf, counts_of

SLACK = 1e-4
"""How much of the optimum, relative, is given up to stay near the even split."""


@dataclass(frozen=True)
class Split:
    """Shares of every slot, and the proved least objective of any split of this placement, per layer."""

    share_ln: Floats
    optimum_l: Floats


def best_split(load_lke: Floats, slot_ln: Ints, shelf: Shelf, aim: Aim) -> Split:
    """Optimal fixed split of every layer; among splits that are as good, one near the even split.

    A quantile over windows is not linear: its split minimises the mean.
    """
    layers = [_layer(load_lke[at], slot_ln[at], shelf, aim) for at in range(len(slot_ln))]
    return Split(np.array([share for share, _ in layers]), np.array([optimum for _, optimum in layers]))


def _layer(load_ke: Floats, slot_n: Ints, shelf: Shelf, aim: Aim) -> tuple[Floats, float]:
    """Shares of one layer and the optimum of its linear program."""
    count_e = counts_of(slot_n[None, :], load_ke.shape[1])[0]
    even_n = 1 / count_e[slot_n]
    free = np.flatnonzero(count_e[slot_n] > 1)
    solver = pywraplp.Solver.CreateSolver("GLOP")
    share = {int(n): solver.NumVar(0.0, 1.0, f"share_{n}") for n in free}
    top = [solver.NumVar(0.0, solver.infinity(), f"top_{k}") for k in range(len(load_ke))]
    if aim.name == "worst":
        for k in range(1, len(top)):
            solver.Add(top[k] == top[0])
    for expert in np.flatnonzero(count_e > 1):
        solver.Add(solver.Sum([share[int(n)] for n in np.flatnonzero(slot_n == expert)]) == 1)
    rank_n = shelf.rank_n
    for k, load_e in enumerate(load_ke):
        fixed = np.bincount(rank_n, weights=np.where(count_e[slot_n] > 1, 0.0, load_e[slot_n]))
        for rank in range(shelf.num_ranks):
            mine = [int(n) for n in free if rank_n[n] == rank]
            terms = [float(load_e[slot_n[n]]) * share[n] for n in mine]
            solver.Add(solver.Sum(terms) + float(fixed[rank]) <= top[k])
    objective = solver.Sum([float(w) * t for w, t in zip(aim.weight_k, top, strict=True)])
    solver.Minimize(objective)
    if solver.Solve() != pywraplp.Solver.OPTIMAL:
        raise SolverError("the linear program of the split was not solved to optimality; use the even split")
    optimum = float(solver.Objective().Value())
    solver.Add(objective <= optimum * (1 + SLACK))
    away = []
    for n, variable in share.items():
        distance = solver.NumVar(0.0, 1.0, f"away_{n}")
        solver.Add(distance >= variable - float(even_n[n]))
        solver.Add(distance >= float(even_n[n]) - variable)
        away.append(distance)
    solver.Minimize(solver.Sum(away))
    solved = solver.Solve() == pywraplp.Solver.OPTIMAL
    result = even_n.copy()
    if solved:
        for n, variable in share.items():
            result[n] = max(0.0, variable.solution_value())
    result /= np.bincount(slot_n, weights=result, minlength=len(count_e))[slot_n]
    return result, optimum * (1 - 1e-9)


def split_busiest_lk(load_lke: Floats, slot_ln: Ints, share_ln: Floats, shelf: Shelf) -> Floats:
    """Busiest rank's load of every layer and window under a split."""
    layers, windows, _ = load_lke.shape
    index = np.broadcast_to(slot_ln[:, None, :], (layers, windows, slot_ln.shape[1]))
    loads = np.take_along_axis(load_lke, index, 2) * share_ln[:, None, :]
    top: Floats = np.add.reduceat(loads, shelf.start_r, axis=2).max(axis=2)
    return top
