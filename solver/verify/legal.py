"""The degree space on arrays: identity, packing into scale-up domains, GPU counts, engine rules (DESIGN 3).

Nothing here is shared with the search; only the unary domains are (:func:`solver.degrees.domains_of`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from solver.cost.machine import Ints
from solver.degrees import Domains
from solver.engines import ENGINE_MESH
from solver.specs.hardware import Cluster
from solver.specs.problem import MESH_ORDERS, MeshOrder, Problem
from solver.strategy import moe_tp_is_fastest


@dataclass(frozen=True)
class Rows:
    """Legal (attn_tp, attn_dp, moe_tp, moe_ep, mesh order) with `pp` stages: one array each, equally long."""

    pp: int
    attn_tp: Ints
    attn_dp: Ints
    moe_tp: Ints
    moe_ep: Ints
    order: Ints
    """Index into ``MESH_ORDERS``."""
    members: Ints
    """Ranks of a stage that share a domain."""
    inside: Ints
    """1 where all stages of an instance share a domain."""
    least: Ints
    """Fewest and most replicas that pins, budget and packing allow."""
    most: Ints

    @property
    def stage_gpus(self) -> Ints:
        """Ranks of one stage."""
        return self.attn_tp * self.attn_dp

    def without(self, degrees: tuple[tuple[int, ...], ...]) -> Rows:
        """The rows of other degrees than these (attn_tp, attn_dp, moe_tp, moe_ep, pp)."""
        if not degrees:
            return self
        mine = zip(*(getattr(self, name).tolist() for name in ("attn_tp", "attn_dp", "moe_tp", "moe_ep")), strict=True)
        kept = np.array([(*row, self.pp) not in degrees for row in mine], dtype=np.bool_)
        return Rows(self.pp, *(getattr(self, field.name)[kept] for field in fields(self)[1:]))

    def __len__(self) -> int:
        return len(self.attn_tp)


def rows_of(problem: Problem, domains: Domains, pp: int) -> Rows:
    """Every legal stage layout for `pp` stages."""
    shapes = _shapes(problem, domains)
    parts = [_ordered(problem, domains, pp, shapes, order) for order in MESH_ORDERS]
    return Rows(pp, *(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _shapes(problem: Problem, domains: Domains) -> tuple[Ints, Ints, Ints, Ints]:
    """(attn_tp, attn_dp, moe_tp, moe_ep) that satisfy the identity, the budget and the rules without pp."""
    tp, moe_tp, moe_ep = (
        grid.ravel()
        for grid in np.meshgrid(
            *(np.array(values, dtype=np.int64) for values in (domains.attn_tp, domains.moe_tp, domains.moe_ep)),
            indexing="ij",
        )
    )
    stage = moe_tp * moe_ep if problem.llm.is_moe else tp
    dp = stage // np.maximum(tp, 1)
    keep = (stage == tp * dp) & (stage <= problem.gpu_budget)
    if domains.attn_dp is not None:
        keep &= dp == domains.attn_dp
    if problem.engine == "vllm":
        keep &= (moe_tp == 1) | (moe_ep == 1)
    if problem.engine == "trtllm":
        keep &= (tp == 1) | (dp == 1)
    return tp[keep], dp[keep], moe_tp[keep], moe_ep[keep]


def _ordered(
    problem: Problem, domains: Domains, pp: int, shapes: tuple[Ints, Ints, Ints, Ints], order: MeshOrder
) -> tuple[Ints, ...]:
    """The shapes that are legal in one mesh order, packed."""
    tp, dp, moe_tp, moe_ep = shapes
    cluster, budget = problem.cluster, problem.gpu_budget
    # Orders differ only when both attn_dp and pp exceed one; elsewhere the first order stands for all of them.
    free = (dp > 1) & (pp > 1)
    pin = problem.pins.mesh_order
    keep = free if order != MESH_ORDERS[0] else np.ones_like(free)
    if order not in ENGINE_MESH[problem.engine] or (pin is not None and order != pin):
        keep = keep & ~free
    packed = _pack(tp, dp, np.full_like(tp, pp), order, cluster)
    if problem.engine != "any":
        keep = keep & packed.aligned
    keep &= packed.tp_members >= np.minimum(tp, cluster.domain_gpus)
    if not problem.space.tp_across_domains:
        fits = (packed.members >= tp * dp) | (moe_tp == 1)
        if moe_tp_is_fastest(problem.engine):
            fits |= packed.members % moe_tp == 0
        keep &= fits
    width = tp * dp * pp
    together, apart = cluster.num_domains * packed.per_domain, cluster.num_domains // packed.domains
    room = np.where(packed.per_domain > 0, together, apart)
    most = np.minimum(room, budget // width)
    least = np.ones_like(most)
    if problem.gpus_exact is not None:
        keep &= budget % width == 0
        least = np.maximum(least, -(-budget // width))
    if domains.replicas is not None:
        least = np.maximum(least, domains.replicas)
        most = np.minimum(most, domains.replicas)
    keep &= least <= most
    columns = (tp, dp, moe_tp, moe_ep, np.full_like(tp, MESH_ORDERS.index(order)), packed.members, packed.inside)
    return tuple(column[keep] for column in (*columns, least, most))


@dataclass(frozen=True)
class _Packed:
    """How instances fill domains, arrays over shapes."""

    tp_members: Ints
    members: Ints
    inside: Ints
    per_domain: Ints
    """Instances of one domain; 0 where an instance needs several domains."""
    domains: Ints
    """Domains of one instance, where it needs several (else 1)."""
    aligned: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


def _pack(tp: Ints, dp: Ints, pp: Ints, order: MeshOrder, cluster: Cluster) -> _Packed:
    """Fill domains dimension by dimension; what does not fit spreads, and everything after takes whole domains."""
    sizes = {"tp": tp, "dp": dp, "pp": pp}
    units, domains, node = np.full_like(tp, cluster.domain_gpus), np.zeros_like(tp), cluster.gpus_per_node
    whole, aligned = np.ones(tp.shape, dtype=np.bool_), np.ones(tp.shape, dtype=np.bool_)
    ranks, members = np.ones_like(tp), {}
    for name in order.split("-"):
        size = sizes[name]
        outside, fits = domains > 0, size <= units
        members[name] = np.where(outside, 1, np.minimum(size, units))
        ranks = ranks * size
        if cluster.domain_gpus > node:
            aligned &= (node % ranks == 0) | (ranks % node == 0)
        aligned &= outside | fits | (whole & (size % units == 0))
        whole &= outside | ~fits | (units % size == 0)
        domains = np.where(outside, domains * size, np.where(fits, 0, -(-size // units)))
        units = np.where(outside | ~fits, units, units // size)
    return _Packed(
        tp_members=members["tp"],
        members=members["tp"] * members["dp"],
        inside=(members["pp"] == pp).astype(np.int64),
        per_domain=np.where(domains > 0, 0, units),
        domains=np.maximum(domains, 1),
        aligned=aligned,
    )


def domains_taken(problem: Problem, rows: Rows) -> Ints:
    """Scale-up domains of one instance of every row (1 where it fits into one)."""
    taken = np.zeros_like(rows.attn_tp)
    for index, order in enumerate(MESH_ORDERS):
        pp = np.full_like(rows.attn_tp, rows.pp)
        packed = _pack(rows.attn_tp, rows.attn_dp, pp, order, problem.cluster)
        taken = np.where(rows.order == index, packed.domains, taken)
    return taken
