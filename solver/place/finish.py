"""Layers in parallel processes: they share nothing, so each process places some of them.

Shape suffixes: L layers, K windows, E logical experts, N slots.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np

from solver.errors import EngineError
from solver.place import clock as time
from solver.place.dispatch import place_dispatch
from solver.place.exact import is_small
from solver.place.pairs import pairs_apply
from solver.place.robust import Aim, RobustFound, place_robust
from solver.place.state import Floats, Ints, Shelf
from solver.place.static import Effort, Found, place_static
from solver.workers.engine import Engine

T = TypeVar("T")
POLISH_SHARE, POLISH_SECONDS = 0.1, 1.0
"""Share of the time, and seconds, for layers that are within the gap already."""
FIRST_SECONDS = 2.0
"""Search in this process before others are started: most placements need no more."""
PAIR_SECONDS = 0.5
"""The same where all ranks have two slots, and programs over replica counts do most of the work."""
SMALL_SECONDS = 0.3
SMALL_TURNS = 8
"""Search per small layer before CP-SAT closes it, in seconds and turns."""


def place_parallel(load_le: Floats, shelf: Shelf, effort: Effort) -> Found:
    """Placement of every layer for one window; what one process leaves open goes to several."""
    if is_small(load_le.shape[1], shelf):
        seconds = min(effort.seconds, SMALL_SECONDS * len(load_le))
        return place_static(load_le, shelf, replace(effort, seconds=seconds, turns=min(effort.turns, SMALL_TURNS)))
    alone = effort.workers == 1
    polish_s = min(POLISH_SECONDS, POLISH_SHARE * effort.seconds)
    first_s = PAIR_SECONDS if pairs_apply(load_le.shape[1], shelf) else FIRST_SECONDS
    seconds = effort.seconds if alone else min(effort.seconds, first_s)
    found = place_static(load_le, shelf, replace(effort, seconds=seconds, polish_s=polish_s))
    open_l = np.flatnonzero(found.busiest_l > found.bound_l * (1 + effort.gap))
    seconds = effort.deadline - time.monotonic()
    if alone or len(open_l) < 2 or seconds < FIRST_SECONDS:
        return found
    parts = deal(open_l, effort.workers)
    efforts = [_share(effort, seconds, at) for at in range(len(parts))]
    jobs = [_static_job(load_le[part], shelf, own) for part, own in zip(parts, efforts, strict=True)]
    results = spread(jobs, effort.engine)
    for part, other in zip(parts, results, strict=True):
        better = other.busiest_l < found.busiest_l[part]
        found.slot_ln[part[better]] = other.slot_ln[better]
        found.busiest_l[part[better]] = other.busiest_l[better]
        found.bound_l[part] = np.maximum(found.bound_l[part], other.bound_l)
    return found


def robust_parallel(load_lke: Floats, shelf: Shelf, aim: Aim, effort: Effort) -> RobustFound:
    """Placement of every layer for several windows."""
    layers = len(load_lke)
    if is_small(load_lke.shape[2], shelf):
        effort = replace(effort, seconds=min(effort.seconds, SMALL_SECONDS), workers=1)
    if effort.workers == 1 or layers < 2:
        return place_robust(load_lke, shelf, aim, effort)
    parts = deal(np.arange(layers), effort.workers)
    seconds = effort.deadline - time.monotonic()
    jobs = [_robust_job(load_lke[part], shelf, aim, _share(effort, seconds, at)) for at, part in enumerate(parts)]
    results = spread(jobs, effort.engine)
    order = np.argsort(np.concatenate(parts))
    return RobustFound(
        np.concatenate([found.slot_ln for found in results])[order],
        np.concatenate([found.busiest_lk for found in results])[order],
        np.concatenate([found.objective_l for found in results])[order],
        np.concatenate([found.bound_l for found in results])[order],
    )


def dispatch_parallel(load_lke: Floats, slot_ln: Ints, shelf: Shelf, aim: Aim, effort: Effort) -> Ints:
    """Placement of every layer for weighted dispatch, from one for the even split."""
    if effort.workers == 1 or len(load_lke) < 2:
        return place_dispatch(load_lke, slot_ln, shelf, aim, effort)
    parts = deal(np.arange(len(load_lke)), effort.workers)
    efforts = [_share(effort, effort.seconds, at) for at in range(len(parts))]
    jobs = [
        partial(place_dispatch, load_lke[part], slot_ln[part], shelf, aim, own)
        for part, own in zip(parts, efforts, strict=True)
    ]
    return np.concatenate(spread(jobs, effort.engine))[np.argsort(np.concatenate(parts))]


def deal(layers: Ints, workers: int) -> list[Ints]:
    """Layers of every process."""
    return [part for part in (layers[start::workers] for start in range(workers)) if len(part)]


def _share(effort: Effort, seconds: float, at: int) -> Effort:
    """Effort of one process; its clock starts when it is made."""
    here = effort.watch if at == 0 and effort.engine is None else None
    return Effort(seconds, effort.seed + at, effort.gap, effort.turns, watch=here)


def _static_job(load_le: Floats, shelf: Shelf, effort: Effort) -> partial[Found]:
    return partial(place_static, load_le, shelf, effort)


def _robust_job(load_lke: Floats, shelf: Shelf, aim: Aim, effort: Effort) -> partial[RobustFound]:
    return partial(place_robust, load_lke, shelf, aim, effort)


def spread(jobs: list[partial[T]], engine: Engine | None) -> list[T]:
    """Results of the jobs: on the engine; or the first one in this process, the others in forks of it, if there are."""
    if engine is not None:
        return _on_engine(jobs, engine)
    if len(jobs) == 1 or "fork" not in multiprocessing.get_all_start_methods():
        return [job() for job in jobs]
    with ProcessPoolExecutor(len(jobs) - 1 or 1, mp_context=multiprocessing.get_context("fork")) as pool:
        others = [pool.submit(job) for job in jobs[1:]]
        first = jobs[0]()
        return [first, *(other.result() for other in others)]


def _on_engine(jobs: list[partial[T]], engine: Engine) -> list[T]:
    """Results from an engine; a job whose process is lost is done here.

    Raises
    ------
    EngineError
        A job raised an error.
    """
    results: dict[int, T] = {}
    with closing(engine.run(_anew, jobs)) as ended:
        for done in ended:
            if done.error:
                raise EngineError(f"placing layers on the engine {engine.name} failed: {done.error}")
            results[done.index] = jobs[done.index]() if done.value is None else done.value
    return [results[index] for index in range(len(jobs))]


def _anew(job: partial[T]) -> T:
    """A job whose clock starts now: another machine has another clock, and the job may have waited."""
    *arguments, effort = job.args
    return job.func(*arguments, replace(effort, begun=time.monotonic()))
