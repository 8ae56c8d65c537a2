"""One window: heuristic, count search and exchange, with the closed-form bounds that certify them.

Shape suffixes: L layers, E logical experts, N slots.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from solver.place import clock as time
from solver.place.bounds import layer_bound, price_bound
from solver.place.counts import CountSearch, Start
from solver.place.exchange import Search
from solver.place.pack import greedy_counts, pack
from solver.place.pairs import PairSearch, every_count, pairs_apply
from solver.place.progress import Watch
from solver.place.state import Bools, Floats, Ints, Shelf, counts_of
from solver.place.swaps import Packed, SwapSearch
from solver.workers.engine import Engine

GAP_GOAL = 5e-4
"""Relative gap at which a layer is left alone: a proved gap below 0.1 % has no operational value."""
FINEST = 1e-5
"""Gap at which even the polish stops."""
POLISH_TURNS = 30
"""Most turns that layers within the gap get on top."""
FAR = 3e-3
"""Gap above which the replica counts are wrong rather than the packing: those layers get the count search."""
STALLED = 1e-4
"""Gain of a turn, relative, below which layers with a narrower gap get it, too."""
COUNT_ROUNDS, FIRST_ROUNDS = 64, 1600
"""Rounds of the count search in the first turn, twice as many in each that follows; and before programs over counts."""
SWAPS, MOST_SWAPS = 4, 2048
"""Annealed swaps in the first turn, per pair of slots and at most; twice as many in each turn that follows."""
DOUBLINGS = 4
"""Turns after which rounds and swaps are no longer doubled."""
TRADES = 30
RESTARTS = 6
"""Rounds of the exchange, and packings of other counts, in one turn."""
BOUND_SHARE = 0.07
"""Share of the time for price bounds, where the programs of pairs do not give better ones."""
FIRST_SHARE, PAIR_SHARE = 0.2, 0.85
"""Shares of the time after which counts are no longer annealed, and no longer found by programs, where all ranks have
two slots."""


@dataclass(frozen=True)
class Effort:
    """How long to look (seconds from now) and with which random numbers; the gap that ends it."""

    seconds: float
    seed: int = 0
    gap: float = GAP_GOAL
    turns: int = 1000
    """Most turns of the search; with enough seconds for all of them the result depends on the seed alone."""
    workers: int = 1
    """Processes for the layers that stay open."""
    engine: Engine | None = None
    """Where those processes are; absent means on this machine."""
    polish_s: float = 0.0
    """Seconds for layers that are within the gap already: cheap, and some get exact."""
    watch: Watch | None = None
    """Whom to tell how the search goes; stays in this process."""
    begun: float = field(default_factory=time.monotonic)

    @property
    def deadline(self) -> float:
        """Time (``time.monotonic``) at which to stop."""
        return self.begun + self.seconds

    def tell(self, value_l: Floats, bound_l: Floats) -> None:
        """Say how the search goes, if somebody watches."""
        if self.watch is not None:
            self.watch.tell(value_l, bound_l, self.gap)

    def enter(self, stage: str, layers: int) -> None:
        """Say what is placed next."""
        if self.watch is not None:
            self.watch.enter(stage, layers)

    def label(self, words: str) -> None:
        """Say what the next stages are part of."""
        if self.watch is not None:
            self.watch.label = words


@dataclass(frozen=True)
class Found:
    """Placements with the busiest rank's load and its proved lower bound, per layer."""

    slot_ln: Ints
    busiest_l: Floats
    bound_l: Floats


def place_static(load_le: Floats, shelf: Shelf, effort: Effort) -> Found:
    """Placement of every layer for its loads, which may be in any unit."""
    least = 2 if shelf.spread else 1
    bound_l = np.array([layer_bound(load_e, shelf, least) for load_e in load_le])
    count_le = greedy_counts(load_le, shelf, least)
    state = pack(load_le[:, None, :], np.zeros_like(load_le), count_le, shelf)
    improver = _Improver(load_le, shelf, effort, bound_l, state.slot_ln)
    if pairs_apply(load_le.shape[1], shelf) and effort.turns > 1:
        improver.pair(bound_l)
    improver.run()
    bound_l = np.minimum(bound_l, improver.best_l)
    raise_bounds(load_le, shelf, Found(improver.best_ln, improver.best_l, bound_l), effort)
    return Found(improver.best_ln, improver.best_l, bound_l)


def raise_bounds(load_le: Floats, shelf: Shelf, found: Found, effort: Effort) -> None:
    """Price bounds for the layers that are not within the gap, widest gaps first, while there is time for them."""
    until = max(time.monotonic() + 0.2, effort.deadline)
    least = 2 if shelf.spread else 1
    for layer in np.argsort(found.bound_l / found.busiest_l, kind="stable"):
        low, high = float(found.bound_l[layer]), float(found.busiest_l[layer])
        if high <= low * (1 + effort.gap) or time.monotonic() > until or shelf.num_slots == load_le.shape[1]:
            return
        found.bound_l[layer] = max(low, price_bound(load_le[layer], shelf, (low, high), least))


class _Improver:
    """Best placements so far, improved by turns of the two searches."""

    def __init__(self, load_le: Floats, shelf: Shelf, effort: Effort, bound_l: Floats, slot_ln: Ints) -> None:
        self.load_le, self.shelf, self.effort = load_le, shelf, effort
        self.goal_l = bound_l * (1 + effort.gap)
        self.rng = np.random.default_rng(effort.seed)
        self.least = 2 if shelf.spread else 1
        self.finest_l = bound_l * (1 + min(effort.gap, FINEST))
        self.search = Search(shelf, load_le, slot_ln.copy(), self.finest_l.copy(), self.least)
        self.search.settle(np.arange(len(load_le)), self.rng, 400)
        self.best_ln, self.best_l = self.search.slot_ln.copy(), self.search.rank_load_lr.max(axis=1)
        self.step_l = np.full(len(load_le), 0.01)

    def pair(self, bound_l: Floats) -> None:
        """Two slots per rank: better bounds, and better counts where replicas need not stay spread; both in place."""
        far = np.flatnonzero(self.best_l > self.goal_l)
        if len(far) and not self.shelf.spread and every_count(self.load_le.shape[1], self.shelf) is None:
            self.anneal(far, self.effort.begun + FIRST_SHARE * self.effort.seconds, FIRST_ROUNDS)
        gap = max(self.effort.gap, FINEST)
        search = PairSearch(self.load_le, self.shelf, bound_l, self.best_l.copy(), gap, self.least)
        found = search.run(self.effort.begun + PAIR_SHARE * self.effort.seconds)
        self.goal_l = bound_l * (1 + self.effort.gap)
        self.finest_l = bound_l * (1 + min(self.effort.gap, FINEST))
        if not found or self.shelf.spread:
            return
        layers = np.array(sorted(found))
        self._adopt(np.stack([found[layer] for layer in layers]), layers)

    def run(self) -> None:
        """Turns until every layer is within the gap or the time is over."""
        redundant = self.shelf.num_slots > self.least * self.load_le.shape[1]
        bounds = 0.0 if pairs_apply(self.load_le.shape[1], self.shelf) else BOUND_SHARE
        end = self.effort.begun + (1 - bounds) * self.effort.seconds
        before_l = np.full(len(self.best_l), np.inf)
        for turn in range(self.effort.turns):
            self.effort.tell(self.best_l, self.goal_l / (1 + self.effort.gap))
            active = np.flatnonzero(self.best_l > self.goal_l)
            until = end - self.effort.polish_s * float(self._within().mean())
            if not len(active) or time.monotonic() >= until:
                break
            hard = (self.best_l > self.goal_l * (1 + FAR)) | (self.best_l > before_l * (1 - STALLED))
            before_l = self.best_l.copy()
            far = active[hard[active]]
            if redundant and not self.shelf.spread and len(far):
                self.anneal(far, until, COUNT_ROUNDS << min(turn, DOUBLINGS))
            elif redundant and len(far):
                self._restart(far, until)
            self._exchange(active, until, trade=redundant)
            if not self.shelf.spread:
                self._swap(until, min(SWAPS * self.shelf.num_slots**2, MOST_SWAPS) << min(turn, DOUBLINGS))
        self._polish(trade=redundant)

    def _within(self) -> Bools:
        """Layers that are within the gap, and not exact."""
        within: Bools = (self.best_l <= self.goal_l) & (self.best_l > self.finest_l)
        return within

    def _polish(self, *, trade: bool) -> None:
        """A few more turns for the layers that are within the gap: cheap, and some get exact."""
        within = np.flatnonzero(self._within())
        self.goal_l = self.finest_l
        until = time.monotonic() + self.effort.polish_s * len(within) / len(self.best_l)
        for _ in range(min(POLISH_TURNS, self.effort.turns)):
            within = within[self.best_l[within] > self.goal_l[within]]
            if not len(within) or time.monotonic() >= until:
                return
            self._exchange(within, until, trade=trade)

    def _swap(self, until: float, steps: int) -> None:
        """Anneal swaps in the layers that are not within the gap."""
        active = np.flatnonzero(self.best_l > self.goal_l)
        if len(active):
            start = Packed(self.best_ln[active], self.best_l[active])
            search = SwapSearch(self.load_le[active], self.shelf, self.goal_l[active], self.rng)
            found = search.run(start, until, steps)
            self.search.slot_ln[active] = found.slot_ln
            self.search.refresh(active)
            self._keep(active)

    def _restart(self, layers: Ints, until: float) -> None:
        """Packings of other replica counts: those of randomly distorted loads, or the best ones with a few traded."""
        for _ in range(RESTARTS):
            if time.monotonic() >= until:
                return
            load_le = self.load_le[layers]
            if self.rng.random() < 0.5:
                noise = np.exp(self.rng.choice([0.02, 0.1, 0.3]) * self.rng.normal(size=load_le.shape))
                count_le = greedy_counts(load_le * noise, self.shelf, self.least)
            else:
                count_le = counts_of(self.best_ln[layers], load_le.shape[1])
                self._distort(count_le)
            packed = pack(load_le[:, None, :], np.zeros_like(load_le), count_le, self.shelf)
            self._aim(layers)
            self.search.slot_ln[layers] = packed.slot_ln
            self.search.refresh(layers)
            self.search.settle(layers, self.rng, 40)
            self._keep(layers)

    def _distort(self, count_le: Ints) -> None:
        """Move one to three replicas of every layer to other experts."""
        rows = np.arange(len(count_le))
        for _ in range(int(self.rng.integers(1, 4))):
            draw = self.rng.random(count_le.shape)
            giver = np.where(count_le > self.least, draw, -1.0).argmax(axis=1)
            draw = self.rng.random(count_le.shape)
            draw[rows, giver] = -1.0
            taker = np.where(count_le < self.shelf.num_ranks, draw, -1.0).argmax(axis=1)
            legal = (count_le[rows, giver] > self.least) & (count_le[rows, taker] < self.shelf.num_ranks)
            legal &= giver != taker
            count_le[rows[legal], giver[legal]] -= 1
            count_le[rows[legal], taker[legal]] += 1

    def anneal(self, layers: Ints, until: float, rounds: int) -> None:
        """Search on the replica counts from the best ones."""
        start = Start(counts_of(self.best_ln[layers], self.load_le.shape[1]), self.best_l[layers])
        search = CountSearch(self.load_le, self.shelf, self.goal_l, self.rng)
        self._adopt(search.run(layers, start, until, rounds), layers)

    def _adopt(self, count_le: Ints, layers: Ints) -> None:
        """Take the packings of the layers' counts, where they are better after swaps."""
        load_le = self.load_le[layers]
        packed = pack(load_le[:, None, :], np.zeros_like(load_le), count_le, self.shelf, longest_first=True)
        self._aim(layers)
        self.search.slot_ln[layers] = packed.slot_ln
        self.search.refresh(layers)
        self.search.settle(layers, self.rng, 60)
        self._keep(layers)

    def _aim(self, layers: Ints) -> None:
        self.search.target_l[layers] = np.maximum(self.goal_l[layers], self.best_l[layers] * (1 - self.step_l[layers]))

    def _keep(self, layers: Ints) -> None:
        """Record better maxima."""
        now = self.search.rank_load_lr[layers].max(axis=1)
        better = layers[now < self.best_l[layers] * (1 - 1e-12)]
        self.best_l[better] = self.search.rank_load_lr[better].max(axis=1)
        self.best_ln[better] = self.search.slot_ln[better]

    def _exchange(self, layers: Ints, until: float, *, trade: bool) -> None:
        """Trades (or, without redundancy, random swaps), each repaired by swaps and kept where the penalty fell."""
        search, before = self.search, self.best_l[layers].copy()
        search.slot_ln[layers] = self.best_ln[layers]
        search.refresh(layers)
        self._aim(layers)
        kept = search.slot_ln.copy()
        penalty = search.penalty_l(np.arange(len(self.best_l)))
        for _ in range(TRADES):
            active = layers[self.best_l[layers] > self.goal_l[layers]]
            if not len(active) or time.monotonic() >= until:
                break
            if trade:
                search.trade(active, self.rng, 0.1)
            else:
                rank = self.rng.integers(0, self.shelf.num_ranks, len(active))
                worst = search.rank_load_lr[active].argmax(axis=1)
                rank = np.where(self.rng.random(len(active)) < 0.5, worst, rank)
                search.swap(active, rank, 0.3 * np.maximum(penalty[active], 1e-12), self.rng)
            search.settle(active, self.rng, 25)
            now = search.penalty_l(active)
            good = now <= penalty[active]
            self._keep(active[good])
            penalty[active[good]] = now[good]
            kept[active[good]] = search.slot_ln[active[good]]
            bad = active[~good]
            search.slot_ln[bad] = kept[bad]
            search.refresh(bad)
            met = active[good & (now <= 0)]
            if len(met):
                self._aim(met)
                penalty[met] = search.penalty_l(met)
        won = self.best_l[layers] < before * (1 - 1e-9)
        self.step_l[layers] = np.clip(np.where(won, self.step_l[layers] * 1.3, self.step_l[layers] * 0.7), 3e-4, 0.03)


def busiest(load_le: Floats, slot_ln: Ints, shelf: Shelf) -> Floats:
    """Busiest rank's load of every layer, even split."""
    share = load_le / np.maximum(counts_of(slot_ln, load_le.shape[1]), 1)
    loads = np.add.reduceat(np.take_along_axis(share, slot_ln, 1), shelf.start_r, axis=1)
    top: Floats = loads.max(axis=1)
    return top
