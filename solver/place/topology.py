"""Less traffic between racks, nodes and ranks within a balance tolerance, and the report of it.

Shape suffixes: L layers, K windows, E logical experts, R ranks, N slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from solver.expertmap import PlacedLayer, Status, TrafficLevel, Wires
from solver.place import clock as time
from solver.place.exact import Rules, is_small
from solver.place.exact_traffic import has_terms, least_traffic
from solver.place.finish import deal, spread
from solver.place.nearest import Level, levels_of
from solver.place.reroute import Limits, Swapper
from solver.place.sends import Copies, Counter, Pairs, counter_of, goals, traffic_bound
from solver.place.state import Floats, Ints, Shelf, counts_of, replica_shares, slot_values
from solver.place.static import Effort
from solver.specs.coactivation import CoActivation
from solver.specs.placing import Placing

EXACT_SECONDS, LEAST_SECONDS = 10.0, 0.2
"""Most and least time of CP-SAT for the traffic of one small layer."""
EQUAL = 1e-6
"""Relative difference up to which a value is its bound."""
SAME = 1e-9


@dataclass(frozen=True)
class Ground:
    """What the traffic of a deployment depends on beside the placement."""

    load_lke: Floats
    mean_le: Floats
    shelf: Shelf
    levels: tuple[Level, ...]
    known: CoActivation | None

    @staticmethod
    def of(placing: Placing, load_lke: Floats, mean_le: Floats, shelf: Shelf) -> Ground:
        """Ground of a checked question; without co-activation the traffic between ranks is not looked at."""
        known = placing.topology.known(mean_le, placing.top_k)
        levels = levels_of(placing.domain_of_rank, placing.rack_of_rank, placing.alive)
        if known is None:
            levels = tuple(level for level in levels if level.name != "rank")
        return Ground(load_lke, mean_le, shelf, levels, known)

    def take(self, layers: Ints) -> Ground:
        """Some layers."""
        known = None if self.known is None else self.known.take(layers)
        return replace(self, load_lke=self.load_lke[layers], mean_le=self.mean_le[layers], known=known)

    def counter(self, layer: int) -> Counter:
        """What is minimised in a layer."""
        return counter_of(layer, self.mean_le[layer], self.known)

    def totals(self, counter: Counter, slot_n: Ints) -> list[float]:
        """Traffic of a layer at every level."""
        experts = self.mean_le.shape[1]
        return [counter.total(goals(level, slot_n, self.shelf, experts), level) for level in self.levels]

    def most(self, counter: Counter, level: Level, slot_n: Ints) -> float | None:
        """Most sends that pair counts allow; absent for what is counted exactly."""
        if not isinstance(counter, Pairs):
            return None
        return counter.most(goals(level, slot_n, self.shelf, self.mean_le.shape[1]), level)

    def busiest_lk(self, slot_ln: Ints) -> Floats:
        """Busiest rank's load of every layer and window."""
        nothing = np.zeros_like(self.mean_le)
        share_lke = replica_shares(self.load_lke, nothing, counts_of(slot_ln, self.mean_le.shape[1]))
        loads = np.add.reduceat(slot_values(share_lke, slot_ln), self.shelf.start_r, axis=2)
        busiest: Floats = loads.max(axis=2)
        return busiest


@dataclass(frozen=True)
class Rerouted:
    """Placements with less traffic, and what CP-SAT proved of a layer's levels (absent where nothing was)."""

    slot_ln: Ints
    bounds: dict[int, tuple[float | None, ...]]


def reroute_parallel(
    ground: Ground, slot_ln: Ints, tolerance: float, rules: Sequence[Rules], effort: Effort
) -> Rerouted:
    """:func:`reroute` of all layers, dealt to processes."""
    parts = deal(np.arange(len(slot_ln)), effort.workers)
    jobs = [
        partial(reroute, ground.take(part), slot_ln[part], tolerance, [rules[layer] for layer in part], effort)
        for part in parts
    ]
    result, bounds = slot_ln.copy(), dict[int, tuple[float | None, ...]]()
    for part, found in zip(parts, spread(jobs, effort.engine), strict=True):
        result[part] = found.slot_ln
        bounds |= {int(part[layer]): bound for layer, bound in found.bounds.items()}
    return Rerouted(result, bounds)


def reroute(ground: Ground, slot_ln: Ints, tolerance: float, rules_l: Sequence[Rules], effort: Effort) -> Rerouted:
    """Lower the traffic, the first level first, while no window's busiest rank rises by more than the tolerance."""
    result, bounds = slot_ln.copy(), dict[int, tuple[float | None, ...]]()
    limit_lk = ground.busiest_lk(slot_ln) * (1 + tolerance)
    for layer in range(len(slot_ln)):
        left = (effort.deadline - time.monotonic()) / (len(slot_ln) - layer)
        rules, counter = rules_l[layer], ground.counter(layer)
        limits = Limits(
            ground.load_lke[layer], limit_lk[layer] * (1 + SAME), rules.home_re, rules.max_moves, rules.receive_r
        )
        swapper = Swapper(slot_ln[layer], ground.shelf, limits, time.monotonic() + left)
        for level in ground.levels:
            if rules.pins is None or level.name == "rank":
                swapper.lower(counter, level)
        result[layer] = swapper.slot_n
        if not is_small(ground.mean_le.shape[1], ground.shelf):
            continue
        if has_terms(counter, ground.levels, ground.mean_le.shape[1]):
            seconds = min(max(left, LEAST_SECONDS), EXACT_SECONDS)
            asked = (counter, ground.levels)
            solved = least_traffic(ground.load_lke[layer], result[layer], rules, limits.limit_k, asked, seconds)
            bounds[layer] = solved.bounds
            if limits.allow(solved.slot_n, ground.shelf) and _better(ground, counter, solved.slot_n, result[layer]):
                result[layer] = solved.slot_n
    return Rerouted(result, bounds)


def _better(ground: Ground, counter: Counter, new_n: Ints, old_n: Ints) -> bool:
    """Whether a placement has no more traffic, the first level that differs deciding."""
    for new, old in zip(ground.totals(counter, new_n), ground.totals(counter, old_n), strict=True):
        if abs(new - old) > SAME:
            return new < old
    return True


def report_levels(
    ground: Ground, slot_ln: Ints, bounds: dict[int, tuple[float | None, ...]]
) -> list[tuple[TrafficLevel, ...]]:
    """Traffic of every layer with its bounds: the closed form, raised by what was proved."""
    reports = []
    for layer, slot_n in enumerate(slot_ln):
        counter = ground.counter(layer)
        copies = Copies(ground.mean_le[layer] / ground.mean_le[layer].sum())
        values, shares = ground.totals(counter, slot_n), ground.totals(copies, slot_n)
        proved = bounds.get(layer, (None,) * len(values))
        found = []
        for level, value, share, bound in zip(ground.levels, values, shares, proved, strict=True):
            least = min(value, max(traffic_bound(counter, ground.shelf, level), bound or 0.0))
            status: Status = "OPTIMAL" if value - least <= EQUAL * max(1.0, value) else "FEASIBLE"
            share_bound = least if ground.known is None else traffic_bound(copies, ground.shelf, level)
            found.append(
                TrafficLevel(
                    unit=level.name, share=share, share_bound=min(share, share_bound),
                    sends=None if ground.known is None else value,
                    sends_most=ground.most(counter, level, slot_n),
                    sends_bound=None if ground.known is None else least, status=status,
                )
            )  # fmt: skip
        reports.append(tuple(found))
    return reports


def mean_sends(reports: Sequence[tuple[TrafficLevel, ...]], unit: str) -> float | None:
    """Mean over the layers of the sends between units of one kind."""
    values = [level.sends for levels in reports for level in levels if level.unit == unit and level.sends is not None]
    return float(np.mean(values)) if values else None


def wires(placing: Placing, ground: Ground) -> Wires | None:
    """How the traffic was counted; absent where there is none."""
    if not ground.levels:
        return None
    return Wires(
        counted="copies" if ground.known is None else ground.known.kind,
        top_k=placing.top_k if ground.known is None else ground.known.top_k,
        racks=placing.racks,
        nodes=placing.nodes,
        tolerance=placing.traffic_tolerance,
    )


def with_levels(
    ground: Ground, slot_ln: Ints, bounds: dict[int, tuple[float | None, ...]], layers: tuple[PlacedLayer, ...]
) -> tuple[PlacedLayer, ...]:
    """Reports with the traffic of all levels."""
    if not ground.levels:
        return layers
    levels = report_levels(ground, slot_ln, bounds)
    return tuple(one.model_copy(update={"levels": found}) for one, found in zip(layers, levels, strict=True))
