"""Tiny expert placements: windows of loads, every map there is, and what a map costs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from solver import LoadWindow, PlaceOptions

FAST = PlaceOptions(time_limit_s=20, turns=1)
Held = list[tuple[int, ...]]
"""Experts of every rank."""


def window(*rows: list[int], name: str = "w", weight: float = 1.0) -> LoadWindow:
    """A window with a row of tokens per layer."""
    return LoadWindow(name, np.array(rows, dtype=np.int64), weight)


def every_map(experts: int, ranks: int, slots: int) -> Iterator[Held]:
    """Every set of different experts for every rank, such that all experts have a replica."""
    for held in itertools.product(itertools.combinations(range(experts), slots), repeat=ranks):
        if len(set().union(*held)) == experts:
            yield list(held)


def top_load(held: Held, counts: list[int]) -> float:
    """Busiest rank's load over the mean, even split."""
    replicas = [sum(e in rank for rank in held) for e in range(len(counts))]
    return max(sum(counts[e] / replicas[e] for e in rank) for rank in held) * len(held) / sum(counts)
