"""The lists of rules that judges of plans, of alternatives and of scenario plans have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from solver.verify import claimed, placed, ranks
from solver.verify.evidence import Evidence
from solver.verify.finding import Finding

Rule = Callable[[Evidence], Iterator[Finding]]

DEPLOYED: tuple[Rule, ...] = (
    claimed.labels,
    claimed.legality,
    placed.layers,
    placed.topology,
    ranks.gpus,
    placed.expert_maps,
    placed.experts,
    placed.load_factor,
    placed.sequences,
    placed.load,
)
"""Rules on a deployment, whatever is claimed of it."""
COSTED: tuple[Rule, ...] = (
    claimed.memory,
    claimed.metrics,
    claimed.closed_loop,
    claimed.operator_sources,
    claimed.breakdown,
    claimed.slos,
)
"""Rules on what a deployment takes and serves; they need stages that cover the layers."""
UNCOSTED = frozenset({"dtype", "stages", "micro-batches", "gpu-count"})
"""Legality findings after which the cost model is not asked: its integers may leave 64 bits."""
