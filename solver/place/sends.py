"""How much a layer's tokens travel between units, counted as engines send, and the least that any placement has.

Copies: the share of token copies (one per chosen expert) that leave their unit. Sends: the further units that a token
is sent to, on average; a token goes to a unit once, however many of its experts are there. Sends are exact for a
trace. Pair counts do not tell them, but their least and their most. Shape suffixes: T tokens, E logical experts,
K experts of a token, S sources, U units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from solver.place.nearest import Level
from solver.place.state import Bools, Floats, Ints, Shelf
from solver.specs.coactivation import CoActivation

WORD = 60
"""Units that one machine word tells apart."""
SEARCHED_TOKENS = 4096
"""Tokens of a trace that the search looks at; what it finds is judged on all of them."""


class Counter(Protocol):
    """One layer's traffic as a function of where the tokens of every source go, ``goal_se``."""

    def total(self, goal_se: Ints, level: Level) -> float:
        """Traffic."""

    def change(self, goal_se: Ints, new_se: Ints, experts: Sequence[int], level: Level) -> float:
        """What is added to the traffic when the goals of some experts, and only theirs, change."""

    def cost_seu(self, goal_se: Ints, level: Level) -> Floats:
        """What an expert costs if the source's tokens go to a unit for it, the others as they are; 0 at home."""

    def least_e(self, companions: int) -> Floats:
        """Least cost of an expert that is not at home, with so many other experts in its unit."""


@dataclass(frozen=True)
class Copies:
    """Share of the token copies; `weight_e` sums to 1."""

    weight_e: Floats

    def total(self, goal_se: Ints, level: Level) -> float:
        """Traffic."""
        away_se = goal_se != level.own_s[:, None]
        return float(level.weight_s @ (away_se * self.weight_e).sum(axis=1))

    def change(self, goal_se: Ints, new_se: Ints, experts: Sequence[int], level: Level) -> float:
        """What is added when the goals of some experts change."""
        here = list(experts)
        away_sx = (new_se[:, here] != level.own_s[:, None]).astype(np.int64) - (
            goal_se[:, here] != level.own_s[:, None]
        )
        return float(level.weight_s @ (away_sx * self.weight_e[here]).sum(axis=1))

    def cost_seu(self, goal_se: Ints, level: Level) -> Floats:
        """What an expert costs."""
        cost = np.broadcast_to(self.weight_e[None, :, None], (*goal_se.shape, level.units)).copy()
        return _at_home(cost, level)

    def least_e(self, companions: int) -> Floats:
        """Every copy that leaves counts."""
        del companions
        return self.weight_e


@dataclass(frozen=True)
class Pairs:
    """Sends per token at least, from pair counts: an expert with x companions on average pays :func:`paid` of x."""

    pair_ef: Floats
    load_e: Floats
    top_k: int

    @cached_property
    def tokens(self) -> float:
        """Tokens of the layer."""
        return float(self.load_e.sum()) / self.top_k

    def total(self, goal_se: Ints, level: Level) -> float:
        """Traffic."""
        return self._sum(goal_se, level, self._least)

    def most(self, goal_se: Ints, level: Level) -> float:
        """Sends per token at most: of m experts in a unit ``m - m (m - 1) / top_k``, and one send per token."""
        return self._sum(goal_se, level, self._most)

    def _sum(self, goal_se: Ints, level: Level, value: Callable[[Ints, Floats, Bools], float]) -> float:
        sends = 0.0
        for source, goal_e in enumerate(goal_se):
            with_e = np.where(goal_e[:, None] == goal_e[None, :], self.pair_ef, 0.0).sum(axis=1)
            sends += float(level.weight_s[source]) * value(goal_e, with_e, goal_e != level.own_s[source])
        return sends / self.tokens

    def _least(self, goal_e: Ints, with_e: Floats, away_e: Bools) -> float:
        del goal_e
        return float((paid(self.load_e, with_e, self.top_k) * away_e).sum())

    def _most(self, goal_e: Ints, with_e: Floats, away_e: Bools) -> float:
        met_u = np.bincount(goal_e, weights=(self.load_e - with_e / self.top_k) * away_e)
        return float(np.minimum(met_u, self.tokens).sum())

    def change(self, goal_se: Ints, new_se: Ints, experts: Sequence[int], level: Level) -> float:
        """What is added when the goals of some experts change: to all in the units that they leave or meet."""
        added = 0.0
        for source, (goal_e, new_e) in enumerate(zip(goal_se, new_se, strict=True)):
            if (goal_e == new_e).all():
                continue
            units = np.unique(np.concatenate([goal_e[list(experts)], new_e[list(experts)]]))
            units = units[units != level.own_s[source]]
            for goals_e, sign in ((new_e, 1), (goal_e, -1)):
                part = 0.0
                for unit in units:
                    here = np.flatnonzero(goals_e == unit)
                    with_e = self.pair_ef[np.ix_(here, here)].sum(axis=1)
                    part += float(paid(self.load_e[here], with_e, self.top_k).sum())
                added += sign * part * float(level.weight_s[source])
        return added / self.tokens

    def cost_seu(self, goal_se: Ints, level: Level) -> Floats:
        """What an expert costs: what it pays, less what its companions save by it."""
        cost = np.zeros((*goal_se.shape, level.units))
        for source, goal_e in enumerate(goal_se):
            at_ue = _at_ue(goal_e, level.units)
            with_eu = self.pair_ef @ at_ue.T
            with_e = with_eu[np.arange(len(goal_e)), goal_e]
            saved_eu = self.pair_ef @ (at_ue * slope(self.load_e, with_e, self.top_k)).T
            cost[source] = paid(self.load_e[:, None], with_eu, self.top_k) - saved_eu
        return _at_home(cost / self.tokens, level)

    def least_e(self, companions: int) -> Floats:
        """Least cost of every expert; see :func:`least_sends`."""
        return least_sends(self.pair_ef, self.load_e, self.top_k, companions) / self.tokens


@dataclass(frozen=True)
class Trace:
    """Sends per token, exactly, from the tokens' experts."""

    token_tk: Ints
    pair_ef: Floats
    load_e: Floats

    @cached_property
    def _chosen_te(self) -> np.ndarray:
        chosen = np.zeros((len(self.token_tk), len(self.load_e)), dtype=np.float32)
        np.put_along_axis(chosen, self.token_tk, 1.0, axis=1)
        return chosen

    def thinned(self) -> Trace:
        """At most :data:`SEARCHED_TOKENS` of the tokens, evenly taken."""
        step = -(-len(self.token_tk) // SEARCHED_TOKENS)
        return Trace(self.token_tk[::step], self.pair_ef, self.load_e)

    @cached_property
    def _tokens_of(self) -> list[Ints]:
        """Tokens that choose an expert."""
        order = np.argsort(self.token_tk, axis=None, kind="stable")
        ends = np.cumsum(np.bincount(self.token_tk.ravel(), minlength=len(self.load_e)))
        return [part // self.token_tk.shape[1] for part in np.split(order, ends[:-1])]

    def total(self, goal_se: Ints, level: Level) -> float:
        """Traffic."""
        return self._sends(goal_se, level, self.token_tk) / len(self.token_tk)

    def change(self, goal_se: Ints, new_se: Ints, experts: Sequence[int], level: Level) -> float:
        """What is added when the goals of some experts change: only their tokens are looked at."""
        tokens_tk = self.token_tk[np.unique(np.concatenate([self._tokens_of[expert] for expert in experts]))]
        moved = np.flatnonzero((goal_se != new_se).any(axis=1))
        added = self._sends(new_se, level, tokens_tk, moved) - self._sends(goal_se, level, tokens_tk, moved)
        return added / len(self.token_tk)

    def _sends(self, goal_se: Ints, level: Level, token_tk: Ints, sources: Ints | None = None) -> float:
        """Further units of all tokens together: the units of a token are the bits of a word, 60 units a word."""
        sends = 0.0
        for source in range(len(goal_se)) if sources is None else sources:
            goal_e, own, count = goal_se[source], int(level.own_s[source]), 0
            for first in range(0, level.units, WORD):
                bit_e = np.where((goal_e >= first) & (goal_e < first + WORD) & (goal_e != own), goal_e - first, -1)
                word_e = np.where(bit_e >= 0, np.left_shift(1, np.maximum(bit_e, 0)), 0)
                count += int(np.bitwise_count(np.bitwise_or.reduce(word_e[token_tk], axis=1)).sum())
            sends += float(level.weight_s[source]) * count
        return sends

    def _met_tu(self, goal_e: Ints, units: int) -> Ints:
        """Experts of every token that are reached in every unit."""
        tokens = len(self.token_tk)
        flat = goal_e[self.token_tk] + np.arange(tokens)[:, None] * units
        return np.bincount(flat.ravel(), minlength=tokens * units).reshape(tokens, units)

    def cost_seu(self, goal_se: Ints, level: Level) -> Floats:
        """What an expert costs: the tokens that go to the unit for it alone."""
        cost = np.zeros((*goal_se.shape, level.units))
        chosen_et = self._chosen_te.T
        every_e = np.arange(goal_se.shape[1])
        for source, goal_e in enumerate(goal_se):
            met_tu = self._met_tu(goal_e, level.units)
            new_eu = chosen_et @ (met_tu == 0).astype(np.float32)
            alone_eu = chosen_et @ (met_tu == 1).astype(np.float32)
            new_eu[every_e, goal_e] = alone_eu[every_e, goal_e]
            cost[source] = new_eu
        return _at_home(cost / len(self.token_tk), level)

    def least_e(self, companions: int) -> Floats:
        """Least cost of every expert; see :func:`least_sends`."""
        return least_sends(self.pair_ef, self.load_e, self.token_tk.shape[1], companions) / len(self.token_tk)


def counter_of(layer: int, load_e: Floats, known: CoActivation | None) -> Counter:
    """The counter of a layer: the trace, the pairs, or the loads alone."""
    if known is None:
        return Copies(load_e / load_e.sum())
    if known.token_ltk is not None:
        return Trace(known.token_ltk[layer], known.pair_lef[layer], known.load_le[layer])
    return Pairs(known.pair_lef[layer], known.load_le[layer], known.top_k)


def paid(load_e: Floats, with_e: Floats, top_k: int) -> Floats:
    """Least sends that an expert's tokens pay for it, with so many pairs in its unit.

    A token with m experts in a unit pays 1 / m for each of them. This is convex in m, so the mean over the tokens is at
    least the value at the mean m, and between whole m the chord: ``(2 j + 1 - m) / (j (j + 1))`` from j to j + 1.
    """
    least: Floats = np.maximum(load_e, 0.0) / top_k
    for j in range(1, top_k):
        least = np.maximum(least, (2 * j * load_e - with_e) / (j * (j + 1)))
    return least


def slope(load_e: Floats, with_e: Floats, top_k: int) -> Floats:
    """What one more pair saves an expert: the slope of its chord."""
    mean_e = np.divide(with_e, load_e, out=np.zeros_like(load_e), where=load_e > 0)
    j = np.clip(np.floor(mean_e) + 1, 1, max(1, top_k - 1))
    gain: Floats = 1 / (j * (j + 1))
    return gain


def least_sends(pair_ef: Floats, load_e: Floats, top_k: int, companions: int) -> Floats:
    """Least sends that an expert's tokens pay for it, with the best so many other experts in its unit."""
    best = np.sort(pair_ef, axis=1)[:, ::-1][:, :companions].sum(axis=1)
    return paid(load_e, best, top_k)


def traffic_bound(counter: Counter, shelf: Shelf, level: Level) -> float:
    """Least traffic of any placement: every spare slot brings the dearest expert home in one further unit."""
    slots_u = np.bincount(level.unit_r, weights=shelf.slots_r).astype(int)
    cost_e = counter.least_e(min(int(slots_u.max()), 1 << 20) - 1)
    home_u = np.bincount(level.own_s, weights=level.weight_s, minlength=level.units)
    spare = shelf.num_slots - len(cost_e)
    copies = np.repeat(np.sort(cost_e)[::-1], level.units - 1)[:spare].sum()
    whole = float(cost_e.sum())
    return max(0.0, whole - float(home_u.max()) * (whole + float(copies))) * (1 - 1e-9)


def goals(level: Level, slot_n: Ints, shelf: Shelf, experts: int) -> Ints:
    """Where the tokens of every source go for every expert."""
    return level.goal_se(level.held_ue(slot_n, shelf.rank_n, experts))


def _at_ue(goal_e: Ints, units: int) -> Floats:
    at = np.zeros((units, len(goal_e)))
    at[goal_e, np.arange(len(goal_e))] = 1.0
    return at


def _at_home(cost_seu: Floats, level: Level) -> Floats:
    """Costs weighted by source, nothing where the unit is the source's own."""
    cost_seu[np.arange(len(level.own_s)), :, level.own_s] = 0.0
    weighted: Floats = cost_seu * level.weight_s[:, None, None]
    return weighted
