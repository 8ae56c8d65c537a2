"""Placements for weighted dispatch: the engine splits every expert's tokens over its replicas as each window needs.

For a fixed placement the best split of a window minimises the sum of squared rank loads, too: loads that are balanced
as far as the replicas allow have the least maximum of all. Accelerated projected gradients find it for many layers and
windows at once. The search swaps replicas, or gives a replica to another expert, by the prices of the ranks under
these splits, and keeps what lowers the mean of the smooth maxima. Shape suffixes: L layers, K windows, E logical
experts, R ranks, N slots, F experts with several replicas, C their replicas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solver.place import clock as time
from solver.place.bounds import SAFE, layer_bound
from solver.place.descent import Smooth
from solver.place.robust import Aim, drift_windows
from solver.place.state import Bools, Floats, Ints, Shelf, State, counts_of, held_lre, slot_values
from solver.place.static import Effort

FIRST_STEPS, STEPS = 100, 25
"""Steps of the gradient method for a new placement, and after a change of one."""
EVEN_WEIGHT = 0.05
"""Weight of the even split in the objective: a placement that is balanced before it is split stays so longer."""
PATIENCE = 150
"""Changes without success after which a layer is left alone."""
BETA = 100.0
"""Sharpness of the smooth maximum, per mean rank load."""
SEEN_WEIGHT = 0.3
"""Weight of the windows themselves; drift windows have the rest, since most splits of the windows are perfect."""
DRIFT_ENERGY = 0.01
"""Squared length of a drift window's deviation, relative to the mixture's."""
NOISE, NOISE_WINDOWS = 0.1, 4
"""Relative standard deviation of windows in which every expert moved by itself, and their number."""
NEVER = -1e30
"""Score of an illegal trade."""


@dataclass
class Splits:
    """Tokens of every replica of the experts that have several, in all windows; ranks of the others' loads."""

    table_lfc: Ints
    """Slot of every replica; -1 where an expert has fewer."""
    rank_lfc: Ints
    whole_lkf: Floats
    fixed_lkr: Floats
    part_lkfc: Floats

    @staticmethod
    def of(load_lke: Floats, slot_ln: Ints, shelf: Shelf, token_lkn: Floats | None = None) -> Splits:
        """Given tokens of every slot, or the even split of a placement."""
        layers, windows, experts = load_lke.shape
        count = counts_of(slot_ln, experts)
        most, several = int(count.max()), int((count > 1).sum(axis=1).max())
        table = np.full((layers, several, most), -1, dtype=np.int64)
        expert_lf = np.zeros((layers, several), dtype=np.int64)
        for layer in range(layers):
            shared = np.flatnonzero(count[layer] > 1)
            row = np.full(experts, -1)
            row[shared] = np.arange(len(shared))
            order = np.argsort(slot_ln[layer], kind="stable")
            expert = slot_ln[layer][order]
            turn = np.arange(len(order)) - np.searchsorted(expert, expert)
            own = row[expert] >= 0
            table[layer, row[expert[own]], turn[own]] = order[own]
            expert_lf[layer, : len(shared)] = shared
        real = table >= 0
        whole = np.take_along_axis(load_lke, np.broadcast_to(expert_lf[:, None, :], (layers, windows, several)), 2)
        whole = np.where(real[:, None, :, 0], whole, 0.0)
        single = np.where(np.take_along_axis(count, slot_ln, 1) == 1, 1.0, 0.0)[:, None, :]
        fixed = np.add.reduceat(slot_values(load_lke, slot_ln) * single, shelf.start_r, axis=2)
        rank = np.where(real, shelf.rank_n[table], shelf.num_ranks)
        if token_lkn is None:
            part = np.where(real[:, None], (whole / np.maximum(real.sum(axis=2), 1)[:, None, :])[..., None], 0.0)
        else:
            flat = np.broadcast_to(table.reshape(layers, 1, -1), (layers, windows, several * most))
            part = np.take_along_axis(token_lkn, flat, 2).reshape(layers, windows, several, most) * real[:, None]
        return Splits(table, rank, whole, fixed, part)

    def rank_load_lkr(self, part_lkfc: Floats | None = None) -> Floats:
        """Load of every rank."""
        part = self.part_lkfc if part_lkfc is None else part_lkfc
        layers, windows, ranks = self.fixed_lkr.shape
        cell = (np.arange(layers * windows) * (ranks + 1)).reshape(layers, windows, 1, 1) + self.rank_lfc[:, None]
        sums = np.bincount(cell.ravel(), part.ravel(), layers * windows * (ranks + 1))
        result: Floats = self.fixed_lkr + sums.reshape(layers, windows, ranks + 1)[:, :, :ranks]
        return result

    def balance(self, steps: int) -> Floats:
        """Move the parts toward the best split, in place; the loads of the ranks."""
        real = self.table_lfc >= 0
        at = np.arange(len(real))[:, None, None]
        degree = np.zeros((len(real), self.fixed_lkr.shape[2] + 1))
        np.add.at(degree, (np.broadcast_to(at, real.shape), self.rank_lfc), 1.0)
        rate = 1.0 / np.maximum(degree[:, :-1].max(axis=1), 1.0)
        look, momentum = self.part_lkfc, 1.0
        for _ in range(steps):
            load = self.rank_load_lkr(look)
            price = np.concatenate([load, np.zeros((*load.shape[:2], 1))], axis=2)
            slope = price[at[:, None], np.arange(load.shape[1])[None, :, None, None], self.rank_lfc[:, None]]
            moved = _onto_simplex(look - rate[:, None, None, None] * slope, self.whole_lkf, real[:, None])
            following = (1 + (1 + 4 * momentum * momentum) ** 0.5) / 2
            look = moved + (momentum - 1) / following * (moved - self.part_lkfc)
            self.part_lkfc, momentum = moved, following
        return self.rank_load_lkr()

    def of_slot_lkn(self, load_lke: Floats, slot_ln: Ints) -> Floats:
        """Tokens of every slot."""
        load = slot_values(load_lke, slot_ln)
        layer, f, c = np.nonzero(self.table_lfc >= 0)
        load[layer, :, self.table_lfc[layer, f, c]] = self.part_lkfc[layer, :, f, c]
        return load


def _onto_simplex(value: Floats, total: Floats, real: Bools) -> Floats:
    """Nearest parts that are not negative and sum to the total, over the last axis; parts that are not real are 0."""
    low = np.where(real, value, -1e9)
    order = -np.sort(-low, axis=-1)
    number = np.arange(1, value.shape[-1] + 1)
    level = (np.cumsum(order, axis=-1) - total[..., None]) / number
    used = np.maximum((order > level).sum(axis=-1, keepdims=True), 1)
    result: Floats = np.maximum(low - np.take_along_axis(level, used - 1, -1), 0.0) * real
    return result


@dataclass
class _Tokens:
    """A placement with the tokens of its slots: under the best split of every window, then under the even split."""

    state: State
    split_lkn: Floats
    smooth: Smooth

    @staticmethod
    def of(state: State, smooth: Smooth) -> _Tokens:
        """Tokens of a placement, split from scratch."""
        tokens = _Tokens(state, np.empty(0), smooth)
        tokens.rebalance(None, FIRST_STEPS)
        return tokens

    def rebalance(self, token_lkn: Floats | None, steps: int) -> None:
        """Best splits of the placement as it is now, from given tokens of the slots."""
        splits = Splits.of(self.state.load_lke, self.state.slot_ln, self.state.shelf, token_lkn)
        splits.balance(steps)
        self.split_lkn = splits.of_slot_lkn(self.state.load_lke, self.state.slot_ln)

    def take(self, layers: Ints) -> _Tokens:
        """Copy of some layers."""
        return _Tokens(self.state.take(layers), self.split_lkn[layers].copy(), self.smooth)

    def keep(self, layers: Ints, other: _Tokens, which: Bools) -> None:
        """Take over some layers of a copy."""
        self.state.slot_ln[layers[which]] = other.state.slot_ln[which]
        self.split_lkn[layers[which]] = other.split_lkn[which]

    def token_lkn(self) -> Floats:
        """Tokens of the slots in the windows, split anew, then in the same windows, split evenly."""
        return np.concatenate([self.split_lkn, self.state.share_lkn()], axis=1)

    def value_l(self, token_lkn: Floats) -> Floats:
        """What is minimised."""
        loads: Floats = np.add.reduceat(token_lkn, self.state.shelf.start_r, axis=2)
        return self.smooth.value_l(loads)

    def price_lkr(self, token_lkn: Floats) -> Floats:
        """Slope of the objective in the load of every rank."""
        load = np.add.reduceat(token_lkn, self.state.shelf.start_r, axis=2)
        price = np.exp(self.smooth.beta * (load - load.max(axis=2, keepdims=True)))
        price *= (self.smooth.weight_k / price.sum(axis=2))[:, :, None]
        result: Floats = price
        return result

    def swap(self, rng: np.random.Generator) -> None:
        """Best swap, with some noise, of a slot of one rank per layer with any other; expensive ranks come oftener."""
        state, shelf, at = self.state, self.state.shelf, np.arange(len(self.state.slot_ln))
        token = self.token_lkn()
        price = self.price_lkr(token)
        dear = price.sum(axis=1)
        rank = (dear * rng.exponential(size=dear.shape)).argmax(axis=1)
        own = shelf.start_r[rank][:, None] + np.arange(int(shelf.slots_r.max()))[None, :]
        real = own < (shelf.start_r + shelf.slots_r)[rank][:, None]
        own = np.minimum(own, shelf.num_slots - 1)
        mine = token[at[:, None], :, own].transpose(0, 2, 1)
        rise = np.clip(self.smooth.beta * (token[:, :, None, :] - mine[:, :, :, None]), -60.0, 60.0)
        factor = np.exp(rise)
        change = np.einsum("lk,lksn->lsn", price[at, :, rank], factor - 1)
        change += np.einsum("lkn,lksn->lsn", price[:, :, shelf.rank_n], 1 / factor - 1)
        held, slot = held_lre(state), state.slot_ln
        expert = slot[at[:, None], own]
        illegal = held[at[:, None, None], shelf.rank_n[None, None, :], expert[:, :, None]] | ~real[:, :, None]
        illegal |= held[at[:, None], rank[:, None], slot][:, None, :]
        noise = -change.min(axis=(1, 2)) * rng.choice([0.0, 0.1, 0.5], size=len(at))
        change += noise[:, None, None] * rng.exponential(size=change.shape)
        change[illegal] = -NEVER
        best = change.reshape(len(at), -1).argmin(axis=1)
        i, j = own[at, best // shelf.num_slots], best % shelf.num_slots
        go = np.flatnonzero(~illegal.reshape(len(at), -1)[at, best])
        for array in (slot, *self.split_lkn.transpose(1, 0, 2)):
            array[go, i[go]], array[go, j[go]] = array[go, j[go]], array[go, i[go]]
        self.rebalance(self.split_lkn, STEPS)

    def trade(self, rng: np.random.Generator, least: int) -> None:
        """One replica of every layer goes to another expert, by the prices of the ranks with some noise."""
        state, shelf, windows = self.state, self.state.shelf, self.split_lkn.shape[1]
        slot, load, at = state.slot_ln, state.load_lke, np.arange(len(state.slot_ln))
        price, held, count = self.price_lkr(self.token_lkn())[:, :windows], held_lre(state), state.count_le()
        gain = np.zeros(held.shape)
        for k in range(windows):
            cheapest = np.where(held, price[:, k, :, None], np.inf).min(axis=1)
            gain += load[:, k, None, :] * np.maximum(cheapest[:, None, :] - price[:, k, :, None], 0.0)
        gain += 0.3 * gain.max(axis=(1, 2), keepdims=True) * rng.exponential(size=gain.shape)
        gain[held | (count >= shelf.num_ranks)[:, None, :]] = NEVER
        # What a replica carries goes to its siblings, at the price of the dearest rank at worst.
        own = price[:, :, shelf.rank_n]
        lost = (self.split_lkn * np.maximum(own.max(axis=2, keepdims=True) - own, 0.0)).sum(axis=1)
        lost = np.where(np.take_along_axis(count, slot, 1) > least, lost * rng.exponential(size=lost.shape), -NEVER)
        score = gain.max(axis=2)[:, shelf.rank_n] - lost
        giver = score.argmax(axis=1)
        taker = gain[at, shelf.rank_n[giver]].argmax(axis=1)
        go = at[score[at, giver] > NEVER / 2]
        for layer in go:
            siblings = np.flatnonzero(slot[layer] == slot[layer, giver[layer]])
            siblings = siblings[siblings != giver[layer]]
            self.split_lkn[layer][:, siblings] += self.split_lkn[layer][:, giver[layer], None] / len(siblings)
            self.split_lkn[layer][:, giver[layer]] = 0.0
        slot[go, giver[go]] = taker[go]
        self.rebalance(self.split_lkn, STEPS)


def improve_dispatch(state: State, smooth: Smooth, effort: Effort, least: int) -> None:
    """Change the placement where that lowers the smooth maximum under the best split of every window; in place."""
    rng, layers = np.random.default_rng(effort.seed), np.arange(len(state.slot_ln))
    weight_k = np.concatenate([smooth.weight_k, EVEN_WEIGHT * smooth.weight_k])
    tokens = _Tokens.of(state, Smooth(smooth.beta, weight_k))
    value, idle = tokens.value_l(tokens.token_lkn()), np.zeros(len(layers), dtype=np.int64)
    for turn in range(effort.turns * PATIENCE):
        active = layers[idle < PATIENCE]
        if not len(active) or time.monotonic() >= effort.deadline:
            return
        trial = tokens.take(active)
        if turn % 2:
            trial.trade(rng, least)
        else:
            trial.swap(rng)
        now = trial.value_l(trial.token_lkn())
        better = now < value[active] - 1e-7
        tokens.keep(active, trial, better)
        value[active[better]] = now[better]
        idle[active] += 1
        idle[active[better]] = 0


def place_dispatch(load_lke: Floats, slot_ln: Ints, shelf: Shelf, aim: Aim, effort: Effort) -> Ints:
    """Placement whose splits balance the windows and what they may drift to, searched from one for the even split.

    Where replicas must stay spread over domains, or no expert has several, it is the given one.
    """
    if shelf.spread or shelf.num_slots == load_lke.shape[2]:
        return slot_ln
    windows = load_lke.shape[1]
    padded, _ = drift_windows(load_lke, aim, DRIFT_ENERGY)
    mean = np.average(load_lke, axis=1, weights=aim.weight_k)
    draw = np.random.default_rng(effort.seed).normal(size=(NOISE_WINDOWS, mean.shape[1]))
    noisy = mean[:, None, :] * (1 + NOISE * draw)
    padded = np.maximum(np.concatenate([padded, noisy], axis=1), 0.0)
    padded *= shelf.num_ranks / padded.sum(axis=2, keepdims=True)
    added = padded.shape[1] - windows
    seen_k = np.full(windows, 1 / windows) if aim.name != "mean" else aim.weight_k
    weight_k = np.concatenate([SEEN_WEIGHT * seen_k, np.full(added, (1 - SEEN_WEIGHT) / added)])
    state = State(shelf, padded, np.zeros_like(mean), slot_ln.copy())
    improve_dispatch(state, Smooth(BETA, weight_k), effort, 1)
    return state.slot_ln


def dispatch_bound(load_e: Floats, shelf: Shelf, least: int = 1) -> float:
    """Least maximum under any split: the t heaviest experts sit on as many ranks at most as they can have replicas.

    Without spare slots every expert is whole, and the bounds of the even split hold.
    """
    spare = shelf.num_slots - least * len(load_e)
    if spare == 0 and least == 1:
        return layer_bound(load_e, shelf)
    heavy = np.cumsum(np.sort(load_e)[::-1])
    ranks = np.minimum(least * np.arange(1, len(load_e) + 1) + spare, shelf.num_ranks)
    return float((heavy / ranks).max()) * (1 - SAFE)
