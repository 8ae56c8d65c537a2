"""One window to the end: the layers in parallel processes, and CP-SAT for the small layers that stay open.

Shape suffixes: L layers, E logical experts, N slots.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np

from solver.cost.balance import UNITS, rank_loads
from solver.place.close import Closed, closable, close_layer
from solver.place.state import Floats, Ints, Shelf
from solver.place.static import Effort, Found, busiest, place_static

FIRST_SECONDS = 2.0
"""Search in this process before others are started: most placements need no more."""


def close_small(load_le: Floats, count_le: Ints, shelf: Shelf, effort: Effort) -> Found:
    """Placement of every layer for normalised loads; `count_le` are the same loads as whole tokens, for the proofs."""
    first = replace(effort, seconds=min(effort.seconds, FIRST_SECONDS) if effort.workers > 1 else effort.seconds)
    found = place_static(load_le, shelf, first)
    open_l = np.flatnonzero(found.busiest_l > found.bound_l * (1 + effort.gap))
    small = closable(count_le[0].tolist(), shelf.slots_r.tolist()) and not shelf.spread
    if len(open_l) and small:
        _close(count_le, shelf, found, effort)
    elif len(open_l) > 1 and effort.workers > 1 and effort.deadline - time.monotonic() > FIRST_SECONDS:
        _in_parallel(load_le, shelf, found, open_l, effort)
    return found


def _in_parallel(load_le: Floats, shelf: Shelf, found: Found, open_l: Ints, effort: Effort) -> None:
    """The open layers again, dealt to processes; better placements and bounds are taken over."""
    parts = [part for part in (open_l[start :: effort.workers] for start in range(effort.workers)) if len(part)]
    seconds = effort.deadline - time.monotonic() - 0.5
    if seconds <= 0:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(parts), mp_context=context) as pool:
        tasks = [
            pool.submit(place_static, load_le[part], shelf, _share(effort, seconds, at))
            for at, part in enumerate(parts)
        ]
        for part, task in zip(parts, tasks, strict=True):
            other = task.result()
            better = other.busiest_l < found.busiest_l[part]
            found.slot_ln[part[better]] = other.slot_ln[better]
            found.busiest_l[part[better]] = other.busiest_l[better]
            found.bound_l[part] = np.maximum(found.bound_l[part], other.bound_l)


def _share(effort: Effort, seconds: float, at: int) -> Effort:
    """Effort of one process; its clock starts when it is made."""
    return Effort(seconds, effort.seed + 1 + at, effort.gap, effort.turns)


def _close(count_le: Ints, shelf: Shelf, found: Found, effort: Effort) -> None:
    """CP-SAT on the open layers, the widest gap first, in equal parts of the time that is left."""
    capacities = shelf.slots_r.tolist()
    ends = np.cumsum(shelf.slots_r)[:-1]
    order = np.argsort(found.bound_l / found.busiest_l, kind="stable")
    for at, layer in enumerate(order):
        left = (effort.deadline - time.monotonic()) / (len(order) - at)
        counts = count_le[layer].tolist()
        slots = [rank.tolist() for rank in np.split(found.slot_ln[layer], ends)]
        scale = shelf.num_ranks / UNITS
        low = int(np.floor(found.bound_l[layer] / scale))
        hint = Closed(slots, max(rank_loads(counts, slots)), low)
        if hint.busiest <= low + len(slots[0]) or left <= 0:
            continue
        closed = close_layer(counts, capacities, hint, left)
        found.slot_ln[layer] = np.concatenate([np.array(rank) for rank in closed.slots])
        total = count_le[layer].sum()
        load_e = count_le[layer] * (shelf.num_ranks / total)
        found.busiest_l[layer] = busiest(load_e[None], found.slot_ln[layer][None], shelf)[0]
        # Shares were rounded up, so a true maximum may lie below the integer one by one unit per slot.
        proved = (closed.bound - max(capacities)) * scale
        found.bound_l[layer] = min(max(found.bound_l[layer], proved), found.busiest_l[layer])
