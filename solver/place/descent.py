"""Swaps: two replicas change places while that lowers a smooth maximum of the rank loads, many layers at once.

The smooth maximum of window k is ``log(sum_r exp(beta * load_kr)) / beta``; the objective is its weighted mean over the
windows. A swap changes two ranks only, and ``exp`` turns the sums of loads into products: the change of every possible
swap is one matrix product. Shape suffixes: L layers, K windows, R ranks, N slots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from solver.place import clock as time
from solver.place.state import Bools, Floats, State, may_move_lnr

MOST_SWAPS = 8
"""Swaps of disjoint pairs of ranks that one look at all swaps may take."""
LAYERS_AT_ONCE = 32
"""Layers whose swap matrices are held at the same time, to bound the memory."""


@dataclass(frozen=True)
class Smooth:
    """The smooth maximum: `beta` (per mean rank load) and the weights of the windows, summing to 1."""

    beta: float
    weight_k: Floats

    def value_l(self, load_lkr: Floats) -> Floats:
        """Weighted mean of the smooth maxima of every layer."""
        top = load_lkr.max(axis=2, keepdims=True)
        total = np.log(np.exp(self.beta * (load_lkr - top)).sum(axis=2)) / self.beta
        value: Floats = ((total + top[:, :, 0]) * self.weight_k).sum(axis=1)
        return value


def descend(state: State, smooth: Smooth, rounds: int = 100, deadline: float = math.inf) -> None:
    """Swap replicas until no swap of two lowers the smooth maximum of any layer, or rounds or time are over; in place.

    The time is dealt evenly over the chunks of layers.
    """
    chunks = -(-len(state.slot_ln) // LAYERS_AT_ONCE)
    for first in range(0, len(state.slot_ln), LAYERS_AT_ONCE):
        now = time.monotonic()
        until = now + (deadline - now) / (chunks - first // LAYERS_AT_ONCE)
        active = np.arange(first, min(first + LAYERS_AT_ONCE, len(state.slot_ln)))
        for _ in range(rounds):
            part = state.take(active)
            if time.monotonic() > until:
                break
            moved = _round(part, smooth)
            state.slot_ln[active] = part.slot_ln
            active = active[moved]
            if not len(active):
                break


def _round(state: State, smooth: Smooth) -> Bools:
    """Take the best improving swaps of disjoint pairs of ranks; True for the layers that changed."""
    change = _changes(state, smooth)
    layers, slots = state.slot_ln.shape
    rank, start, size = state.shelf.rank_n, state.shelf.start_r, state.shelf.slots_r
    moved = np.zeros(layers, dtype=bool)
    for _ in range(min(MOST_SWAPS, max(1, len(size) // 4))):
        flat = change.reshape(layers, -1)
        best = flat.argmin(axis=1)
        go = np.flatnonzero(flat[np.arange(layers), best] < -1e-9)
        if not len(go):
            break
        one, two = best[go] // slots, best[go] % slots
        slot = state.slot_ln
        slot[go, one], slot[go, two] = slot[go, two], slot[go, one]
        moved[go] = True
        for layer, *pair in zip(go, rank[one], rank[two], strict=True):
            for r in pair:
                band = slice(start[r], start[r] + size[r])
                change[layer, band, :] = 0.0
                change[layer, :, band] = 0.0
    return moved


def _changes(state: State, smooth: Smooth) -> Floats:
    """Change of the linearised objective for every swap of two slots, ``[layers, slots, slots]``; 0 where illegal."""
    share = state.share_lkn()
    load = np.add.reduceat(share, state.shelf.start_r, axis=2)
    weight = np.exp(smooth.beta * (load - load.max(axis=2, keepdims=True)))
    weight *= (smooth.weight_k / weight.sum(axis=2))[:, :, None]
    rank = state.shelf.rank_n
    own = weight[:, :, rank]
    spread = np.clip(smooth.beta * (share - share.mean(axis=2, keepdims=True)), -300.0, 300.0)
    gain = np.exp(spread)
    left = own / gain
    # Slot i's rank takes what slot j brings, and the other way round; minus what the two ranks weigh now.
    change: Floats = np.matmul(left.transpose(0, 2, 1), gain)
    change += change.transpose(0, 2, 1)
    total = own.sum(axis=1)
    change -= total[:, :, None]
    change -= total[:, None, :]
    may = may_move_lnr(state)[:, :, rank]
    change[~(may & may.transpose(0, 2, 1))] = 0.0
    return change


def busiest_lk(state: State) -> Floats:
    """Busiest rank's load of every layer and window, without the drift term."""
    plain = State(state.shelf, state.load_lke, np.zeros_like(state.drift_le), state.slot_ln)
    busiest: Floats = plain.rank_load_lkr().max(axis=2)
    return busiest
