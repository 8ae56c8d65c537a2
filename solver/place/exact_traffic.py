"""CP-SAT on small layers: the least traffic level by level, with all rules of the placement and limits on the loads.

Traffic is an integer here: copies in billionths; sends times the tokens, the share of a source and (for pairs) what
makes all chords whole.
Shape suffixes: E logical experts, R ranks, S sources, U units, T tokens, K experts of a token or windows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from ortools.sat.python import cp_model

from solver.place.exact import UNITS, Model, Rules
from solver.place.nearest import Level
from solver.place.sends import Copies, Counter, Pairs, Trace
from solver.place.state import Floats, Ints

MAX_CHORDS = 12
"""Most experts per token for which the chords of pair counts are made whole."""
MAX_TERMS = 12_000
"""Most terms of a level's traffic that a model is built for."""
MAX_TRAFFIC = 10**15
COPY_UNITS = 10**9
PAIR_UNITS = 10**8
"""Units of all pairs together where they are no whole numbers."""


@dataclass(frozen=True)
class LeastTraffic:
    """A placement with the least traffic found, and what is proved of every level (None: nothing)."""

    slot_n: Ints
    bounds: tuple[float | None, ...]
    proved: tuple[bool, ...]


def has_terms(counter: Counter, levels: Sequence[Level], experts: int) -> bool:
    """Whether the models of all levels are worth building."""
    if isinstance(counter, Pairs) and counter.top_k > MAX_CHORDS:
        return False
    for level in levels:
        seen = len(level.own_s) * level.units
        terms = experts
        if isinstance(counter, Trace):
            terms = len(np.unique(np.sort(counter.token_tk, axis=1), axis=0)) * counter.token_tk.shape[1]
        elif isinstance(counter, Pairs):
            terms = experts * experts // 2
        if seen * terms > MAX_TERMS:
            return False
    return True


def least_traffic(
    load_ke: Floats, hint_n: Ints, rules: Rules, limit_k: Floats, asked: tuple[Counter, Sequence[Level]], seconds: float
) -> LeastTraffic:
    """Least traffic of every level, each among the placements that are best at the levels above."""
    counter, levels = asked
    model = Model(load_ke, rules)
    slack = int(rules.shelf.slots_r.max())
    for top, limit in zip(model.top_k, limit_k, strict=True):
        model.model.add(top <= int(limit * UNITS) + slack)
    slot_n, bounds, proved = hint_n, list[float | None](), list[bool]()
    for level in levels:
        terms = _Terms(model, counter, level)
        model.model.clear_hints()  # type: ignore[no-untyped-call]
        model.hint(slot_n)
        traffic = model.model.new_int_var(0, MAX_TRAFFIC, f"traffic_{level.name}")
        model.model.add(traffic == terms.traffic)  # a variable: the solver's bound then has no offset
        model.model.minimize(traffic)
        status, found, bound = model.solve(seconds / len(levels))
        if found is None:
            break
        slot_n = found
        bounds.append(max(0.0, (bound - terms.slack) / terms.scale))
        proved.append(status == "OPTIMAL")
        if not proved[-1]:
            break
        model.model.add(traffic <= round(bound))
    missing = len(levels) - len(bounds)
    return LeastTraffic(slot_n, (*bounds, *[None] * missing), (*proved, *[False] * missing))


class _Terms:
    """Traffic of one level as a linear expression; over `scale` it is the counter's, up to `slack` of rounding."""

    def __init__(self, model: Model, counter: Counter, level: Level) -> None:
        self.model, self.level = model, level
        self.slack = 0.0
        shares = [Fraction(float(weight)).limit_denominator(10**5) for weight in level.weight_s]
        common = math.lcm(*(share.denominator for share in shares))
        self.share_s = [int(share * common) for share in shares]
        self.goal = [self._goals(source) for source in range(len(level.own_s))]
        if isinstance(counter, Trace):
            self.traffic = self._trace(counter)
            self.scale = float(common * len(counter.token_tk))
        elif isinstance(counter, Pairs):
            self.chords = math.lcm(*(j * (j + 1) for j in range(1, counter.top_k)))
            self.traffic, unit = self._pairs(counter)
            self.scale = common * unit * self.chords * counter.tokens
            self.slack = 0.0 if unit == 1.0 else float(common * self.chords * model.experts**2)
        else:
            assert isinstance(counter, Copies)
            self.traffic = self._copies([round(float(weight) * COPY_UNITS) for weight in counter.weight_e])
            self.scale = float(common * COPY_UNITS)
            self.slack = float(common * model.experts)

    def _goals(self, source: int) -> list[list[cp_model.IntVar]]:
        """Literals ``[expert][unit]``: the tokens of the source go to the unit for the expert."""
        model, level = self.model.model, self.level
        found = []
        for e in range(self.model.experts):
            goal = [model.new_bool_var(f"goal_{level.name}_{source}_{e}_{unit}") for unit in range(level.units)]
            model.add_exactly_one(goal)
            for at, unit in enumerate(level.order_su[source]):
                here = [self.model.x_re[r][e] for r in np.flatnonzero(level.unit_r == unit)]
                model.add_bool_or([*here, goal[unit].negated()])
                for farther in level.order_su[source][at + 1 :]:
                    for x in here:
                        model.add_implication(x, goal[farther].negated())
            found.append(goal)
        return found

    def _away(self, source: int) -> list[int]:
        return [unit for unit in range(self.level.units) if unit != self.level.own_s[source]]

    def _copies(self, weights: Sequence[int]) -> cp_model.LinearExpr:
        return cp_model.LinearExpr.sum(
            [
                share * weights[e] * (1 - goal[int(own)])
                for share, own, goals in zip(self.share_s, self.level.own_s, self.goal, strict=True)
                for e, goal in enumerate(goals)
            ]
        )

    def _trace(self, counter: Trace) -> cp_model.LinearExpr:
        sets, times = np.unique(np.sort(counter.token_tk, axis=1), axis=0, return_counts=True)
        terms = []
        for source, share in enumerate(self.share_s):
            for at, chosen in enumerate(sets):
                for unit in self._away(source):
                    sent = self.model.model.new_bool_var(f"sent_{self.level.name}_{source}_{at}_{unit}")
                    for e in chosen:
                        self.model.model.add_implication(self.goal[source][int(e)][unit], sent)
                    terms.append(share * int(times[at]) * sent)
        return cp_model.LinearExpr.sum(terms)

    def _pairs(self, counter: Pairs) -> tuple[cp_model.LinearExpr, float]:
        """What every expert pays away from home, by all chords; a pair counts where both go to the same unit."""
        whole = bool((counter.pair_ef == np.floor(counter.pair_ef)).all())
        unit = 1.0 if whole else PAIR_UNITS / float(counter.pair_ef.sum())
        pair_ef = np.round(counter.pair_ef * unit).astype(np.int64)
        load_e = pair_ef.sum(axis=1) // (counter.top_k - 1) if whole else np.floor(counter.load_e * unit).astype(int)
        model, terms = self.model.model, []
        for source, share in enumerate(self.share_s):
            both_ef = self._both(source, pair_ef)
            own = int(self.level.own_s[source])
            for e in range(self.model.experts):
                goal = self.goal[source][e]
                most = int(load_e[e]) * self.chords
                pays = model.new_int_var(0, most, f"pays_{self.level.name}_{source}_{e}")
                model.add(pays * counter.top_k >= most * (1 - goal[own]))
                met = [int(pair_ef[e, f]) * both_ef[min(e, f), max(e, f)] for f in np.flatnonzero(pair_ef[e]).tolist()]
                saved = cp_model.LinearExpr.sum(met)
                for j in range(1, counter.top_k):
                    part = self.chords // (j * (j + 1))
                    model.add(pays >= part * (2 * j * int(load_e[e]) * (1 - goal[own]) - saved))
                terms.append(share * pays)
        return cp_model.LinearExpr.sum(terms), unit

    def _both(self, source: int, pair_ef: Ints) -> dict[tuple[int, int], cp_model.LinearExpr]:
        """Whether two experts are reached in the same unit, away from home."""
        found: dict[tuple[int, int], cp_model.LinearExpr] = {}
        for e, f in np.argwhere(np.triu(pair_ef, 1) > 0):
            parts = []
            for away in self._away(source):
                both = self.model.model.new_bool_var(f"both_{self.level.name}_{source}_{away}_{e}_{f}")
                self.model.model.add_implication(both, self.goal[source][int(e)][away])
                self.model.model.add_implication(both, self.goal[source][int(f)][away])
                parts.append(both)
            found[int(e), int(f)] = cp_model.LinearExpr.sum(parts)
        return found
