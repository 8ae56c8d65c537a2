"""Groups of experts pinned to nodes, as hierarchical balancers place them: groups to nodes, then every node alone.

Shape suffixes: L layers, K windows, G groups, E logical experts, R ranks, N slots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from solver.errors import NoPlacementError
from solver.expertmap import Grouping
from solver.place.exact import Pins
from solver.place.finish import place_parallel, robust_parallel
from solver.place.robust import Aim
from solver.place.state import Floats, Ints, Shelf
from solver.place.static import Effort
from solver.place.topology import Ground, mean_sends, report_levels
from solver.specs.placing import Placing

MAX_SWEEPS = 50
PINNED_SECONDS = 2.0
"""Most time for the placement with pinned groups that is reported beside the one asked for."""


@dataclass(frozen=True)
class Pinned:
    """Slots of every layer, and a lower bound on the mixture's busiest rank whatever node a group is on."""

    slot_ln: Ints
    bound_l: Floats


def pins_of(experts: int, groups: int, node_r: Ints) -> Pins:
    """Groups of consecutive experts, and the node of every rank."""
    return Pins(np.arange(experts) * groups // experts, node_r)


def require_slots(pins: Pins, shelf: Shelf) -> None:
    """Raise :class:`NoPlacementError` where a node has no slots for its groups."""
    experts, nodes = len(pins.group_e), int(pins.node_r.max()) + 1
    here = experts // nodes
    copies = 2 if shelf.spread else 1
    slots = np.bincount(pins.node_r, weights=shelf.slots_r).astype(int)
    least = int(slots.argmin())
    if slots[least] < copies * here:
        raise NoPlacementError(
            f"no placement exists: the groups pinned to a node have {here} experts that need {copies * here} slots, "
            f"node {least} has {slots[least]}; give more slots per rank"
        )
    if int(shelf.slots_r.max()) > here:
        raise NoPlacementError(
            f"no placement exists: the groups pinned to a node have {here} experts and a rank holds each at most once, "
            f"but one rank has {int(shelf.slots_r.max())} slots; give fewer slots per rank"
        )


def place_pinned(load_lke: Floats, shelf: Shelf, pins: Pins, aim: Aim, effort: Effort) -> Pinned:
    """Every node holds equally many groups; then its experts are placed on its ranks alone."""
    layers, windows, _ = load_lke.shape
    nodes = int(pins.node_r.max()) + 1
    groups = int(pins.group_e.max()) + 1
    load_lkg = np.stack([load_lke[:, :, pins.group_e == group].sum(axis=2) for group in range(groups)], axis=2)
    mean_lg = np.average(load_lkg, axis=1, weights=aim.weight_k)
    ranks_n = np.bincount(pins.node_r)
    node_lg = np.stack([_deal(mean_g, nodes, ranks_n) for mean_g in mean_lg])
    slot_ln = np.zeros((layers, shelf.num_slots), dtype=np.int64)
    for node, same in _alike(pins.node_r, shelf):
        own = np.array([[np.flatnonzero(node_g[pins.group_e] == one) for one in same] for node_g in node_lg])
        local = np.stack([load_lke[layer][:, own[layer]] for layer in range(layers)])  # [L, K, same, e]
        rows = local.transpose(0, 2, 1, 3).reshape(layers * len(same), windows, -1)
        part = _part(shelf, pins.node_r, node)
        seconds = effort.seconds * len(same) / nodes
        share = Effort(seconds, effort.seed, effort.gap, effort.turns, effort.workers, effort.engine)
        if windows == 1:
            found = place_parallel(rows[:, 0], part, share).slot_ln
        else:
            scale = part.num_ranks / rows.sum(axis=2, keepdims=True).clip(1e-12)
            found = robust_parallel(rows * scale, part, aim, share).slot_ln
        found = found.reshape(layers, len(same), -1)
        for at, one in enumerate(same):
            here = pins.node_r[shelf.rank_n] == one
            slot_ln[:, here] = np.take_along_axis(own[:, at], found[:, at], 1)
    return Pinned(slot_ln, _bound_l(load_lkg, ranks_n, aim))


def _alike(node_r: Ints, shelf: Shelf) -> list[tuple[int, list[int]]]:
    """Nodes by the slots of their ranks: nodes that are alike are placed together."""
    kinds: dict[tuple[int, ...], list[int]] = {}
    for node in range(int(node_r.max()) + 1):
        kinds.setdefault(tuple(shelf.slots_r[node_r == node].tolist()), []).append(node)
    return [(same[0], same) for same in kinds.values()]


def _part(shelf: Shelf, node_r: Ints, node: int) -> Shelf:
    inside = node_r == node
    domains = np.unique(shelf.domain_r[inside], return_inverse=True)[1] if shelf.spread else None
    return Shelf.of(tuple(shelf.slots_r[inside].tolist()), None if domains is None else tuple(domains.tolist()))


def _deal(load_g: Floats, nodes: int, ranks_n: Ints) -> Ints:
    """Node of every group: heaviest group first to the lightest node that has room, then swaps of the fullest node."""
    most = len(load_g) // nodes
    node_g = np.full(len(load_g), -1, dtype=np.int64)
    load_n, count_n = np.zeros(nodes), np.zeros(nodes, dtype=np.int64)
    for group in np.argsort(-load_g, kind="stable"):
        cost = np.where(count_n < most, (load_n + load_g[group]) / ranks_n, np.inf)
        node = int(cost.argmin())
        node_g[group], load_n[node], count_n[node] = node, load_n[node] + load_g[group], count_n[node] + 1
    for _ in range(MAX_SWEEPS):
        load_n = np.bincount(node_g, weights=load_g, minlength=nodes) / ranks_n
        best, pair = float(load_n.max()), None
        for one, two in combinations(range(len(load_g)), 2):
            a, b = node_g[one], node_g[two]
            if a == b or load_n.argmax() not in (a, b):
                continue
            delta = load_g[one] - load_g[two]
            trial = load_n.copy()
            trial[a] -= delta / ranks_n[a]
            trial[b] += delta / ranks_n[b]
            if trial.max() < best - 1e-12:
                best, pair = float(trial.max()), (one, two)
        if pair is None:
            break
        node_g[list(pair)] = node_g[list(pair)[::-1]]
    return node_g


def _bound_l(load_lkg: Floats, ranks_n: Ints, aim: Aim) -> Floats:
    """The node of the heaviest group holds equally many groups: the heaviest with the lightest company."""
    most = load_lkg.shape[2] // len(ranks_n)
    ordered = np.sort(load_lkg, axis=2)
    company = ordered[:, :, -1] + ordered[:, :, : most - 1].sum(axis=2)
    return aim.value_l(np.maximum(company / int(ranks_n.max()), 1.0)) * (1 - 1e-9)


def pinned_instead(placing: Placing, ground: Ground, aim: Aim, effort: Effort) -> Grouping | None:
    """The groups of a question, and what pinning them to nodes would give where that is possible."""
    topology = placing.topology
    if topology.groups == 1:
        return None
    found = Grouping(groups=topology.groups, top_groups=topology.chosen_groups, pinned=topology.pin_groups)
    if placing.nodes == 1 or placing.dead or placing.survive in ("node", "rack"):
        return found
    pins = pins_of(ground.mean_le.shape[1], topology.groups, np.array(placing.domain_of_rank))
    try:
        replace(topology, pin_groups=True).require_pins(placing.nodes, placing.racks, placing.survive)
        require_slots(pins, ground.shelf)
    except NoPlacementError:
        return found
    short = Effort(min(PINNED_SECONDS, effort.seconds), effort.seed, turns=effort.turns)
    slot_ln = place_pinned(ground.load_lke, ground.shelf, pins, aim, short).slot_ln
    balance = float((1 / ground.busiest_lk(slot_ln) @ aim.weight_k).mean())
    sends = mean_sends(report_levels(ground, slot_ln, {}), "node")
    return found.model_copy(update={"pinned_balancedness": balance, "pinned_sends": sends})
