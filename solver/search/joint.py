"""What a stage shape, both group sizes, stages and micro-batches cost together at least.

The tables know each phase alone; requests feel both: a slot waits for the prefills of the others, and stages that no
micro-batch fills idle. From the least times of the two phases these bounds follow in closed form for every combination
(DESIGN 5.8, 5.10); what misses a limit or a known plan's objective with every number of stages leaves the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from solver.cost.leaves import PPM, Leaves
from solver.cost.machine import Floats
from solver.cost.metrics import THROUGHPUT_SCALE
from solver.degrees import Domains
from solver.specs.problem import ObjectiveName

Bools = npt.NDArray[np.bool_]
Shape = tuple[int, int, int, int]
ROUNDING = 1 - 1e-9
"""Floating-point bounds are lowered by this factor."""


@dataclass(frozen=True)
class Goals:
    """What a combination must be able to reach: the most of each metric's integer; absent metrics are free."""

    at_most: dict[ObjectiveName, float]
    objective: ObjectiveName


@dataclass(frozen=True)
class Joint:
    """Arrays over [shapes, decode group sizes, prefill group sizes]."""

    alive: Bools
    root: float
    """Least objective of what is alive; 0 where the objective has no bound here."""
    dead: tuple[tuple[int, int], ...]
    """(stages, micro-batches) that no combination survives."""


@dataclass(frozen=True)
class Times:
    """Least time of a pass of both phases, ns, host work included: [shapes, group sizes]; inf where impossible."""

    decode: Floats
    prefill: Floats
    batches: list[int]
    prompts: list[int]


def joint_bounds(leaves: Leaves, domains: Domains, shapes: list[Shape], times: Times, goals: Goals) -> Joint:
    """Combinations that may reach the goals with some number of stages and micro-batches."""
    some = np.isfinite(times.decode).any(axis=1) & np.isfinite(times.prefill).any(axis=1)
    alive = np.zeros((len(shapes), len(times.batches), len(times.prompts)), dtype=np.bool_)
    index, root, dead = np.flatnonzero(some), np.inf, []
    few = Times(times.decode[index], times.prefill[index], times.batches, times.prompts)
    chosen = [shapes[i] for i in index.tolist()]
    reached = alive[index]
    for pp in domains.pp:
        for micro in (m for m in domains.micro_batches if m <= pp):
            bounds, possible = _bounds(leaves, domains, chosen, few, (pp, micro))
            for metric, most in goals.at_most.items():
                possible &= bounds[metric] * ROUNDING <= most
            if possible.any():
                reached |= possible
                least = bounds.get(goals.objective)
                root = min(root, 0.0 if least is None else float(least[possible].min()) * ROUNDING)
            else:
                dead.append((pp, micro))
    alive[index] = reached
    return Joint(alive, root, tuple(dead))


def _bounds(
    leaves: Leaves, domains: Domains, shapes: list[Shape], times: Times, depth: tuple[int, int]
) -> tuple[dict[ObjectiveName, Floats], Bools]:
    """Lower bounds of every metric's integer with so many stages and micro-batches, and what is possible at all."""
    problem, (pp, micro) = leaves.problem, depth
    osl, kept = problem.workload.osl, leaves.kept_ppm / PPM
    tp = np.array([shape[0] for shape in shapes], dtype=np.float64)[:, None, None]
    dp = np.array([shape[3] for shape in shapes], dtype=np.float64)[:, None, None]
    batch = np.array(times.batches, dtype=np.float64)[None, :, None]
    prompts = np.array(times.prompts, dtype=np.float64)[None, None, :]
    possible = np.isfinite(times.decode)[:, :, None] & np.isfinite(times.prefill)[:, None, :]
    step = np.where(np.isfinite(times.decode), times.decode, 0.0)[:, :, None]
    one = np.where(np.isfinite(times.prefill), times.prefill, 0.0)[:, None, :]
    host, chunks = float(leaves.prefill_host_ns), leaves.chunks
    slowest = (one - host) / pp + host
    rounds = np.ceil(batch * micro / prompts)
    ttft = one + (chunks - 1) * slowest
    waiting = chunks * slowest
    tpot = step / kept + (rounds - 1) * waiting / osl
    cycle = osl * step / kept + rounds * waiting
    width = tp * dp * pp
    replicas: Floats = np.floor(problem.gpu_budget / width)
    if domains.replicas is not None:
        replicas = np.minimum(replicas, domains.replicas)
    slots, concurrency = dp * batch * micro, problem.workload.concurrency
    possible = possible & (replicas >= 1) & (prompts <= batch * micro)
    if concurrency is None:
        active, gpus, gpus_per_active = np.maximum(replicas, 1) * slots, width, width / slots
    else:
        fewest = np.ceil(concurrency / slots)
        possible = possible & (fewest <= replicas)
        active = np.full_like(slots, float(concurrency))
        gpus, gpus_per_active = width * fewest, width * fewest / concurrency
    bounds: dict[ObjectiveName, Floats] = {
        "latency": ttft + (osl - 1) * tpot,
        "ttft": ttft + 0 * tpot,
        "tpot": tpot,
        "throughput": cycle * THROUGHPUT_SCALE / active,
        "efficiency": cycle * gpus_per_active,
        "gpus": gpus + 0 * cycle,
    }
    return bounds, possible
